"""Parser of texts that name devices and their number, as people write them.

Examples: `8xL40`, `2x8xH100` (two machines), "8 x RTX 4090", `H100*8`, "NVIDIA A100-SXM4-80GB". A name may
include the device's maker, its memory, and whether it is a module or a card; what it includes must be true of
the device.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from paradit.config.errors import InputError
from paradit.config.limits import MAX_RANKS, digits, shown

_BY = r"\s*[xX*\u00d7]\s*"
_NAMED = re.compile(r"[^\W\d_xX]|\d{3}")
"""Regular expression that a device's name must match: it contains a letter, or a number such as 4090."""
_COUNTS_FIRST = re.compile(rf"(?:(?:(?P<machines>\d+){_BY})?(?P<devices>\d+)(?:{_BY}|\s+))?(?P<name>.+)")
_COUNT_LAST = re.compile(rf"(?P<name>.+?){_BY}(?P<devices>\d+)")
_NOISE = re.compile(r"nvidia|amd|geforce|tesla|instinct|rtx|gpus?|tensor|core|generation|hbm\w*|gddr\w*")
_MODULE, _CARD = re.compile(r"sxm\d?|oam"), re.compile("pcie")
_SIZE = re.compile(r"(\d+)gi?b?")


def read_gpus(text: str, devices: Mapping[str, Mapping[str, Any]]) -> tuple[int, int, str]:
    """Parse a text such as `2x8xH100` into (machines, devices per machine, key in `devices`).

    Raises InputError if the text is not valid, or the device is not known.
    """
    if not _NAMED.search(text):
        raise InputError(
            f"gpus must be written like 8xL40 or 2x8xH100, or name a .toml file, got {shown(text)}"
        )
    readings = list(_readings(" ".join(text.split())))
    for machines, number, name in readings:
        if (key := _find(name, devices)) is None:
            continue
        if not 1 <= machines * number <= MAX_RANKS:
            raise InputError(f"gpus must be 1 to {MAX_RANKS} in all, got {shown(text)}")
        return machines, number, key
    # A number that is too large to be a count, such as 4090, belongs to the name.
    name = next(name for machines, number, name in readings if machines * number <= MAX_RANKS)
    raise InputError(_unknown(name, devices))


def _readings(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield the possible readings of a text such as `8xL40`, as (machines, devices, device name).

    A number may be a count or the name of a device, as in `4090`.
    """
    for pattern in (_COUNTS_FIRST, _COUNT_LAST):
        if (match := pattern.fullmatch(text)) is not None:
            counts = {name: value for name, value in match.groupdict().items() if value is not None}
            yield digits(counts.get("machines", "1")), digits(counts.get("devices", "1")), match["name"]
    yield 1, 1, text


def _find(name: str, devices: Mapping[str, Mapping[str, Any]]) -> str | None:
    wanted, size, forms = _parts(name)
    for key, device in devices.items():
        own, own_size, _ = _parts(key)
        is_card = device["link"].startswith("pcie")
        if (
            wanted == own
            and (size or own_size or device["size"]) == device["size"]
            # A100 means the usual size; A100-40GB must be asked for by its size.
            and (own_size is None or size == own_size)
            and forms <= ({"card"} if is_card else {"module"})
        ):
            return key
    return None


def _parts(name: str) -> tuple[str, int | None, set[str]]:
    """Split a device name into its model name, the memory that it states (GB, or None), and its form factors.

    The model name leaves out the maker and the like. A form factor is "module" (SXM, OAM) or "card" (PCIe).
    """
    # Each fact becomes one word: "80 GB" is joined, "RTX4090" and "H100SXM5" are split.
    text = re.sub(r"(\d)\s+(gi?b)\b", r"\1\2", name.lower())
    text = re.sub(r"^rtx(?=\w)|(?<=\w)(?=sxm\d?\b)", " ", text)
    rest, size, forms = "", None, set()
    for word in re.split(r"[\s_-]+", text):
        if (match := _SIZE.fullmatch(word)) is not None:
            size = digits(match[1])
        elif _MODULE.fullmatch(word):
            forms.add("module")
        elif _CARD.fullmatch(word):
            forms.add("card")
        elif not _NOISE.fullmatch(word):
            rest += word
    return rest, size, forms


def _unknown(name: str, devices: Mapping[str, Mapping[str, Any]]) -> str:
    def likeness(key: str) -> tuple[float, float]:
        pairs = ((_parts(name)[0], _parts(key)[0]), (name, key.lower()))
        base, whole = (difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)
        return -base, -whole

    known = sorted(devices, key=likeness)
    return f"device {shown(name)} is not known; known devices, the nearest first: {', '.join(known)}"
