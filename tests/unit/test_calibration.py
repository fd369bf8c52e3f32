"""Calibration: recovery of known figures from the measurements that they imply; and a real measurement."""

from dataclasses import replace
from pathlib import Path

import pytest

from paradit.models.wan.spec import transformer_spec
from paradit.models.wan.vae_spec import vae_spec
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
    fit_link,
    fit_neighbours,
    neighbours_of,
    slowest_pair,
)

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
    dense={"bf16": 2e9, "fp32": 9e10},  # without instructions for bf16
    memory_bandwidth=1e10,
    memory=8e9,
    multiprocessors=0.5,
    ahead=False,
    efficiency={**GPU.efficiency, "flash": {"bf16": 30.0, "fp32": 0.8}, "convolution": 60.0},
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
        found += [
            Decode(vae_spec({"base_dim": channels}), (5, 64 * scale, size * scale)) for size in (64, 128)
        ]
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
