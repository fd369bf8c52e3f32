"""Devices, links and how machines are made of them, read from data files. Torch-free.

`8xL40` is a machine of eight; `2x8xH100` two machines of eight. A name may also be that of a `.toml` file:
what `paradit calibrate` measured on a machine. It has tables as in devices.toml and links.toml, a device
`this`, and `ranks`:

    ranks = 8                    # devices of a machine
    machines = 1
    [devices.this]               # as in devices.toml; `reach` as measured, where it differs by dtype
    [links.within]               # as in links.toml
    [links.pair]                 # of neighbours (0 and 1, 2 and 3, ...), where they have a link of their own
    [residuals]                  # what was measured, and what the formulas say of it; for people
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from paradit.errors import InputError

MAX_RANKS = 128
HEAD_MULTIPLE = 16
"""Attention kernels compute a head's channels in so many at once: vector and tensor cores are so wide."""
_FIGURES = (
    *("dense", "memory_bandwidth", "memory", "units", "message_units", "launch", "ahead"),
    *("softmax", "narrow", "posting", "source"),
)
_REACH = ("product", "flash", "efficient", "convolution", "memory")


@dataclass(frozen=True, kw_only=True)
class Device:
    """One GPU; see devices.toml for the fields."""

    name: str
    dense: Mapping[str, float]
    memory_bandwidth: float
    memory: float
    units: float
    message_units: float
    launch: float
    ahead: bool
    softmax: float = 0.0
    narrow: float
    posting: float = 0.0
    reach: Mapping[str, float | Mapping[str, float]]
    """A number, or one for each dtype."""
    source: str

    def rate(self, kind: str, dtype: str) -> float:
        """FLOP/s that large kernels of a kind (`product`, `flash`, `efficient`, `convolution`) reach."""
        reach = self.reach[kind]
        return self.dense[dtype] * (reach[dtype] if isinstance(reach, Mapping) else reach)

    def attention_rate(self, kernel: str, dtype: str, head_dim: int) -> float:
        """FLOP/s of an attention kernel's two products: the narrower the heads, the more is besides them."""
        computed = -(-head_dim // HEAD_MULTIPLE) * HEAD_MULTIPLE
        return self.rate(kernel, dtype) * head_dim / (computed + self.softmax)

    @property
    def copy_rate(self) -> float:
        """Bytes/s that are read or written."""
        reach = self.reach["memory"]
        assert not isinstance(reach, Mapping)
        return self.memory_bandwidth * reach

    @property
    def crowding(self) -> float:
        """How much longer computing takes beside messages that travel, in parts of its time."""
        return (
            self.message_units / (self.units - self.message_units) if self.units > self.message_units else 0.0
        )

    def filled(self, tiles: float) -> float:
        """Which part of its rate a kernel of so many tiles reaches: its last wave is half empty, on average.

        A tile is what a streaming multiprocessor computes at once; a wave, one for each of them.
        """
        return tiles / (tiles + self.units / 2)


@dataclass(frozen=True, kw_only=True)
class Link:
    """See links.toml for the fields."""

    name: str
    latency: float
    bandwidth: float
    peer: float | None = None
    shared: float | None = None
    copy: float | None = None
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Equal machines of equal devices. Ranks are counted machine by machine."""

    device: Device
    devices: int
    """In a machine."""
    machines: int = 1
    link: Link
    """Between devices of a machine."""
    pair: Link | None = None
    """Between neighbours, where they have a link of their own."""
    network: Link
    """Between machines."""

    @property
    def ranks(self) -> int:
        return self.devices * self.machines

    @property
    def name(self) -> str:
        machines = f"{self.machines}x" if self.machines > 1 else ""
        return f"{machines}{self.devices}x{self.device.name}"

    def between(self, sender: int, receiver: int) -> Link:
        """The link that messages from one rank to another take."""
        if sender // self.devices != receiver // self.devices:
            return self.network
        if self.pair is not None and are_neighbours(sender, receiver):
            return self.pair
        return self.link

    def transfer(
        self, ranks: Sequence[int], sent: Sequence[Sequence[float]]
    ) -> tuple[dict[str, float], float]:
        """What ranks need to send each other so many bytes at once, `sent[i][j]` from the i-th to the j-th.

        Returns the seconds for which each resource is busy, and the latency. A resource is one direction
        of one rank's port, the way between two ranks, or what all ranks of a machine share.
        """
        busy: dict[str, float] = {}
        latency = 0.0
        for sender, row in zip(ranks, sent, strict=True):
            for receiver, size in zip(ranks, row, strict=True):
                if not size or sender == receiver:
                    continue
                link = self.between(sender, receiver)
                latency = max(latency, link.latency)
                ports = [f"{link.name} out of {sender}", f"{link.name} into {receiver}"]
                for port in ports:
                    busy[port] = busy.get(port, 0.0) + size / link.bandwidth
                if link.peer is not None:
                    busy[f"{link.name} from {sender} to {receiver}"] = size / link.peer
                if link.shared is not None:
                    machines = {sender // self.devices, receiver // self.devices}
                    for machine in sorted(machines):
                        host = f"{link.name} of machine {machine}"
                        busy[host] = busy.get(host, 0.0) + size / link.shared
        return busy, latency


def are_neighbours(rank: int, other: int) -> bool:
    """Whether two ranks of a machine are such as have a link of their own, if any have."""
    return rank // 2 == other // 2


def find_cluster(name: str) -> Cluster:
    """A cluster by its notation, or from a `.toml` file. Raises InputError."""
    if name.endswith(".toml"):
        return _read_machine(Path(name))
    match = re.fullmatch(r"(?:(?:(\d{1,4})x)?(\d{1,4})x)?([A-Za-z][\w-]*)", name.strip())
    if match is None:
        raise InputError(f"gpus are written like 8xL40 or 2x8xH100, or name a .toml file; got {name!r}")
    machines, devices, device = int(match[1] or 1), int(match[2] or 1), match[3]
    if not 1 <= machines * devices <= MAX_RANKS:
        raise InputError(f"gpus must be 1 to {MAX_RANKS} in all, got {name!r}")
    tables, links = _table("devices"), _table("links")
    known = {key.lower(): key for key in tables if key != "defaults"}
    key = known.get(device.lower().replace("-", "").replace("_", ""))
    if key is None:
        close = difflib.get_close_matches(device.lower(), known, n=1)
        hint = f"did you mean {known[close[0]]}? " if close else ""
        raise InputError(
            f"device {device!r} is not known: {hint}known are {', '.join(sorted(known.values()))}"
        )
    return _cluster(key, tables, links, devices, machines)


def _cluster(
    name: str, tables: Mapping[str, Any], links: Mapping[str, Any], devices: int, machines: int
) -> Cluster:
    defaults = tables["defaults"]
    table = defaults | tables[name]
    device = Device(
        name=name,
        reach={part: {**defaults["reach"], **table["reach"]}[part] for part in _REACH},
        **{key: table[key] for key in _FIGURES},
    )

    def link(kind: str) -> Link | None:
        return Link(name=table[kind], **links[table[kind]]) if kind in table else None

    within, network = link("link"), link("network")
    assert within is not None and network is not None
    return Cluster(
        device=device, devices=devices, machines=machines, link=within, pair=link("pair"), network=network
    )


def _read_machine(path: Path) -> Cluster:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        this, own = content["devices"]["this"], content["links"]
        pair = {"pair": "pair"} if "pair" in own else {}
        tables = {**_table("devices"), "this": {"link": "within", **pair, **this}}
        links = _table("links") | own
        return _cluster("this", tables, links, content["ranks"], content.get("machines", 1))
    except OSError as error:
        raise InputError(f"gpus {str(path)!r} cannot be read: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"gpus {str(path)!r} is no TOML: {error}") from None
    except KeyError as error:
        raise InputError(f"gpus {str(path)!r} lacks {error.args[0]!r}") from None
    except (TypeError, ValueError) as error:
        raise InputError(f"gpus {str(path)!r} has a value that cannot be used: {error}") from None


def _table(name: str) -> dict[str, Any]:
    text = (resources.files(__name__) / f"{name}.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)
