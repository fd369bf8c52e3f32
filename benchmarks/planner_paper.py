"""Compare the planner with PipeDiT's tables (arXiv 2511.12056): fit six numbers on 24 cells of them.

All other cells are predicted.

    python benchmarks/planner_paper.py                  # with the numbers in the hardware files
    python benchmarks/planner_paper.py --fit            # fit them anew
    python benchmarks/planner_paper.py --stock-frames   # with Open-Sora-Plan's own number of latent frames

The simulated system is the paper's, not ours: its parts come from the planner, and their order is defined
here. Needs no GPU.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

from machine import write_results
from paradit.attention.registry import Choice
from paradit.attention.timing.rings import RotationTiming
from paradit.config.methods.method import resolve
from paradit.config.placement import Placement
from paradit.config.requests import Request
from paradit.distributed.shares import Shares, chunk_boxes
from paradit.models.open_sora_plan.spec import OpenSoraPlanTransformerSpec
from paradit.models.published import published_spec
from paradit.models.spec import ModelSpec
from paradit.planner.costs import block_seconds, decode_seconds, encode_seconds
from paradit.planner.discrete_events import Compute, Message, Post, Step, Wait
from paradit.planner.hardware import Cluster, find_cluster
from paradit.planner.simulate import Candidate, Simulator
from paradit.planner.step import Branch, Layer, forward
from paradit.scheduling.balance import simulate

ROOT = Path(__file__).parent
DATA = ROOT / "data" / "pipedit_8xa6000.json"
PLOT = ROOT.parent / "docs" / "images" / "planner_paper.svg"
OSP, HYV = "open_sora_plan_v1_3", "hunyuan_video"
MODELS = {OSP: "Open-Sora-Plan-v1.3.0", HYV: "HunyuanVideo"}
RANKS, VIDEOS, ABLATION_STEPS = 8, 10, 30
ROWS = ("offload_baseline", "decoupled", "decoupled_pipesp", "decoupled_pipesp_coprocess")
FITTED_SIZES = ("480x352x65", "640x352x129", "1024x576x129")
"""Video sizes of the ablation that are fitted, for both models and all four rows: 24 cells."""
CHANGE = 0.05
"""Smallest relative change between two rows of the ablation that is compared with the prediction."""

# Table 2: seconds of a step of Open-Sora-Plan, without PipeSP and with it. Nothing was fitted to it.
TABLE_2 = {
    "8xA6000": {
        "480x352x65": (1.67, 1.73), "480x352x129": (1.30, 1.20), "640x352x65": (1.21, 1.69),
        "640x352x129": (2.10, 1.83), "800x592x65": (2.21, 2.05), "800x592x129": (4.98, 4.74),
        "1024x576x65": (2.57, 2.41), "1024x576x129": (6.86, 6.54),
    },
    "8xL40": {
        "480x352x65": (1.36, 1.42), "480x352x129": (1.66, 1.57), "640x352x65": (1.05, 1.01),
        "640x352x129": (2.44, 2.34), "800x592x65": (2.87, 2.74), "800x592x129": (7.34, 7.05),
        "1024x576x65": (3.61, 3.44), "1024x576x129": (10.30, 9.95),
    },
}  # fmt: skip
# xDiT, docs/performance/hunyuanvideo.md: HunyuanVideo, 1280x720, 129 frames, 50 steps, Ulysses. The first
# figure of the L20 determined Ada's efficiency in the hardware file.
XDIT = {
    "1xH100": 1904, "2xH100": 925, "4xH100": 514, "8xH100": 338, "1xH20": 6639, "2xH20": 3401, "4xH20": 1763,
    "8xH20": 941, "1xL20": 6044, "2xL20": 3271, "4xL20": 2080,
}  # fmt: skip
FLASH_ATTENTION_2 = 0.35
"""Fraction of an H100's dense bf16 rate that FlashAttention-2 reaches (arXiv 2407.08608).

