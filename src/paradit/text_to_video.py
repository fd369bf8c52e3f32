"""Video generation for one request in this process: `text_to_video`, and the public `paradit.generate`.

The frames stay in memory.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paradit.attention_backends import DEFAULT
from paradit.config.errors import InputError
from paradit.config.given_values import as_files
from paradit.config.limits import typed
from paradit.config.methods.method import resolve
from paradit.config.requests import Request, ResolvedRequest, chosen_seed, frames_for
from paradit.device_memory import peak_memory_bytes
from paradit.files import named, reserved
from paradit.memory_check import check_memory, name_of
from paradit.models.common.loading import check_loras
from paradit.models.find_lora import download_loras, with_loras
from paradit.models.folder import BUNDLED, download_weights, find_spec
from paradit.models.protocol import Frames, Prompt, VideoModel
from paradit.models.spec import ModelSpec
from paradit.models.warnings import warnings_for
from paradit.parallel.predictor import LocalPredictor, Predictor
from paradit.pipeline import load
from paradit.progress import Progress
from paradit.provenance import provenance, tags
from paradit.sampling.sampler import Work
from paradit.scheduler_check import check_scheduler
from paradit.stages.conditions import conditions
from paradit.stages.decode import decode, frames
from paradit.stages.denoise import denoise
from paradit.stages.encode import encode
from paradit.video.writer import open_video


@dataclass(frozen=True, kw_only=True)
class Video:
    """Generated video: its denoised latents, whose frames are decoded only when they are asked for."""

    latents: Tensor
    """Denoised latents [1, C, F, h, w], fp32."""
    request: ResolvedRequest
    model: VideoModel
    progress: Progress

    def frames(self) -> Generator[Frames, None, None]:
        """Yield each frame [H, W, 3], uint8, decoded only when it is requested."""
        return frames(self.model, self.latents, self.request.vae_tile, self.progress)

    def all_frames(self) -> Frames:
        """Return all frames [F, H, W, 3], uint8.

        If memory runs out, they are decoded again in smaller tiles. Raises OutOfMemory if the smallest tiles
        need too much as well.
        """
        tile = self.request.vae_tile
        made = decode(self.model, self.latents, tile, self.progress, lambda frames: np.stack(list(frames)))
        assert made is not None  # there are no other ranks
        return made[: self.request.num_frames]  # the last latent frame may decode to more


@dataclass(frozen=True, kw_only=True)
class Generated:
    """Result of `generate`: the video, its request, and the time and memory that it took."""

    frames: Frames
    """Frames of the video [F, H, W, 3], uint8."""
    latents: Tensor
    """Denoised latents [1, C, F, h, w], fp32."""
    fps: float
    request: ResolvedRequest
    """Request as it was run, with the model's defaults filled in."""
    seconds: dict[str, float]
    """Seconds that each stage took, by the stage's name."""
    peak_memory_bytes: int
    about: dict[str, Any]
    """Description of what the video was made from, which `save` writes into the file's metadata."""

    @classmethod
    def of(cls, video: Video) -> Generated:
        """Decode a video's frames, and return them with all that is known of the video."""
        request, model = video.request, video.model
        return cls(
            frames=video.all_frames(),
            latents=video.latents.cpu(),
            fps=request.fps,
            request=request,
            seconds=video.progress.seconds,
            peak_memory_bytes=peak_memory_bytes(video.latents.device),
            about=provenance(request, model.spec, name_of(model.dtype), DEFAULT),
        )

    def save(
        self, path: str | Path, *, overwrite: bool = False, metadata: bool = True, crf: int | None = None
    ) -> Path:
        """Write the video to `path`, in the format that the suffix names, and return the path.

        metadata: whether the file's metadata says what the video was made from. crf: quality of the file, as
        for `--crf`. Raises InputError if the file cannot be written in this way.
        """
        target = named("output", path)
        height, width = self.frames.shape[1:3]
        about = tags(self.about) if metadata else None
        with (
            reserved("output", target),
            open_video(target, width, height, self.fps, overwrite=overwrite, tags=about, crf=crf) as file,
        ):
            for frame in self.frames:
                file.write(frame)
        return target


def text_to_video(
    model: VideoModel, request: ResolvedRequest, progress: Progress, predictor: Predictor | None = None
) -> Video:
    """Return the video of a resolved request, with denoised latents; its frames are decoded later.

    predictor: object that computes predictions of denoising steps, alone or with other processes; None: this
    process computes alone. Every process that takes part calls this function with the same request, and each
    gets the latents.
    """
    predictor = predictor or LocalPredictor()
    prompts = _shared(
        encode(model, request, progress) if predictor.is_first else None, model, request, predictor
    )
    encoded: Iterator[Tensor] = iter(())
    if request.has_pictures and predictor.is_first:
        encoded = iter(conditions(model, request, progress))
    work = Work(
        model=model,
        request=request,
        prompts=prompts,
        conditions=tuple(
            predictor.share(partial(next, encoded), shape, torch.float32, model.device)
            for shape in model.condition_shapes(request)
        ),
        progress=progress,
        predictor=predictor,
    )
    blocks = list(denoise(work))
    latents = torch.cat(blocks, dim=2) if len(blocks) > 1 else blocks[0]
    return Video(latents=latents, request=request, model=model, progress=progress)


