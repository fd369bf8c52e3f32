"""Which ranks do what. Torch-free, so that a plan is refused before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from paradit import kernels
from paradit.errors import InputError

if TYPE_CHECKING:
    from paradit.models.spec import ModelSpec
    from paradit.requests import Request

ATTENTIONS = ("auto", "ulysses", "pipesp", "pipesp-paper", "ring", "usp")
MESHES = ("ring,ulysses", "ulysses,ring")
CFG_DEGREES = (1, 2)


@dataclass(frozen=True, kw_only=True)
class Form:
    """One way in which the ranks of a branch share its attention, with all its choices made."""

    attention: str
    """One of `ATTENTIONS`, but for `auto`."""
    chunks: int = 1
    """Of `pipesp`; 1 is `ulysses`."""
    interleave: bool = False
    """Both branches side by side, each computing while the other's data travel; else in one batch."""

    @property
    def lag(self) -> int:
        """How many turns the second branch is behind the first.

        With chunks a layer has an odd number of turns. One turn behind, a branch computes its first chunk
        while the other's last ones travel, which hid more in every case that was rehearsed.
        """
        return int(self.interleave and self.chunks > 1)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How many ranks there are, and how they share one video's denoising."""

    ranks: int = 1
    cfg_degree: int = 1
    """2: the two guidance branches on different ranks; 1: all ranks compute both."""
    attention: str = "auto"
    """How the ranks of a branch share its attention; `auto` tries `ulysses`, `pipesp` and `interleave`."""
    chunks: int | None = None
    """Of `pipesp`; None: the quickest."""
    interleave: bool | None = None
    """Let the two branches hide each other's communication; None: with `auto`, where it is quicker."""
    ring_degree: int | None = None
    """How many Ulysses groups form the ring of `usp`; None: 2."""
    mesh: str = MESHES[0]
    """`usp`'s axes, that between neighbouring ranks last."""
    kernel: str = kernels.DEFAULT
    """What computes attention: one of `paradit.kernels.KERNELS`."""
    compile: bool = False
    """Whether what is before and after attention is compiled."""

    def __post_init__(self) -> None:
        if self.ranks < 1:
            raise InputError(f"ranks must be at least 1, got {self.ranks}")
        if self.cfg_degree not in CFG_DEGREES:
            raise InputError(f"cfg_degree must be 1 or 2, got {self.cfg_degree}")
        if self.attention not in ATTENTIONS:
            raise InputError(f"attention must be one of {', '.join(ATTENTIONS)}, got {self.attention!r}")
        if self.mesh not in MESHES:
            raise InputError(f"mesh must be {' or '.join(MESHES)}, got {self.mesh!r}")
        if self.ranks % self.cfg_degree:
            raise InputError(
                f"{self.ranks} ranks do not divide into {self.cfg_degree} guidance branches: "
                f"use {self.ranks + 1} ranks, or cfg_degree 1"
            )
        kernels.check_kernel(self.kernel, self.attention)
        self._check_chunks()
        self._check_ring()

    def _check_chunks(self) -> None:
        if self.chunks is not None and self.chunks < 1:
            raise InputError(f"chunks must be at least 1, got {self.chunks}")
        if self.chunks is not None and self.attention not in ("auto", "pipesp"):
            raise InputError(f"chunks are pipesp's, and attention is {self.attention!r}: leave --chunks out")
        if self.interleave and self.cfg_degree == 2:
            raise InputError("interleave needs both branches on a rank: use cfg_degree 1, or no interleave")

    def _check_ring(self) -> None:
        if self.attention != "usp":
            if self.ring_degree is not None or self.mesh != MESHES[0]:
                raise InputError(f"ring_degree and mesh are usp's, and attention is {self.attention!r}")
            return
        if self.ring_degree is not None and self.ring_degree < 1:
            raise InputError(f"ring_degree must be at least 1, got {self.ring_degree}")
        ranks, degree = self.branch_ranks, self.ring_degree or 2
        if ranks % degree:
            divisors = ", ".join(str(n) for n in range(1, ranks + 1) if ranks % n == 0)
            raise InputError(
                f"{ranks} ranks do not divide into a ring of {degree}: use a ring_degree of {divisors}"
            )

    @property
    def branch_ranks(self) -> int:
        """How many ranks share a branch's tokens."""
        return self.ranks // self.cfg_degree

    @property
    def ring_ranks(self) -> int:
        """How many Ulysses groups form a ring; 1 where nothing goes round."""
        if self.attention == "ring":
            return self.branch_ranks
        return (self.ring_degree or 2) if self.attention == "usp" else 1

    def forms(self, num_heads: int, num_branches: int = 2) -> list[Form]:
        """The ways of sharing attention that are left open, the plainest first.

        num_branches: of guidance, one or two.
        """
        if self.branch_ranks == 1:
            return [Form(attention="ulysses")]
        name = "pipesp" if self.attention == "auto" else self.attention
        interleaves = [bool(self.interleave)]
        if self.interleave is None and self.attention == "auto" and self.cfg_degree < num_branches:
            interleaves = [False, True]
        heads_of_a_rank = -(-num_heads // self.branch_ranks)
        chunks = [self.chunks or 1]
        if self.chunks is None and name == "pipesp":
            chunks = sorted({1, 2, heads_of_a_rank})
        return [
            Form(attention=name, chunks=number, interleave=interleave)
            for number in chunks
            for interleave in interleaves
        ]

    def check(self, request: Request, spec: ModelSpec) -> None:
        """Refuse what this placement cannot do for a resolved request. Raises InputError."""
        assert request.num_frames and request.height and request.width and request.guidance_scale
        for option, wanted in (("cfg_degree 2", self.cfg_degree == 2), ("interleave", self.interleave)):
            if wanted and spec.num_branches(request.guidance_scale) == 1:
                instead = "cfg_degree 1" if self.cfg_degree == 2 else "no interleave"
                why = f"guidance_scale {request.guidance_scale:g} has one"
                if spec.embedded_guidance:
                    why = f"model {spec.name!r} has one, which reads the guidance scale"
                else:
                    instead += ", or a guidance_scale above 1"
                raise InputError(f"{option} needs two guidance branches, and {why}: use {instead}")
        tokens = spec.tokens(request.num_frames, request.height, request.width)
        if self.branch_ranks > tokens:
            raise InputError(
                f"{self.ranks} ranks are more than there is work for: this video has {tokens} tokens, "
                f"use at most {tokens * self.cfg_degree}"
            )
