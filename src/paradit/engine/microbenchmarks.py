"""Micro-benchmarks of a machine, for the planner: computing, memory, and messages between ranks.

All ranks run them at once, because they share the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from statistics import mean, median
from typing import TypeVar

import torch

from paradit.attention.local_attention import sdpa, unattended
from paradit.config.errors import RankError
from paradit.device_memory import total_memory_bytes
from paradit.distributed.timing import now
from paradit.distributed.transport import Transport
from paradit.distributed.world import World
from paradit.engine.launchers import new_launcher
from paradit.engine.links import largest, measure_pairs, usual_link
from paradit.engine.started_ranks import call_on_ranks
from paradit.models.families import samples
from paradit.parallel.run_blocks import run
from paradit.planner.calibration import (
    Attention,
    Block,
    Copies,
    Decode,
    Measured,
    Product,
    Work,
)
from paradit.planner.messages import Messages, neighbours_of, slowest_pair
from paradit.progress import Progress

T = TypeVar("T")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
TEXT_TOKENS = 32
TURNS, EXCHANGES = 21, 8
"""Number of times that attention is timed beside messages, and number of message exchanges in each timing.

Attention is timed as often without messages. The time of one exchange is the mean over a timing, because
single times vary: a short exchange takes anything from nothing to some milliseconds, and a rank that is late
for one exchange is late for the next ones, too.
"""
SMALL = 8
"""Divisor for the size of small messages: attention is timed beside full-size and beside small messages."""
BESIDE_SECONDS = 0.01
"""Largest number of seconds for which messages may travel while attention is timed beside them.

It limits the size of these messages. The number is small, so that a delay of milliseconds shows.
"""

ROUNDS = 3
"""Number of times that every computation is timed, in turn with the others; the median is used."""
LEAST_SECONDS = 0.1
"""Least number of seconds for which a computation is repeated in one timing, so that all ranks are busy."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Problem sizes of the benchmarks, chosen for a kind of device so that all take about a minute."""

    products: Sequence[tuple[int, int]]
    """Sizes of matrix products to time: (rows, columns) for [rows, columns] times [columns, columns]."""
    attentions: Sequence[tuple[int, int, int, int]]
    """Sizes of attentions to time: (heads, query rows, keys, head dim)."""
    blocks: Sequence[tuple[int, int, tuple[int, int, int]]]
    """Sizes of transformer blocks to time: (heads, head dim, latent shape).

    The first is so small that its time is that of kernel launches.
    """
    decodes: Sequence[tuple[int, tuple[int, int, int]]]
    """Sizes of decodes to time: (channels of the VAE's last level, (frames, height, width) in pixels)."""
    copy_bytes: int
    message_bytes: int


CPU = Sizes(
    products=[(rows, columns) for columns in (192, 384, 768) for rows in (64, 320, 1280)],
    attentions=[
        *((2, 96, 384, 64), (2, 384, 384, 64), (3, 512, 1536, 64), (8, 192, 1536, 64)),
        *((2, 384, 384, 32), (3, 512, 1536, 32), (2, 384, 384, 128), (2, 512, 1536, 128)),
    ],
    blocks=[
        (2, 32, (1, 4, 4)),
        *((4, 48, (5, 16, 16)), (6, 64, (3, 16, 16)), (6, 64, (5, 32, 32)), (12, 64, (3, 32, 32))),
    ],
    decodes=[(16, (5, 64, 64)), (16, (9, 80, 80)), (32, (5, 64, 64)), (96, (5, 32, 32)), (96, (5, 48, 48))],
    copy_bytes=2**26,
    message_bytes=2**23,
)
CUDA = Sizes(
    products=[(rows, columns) for columns in (1536, 3072, 5120) for rows in (256, 2048, 16384)],
    attentions=[
        *((2, 1024, 4096, 128), (12, 4096, 4096, 128), (3, 4096, 16384, 128), (5, 8192, 32768, 128)),
        *((12, 4096, 4096, 64), (3, 16384, 16384, 64)),
    ],
    blocks=[
        (2, 64, (1, 8, 8)),
        *(
            (12, 128, (5, 60, 104)),
            (12, 128, (13, 60, 104)),
            (24, 128, (9, 60, 104)),
            (40, 128, (5, 60, 104)),
        ),
    ],
    decodes=[(96, (5, 256, 256)), (96, (9, 480, 832)), (48, (9, 480, 832)), (160, (9, 256, 256))],
    copy_bytes=2**30,
    message_bytes=2**26,
)


@dataclass(frozen=True)
class Calibration:
    """Measurements of one machine for the planner's predictions: its computing, its memory and its links."""

    measured: list[Measured]
    copies: Copies
    messages: Messages | None
    """Measured latency and rates of messages between the ranks; None if there is one rank."""


def calibrate(ranks: int, report: Progress, sizes: Sizes | None = None) -> Calibration:
    """Measure this machine with this many ranks, each on its own GPU or its share of the CPU's cores.

    sizes: problem sizes; None: the usual ones for the kind of device. Raises RankError if a rank fails.
    """
    return _on_ranks(partial(measure, sizes=sizes), ranks, report)


