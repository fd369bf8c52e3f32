"""What a user may ask for, and every check of it. Torch-free, so that a mistake is answered at once."""

from __future__ import annotations

import math
import numbers
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from paradit.config.errors import InputError
from paradit.config.limits import (
    MAX_FRAMES,
    MAX_GUIDANCE,
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
from paradit.models.folder import bundled_folder
from paradit.shapes import world

if TYPE_CHECKING:
    from paradit.models.spec import ModelSpec

DTYPES = ("bf16", "fp32")
METHODS = ("full", "dualparal", "windowed", "fifo")
"""How latents are denoised: the whole video at once, or in blocks of frames: `dualparal`, and what it is
compared to (docs/long_video.md)."""
LEFT_CONTEXTS = ("latents", "cache")
ENDLESS = 2**52 + 1
"""As a number of frames: until it is stopped, which it will be before these are there."""
MAX_SEED = 2**64 - 1
MAX_STEPS = 1000
"""Diffusion schedules are trained on 1000 timesteps; more steps than that repeat some."""
MIN_FPS, MAX_FPS = 0.1, 1000
PIPELINE_MULTIPLE = 16
"""diffusers' pipelines take multiples of 16 pixels only, whatever the model's own patches divide."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One video that is wanted. `None` means the model's default; `resolve` fills it in."""

    prompt: str
    negative_prompt: str | None = None
    width: int | None = None
    """Pixels."""
    height: int | None = None
    """Pixels."""
    num_frames: int | None = None
    trim: bool = False
    """Whether `num_frames` may be any number: what the VAE makes beyond it is left out."""
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    """Classifier-free guidance; 1 turns it off."""
    seed: int = 0
    fps: float | None = None
    """Frames per second of the file; it does not change the frames."""
    dtype: str | None = None
    """`bf16` or `fp32`; `None`: what suits the device."""
    method: str | None = None
    """One of `METHODS`; `None`: `full`, but `dualparal` for videos of more than twice the length that the
    model is known to be trained on; with `trim`, of more than that length."""
    block_frames: int | None = None
    """Latent frames of a block; not for `full`."""
    context_frames: int | None = None
    """Latent frames that a block reads of each neighbour; not for `full`."""
    left_context: str | None = None
    """One of `LEFT_CONTEXTS`, of `dualparal`: whether a block computes its left neighbour's frames once more,
    or reads the keys and values that it had for them."""
    prompts_at: Iterable[tuple[float, str]] = ()
    """(seconds, text), of `dualparal`: from the first block on that begins then or later, what the
    video shows."""
    vae_tile: int | None = None
    """The side, in pixels, of the square tiles that the picture is decoded in; `None`: as the model's card
    says, which for some is the picture whole."""

    @property
    def in_blocks(self) -> bool:
        """Whether latents come block after block; of a resolved request."""
        return self.method != "full"

    @property
    def endless(self) -> bool:
        """Whether the video goes on until it is stopped."""
        return self.num_frames == ENDLESS


def resolve(request: Request, spec: ModelSpec) -> Request:
    """Fill what is `None` from the model's defaults and check everything.

    Raises `InputError`, one line naming the field, its value and the nearest that works.
    """
    defaults = spec.defaults
    filled = replace(
        request,
        negative_prompt=_default(request.negative_prompt, defaults.negative_prompt),
        width=whole("width", _default(request.width, defaults.width)),
        height=whole("height", _default(request.height, defaults.height)),
        num_frames=_check_length(_default(request.num_frames, defaults.num_frames)),
        num_inference_steps=whole(
            "num_inference_steps",
            _default(request.num_inference_steps, defaults.num_inference_steps),
            most=MAX_STEPS,
        ),
        guidance_scale=amount(
            "guidance_scale",
            _default(request.guidance_scale, defaults.guidance_scale),
            most=MAX_GUIDANCE,
            hint="1 turns guidance off",
        ),
        seed=_check_seed(request.seed),
        fps=_check_fps(_default(request.fps, defaults.fps)),
        vae_tile=_check_tile(_default(request.vae_tile, spec.vae.default_tile), spec),
    )
    _check_text("prompt", filled.prompt)
    if not filled.prompt.strip():
        raise InputError(f"prompt is empty ({filled.prompt!r}): say what the video should show")
    if filled.negative_prompt is not None:
        _check_text("negative_prompt", filled.negative_prompt)
    assert filled.width and filled.height and filled.num_frames and filled.num_inference_steps
    _check_size(filled.width, filled.height, spec)
    if filled.dtype is not None:
        one_of("dtype", filled.dtype, DTYPES)
    return _with_prompts(_with_method(filled, spec), spec)


def warnings_for(request: Request, spec: ModelSpec) -> list[str]:
    """What will run but hardly give what was meant, one line each. `request` is a resolved one."""
    found = []
    defaults = spec.defaults
    bundled = spec.folder == bundled_folder()
    if bundled and not world.known_words(request.prompt):
        found.append(
            f"no word of the prompt is known to the model '{spec.name}', which knows the colours "
            f"{_join(world.COLORS)}; the shapes {_join(world.SHAPES)}; the motions {_join(world.MOTIONS)}; "
            f"the backgrounds {_join(world.BACKGROUNDS)}"
        )
    if bundled and (request.width, request.height) != (defaults.width, defaults.height):
        found.append(
            f"size {request.width}x{request.height} is not the {defaults.width}x{defaults.height} that the "
            f"model '{spec.name}' was trained on: the picture may break"
        )
    if spec.embedded_guidance and request.negative_prompt:
        found.append(
            f"negative_prompt has no effect: the model '{spec.name}' takes the guidance scale as an input, "
            "and computes no second branch"
        )
    num_frames, trained = request.num_frames, defaults.train_frames
    if request.method == "full" and trained and num_frames and not trained[0] <= num_frames <= trained[1]:
        found.append(
            f"num_frames {num_frames} is outside the {trained[0]} to {trained[1]} that the model "
            f"'{spec.name}' was trained on: the motion may break"
        )
    return found


def latent_shape(request: Request, spec: ModelSpec) -> tuple[int, int, int, int]:
    """(channels, frames, height, width) of a resolved request's latents.

    Enough for its frames; the last ones may be left out.
    """
    assert request.num_frames and request.height and request.width
    ratio = spec.vae.temporal_compression
    whole = -(-(request.num_frames - 1) // ratio) * ratio + 1
    return spec.vae.latent_shape(whole, request.height, request.width)


def prompt_blocks(request: Request, spec: ModelSpec) -> list[int | None]:
    """The first block, from 0, for each of a resolved request's `prompts_at`: one that begins then or later.

    None: there is none.
    """
    assert request.block_frames and request.fps
    last = _num_blocks(request, spec) - 1
    seconds_each = request.block_frames * spec.vae.temporal_compression / request.fps
    found = []
    for seconds, _ in request.prompts_at:
        block = int(seconds / seconds_each)  # that one, or one of the next few
        while block <= last and _block_start(block, request, spec) < seconds:
            block += 1
        found.append(block if block <= last else None)
    return found


def _num_blocks(request: Request, spec: ModelSpec) -> int:
    assert request.block_frames
    return -(-latent_shape(request, spec)[1] // request.block_frames)


def _block_start(block: int, request: Request, spec: ModelSpec) -> float:
    """Seconds at which its first frame is shown."""
    assert request.block_frames and request.fps
    return max(0, (block * request.block_frames - 1) * spec.vae.temporal_compression + 1) / request.fps


def frames_at_once(request: Request, spec: ModelSpec) -> int:
    """The frames that a resolved request's transformer sees at a time."""
    _, frames, *_ = latent_shape(request, spec)
    if request.block_frames is not None and request.context_frames is not None:
        frames = min(frames, request.block_frames + 2 * request.context_frames)
    return (frames - 1) * spec.vae.temporal_compression + 1


def frames_for(
    duration: str | float | None, num_frames: int | None, fps: float | None, spec: ModelSpec
) -> int | None:
    """Return the number of frames asked for, or that last as long as is asked for; None: the model's default.

    Raises `InputError` if both are given.
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


def chosen_seed(seed: Any) -> int:
    """Return a seed that is written as a number, or one drawn now if it is `random`. Raises `InputError`."""
    is_flag = isinstance(seed, bool)
    if not is_flag and isinstance(seed, numbers.Integral):
        return int(seed)
    text = seed.strip() if isinstance(seed, str) else ""
    if text.lower() == "random":
        return secrets.randbelow(2**32)  # ten digits at most, to be typed again
    if not re.fullmatch(r"[+-]?[0-9]{1,40}", text):
        raise InputError(f"seed must be a whole number or random, got {typed(seed)}")
    return int(text)


def parse_duration(text: str) -> float:
    """Seconds, written `60s`, `60` or `1.5min`; `inf`. Raises `InputError`."""
    if text.strip().lower() == "inf":
        return math.inf
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *(s|min)?", text.strip().lower())
    if match is None or not float(match[1]):
        raise InputError(f"duration must be written like 60s or 1.5min, got {shown(text)}")
    return amount("duration", float(match[1]) * (60 if match[2] == "min" else 1), most=MAX_SECONDS)


def parse_size(text: str) -> tuple[int, int]:
    """Width and height of a size written `832x480`. Raises `InputError`."""
    match = re.fullmatch(r"(-?)([0-9]+)x(-?)([0-9]+)", text.strip().lower())
    if match is None:
        raise InputError(f"size must be written WIDTHxHEIGHT, such as 832x480, got {shown(text)}")
    width, height = digits(match[2]), digits(match[4])
    return -width if match[1] else width, -height if match[3] else height


def _default(value: Any, default: Any) -> Any:
    return default if value is None else value


def _join(words: Iterable[str]) -> str:
    return ", ".join(words)


def _check_text(name: str, text: Any) -> None:
    if not isinstance(text, str):
        raise InputError(f"{name} must be a text, got {typed(text)}")
    if len(text) > MAX_PROMPT:
        raise InputError(f"{name} is at most {MAX_PROMPT} characters long, got {len(text)}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{name} is not valid text (UTF-8): {shown(text)}") from None


def _check_length(value: Any) -> int:
    number = whole("num_frames", value)
    if number == ENDLESS:
        return number
    return whole("num_frames", number, most=MAX_FRAMES, hint="duration inf: until it is stopped")


def _check_seed(value: Any) -> int:
    number = whole("seed", value, least=-math.inf)
    if not 0 <= number <= MAX_SEED:
        nearest = 0 if number < 0 else MAX_SEED
        raise InputError(f"seed must be from 0 to 2**64 - 1, got {shown(number)}: the nearest is {nearest}")
    return number


def _check_fps(value: Any) -> float:
    return amount("fps", value, least=MIN_FPS, most=MAX_FPS, hint="frames per second, such as 16")


def _check_tile(value: Any, spec: ModelSpec) -> int | None:
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


def _check_size(width: int, height: int, spec: ModelSpec) -> None:
    multiple = math.lcm(spec.size_multiple, PIPELINE_MULTIPLE)
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


def _with_method(request: Request, spec: ModelSpec) -> Request:
    """With the method of denoising, and the sizes of its blocks."""
    trained, method = spec.defaults.train_frames, request.method
    assert request.num_frames
    if method is None:
        # A little longer than it was trained on, a model may still do as a whole.
        most = trained[1] * (1 if request.trim else 2) if trained else math.inf
        method = "dualparal" if request.num_frames > most or request.endless else "full"
    one_of("method", method, METHODS)
    left = request.left_context
    if left is not None:
        one_of("left_context", left, LEFT_CONTEXTS)
    if left is not None and method != "dualparal":
        raise InputError(f"method {method} has no left_context: use method dualparal")
    if request.endless and method != "dualparal":
        raise InputError(f"method {method} needs to know the video's length: duration inf needs dualparal")
    if method == "full":
        if request.block_frames is not None or request.context_frames is not None:
            raise InputError("method full has no block_frames and context_frames: use method dualparal")
        _check_frames(request.num_frames, spec, trim=request.trim)
        return replace(request, method=method)
    # A window of a block and its neighbours' frames is as long as what the model was trained on.
    longest = spec.trained_latent_frames
    context = _default(request.context_frames, round(longest / 5))
    context = whole("context_frames", context, least=0, most=MAX_FRAMES)
    block = _default(request.block_frames, max(1, context, longest - 2 * context))
    block = whole("block_frames", block, most=MAX_FRAMES)
    if context > block:
        raise InputError(
            f"context_frames are a neighbour's, which has {block}: use at most {block}, got {context}"
        )
    transformer = spec.transformers[0]
    most = transformer.max_positions * transformer.patch_size[0]
    if block + 2 * context > most:
        raise InputError(
            f"block_frames and two context_frames are at most {most} latent frames (the model's positions), "
            f"got {block} + 2 x {context}"
        )
    if method == "fifo" and (spec.one_timestep or len(spec.transformers) > 1):
        has = "one for all frames" if spec.one_timestep else "two transformers for them"
        raise InputError(
            f"method fifo has all noise levels in a window, and the model {spec.name!r} {has}: "
            "use method dualparal"
        )
    left = left or LEFT_CONTEXTS[0] if method == "dualparal" else None
    return replace(request, method=method, block_frames=block, context_frames=context, left_context=left)


def _with_prompts(request: Request, spec: ModelSpec) -> Request:
    """With later prompts that are checked: text, order, and that there is a block for each."""
    try:
        prompts_at = tuple((at, text) for at, text in request.prompts_at)
    except (TypeError, ValueError):
        wanted = "prompts_at must be pairs of seconds and a text"
        raise InputError(f"{wanted}, got {typed(request.prompts_at)}") from None
    request = replace(request, prompts_at=prompts_at)
    if not request.prompts_at:
        return request
    if request.method != "dualparal":
        raise InputError(f"method {request.method} has one prompt for all frames: prompts_at need dualparal")
    found, last = [], 0.0
    for seconds, text in request.prompts_at:
        hint = "the prompt itself holds from 0"
        at = amount("the time of prompts_at", seconds, most=MAX_SECONDS, hint=hint)
        _check_text("the text of prompts_at", text)
        if not text.strip():
            raise InputError(f"the text of prompts_at is empty ({text!r}): say what the video should show")
        if at <= last:
            raise InputError(f"the times of prompts_at must rise, got {at:g} s after {last:g} s")
        found.append((at, text))
        last = at
    request = replace(request, prompts_at=tuple(found))
    blocks = prompt_blocks(request, spec)
    if blocks[-1] is None:
        assert request.num_frames and request.fps
        start = _block_start(_num_blocks(request, spec) - 1, request, spec)
        raise InputError(
            f"prompts_at is for blocks that begin then or later, got {last:g} s: the last block of this "
            f"video of {request.num_frames / request.fps:g} s begins at {start:g} s"
        )
    for (seconds, _), (later, _), block, same in zip(found, found[1:], blocks, blocks[1:], strict=False):
        if block == same:
            raise InputError(
                f"the text of prompts_at for {seconds:g} s would never show: no block begins from then to "
                f"{later:g} s, where the next text takes its place"
            )
    return request


def _check_frames(num_frames: int, spec: ModelSpec, *, trim: bool) -> None:
    compression = spec.vae.temporal_compression
    below = (num_frames - 1) // compression * compression + 1
    if num_frames != below and not trim:
        raise InputError(
            f"num_frames must be {compression}n+1 (the first frame, then {compression} to a latent frame), "
            f"got {num_frames}: use {below} or {below + compression}"
        )
    transformer = spec.transformers[0]
    most = (transformer.max_positions * transformer.patch_size[0] - 1) * compression + 1
    if num_frames > most:
        raise InputError(f"num_frames is at most {most} (the model's positions), got {num_frames}")