def _shared(
    prompts: tuple[Prompt, ...] | None, model: VideoModel, request: ResolvedRequest, predictor: Predictor
) -> tuple[Prompt, ...]:
    """Return the prompt embeddings on every process that denoises.

    prompts: the prompt embeddings, on the first of these processes, which sends them to the others; None on
    the others.
    """
    parts = (part for prompt in prompts or () for part in prompt)
    return tuple(
        tuple(
            predictor.share(partial(next, parts), shape, model.dtype, model.device)
            for shape in model.prompt_shapes
        )
        for _ in request.texts(model.spec)
    )


@contextmanager
def _plain_torch() -> Iterator[None]:
    """Run the `with` block as if this thread's torch were at its defaults: no autocast, no default device.

    Raises InputError if the default dtype is not float32, because that setting belongs to all threads.
    """
    dtype = torch.get_default_dtype()
    if dtype != torch.float32:
        raise InputError(f"torch's default dtype must be float32, got {dtype}: see torch.set_default_dtype")
    with ExitStack() as undone:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                undone.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            undone.enter_context(torch.device("cpu"))
        yield


@_plain_torch()
def generate(
    prompt: str,
    *,
    model: str | Path = BUNDLED,
    revision: str | None = None,
    variant: str | None = None,
    loras: Iterable[str | Path] = (),
    width: int | None = None,
    height: int | None = None,
    num_frames: int | None = None,
    duration: str | float | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    guidance_scale_2: float | None = None,
    preset: str | None = None,
    scheduler: str | None = None,
    shift: float | None = None,
    timesteps: Iterable[float] | None = None,
    expert_step: int | None = None,
    negative_prompt: str | None = None,
    seed: int | str = 0,
    fps: float | None = None,
    dtype: str | None = None,
    vae_tile: int | None = None,
    method: str | None = None,
    prompts_at: Iterable[tuple[float, str]] = (),
    image: object = None,
    last_image: object = None,
    video: object = None,
    strength: float | None = None,
    fit: str = "cover",
    progress: Progress | None = None,
) -> Generated:
    """Generate a video from a prompt, and perhaps a picture or a video, in this process.

    Arguments that are None have the defaults of `paradit generate`.

    model: "shapes" (bundled), a folder in diffusers' format, or a hub id. revision: a branch, tag or commit
    on the hub. variant: variant of the weights, such as "fp16". loras: LoRA files to merge into the model, as
    for `--lora`, such as "FILE=0.8@high". duration: seconds, or text such as "1.5min", instead of num_frames.
    guidance_scale_2: guidance scale of the low-noise expert. preset: name of settings for few steps, such as
    "lightning-4". scheduler: short name of a scheduler, such as "euler". shift: timestep shift. timesteps:
    numbers from 1000 down, the timestep of each step before the shift. expert_step: index of the step at
    which the low-noise expert takes over. seed: a number, or "random".
    dtype: "fp32" or "bf16". vae_tile: side, in pixels, of the tiles that frames are decoded in. method:
    "full", or for long videos "dualparal", "windowed" or "fifo". prompts_at: pairs (seconds, text) of later
    prompts for a long video. image, last_image: pictures of the first and the last frame, as paths, PIL
    images or arrays [H, W, 3], uint8. video: a video to change, as a path or an array [F, H, W, 3]. strength:
    fraction of the steps that it goes through. fit: how pictures of another aspect are fitted: "cover",
    "contain" or "stretch". progress: receiver of progress and warnings; without it, warnings are issued by
    Python's `warnings`.

    May be called from several threads at once; each call loads a model of its own. Raises InputError, before
    anything is loaded, if the video cannot be made as asked for.
    """
    return _generated(**locals())  # every argument, by its name


def _generated(
    *,
    model: str | Path,
    revision: str | None,
    variant: str | None,
    loras: Iterable[str | Path],
    num_frames: int | None,
    duration: str | float | None,
    seed: int | str,
    progress: Progress | None,
    **fields: Any,
) -> Generated:
    """Make the video that `generate`'s arguments describe. fields: the others, fields of a `Request`."""
    if progress is None:
        progress = Progress()
    if not isinstance(progress, Progress):
        raise InputError(f"progress must be a paradit.progress.Progress, got {typed(progress)}")
    if not isinstance(model, (str, Path)):
        raise InputError(f"model must be a name or a folder, got {typed(model)}")
    spec = with_loras(find_spec(str(model), revision=revision, variant=variant), loras)
    asked = Request(
        num_frames=frames_for(duration, num_frames, fields["fps"], spec),
        trim=duration is not None,
        seed=chosen_seed(seed),
        **fields,
    )
    with as_files(asked) as given:
        request = resolve(given, spec)
        spec = download_loras(spec)
        _check(request, spec, progress)
        download_weights(str(model), spec.folder, variant)
        return Generated.of(text_to_video(load(spec, request.dtype, progress), request, progress))


def _check(request: ResolvedRequest, spec: ModelSpec, progress: Progress) -> None:
    """Refuse a request that cannot be made, and warn of one that may not come out well. Raises InputError."""
    if request.endless:
        raise InputError(
            "duration inf works only with `paradit generate`, which writes the video while it is made"
        )
    check_scheduler(spec, request)
    warnings = [*warnings_for(request, spec), *check_loras(spec), check_memory(spec, request)]
    for warning in warnings:
        if warning:
            progress.warn(warning)