That paper reports 0.75 for version 3. xDiT presumably used version 2 then; the hardware file has the
efficiency of torch's own, newer kernel.
"""


@dataclass(frozen=True)
class Fit:
    """The six fitted numbers; the defaults are round starting values."""

    flash: float = 0.6
    """Fraction of the A6000's dense bf16 rate that attention without a mask reaches (HunyuanVideo)."""
    efficient: float = 0.4
    """Fraction of the A6000's dense bf16 rate that torch's memory-efficient attention reaches with a mask.

    Open-Sora-Plan uses it, because it switches flash attention off.
    """
    peer: float = 10e9
    """Bytes/s from one GPU to another over PCIe."""
    shared: float = 60e9
    """Bytes/s of all messages through the host together."""
    copy: float = 12e9
    """Bytes/s of all weights that are copied from the host together."""
    latency: float = 300e-6
    """Seconds of each message in addition to its bytes, including the wait of ranks for each other."""

    @classmethod
    def in_files(cls) -> Fit:
        """Return the fitted numbers that the hardware files hold."""
        cluster = find_cluster("8xA6000")
        efficiency, link = cluster.device.efficiency, cluster.link
        assert link.peer and link.shared and link.copy
        return cls(
            efficiency["flash"], efficiency["efficient"], link.peer, link.shared, link.copy, link.latency
        )

    def cluster(self) -> Cluster:
        cluster = find_cluster("8xA6000")
        efficiency = {**cluster.device.efficiency, "flash": self.flash, "efficient": self.efficient}
        link = replace(cluster.link, peer=self.peer, shared=self.shared, copy=self.copy, latency=self.latency)
        return replace(cluster, device=replace(cluster.device, efficiency=efficiency), link=link)


