"""Places for ranks: this machine's loopback, a limited one, or two namespaces with a limited link."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Host:
    """Place where a process runs: a command prefix, a network interface and an address."""

    prefix: list[str]
    interface: str
    address: str

    @property
    def environment(self) -> dict[str, str]:
        # Ranks must not remember what was fastest over another link.
        own = {"GLOO_SOCKET_IFNAME": self.interface, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": os.devnull}
        return {**os.environ, **own}


@contextmanager
def loopback() -> Iterator[list[Host]]:
    yield [Host([], "lo", "127.0.0.1")] * 2


@contextmanager
def limited_loopback(rate: str) -> Iterator[list[str]]:
    """Yield a command prefix that runs a program in a namespace whose loopback carries at most `rate`."""
    name = "paradit-lo"
    _take_down([name])
    _ip("netns", "add", name)
    try:
        _ip("-n", name, "link", "set", "lo", "up")
        shape = ["tbf", "rate", rate, "burst", "256kb", "latency", "50ms"]
        _run("ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", "lo", "root", *shape)
        yield ["ip", "netns", "exec", name]
    finally:
        _take_down([name])


@contextmanager
def two_hosts(rate: str) -> Iterator[list[Host]]:
    """Yield two namespaces joined by a link that carries at most `rate`, such as `1gbit`, each way."""
    names = ["paradit0", "paradit1"]
    # Packets and the bucket are large: with frames of 1,500 bytes, the processor, which the ranks need, would
    # do a network card's work.
    shape = ["tbf", "rate", rate, "burst", "256kb", "latency", "50ms"]
    _take_down(names)  # left over from a run that was killed
    _ip("link", "add", "pd0", "type", "veth", "peer", "name", "pd1")
    try:
        for index, name in enumerate(names):
            device = f"pd{index}"
            _ip("netns", "add", name)
            _ip("link", "set", device, "netns", name)
            _ip("-n", name, "addr", "add", f"10.77.0.{index + 1}/24", "dev", device)
            _ip("-n", name, "link", "set", device, "mtu", "65000", "up")
            _ip("-n", name, "link", "set", "lo", "up")
            _run("ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", device, "root", *shape)
        yield [
            Host(["ip", "netns", "exec", name], f"pd{index}", f"10.77.0.{index + 1}")
            for index, name in enumerate(names)
        ]
    finally:
        _take_down(names)


def _take_down(names: list[str]) -> None:
    for name in names:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
    subprocess.run(["ip", "link", "del", "pd0"], check=False, capture_output=True)


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
