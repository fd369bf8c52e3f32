"""Files of tensors: reads those that torch.save wrote without running code in them, and writes safetensors.

Both work tensor by tensor as far as the formats allow, so that files may be larger than memory. Values that
are not finite are refused.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import safe_open
from torch import Tensor

from paradit.config.errors import InputError
from paradit.models.common.pickled_tuples import has_huge_tuples
from paradit.models.folder_check import lfs_hint

Told = Callable[[int, int], None]
"""Type of a function that is told the progress of a file: bytes written so far, and all bytes."""

DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
"""Names of dtypes in safetensors files."""
BLOCK = 2**24
"""Number of bytes that are copied at once."""


def read_tensors(path: Path) -> object:
    """Return the content of a file that torch.save wrote: tensors, in dicts and lists.

    Values are read from the file when they are used, except from files of torch before 1.6. Raises InputError
    for anything but tensors, which could run code, and for a damaged file.
    """
    if has_huge_tuples(path):
        raise InputError(_damaged(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mapped = zipfile.is_zipfile(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error.strerror or error}") from None
    except pickle.UnpicklingError as error:
        needed = re.search(r"GLOBAL ([\w.]+)", str(error))
        if needed:
            raise InputError(
                f"{str(path)!r} holds more than tensors ({needed[1]}), which could run code when it is "
                "loaded: it is not read"
            ) from None
        raise InputError(_damaged(path)) from None
    except Exception:  # a damaged file can raise nearly anything
        raise InputError(_damaged(path)) from None


def _damaged(path: Path) -> str:
    hint = lfs_hint(path) or ": it is damaged or of another kind, copy it again"
    return f"{str(path)!r} is not a file of tensors that torch.save wrote{hint}"


def chosen(stored: object, shapes: Mapping[str, tuple[int, ...]], path: Path) -> dict[str, Tensor]:
    """Return the tensors of a model from a dict that may hold others, too.

    Raises InputError if one is missing, or is not as expected. stored: the dict. shapes: the shape of each of
    the model's tensors, by name. path: the file that the dict comes from, for error messages.
    """
    found = {}
    for name, shape in shapes.items():
        tensor = stored.get(name) if isinstance(stored, dict) else None
        if not isinstance(tensor, Tensor):
            raise InputError(f"{str(path)!r} has no tensor {name}, which its configuration calls for")
        # A nested tensor has no shape, and one in a lazy form (`is_neg`) not the bytes of its values.
        is_plain = not tensor.is_nested and tensor.layout == torch.strided and not tensor.is_neg()
        if not is_plain or tuple(tensor.shape) != shape or tensor.dtype not in DTYPES:
            kind = str(tensor.dtype).removeprefix("torch.")
            got = f"{list(tensor.shape)} of {kind}" if is_plain else "one in another form"
            raise InputError(
                f"{str(path)!r}: {name} must be a tensor {list(shape)} of floating-point numbers, as its "
                f"configuration says, got {got}"
            )
        if tensor.device.type != "cpu":
            raise InputError(f"{str(path)!r}: {name} has no values")
        found[name] = tensor
    return found


def check_finite(said: str, name: str, tensor: Tensor) -> None:
    """Raise InputError for a tensor with values that are NaN or infinite, which a damaged file has.

    said: what the message calls the file. name: the tensor's name in it.
    """
    count = 0
    for part in torch.split(tensor.detach().flatten(), BLOCK):
        values = part.float() if part.itemsize == 1 else part  # torch has no `isfinite` for fp8
        count += int((~values.isfinite()).sum())
    if count:
        of_all = (
            f"{count:,} of {tensor.numel():,} values that are" if tensor.numel() > 1 else "a value that is"
        )
        raise InputError(f"{said} is damaged: {name} has {of_all} not finite (NaN or infinity)")


def check_file(path: Path) -> None:
    """Raise InputError for a safetensors file with values that are NaN or infinite."""
    with safe_open(path, framework="pt") as stored:
        for name in stored.keys():  # noqa: SIM118 (it is no mapping)
            check_finite(repr(str(path)), name, stored.get_tensor(name))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], source: Path, told: Told) -> None:
    """Write a safetensors file, one tensor at a time. Raises OSError, and InputError as `check_finite` does.

    source: the file that the tensors come from, for error messages.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + prod(tensor.shape) * tensor.element_size()
        shape = list(tensor.shape)
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the values begin at a multiple of 8 bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        done = 0
        for name, tensor in tensors.items():
            check_finite(repr(str(source)), name, tensor)
            values = tensor.detach().contiguous().flatten().view(torch.uint8).numpy()
            for start in range(0, len(values), BLOCK):
                file.write(values[start : start + BLOCK].data)
                told(done + min(start + BLOCK, len(values)), end)
            done += len(values)
        _settle(file)


def copy_file(source: Path, target: Path, told: Told) -> None:
    """Copy a file. Raises OSError."""
    size, done = source.stat().st_size, 0
    with source.open("rb") as read, target.open("wb") as file:
        while block := read.read(BLOCK):
            file.write(block)
            done += len(block)
            told(done, size)
        _settle(file)


def _settle(file: BinaryIO) -> None:
    """Wait until everything that was written to a file is on disk."""
    file.flush()
    os.fsync(file.fileno())
