"""What denoises by a method, on each of the ranks that do: the torch half of a method, found through it."""

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
    """Keeps what is done of one request's denoising; the first process of a team has one."""

    def last(self, parse: Callable[[bytes], object]) -> bytes:
        """Return the state that was kept last; empty if there is none that `parse` can read."""

    def offer(self, state: Callable[[], bytes], *, is_open: bool = False) -> bool:
        """Take note of a state after a step; it may be kept. Returns whether the work goes on.

        is_open: whether a longer video could go on from just this state.
        """

    def block(self, number: int) -> Tensor:
        """Return a finished block that was kept."""

    def keep(self, number: int, latents: Tensor) -> None:
        """Keep a finished block."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """One request's denoising, as one of the ranks sees it. All ranks of a team have the same request."""

    model: VideoModel
    request: ResolvedRequest
    prompts: tuple[Prompt, ...]
    """The request's texts, as the model encodes them."""
    progress: Progress
    team: Team
    checkpoints: Checkpoints | None = None
    share: LayerShare | None = None
    """What `Sampler.divide` returned to this rank."""
    wanted: Callable[[], bool] = lambda: True
    """Asked on the first rank: whether there is use for the rest."""


class Sampler(ABC):
    """How a method makes a video's latents, block after block; or in one, which is all of them."""

    def divide(
        self,
        model: VideoModel,  # noqa: ARG002
        request: ResolvedRequest,  # noqa: ARG002
        prompts: tuple[Prompt, ...],  # noqa: ARG002
        world: World,  # noqa: ARG002
        grid: StageGrid,  # noqa: ARG002
    ) -> LayerShare | None:
        """Divide the model's layers over the ranks, if the method does. All ranks call it, once a model."""
        return None

    @abstractmethod
    def blocks(self, work: Work) -> Iterator[Tensor]:
        """Make the latents [1, C, f, h, w], fp32, of each block in order; the first rank gets all of them.

        Told as stage "denoise". Raises FloatingPointError if latents become infinite or are not
        numbers, and `Unwanted` if there is no use for the rest: on all ranks but those that are through.
        """


def sampler_of(request: ResolvedRequest) -> Sampler:
    """Return the sampler of a request's method."""
    module, _, name = method_of(request).sampler.partition(":")
    return cast(Sampler, getattr(import_module(module), name))