def calibrate_links(ranks: int, report: Progress) -> Messages:
    """Measure only the links between this many ranks, which compute nothing.

    Raises RankError if a rank fails.
    """
    return _on_ranks(_measure_links, ranks, report)


Measure = Callable[[World, Progress], T]
Prepared = tuple[Work, Callable[[], float]]
"""Pair: description of a computation, and function that runs the computation and returns its seconds."""


def _on_ranks(measure: Measure[T], ranks: int, report: Progress) -> T:
    """Start ranks, run `measure` on all of them, and return the first rank's result.

    Raises RankError if a rank fails.
    """
    launcher, preload = new_launcher(), ["paradit.engine.microbenchmarks"]
    called = call_on_ranks(launcher, ranks, _with_progress, measure, emit=report.emit, preload=preload)
    for rank, why in called.failures.items():
        raise RankError(f"rank {rank}: {why}")
    found: T = called.results[0]
    return found


def _with_progress(world: World, progress: Progress, measure: Measure[T]) -> T:
    return measure(world, progress)


@torch.no_grad()
def measure(world: World, progress: Progress, sizes: Sizes | None = None) -> Calibration:
    """Run all benchmarks, and return their results; each time is that of the slowest rank.

    All ranks call it together. sizes: problem sizes; None: the usual ones for the kind of device.
    """
    transport, device = world.transport(), world.device
    sizes = sizes or _sizes(device)
    measured = _measure_device(transport, device, sizes, progress)
    copies = _measure_copies(transport, device, sizes.copy_bytes)
    messages = None
    if world.size > 1:
        with progress.stage("messages"):
            messages = measure_links(transport, device, sizes.message_bytes)
            posting, crowding = _beside(transport, sizes.message_bytes, device, 1 / messages.all)
            messages = replace(messages, posting=posting, crowding=crowding)
    return Calibration(measured, copies, messages)


@torch.no_grad()
def _measure_links(world: World, progress: Progress) -> Messages:
    with progress.stage("messages"):
        return measure_links(world.transport(), world.device, _sizes(world.device).message_bytes)


def _measure_device(
    transport: Transport, device: torch.device, sizes: Sizes, progress: Progress
) -> list[Measured]:
    """Time matrix products, attention, transformer blocks and decodes, each several times.

    All are timed once before any is timed again: a disturbance of some seconds thus spoils one time of each
    computation, and not the median.
    """
    block_dtype = "fp32" if device.type == "cpu" else "bf16"  # in which models run on this device
    works = [
        *(_product(dtype, size, device) for dtype in DTYPES for size in sizes.products),
        *(_attention(dtype, size, device) for dtype in DTYPES for size in sizes.attentions),
        *(_block(block_dtype, size, device) for size in sizes.blocks),
        *(_decode(size, device) for size in sizes.decodes),
    ]
    taken: list[list[float]] = [[] for _ in works]
    with progress.stage("computing", total=ROUNDS * len(works)):
        for number in range(ROUNDS * len(works)):
            place = number % len(works)
            taken[place].append(_slowest(transport, works[place][1], device))
            progress.step("computing", number + 1)
    return [Measured(work, median(times)) for (work, _), times in zip(works, taken, strict=True)]


def _product(dtype: str, size: tuple[int, int], device: torch.device) -> Prepared:
    rows, columns = size
    left, right = (
        torch.randn(count, columns, dtype=DTYPES[dtype], device=device) for count in (rows, columns)
    )
    return Product(dtype, rows, columns, columns), lambda: _usual(lambda: left @ right, device)


def _attention(dtype: str, size: tuple[int, int, int, int], device: torch.device) -> Prepared:
    heads, rows, keys, head_dim = size
    query, key = (
        torch.randn(1, count, heads, head_dim, dtype=DTYPES[dtype], device=device) for count in (rows, keys)
    )
    return Attention(dtype, *size), lambda: _usual(lambda: sdpa(query, key, key), device)


def _block(dtype: str, size: tuple[int, int, tuple[int, int, int]], device: torch.device) -> Prepared:
    block, tokens, spec = samples().random_block(
        *size, text_tokens=TEXT_TOKENS, dtype=DTYPES[dtype], device=device
    )

    def work() -> object:
        return run(block.run(tokens, unattended()))

    return Block(dtype, spec, tokens.hidden_states.shape[1], TEXT_TOKENS), lambda: _usual(work, device)


def _decode(size: tuple[int, tuple[int, int, int]], device: torch.device) -> Prepared:
    channels, pixels = size
    decode, spec = samples().random_decoder(channels, device)
    latents = torch.randn(1, *spec.latent_shape(*pixels), device=device)
    return Decode(spec, pixels), lambda: _usual(lambda: decode(latents), device)


