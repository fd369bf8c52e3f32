"""Run of an Open-Sora-Plan that sleeps instead of computing, for more ranks than there are cores.

Blocks, attention and decoder sleep for as long as they were measured to take alone, on one thread. Messages,
stages and files stay real, and so do the small computations that are left: texts, the embedding and the head
of the transformer, the scheduler and the video files. The results are meaningless.
"""

from __future__ import annotations

import fcntl
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paradit.attention.local_attention import sdpa
from paradit.config.tiles import Tile
from paradit.engine import predictors
from paradit.models.open_sora_plan.decoder import WfVaeDecoder
from paradit.models.open_sora_plan.transformer import OpenSoraPlanBlock, OpenSoraPlanTokens

TIMES = 3


class Durations:
    """Seconds that computations take alone, by name and shape, in a folder that all ranks share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, float] = {}
        self._late = 0.0

    def sleep(self, what: str, compute: Callable[[], object], part: float = 1.0) -> None:
        """Sleep as long as a computation takes, or measure it if no rank has done so yet.

        part: the fraction of it to sleep for.
        """
        if what not in self._known:
            self._known[what] = self._measured(what, compute)
        due = part * self._known[what] - self._late
        began = time.perf_counter()
        time.sleep(max(0.0, due))
        self._late = time.perf_counter() - began - due  # sleeps are longer than asked for

    def _measured(self, what: str, compute: Callable[[], object]) -> float:
        path = self._folder / what
        with (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # so that no two ranks measure at once
            if not path.exists():
                path.write_text(str(min(_seconds(compute) for _ in range(TIMES))))
        return float(path.read_text())


def _seconds(compute: Callable[[], object]) -> float:
    began = time.perf_counter()
    compute()
    return time.perf_counter() - began


def emulate(folder: Path) -> None:
    """Let this process sleep instead of computing, from now on. folder: where durations are kept."""
    durations = Durations(folder)
    project, finish, pieces = OpenSoraPlanBlock.project, OpenSoraPlanBlock.finish, WfVaeDecoder.pieces

    def sleep_project(block: OpenSoraPlanBlock, tokens: OpenSoraPlanTokens) -> Iterator[Tensor]:
        x, attn = tokens.hidden_states, block._block.attn1
        value = x.new_zeros(x.shape).unflatten(2, (attn.heads, -1))
        for _ in range(3):
            durations.sleep(f"project {_shape(x)}", lambda: list(project(block, tokens)), 1 / 3)
            yield value

    def sleep_finish(block: OpenSoraPlanBlock, tokens: OpenSoraPlanTokens, attended: Tensor) -> Any:
        what = f"finish {_shape(tokens.hidden_states)}"
        durations.sleep(what, lambda: finish(block, tokens, attended))
        return tokens

    def sleep_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # noqa: ARG001
        head = key[:, :, :1]
        part = query.shape[1] * query.shape[2] / key.shape[1]
        durations.sleep(f"attention {_shape(head)}", lambda: sdpa(head, head, head), part)
        return torch.zeros_like(query)

    def sleep_pieces(decoder: WfVaeDecoder, tile: Tile) -> Iterator[Tensor]:
        latents = torch.randn(decoder._latents.shape)

        def decode() -> None:
            again = WfVaeDecoder(decoder._vae, decoder._video_processor, latents, park=False)
            deque(pieces(again, tile), maxlen=0)

        for index in range(decoder.num_pieces):
            durations.sleep(f"decode {_shape(latents)}", decode, 1 / decoder.num_pieces)
            yield torch.zeros(decoder.piece_shape(index, tile))

    vars(predictors).update(load_kernel=lambda _: sleep_attention)
    OpenSoraPlanBlock.project, OpenSoraPlanBlock.finish = sleep_project, sleep_finish  # type: ignore[method-assign]
    WfVaeDecoder.pieces = sleep_pieces  # type: ignore[method-assign]


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))
