"""Samplers, which denoise on each rank: the torch half of a generation method, which names its sampler."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol, cast

from torch import Tensor

from paradit.config.methods.base import method_of
from paradit.config.requests import ResolvedRequest
from paradit.distributed.world import World
from paradit.models.protocol import Prompt, VideoModel
from paradit.parallel.team import Team
from paradit.progress import Progress
from paradit.sampling.layer_split import LayerShare
from paradit.scheduling.layer_pipeline import StageGrid


class Checkpoints(Protocol):
    """Store for the finished parts of one request's denoising; only the first process of a team has one."""

    def last(self, parse: Callable[[bytes], object]) -> bytes:
        """Return the state that was kept last; empty if there is none that `parse` can read."""

    def offer(self, state: Callable[[], bytes], *, is_open: bool = False) -> bool:
        """Offer the state after a step, which may be kept; return whether the work continues.

        is_open: whether a longer video could resume from exactly this state.
        """

    def block(self, number: int) -> Tensor:
        """Return the latents of a finished frame block that was kept."""

    def keep(self, number: int, latents: Tensor) -> None:
        """Keep the latents of a finished frame block."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """One request's denoising, as one rank sees it. All ranks of a team have the same request."""

    model: VideoModel
    request: ResolvedRequest
    prompts: tuple[Prompt, ...]
    """Prompt embeddings of the request's texts."""
    progress: Progress
    team: Team
    checkpoints: Checkpoints | None = None
    share: LayerShare | None = None
    """Layers of this rank in a layer pipeline, as `Sampler.divide` returned them; None if the method has
    no pipeline."""
    wanted: Callable[[], bool] = lambda: True
    """Function that says whether the rest of the video is still wanted; called on the first rank."""


class Sampler(ABC):
    """A method's way of making a video's latents, frame block by frame block or as a single block."""

    def divide(
        self,
        model: VideoModel,  # noqa: ARG002
        request: ResolvedRequest,  # noqa: ARG002
        prompts: tuple[Prompt, ...],  # noqa: ARG002
        world: World,  # noqa: ARG002
        grid: StageGrid,  # noqa: ARG002
    ) -> LayerShare | None:
        """Divide the model's layers among the ranks, if the method does that; return this rank's share.

        All ranks call it, once per model.
        """
        return None

    @abstractmethod
    def blocks(self, work: Work) -> Iterator[Tensor]:
        """Yield each block's denoised latents [1, C, f, h, w], fp32, in order; the first rank gets all.

        Steps are reported as stage "denoise". Raises FloatingPointError if latents become non-finite (inf or
        NaN), and `Unwanted` if the rest is no longer wanted: on all ranks except those that have finished
        already.
        """


def sampler_of(request: ResolvedRequest) -> Sampler:
    """Return the sampler that a request's method names."""
    module, _, name = method_of(request).sampler.partition(":")
    return cast(Sampler, getattr(import_module(module), name))