def _measure_copies(transport: Transport, device: torch.device, size: int) -> Copies:
    """Measure the memory's bandwidth by copies of `size` bytes: on the device, and from the host to a GPU."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = _slowest(transport, lambda: _usual(lambda: target.copy_(source), device), device)
    memory = float(total_memory_bytes(device))
    # A copy reads each byte and writes it: 2 * size. Ranks on a CPU share the machine's memory.
    if device.type == "cpu":
        return Copies(copied=2 * size / copied, memory=memory / transport.num_ranks, ahead=False)
    host = torch.zeros(size, dtype=torch.uint8)  # not pinned, as a model's weights are not
    fetched = _slowest(transport, lambda: _usual(lambda: target.copy_(host), device), device)
    rate = transport.num_ranks * size / fetched  # of the host, from which all ranks fetch at once
    return Copies(copied=2 * size / copied, memory=memory, ahead=True, fetched=rate)


def measure_links(transport: Transport, device: torch.device, size: int) -> Messages:
    """Measure latency and rate of the links between ranks, by messages of `size` bytes.

    First all ranks exchange messages at once, then pairs of ranks, one after another. All ranks call it
    together.
    """
    together = usual_link(transport, size, device)
    # Two ranks are one pair, which has just been measured.
    pairs = measure_pairs(transport, size, device) if transport.num_ranks > 2 else {}
    neighbours = neighbours_of(pairs)
    pair = slowest_pair(pairs, neighbours_too=neighbours is None) if pairs else 0.0
    latency, everyone = (
        largest(transport, one, device) for one in (together.latency, together.seconds_per_byte)
    )
    return Messages(
        latency=latency,
        pair=1 / (pair or everyone),
        all=1 / everyone,
        neighbours=1 / neighbours.each_byte if neighbours else None,
        neighbours_latency=neighbours.latency if neighbours else None,
    )


def _beside(
    transport: Transport, size: int, device: torch.device, seconds_per_byte: float
) -> tuple[float, float]:
    """Measure how much messages slow down attention that runs at the same time; return (posting, crowding).

    posting: seconds that each exchange of messages adds, however small the messages are. crowding: seconds
    added for each second in which messages travel. size: largest size of the messages, in bytes.
    seconds_per_byte: seconds in which one byte travels.
    """
    query = torch.randn(1, 1024, 4, 64, device=device)
    most = int(BESIDE_SECONDS / seconds_per_byte / (transport.num_ranks - 1))
    size = max(SMALL, min(size, most))
    sizes = [size // SMALL, size]
    message = torch.zeros(size, dtype=torch.uint8, device=device)

    def send(size: int) -> Callable[[], object]:
        return transport.start([message[:size]] * transport.num_ranks, [size] * transport.num_ranks).wait

    def once() -> object:
        return sdpa(query, query, query)

    travels = [size * (transport.num_ranks - 1) * seconds_per_byte for size in sizes]
    times = 1 + ceil(2 * travels[-1] / _slowest(transport, lambda: _usual(once, device), device))

    def beside(size: int) -> float:
        """Return the mean seconds of one exchange of messages, with attention computed at the same time.

        The attention begins before the messages, and continues until after they have arrived. size: bytes of
        a message; 0: no messages.
        """
        began = now(device)
        for number in range(EXCHANGES):
            # The length varies, so that exchanges do not begin at equal distances.
            rows = query.shape[1] * (EXCHANGES + 5 * number % EXCHANGES) // (2 * EXCHANGES)
            sdpa(query[:, :rows], query, query)
            wait = send(size) if size else None
            for _ in range(times):
                once()
            if wait is not None:
                wait()
        return (now(device) - began) / EXCHANGES

    turns = [
        [_slowest(transport, partial(beside, size), device) for size in (0, *sizes)] for _ in range(TURNS)
    ]
    # On a CPU, the threads of a rank that send and compute share cores. The exchange that ends last may then
    # take a time slice of the system's scheduler, however few its bytes, because of gloo's locks.
    # The line through both sizes: its slope is `crowding`, and its value without any bytes is `posting`.
    more = [_middle([turn[index] - turn[0] for turn in turns]) for index in (1, 2)]
    crowding = max(0.0, (more[1] - more[0]) / (travels[1] - travels[0]))
    return max(0.0, more[0] - crowding * travels[0]), crowding


def _middle(values: list[float]) -> float:
    """Return the mean of the middle half of the values.

    It varies less than the median if the values spread evenly.
    """
    quarter = len(values) // 4
    return mean(sorted(values)[quarter : len(values) - quarter])


def _sizes(device: torch.device) -> Sizes:
    return CUDA if device.type == "cuda" else CPU


def _usual(work: Callable[[], object], device: torch.device) -> float:
    """Return the median seconds of `work` over several runs, after one run to warm up.

    All ranks call it at the same time, so that the machine is as busy as in a run.
    """
    work()
    taken: list[float] = []
    while not taken or sum(taken) < LEAST_SECONDS:
        began = now(device)
        work()
        taken.append(now(device) - began)
    return median(taken)


def _slowest(transport: Transport, took: Callable[[], float], device: torch.device) -> float:
    """Run a measurement on all ranks at once, and return the seconds of the slowest rank.

    All ranks call it together; a barrier lets them begin at once.
    """
    transport.all_gather(torch.zeros(1, device=device))  # a barrier, so that all begin at once
    return largest(transport, took(), device)
