"""Explain DualParal's published gain by the planner: its baseline, and how much is due to the window.

    python benchmarks/planner_dualparal.py

The paper (arXiv 2505.21070) reports up to 6.54 times lower latency and 1.48 times less memory, for 1,025
frames on eight RTX 4090 with Wan 2.1. Its repository's settings are 480x832, 50 steps, and blocks of 8 latent
frames. The denoising of one video is simulated; nothing is fitted to the paper. Needs no GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from machine import write_results
from paradit.attention.registry import Choice
from paradit.config.methods.method import resolve
from paradit.config.placement import Placement
from paradit.config.requests import Request
from paradit.models.published import published_spec
from paradit.models.spec import ModelSpec
from paradit.planner.block_costs import long_video
from paradit.planner.hardware import Cluster, find_cluster
from paradit.planner.simulate import Candidate, Simulator
from paradit.scheduling.block_queue import BlockQueue

FRAMES, RANKS, BLOCK = 1025, 8, 8
PUBLISHED = {"latency": 6.54, "memory": 1.48}
MODELS = {"1.3B": "Wan2.1-T2V-1.3B-Diffusers", "14B": "Wan2.1-T2V-14B-Diffusers"}
CONTEXTS = (8, 4, 2)
"""Numbers of latent frames of context on each side: the repository's quick start, its half, its quarter."""
FULL = {
    "Ulysses": (Placement(ranks=RANKS), Choice.of("ulysses")),
    "ring": (Placement(ranks=RANKS, attention="ring"), Choice.of("ring")),
}


@dataclass(frozen=True)
class Case:
    """A model and a number of context frames, for blocks on eight GPUs."""

    model: str
    context: int

    @property
    def spec(self) -> ModelSpec:
        return published_spec(MODELS[self.model])

    def simulator(self, cluster: Cluster) -> Simulator:
        asked = partial(Request.of, prompt="any", width=832, height=480, num_frames=FRAMES)
        whole = resolve(asked(method="full"), self.spec)
        # The paper has no lag.
        blocks = {"block_frames": BLOCK, "context_frames": self.context, "lag": 1}
        long = resolve(asked(method="dualparal", **blocks), self.spec)
        return Simulator(cluster, self.spec, whole, long=long)

    def full(self, cluster: Cluster, placement: Placement, form: Choice) -> float:
        """Return the seconds of denoising all frames at once."""
        return self.simulator(cluster).simulate(Candidate(placement=placement), 1, form).stages["denoise"]

    def in_blocks(self, cluster: Cluster, ranks: int) -> float:
        """Return the seconds of denoising with DualParal, which decodes only once all is denoised."""
        video = replace(long_video(self.simulator(cluster), _long(ranks)), decode=0.0)
        return video.run().denoised


def windowed_ulysses(case: Case, cluster: Cluster) -> float:
    """Return the seconds of denoising the same blocks one after the other, with Ulysses in each step.

    A window of the block and its contexts goes through all layers like a video of its own. Keys that a rank
    of a layer pipeline has cached are computed again, so the time is slightly too long.
    """
    queue = long_video(case.simulator(cluster), _long(RANKS)).queue
    # The first latent frame becomes one frame, each later one four.
    frames = 4 * (queue.block_frames + queue.context_frames) - 3
    asked = Request(prompt="any", width=832, height=480, num_frames=frames, method="full")
    one = Simulator(cluster, case.spec, resolve(asked, case.spec))
    step = one.simulate(Candidate(placement=Placement(ranks=RANKS)), 1, Choice.of("ulysses")).step
    assert queue.num_blocks
    # Queries also read the right neighbour's keys.
    return step * queue.num_blocks * queue.num_steps * _wider(case.spec, queue)


def _wider(spec: ModelSpec, queue: BlockQueue) -> float:
    """Return the factor by which attention to the right neighbour's frames increases a step's operations."""
    transformer, tokens = spec.transformers[0], spec.tokens(1, 480, 832)
    held = (queue.block_frames + queue.context_frames) * tokens
    own = transformer.self_attention_flops(held, 0)
    more = own * queue.context_frames / (queue.block_frames + queue.context_frames)
    return 1 + more / transformer.flops(held, spec.text_length)


def _long(ranks: int) -> Candidate:
    return Candidate(placement=Placement(ranks=ranks), method="dualparal")


