"""Shapes world: every combination is drawn as its prompt says, and the evaluator recognises it."""

import numpy as np
import pytest

from paradit.shapes.evaluate import MIN_FRAMES, evaluate, evaluate_long
from paradit.shapes.scenes import (
    BACKGROUNDS,
    COLORS,
    MAX_FRAMES,
    MOTIONS,
    SHAPES,
    Scene,
    all_scenes,
    draw,
    known_words,
)


@pytest.mark.parametrize("num_frames", [MIN_FRAMES, 33, MAX_FRAMES])
def test_evaluator_is_right_on_real_videos(num_frames: int) -> None:
    scenes = all_scenes()[num_frames % 23 :: 23]
    verdicts = [evaluate(draw(s, num_frames, np.random.default_rng(i))) for i, s in enumerate(scenes)]
    for trait in ("color", "shape", "motion"):
        right = np.mean([v.right(s)[trait] for s, v in zip(scenes, verdicts, strict=True)])
        assert right >= 0.99, trait
    assert max(v.stray for v in verdicts) == 0


@pytest.mark.parametrize("size", [64, 128])
def test_evaluator_does_not_depend_on_the_size(size: int) -> None:
    for i, scene in enumerate(all_scenes()[::97]):
        assert all(evaluate(draw(scene, 33, np.random.default_rng(i), size)).right(scene).values()), scene


def test_evaluator_sees_what_is_wrong() -> None:
    video = draw(Scene("red", "circle", "moving right", "dark"), 33, np.random.default_rng(0))
    assert evaluate(video[::-1]).motion == "moving left"
    assert evaluate(video[..., ::-1]).color == "blue"
    assert evaluate(video.transpose(0, 2, 1, 3)).motion == "moving down"
    empty = evaluate(np.full_like(video, 20))
    assert (empty.color, empty.shape, empty.motion) == (None, None, None)
    noise = np.random.default_rng(0).integers(0, 256, video.shape, dtype=np.uint8)
    assert evaluate(noise).shape is None
    other = draw(Scene("red", "circle", "standing still", "dark"), 33, np.random.default_rng(3))
    assert evaluate(np.maximum(video, other)).stray > 0.1


def test_evaluator_refuses_short_clips() -> None:
    with pytest.raises(ValueError, match=f"24 frames are too few .* {MIN_FRAMES}"):
        evaluate(np.zeros((24, 96, 96, 3), dtype=np.uint8))


def test_flicker_is_the_change_of_the_background() -> None:
    video = draw(Scene("red", "circle", "standing still", "gray"), 33, np.random.default_rng(0))
    assert evaluate(video).flicker == 0
    video[::2] += 3
    assert evaluate(video).flicker == pytest.approx(3, abs=0.2)


BORDERS = [13, 29, 45]


def test_long_videos_without_a_fault() -> None:
    for scene in all_scenes()[::131]:
        # No longer than this, because nothing can grow for longer.
        verdict = evaluate_long(draw(scene, MAX_FRAMES, np.random.default_rng(1)), scene, BORDERS)
        assert (verdict.present, verdict.color, verdict.shape, verdict.motion) == (1, 1, 1, 1), scene
        if scene.motion not in ("standing still", "bouncing"):
            assert 0.8 < verdict.border_flicker < 1.25, scene
        assert verdict.drift <= 3 or scene.motion in ("growing", "shrinking"), scene


