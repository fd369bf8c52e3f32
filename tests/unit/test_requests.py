"""Checks of requests; the model's files are only read, and never loaded."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from messages import says
from paradit.config.errors import InputError
from paradit.config.methods.blocks import BlocksRequest
from paradit.config.methods.method import resolve
from paradit.config.requests import Request, chosen_seed, frames_for, parse_size
from paradit.models.folder import bundled_folder
from paradit.models.spec import ModelSpec, read_spec
from paradit.models.warnings import warnings_for

DEFAULTS: dict[str, Any] = {
    "width": 96,
    "height": 96,
    "num_frames": 33,
    "fps": 16,
    "num_inference_steps": 20,
    "guidance_scale": 4.0,
    "negative_prompt": "blurred",
    "train_frames": [5, 49],
}


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return read_spec(tiny.save_folder("wan21", tmp_path_factory.mktemp("models") / "tiny", **DEFAULTS))


@pytest.fixture(scope="module")
def refusal(spec: ModelSpec) -> Callable[..., str]:
    """Return a function that returns the one-line error of a request with the given fields."""

    def ask(**fields: Any) -> str:
        with pytest.raises(InputError) as caught:
            resolve(Request.of(**({"prompt": "a red circle"} | fields)), spec)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return ask


def test_defaults_are_the_models(spec: ModelSpec) -> None:
    request = resolve(Request(prompt="a red circle"), spec)
    assert (request.width, request.height, request.num_frames) == (96, 96, 33)
    assert (request.num_inference_steps, request.guidance_scale, request.fps) == (20, 4.0, 16)
    assert (request.negative_prompt, request.seed, request.dtype) == ("blurred", 0, None)


def test_what_is_given_stays(spec: ModelSpec) -> None:
    given = Request(
        prompt="x",
        negative_prompt="",
        width=32,
        height=64,
        num_frames=1,
        num_inference_steps=1,
        guidance_scale=1.0,
        seed=2**64 - 1,
        fps=23.976,
        dtype="bf16",
        method="full",
    )
    resolved = resolve(given, spec)
    assert vars(resolved).items() <= vars(given).items()
    assert resolve(resolved.asked(), spec) == resolved


@pytest.mark.parametrize("prompt", ["", "  \n\t"])
def test_empty_prompt(refusal: Callable[..., str], prompt: str) -> None:
    assert "prompt is empty" in refusal(prompt=prompt)


def test_text_that_is_none(refusal: Callable[..., str]) -> None:
    assert "UTF-8" in refusal(prompt="a \udcff")


@pytest.mark.parametrize(
    ("num_frames", "advice"),
    [(2, "use 1 or 5"), (18, "use 17 or 21"), (32, "use 29 or 33"), (0, "at least 1"), (-3, "at least 1")],
)
def test_num_frames(refusal: Callable[..., str], num_frames: int, advice: str) -> None:
    message = refusal(num_frames=num_frames)
    assert f"got {num_frames}" in message
    assert advice in message


@pytest.mark.parametrize(
    ("width", "height", "advice"),
    [
        (100, 96, "16 pixels .. got 100x96: the nearest is 96x96"),
        (104, 90, "the nearest is 112x96"),
        (1, 7, "the nearest is 16x16"),
        (96, 10**9, "at most 1024 pixels a side (the model's positions)"),
    ],
)
def test_size(refusal: Callable[..., str], width: int, height: int, advice: str) -> None:
    assert says(refusal(width=width, height=height), advice)


def test_positions_end(refusal: Callable[..., str]) -> None:
    assert "num_frames must be at most 253" in refusal(num_frames=257, method="full")


def test_long_videos_are_made_in_blocks(spec: ModelSpec) -> None:
    """Videos beyond twice the 49 trained frames are made in blocks; those of a duration, beyond 49."""
    for num_frames, trim, method in ((97, False, "full"), (99, False, "dualparal"), (50, True, "dualparal")):
        request = resolve(Request(prompt="x", num_frames=num_frames, trim=trim), spec)
        assert request.method == method
        assert request.num_frames == num_frames
        # A window has the length that the model was trained on: 13 latent frames.
        if isinstance(request, BlocksRequest):
            assert (request.block_frames, request.context_frames) == (7, 3)
        assert resolve(request.asked(), spec) == request


@pytest.mark.parametrize("field", ["width", "height", "num_frames", "num_inference_steps"])
@pytest.mark.parametrize("value", [0, -16, 1.5, "x", math.nan])
def test_whole_numbers(refusal: Callable[..., str], field: str, value: object) -> None:
    message = refusal(**{field: value})
    assert message.startswith(field)
    assert str(value) in message


@pytest.mark.parametrize("field", ["guidance_scale", "fps"])
@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, -math.inf, "x", 10**400])
def test_numbers(refusal: Callable[..., str], field: str, value: object) -> None:
    assert refusal(**{field: value}).startswith(f"{field} must be a")


@pytest.mark.parametrize(("fps", "nearest"), [(1e-9, "0.1"), (1e9, "1000")])
def test_fps_range(refusal: Callable[..., str], fps: float, nearest: str) -> None:
    assert f"the nearest is {nearest}" in refusal(fps=fps)


@pytest.mark.parametrize(("seed", "nearest"), [(-1, "0"), (2**64, str(2**64 - 1))])
def test_seed(refusal: Callable[..., str], seed: int, nearest: str) -> None:
    assert f"got {seed}: the nearest is {nearest}" in refusal(seed=seed)


def test_steps_and_dtype(refusal: Callable[..., str]) -> None:
    assert "at most 1000, got 1001" in refusal(num_inference_steps=1001)
    assert "bf16, fp32, got 'fp16'" in refusal(dtype="fp16")


def test_parse_size() -> None:
    assert parse_size("832x480") == (832, 480)
    assert parse_size("96X64") == (96, 64)
    for text in ("", "96", "96x", "96x96x3", "axb", "9.5x3", "--1x2", "²x3"):
        with pytest.raises(InputError, match="WIDTHxHEIGHT"):
            parse_size(text)


def test_warnings(spec: ModelSpec) -> None:
    def warnings(spec: ModelSpec, **fields: Any) -> list[str]:
        request = Request.of(**({"prompt": "a cat on a mat"} | fields))
        return warnings_for(resolve(request, spec), spec)

    bundled = replace(spec, folder=bundled_folder(), name="shapes")
    assert not warnings(spec)
    assert not warnings(bundled, prompt="some RED thing")
    [words] = warnings(bundled)
    assert all(word in words for word in ("purple", "triangle", "moving left", "brown"))
    [frames] = warnings(spec, num_frames=65)
    assert "65 is outside the 5 to 49" in frames
    [size] = warnings(bundled, prompt="red", width=64)
    assert "64x96 is not the 96x96" in size


def test_methods_in_blocks(spec: ModelSpec, tmp_path: Path) -> None:
    for method in ("windowed", "fifo"):
        request = resolve(Request(prompt="x", num_frames=99, method=method), spec)
        assert isinstance(request, BlocksRequest)
        assert (request.block_frames, request.context_frames) == (7, 3)
    two = read_spec(tiny.save_folder("wan22_a14b", tmp_path / "two"))
    assert isinstance(resolve(Request(prompt="x", method="windowed"), two), BlocksRequest)
    with pytest.raises(InputError, match=r"fifo .* two transformers"):
        resolve(Request(prompt="x", method="fifo"), two)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prompt": ["a", "b"]}, r"prompt must be a text, got \['a', 'b'\] \(list\)"),
        ({"prompt": b"a"}, "prompt must be a text, got b'a' .bytes"),
        ({"prompt": None}, "prompt must be a text, got None"),
        ({"negative_prompt": 3}, "negative_prompt must be a text, got 3 .int"),
        ({"width": "96"}, "width must be a whole number, got '96' .str"),
        ({"num_frames": 9.5}, "num_frames must be a whole number, got 9.5 .float"),
        ({"fps": [16]}, r"fps must be a number, got \[16\] .list"),
        ({"fps": "16"}, "fps must be a number, got '16' .str"),
        ({"guidance_scale": b"3"}, "guidance_scale must be a number, got b'3' .bytes"),
        ({"dtype": ["fp32"]}, "dtype must be one of bf16, fp32, got"),
        ({"dtype": np.array([1, 2])}, "dtype must be one of bf16, fp32, got array"),
        ({"method": 10**5000}, r"method must be one of .* got about 10\*\*"),
        ({"method": 3}, "method must be one of .* got 3"),
        ({"method": "dualparal", "block_frames": "7"}, "block_frames must be a whole number, got '7'"),
        ({"method": "dualparal", "context_frames": -1}, "context_frames must be at least 0, got -1"),
        ({"method": "dualparal", "prompts_at": 3}, "prompts_at .* seconds and a text, got 3"),
        ({"method": "dualparal", "prompts_at": "ab"}, "prompts_at must be pairs"),
        (
            {"method": "dualparal", "prompts_at": [(1, b"x")]},
            "the text of prompts_at must be a text, got b'x'",
        ),
        ({"prompt": "x" * 500, "seed": "y" * 500}, r"seed must be a whole number, got 'y+\.\.\. .str"),
    ],
)
def test_values_of_a_wrong_type(fields: dict[str, Any], said: str, refusal: Callable[..., str]) -> None:
    assert re.search(said, refusal(**fields))


def test_a_seed_is_chosen() -> None:
    assert chosen_seed("7") == chosen_seed(7) == 7
    with pytest.raises(InputError, match="seed must be a whole number or random, got True"):
        chosen_seed(True)
    assert len({chosen_seed("random") for _ in range(5)}) > 1
    assert all(0 <= chosen_seed("RANDOM") < 2**32 for _ in range(5))


def test_frames_for_a_duration(spec: ModelSpec) -> None:
    assert frames_for(None, 9, None, spec) == 9
    assert frames_for("2s", None, None, spec) == frames_for(2, None, None, spec) == 32
    assert frames_for("1.5min", None, 10, spec) == 900
    with pytest.raises(InputError, match="not both"):
        frames_for("2s", 9, None, spec)
    with pytest.raises(InputError, match="duration must be a number, got array"):
        frames_for(np.array([1, 2]), None, None, spec)  # type: ignore[arg-type]
