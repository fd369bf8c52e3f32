"""Evaluator of the bundled model's videos (shapes world): recognises their colour, shape and motion.

No learned judge is used. The object is what differs from the picture's border; its colour is compared with
the palette and its outline with the four shapes, and the paths of its centroid and area show the motion.
Clips need at least `MIN_FRAMES` frames; motions cannot be told apart over fewer. Torch-free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paradit.shapes.scenes import COLORS, SHAPES, Scene

MIN_FRAMES = 25
"""Smallest number of frames in which bouncing and circling can be recognised, at 16 frames a second."""

BOUNCE = 4.0
"""Smallest change of a falling object's velocity, over two frames, that counts as a bounce off the floor, in
pixels per frame."""
CLIP_FRAMES = 33
"""Number of frames of each of the overlapping clips by which a long video is judged."""


@dataclass(frozen=True)
class Verdict:
    """Result of evaluating a short video: its colour, shape and motion, each None if not recognised."""

    color: str | None
    shape: str | None
    motion: str | None
    stray: float
    """Largest fraction, in any frame, of the non-background pixels that do not belong to the object.

    Such pixels are ghosts or debris.
    """
    flicker: float
    """Mean change of the background's pixels from frame to frame, in levels of 255."""

    def right(self, scene: Scene) -> dict[str, bool]:
        return {
            "color": self.color == scene.color,
            "shape": self.shape == scene.shape,
            "motion": self.motion == scene.motion,
        }


@dataclass(frozen=True)
class LongVerdict:
    """Quality figures for a long video that was made in frame blocks."""

    present: float
    """Fraction of the frames in which the object is visible, neither shrunk nor faded away."""
    color: float
    """Fraction of the video's clips in which the colour is right.

    `shape` and `motion` are the same fractions for the shape and the motion.
    """
    shape: float
    motion: float
    border_flicker: float
    """Ratio of the picture's change at the borders between frame blocks to its change elsewhere.

    The change is the mean difference between two consecutive frames. The ratio is 1 if the borders are
    invisible.
    """
    border_jump: float
    """Ratio of the change of the object's velocity at the borders between frame blocks to that elsewhere.

    The velocity is the movement from one frame to the next, so the ratio is large if the object leaps where a
    frame block begins.
    """
    border_turn: float
    """Factor by which the moving object's velocity changes more where a frame block begins than elsewhere.

    Velocities are means over several frames. The factor is large if the object turns, or changes its speed,
    at borders between frame blocks.
    """
    drift: float
    """Largest change of the background's colour since the first frames, in levels of 255."""
    turn_pixels: float
    """Mean difference, over the borders between frame blocks, between the object's velocity after the border
    and the one that its motion before it leads to, in pixels per frame.

    Velocities are means over several frames. Ratios such as `border_turn` mislead if the motion inside blocks
    is very smooth; this figure does not depend on it.
    """
    largest_turn_pixels: float
    inside_turn_pixels: float
    """Mean of the same difference inside frame blocks."""
    largest_leap_pixels: float
    """Largest distance, over all borders, of the object in a frame block's first frame from the place to
    which its motion leads, in pixels."""
    worst_border: int | None
    """Index of the frame at whose border the object turns most; None if no border could be measured."""
    measured_borders: int
    """Number of borders with such figures: the object is seen near them, and does not bounce off the floor.
    """


@dataclass(frozen=True)
class _Outline:
    """Position, size and shape of the object in one frame, in pixels."""

    x: float
    y: float
    area: float
    width: float
    height: float
    shape: str
    stray: float


def evaluate(video: np.ndarray) -> Verdict:
    """Recognise the colour, shape and motion of the object in a video, uint8 `[F, H, W, 3]`.

    Raises `ValueError` for fewer than `MIN_FRAMES` frames.
    """
    if len(video) < MIN_FRAMES:
        raise ValueError(
            f"{len(video)} frames are too few to tell the motions apart: at least {MIN_FRAMES} are needed"
        )
    frames = video.astype(np.float32)
    difference = _difference_from_background(frames)  # [F, H, W]
    # The threshold is half of the object's own contrast, so that edges are cut at half coverage.
    contrast = float(np.median(np.quantile(difference, 0.99, axis=(1, 2))))
    masks = difference > contrast / 2
    if contrast < 30 or masks.mean() > 0.5:  # no object, or no background behind it
        return Verdict(None, None, None, 0.0, _flicker(frames, difference > 15))
    outlines = [_outline(mask) for mask in masks]
    seen = [outline for outline in outlines if outline is not None]
    if len(seen) < 0.9 * len(frames):
        return Verdict(_color(frames, difference, contrast), None, None, 1.0, _flicker(frames, masks))
    shapes = [outline.shape for outline in seen]
    return Verdict(
        color=_color(frames, difference, contrast),
        shape=max(SHAPES, key=shapes.count),
        motion=_motion(seen, side=float(frames.shape[1])),
        stray=max(outline.stray for outline in seen),
        flicker=_flicker(frames, masks),
    )


