"""Shapes world, the simple videos that the bundled model makes: their content, prompts and drawing.

Torch-free. Training draws its data here, the evaluator takes its palette from here, and the command line
looks up here which words the model knows.
"""

from __future__ import annotations

import itertools
import re
import zlib
from dataclasses import dataclass

import numpy as np

FPS = 16
"""Frames per second at which the motions are defined."""
MAX_FRAMES = 49
"""Largest number of frames in a training clip.

Over this many frames, a growing or shrinking shape neither fills the picture nor vanishes.
"""

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (225, 45, 45),
    "green": (50, 200, 70),
    "blue": (50, 90, 235),
    "yellow": (240, 220, 50),
    "cyan": (50, 215, 225),
    "purple": (165, 60, 215),
    "orange": (245, 140, 35),
    "white": (240, 240, 240),
}
SHAPES = ("circle", "square", "triangle", "ring")
MOTIONS = (
    "moving left",
    "moving right",
    "moving up",
    "moving down",
    "bouncing",
    "circling",
    "growing",
    "shrinking",
    "standing still",
)
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "dark": (20, 20, 26),
    "gray": (105, 105, 110),
    "blue": (28, 42, 92),
    "green": (26, 70, 40),
    "brown": (84, 56, 36),
}

WORDS = tuple(dict.fromkeys([*COLORS, *SHAPES, *" ".join(MOTIONS).split(), *BACKGROUNDS, "background"]))
"""Words of a prompt that the bundled model knows, each listed once; the model ignores all other words."""

OTHER_FORMS = {
    "grey": "gray",
    "move": "moving",
    "moves": "moving",
    "bounce": "bouncing",
    "bounces": "bouncing",
    "circles": "circling",
    "grow": "growing",
    "grows": "growing",
    "shrink": "shrinking",
    "shrinks": "shrinking",
    "stand": "standing",
    "stands": "standing",
    "upwards": "up",
    "downwards": "down",
    "leftwards": "left",
    "rightwards": "right",
}
"""Words that the tokenizer replaces by the form that the model knows, such as "moves" by "moving"."""

HELD_OUT_SHARE = 8
"""Number N such that about one in N scenes is kept out of training, for evaluation."""


@dataclass(frozen=True)
class Scene:
    """Content of one video of the shapes world: colour, shape, motion and background.

    `prompt` is a plain sentence that describes it.
    """

    color: str
    shape: str
    motion: str
    background: str

    @property
    def prompt(self) -> str:
        article = "an" if self.color[0] in "aeiou" else "a"
        return f"{article} {self.color} {self.shape} {self.motion} on a {self.background} background"

    @property
    def held_out(self) -> bool:
        """Whether this scene is kept out of training (decided by a checksum of its prompt)."""
        return zlib.crc32(self.prompt.encode()) % HELD_OUT_SHARE == 0


def all_scenes() -> list[Scene]:
    return [Scene(*parts) for parts in itertools.product(COLORS, SHAPES, MOTIONS, BACKGROUNDS)]


def known_words(prompt: str) -> list[str]:
    """Return the words of `prompt` that the bundled model knows, in order, in lower case.

    Other forms of a known word are replaced by it (`OTHER_FORMS`).
    """
    words = (OTHER_FORMS.get(word, word) for word in re.findall(r"[a-z]+", prompt.lower()))
    return [word for word in words if word in WORDS]


