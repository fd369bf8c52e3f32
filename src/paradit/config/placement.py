"""Placements: which ranks encode, denoise and decode videos, and how they share the work on each.

Torch-free, so that a bad placement is refused before anything is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated

from paradit import attention_backends
from paradit.attention.patterns import Pattern
from paradit.attention.registry import (
    AUTO,
    FORMS,
    Asked,
    Choice,
    automatic,
    checked_options,
    declared_options,
    help_text,
)
from paradit.config.errors import InputError
from paradit.config.limits import MAX_RANKS, shown
from paradit.config.methods.registry import checked_placement_options, declared_placement_options
from paradit.config.options import (
    Declared,
    Option,
    check,
    declared,
    former_names,
    takes_former_names,
    with_new_names,
)
from paradit.config.requests import ResolvedRequest
from paradit.config.values import NONE, Value, Values
from paradit.models.spec import ModelSpec
from paradit.scheduling.stages import PLACED, STAGES

CFG_DEGREES = (1, 2)
RANKS = Option()


@takes_former_names
@dataclass(frozen=True, kw_only=True)
class Placement:
    """Assignment of work to ranks: how many there are, which stages each does, and how they share a video."""

    ranks: Annotated[int, Option(least=1, most=MAX_RANKS)] = 1
    """Number of ranks."""
    encode: Annotated[tuple[int, ...] | None, RANKS] = None
    """Rank with the text encoder, only one; None: the first rank of `decode` if that is given, else
    the first that denoises."""
    denoise: Annotated[tuple[int, ...] | None, RANKS] = None
    """Ranks with the transformer; None: all ranks."""
    decode: Annotated[tuple[int, ...] | None, RANKS] = None
    """Ranks with the VAE, which decode; None: the first rank that denoises."""
    replicas: Annotated[
        int,
        Option(
            also=("data-parallel-degree",),
            help="Number of groups of ranks, each with a whole model and videos of its own. [default: 1]",
            metavar="N",
            least=1,
            most=MAX_RANKS,
        ),
    ] = 1
    """Number of equal groups of neighbouring ranks, each with a whole model; each makes its own videos."""
    decode_degree: Annotated[
        int,
        Option(
            help="Number of decode ranks that share a video's tiles (--vae-tile): 1 (each decodes whole "
            "videos) or all of them. [default: 1]",
            metavar="1|N",
            most=MAX_RANKS,
        ),
    ] = 1
    """Number of decode ranks that share a video by tiles: 1 (each decodes whole videos), or all of them."""
    cfg_degree: Annotated[
        int,
        Option(
            also=("cfg-parallel",),
            help="2: compute the two guidance branches on different ranks. [default: planned if `paradit "
            "calibrate` has measured this machine, else 1]",
            metavar="1|2",
            most=MAX_RANKS,
        ),
    ] = 1
    """Number of rank groups for the two guidance branches: 2 if each group computes one branch; 1 if all
    ranks compute both."""
    method_options: Mapping[str, Value] = NONE
    """Placement options that only some denoising methods have, such as `pipeline_degree`."""
    attention: Annotated[
        str, Option(also=("ulysses-degree", "sequence-parallel"), help=help_text, metavar="NAME")
    ] = AUTO
    """Attention form, that is how the ranks of a guidance branch share attention: a name in
    `attention.registry`, or `auto`."""
    options: Mapping[str, Value] = NONE
    """Options that only some attention forms have, by name; those left out have their defaults."""
    interleave: Annotated[
        bool | None,
        Option(
            negatable=True,
            help="Compute one guidance branch while the other's data are sent. [default: auto chooses]",
        ),
    ] = None
    """Whether a rank computes one guidance branch while the other branch's data travel.

    None: interleaved if `attention` is `auto` and that is faster.
    """
    attention_backend: Annotated[
        str,
        Option(
            formerly=("kernel",),
            also=("backend",),
            help="Attention backend, by diffusers' name: flash, sage, ... [default: native]",
            metavar="NAME",
        ),
    ] = attention_backends.DEFAULT
    """Attention backend: a name in `paradit.attention_backends.ATTENTION_BACKENDS`."""
    compile: Annotated[
        bool,
        Option(
            also=("torch-compile",),
            help="Compile the layers before and after attention; takes a minute once.",
        ),
    ] = False
    """Whether the model's code before and after attention is compiled."""
    coprocess: Annotated[
        bool,
        Option(
            negatable=True,
            help="Let ranks that only decode compute part of the attention while they are idle.",
        ),
    ] = False
    """Whether ranks that decode but do not denoise do a share of the denoise ranks' attention while they are
    idle."""

    def __post_init__(self) -> None:
        check(self)
        self._check_replicas()
        self._check_groups()
        if self.decode_degree not in (1, len(self.decode_ranks)):
            number = len(self.decode_ranks)
            which = "1, since one rank decodes" if number == 1 else f"1 or {number}, all that decode"
            raise InputError(f"decode_degree must be {which}, got {shown(self.decode_degree)}")
        if self.cfg_degree not in CFG_DEGREES:
            raise InputError(f"cfg_degree must be 1 or 2, got {shown(self.cfg_degree)}")
        if self.attention not in (AUTO, *FORMS.names()):
            known = ", ".join((AUTO, *FORMS.names()))
            raise InputError(f"attention must be one of {known}, got {self.attention!r}")
        # The dataclass is frozen, so that a placement can be hashed and compared.
        object.__setattr__(self, "options", checked_options(self.attention, self.options))
        object.__setattr__(self, "method_options", checked_placement_options(self.method_options))
        number = len(self.denoise_ranks)
        if number % self.cfg_degree:
            raise InputError(
                f"{number} ranks cannot be divided into {self.cfg_degree} guidance branches: "
                f"use {number + 1} ranks, or cfg_degree 1"
            )
        attention_backends.check_backend(self.attention_backend)
        if self.interleave and self.cfg_degree == 2:
            raise InputError(
                "interleave needs both branches on a rank: use cfg_degree 1, or leave interleave out"
            )
        self._check_coprocess()
        self.check_attention()

    def _check_replicas(self) -> None:
        if self.ranks % self.replicas:
            raise InputError(
                f"{self.ranks} ranks cannot be divided into {self.replicas} replicas: "
                f"use replicas of {divisors(self.ranks)}"
            )
        groups = [stage for stage in PLACED if getattr(self, stage) is not None]
        if self.replicas > 1 and groups:
            raise InputError(
                f"each of {self.replicas} replicas does all stages, but {groups[0]} has ranks of its own: "
                "give replicas or the ranks of stages, not both"
            )

    def _check_groups(self) -> None:
        for stage in PLACED:
            ranks = getattr(self, stage)
            if ranks is None:
                continue
            if len(ranks) > MAX_RANKS:
                raise InputError(f"{stage} must have at most {MAX_RANKS} ranks, got {len(ranks)}")
            for rank in ranks:
                check_rank(stage, rank)
            if not ranks or len(set(ranks)) < len(ranks) or not 0 <= min(ranks) <= max(ranks) < self.ranks:
                raise InputError(
                    f"{stage} must be different ranks from 0 to {self.ranks - 1}, got {written(ranks)}"
                )
        if len(self.encode_ranks) > 1:
            raise InputError(
                f"encode must be one rank, got {written(self.encode_ranks)}: use "
                f"encode={self.encode_ranks[0]}"
            )
        idle = [rank for rank in range(self.ranks) if not self.stages_of(rank)]
        if idle:
            raise InputError(f"rank {written(idle)} has no stage: give it one, or use fewer ranks")

    def _check_coprocess(self) -> None:
        if not self.coprocess:
            return
        if not self.helper_ranks:
            raise InputError(
                "coprocess needs ranks that decode and do not denoise: use a placement such as "
                "'denoise=0-2 decode=3', or leave coprocess out"
            )
        if self.cfg_degree == 2:
            raise InputError(
                "coprocess needs both branches on a rank: use cfg_degree 1, or leave coprocess out"
            )

    @classmethod
    def of(cls, **given: object) -> Placement:
        """Return the placement made of its fields by name, as JSON and the command line have them."""
        own, of_methods = declared(cls), declared_placement_options()
        given = dict(with_new_names(given, former_names(own.values())))
        mine = {name: value for name, value in given.items() if name in own}
        method = {name: value for name, value in given.items() if name in of_methods}
        others = {name: value for name, value in given.items() if name not in {*own, *of_methods}}
        return cls(**mine, options=Values(others), method_options=Values(method))  # type: ignore[arg-type]

    def flat(self) -> dict[str, object]:
        """Return all fields of the placement by name, as one mapping; `of` reads it.

        The options of all attention forms and methods are among them.
        """
        found, said = {}, {**self.options, **self.method_options}
        for name, field in placement_fields().items():
            is_own = name in declared(Placement)
            found[name] = getattr(self, name) if is_own else said.get(name, field.default)
        return found

    @property
    def replica_ranks(self) -> int:
        """Number of ranks in each replica (group of ranks that makes its own videos)."""
        return self.ranks // self.replicas

    @property
    def replica(self) -> Placement:
        """Placement of one replica by itself, with ranks counted from 0.

        A replica is a group of ranks that makes its own videos.
        """
        return replace(self, ranks=self.replica_ranks, replicas=1)

    @property
    def denoise_ranks(self) -> tuple[int, ...]:
        """Ranks that denoise, and so have the transformer, in the first replica."""
        return tuple(range(self.replica_ranks)) if self.denoise is None else self.denoise

    @property
    def decode_ranks(self) -> tuple[int, ...]:
        return self.denoise_ranks[:1] if self.decode is None else self.decode

    @property
    def helper_ranks(self) -> tuple[int, ...]:
        """Ranks that decode but do not denoise; with `coprocess` they do some of the attention while idle."""
        return tuple(rank for rank in self.decode_ranks if rank not in self.denoise_ranks)

    def helpers_of(self, decoder: int) -> list[int]:
        """Return the ranks of one group of decode ranks, as indices in `helper_ranks`.

        decoder: index of the group in `decode_groups`.
        """
        group = self.decode_groups[decoder]
        return [number for number, rank in enumerate(self.helper_ranks) if rank in group]

    @property
    def decode_groups(self) -> list[tuple[int, ...]]:
        """Groups of decode ranks; each group decodes a video together, and its first rank writes the file."""
        ranks, degree = self.decode_ranks, self.decode_degree
        return [ranks[start : start + degree] for start in range(0, len(ranks), degree)]

    @property
    def encode_ranks(self) -> tuple[int, ...]:
        """Rank that encodes, as a tuple of one."""
        if self.encode is not None:
            return self.encode
        return (self.denoise_ranks if self.decode is None else self.decode)[:1]

    def stages_of(self, rank: int) -> tuple[str, ...]:
        """Return the placed stages that a rank does, in the order in which a video passes through them.

        The first rank of each of `decode_groups` also encodes pictures: see `work_of`.
        """
        groups = self.encode_ranks, self.denoise_ranks, self.decode_ranks
        within = rank % self.replica_ranks
        return tuple(stage for stage, group in zip(PLACED, groups, strict=True) if within in group)

    def work_of(self, rank: int) -> tuple[str, ...]:
        """Return all stages that a rank does, in order, also `conditions`, which only some requests have."""
        within, placed = rank % self.replica_ranks, self.stages_of(rank)
        writes = any(within == group[0] for group in self.decode_groups)
        return tuple(stage for stage in STAGES if stage in placed or (stage == "conditions" and writes))

    @property
    def branch_ranks(self) -> int:
        """Number of denoise ranks that share the tokens of one guidance branch."""
        return len(self.denoise_ranks) // self.cfg_degree

    def to_json(self) -> str:
        """Return all fields of the placement as JSON, which `placement_text.read_placement` reads."""
        return json.dumps(self.flat(), indent=2)

    def check_attention(self, patterns: frozenset[Pattern] | None = None) -> None:
        """Raise InputError if the attention form cannot do what is asked of it.

        patterns: patterns of the model's sparse layers; None: the model is not known yet.
        """
        if self.attention != AUTO:
            FORMS.find(self.attention).check(self._asked(patterns))

    def _asked(self, patterns: frozenset[Pattern] | None) -> Asked:
        return Asked(
            ranks=self.branch_ranks,
            options=Values(self.options),
            attention_backend=self.attention_backend,
            interleave=self.interleave,
            coprocess=self.coprocess,
            patterns=patterns,
        )

    def choices(
        self, num_heads: int, num_branches: int = 2, patterns: frozenset[Pattern] = frozenset()
    ) -> list[Choice]:
        """Return the attention forms, each with options, that the placement allows, the simplest first.

        An attention form is a way for ranks to share attention, such as Ulysses or ring. num_heads: number of
        the model's attention heads. num_branches: number of guidance branches, 1 or 2. patterns: patterns of
        the model's sparse layers.
        """
        is_open, alone = self.attention == AUTO, self.branch_ranks == 1
        if alone and not self.coprocess:
            return [Choice.plain()]
        asked, heads = self._asked(patterns), -(-num_heads // self.branch_ranks)
        found = automatic(asked, heads) if is_open else FORMS.find(self.attention).choices(asked, heads)
        interleaves = [bool(self.interleave)]
        if self.interleave is None and is_open and self.cfg_degree < num_branches:
            # An interleaved rank computes its branches in turn, as a process alone always does.
            interleaves = [True] if alone else [False, True]
        made = [replace(choice, interleave=interleave) for choice in found for interleave in interleaves]
        # A single rank waits only for ranks that help it, so the choices need not be timed to compare them.
        return made[:1] if alone else made

    def chosen(self, choice: Choice) -> Placement:
        """Return this placement with its attention form and options set to those of one of `choices`."""
        return replace(
            self, attention=choice.name, options=choice.options, interleave=choice.interleave or None
        )

    def tiled(self, request: ResolvedRequest, spec: ModelSpec) -> ResolvedRequest:
        """Return the request with a VAE tile size set, if ranks share the decode and the request has none."""
        if self.decode_degree == 1 or request.vae_tile is not None:
            return request
        return replace(request, vae_tile=spec.vae.TILE_PIXELS)


def placement_fields() -> Mapping[str, Declared]:
    """Return all fields of a placement by name, including the options of all attention forms and methods."""
    # The order of the fields is that of the options in help texts.
    before = {"attention": declared_placement_options, "interleave": declared_options}
    found: dict[str, Declared] = {}
    for name, field in declared(Placement).items():
        found |= {**(before[name]() if name in before else {}), name: field}
    return found


def check_rank(stage: str, rank: int) -> None:
    """Refuse a rank, given for a stage, that no run can have (`limits.MAX_RANKS`). Raises InputError."""
    if abs(rank) >= MAX_RANKS:
        raise InputError(f"{stage} must have ranks from 0 to {MAX_RANKS - 1}, got {shown(rank)}")


def divisors(number: int) -> str:
    """Return all divisors of a number as text for error messages, such as `1, 2, 4`."""
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)


def written(ranks: Iterable[int]) -> str:
    """Return ranks as text for error messages, such as `0, 2, 3`; `none` if there are none."""
    return ", ".join(str(rank) for rank in ranks) or "none"
