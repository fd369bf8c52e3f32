"""Predictions by several ranks: each holds a part of the tokens, or one guidance branch, or both."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from paradit.attention.forms import attend_on
from paradit.attention.local import sdpa
from paradit.attention.protocol import Attend, Kernel, Wait
from paradit.distributed.mesh import Mesh
from paradit.distributed.redistribution import Redistribution, start
from paradit.distributed.shares import Box, Shares
from paradit.distributed.world import World
from paradit.models.protocol import Prompt, Transformer
from paradit.placement import Form, Placement
from paradit.sampling.calibration import Remembered, Trial
from paradit.sampling.forward import forward, run_interleaved


class Together:
    """A `Team` over a mesh.

    Exact: the same operations on the same rows as in one process; only how matrix products are cut into
    tiles may differ, in the last bits.
    """

    def __init__(
        self, mesh: Mesh, forms: Sequence[Form] = (Form(attention="ulysses"),), kernel: Kernel = sdpa
    ) -> None:
        """forms: how attention may be done; of several, the first steps find out the quickest."""
        self._mesh, self._forms, self._kernel = mesh, forms, kernel
        self._world = mesh.world.transport()
        self.is_first = mesh.world.rank == 0
        self._attends: dict[tuple[Form, Shares], Attend] = {}
        self.trials: dict[tuple[Shares, int], Trial[Form]] = {}
        """Which form is quickest, by shares and number of branches."""

    def share(
        self, make: Callable[[], Tensor], shape: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        tensor = make() if self.is_first else torch.empty(tuple(shape), dtype=dtype, device=device)
        if (tuple(tensor.shape), tensor.dtype) != (tuple(shape), dtype):
            raise ValueError(f"{tensor.dtype} {tuple(tensor.shape)} is shared as {dtype} {tuple(shape)}")
        return self._world.broadcast(tensor)

    def agree(self, what: str, value: bytes) -> None:
        digest = torch.frombuffer(bytearray(hashlib.sha256(value).digest()), dtype=torch.uint8)
        digests = self._world.all_gather(digest.to(self._mesh.world.device))
        others = [rank for rank, other in enumerate(digests) if not torch.equal(other, digests[0])]
        if others:
            ranks = "rank" if len(others) == 1 else "ranks"
            raise RuntimeError(f"{ranks} {', '.join(map(str, others))}: {what} differs from that of rank 0")

    def gather_number(self, number: int) -> list[int]:
        mine = torch.tensor([number], device=self._mesh.world.device)
        return [int(other) for other in self._world.all_gather(mine)]

    def contexts(self, transformer: Transformer, prompts: Sequence[Prompt]) -> list[Any]:
        if self._mesh.cfg_degree == 1:
            return [_Branches(transformer, prompts)]
        if len(prompts) != self._mesh.cfg_degree:
            raise ValueError(f"{len(prompts)} guidance branches on {self._mesh.cfg_degree} groups of ranks")
        return [_Branches(transformer, [prompts[self._mesh.cfg_rank]])]

    def predict(
        self, transformer: Transformer, latents: Tensor, timestep: Tensor, contexts: list[Any], layout: Any
    ) -> list[Tensor]:
        (branches,) = contexts
        # Embedded once, as one process does it: one time embedding is another product than two.
        tokens = transformer.embed(latents, timestep, branches.each[0], layout)
        values = torch.cat(self._values(transformer, branches, tokens))
        if self._mesh.cfg_degree > 1:
            predictions = self._mesh.cfg.all_gather(values)
        else:
            predictions = list(torch.split(values, len(latents)))
        return [transformer.unpatchify(prediction, layout) for prediction in predictions]

    def forward(self, transformer: Transformer, tokens: Any) -> Tensor:
        """The prediction of all tokens, [B, S, patch values], on every rank; in the first of the forms."""
        (values,) = run_interleaved([self._forward(transformer, tokens, self._forms[0])])
        return values

    def _values(self, transformer: Transformer, branches: _Branches, tokens: Any) -> list[Tensor]:
        """In the form that was asked for, or the quickest of several; until that is known, each in turn."""
        trial = self._trial(transformer, branches, tokens)
        form, known = trial.next(), trial.best is not None
        began = time.perf_counter()
        values = run_interleaved(self._streams(transformer, branches, tokens, form))
        if not known:
            if values[0].device.type == "cuda":
                torch.cuda.synchronize(values[0].device)
            # The slowest rank's time, so that all decide alike.
            trial.took(form, max(self.gather_number(round(1e6 * (time.perf_counter() - began)))))
            if trial.best is not None and self.is_first:
                Remembered().keep(self._what(transformer, branches, tokens), str(trial.best))
        return values

    def _trial(self, transformer: Transformer, branches: _Branches, tokens: Any) -> Trial[Form]:
        key = self._shares(transformer, tokens), len(branches.each)
        if key not in self.trials:
            self.trials[key] = Trial(self._forms)
            if len(self._forms) > 1:
                remembered = Remembered().find(self._what(transformer, branches, tokens))
                names = [str(form) for form in self._forms]
                # The first rank's memory counts, for all.
                index, *_ = self.gather_number(names.index(remembered) if remembered in names else -1)
                if index >= 0:
                    self.trials[key] = Trial([self._forms[index]])
        return self.trials[key]

    def _what(self, transformer: Transformer, branches: _Branches, tokens: Any) -> str:
        """What the quickest form depends on, besides the machine."""
        x, shares = tokens.hidden_states, self._shares(transformer, tokens)
        return (
            f"{shares}, {len(branches.each)} branches, width {x.shape[2]}, {x.dtype}, "
            f"{torch.get_num_threads()} threads, {len(transformer.blocks)} layers, {self._forms}"
        )

    def _streams(
        self,
        transformer: Transformer,
        branches: _Branches,
        tokens: Any,
        form: Form,
    ) -> list[Generator[Wait, None, Tensor]]:
        contexts = branches.each if form.interleave else [branches.joined]
        return [self._forward(transformer, transformer.branch(tokens, context), form) for context in contexts]

    def _forward(self, transformer: Transformer, tokens: Any, form: Form) -> Generator[Wait, None, Tensor]:
        shares = self._shares(transformer, tokens)
        if (form, shares) not in self._attends:
            self._attends[form, shares] = attend_on(self._mesh, form, shares, self._kernel)
        mine = shares.tokens_of(self._mesh.rank)
        part = tokens.shard(mine.start, mine.stop)
        values = yield from forward(transformer, part, self._attends[form, shares])

        held = [[replace(shares.tokens_of(rank), last_head=1)] for rank in range(shares.num_ranks)]
        everywhere = [[Box(0, 1, 0, shares.num_tokens)]] * shares.num_ranks
        gather = Redistribution(held, everywhere, self._mesh.branch)
        values = values[:, :, None]
        arrival = start([gather.move([values], like=values)])
        yield arrival
        ((all_values,),) = arrival.wait()
        return all_values[:, :, 0]

    def _shares(self, transformer: Transformer, tokens: Any) -> Shares:
        return Shares.equal(
            num_tokens=tokens.hidden_states.shape[1],
            num_heads=transformer.num_heads,
            num_ranks=self._mesh.branch.num_ranks,
            num_replicated=tokens.layout.num_replicated,
        )


def together(
    world: World, placement: Placement, num_heads: int, num_branches: int = 2, kernel: Kernel = sdpa
) -> Together:
    """The team that a placement makes of a world, for a model of so many heads and guidance branches."""
    ring_inside = placement.mesh == "ulysses,ring"
    mesh = Mesh(world, placement.cfg_degree, placement.ring_ranks, ring_inside=ring_inside)
    return Together(mesh, placement.forms(num_heads, num_branches), kernel)


class _Branches:
    """What a rank needs of the prompts that it computes, made when it is asked for."""

    def __init__(self, transformer: Transformer, prompts: Sequence[Prompt]) -> None:
        self._transformer, self._prompts = transformer, prompts

    @cached_property
    def each(self) -> list[Any]:
        """A context for each prompt."""
        return [self._transformer.context(*prompt) for prompt in self._prompts]

    @cached_property
    def joined(self) -> Any:
        """One context for all prompts."""
        return self.each[0] if len(self._prompts) == 1 else self._transformer.join(self.each)