def test_long_videos_with_faults() -> None:
    scene = Scene("red", "circle", "moving right", "dark")
    video = draw(scene, MAX_FRAMES, np.random.default_rng(0))
    good = evaluate_long(video, scene, BORDERS)
    assert good.border_jump < 2 and good.border_turn < 2
    assert good.largest_turn_pixels < 0.3 and good.largest_leap_pixels < 0.8

    jumping = video.copy()
    for border in BORDERS:
        jumping[border:] = np.roll(jumping[border:], 20, axis=1)
    verdict = evaluate_long(jumping, scene, BORDERS)
    assert verdict.border_flicker > 1.5 and verdict.border_jump > 5 and verdict.present == 1
    assert verdict.border_turn < 2  # the velocity is unchanged
    assert verdict.largest_turn_pixels < 0.3
    assert verdict.largest_leap_pixels == pytest.approx(20, abs=0.8)

    # Slower after the first border, backwards after the second, and forwards as before after the third.
    course = np.cumsum([0.5 if 13 <= i < 29 else -1 if 29 <= i < 45 else 1 for i in range(MAX_FRAMES)])
    turning = np.stack([np.roll(video[0], round(3 * far), axis=1) for far in course])
    verdict = evaluate_long(turning, scene, BORDERS)
    assert verdict.border_turn > 5 and verdict.present == 1
    # By 3 x (1 - 0.5) pixels at the first, by 3 x (0.5 + 1) at the second; the third is too near the end.
    assert verdict.measured_borders == 2
    assert verdict.turn_pixels == pytest.approx(3, abs=0.3)
    assert verdict.largest_turn_pixels == pytest.approx(4.5, abs=0.3)

    vanishing = video.copy()
    vanishing[BORDERS] = video[0, 0, 0]
    verdict = evaluate_long(vanishing, scene, BORDERS)
    assert verdict.present == pytest.approx(46 / 49) and verdict.border_flicker > 1.5
    assert verdict.measured_borders == 0 and np.isnan(verdict.turn_pixels)

    empty = video.copy()
    empty[20:30] = empty[0, 0, 0]
    assert evaluate_long(empty, scene, BORDERS).present == pytest.approx(39 / 49)

    fading = video.copy()
    ys, xs = np.mgrid[:96, :96]
    red = np.argwhere((video[24] == video[24].max(axis=(0, 1))).all(axis=2)).mean(axis=0)
    fading[24][np.hypot(ys - red[0], xs - red[1]) > 4] = video[0, 0, 0]  # only a dot is left
    assert evaluate_long(fading, scene, BORDERS).present == pytest.approx(48 / 49)

    darkening = np.clip(
        video.astype(int) + np.linspace(0, 30, MAX_FRAMES).astype(int)[:, None, None, None], 0, 255
    )
    assert evaluate_long(darkening.astype(np.uint8), scene, BORDERS).drift == pytest.approx(30, abs=3)

    backwards = np.concatenate([video, video[::-1]])
    assert evaluate_long(backwards, scene, BORDERS).motion < 0.7


@pytest.mark.parametrize("motion", ["moving up", "bouncing", "circling"])
def test_what_a_motion_prescribes_is_no_turn(motion: str) -> None:
    """Circling and bouncing objects change their velocity at every frame, which is their course."""
    for seed, shape in enumerate(("ring", "triangle")):
        scene = Scene("red", shape, motion, "gray")
        video = draw(scene, MAX_FRAMES, np.random.default_rng(seed))
        verdict = evaluate_long(video, scene, [13, 21, 29, 37])
        assert verdict.measured_borders == 4 or (motion == "bouncing" and verdict.measured_borders)
        assert verdict.turn_pixels < 0.3 and verdict.largest_turn_pixels < 0.7
        assert verdict.largest_leap_pixels < 1.2 and verdict.inside_turn_pixels < 0.3


@pytest.mark.parametrize("motion", ["circling", "bouncing"])
def test_an_object_that_leaves_its_course_is_seen(motion: str) -> None:
    scene = Scene("red", "circle", motion, "gray")
    video = draw(scene, MAX_FRAMES, np.random.default_rng(2))
    border = next(b for b in range(17, 33) if evaluate_long(video, scene, [b]).measured_borders)
    stopped = np.concatenate([video[:border], np.repeat(video[border - 1 : border], 20, axis=0)])
    verdict = evaluate_long(stopped, scene, [border, 33])
    assert verdict.largest_turn_pixels > 2
    shifted = np.concatenate([video[:border], np.roll(video[border:], 6, axis=2)])
    verdict = evaluate_long(shifted, scene, [border])
    assert verdict.largest_turn_pixels < 0.7
    assert verdict.largest_leap_pixels == pytest.approx(6, abs=1.2)


def test_drawing_is_fixed_by_its_seed() -> None:
    scene = Scene("cyan", "ring", "circling", "brown")
    first, again = (draw(scene, 17, np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(first, again)
    # A longer video begins like the shorter one.
    assert np.array_equal(draw(scene, 33, np.random.default_rng(5))[:17], first)
    assert np.array_equal(draw(scene, 17, np.random.default_rng(5), first_frame=8)[:9], first[8:])


def test_every_value_is_trained_on_and_held_out() -> None:
    for held_out in (True, False):
        scenes = [scene for scene in all_scenes() if scene.held_out == held_out]
        assert {s.color for s in scenes} == set(COLORS)
        assert {s.shape for s in scenes} == set(SHAPES)
        assert {s.motion for s in scenes} == set(MOTIONS)
        assert {s.background for s in scenes} == set(BACKGROUNDS)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("A Red circle, which moves RIGHT!", ["red", "circle", "moving", "right"]),
        ("something grey", ["gray"]),
        ("a cat in the rain", []),
        ("reddish circleways", []),
    ],
)
def test_known_words(prompt: str, words: list[str]) -> None:
    assert known_words(prompt) == words
