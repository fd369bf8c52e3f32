"""Check that a video fits into memory, by an estimate from the model's configuration, before it is loaded."""

from __future__ import annotations

import re

import torch

from paradit.config.errors import InputError
from paradit.config.methods.method import method_of
from paradit.config.placement import Placement
from paradit.config.requests import ResolvedRequest
from paradit.device_memory import total_memory_bytes
from paradit.devices import num_gpus
from paradit.models.spec import ModelSpec
from paradit.models.vae_spec import FP32_BYTES
from paradit.scheduling.fitting import SURELY, options_that_fit
from paradit.scheduling.rank_memory import PARTS, fitting_tile, largest_part, on_one_device

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def name_of(dtype: torch.dtype) -> str:
    """Return the name of a torch dtype in requests: `fp32` or `bf16`."""
    (name,) = (name for name, other in DTYPES.items() if other == dtype)
    return name


def where_and_how(dtype: str | None) -> tuple[torch.device, str]:
    """Return the device that this process computes on, and the name of the dtype it computes in.

    dtype: name that the request gives; None: the usual dtype of the device.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return device, dtype or ("bf16" if device.type == "cuda" else "fp32")


def room_bytes(
    spec: ModelSpec, request: ResolvedRequest, placement: Placement, local_ranks: int | None = None
) -> dict[str, int]:
    """Return the memory, in bytes, that the fullest device needs (by an estimate), and what it has.

    Keys of the result: "weights" and "peak" for what the device needs, "total" for what it has. local_ranks:
    number of ranks that share this machine's memory, if there is no GPU; None: all ranks.
    """
    device, dtype = where_and_how(request.dtype)
    itemsize = DTYPES[dtype].itemsize
    by_rank = method_of(request).memory_by_rank(placement, placement.tiled(request, spec), spec, itemsize)
    sharing = 1 if device.type == "cuda" else local_ranks or placement.ranks
    room = on_one_device(by_rank, sharing)
    if device.type == "cpu" and spec.is_stored_in(itemsize):
        # Processes on one machine share the pages of the weights' files.
        twice = max(0, room["weights"] - spec.weight_bytes(itemsize))
        room = {part: size - twice for part, size in room.items()}
    return {**room, "total": total_memory_bytes(device)}


def check_memory(
    spec: ModelSpec,
    request: ResolvedRequest,
    placement: Placement | None = None,
    local_ranks: int | None = None,
    *,
    known: tuple[str, ...] | None = None,
) -> str | None:
    """Return a warning if a resolved request may need more memory than a device has; None if it fits.

    The warning says with which options the request would fit. local_ranks: number of ranks that share this
    machine's memory; None: all ranks. known: names of the command-line options that the warning may advise;
    None: all options of `paradit generate`. Raises InputError if the weights alone need more memory, or if
    the estimate is more than `scheduling.fitting.SURELY` times what the device has.
    """
    placement = placement or Placement()
    room = room_bytes(spec, request, placement, local_ranks)
    if room["peak"] <= room["total"]:
        return None
    device, dtype = where_and_how(request.dtype)
    place = f"{'the GPU' if device.type == 'cuda' else 'this machine'} has {room['total'] / 1e9:.1f} GB"
    each = ""
    if placement.ranks > 1:
        number = local_ranks or placement.ranks
        each = " on the fullest rank" if device.type == "cuda" else f" on {number} ranks"
    options = _fitting_options(spec, request, placement, local_ranks)
    if room["weights"] > room["total"]:
        raise InputError(
            f"model {spec.name!r} needs {room['weights'] / 1e9:.1f} GB for its weights in {dtype}{each}, "
            f"but {place}" + _advice(options, known, "; fits with ")
        )
    tiled = placement.tiled(request, spec)
    by_rank = method_of(request).memory_by_rank(placement, tiled, spec, DTYPES[dtype].itemsize)
    said = (
        f"about {room['peak'] / 1e9:.1f} GB of memory will be needed{each}, but {place}; most is for "
        f"{PARTS[largest_part(by_rank)]}"
        + _advice(options or "a smaller --size only", known, "; it fits with ")
    )
    return _judged(room["peak"], room["total"], said, f"{_size(request)} is too much: ")


def check_decode_memory(request: ResolvedRequest, spec: ModelSpec) -> str | None:
    """Return a warning if the decode of a request may need more memory than a device has; None if it fits.

    Raises InputError if the estimate is more than `scheduling.fitting.SURELY` times what the device has.
    """
    total = total_memory_bytes(where_and_how(None)[0])

    def needed(tiled: ResolvedRequest) -> int:
        size = tiled.num_frames, tiled.height, tiled.width
        return spec.rank_memory_bytes(*size, FP32_BYTES, ("decode",), tile=tiled.vae_tile)["peak"]

    if needed(request) <= total:
        return None
    tile = fitting_tile(request, spec, lambda tiled: needed(tiled) <= total)
    said = (
        f"the decode of {request.width}x{request.height} needs about {needed(request) / 1e9:.1f} GB of "
        f"memory, but there are {total / 1e9:.1f}"
    )
    return _judged(needed(request), total, said + (f": it fits with --vae-tile {tile}" if tile else ""))


def _judged(needed: int, total: int, said: str, refused: str = "") -> str:
    """Return the warning `said`, that a video may need too much memory; raise InputError if it surely does.

    needed: estimated bytes. total: bytes that the device has. refused: text that the error puts before the
    warning.
    """
    if needed > SURELY * total:
        raise InputError(f"{refused}{said}")
    return said


def _advice(options: str, known: tuple[str, ...] | None, with_them: str) -> str:
    """Return the end of a message about too little memory, which advises command-line options.

    options: options with which the video would fit; empty if there are none. known: names of the only options
    that the present command accepts; None: all of `paradit generate`. with_them: text to put before the
    options.
    """
    if known is None or (options and set(re.findall(r"--[a-z-]+", options)) <= set(known)):
        return f"{with_them}{options}" if options else ""
    anew = f", or run `paradit generate` again with {options}" if options else ""
    return f": use a machine with more memory{anew}"


def _fitting_options(
    spec: ModelSpec, request: ResolvedRequest, placement: Placement, local_ranks: int | None
) -> str:
    """Return options with which a request that needs too much memory would fit; empty if there are none."""
    device, dtype = where_and_how(request.dtype)

    def fits(changed: ResolvedRequest, other: Placement) -> bool:
        needed = room_bytes(spec, changed, other, local_ranks)
        return needed["peak"] <= needed["total"]

    more = device.type == "cuda" and local_ranks is None  # in one shared memory, more ranks need more
    most_ranks = num_gpus() if more else placement.ranks
    return options_that_fit(request, spec, placement, fits, most_ranks=most_ranks, halve=dtype == "fp32")


def _size(request: ResolvedRequest) -> str:
    frames = "" if request.endless else f", {request.num_frames} frames"
    return f"{request.width}x{request.height}{frames}"
