"""Two hosts for ranks: this machine's loopback, or two network namespaces with a link of limited rate."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Host:
    """Where a process runs: a command prefix, its environment, and its address."""

    prefix: list[str]
    interface: str
    address: str

    @property
    def environment(self) -> dict[str, str]:
        # What was quickest over another link does not count: nothing is remembered.
        own = {"GLOO_SOCKET_IFNAME": self.interface, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": os.devnull}
        return {**os.environ, **own}


@contextmanager
def loopback() -> Iterator[list[Host]]:
    yield [Host([], "lo", "127.0.0.1")] * 2


@contextmanager
def two_hosts(rate: str) -> Iterator[list[Host]]:
    """Two namespaces joined by one link whose both directions carry at most `rate`, such as `1gbit`."""
    names = ["paradit0", "paradit1"]
    # Packets, and the bucket, are large: frames of 1,500 bytes would cost the processor what a network card
    # does by itself, and the ranks share this machine's.
    shape = ["tbf", "rate", rate, "burst", "256kb", "latency", "50ms"]
    _take_down(names)  # a run that was killed leaves them
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
