"""The planner's model against PipeDiT's tables (arXiv 2511.12056): six numbers fitted on 24 cells, the rest predicted.

    python benchmarks/planner_paper.py          # with the fitted numbers below
    python benchmarks/planner_paper.py --fit    # fit them anew

What is simulated is the paper's system, not ours: its parts are the planner's, its orders stand here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import mean, median
from typing import Any

from paradit.distributed.shares import Shares, chunk_boxes
from paradit.models.published import published_spec
from paradit.models.spec import ModelSpec
from paradit.placement import Placement
from paradit.planner.costs import block_seconds, decode_seconds, encode_seconds, replicated_rows
from paradit.planner.events import Compute, Message, Post, Step, Wait
from paradit.planner.hardware import Cluster, find_cluster
from paradit.planner.step import Branch, Layer, forward, ring
from paradit.scheduling.balance import play

DATA = Path(__file__).parent / "data" / "pipedit_8xa6000.json"
MODELS = {"open_sora_plan_v1_3": "Open-Sora-Plan-v1.3.0", "hunyuan_video": "HunyuanVideo"}
RANKS, VIDEOS = 8, 10
ROWS = ("offload_baseline", "decoupled", "decoupled_pipesp", "decoupled_pipesp_coprocess")

FITTED_SIZES, FITTED_STEPS = ("480x352x65", "640x352x129", "1024x576x129"), ("10", "50")
"""Both models and both columns of these: 24 cells."""


@dataclass(frozen=True)
class Fit:
    """The six numbers."""

    flash: float = 0.577
    """Part of the A6000's dense bf16 rate that attention without a mask reaches (HunyuanVideo)."""
    efficient: float = 0.445
    """The same of torch's memory-efficient attention with a mask (Open-Sora-Plan switches flash off)."""
    convolution: float = 0.25
    """The same of the VAEs."""
    shared: float = 63e9
    """Bytes/s of all messages through the host at once."""
    copy: float = 15.1e9
    """Bytes/s of all weights on their way from and to the host at once."""
    peer: float = 11.5e9
    product: float = .7
    latency: float = 337e-6
    """Seconds of a message."""


def cluster_of(fit: Fit, gpus: str = "8xA6000") -> Cluster:
    cluster = find_cluster(gpus)
    reach = {**cluster.device.reach}
    reach |= {"flash": fit.flash, "efficient": fit.efficient, "convolution": fit.convolution}
    link = replace(cluster.link, shared=fit.shared, copy=fit.copy, latency=fit.latency, peer=fit.peer)
    reach["product"]=fit.product
    return replace(cluster, device=replace(cluster.device, reach=reach), link=link)


