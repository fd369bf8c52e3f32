"""THE STORY: load a model, encode the prompt, denoise, decode. Read this first."""

from __future__ import annotations

import re
from collections.abc import Collection, Generator, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from paradit.errors import InputError
from paradit.memory import peak_memory_bytes, total_memory_bytes
from paradit.models.folder import BUNDLED, download_weights, find_model
from paradit.models.protocol import Frames, Prompt, VideoModel
from paradit.models.registry import loader
from paradit.models.spec import ModelSpec, read_spec
from paradit.placement import Placement
from paradit.progress import Progress
from paradit.requests import Request, resolve
from paradit.sampling.team import Alone, Team
from paradit.scheduling.fitting import SURELY, options_that_fit
from paradit.scheduling.memory import PARTS, largest_part, memory_by_rank, on_one_device
from paradit.scheduling.stages import STAGES
from paradit.stages.decode import decode, frames
from paradit.stages.denoise import denoise
from paradit.stages.denoise_blocks import denoise_blocks
from paradit.stages.encode import encode, texts

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Video:
    """A generated video: its latents are there, its frames are decoded as they are asked for."""

    latents: Tensor
    """[1, C, F, h, w], fp32."""
    request: Request
    model: VideoModel
    progress: Progress

    def frames(self) -> Generator[Frames, None, None]:
        """Each frame [H, W, 3], decoded when its turn comes."""
        return frames(self.model, self.latents, self.request.vae_tile, self.progress)

    def all_frames(self) -> Frames:
        """[F, H, W, 3]; where memory runs out, decoded again in smaller tiles. Raises OutOfMemory."""
        tile = self.request.vae_tile
        made = decode(self.model, self.latents, tile, self.progress, lambda frames: np.stack(list(frames)))
        assert made is not None  # there are no other ranks
        return made[: self.request.num_frames]


@dataclass(frozen=True, kw_only=True)
class Generated:
    """What `generate` made, and what it took."""

    frames: Frames
    """[F, H, W, 3]."""
    latents: Tensor
    """[1, C, F, h, w], fp32."""
    fps: float
    request: Request
    """As it was run, with the model's defaults filled in."""
    seconds: dict[str, float]
    """By stage."""
    peak_memory_bytes: int


def load(
    spec: ModelSpec,
    dtype: str | None = None,
    progress: Progress | None = None,
    *,
    device: torch.device | None = None,
    stages: Collection[str] = STAGES,
    compile: bool = False,
    layers: bool = True,
) -> VideoModel:
    """Load a model to the GPU, in bf16, where there is one; else to the CPU, in fp32, unless told otherwise.

    Only what `stages` need is loaded: a process that only denoises has neither text encoder nor VAE.
    `compile` compiles what is before and after the transformers' attention, when it is first used. layers:
    False where the transformers' are read later, by `keep_layers`, since a rank has a part of them only.
    """
    usual, dtype = _where_and_how(dtype)
    with (progress or Progress()).stage("load"):
        load_model = loader(spec.pipeline_class)
        return load_model(
            spec, _DTYPES[dtype], device or usual, stages=stages, compile=compile, layers=layers
        )


def _where_and_how(dtype: str | None) -> tuple[torch.device, str]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return device, dtype or ("bf16" if device.type == "cuda" else "fp32")


def room_bytes(
    spec: ModelSpec, request: Request, placement: Placement, local_ranks: int | None = None
) -> dict[str, int]:
    """What the fullest device needs for "weights" and at its "peak", and what it has in "total"; estimated.

    local_ranks: how many share this machine's memory, where there is no GPU; None: all.
    """
    device, dtype = _where_and_how(request.dtype)
    itemsize = _DTYPES[dtype].itemsize
    by_rank = memory_by_rank(placement, placement.tiled(request, spec), spec, itemsize)
    sharing = 1 if device.type == "cuda" else local_ranks or placement.ranks
    room = on_one_device(by_rank, sharing)
    if device.type == "cpu" and spec.is_stored_in(itemsize):
        # Processes that share a machine share its files' pages.
        twice = max(0, room["weights"] - spec.weight_bytes(itemsize))
        room = {part: size - twice for part, size in room.items()}
    return {**room, "total": total_memory_bytes(device)}


