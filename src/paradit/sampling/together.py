"""Predictions by several ranks: each holds a part of the tokens, or one guidance branch, or both."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from paradit.attention.ulysses import ulysses
from paradit.distributed.exchange import UlyssesExchange
from paradit.distributed.mesh import Mesh
from paradit.distributed.redistribution import Redistribution, start
from paradit.distributed.shares import Box, Shares
from paradit.models.protocol import Transformer
from paradit.sampling.forward import forward, run


class Together:
    """A `Team` over a mesh. Branches that a rank computes itself go through it in one batch.

    Exact: the same operations on the same rows as in one process; only how matrix products are cut into
    tiles may differ, in the last bits.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._world = mesh.world.transport()
        self.is_first = mesh.world.rank == 0
        self._exchanges: dict[Shares, UlyssesExchange] = {}

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

    def contexts(self, transformer: Transformer, prompts: Sequence[Tensor]) -> list[Any]:
        if self._mesh.cfg_degree == 1:
            return [transformer.context(torch.cat(list(prompts)))]
        if len(prompts) != self._mesh.cfg_degree:
            raise ValueError(f"{len(prompts)} guidance branches on {self._mesh.cfg_degree} groups of ranks")
        return [transformer.context(prompts[self._mesh.cfg_rank])]

    def predict(
        self, transformer: Transformer, latents: Tensor, timestep: Tensor, contexts: list[Any], layout: Any
    ) -> list[Tensor]:
        (context,) = contexts
        # Embedded once, as one process does it: one time embedding is another product than two.
        tokens = transformer.branch(transformer.embed(latents, timestep, context, layout), context)
        values = self.forward(transformer, tokens)
        if self._mesh.cfg_degree > 1:
            branches = self._mesh.cfg.all_gather(values)
        else:
            branches = list(values.split(len(latents)))
        return [transformer.unpatchify(branch, layout) for branch in branches]

    def forward(self, transformer: Transformer, tokens: Any) -> Tensor:
        """The prediction of all tokens, [B, S, patch values], on every rank of a branch."""
        rank, transport = self._mesh.ulysses_rank, self._mesh.ulysses
        num_tokens = tokens.hidden_states.shape[1]
        shares = Shares.equal(num_tokens, transformer.num_heads, transport.num_ranks)
        if shares not in self._exchanges:
            self._exchanges[shares] = UlyssesExchange(shares, transport)
        mine = shares.tokens_of(rank)
        part = tokens.shard(mine.start, mine.stop)
        values = run(forward(transformer, part, ulysses(self._exchanges[shares])))

        held = [replace(shares.tokens_of(rank), last_head=1) for rank in range(shares.num_ranks)]
        everywhere = [[Box(0, 1, 0, num_tokens)]] * shares.num_ranks
        gather = Redistribution([[box] for box in held], everywhere, transport)
        values = values[:, :, None]
        (((all_values,),)) = start([gather.move([values], like=values)]).wait()
        return all_values[:, :, 0]
