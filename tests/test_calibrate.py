"""Calibration: recovery of known figures from the measurements that they imply; and a real measurement."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch.distributed as dist
from torch import Tensor

import paradit.engine.microbenchmarks as calibrate_module
from paradit.attention.registry import Choice
from paradit.cli.calibrate import calibrate as calibrate_command
from paradit.cli.commands.calibrate_options import CalibrateOptions
from paradit.config.methods.method import resolve
from paradit.config.placement import Placement
from paradit.config.requests import Request
from paradit.distributed.transport import Transfer, Transport
from paradit.distributed.world import World
from paradit.engine.links import measure_pairs
from paradit.engine.microbenchmarks import Sizes, calibrate
from paradit.engine.this_machine import calibrated_cluster, calibrated_file
from paradit.models.published import published_spec
from paradit.models.wan.spec import transformer_spec, vae_spec
from paradit.planner.calibration import (
    Attention,
    Block,
    Copies,
    Decode,
    Measured,
    Product,
    Work,
    fit_device,
    machine_file,
    residuals,
)
from paradit.planner.costs import KERNELS
from paradit.planner.hardware import Device, Link, find_cluster
from paradit.planner.messages import (
    Messages,
    PairSeconds,
    crowded,
    fit_link,
    fit_neighbours,
    neighbours_of,
    slowest_pair,
)
from paradit.planner.simulate import Candidate, Simulator
from paradit.progress import Event, Progress, StageEnded
from paradit.testing import run_world

GPU = Device(
    name="this",
    dense={"bf16": 600e12, "fp32": 40e12},
    memory_bandwidth=3e12,
    memory=80e9,
    multiprocessors=132.0,
    message_multiprocessors=0.0,
    launch=5e-6,
    ahead=True,
    softmax=10.0,
    narrow=20.0,
    efficiency={"product": 1.0, "flash": {"bf16": 0.4, "fp32": 0.3}, "convolution": 0.2, "memory": 0.7},
    source="none",
)
CPU = replace(
    GPU,
    dense={"bf16": 2e11, "fp32": 9e10},
    memory_bandwidth=1e10,
    memory=8e9,
    multiprocessors=0.5,
    ahead=False,
    efficiency={**GPU.efficiency, "flash": {"bf16": 0.3, "fp32": 0.8}},
)


def works(scale: int) -> list[Work]:
    def block(heads: int, tokens: int) -> Block:
        config = {"num_attention_heads": heads, "num_layers": 1, "ffn_dim": 512 * heads}
        spec = replace(transformer_spec(config), in_channels=0, out_channels=0, freq_dim=0)
        return Block("bf16", spec, tokens, 32)

    found: list[Work] = []
    for dtype in ("bf16", "fp32"):
        found += [
            Product(dtype, rows, columns, columns)
            for rows in (64 * scale, 1024 * scale)
            for columns in (512, 2048)
        ]
        found += [Attention(dtype, heads, 512 * scale, 2048 * scale, 64 * heads) for heads in (1, 2, 4)]
    found += [block(heads, 256 * scale) for heads in (4, 12, 24)]
    for channels in (16, 48, 96):
        found += [Decode(vae_spec({"base_dim": channels}), (5, 64, size)) for size in (64, 128)]
    return found


@pytest.mark.parametrize(("device", "scale"), [(GPU, 8), (CPU, 1)])
def test_a_device_is_found_again(device: Device, scale: int) -> None:
    config = {"num_attention_heads": 1, "attention_head_dim": 16, "num_layers": 1, "ffn_dim": 64}
    tiny = Block("bf16", replace(transformer_spec(config), num_parameters=0), 1, 1)
    measured = [Measured(work, work.seconds(device)) for work in works(scale)]
    measured.append(Measured(tiny, KERNELS * device.launch))
    copies = Copies(copied=device.memory_bandwidth, memory=device.memory, ahead=device.ahead)
    found = fit_device(measured, copies, "none")
    assert max(map(abs, residuals(measured[:-1], found))) < 0.02
    for dtype in device.dense:
        assert found.rate("product", dtype) == pytest.approx(device.rate("product", dtype), rel=0.02)
        assert found.rate("flash", dtype) == pytest.approx(device.rate("flash", dtype), rel=0.02)
    assert found.softmax == pytest.approx(device.softmax, rel=0.05)
    assert found.multiprocessors == pytest.approx(device.multiprocessors, rel=0.1)
    assert found.narrow == pytest.approx(device.narrow, rel=0.05)


def test_what_ranks_share_is_seen() -> None:
    copies = Copies(copied=1e10, memory=1e9, ahead=True, fetched=2e10)

    def link(pair: float, everyone: float, ranks: int) -> Link:
        return fit_link(Messages(latency=1e-5, pair=pair, all=everyone), copies, ranks)

    assert (link(2e10, 5e9, 4).bandwidth, link(2e10, 5e9, 4).shared) == (2e10, 2e10)
    assert (link(5e9, 2e10, 4).bandwidth, link(5e9, 2e10, 4).peer) == (2e10, 5e9)
    assert (link(5e9, 5e9, 2).shared, link(5e9, 5e9, 2).copy) == (None, 2e10)


BRIDGE, OTHERS = PairSeconds(1e-5, 1 / 45e9), PairSeconds(2e-5, 1 / 14e9)


def pairs(inner: list[PairSeconds], across: list[PairSeconds]) -> dict[tuple[int, int], list[PairSeconds]]:
    return {(0, 1): inner, (1, 2): across, (2, 3): inner, (3, 0): across}


def test_neighbours_with_a_link_of_their_own() -> None:
    slow, quick = PairSeconds(3e-5, 1 / 30e9), PairSeconds(1e-5, 1 / 90e9)
    assert neighbours_of(pairs([BRIDGE, slow], [OTHERS, OTHERS])) == slow
    # Equal links with a single disturbance, even of all pairs at once, must not be taken for bridges.
    for inner, across in [
        ([OTHERS, OTHERS], [OTHERS, OTHERS]),
        ([BRIDGE, BRIDGE], [OTHERS, BRIDGE]),
        ([BRIDGE, OTHERS], [OTHERS, OTHERS]),
        ([OTHERS, OTHERS], [BRIDGE, quick]),
    ]:
        assert neighbours_of(pairs(inner, across)) is None
    assert neighbours_of({(0, 1): [BRIDGE], (1, 2): [OTHERS], (2, 0): [OTHERS]}) is None
    assert neighbours_of({}) is None
    # The slowest pair counts, each by its undisturbed time.
    found = pairs([BRIDGE, OTHERS], [OTHERS, BRIDGE])
    assert slowest_pair(found, neighbours_too=True) == BRIDGE.each_byte
    assert slowest_pair(pairs([BRIDGE], [OTHERS]), neighbours_too=True) == OTHERS.each_byte


@pytest.mark.parametrize("gpus", ["8xA6000", "4xA6000", "8xL40"])
def test_a_machine_with_bridges_is_found_again(gpus: str, tmp_path: Path) -> None:
    machine = find_cluster(gpus)
    ranks, size = machine.ranks, 2.0**28

    def rate(members: list[int]) -> float:
        """Return the bytes/s that each rank sends while these members exchange messages."""
        busy, _ = machine.transfer(members, [[size] * len(members)] * len(members))
        return (len(members) - 1) * size / max(busy.values())

    messages = Messages(
        latency=machine.link.latency,
        pair=rate([1, 2]),
        all=rate([*range(ranks)]),
        neighbours=rate([0, 1]) if machine.pair else None,
        neighbours_latency=machine.pair.latency if machine.pair else None,
    )
    copies = Copies(copied=1e12, memory=48e9, ahead=True)
    link, own = fit_link(messages, copies, ranks), fit_neighbours(messages)
    measured = [Measured(work, work.seconds(GPU)) for work in works(1)]
    path = tmp_path / "machine.toml"
    path.write_text(machine_file(GPU, link, ranks, measured, [], neighbours=own))
    found = find_cluster(str(path))
    assert (found.pair is None) == (machine.pair is None) == ("[links.pair]" not in path.read_text())
    # Messages take as long on the machine that is read back, among all ranks and in pairs.
    for members in ([*range(ranks)], [0, 1], [1, 2], [0, 3]):
        table = [[size] * len(members)] * len(members)
        (ours, latency), (theirs, expected) = (one.transfer(members, table) for one in (found, machine))
        assert max(ours.values()) == pytest.approx(max(theirs.values()), rel=1e-4)
        assert latency == pytest.approx(expected, rel=1e-4)


class Slowed(Transport):
    """Transport over gloo that adds seconds for every byte sent from one rank to another."""

    def __init__(self, world: World, each_byte: Callable[[int, int], float]) -> None:
        super().__init__(world.group or dist.group.WORLD, world.ranks)
        self._each_byte = each_byte

    def start(self, outgoing: list[Tensor], sizes: Sequence[int]) -> Transfer:
        taken = [
            self._each_byte(self.rank, rank) * tensor.nbytes
            for rank, tensor in enumerate(outgoing)
            if rank != self.rank
        ]
        time.sleep(max(taken))
        return super().start(outgoing, sizes)


def measured_pairs(world: World, size: int) -> None:
    def bridged(rank: int, other: int) -> float:
        return (0.015 if rank // 2 == other // 2 else 0.12) / size

    for each_byte, are_bridged in ((bridged, True), (lambda *_: 0.03 / size, False)):
        found = measure_pairs(Slowed(world, each_byte), size, world.device)
        assert {pair: len(times) for pair, times in found.items()} == {
            (0, 1): 2,
            (1, 2): 2,
            (2, 3): 2,
            (3, 0): 2,
        }
        own = neighbours_of(found)
        assert (own is not None) == are_bridged, found
        assert slowest_pair(found, neighbours_too=False) > (0.09 if are_bridged else 0.027) / size


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


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_machine_is_measured_and_planned_for(ranks: int, tmp_path: Path) -> None:
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
    monkeypatch.setattr(calibrate_module, "calibrate", partial(calibrate, sizes=TINY))
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


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "paradit", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-o", "machine.json"), ".toml"),
        (("-o", "there/machine.toml"), "there"),
        (("-o", "x.toml", "--ranks", "0"), "ranks"),
    ],
)
def test_bad_input_gets_one_line(arguments: tuple[str, ...], said: str) -> None:
    done = run("calibrate", *arguments)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert said in done.stderr


def test_the_doctor_finds_what_is_here() -> None:
    done = run("doctor", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["versions"]["torch"]
    assert found["devices"][0]["memory_bytes"] > 0
    assert found["attention_backends"]["native"] == "ready"
    assert set(found["formats"].values()) == {"ready"}
    assert all("error" not in (part if isinstance(part, dict) else ()) for part in found.values())


def test_a_check_that_fails_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import paradit.engine.machine_report as doctor_module
    from paradit.cli.commands.doctor_options import DoctorOptions
    from paradit.cli.doctor import doctor

    def broken() -> None:
        raise OSError("not there")

    for name in ("_devices", "_links", "_formats"):
        monkeypatch.setattr(doctor_module, name, broken)
    doctor(DoctorOptions())
    said = capsys.readouterr().out
    for name in ("devices", "links", "formats"):
        assert f"{name} could not be found out: OSError: not there" in said
    assert "ready: native" in said


def test_the_doctor_answers_without_torch() -> None:
    script = "import sys; sys.modules['torch'] = None; from paradit.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "doctor"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "torch" in done.stdout
