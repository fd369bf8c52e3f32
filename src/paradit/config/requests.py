"""Requests for videos, and the checks of their values. Torch-free, so that a mistake is reported at once."""

from __future__ import annotations

import math
import numbers
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from paradit.config.errors import InputError
from paradit.config.limits import (
    MAX_FRAMES,
    MAX_PROMPT,
    MAX_SECONDS,
    MAX_SIDE,
    MAX_TILE,
    amount,
    digits,
    one_of,
    shown,
    typed,
    whole,
)
from paradit.config.request_inputs import with_inputs
from paradit.config.steps import AskedSteps, Steps, resolved_steps
from paradit.config.values import NONE, Value, Values
from paradit.models.spec import ModelSpec

DTYPES = ("bf16", "fp32")
ENDLESS = 2**52 + 1
"""Sentinel frame count for `--duration inf`; larger than any run reaches."""
MAX_SEED = 2**64 - 1
MIN_FPS, MAX_FPS = 0.1, 1000
PIPELINE_MULTIPLE = 16
"""Pixel multiple that diffusers' pipelines require of width and height.

The model's own patches may allow a smaller one.
"""


V = TypeVar("V")


@dataclass(frozen=True, kw_only=True)
class Request(AskedSteps):
    """Request for a video as a user makes it; `None` means the model's default.

    `config.methods.method.resolve` fills the defaults in.
    """

    prompt: str
    negative_prompt: str | None = None
    width: int | None = None
    """Width of the video, in pixels."""
    height: int | None = None
    """Height of the video, in pixels."""
    num_frames: int | None = None
    trim: bool = False
    """Whether `num_frames` may be any number; the VAE then makes more frames than that, and the rest is
    dropped."""
    seed: int = 0
    fps: float | None = None
    """Frames per second of the video file; it does not change the frames."""
    dtype: str | None = None
    """Data type to compute in, `bf16` or `fp32`; `None`: what suits the device."""
    method: str | None = None
    """Denoising method: a name in `config.methods.registry.METHODS`; `None`: chosen by the video's length."""
    options: Mapping[str, Value] = NONE
    """Request options that only some denoising methods have, such as `block_frames`.

    Default values depend on the model.
    """
    prompts_at: Iterable[tuple[float, str]] = ()
    """Later prompts, as pairs (seconds, text): each holds from the first frame block that begins at that time
    or later."""
    vae_tile: int | None = None
    """Side, in pixels, of the square tiles in which the VAE decodes the picture; `None`: as the model's card
    says, which for some models is the whole picture."""
    image: object = None
    """Picture of the first frame: a path or, from Python, a PIL image or an array `[H, W, 3]`, uint8."""
    last_image: object = None
    """Picture of the last frame, given as `image` is."""
    video: object = None
    """Video to change: a path or, from Python, an array of frames `[F, H, W, 3]`, uint8, at `fps`."""
    strength: float | None = None
    """Fraction of the denoising steps that `video` goes through."""
    fit: str = "cover"
    """How a picture or video of another aspect is fitted to the size: `cover`, `contain` or `stretch`."""

    @classmethod
    def of(cls, **given: object) -> Request:
        """Return a request with the given fields; they may include options that only some methods have."""
        own = {field.name for field in fields(cls)}
        mine = {name: value for name, value in given.items() if name in own}
        others = {name: value for name, value in given.items() if name not in own}
        return cls(**mine, options=Values(others))  # type: ignore[arg-type]

    @property
    def endless(self) -> bool:
        """Whether the requested video goes on until the user stops it."""
        return self.num_frames == ENDLESS