def draw(
    scene: Scene,
    num_frames: int,
    rng: np.random.Generator,
    size: int = 96,
    first_frame: int = 0,
) -> np.ndarray:
    """Draw one video of a scene: uint8 `[num_frames, size, size, 3]`.

    Position, size, speed, phase and texture are drawn from `rng`. first_frame: the frame of the motion at
    which the clip begins. Raises `ValueError` if `first_frame + num_frames` exceeds `MAX_FRAMES`.
    """
    if not 0 < first_frame + num_frames <= MAX_FRAMES:
        raise ValueError(f"a clip ends at frame {first_frame + num_frames}, the motions last {MAX_FRAMES}")
    seconds = (first_frame + np.arange(num_frames, dtype=np.float32)) / FPS
    x, y, radius = _trajectory(scene.motion, seconds, rng)
    background = _texture(BACKGROUNDS[scene.background], size, rng)  # [size, size, 3]
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size
    # An object that leaves on one side returns on the other.
    dx = (grid[None, None, :] - x[:, None, None] + 0.5) % 1 - 0.5  # [F, 1, size]
    dy = (grid[None, :, None] - y[:, None, None] + 0.5) % 1 - 0.5  # [F, size, 1]
    distance = _signed_distance(scene.shape, dx, dy, radius[:, None, None])  # [F, size, size]
    coverage = np.clip(0.5 - distance * size, 0.0, 1.0)[..., None]  # one pixel of anti-aliasing
    color = np.asarray(COLORS[scene.color], dtype=np.float32)
    video = background * (1.0 - coverage) + color * coverage
    return np.clip(video + 0.5, 0, 255).astype(np.uint8)


def _trajectory(
    motion: str, t: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return centre x, centre y and radius at each time `t` (seconds), in fractions of the picture's side."""
    size = rng.uniform(0.13, 0.18)
    margin = size * 1.2 + 0.01
    speed = rng.uniform(0.5, 0.56)
    at, start = rng.uniform(margin, 1 - margin), rng.uniform(0, 1)
    still = np.full_like(t, at), np.full_like(t, margin + start * (1 - 2 * margin)), np.full_like(t, size)
    if motion == "standing still":
        return still
    if motion.startswith("moving"):
        # The object crosses the picture in two seconds, from anywhere. If it began at one side, that would
        # reveal the direction, and a model would not listen to the caption.
        along = start + speed * t
        if motion in ("moving left", "moving up"):
            along = 1 - along
        return (along, still[0], still[2]) if motion in ("moving left", "moving right") else (
            still[0], along, still[2])  # fmt: skip
    if motion == "bouncing":
        period, height = rng.uniform(1.2, 1.5), rng.uniform(0.28, 0.36)
        phase = (t / period + start) % 1.0
        return still[0], 0.96 - margin - height * 4 * phase * (1 - phase), still[2]
    if motion == "circling":
        period, orbit = rng.uniform(1.9, 2.3), rng.uniform(0.17, 0.21)
        angle = 2 * np.pi * (rng.choice([-1.0, 1.0]) * t / period + start)
        cx, cy = rng.uniform(0.46, 0.54, 2)
        return cx + orbit * np.cos(angle), cy + orbit * np.sin(angle), still[2] * 0.9
    cx, cy = rng.uniform(0.42, 0.58, 2)
    rate = rng.uniform(0.055, 0.065)
    radius = rng.uniform(0.08, 0.1) + rate * t if motion == "growing" else rng.uniform(0.27, 0.3) - rate * t
    return np.full_like(t, cx), np.full_like(t, cy), radius.astype(np.float32)


def _signed_distance(shape: str, dx: np.ndarray, dy: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Return each pixel's distance to the shape's outline, negative inside.

    All shapes of one radius have about the same area.
    """
    to_centre = np.sqrt(dx * dx + dy * dy)
    distance: np.ndarray
    if shape == "square":
        distance = np.maximum(np.abs(dx), np.abs(dy)) - 0.9 * radius
    elif shape == "triangle":  # equilateral, point up, centred on its centroid
        distance = np.maximum(0.8660254 * np.abs(dx) - 0.5 * dy, dy) - 0.65 * radius
    elif shape == "ring":
        distance = np.abs(to_centre - 0.82 * radius) - 0.26 * radius
    else:
        distance = to_centre - radius
    return distance


def _texture(color: tuple[int, int, int], size: int, rng: np.random.Generator) -> np.ndarray:
    """Return a still background: one colour with a faint, smooth texture, float32 `[size, size, 3]`."""
    grid = np.arange(size, dtype=np.float32) / size
    shade = np.zeros((size, size), dtype=np.float32)
    for _ in range(3):
        waves, phase = rng.uniform(-2.5, 2.5, 2), rng.uniform(0, 2 * np.pi)
        shade += np.sin(2 * np.pi * (waves[0] * grid[:, None] + waves[1] * grid[None, :]) + phase)
    return np.asarray(color, dtype=np.float32) * (1 + 0.05 * shade[..., None])