def latent_frames(model: str, num_frames: int, ranks: int) -> int:
    """Of a group of ranks that hold tokens.

    Open-Sora-Plan gives each rank the latent frames of ceil(F / ranks) frames, more than the video has.
    """
    if model == "hunyuan_video":
        return (num_frames - 1) // 4 + 1
    return ranks * ((-(-num_frames // ranks) - 1) // 4 + 1)


@cache
def spec_of(model: str) -> ModelSpec:
    return published_spec(MODELS[model])


def branch_of(model: str, cluster: Cluster, size: str, row: str) -> Branch:
    """Who holds and computes what in a row of the ablation, with the decoder helping in the last one."""
    width, height, num_frames = map(int, size.split("x"))
    spec = spec_of(model).transformers[0]
    open_sora = model == "open_sora_plan_v1_3"
    holders = RANKS if row == "offload_baseline" else RANKS - 1
    tokens = latent_frames(model, num_frames, holders) * (height // 16) * (width // 16)
    text = 0 if open_sora else 256
    rows = tokens + text
    heads = spec.num_attention_heads
    helps = row == "decoupled_pipesp_coprocess"
    if open_sora and holders == RANKS - 1 and not helps:
        heads = 28  # padded to a multiple of 7
    shares = Shares.equal(tokens, heads, holders, text)
    if helps:
        each = heads * rows // RANKS
        work = [heads * rows // RANKS] * (RANKS - 1)
        shares = replace(shares, tokens=(*shares.tokens, 0), work=(*work, heads * rows - sum(work)))
        assert each
    batch = 2 if open_sora else 1
    costs = {
        held: block_seconds(
            spec,
            cluster.device,
            held=held,
            tokens=tokens,
            text=512 if open_sora else 256,
            batch=batch,
            dtype="bf16",
            kernel="efficient" if open_sora else "flash",
        )
        for held in set(shares.tokens)
    }
    return Branch(
        cluster=cluster,
        ranks=tuple(range(shares.num_ranks)),
        shares=shares,
        costs=[costs[held] for held in shares.tokens],
        row_bytes=batch * spec.attention_head_dim * 2,
        batch=batch,
    )


def papers_layer(branch: Branch, *, cross: bool, pipelined: bool, helps: bool) -> Layer:
    """A layer of the paper's Ulysses: everything waits for everything, or PipeSP.

    cross: the queries and results of cross-attention are exchanged too, as Open-Sora-Plan does.
    pipelined: q, k, v travel while the next is projected, and results head by head.
    helps: the last rank has its data by point-to-point messages, one after the other, after the exchange.
    """
    (whole,) = chunk_boxes(branch.shares, 1)
    heads = [[box] for box in whole.new_heads]
    incoming = [branch.move("q", branch.tokens, whole.work)]
    incoming += [branch.move(name, branch.tokens, heads) for name in ("k", "v")]
    count = -(-max(branch.shares.work) // branch.shares.num_rows) if pipelined else 1
    chunks = chunk_boxes(branch.shares, count)
    results = [branch.results(chunk.work) for chunk in chunks]
    if helps:
        # Each tensor of each rank is a message of its own to the helper, and each rank's results are.
        peers = branch.shares.num_ranks - 1
        incoming = [_later(message, peers) for message in incoming]
        results[-1] = _later(results[-1], peers)
    crossing = _crossing(branch)

    def layer(rank: int, key: Any) -> Iterator[Step]:
        cost, holds = branch.costs[rank], branch.shares.tokens[rank] > 0
        for index, message in enumerate(incoming):
            yield Compute("project", cost.value)
            if pipelined:
                yield Post((key, "in", index), message)
        if not pipelined:
            for index, message in enumerate(incoming):
                yield Post((key, "in", index), message)
        for index in range(3):
            yield Wait((key, "in", index))
        for index, chunk in enumerate(chunks):
            yield branch.attention(rank, sum(map(len, chunk.work[rank])))
            yield Post((key, "out", index), results[index])
        for index in range(count):
            yield Wait((key, "out", index))
        if not holds:
            return
        if cross:
            yield Compute("cross-attention", cost.finish / 4)
            yield Post((key, "cross in"), crossing[0])
            yield Wait((key, "cross in"))
            yield Compute("cross-attention", cost.finish / 4)
            yield Post((key, "cross out"), crossing[1])
            yield Wait((key, "cross out"))
            yield Compute("finish", cost.finish / 2)
        else:
            yield Compute("finish", cost.finish)

    return layer


def _later(message: Message, times: int) -> Message:
    return replace(message, latency=message.latency * (1 + times))


def _crossing(branch: Branch) -> tuple[Message, Message]:
    """The queries and the results of cross-attention, among the ranks that hold tokens."""
    held = [tokens for tokens in branch.shares.tokens if tokens]
    shares = Shares.equal(sum(held), branch.shares.num_heads, len(held))
    part = replace(branch, ranks=branch.ranks[: len(held)], shares=shares, costs=branch.costs[: len(held)])
    (whole,) = chunk_boxes(shares, 1)
    return part.move("queries", part.tokens, whole.work), part.results(whole.work)


@cache
def step_seconds(model: str, fit: Fit, size: str, row: str, gpus: str = "8xA6000") -> float:
    """A denoising step of a row of the ablation; of the last one, while the decoder helps."""
    cluster = cluster_of(fit) if gpus == "8xA6000" else find_cluster(gpus)
    branch = branch_of(model, cluster, size, row)
    open_sora = model == "open_sora_plan_v1_3"
    if not open_sora and row in ("decoupled", "decoupled_pipesp"):
        layer = ring(branch, RANKS - 1)  # PipeSP has nothing to do there
    else:
        layer = papers_layer(
            branch,
            cross=open_sora,
            pipelined=open_sora and row not in ("offload_baseline", "decoupled"),
            helps=row == "decoupled_pipesp_coprocess",
        )
    return forward([(branch, layer)], spec_of(model).transformers[0].num_layers).seconds


def total_seconds(model: str, fit: Fit, size: str, steps: int, row: str) -> float:
    """Ten videos, in a row of the ablation."""
    cluster, spec = cluster_of(fit), spec_of(model)
    width, height, num_frames = map(int, size.split("x"))
    decode = decode_seconds(spec, cluster.device, "bf16", (num_frames, height, width))
    encode = encode_seconds(spec, cluster.device, "bf16", 2 if model == "open_sora_plan_v1_3" else 1)
    if row == "offload_baseline":
        moved = RANKS * 2 * sum(weights.parameters for weights in spec.weights)
        copied = moved / fit.copy
        return VIDEOS * (encode + copied + steps * step_seconds(model, fit, size, row) + decode)
    step = step_seconds(model, fit, size, row)
    denoise = steps * step
    encoder = 0 if model == "open_sora_plan_v1_3" else RANKS - 1
    if row == "decoupled_pipesp_coprocess":
        # While the decoder decodes, steps take as long as without it.
        alone = step_seconds(model, fit, size, "decoupled_pipesp")
        busy = min(decode + (encode if encoder else 0), steps * alone)
        denoise = busy + (steps - busy / alone) * step
    placement = Placement(
        ranks=RANKS, denoise=tuple(range(RANKS - 1)), decode=(RANKS - 1,), encode=(encoder,)
    )
    spans = play(placement, VIDEOS, {"encode": encode, "denoise": denoise, "decode": decode})
    return max(span.end for span in spans)


def predicted(model: str, fit: Fit, size: str, steps: int, column: str) -> float:
    """A cell of Table 6: its second column is the better of co-processing and none."""
    if column == "baseline_s":
        return total_seconds(model, fit, size, steps, ROWS[0])
    return min(total_seconds(model, fit, size, steps, row) for row in ROWS[2:])


def cells(data: dict[str, Any]) -> Iterator[tuple[str, str, str, str, float]]:
    for model, sizes in data["end_to_end"].items():
        for size, by_steps in sizes.items():
            for steps, cell in by_steps.items():
                for column in ("baseline_s", "pipedit_s"):
                    yield model, size, steps, column, cell[column]


def is_fitted(size: str, steps: str) -> bool:
    return size in FITTED_SIZES and steps in FITTED_STEPS


def error(seconds: float, reported: float) -> float:
    return seconds / reported - 1


def fitted(data: dict[str, Any]) -> Fit:
    """The numbers with the least mean absolute error on the 24 cells: one after the other, ever finer."""
    chosen = [cell for cell in cells(data) if is_fitted(cell[1], cell[2])]

    def loss(fit: Fit) -> float:
        return mean(
            abs(error(predicted(model, fit, size, int(steps), column), reported))
            for model, size, steps, column, reported in chosen
        )

    best, found = Fit(), loss(Fit())
    for factor in (1.3, 1.15, 1.07, 1.03):
        for _ in range(3):
            for name in vars(best):
                for change in (factor, 1 / factor):
                    trial = replace(best, **{name: getattr(best, name) * change})
                    if (tried := loss(trial)) < found:
                        best, found = trial, tried
    return best


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fit", action="store_true")
    data = json.loads(DATA.read_text())
    fit = fitted(data) if parser.parse_args().fit else Fit()
    print(fit)
    rows = []
    for model, size, steps, column, reported in cells(data):
        seconds = predicted(model, fit, size, int(steps), column)
        rows.append((model, size, steps, column, reported, seconds, is_fitted(size, steps)))
    for name, some in (("fitted", [r for r in rows if r[6]]), ("others", [r for r in rows if not r[6]])):
        errors = [abs(error(r[5], r[4])) for r in some]
        print(name, len(some), f"mean {mean(errors):.3f} median {median(errors):.3f} max {max(errors):.3f}")
    for model in MODELS:
        for column in ("baseline_s", "pipedit_s"):
            es = [error(r[5], r[4]) for r in rows if r[0] == model and r[3] == column]
            print(model, column, f"{mean(map(abs, es)):.3f} bias {mean(es):+.3f}")
            for size in data["end_to_end"][model]:
                print("   ", size, *(f"{error(r[5], r[4]):+.2f}" for r in rows if r[:2] == (model, size) and r[3] == column))
    for model, table in data["ablation_30_steps"].items():
        right = wrong = 0
        for size in table[ROWS[0]]:
            reported = [table[row][size] for row in ROWS]
            seconds = [total_seconds(model, fit, size, 30, row) for row in ROWS]
            print(model[:5], size, *(f"{p:5.0f}/{r:<5.0f}" for p, r in zip(seconds, reported)))
            for i in range(3):
                change = reported[i + 1] / reported[i] - 1
                if abs(change) > 0.05:
                    ok = (seconds[i + 1] - seconds[i]) * change > 0
                    right += ok
                    wrong += not ok
        print(model, "signs right", right, "wrong", wrong)


if __name__ == "__main__":
    main()