@dataclass(frozen=True, kw_only=True)
class ResolvedRequest(Steps):
    """Request for a video with every value decided and checked, made from a `Request` by a denoising method.

    Subclasses have the options of their methods as fields.
    """

    prompt: str
    negative_prompt: str
    width: int
    height: int
    num_frames: int
    trim: bool
    seed: int
    fps: float
    dtype: str | None
    """Data type to compute in; None: what suits the device, which is unknown until torch is imported."""
    method: str
    prompts_at: tuple[tuple[float, str], ...] = ()
    vae_tile: int | None
    """Side, in pixels, of the square tiles in which the VAE decodes the picture; None: the whole picture."""
    image: str | None = None
    """Path to the picture of the first frame."""
    last_image: str | None = None
    """Path to the picture of the last frame."""
    video: str | None = None
    """Path to the video to change."""
    strength: float | None = None
    """Fraction of the denoising steps that `video` goes through; None if there is no video."""
    fit: str = "cover"
    """How a picture or video of another aspect is fitted to the size: `cover`, `contain` or `stretch`."""

    @property
    def has_pictures(self) -> bool:
        """Whether the video is made from pictures or a video, not from text alone."""
        return any((self.image, self.last_image, self.video))

    @property
    def endless(self) -> bool:
        """Whether the requested video goes on until the user stops it."""
        return self.num_frames == ENDLESS

    @property
    def steps_to_do(self) -> int:
        """Number of denoising steps that are done: all of them, or with a video the fraction `strength`."""
        if self.strength is None:
            return self.num_inference_steps
        return min(int(self.num_inference_steps * self.strength), self.num_inference_steps)

    def asked(self, **changed: object) -> Request:
        """Return a `Request` for the same video, with some fields changed, to be resolved again."""
        return Request.of(**{**asdict(self), **changed})

    def texts(self, spec: ModelSpec) -> list[str]:
        """Return all texts to encode: the prompt, with guidance the negative prompt, and later prompts.

        A later prompt that equals one already in the list is left out.
        """
        prompts = [self.prompt]
        if self.num_branches(spec) == 2:
            prompts.append(self.negative_prompt)
        later = dict.fromkeys(text for _, text in self.prompts_at)
        return prompts + [text for text in later if text not in prompts]

    def block_sizes(self, spec: ModelSpec) -> Iterator[int]:
        """Yield the number of latent frames of each frame block in turn; one block if denoised as a whole."""
        yield latent_shape(self, spec)[1]

    def num_blocks(self, spec: ModelSpec) -> int:  # noqa: ARG002
        """Return the number of frame blocks that the video is denoised in; 1 if it is denoised as a whole."""
        return 1

    def window_frames(self, frames: int) -> int:
        """Return how many latent frames the transformer sees at a time.

        frames: number of latent frames of the video.
        """
        return frames


def resolved_fields(request: Request, spec: ModelSpec) -> dict[str, Any]:
    """Return the fields that every `ResolvedRequest` has, checked and with the model's defaults filled in.

    The method, its options and later prompts are left out. Raises InputError, one line that names the field,
    its value and the nearest valid one.
    """
    defaults = spec.defaults
    found: dict[str, Any] = {
        "prompt": request.prompt,
        "negative_prompt": _default(request.negative_prompt, defaults.negative_prompt),
        "width": whole("width", _default(request.width, defaults.width)),
        "height": whole("height", _default(request.height, defaults.height)),
        "num_frames": _check_length(_default(request.num_frames, defaults.num_frames)),
        "trim": request.trim,
        **resolved_steps(request, spec),
        "seed": _check_seed(request.seed),
        "fps": _check_fps(_default(request.fps, defaults.fps)),
        "vae_tile": _check_tile(_default(request.vae_tile, spec.vae.default_tile), spec),
        "dtype": request.dtype,
        "image": request.image,
        "last_image": request.last_image,
        "video": request.video,
        "strength": request.strength,
        "fit": request.fit,
    }
    asked = {name: getattr(request, name) for name in ("width", "height", "num_frames")}
    found |= with_inputs(
        {**found, **asked}, spec, multiple=_multiple(spec), endless=found["num_frames"] == ENDLESS
    )
    check_text("prompt", found["prompt"])
    check_text("negative_prompt", found["negative_prompt"], empty=True)
    _check_size(found["width"], found["height"], spec)
    if request.dtype is not None:
        one_of("dtype", request.dtype, DTYPES)
    return found


