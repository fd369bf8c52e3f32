"""Type of a video's frames."""

import numpy as np

Frame = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
"""RGB picture, uint8 `[H, W, 3]`."""
