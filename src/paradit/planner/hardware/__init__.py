"""Devices, links and how machines are made of them, read from data files. Torch-free.

`8xL40` is a machine of eight; `2x8xH100` two machines of eight (`notation.py`). A name may also be that of a
`.toml` file: what `paradit calibrate` measured on a machine. It has tables as in devices.toml and links.toml,
a device `this`, and `ranks`:

    ranks = 8                    # devices of a machine
    machines = 1
    [devices.this]               # as in devices.toml; `reach` as measured, where it differs by dtype
    [links.within]               # as in links.toml
    [links.pair]                 # of neighbours (0 and 1, 2 and 3, ...), where they have a link of their own
    [residuals]                  # what was measured, and what the formulas say of it; for people
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from paradit.config.errors import InputError
from paradit.config.limits import MAX_RANKS, amount, whole
from paradit.files import read_text
from paradit.planner.hardware.notation import read_gpus

MOST = 1e30
"""The largest figure of a device or a link: one that stands for no limit."""
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

    def __post_init__(self) -> None:
        """Raise InputError for a figure that is not a number, or not one of its kind."""
        parts = {f"reach of {part}": one for part, one in self.reach.items()}
        above = {"memory_bandwidth": self.memory_bandwidth, "memory": self.memory, "units": self.units}
        _check_figures({**above, "dense": self.dense, **parts})
        least = ("message_units", "launch", "softmax", "narrow", "posting")
        _check_figures({name: getattr(self, name) for name in least}, zero=True)

    def check_dtype(self, dtype: str) -> None:
        """Raise InputError for a dtype that the device does not compute in."""
        if dtype not in self.dense:
            has = " or ".join(self.dense)
            raise InputError(f"dtype {dtype} is not one that a {self.name} computes in: use dtype {has}")

    def rate(self, kind: str, dtype: str) -> float:
        """FLOP/s that large kernels of a kind (`product`, `flash`, `efficient`, `convolution`) reach."""
        reach = self.reach[kind]
        return self.dense[dtype] * (reach[dtype] if isinstance(reach, Mapping) else reach)

    def attention_rate(self, kernel: str, dtype: str, head_dim: int) -> float:
        """FLOP/s of an attention kernel's two products: the narrower the heads, the more is besides them."""
        computed = -(-head_dim // HEAD_MULTIPLE) * HEAD_MULTIPLE
        return self.rate(kernel, dtype) * head_dim / (computed + self.softmax)

    def convolution_rate(self, dtype: str) -> float:
        """FLOP/s that large convolutions reach.

        torch lets cuDNN use TF32 for those in fp32, at half the rate of bf16. What has bf16 has TF32.
        """
        if "bf16" not in self.dense:
            return self.rate("convolution", dtype)
        return self.rate("convolution", "bf16") / (2.0 if dtype == "fp32" else 1.0)

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

    def __post_init__(self) -> None:
        """Raise InputError for a figure that is not a number, or not one of its kind."""
        rates = {name: getattr(self, name) for name in ("bandwidth", "peer", "shared", "copy")}
        _check_figures({name: rate for name, rate in rates.items() if rate is not None})
        _check_figures({"latency": self.latency}, zero=True)


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

    def __post_init__(self) -> None:
        """Raise InputError for more devices than are planned for."""
        whole("machines", self.machines, most=MAX_RANKS)
        whole("ranks", self.devices, most=MAX_RANKS // self.machines)

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


def _check_figures(figures: Mapping[str, Any], *, zero: bool = False) -> None:
    """Raise InputError for one, or one by dtype, that is not above zero; with `zero`, that is below."""
    for name, value in figures.items():
        for one in value.values() if isinstance(value, Mapping) else (value,):
            if not (zero and one == 0):
                amount(name, one, most=MOST)


def are_neighbours(rank: int, other: int) -> bool:
    """Whether two ranks of a machine are such as have a link of their own, if any have."""
    return rank // 2 == other // 2


def known_devices() -> list[str]:
    """Names of the devices in devices.toml."""
    return [name for name in _table("devices") if name != "defaults"]


def find_cluster(name: str) -> Cluster:
    """A cluster by its notation, or from a `.toml` file. Raises InputError."""
    if name.endswith(".toml"):
        return _read_machine(Path(name))
    tables, links = _table("devices"), _table("links")
    machines, devices, key = read_gpus(name, {key: tables[key] for key in known_devices()})
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
        content = tomllib.loads(read_text(path))
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
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"gpus {str(path)!r} has a value that cannot be used: {error}") from None


def _table(name: str) -> dict[str, Any]:
    text = (resources.files(__name__) / f"{name}.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)
