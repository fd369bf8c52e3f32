"""Message of co-processing, in which idle decode ranks take a share of the denoising attention.

The first denoise rank sends one before each step.
"""

from __future__ import annotations

from dataclasses import asdict, astuple, dataclass

import torch
from torch import Tensor

from paradit.distributed.shares import Shares

# Kinds of a `Message`.
ALONE, HELP, MEASURE, LATENTS, END = range(5)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True)
class Message:
    """Message that the first denoise rank sends before a step: which decode ranks help with its attention.

    Decode ranks that may help are called helpers. `kind` says what the message announces: a step without help
    (ALONE), a step with help (HELP), a measurement of helpers (MEASURE), latents for decode ranks (LATENTS),
    or the end of all steps (END).
    """

    kind: int = ALONE
    batch: int = 0
    num_tokens: int = 0
    num_replicated: int = 0
    num_heads: int = 0
    head_dim: int = 0
    sites: int = 0
    """Id of the list of attention computations in this step's forward pass. The first denoise rank has
    published the list, and helpers (decode ranks that take a share of the attention) look it up by this id.
    """
    dtype: int = 0
    """Index in `DTYPES` of the dtype of the tokens."""
    choice: int = 0
    """Index of the attention form, such as Ulysses, in a list of forms that all ranks have."""
    streams: int = 0
    """Number of forward passes that take turns: one for each guidance branch, or 1 for all branches in one
    batch."""
    lag: int = 0
    steps: int = 0
    """Number of denoising steps, since the latest latents were sent to be decoded, in which decode ranks took
    a share of the attention. Set only if `kind` is `LATENTS`."""
    work: tuple[int, ...] = ()
    """For each helper (decode rank that may take a share of the attention), the number of (head, query row)
    pairs that it computes; zero if it computes none. If `kind` is `MEASURE`, a 1 stands for each helper whose
    speed is to be measured."""

    def pack(self, device: torch.device) -> Tensor:
        """Return the message as an int64 tensor.

        Its length depends only on the number of helpers (decode ranks that may take a share of the
        attention).
        """
        *numbers, work = astuple(self)
        return torch.tensor([*numbers, *work], device=device)

    @classmethod
    def unpack(cls, message: Tensor) -> Message:
        """Return the message from the int64 tensor that `pack` made of it."""
        values = message.tolist()
        *names, _ = asdict(cls())
        return cls(**dict(zip(names, values, strict=False)), work=tuple(values[len(names) :]))

    @property
    def helpers(self) -> tuple[int, ...]:
        """Indices, from 0, of the decode ranks that take a share of this step's attention.

        If `kind` is `MEASURE`, they are those whose speed is to be measured.
        """
        return tuple(helper for helper, work in enumerate(self.work) if work)

    def shares(self, num_ranks: int) -> Shares:
        """Return how tokens and attention are divided among the denoise ranks and the helpers.

        Helpers are decode ranks that take a share of the attention. num_ranks: number of denoise ranks, which
        come before the helpers.
        """
        own = Shares.equal(self.num_tokens, self.num_heads, num_ranks, self.num_replicated)
        return own.with_helpers(self.work)