def evaluate_long(video: np.ndarray, scene: Scene, borders: Sequence[int], period: int = 4) -> LongVerdict:
    """Judge a long video, uint8 `[F, H, W, 3]`: its clips of `CLIP_FRAMES`, and its frame blocks' borders.

    scene: the scene that the video should show. borders: the index of the first frame of each frame block
    except the first block. period: number of frames that the VAE decodes at a time. The picture changes more
    from one such group of frames to the next than within a group. Borders are therefore compared only with
    frames that begin a group.
    """
    starts = range(0, len(video) - CLIP_FRAMES + 1, CLIP_FRAMES // 2)
    clips = [evaluate(video[start : start + CLIP_FRAMES]).right(scene) for start in starts]
    rightness = {trait: float(np.mean([clip[trait] for clip in clips])) for trait in clips[0]}
    at_borders = np.asarray(borders)
    inside = np.setdiff1d(np.arange(borders[0] % period, len(video), period), at_borders)
    inside = inside[inside >= 2]  # earlier frames have no movement before them to compare with

    def at_borders_over_inside(values: np.ndarray) -> float:
        known = [values[where][~np.isnan(values[where])] for where in (at_borders, inside)]
        if not all(map(len, known)):
            return float("nan")
        return float(known[0].mean() / max(known[1].mean(), 1e-6))

    frames = video.astype(np.float32)
    background = _background(frames)
    difference = np.abs(frames - background[:, None, None]).max(axis=3)
    contrast = float(np.median(np.quantile(difference, 0.99, axis=(1, 2))))
    outlines = [_outline(mask) for mask in difference > max(contrast / 2, 15)]
    changes = np.abs(np.diff(frames, axis=0, prepend=frames[:1])).mean(axis=(1, 2, 3))
    steps = _steps(outlines, side=frames.shape[1])
    turns, leaps = _off_course(steps, scene.motion, period, inside)
    measured = at_borders[~np.isnan(turns[at_borders])]
    return LongVerdict(
        present=_present(outlines),
        **rightness,
        border_flicker=at_borders_over_inside(changes),
        border_jump=at_borders_over_inside(_turns(steps, 1)),
        border_turn=at_borders_over_inside(_turns(steps, period, skip=1)),
        drift=float(np.abs(background - background[:period].mean(axis=0)).max()),
        turn_pixels=float(turns[measured].mean()) if len(measured) else float("nan"),
        largest_turn_pixels=float(turns[measured].max(initial=0)),
        inside_turn_pixels=float(np.nanmean(turns[inside])),
        largest_leap_pixels=float(leaps[measured].max(initial=0)),
        worst_border=int(measured[np.argmax(turns[measured])]) if len(measured) else None,
        measured_borders=len(measured),
    )


def _present(outlines: Sequence[_Outline | None]) -> float:
    """Return the fraction of frames in which the object has at least 0.6 of its usual area.

    The usual area is the median over the frames within half a second.
    """
    areas = np.asarray([outline.area if outline else 0.0 for outline in outlines])
    reach = CLIP_FRAMES // 4
    usual = [np.median(areas[max(0, i - reach) : i + reach + 1]) for i in range(len(areas))]
    return float(np.mean((areas > 0) & (areas >= 0.6 * np.asarray(usual))))


def _steps(outlines: Sequence[_Outline | None], side: int) -> np.ndarray:
    """Return the object's movement since the frame before, in pixels, `[F, 2]`; NaN if no object is seen."""
    places = np.asarray([(np.nan, np.nan) if o is None else (o.x, o.y) for o in outlines])
    # An object that leaves on one side returns on the other, so the shorter way counts.
    steps = (np.diff(places, axis=0) + side / 2) % side - side / 2
    return np.concatenate([[(np.nan, np.nan)], steps])


def _turns(steps: np.ndarray, reach: int, skip: int = 0) -> np.ndarray:
    """Return how much the object's mean velocity changes at each frame, in pixels per frame.

    The mean over the movements just before a frame is compared with the mean over the movements from that
    frame on. steps: the object's movement from the previous frame to each frame (`_steps`). reach: number of
    movements in each mean. skip: number of movements, from the frame on, that the second mean leaves out.
    """
    turns = np.full(len(steps), np.nan)
    for frame in range(reach, len(steps) - reach - skip + 1):
        before, after = steps[frame - reach : frame], steps[frame + skip : frame + skip + reach]
        turns[frame] = np.linalg.norm(after.mean(axis=0) - before.mean(axis=0))
    return turns


def _off_course(
    steps: np.ndarray, motion: str, reach: int, inside: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return how far the object is off its course from each frame on: in velocity, and in place, in pixels.

    The course is given by the mean velocity over the `reach` movements before a frame, and by the motion that
    the scene prescribes: on a circle the velocity turns, and a bouncing object falls. By how much is measured
    at the frames `inside` blocks. NaN where the object is not seen, or bounces off the floor. steps: the
    object's movement from the previous frame to each frame (`_steps`).
    """
    before, after = np.full_like(steps, np.nan), np.full_like(steps, np.nan)
    for frame in range(reach, len(steps) - reach):
        before[frame] = steps[frame - reach : frame].mean(axis=0)
        after[frame] = steps[frame + 1 : frame + 1 + reach].mean(axis=0)
        downwards = steps[frame - reach : frame + 1 + reach, 1]
        if motion == "bouncing" and (downwards[2:] - downwards[:-2]).min() < -BOUNCE:
            before[frame] = np.nan
    halfway, expected = before, before
    if motion == "bouncing":
        fallen = np.nanmedian((after - before)[inside], axis=0)
        halfway, expected = before + fallen / 2, before + fallen
    elif motion == "circling":
        first, last = (each[:, 0] + 1j * each[:, 1] for each in (before, after))
        angle = np.nanmedian(np.angle(last * first.conj())[inside])
        turned = (first * np.exp(1j * part) for part in (angle / 2, angle))
        halfway, expected = (np.stack([each.real, each.imag], axis=1) for each in turned)
    turns: np.ndarray = np.linalg.norm(after - expected, axis=1)
    leaps: np.ndarray = np.where(np.isnan(turns), np.nan, np.linalg.norm(steps - halfway, axis=1))
    return turns, leaps


def _difference_from_background(frames: np.ndarray) -> np.ndarray:
    """Return how far each pixel is from the frame's border colour, `[F, H, W]`.

    The distance is the largest absolute difference in any colour channel.
    """
    difference: np.ndarray = np.abs(frames - _background(frames)[:, None, None]).max(axis=3)
    return difference


def _background(frames: np.ndarray) -> np.ndarray:
    """Return the median colour of each frame's border, `[F, 3]`."""
    border = np.concatenate(
        [frames[:, :3].reshape(len(frames), -1, 3), frames[:, -3:].reshape(len(frames), -1, 3),
         frames[:, :, :3].reshape(len(frames), -1, 3), frames[:, :, -3:].reshape(len(frames), -1, 3)],
        axis=1,
    )  # fmt: skip
    background: np.ndarray = np.median(border, axis=1)
    return background


def _color(frames: np.ndarray, difference: np.ndarray, contrast: float) -> str:
    """Return the name of the palette colour nearest to the median of the object's inner pixels."""
    inner = frames[difference > 0.8 * contrast]
    median = np.median(inner, axis=0)
    return min(COLORS, key=lambda name: float(np.abs(median - np.asarray(COLORS[name])).sum()))


def _outline(mask: np.ndarray) -> _Outline | None:
    """Measure the object in one frame; `mask` marks the pixels that are not background.

    Pixels near their median position belong to the object; all others count as stray. An object that leaves
    on one side returns on the other, so the picture is shifted, with wrap-around, until the object is in the
    middle. Returns None if there is hardly anything to see.
    """
    if mask.sum() < 20:
        return None
    shift = [len(counts) // 2 - _middle(counts) for counts in (mask.sum(axis=1), mask.sum(axis=0))]
    mask = np.roll(mask, shift, axis=(0, 1))
    ys, xs = np.nonzero(mask)
    cx, cy = np.median(xs), np.median(ys)
    # Every shape is at most 2.2 times as wide as the square root of its area.
    near = np.maximum(np.abs(xs - cx), np.abs(ys - cy)) <= 1.1 * np.sqrt(len(xs)) + 2
    stray = 1 - near.mean()
    xs, ys = xs[near], ys[near]
    left, right, top, bottom = xs.min(), xs.max() + 1, ys.min(), ys.max() + 1
    box = mask[top:bottom, left:right]
    return _Outline(
        x=float(xs.mean() - shift[1]),
        y=float(ys.mean() - shift[0]),
        area=float(len(xs)),
        width=float(right - left),
        height=float(bottom - top),
        shape=_shape(box),
        stray=float(stray),
    )


def _middle(counts: np.ndarray) -> int:
    """Return the mean position in a histogram of positions that wrap around, as on a circle."""
    angles = 2 * np.pi * np.arange(len(counts)) / len(counts)
    mean = np.angle(np.sum(counts * np.exp(1j * angles)))
    return round(float(mean / (2 * np.pi) * len(counts))) % len(counts)


def _shape(box: np.ndarray) -> str:
    """Return the name of the shape in a mask that is cropped to the shape's bounding box."""
    height, width = box.shape
    core = box[int(height * 0.4) : int(np.ceil(height * 0.6)), int(width * 0.4) : int(np.ceil(width * 0.6))]
    if core.mean() < 0.5:
        return "ring"
    # How much of each corner fifth is filled: all four in a square, the lower two in a triangle.
    h, w = max(1, height // 5), max(1, width // 5)
    upper = (box[:h, :w].mean() + box[:h, -w:].mean()) / 2
    lower = (box[-h:, :w].mean() + box[-h:, -w:].mean()) / 2
    fill = box.mean()
    distances = {
        "square": abs(upper - 1) + abs(lower - 1) + 2 * abs(fill - 1),
        "triangle": abs(upper) + abs(lower - 0.65) + 2 * abs(fill - 0.52),
        "circle": abs(upper - 0.15) + abs(lower - 0.15) + 2 * abs(fill - 0.785),
    }
    return min(distances, key=distances.__getitem__)


def _motion(outlines: list[_Outline], side: float) -> str:
    """Return the name of the object's motion, judged by the path of its centroid and the change of its area.

    side: the picture's side in pixels, by which the path is scaled.
    """
    x = np.unwrap([outline.x / side for outline in outlines], period=1.0)
    y = np.unwrap([outline.y / side for outline in outlines], period=1.0)
    area = np.asarray([outline.area for outline in outlines])
    # The limits below lie between what the motions of `scenes._trajectory` reach.
    ends = max(2, len(area) // 8)
    growth = area[-ends:].mean() / area[:ends].mean()
    reach_x, reach_y = np.ptp(x), np.ptp(y)
    net_x, net_y = x[-1] - x[0], y[-1] - y[0]
    travelled = np.abs(np.diff(y)).sum()
    if max(reach_x, reach_y) < 0.12 and not 1 / 1.5 < growth < 1.5:
        return "growing" if growth > 1 else "shrinking"
    if max(reach_x, reach_y) < 0.06:
        return "standing still"
    if _turning(x, y) > np.pi and min(reach_x, reach_y) > 0.15:
        return "circling"
    if reach_y > 0.15 and reach_x < 0.5 * reach_y and travelled > 1.4 * abs(net_y):
        return "bouncing"
    if abs(net_x) > abs(net_y):
        return "moving right" if net_x > 0 else "moving left"
    return "moving down" if net_y > 0 else "moving up"


def _turning(x: np.ndarray, y: np.ndarray) -> float:
    """Return the angle, in radians, by which the object's path turns about the middle of its bounding box."""
    centre_x, centre_y = (x.max() + x.min()) / 2, (y.max() + y.min()) / 2
    angle = np.unwrap(np.arctan2(y - centre_y, x - centre_x))
    return float(abs(angle[-1] - angle[0]))


def _flicker(frames: np.ndarray, masks: np.ndarray) -> float:
    """Return the mean frame-to-frame change of those pixels that the object covers in no frame."""
    still = ~masks.any(axis=0)
    if still.mean() < 0.05:
        return 0.0
    return float(np.abs(np.diff(frames[:, still], axis=0)).mean())
