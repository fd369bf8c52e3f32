"""Samplers: the denoising loops of generation methods. They use torch, and run on every rank."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol, cast

from torch import Tensor

from paradit.config.methods.method import method_of
from paradit.config.requests import ResolvedRequest
from paradit.distributed.world import World
from paradit.models.protocol import Prompt, VideoModel
from paradit.parallel.predictor import Predictor
from paradit.progress import Progress
from paradit.sampling.layer_split import LayerShare
from paradit.scheduling.layer_pipeline import PipelineGrid


class Checkpoints(Protocol):
    """Interface to the saved progress of a request's denoising, which also decides whether to continue.

    Of the processes that denoise together, only the first has such an object.
    """

    def last(self, parse: Callable[[bytes], object]) -> bytes:
        """Return the bytes of the state from the last checkpoint; empty if there is none.

        parse: function that reads a state from bytes, and raises an exception if it cannot. A checkpoint that
        it cannot read counts as none.
        """

    def offer(self, state: Callable[[], bytes], *, is_open: bool = False) -> bool:
        """Save a checkpoint of the state after a step if one is due; return whether denoising continues.

        state: function that returns the state as bytes; it is called only if a checkpoint is due. is_open:
        whether a longer version of the video could resume from exactly this state.
        """

    def block(self, number: int) -> Tensor:
        """Return the latents of a finished frame block that `keep` saved. number: index of the block."""

    def keep(self, number: int, latents: Tensor) -> None:
        """Save the latents of a finished frame block. number: index of the block."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Everything that one rank needs to denoise a request.

    Ranks that denoise together have the same request.
    """

    model: VideoModel
    request: ResolvedRequest
    prompts: tuple[Prompt, ...]
    """Prompt embeddings of the request's texts (prompt, negative prompt, later prompts)."""
    conditions: tuple[Tensor, ...] = ()
    """Encoded pictures of the request, as `VideoModel.encode_conditions` returns them."""
    progress: Progress
    predictor: Predictor
    checkpoints: Checkpoints | None = None
    share: LayerShare | None = None
    """This rank's part in a layer pipeline, as `Sampler.divide` returned it; None if the method has no
    pipeline."""
    wanted: Callable[[], bool] = lambda: True
    """Function that returns whether the rest of the video is still wanted; called on the first rank."""


class Sampler(ABC):
    """Denoising loop of a generation method, which yields a video's latents in frame blocks or at once."""

    def divide(
        self,
        work: Work,  # noqa: ARG002
        world: World,  # noqa: ARG002
        grid: PipelineGrid,  # noqa: ARG002
    ) -> LayerShare | None:
        """Divide the model's layers among ranks; return this rank's part, or None without a layer pipeline.

        All ranks call it, once per model. work: the first request, for which layers are timed.
        """
        return None

    @abstractmethod
    def blocks(self, work: Work) -> Iterator[Tensor]:
        """Yield each frame block's denoised latents [1, C, f, h, w], fp32, in order.

        The first rank gets every block; other ranks may get none. Steps are reported as stage "denoise".
        work: everything that this rank needs to denoise the request.

        Raises FloatingPointError if latents become non-finite (inf or NaN), and `Unwanted` if the rest of the
        video is no longer wanted. Both are raised on all ranks, except on those that have already finished.
        """


def sampler_of(request: ResolvedRequest) -> Sampler:
    """Return the sampler of a request's generation method."""
    module, _, name = method_of(request).sampler.partition(":")
    return cast(Sampler, getattr(import_module(module), name))