def latent_shape(request: ResolvedRequest, spec: ModelSpec) -> tuple[int, int, int, int]:
    """Return the shape (channels, frames, height, width) of a request's latents.

    They may decode to a few frames more than the request has; these are dropped.
    """
    ratio = spec.vae.temporal_compression
    # Rounded up to a number of frames that latents decode to, such as 4n + 1.
    whole = -(-(request.num_frames - 1) // ratio) * ratio + 1
    return spec.vae.latent_shape(whole, request.height, request.width)


def frames_at_once(request: ResolvedRequest, spec: ModelSpec) -> int:
    """Return how many frames of the requested video the transformer sees at a time."""
    frames = request.window_frames(latent_shape(request, spec)[1])
    return (frames - 1) * spec.vae.temporal_compression + 1


def frames_for(
    duration: str | float | None, num_frames: int | None, fps: float | None, spec: ModelSpec
) -> int | None:
    """Return the number of frames that is given directly or as a duration; None if neither is given.

    duration: seconds, or a text such as `60s` or `inf`. Raises InputError if both are given.
    """
    if duration is None:
        return num_frames
    if num_frames is not None:
        lasting = shown(duration).strip("'")
        raise InputError(f"give a duration ({lasting}) or num_frames ({shown(num_frames)}), not both")
    if isinstance(duration, str) or (isinstance(duration, float) and duration == math.inf):
        seconds = parse_duration(str(duration))
    else:
        seconds = amount("duration", duration, most=MAX_SECONDS)
    if math.isinf(seconds):
        return ENDLESS
    return max(1, round(seconds * _check_fps(_default(fps, spec.defaults.fps))))


def chosen_seed(seed: object) -> int:
    """Return the seed as a number; the word `random` gives one drawn at random. Raises InputError."""
    is_flag = isinstance(seed, bool)  # which Python counts as an integer
    if not is_flag and isinstance(seed, numbers.Integral):
        return int(seed)
    text = seed.strip() if isinstance(seed, str) else ""
    if text.lower() == "random":
        return secrets.randbelow(2**32)  # at most ten digits, so that it is easy to type again
    if not re.fullmatch(r"[+-]?[0-9]{1,40}", text):
        raise InputError(f"seed must be a whole number or random, got {typed(seed)}")
    return int(text)


def parse_duration(text: str) -> float:
    """Return the seconds of a duration written `60s`, `60`, `1.5min` or `inf`. Raises InputError."""
    if text.strip().lower() == "inf":
        return math.inf
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *(s|min)?", text.strip().lower())
    if match is None or not float(match[1]):
        raise InputError(f"duration must be written like 60s or 1.5min, got {shown(text)}")
    return amount("duration", float(match[1]) * (60 if match[2] == "min" else 1), most=MAX_SECONDS)


def parse_size(text: str) -> tuple[int, int]:
    """Return the width and height of a size written `832x480`. Raises InputError."""
    match = re.fullmatch(r"(-?)([0-9]+)x(-?)([0-9]+)", text.strip().lower())
    if match is None:
        raise InputError(f"size must be written WIDTHxHEIGHT, such as 832x480, got {shown(text)}")
    width, height = digits(match[2]), digits(match[4])
    return -width if match[1] else width, -height if match[3] else height


def asked_size(size: str | None, width: int | None, height: int | None) -> tuple[int | None, int | None]:
    """Return the width and height that were asked for by `--size`, or by `--width` and `--height`.

    A side that is left to the model is None. Raises InputError, also if a side is given twice.
    """
    if size is None:
        return width, height
    if width is not None or height is not None:
        said = " and ".join(
            f"{name} ({shown(side)})"
            for name, side in (("width", width), ("height", height))
            if side is not None
        )
        raise InputError(f"give size ({size}) or {said}, not both")
    return parse_size(size)


def _default(value: V | None, default: V) -> V:
    return default if value is None else value


def check_text(name: str, text: object, *, empty: bool = False) -> None:
    """Raise InputError for a text that is not valid, is too long, or is empty unless `empty` allows that."""
    if not isinstance(text, str):
        raise InputError(f"{name} must be a text, got {typed(text)}")
    if len(text) > MAX_PROMPT:
        raise InputError(f"{name} must be at most {MAX_PROMPT} characters long, got {len(text)}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{name} is not valid text (UTF-8): {shown(text)}") from None
    if not empty and not text.strip():
        raise InputError(f"{name} is empty ({text!r}): say what the video should show")


def _check_length(value: object) -> int:
    number = whole("num_frames", value)
    if number == ENDLESS:
        return number
    return whole(
        "num_frames",
        number,
        most=MAX_FRAMES,
        hint="for a video that runs until it is stopped, use duration inf",
    )


def _check_seed(value: object) -> int:
    number = whole("seed", value, least=-math.inf)
    if not 0 <= number <= MAX_SEED:
        nearest = 0 if number < 0 else MAX_SEED
        raise InputError(f"seed must be from 0 to 2**64 - 1, got {shown(number)}: the nearest is {nearest}")
    return number


def _check_fps(value: object) -> float:
    return amount("fps", value, least=MIN_FPS, most=MAX_FPS, hint="frames per second, such as 16")


def _check_tile(value: object, spec: ModelSpec) -> int | None:
    if value is None:
        return None
    tile = whole("vae_tile", value, least=-math.inf, most=MAX_TILE)
    multiple = spec.vae.tile_multiple
    nearest = max(1, (tile + multiple // 2) // multiple) * multiple
    if tile != nearest:
        raise InputError(
            f"vae_tile must be a multiple of {multiple} pixels (tiles overlap by a quarter, in whole latent "
            f"pixels), got {shown(tile)}: the nearest is {nearest}"
        )
    return tile


def _multiple(spec: ModelSpec) -> int:
    """Return the number of pixels that a video's width and height must be multiples of."""
    return math.lcm(spec.size_multiple, PIPELINE_MULTIPLE)


def _check_size(width: int, height: int, spec: ModelSpec) -> None:
    multiple = _multiple(spec)
    positions = spec.transformers[0].max_positions * spec.size_multiple
    most = min(positions, MAX_SIDE) // multiple * multiple
    # Half-way rounds up, and nothing rounds to zero.
    nearest = [min(max(1, (side + multiple // 2) // multiple) * multiple, most) for side in (width, height)]
    if [width, height] == nearest:
        return
    if max(width, height) > most:
        why = f"at most {most} pixels a side" + (" (the model's positions)" if positions <= MAX_SIDE else "")
    else:
        why = f"multiples of {multiple} pixels (the model's patches)"
    got = f"{shown(width)}x{shown(height)}"
    raise InputError(f"size must be {why}, got {got}: the nearest is {nearest[0]}x{nearest[1]}")
