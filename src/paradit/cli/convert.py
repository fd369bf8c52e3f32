"""Command `paradit convert`: make a model folder from a published checkpoint.

Imports torch only after the checkpoint's small files have been checked.
"""

from __future__ import annotations

import sys
import time

from paradit.cli.commands.convert_options import ConvertOptions
from paradit.cli.reporters import PLAIN_SECONDS
from paradit.cli.text import amount
from paradit.models.checkpoint import Given, find
from paradit.models.checkpoint import convert as write


def convert(options: ConvertOptions) -> None:
    """Convert a checkpoint and print the model folder's name. Raises InputError if that cannot be done."""
    given = Given(transformer=options.transformer, text_encoder=options.text_encoder)
    write(find(options.checkpoint, given), options.output, _Shown().told)
    print(options.output)


class _Shown:
    """Progress on stderr: a line for each file that is written, and further lines during large ones."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def told(self, name: str, done: int, total: int) -> None:
        """Show the progress of a file: its name, bytes written so far, and all its bytes."""
        now = time.monotonic()
        if done < total and now - self._last < PLAIN_SECONDS:
            return
        self._last = now
        text = amount(total, "B") if done == total else f"{amount(done, 'B')} of {amount(total, 'B')}"
        print(f"{name}: {text}", file=sys.stderr, flush=True)
