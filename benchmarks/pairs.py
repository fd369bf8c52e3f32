"""Pairs of live processes that take turns on command, for comparisons within one run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from links import Host


class Pair:
    """Two ranks, of one thread each, that run `script --worker NAME ... rank address`."""

    def __init__(self, script: str, arguments: list[str], hosts: list[Host], port: int) -> None:
        address = f"{hosts[0].address}:{port}"
        self._name = " ".join(arguments)
        self._ranks = [
            subprocess.Popen(
                [*host.prefix, sys.executable, script, "--worker", *arguments, str(rank), address],
                env=host.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank, host in enumerate(hosts)
        ]
        self.ready = self._hear("ready")
        """Values that the ranks reported when they were ready, by rank."""

    def take(self, what: str = "") -> dict[str, float]:
        """Let both ranks do `what` once; return the larger of their seconds and of their other figures."""
        for rank in self._ranks:
            assert rank.stdin is not None
            rank.stdin.write(f"{what}\n")
            rank.stdin.flush()
        said = self._hear("took")
        return {key: max(one[key] for one in said) for key in said[0]}

    def _hear(self, key: str) -> list[Any]:
        said = []
        for rank in self._ranks:
            assert rank.stdout is not None
            for line in rank.stdout:
                if line.startswith(f'{{"{key}"'):
                    said.append(json.loads(line)[key])
                    break
            else:
                raise RuntimeError(f"{self._name}: a rank ended")
        return said

    def close(self) -> None:
        for rank in self._ranks:
            rank.kill()
            rank.wait()


def join(rank: int, address: str) -> None:
    """Join the pair's gloo group as one rank, pinned to a core of its own, as on two hosts."""
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {rank})
    dist.init_process_group("gloo", init_method=f"tcp://{address}", rank=rank, world_size=2)


def serve(ready: Any, take: Callable[[str], object]) -> None:
    """Report `ready`, then do what each line of stdin names, and report how long it took."""
    print(json.dumps({"ready": ready}), flush=True)
    for line in sys.stdin:
        # Both ranks begin to measure at once.
        dist.barrier()
        start, cpu = time.perf_counter(), time.process_time()
        take(line.strip())
        took = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
        print(json.dumps({"took": took}), flush=True)
