"""Hardware as data: devices, links, and clusters made of them, read from TOML files. Imports no torch.

Clusters are named by text (`notation.py`): `8xL40` is a machine of eight devices; `2x8xH100` is two machines
of eight. A name may also be the path to a machine file: a `.toml` file of figures that `paradit calibrate`
measured. Such a file has these keys and tables:

    ranks = 8                    # devices of a machine
    machines = 1
    [devices.this]               # as in devices.toml; `efficiency` as measured, by dtype if it differs
    [links.within]               # as in links.toml
    [links.pair]                 # of neighbours (0 and 1, 2 and 3, ...), if they have their own link
    [residuals]                  # measured and predicted times; for people
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from paradit.config.errors import InputError
from paradit.config.limits import MAX_RANKS, shown, whole
from paradit.config.options import (
    ABOVE_ZERO,
    Declared,
    Option,
    all_fields,
    check,
    decode,
    former_names,
    named,
    with_new_names,
)
from paradit.files import read_text
from paradit.planner.hardware.notation import read_gpus

MOST = 1e30
"""Largest value that a hardware figure may have; large enough to mean "no limit"."""
HEAD_MULTIPLE = 16
"""Multiple to which attention kernels pad the channels of a head: the width of vector and tensor cores."""
_LINKS = ("link", "pair", "network")
"""Keys of a device's TOML table that are not fields of `Device`, because they name the links between such
devices. (The key `size`, the memory in GB by which people name a device, is no field either.)"""
Figure = Annotated[float, Option(least=ABOVE_ZERO, most=MOST)]
FigureOrNone = Annotated[float, Option(least=0, most=MOST)]


@dataclass(frozen=True, kw_only=True)
class Device:
    """Performance figures of one model of GPU, or of a CPU; devices.toml describes the fields."""

    name: str
    dense: Annotated[Mapping[str, float], Option(least=ABOVE_ZERO, most=MOST)]
    memory_bandwidth: Figure
    memory: Figure
    multiprocessors: Annotated[float, Option(formerly=("units",), least=ABOVE_ZERO, most=MOST)]
    message_multiprocessors: Annotated[float, Option(formerly=("message_units",), least=0, most=MOST)]
    launch: FigureOrNone
    ahead: bool
    softmax: FigureOrNone = 0.0
    narrow: FigureOrNone
    posting: FigureOrNone = 0.0
    efficiency: Annotated[
        Mapping[str, float | Mapping[str, float]],
        Option(formerly=("reach",), least=ABOVE_ZERO, most=MOST),
    ]
    """Mapping from each kind of kernel to its efficiency, the fraction of the device's peak rate that the
    kernels reach. An efficiency is one number, or one number for each dtype."""
    source: str

    def __post_init__(self) -> None:
        """Raise InputError if a figure of the device is out of range, or is missing for a dtype."""
        check(self)
        if not {"bf16", "fp32"} & set(self.dense):
            raise InputError(f"dense must have bf16 or fp32, got {shown(dict(self.dense))}")
        for part, efficiency in self.efficiency.items():
            if isinstance(efficiency, Mapping) and (
                part == "memory" or self.dense.keys() - efficiency.keys()
            ):
                wanted = "a number" if part == "memory" else "a number, or one for each dtype"
                raise InputError(f"efficiency of {part} must be {wanted}, got {shown(efficiency)}")

    def check_dtype(self, dtype: str) -> None:
        """Raise InputError if the device does not compute in a dtype."""
        if dtype not in self.dense:
            has = " or ".join(self.dense)
            raise InputError(f"a {self.name} does not compute in dtype {dtype}: use dtype {has}")

    @property
    def usual_dtype(self) -> str:
        """Dtype in which models run on the device unless they are asked for another: fp32 on a CPU."""
        return "bf16" if self.ahead else "fp32"

    def rate(self, kind: str, dtype: str) -> float:
        """Return the FLOP/s that large kernels of one kind achieve in a dtype.

        kind: `product`, `convolution`, or `flash` or `efficient` attention.
        """
        efficiency = self.efficiency[kind]
        return self.dense[dtype] * (efficiency[dtype] if isinstance(efficiency, Mapping) else efficiency)

    def attention_rate(self, kernel: str, dtype: str, head_dim: int) -> float:
        """Return the FLOP/s that an attention kernel achieves in its matrix products.

        Heads with few channels achieve less, because the work of the softmax does not depend on the number of
        channels.
        """
        computed = -(-head_dim // HEAD_MULTIPLE) * HEAD_MULTIPLE
        return self.rate(kernel, dtype) * head_dim / (computed + self.softmax)

    def convolution_rate(self, dtype: str) -> float:
        """Return the FLOP/s that large convolutions reach in a dtype.

        For fp32 this is half the rate of bf16, on devices that have bf16: torch lets cuDNN compute fp32
        convolutions in TF32, which such devices have too.
        """
        if "bf16" not in self.dense:  # no TF32 either
            return self.rate("convolution", dtype)
        return self.rate("convolution", "bf16") / (2.0 if dtype == "fp32" else 1.0)

    @property
    def copy_rate(self) -> float:
        """Bytes/s at which large kernels read or write device memory."""
        efficiency = self.efficiency["memory"]
        assert not isinstance(efficiency, Mapping)
        return self.memory_bandwidth * efficiency

    @property
    def crowding(self) -> float:
        """Slowdown of computing while messages travel, as a fraction of the computing time."""
        left = self.multiprocessors - self.message_multiprocessors
        return self.message_multiprocessors / left if left > 0 else 0.0

    def filled(self, tiles: float) -> float:
        """Return the fraction of its full rate that a kernel reaches if its work consists of `tiles` tiles.

        A tile is what a streaming multiprocessor computes at once; a wave is one tile for each
        multiprocessor. A kernel's last wave is half empty on average, which slows small kernels down.
        """
        return tiles / (tiles + self.multiprocessors / 2)


@dataclass(frozen=True, kw_only=True)
class Link:
    """Performance figures of one kind of link between devices; links.toml describes the fields."""

    name: str
    latency: FigureOrNone
    bandwidth: Figure
    peer: Annotated[float | None, Option(least=ABOVE_ZERO, most=MOST)] = None
    shared: Annotated[float | None, Option(least=ABOVE_ZERO, most=MOST)] = None
    copy: Annotated[float | None, Option(least=ABOVE_ZERO, most=MOST)] = None
    source: str = ""

    def __post_init__(self) -> None:
        """Raise InputError if a figure of the link is out of range."""
        check(self)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Cluster of equal machines of equal devices. Ranks are numbered machine by machine."""

    device: Device
    devices: int
    """Number of devices in a machine."""
    machines: int = 1
    link: Link
    """Link between devices of a machine."""
    pair: Link | None = None
    """Link between neighbouring devices (0 and 1, 2 and 3, ...), if they have one of their own."""
    network: Link
    """Link between machines."""

    def __post_init__(self) -> None:
        """Raise InputError if the cluster has more devices than the planner supports."""
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
        """Return the link over which messages from one rank to another travel."""
        if sender // self.devices != receiver // self.devices:
            return self.network
        if self.pair is not None and are_neighbours(sender, receiver):
            return self.pair
        return self.link

    def transfer(
        self, ranks: Sequence[int], sent: Sequence[Sequence[float]]
    ) -> tuple[dict[str, float], float]:
        """Return how long an exchange of data takes: (busy seconds of each resource, latency in seconds).

        All ranks send at the same time: `sent[i][j]` bytes go from the i-th to the j-th of `ranks`. A
        resource is one direction of one rank's port, the path between two ranks, or the host that all ranks
        of a machine share.
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
                    # A message between machines passes through both hosts.
                    machines = {sender // self.devices, receiver // self.devices}
                    for machine in sorted(machines):
                        host = f"{link.name} of machine {machine}"
                        busy[host] = busy.get(host, 0.0) + size / link.shared
        return busy, latency


def are_neighbours(rank: int, other: int) -> bool:
    """Return whether two ranks form one of the pairs (0, 1), (2, 3), ..., which may have their own link."""
    return rank // 2 == other // 2


def known_devices() -> list[str]:
    """Return the names of the devices in devices.toml."""
    return [name for name in _table("devices") if name != "defaults"]


def find_cluster(name: str) -> Cluster:
    """Return the cluster that a name such as `8xL40`, or the path of a machine file, stands for.

    Raises InputError if the name or the file is not valid.
    """
    if name.endswith(".toml"):
        return _read_machine(Path(name))
    tables, links = _table("devices"), _table("links")
    machines, devices, key = read_gpus(name, {key: tables[key] for key in known_devices()})
    return _cluster(key, tables, links, devices, machines)


def _cluster(
    name: str, tables: Mapping[str, Any], links: Mapping[str, Any], devices: int, machines: int
) -> Cluster:
    defaults = tables["defaults"]
    table = defaults | with_new_names(tables[name], former_names(all_fields(Device).values()))
    efficiency = all_fields(Device)["efficiency"].read(table["efficiency"])
    assert isinstance(efficiency, dict)
    if unknown := efficiency.keys() - defaults["efficiency"].keys():
        raise InputError(
            f"unknown efficiency {shown(min(unknown))}; known: {', '.join(defaults['efficiency'])}"
        )
    figures = {key: value for key, value in table.items() if key not in (*_LINKS, "size")}
    device = decode(Device, {**figures, "name": name, "efficiency": {**defaults["efficiency"], **efficiency}})

    def link(kind: str) -> Link | None:
        if kind not in table:
            return None
        wanted = Declared.of(kind, str).read(table[kind])
        if wanted not in links:
            raise InputError(f"the table [links.{wanted}] is missing")
        return decode(Link, {**links[str(wanted)], "name": wanted}, f"links.{wanted}")

    within, network = link("link"), link("network")
    assert within is not None and network is not None
    return Cluster(
        device=device, devices=devices, machines=machines, link=within, pair=link("pair"), network=network
    )


@dataclass(frozen=True, kw_only=True)
class _MachineFile:
    """Content of a machine file: the TOML file of hardware figures that `paradit calibrate` writes."""

    ranks: int
    machines: int = 1
    devices: Mapping[Literal["this"], dict[str, Any]]
    links: Mapping[str, dict[str, Any]]
    residuals: dict[str, Any] = field(default_factory=dict)
    """Measured and predicted times of operations on the machine, for people to read; not used by the
    planner."""


def _read_machine(path: Path) -> Cluster:
    try:
        content = tomllib.loads(read_text(path))
    except OSError as error:
        raise InputError(f"gpus {str(path)!r} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"gpus {str(path)!r} is not valid TOML: {error}") from None
    with named(f"gpus {str(path)!r}"):
        found = decode(_MachineFile, content)
        if "this" not in found.devices:
            raise InputError("the table [devices.this] is missing")
        # In a machine file the links have fixed names, so its device need not name them.
        pair = {"pair": "pair"} if "pair" in found.links else {}
        tables = {**_table("devices"), "this": {"link": "within", **pair, **found.devices["this"]}}
        return _cluster("this", tables, {**_table("links"), **found.links}, found.ranks, found.machines)


def _table(name: str) -> dict[str, Any]:
    text = (resources.files(__name__) / f"{name}.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)
