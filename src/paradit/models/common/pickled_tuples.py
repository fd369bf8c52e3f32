"""Check of the tuples in a pickle, before it is read. Imports no torch.

Python hashes a tuple that is a key of a dict by hashing everything in it, as often as it occurs. A short
pickle can hold tuples in tuples for which that never ends, or overflows the stack.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

MOST = 10_000
"""Largest number of values in a tuple, with those of the tuples in it; a tensor's have about twenty."""
LEGACY_PICKLES = 5
"""Number of pickles, one after the other, with which a file of torch before 1.6 begins."""


def has_huge_tuples(path: Path) -> bool:
    """Return whether a file that torch.save wrote has tuples of more than `MOST` values.

    What comes after a damaged place is not looked at.
    """
    # A damaged file can raise nearly anything. It is refused when it is read.
    with suppress(Exception):
        return any(size > MOST for pickle in _pickles(path) for size in _sizes(pickle))
    return False


def _pickles(path: Path) -> Iterator[IO[bytes]]:
    """Yield the pickles in a file, open at their beginnings."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            for _ in range(LEGACY_PICKLES):
                yield file
        return
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.filename.endswith(".pkl"):
                with archive.open(entry) as file:
                    yield file


def _sizes(pickle: IO[bytes]) -> Iterator[int]:
    """Yield the size of each tuple that a pickle makes: the number of values in it and in its tuples."""
    stack, marks, memo = list[int](), list[int](), dict[object, int]()
    for operation, argument, _ in pickletools.genops(pickle):
        before = operation.stack_before
        if operation.name == "MARK":
            marks.append(len(stack))
        elif operation.name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif operation.name in ("BINGET", "LONG_BINGET"):
            stack.append(memo.get(argument, 1))
        else:
            marked = pickletools.markobject in before
            least = before.index(pickletools.markobject) if marked else len(before)
            start = (marks.pop() if marked else len(stack)) - least
            taken, stack[start:] = stack[start:], [1] * len(operation.stack_after)
            if operation.name.startswith("TUPLE"):
                stack[-1] = 1 + sum(taken)
                yield stack[-1]
