"""Measurements on real ranks: links between neighbours, and a machine that is measured and planned for."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from paradit.attention.registry import Choice
from paradit.cli.calibrate import calibrate as calibrate_command
from paradit.cli.commands.calibrate_options import CalibrateOptions
from paradit.config.methods.method import resolve
from paradit.config.placement import Placement
from paradit.config.requests import Request
from paradit.distributed import timing
from paradit.distributed.transport import Transfer, Transport
from paradit.distributed.world import World
from paradit.engine import microbenchmarks
from paradit.engine.links import measure_pairs
from paradit.engine.microbenchmarks import Calibration, Sizes, calibrate, measure
from paradit.engine.this_machine import calibrated_cluster, calibrated_file
from paradit.models.published import published_spec
from paradit.planner.calibration import fit_device, machine_file
from paradit.planner.hardware import find_cluster
from paradit.planner.messages import (
    Messages,
    crowded,
    fit_link,
    neighbours_of,
    slowest_pair,
)
from paradit.planner.simulate import Candidate, Simulator
from paradit.progress import Event, Progress, StageEnded
from paradit.testing import run_world


class Slowed(Transport):
    """Transport over gloo on a clock of its own, which every byte advances by what it takes to that rank."""

    def __init__(self, world: World, each_byte: Callable[[int, int], float]) -> None:
        super().__init__(world.group or dist.group.WORLD, world.ranks)
        self._each_byte = each_byte
        self.now = 0.0

    def clock(self, _: torch.device) -> float:
        return self.now

    def start(self, outgoing: list[Tensor], sizes: Sequence[int]) -> Transfer:
        taken = [
            self._each_byte(self.rank, rank) * tensor.nbytes
            for rank, tensor in enumerate(outgoing)
            if rank != self.rank
        ]
        self.now += max(taken)
        return super().start(outgoing, sizes)


def measured_pairs(world: World, size: int) -> None:
    def bridged(rank: int, other: int) -> float:
        return (0.015 if rank // 2 == other // 2 else 0.12) / size

    for each_byte, are_bridged in ((bridged, True), (lambda *_: 0.03 / size, False)):
        slowed = Slowed(world, each_byte)
        timing.now = partial(Slowed.clock, slowed)
        found = measure_pairs(slowed, size, world.device)
        assert {pair: len(times) for pair, times in found.items()} == {
            (0, 1): 2,
            (1, 2): 2,
            (2, 3): 2,
            (3, 0): 2,
        }
        own = neighbours_of(found)
        assert (own is not None) == are_bridged, found
        slowest = slowest_pair(found, neighbours_too=False) * size
        assert slowest == pytest.approx(0.12 if are_bridged else 0.03, rel=1e-3)


def test_bridges_are_measured() -> None:
    run_world(measured_pairs, 4, 2**14)


TINY = Sizes(
    products=[(16, 32), (64, 64)],
    attentions=[(2, 32, 64, 32)],
    blocks=[(2, 16, (1, 2, 2)), (2, 32, (3, 4, 4))],
    decodes=[(16, (1, 16, 16)), (32, (1, 16, 16))],
    copy_bytes=2**16,
    message_bytes=2**12,
)


class Heard(Progress):
    def __init__(self) -> None:
        super().__init__(self.hear)
        self.done: list[str] = []

    def hear(self, event: Event) -> None:
        if isinstance(event, StageEnded):
            assert event.seconds > 0
            self.done.append(event.stage)


def measured_briefly(world: World, progress: Progress, sizes: Sizes) -> Calibration:
    """Run all benchmarks with fewer and shorter timings, on a rank."""
    vars(microbenchmarks).update(TURNS=3, EXCHANGES=2, LEAST_SECONDS=0.002)
    return measure(world, progress, sizes)


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_machine_is_measured_and_planned_for(
    ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(microbenchmarks, "measure", measured_briefly)
    report = Heard()
    found = calibrate(ranks, report, TINY)
    assert report.done == ["computing"] + ["messages"] * (ranks > 1)
    assert (found.messages is None) == (ranks == 1)
    device = fit_device(found.measured, found.copies, "a test")
    link = fit_link(found.messages, found.copies, ranks)
    path = tmp_path / "machine.toml"
    messages = Messages(latency=0.0, pair=1.0, all=1.0, crowding=0.25, posting=0.004)
    path.write_text(machine_file(crowded(device, messages), link, ranks, found.measured, ["a test"]))

    cluster = find_cluster(str(path))
    assert cluster.ranks == ranks
    assert cluster.device.crowding == pytest.approx(0.25, rel=1e-4)
    assert cluster.device.posting == 0.004
    for kind in ("product", "flash", "convolution"):
        assert cluster.device.rate(kind, "bf16") == pytest.approx(device.rate(kind, "bf16"), rel=1e-4)
    assert (cluster.link.latency, cluster.link.bandwidth) == pytest.approx(
        (link.latency, link.bandwidth), rel=1e-4
    )
    spec = published_spec("Wan2.1-T2V-1.3B-Diffusers")
    request = resolve(Request(prompt="any", width=96, height=96, num_frames=5), spec)
    way = Candidate(placement=Placement(ranks=ranks))
    assert Simulator(cluster, spec, request, "fp32").simulate(way, 2, Choice.of("ulysses")).seconds > 0


def test_the_command_keeps_what_it_has_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(microbenchmarks, "measure", measured_briefly)
    monkeypatch.setattr(microbenchmarks, "calibrate", partial(calibrate, sizes=TINY))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert calibrated_cluster(1) is None
    calibrate_command(CalibrateOptions(output=tmp_path / "machine.toml", ranks=1))
    assert calibrated_file(1).read_bytes() == (tmp_path / "machine.toml").read_bytes()
    found = calibrated_cluster(1)
    assert found is not None
    assert found.ranks == 1
    assert calibrated_cluster(2) is None
    # An unreadable file counts as missing.
    calibrated_file(1).write_text("ranks = 1")
    assert calibrated_cluster(1) is None