@dataclass(frozen=True, eq=False)
class Paper:
    """The paper's system on a cluster of eight GPUs."""

    cluster: Cluster
    stock_frames: bool = False
    steps: dict[tuple[str, str, str], float] = field(default_factory=dict)
    """Seconds of the steps simulated so far, by model, size and row."""

    def latent_frames(self, model: str, num_frames: int, holders: int) -> int:
        """Return the number of latent frames of all ranks that hold tokens, together."""
        if self.stock_frames and model == OSP:
            # Each rank holds the latent frames of ceil(F / holders) frames: together more than the video has,
            # and fewer on 7 ranks than on 8.
            return holders * ((-(-num_frames // holders) - 1) // 4 + 1)
        return (num_frames - 1) // 4 + 1

    def branch(self, model: str, size: str, row: str) -> Branch:
        """Return each rank's tokens and work in a row of the ablation; in the last row, the decoder helps."""
        width, height, num_frames = _numbers(size)
        spec, open_sora = spec_of(model).transformers[0], model == OSP
        helps = row == ROWS[3]
        holders = RANKS if row == ROWS[0] else RANKS - 1
        tokens = self.latent_frames(model, num_frames, holders) * (height // 16) * (width // 16)
        text = 0 if open_sora else spec_of(model).text_length
        heads = spec.num_attention_heads
        if open_sora and holders < RANKS and not helps:
            heads = 28  # padded to a multiple of 7
        shares = Shares.equal(tokens, heads, holders, text)
        if helps:
            equal = Shares.equal(tokens, heads, RANKS, text)
            shares = replace(equal, tokens=(*shares.tokens, 0), num_helpers=1)
        batch = 2 if open_sora else 1  # guidance branches
        costs = {
            held: block_seconds(
                spec,
                self.cluster.device,
                held=held,
                tokens=tokens,
                text=spec_of(model).text_length,
                batch=batch,
                dtype="bf16",
                kernel="efficient" if open_sora else "flash",
            )
            for held in set(shares.tokens)
        }
        return Branch(
            cluster=self.cluster,
            ranks=tuple(range(shares.num_ranks)),
            shares=shares,
            costs=[costs[held] for held in shares.tokens],
            row_bytes=batch * spec.attention_head_dim * 2,
            batch=batch,
        )

    def step(self, model: str, size: str, row: str) -> float:
        """Return the seconds of a denoising step; in the last row, of one in which the decoder helps."""
        if (model, size, row) not in self.steps:
            self.steps[model, size, row] = self._step(model, size, row)
        return self.steps[model, size, row]

    def _step(self, model: str, size: str, row: str) -> float:
        branch = self.branch(model, size, row)
        if model == HYV and row in ROWS[1:3]:
            # The heads do not divide among 7 ranks, so PipeSP has no effect.
            layer = RotationTiming(branch, [[rank] for rank in range(RANKS - 1)]).layer
        else:
            layer = papers_layer(
                branch, cross=model == OSP, pipelined=model == OSP and row in ROWS[2:], helps=row == ROWS[3]
            )
        return forward([(branch, layer)], spec_of(model).transformers[0].num_layers).seconds

    def total(self, model: str, size: str, steps: int, row: str) -> float:
        """Return the seconds of ten videos in a row of the ablation."""
        spec, device, cluster = spec_of(model), self.cluster.device, self.cluster
        width, height, num_frames = _numbers(size)
        decode = decode_seconds(spec.vae, device, "bf16", (num_frames, height, width))
        encode = encode_seconds(spec, device, "bf16", 2 if model == OSP else 1)
        denoise = steps * self.step(model, size, row)
        if row == ROWS[0]:
            # Every rank fetches every model for every video.
            assert cluster.link.copy
            moved = RANKS * 2 * sum(weights.parameters for weights in spec.weights)
            return VIDEOS * (encode + moved / cluster.link.copy + denoise + decode)
        encoder = 0 if model == OSP else RANKS - 1
        if row == ROWS[3]:
            # While the decoder decodes, it does not help with the steps.
            alone = self.step(model, size, ROWS[2])
            busy = min(decode + (encode if encoder else 0), steps * alone)
            denoise = busy + (steps - busy / alone) * self.step(model, size, row)
        holders = tuple(range(RANKS - 1))
        placement = Placement(ranks=RANKS, denoise=holders, decode=(RANKS - 1,), encode=(encoder,))
        spans = simulate(placement, VIDEOS, {"encode": encode, "denoise": denoise, "decode": decode})
        return max(span.end for span in spans)

    def cell(self, model: str, size: str, steps: int, column: str) -> float:
        """Return our prediction for a cell of Table 6.

        Its second column is the better of runs with and without co-processing.
        """
        if column == "baseline_s":
            return self.total(model, size, steps, ROWS[0])
        return min(self.total(model, size, steps, row) for row in ROWS[2:])


@cache
def spec_of(model: str) -> ModelSpec:
    spec = published_spec(MODELS[model])
    if model != OSP:
        return spec
    return replace(spec, transformers=tuple(AuthorsTransformer(**vars(one)) for one in spec.transformers))


class AuthorsTransformer(OpenSoraPlanTransformerSpec):
    """Costs of Open-Sora-Plan's transformer in its authors' code: it computes the text's keys and values in
    every step."""

    def flops(self, tokens: int, text_tokens: int, timesteps: int = 1) -> int:
        return super().flops(tokens, text_tokens, timesteps) + super().context_flops(text_tokens)

    def context_flops(self, text_tokens: int) -> int:  # noqa: ARG002
        return 0


def _numbers(size: str) -> tuple[int, int, int]:
    width, height, num_frames = map(int, size.split("x"))
    return width, height, num_frames


def papers_layer(branch: Branch, *, cross: bool, pipelined: bool, helps: bool) -> Layer:
    """Return the program of a layer in the paper's Ulysses: fully synchronous, or with PipeSP.

    cross: queries and results of cross-attention are exchanged too, as in Open-Sora-Plan. pipelined: q, k, v
    travel while the next one is projected, and results travel head by head. helps: the last rank gets its
    data by point-to-point messages, one after the other, after the exchange.
    """
    (whole,) = chunk_boxes(branch.shares, 1)
    heads = [[box] for box in whole.new_heads]
    incoming = [branch.inward("q", whole.work)]
    incoming += [branch.inward(name, heads) for name in ("k", "v")]
    count = -(-max(branch.shares.work) // branch.shares.num_rows) if pipelined else 1
    chunks = chunk_boxes(branch.shares, count)
    results = [branch.results(chunk.work) for chunk in chunks]
    if helps:
        # Each tensor of each rank, and each rank's results, are a message of their own to or from the helper.
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
            beside = results[index - 1].seconds if index else 0.0
            yield branch.attention(rank, sum(map(len, chunk.work[rank])), beside)
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
    """Return the messages with queries and results of cross-attention, among the ranks that hold tokens."""
    held = [tokens for tokens in branch.shares.tokens if tokens]
    shares = Shares.equal(sum(held), branch.shares.num_heads, len(held))
    part = replace(branch, ranks=branch.ranks[: len(held)], shares=shares, costs=branch.costs[: len(held)])
    (whole,) = chunk_boxes(shares, 1)
    return part.inward("queries", whole.work), part.results(whole.work)


@dataclass(frozen=True)
class Cell:
    """One figure of the paper, with our prediction."""

    table: str
    model: str
    size: str
    steps: int
    column: str
    reported: float
    predicted: float
    fitted: bool

    @property
    def error(self) -> float:
        return self.predicted / self.reported - 1


def cells(data: dict[str, Any], paper: Paper) -> Iterator[Cell]:
    """Yield the ablation's cells, then those of Table 6 that are not in the ablation."""
    for model, table in data["ablation_30_steps"].items():
        for row in ROWS:
            for size, reported in table[row].items():
                predicted = paper.total(model, size, ABLATION_STEPS, row)
                fitted = size in FITTED_SIZES
                yield Cell("ablation", model, size, ABLATION_STEPS, row, reported, predicted, fitted)
    for model, sizes in data["end_to_end"].items():
        for size, by_steps in sizes.items():
            for steps, found in by_steps.items():
                if int(steps) == ABLATION_STEPS and size in data["ablation_30_steps"][model][ROWS[0]]:
                    continue
                for column in ("baseline_s", "pipedit_s"):
                    predicted = paper.cell(model, size, int(steps), column)
                    yield Cell("end to end", model, size, int(steps), column, found[column], predicted, False)


def fitted(data: dict[str, Any], *, stock_frames: bool) -> Fit:
    """Return the numbers with the least error on the 24 cells, improved one at a time in ever smaller steps.

    The error is the mean error of the cells, plus that of their changes from row to row, because the gains of
    the paper's techniques are small compared with a video's total time.
    """

    def loss(fit: Fit) -> float:
        paper = Paper(fit.cluster(), stock_frames)
        errors, of_changes = [], []
        for model in MODELS:
            for size in FITTED_SIZES:
                each = [
                    paper.total(model, size, ABLATION_STEPS, row)
                    / data["ablation_30_steps"][model][row][size]
                    for row in ROWS
                ]
                errors += [abs(one - 1) for one in each]
                of_changes += [abs(after / before - 1) for before, after in pairwise(each)]
        return mean(errors) + mean(of_changes)

    best, found = Fit(), loss(Fit())
    for factor in (1.4, 1.2, 1.1, 1.05, 1.025):
        for _ in range(3):
            for name in asdict(best):
                for change in (factor, 1 / factor):
                    trial = replace(best, **{name: getattr(best, name) * change})
                    if (tried := loss(trial)) < found:
                        best, found = trial, tried
    return best


def changes(found: list[Cell]) -> list[dict[str, Any]]:
    """Return the ablation's changes from row to row that exceed 5 % in the paper, with our predictions."""
    by_key = {(cell.model, cell.size, cell.column): cell for cell in found if cell.table == "ablation"}
    rows = []
    for model, size in dict.fromkeys((model, size) for model, size, _ in by_key):
        for before, after in pairwise(ROWS):
            one, other = by_key[model, size, before], by_key[model, size, after]
            reported, predicted = other.reported / one.reported - 1, other.predicted / one.predicted - 1
            if abs(reported) > CHANGE:
                what = {"model": model, "size": size, "row": after}
                rows.append(
                    {**what, "reported": reported, "predicted": predicted, "right": reported * predicted > 0}
                )
    return rows


def summary(found: list[Cell]) -> dict[str, float]:
    errors = [abs(cell.error) for cell in found]
    return {"cells": len(errors), "mean": mean(errors), "median": median(errors), "largest": max(errors)}


def steps_of_table_2() -> list[dict[str, Any]]:
    rows = []
    for gpus, sizes in TABLE_2.items():
        paper = Paper(find_cluster(gpus))
        for size, reported in sizes.items():
            branch = paper.branch(OSP, size, ROWS[0])
            layers = [papers_layer(branch, cross=True, pipelined=p, helps=False) for p in (False, True)]
            predicted = [forward([(branch, layer)], 32).seconds for layer in layers]
            rows.append({"gpus": gpus, "size": size, "reported": reported, "predicted": predicted})
    return rows


def xdit() -> list[dict[str, Any]]:
    spec = published_spec("HunyuanVideo")
    request = resolve(Request(prompt="any"), spec)
    rows = []
    for gpus, reported in XDIT.items():
        now = find_cluster(gpus)
        then = now
        if now.device.name == "H100":
            efficiency = {**now.device.efficiency, "flash": FLASH_ATTENTION_2}
            then = replace(now, device=replace(now.device, efficiency=efficiency, softmax=0.0))
        candidate, form = Candidate(placement=Placement(ranks=now.ranks)), Choice.of("ulysses")
        predicted, with_torch = (
            Simulator(cluster, spec, request).simulate(candidate, 1, form).latency for cluster in (then, now)
        )
        rows.append({"gpus": gpus, "reported": reported, "predicted": predicted, "torch": with_torch})
    return rows


def plot(found: list[Cell]) -> str:
    """Return an SVG plot of predicted over reported seconds, on two logarithmic axes."""
    from math import log10

    low, high, side, edge = 60.0, 7000.0, 480, 60

    def place(seconds: float) -> float:
        return (log10(seconds) - log10(low)) / (log10(high) - log10(low)) * side

    colors = {OSP: "#1b7fbd", HYV: "#d1495b"}
    marks = [
        f'<circle cx="{edge + place(c.reported):.1f}" cy="{edge + side - place(c.predicted):.1f}" r="3" '
        f'fill="{colors[c.model] if not c.fitted else "none"}" stroke="{colors[c.model]}" fill-opacity="0.6">'
        f"<title>{c.model} {c.size} {c.steps} steps {c.column}: {c.predicted:.0f} s, {c.reported} s reported"
        "</title></circle>"
        for c in found
    ]
    lines = []
    for factor, dash in ((1.0, ""), (1.1, ' stroke-dasharray="4 3"'), (1 / 1.1, ' stroke-dasharray="4 3"')):
        first, last = max(low, low / factor), min(high, high / factor)
        lines.append(
            f'<line x1="{edge + place(first):.1f}" y1="{edge + side - place(first * factor):.1f}" '
            f'x2="{edge + place(last):.1f}" y2="{edge + side - place(last * factor):.1f}" '
            f'stroke="#888"{dash}/>'
        )
    for seconds in (100, 300, 1000, 3000):
        at = place(seconds)
        lines.append(
            f'<text x="{edge + at:.1f}" y="{edge + side + 18}" text-anchor="middle">{seconds}</text>'
        )
        lines.append(
            f'<text x="{edge - 8}" y="{edge + side - at + 4:.1f}" text-anchor="end">{seconds}</text>'
        )
    lines.append(f'<rect x="{edge}" y="{edge}" width="{side}" height="{side}" fill="none" stroke="#444"/>')
    middle = edge + side / 2
    lines.append(
        f'<text x="{middle}" y="{edge + side + 40}" text-anchor="middle">reported, s for 10 videos</text>'
    )
    lines.append(
        f'<text x="16" y="{middle}" text-anchor="middle" transform="rotate(-90 16 {middle})">'
        "predicted, s</text>"
    )
    lines.append(f'<text x="{edge + 12}" y="{edge + 22}" fill="{colors[OSP]}">Open-Sora-Plan v1.3</text>')
    lines.append(f'<text x="{edge + 12}" y="{edge + 42}" fill="{colors[HYV]}">HunyuanVideo</text>')
    lines.append(f'<text x="{edge + 12}" y="{edge + 62}">open circles: fitted; dashed: 10 % off</text>')
    whole = side + 2 * edge
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{whole}" height="{whole}" font-family="sans-serif" '
        f'font-size="13"><rect width="{whole}" height="{whole}" fill="white"/>'
        + "\n".join([*lines, *marks])
        + "</svg>\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--stock-frames", action="store_true")
    arguments = parser.parse_args()
    data = json.loads(DATA.read_text())
    fit = fitted(data, stock_frames=arguments.stock_frames) if arguments.fit else Fit.in_files()
    found = list(cells(data, Paper(fit.cluster(), arguments.stock_frames)))
    others = [cell for cell in found if not cell.fitted]
    summaries = {"fitted": summary([cell for cell in found if cell.fitted]), "not fitted": summary(others)}
    for model in MODELS:
        for column in dict.fromkeys(cell.column for cell in found):
            some = [cell for cell in others if (cell.model, cell.column) == (model, column)]
            summaries[f"{model}, {column}"] = summary(some)
    print(fit)
    for name, one in summaries.items():
        print(f"{name:50} {one['cells']:4} cells, mean {one['mean']:.3f}, median {one['median']:.3f}, "
              f"largest {one['largest']:.3f}")  # fmt: skip
    signs = changes(found)
    print(f"changes in the ablation over 5 %: {sum(s['right'] for s in signs)} of {len(signs)} signs right")
    for sign in signs:
        if not sign["right"]:
            print("  wrong:", sign)
    print("\nablation, predicted / reported")
    for model in MODELS:
        for size in data["ablation_30_steps"][model][ROWS[0]]:
            rows = [c for c in found if (c.table, c.model, c.size) == ("ablation", model, size)]
            print(f"  {model:20} {size:13}", *(f"{c.predicted:5.0f}/{c.reported:<5.0f}" for c in rows))
    print("\nTable 2, a step; predicted / reported, without and with PipeSP")
    table_2 = steps_of_table_2()
    for row in table_2:
        pairs = (f"{p:5.2f}/{r:<5.2f}" for p, r in zip(row["predicted"], row["reported"], strict=True))
        print(f"  {row['gpus']:8} {row['size']:13}", *pairs)
    print("\nxDiT, HunyuanVideo")
    others_systems = xdit()
    for row in others_systems:
        print("  {gpus:7} {predicted:5.0f}/{reported:<5} {torch:5.0f} with torch's kernel".format(**row))
    if arguments.fit or arguments.stock_frames:
        return
    PLOT.write_text(plot(found))
    table = [{**asdict(cell), "error": cell.error} for cell in found]
    write_results(
        "planner_paper",
        {"fit": asdict(fit), "summaries": summaries, "changes": signs, "cells": table, "table_2": table_2,
         "xdit": others_systems},
    )  # fmt: skip


if __name__ == "__main__":
    main()