def check_memory(
    spec: ModelSpec,
    request: Request,
    placement: Placement | None = None,
    local_ranks: int | None = None,
    *,
    known: tuple[str, ...] | None = None,
) -> str | None:
    """A warning where a resolved request may need more memory than a device has; before anything is loaded.

    It says with which options it would fit. As for `room_bytes`. Raises InputError where the weights alone
    need more, or it is surely too much (`scheduling.fitting.SURELY`).
    known: the options that whoever asks has, of a run that has begun; None: all of `generate`.
    """
    placement = placement or Placement()
    room = room_bytes(spec, request, placement, local_ranks)
    if room["peak"] <= room["total"]:
        return None
    device, dtype = _where_and_how(request.dtype)
    place = f"{'the GPU' if device.type == 'cuda' else 'this machine'} has {room['total'] / 1e9:.1f} GB"
    each = ""
    if placement.ranks > 1:
        number = local_ranks or placement.ranks
        each = " on the fullest rank" if device.type == "cuda" else f" on {number} ranks"
    options = _fitting_options(spec, request, placement, local_ranks)
    if room["weights"] > room["total"]:
        raise InputError(
            f"model {spec.name!r} needs {room['weights'] / 1e9:.1f} GB for its weights in {dtype}{each}, "
            f"and {place}" + _advice(options, known, "; fits with ")
        )
    by_rank = memory_by_rank(placement, placement.tiled(request, spec), spec, _DTYPES[dtype].itemsize)
    said = (
        f"about {room['peak'] / 1e9:.1f} GB of memory will be needed{each}, and {place}; most is for "
        f"{PARTS[largest_part(by_rank)]}"
        + _advice(options or "a smaller --size only", known, ", and it fits with ")
    )
    if room["peak"] > SURELY * room["total"]:
        raise InputError(f"{_size(request)} is too much: {said}")
    return said


def _advice(options: str, known: tuple[str, ...] | None, with_them: str) -> str:
    """What to do, in words: a run that has begun takes few options."""
    if known is None or (options and set(re.findall(r"--[a-z-]+", options)) <= set(known)):
        return f"{with_them}{options}" if options else ""
    anew = f", or `paradit generate` anew with {options}" if options else ""
    return f": use a machine with more memory{anew}"


def _fitting_options(spec: ModelSpec, request: Request, placement: Placement, local_ranks: int | None) -> str:
    """With which a request that does not fit would."""
    device, dtype = _where_and_how(request.dtype)

    def fits(changed: Request, other: Placement) -> bool:
        needed = room_bytes(spec, changed, other, local_ranks)
        return needed["peak"] <= needed["total"]

    more = device.type == "cuda" and local_ranks is None  # where ranks share a memory, more need more
    most_ranks = torch.cuda.device_count() if more else placement.ranks
    return options_that_fit(request, spec, placement, fits, most_ranks=most_ranks, halve=dtype == "fp32")


def _size(request: Request) -> str:
    frames = "" if request.endless else f", {request.num_frames} frames"
    return f"{request.width}x{request.height}{frames}"


def text_to_video(model: VideoModel, request: Request, progress: Progress, team: Team | None = None) -> Video:
    """Generate the video of a resolved request. Its frames are decoded later, by `Video.frames`.

    Every process of a `team` calls it with the same request; each gets the latents.
    """
    team = team or Alone()
    prompts = _shared(encode(model, request, progress) if team.is_first else None, model, request, team)
    if request.method == "full":
        latents = denoise(model, request, prompts, progress, team)
    else:
        blocks = denoise_blocks(model, request, prompts, progress, team, share=None)
        latents = torch.cat(list(blocks), dim=2)
    return Video(latents=latents, request=request, model=model, progress=progress)


def _shared(
    prompts: tuple[Prompt, ...] | None, model: VideoModel, request: Request, team: Team
) -> tuple[Prompt, ...]:
    """The first process's prompts, on all of them."""
    parts = (part for prompt in prompts or () for part in prompt)
    return tuple(
        tuple(
            team.share(partial(next, parts), shape, model.dtype, model.device)
            for shape in model.prompt_shapes
        )
        for _ in texts(model.spec, request)
    )


def generate(
    prompt: str,
    *,
    model: str = BUNDLED,
    width: int | None = None,
    height: int | None = None,
    num_frames: int | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    negative_prompt: str | None = None,
    seed: int = 0,
    fps: float | None = None,
    dtype: str | None = None,
    vae_tile: int | None = None,
    method: str = "full",
    prompts_at: Iterable[tuple[float, str]] = (),
    progress: Progress | None = None,
) -> Generated:
    """Generate a video from a text, in this process. What is None takes the model's default.

    model: "shapes" (bundled), a folder in diffusers' format, or a hub id. dtype: "fp32" or "bf16". vae_tile:
    the side, in pixels, of the tiles that frames are decoded in. method: "full", or "dualparal" for long
    videos. prompts_at: (seconds, text), what a long video shows from then on.
    Raises InputError, before anything is loaded, where something asked for cannot be had.
    """
    progress = progress or Progress()
    folder = find_model(model)
    spec = read_spec(folder)
    request = resolve(
        Request(
            prompt=prompt,
            negative_prompt=negative_prompt,
            width=width,
            height=height,
            num_frames=num_frames,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            seed=seed,
            fps=fps,
            dtype=dtype,
            vae_tile=vae_tile,
            method=method,
            trim=method != "full",
            prompts_at=tuple(prompts_at),
        ),
        spec,
    )
    check_memory(spec, request)
    download_weights(model, folder)
    video = text_to_video(load(spec, request.dtype, progress), request, progress)
    return Generated(
        frames=video.all_frames(),
        latents=video.latents.cpu(),
        fps=request.fps or spec.defaults.fps,
        request=request,
        seconds=progress.seconds,
        peak_memory_bytes=peak_memory_bytes(video.latents.device),
    )
