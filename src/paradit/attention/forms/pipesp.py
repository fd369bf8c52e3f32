"""PipeSP attention, after arXiv 2511.12056: Ulysses whose data travel in chunks.

While one chunk is computed, the next chunks arrive and the results of the previous one leave. In the paper,
attention is computed only once all data have arrived: see `pipesp_paper`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from paradit.attention.registry import Asked, Choice, Form
from paradit.config.limits import MAX_CHUNKS
from paradit.config.options import Option, decode
from paradit.config.values import Value, Values

CHUNKS_BY_ITSELF = 2
"""Number of chunks in which PipeSP (Ulysses in chunks) exchanges data if only one rank denoises.

In that case data travel only to and from helpers: idle decode ranks that take a share of the attention. No
other number is tried, unless the user sets one.
"""


@dataclass(frozen=True, kw_only=True)
class Chunks:
    """Option of PipeSP attention: the number of chunks in which its data travel."""

    chunks: Annotated[
        int | None,
        Option(
            help="Number of chunks in which pipesp sends its data. [default: the fastest]",
            metavar="N",
            least=1,
            most=MAX_CHUNKS,
        ),
    ] = None


class PipeSP(Form):
    name = "pipesp"
    help = "Ulysses in chunks: while one is computed, the next ones arrive and earlier results leave."
    exactness = "exact: bit for bit the result of one process"
    options = Chunks
    automatic = helped = patterns = True
    joined_by = "paradit.attention.chunked:join"
    timed_by = "paradit.attention.timing.head_exchange:layer"

    def misplaced(self, attention: str) -> str:
        return f"chunks needs attention {self.name}, got {attention!r}: leave chunks out"

    def choices(self, asked: Asked, heads: int) -> list[Choice]:
        chunks = decode(Chunks, asked.options).chunks
        if chunks is not None:
            numbers = [chunks]
        elif asked.ranks == 1:
            numbers = [CHUNKS_BY_ITSELF]
        else:
            # Whole (which is Ulysses), in halves, or each head by itself.
            numbers = sorted({1, 2, heads})
        return [Choice(self.name, Values(chunks=number)) for number in numbers]

    def candidates(self, asked: Asked, heads: int) -> list[Choice]:
        # A single rank uses plain Ulysses, unless chunks are asked for.
        return [] if asked.ranks == 1 and not asked.options else self.choices(asked, heads)

    def lag(self, choice: Choice) -> int:
        # With chunks a layer has an odd number of turns. A branch one turn behind computes its first chunk
        # while the other's last messages travel. That hid as much or more in every case that was
        # rehearsed (`tests/unit/test_rehearsal.py` has some).
        return int(choice.interleave and self.parts(choice) > 1)

    def parts(self, choice: Choice) -> int:
        return decode(Chunks, choice.options).chunks or 1

    def simplest(self, choice: Choice) -> Choice:
        return Choice.plain(interleave=choice.interleave) if self.parts(choice) == 1 else choice

    def written(self, options: Mapping[str, Value], *, short: bool = False) -> str:
        chunks = decode(Chunks, options).chunks or 1
        return self.name + (f" in {chunks}{'' if short else ' chunks'}" if chunks > 1 else "")


PIPESP = PipeSP()