def row(case: Case) -> dict[str, Any]:
    """Return a case's seconds of denoising, the bytes that the fullest rank needs for it, and the gains."""
    cluster = find_cluster(f"{RANKS}xRTX4090")
    simulator = case.simulator(cluster)
    seconds = {
        "dualparal": case.in_blocks(cluster, RANKS),
        "dualparal, one GPU": case.in_blocks(cluster, 1),
        "windows, Ulysses": windowed_ulysses(case, cluster),
        "full, one GPU": case.full(cluster, Placement(), Choice.of("ulysses")),
    }
    for name, (placement, form) in FULL.items():
        seconds[f"full, {name}"] = case.full(cluster, placement, form)
    memory = {
        "dualparal": _denoising(simulator, _long(RANKS)),
        "full, Ulysses": _denoising(simulator, Candidate(placement=Placement(ranks=RANKS))),
    }
    baseline = seconds["full, Ulysses"]
    return {
        "model": case.model,
        "context_frames": case.context,
        "seconds": seconds,
        "memory_bytes": memory,
        "gain": {name: baseline / took for name, took in seconds.items()},
        "gain_over_ring": seconds["full, ring"] / seconds["dualparal"],
        "of_the_window": seconds["full, one GPU"] / seconds["dualparal, one GPU"],
        "over_windows": seconds["windows, Ulysses"] / seconds["dualparal"],
        "on_eight": {
            "dualparal": seconds["dualparal, one GPU"] / seconds["dualparal"],
            "full, Ulysses": seconds["full, one GPU"] / seconds["full, Ulysses"],
        },
        "memory_gain": memory["full, Ulysses"] / memory["dualparal"],
        "memory_gain_with": memory_gains(case, simulator),
    }


def _denoising(simulator: Simulator, candidate: Candidate) -> int:
    """Return the bytes of the fullest rank that only denoises: its weights, caches, activations, latents."""
    parts = simulator.memory_parts(candidate)[1]
    names = ("weights", "text_cache", "activations", "latents", "keys")
    return sum(parts.get(name, 0) for name in names)


def memory_gains(case: Case, simulator: Simulator) -> dict[str, float]:
    """Return how many times as much memory Ulysses needs as DualParal, by what else is in every GPU's memory.

    All is in bf16. DualParal's program computes both branches in one batch, ParaDiT's one after the other.
    """
    full, long = (
        _denoising(simulator, candidate)
        for candidate in (Candidate(placement=Placement(ranks=RANKS)), _long(RANKS))
    )
    batched = long + simulator.memory_parts(_long(RANKS))[1]["activations"]
    size = {one.component: 2 * one.parameters for one in case.spec.weights}
    found = {}
    for name, ours in (("one branch at a time", long), ("both in a batch", batched)):
        vae = size["vae"]
        resident = vae + size["text_encoder"]
        found[f"nothing, {name}"] = full / ours
        found[f"VAE, {name}"] = (full + vae) / (ours + vae)
        found[f"VAE and text encoder, {name}"] = (full + resident) / (ours + resident)
        # DualParal alone drops the text encoder after encoding, so its peak may be the encoding itself.
        found[f"text encoder dropped, {name}"] = (full + resident) / max(resident, ours + vae)
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Return the table of seconds and gains for docs/results/dualparal.md."""
    heads = (
        *("model, context", "full, Ulysses", "full, ring", "windows, Ulysses", "DualParal"),
        *("gain over Ulysses", "over ring", "of the window", "eight over one: DualParal", "full, Ulysses"),
        *("over windows with Ulysses", "memory"),
    )
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for one in rows:
        seconds = one["seconds"]
        numbers = (
            *(one["gain"]["dualparal"], one["gain_over_ring"], one["of_the_window"]),
            *(one["on_eight"]["dualparal"], one["on_eight"]["full, Ulysses"]),
            *(one["over_windows"], one["memory_gain"]),
        )
        names = ("full, Ulysses", "full, ring", "windows, Ulysses", "dualparal")
        cells = [f"{one['model']}, {one['context_frames']}", *(f"{seconds[n] / 60:.1f} min" for n in names)]
        lines.append(f"| {' | '.join([*cells, *(f'{number:.2f}' for number in numbers)])} |")
    return "\n".join(lines)


def memory_table(rows: list[dict[str, Any]]) -> str:
    """Return the table of memory gains for docs/results/dualparal.md."""
    contents = ("nothing", "VAE", "VAE and text encoder", "text encoder dropped")
    lines = ["| model, context | " + " | ".join(contents) + " |", "|---" * (len(contents) + 1) + "|"]
    for one in rows:
        gains = one["memory_gain_with"]
        cells = [
            f"{gains[f'{c}, one branch at a time']:.2f}, {gains[f'{c}, both in a batch']:.2f}"
            for c in contents
        ]
        lines.append(f"| {one['model']}, {one['context_frames']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    rows = [row(Case(model, context)) for model in MODELS for context in CONTEXTS]
    print(table(rows))
    print(memory_table(rows))
    content = {"published": PUBLISHED, "frames": FRAMES, "ranks": RANKS, "block_frames": BLOCK, "rows": rows}
    write_results("planner_dualparal", content)


if __name__ == "__main__":
    main()
