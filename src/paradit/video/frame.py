"""A picture of a video."""

import numpy as np

Frame = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
"""One picture, uint8 `[H, W, 3]`, RGB."""
