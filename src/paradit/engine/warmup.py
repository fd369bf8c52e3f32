"""Warm-up: short timings of a request's stages on this machine's ranks, by which a placement is chosen."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from tempfile import TemporaryDirectory

import torch

from paradit.config.placement import Placement
from paradit.config.requests import ResolvedRequest
from paradit.distributed.timing import seconds
from paradit.distributed.world import World
from paradit.engine.predictors import sequence_parallel
from paradit.models.common.attention_kernel import load_kernel
from paradit.models.protocol import Frames, Prompt, VideoModel
from paradit.models.spec import ModelSpec
from paradit.parallel.predictor import LocalPredictor, Predictor
from paradit.pipeline import load
from paradit.progress import Progress
from paradit.sampling.noise import initial_noise
from paradit.scheduling.balance import StageSeconds
from paradit.stages.conditions import conditions
from paradit.stages.decode import frames
from paradit.stages.encode import encode
from paradit.video.writer import Video, open_video


@torch.no_grad()
def measure(world: World, spec: ModelSpec, request: ResolvedRequest, placement: Placement) -> StageSeconds:
    """Return the seconds of each stage of a resolved request, timed on the ranks that call it together.

    Ranks load the weights of one stage after another, because all at once may not fit into memory. Work of a
    single rank is timed while all ranks do the same, because they share the machine. The slowest rank's time
    is used.
    """
    return _Warmup(world, spec, request, placement).measure()


class _Warmup:
    def __init__(self, world: World, spec: ModelSpec, request: ResolvedRequest, placement: Placement) -> None:
        self._world, self._spec, self._request, self._placement = world, spec, request, placement
        self._transport = world.transport()
        sizes = request.num_frames, request.height, request.width
        self._shape = (1, *spec.vae.latent_shape(*sizes))

    def measure(self) -> StageSeconds:
        prompts, encode = self._encode()
        context, step, step_together = self._denoise(prompts)
        return StageSeconds(
            ranks=self._world.size,
            encode=encode,
            context=context,
            step=step,
            step_together=step_together,
            decode=self._decode(),
            conditions=self._conditions() if self._request.has_pictures else 0.0,
        )

    def _encode(self) -> tuple[tuple[Prompt, ...], float]:
        """Return the request's prompt embeddings, and the seconds that encoding takes."""
        work = partial(encode, self._load("encode"), self._request, Progress())
        return work(), self._slowest(partial(seconds, work, self._world.device))

    def _conditions(self) -> float:
        """Return the seconds that reading and encoding the request's pictures take."""
        work = partial(conditions, self._load("decode"), self._request, Progress())
        return self._slowest(partial(seconds, work, self._world.device))

    def _denoise(self, prompts: tuple[Prompt, ...]) -> tuple[float, float, float]:
        """Return the seconds of preparing the prompts, of a step on one rank, and of a step on all ranks."""
        model, device, spec = self._load("denoise"), self._world.device, self._spec
        kernel, transformer = load_kernel(self._placement.attention_backend), model.experts[0]
        _, _, frames, height, width = self._shape
        layout = transformer.layout((frames, height, width))
        latents = initial_noise(self._shape, self._request.seed, device).to(model.dtype)
        first, *_ = model.scheduler(self._request).timesteps
        # The time does not depend on the values of the encoded pictures.
        shapes = model.condition_shapes(self._request)
        given = model.conditions(self._request, tuple(torch.zeros(shape, device=device) for shape in shapes))
        timestep = given.model_timestep(first, latents, range(frames))
        latents, prompts = given.model_input(latents, range(frames)), given.prompts(prompts)

        def of(predictor: Predictor) -> float:
            contexts = predictor.contexts(transformer, prompts)
            step = partial(predictor.predict, transformer, latents, timestep, contexts, layout)
            return self._slowest(partial(seconds, step, device))

        branches, first = 1 if spec.embedded_guidance else 2, spec.transformers[0]
        predictor = sequence_parallel(
            self._world,
            self._placement,
            first.num_attention_heads,
            branches,
            kernel,
            patterns=first.sparse_patterns,
        )
        context = partial(LocalPredictor(kernel).contexts, transformer, prompts)
        return self._slowest(partial(seconds, context, device)), of(LocalPredictor(kernel)), of(predictor)

    def _decode(self) -> float:
        """Return the estimated seconds of a decode, from timings of its first latent frames.

        Further latent frames are assumed to take as long as the last timed one.
        """
        model, request = self._load("decode"), self._request
        latents = initial_noise(self._shape, request.seed, self._world.device)
        num_latent_frames, at_once = self._shape[2], self._spec.vae.LATENT_FRAMES_AT_ONCE
        first = min(1 + at_once, num_latent_frames)
        more = min(at_once, num_latent_frames - first)
        times = (num_latent_frames - first) / more if more else 0.0
        ratio = self._spec.vae.temporal_compression
        sizes = request.width, request.height, request.fps

        def taken() -> float:
            stream = frames(model, latents, request.vae_tile, Progress())
            began = time.perf_counter()
            with TemporaryDirectory() as folder:
                with open_video(f"{folder}/warm-up.mp4", *sizes, overwrite=True) as file:
                    # A first latent frame decodes to one frame, and each further one to `ratio`.
                    _write(file, stream, 1 + (first - 1) * ratio)
                    between = time.perf_counter()
                    _write(file, stream, more * ratio)
                    one_more = time.perf_counter() - between
                return time.perf_counter() - began + (times - 1) * one_more

        taken()  # to warm up
        return self._slowest(taken)

    def _load(self, stage: str) -> VideoModel:
        request, compile = self._request, self._placement.compile
        return load(self._spec, request.dtype, device=self._world.device, stages=(stage,), compile=compile)

    def _slowest(self, measured: Callable[[], float]) -> float:
        """Run a measurement on all ranks at once, and return the seconds of the slowest rank.

        All ranks call it together; a barrier lets them begin at once.
        """
        device = self._world.device
        self._transport.all_gather(torch.zeros(1, device=device))  # a barrier, so that all begin at once
        mine = torch.tensor([measured()], dtype=torch.float64, device=device)
        return max(float(one) for one in self._transport.all_gather(mine))


def _write(file: Video, stream: Iterator[Frames], num_frames: int) -> None:
    for frame in islice(stream, num_frames):
        file.write(frame)
