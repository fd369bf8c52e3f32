"""Which ranks do what. Torch-free, so that a plan is refused before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from paradit.errors import InputError

if TYPE_CHECKING:
    from paradit.models.spec import ModelSpec
    from paradit.requests import Request

ATTENTIONS = ("auto", "ulysses")
CFG_DEGREES = (1, 2)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How many ranks there are, and how they share one video's denoising."""

    ranks: int = 1
    cfg_degree: int = 1
    """2: the two guidance branches on different ranks; 1: all ranks compute both, in one batch."""
    attention: str = "auto"
    """How the ranks of a branch share its attention; `auto` is `ulysses`."""

    def __post_init__(self) -> None:
        if self.ranks < 1:
            raise InputError(f"ranks must be at least 1, got {self.ranks}")
        if self.cfg_degree not in CFG_DEGREES:
            raise InputError(f"cfg_degree must be 1 or 2, got {self.cfg_degree}")
        if self.attention not in ATTENTIONS:
            raise InputError(f"attention must be one of {', '.join(ATTENTIONS)}, got {self.attention!r}")
        if self.ranks % self.cfg_degree:
            raise InputError(
                f"{self.ranks} ranks do not divide into {self.cfg_degree} guidance branches: "
                f"use {self.ranks + 1} ranks, or cfg_degree 1"
            )

    @property
    def ulysses_degree(self) -> int:
        """How many ranks share a branch's tokens."""
        return self.ranks // self.cfg_degree

    def check(self, request: Request, spec: ModelSpec) -> None:
        """Refuse what this placement cannot do for a resolved request. Raises InputError."""
        assert request.num_frames and request.height and request.width and request.guidance_scale
        if self.cfg_degree == 2 and request.guidance_scale <= 1:
            raise InputError(
                f"cfg_degree 2 needs two guidance branches, and guidance_scale {request.guidance_scale:g} "
                "has one: use cfg_degree 1, or a guidance_scale above 1"
            )
        tokens = spec.tokens(request.num_frames, request.height, request.width)
        if self.ulysses_degree > tokens:
            raise InputError(
                f"{self.ranks} ranks are more than there is work for: this video has {tokens} tokens, "
                f"use at most {tokens * self.cfg_degree}"
            )
