"""Formatting of results, plans, durations and amounts as text for people."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from paradit.config.placement import Placement, written
from paradit.config.request_inputs import INPUTS
from paradit.config.requests import ResolvedRequest
from paradit.config.steps import Steps
from paradit.models.spec import ModelSpec

QUEUE_BAR = 20


def duration(seconds: float) -> str:
    """Return seconds as text: `0.42 s`, `12.3 s`, `4 min 05 s`, `2 h 03 min`."""
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 99.95:  # rounds to at most 99.9
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def amount(value: float, unit: str) -> str:
    """Return a value as text with three digits and a decimal prefix: `24.1 MB`, `1.32 TFLOP`."""
    prefixes = ["", "k", "M", "G", "T", "P", "E"]
    while value >= 999.5 and len(prefixes) > 1:  # three digits of it would be 1e+03
        value /= 1000
        prefixes.pop(0)
    return f"{value:.3g} {prefixes[0]}{unit}"


def table(rows: Sequence[Sequence[str]], left: Collection[str] = ()) -> str:
    """Return rows of cells as lines with aligned columns; the first row has the columns' names.

    left: names of the columns that are aligned to the left.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = zip(row, rows[0], widths, strict=True)
        lines.append("  ".join(c.ljust(w) if name in left else c.rjust(w) for c, name, w in cells).rstrip())
    return "\n".join(lines)


def pictures_text(placement: Placement, by_rank: Sequence[dict[str, int]], seconds: float | None) -> str:
    """Return a line on the encoding of a request's pictures: on which rank, why there, and what it needs.

    by_rank: bytes of each rank's memory, by part. seconds: time that it takes; None: not known.
    """
    ranks = [group[0] for group in placement.decode_groups]
    many = f"ranks {written(ranks)} in turn, each of which decodes the video that it encodes pictures for"
    place = many if len(ranks) > 1 else f"rank {ranks[0]}, which decodes and so has the VAE"
    (texts,) = placement.encode_ranks
    while_texts = "after" if ranks == [texts] else f"while rank {texts} encodes"
    took = "" if seconds is None else f" in {duration(seconds)}"
    memory = amount(by_rank[ranks[0]]["conditions"], "B")
    return f"pictures: encoded{took} with {memory} of working memory, {while_texts} the texts, on {place}"


def result_text(result: dict[str, Any]) -> str:
    stages = ", ".join(f"{name} {duration(seconds)}" for name, seconds in result["seconds"].items())
    lines = [
        result["path"],
        f"  {_video(result)}, seed {result['seed']}, model {result['model']}",
        f"  {stages}",
    ]
    if "seconds_to_first_frame" in result:
        lines[-1] += f"; first frame after {duration(result['seconds_to_first_frame'])}"
    if "peak_memory_bytes_by_rank" in result:
        by_rank = [amount(size, "B") for size in result["peak_memory_bytes_by_rank"]]
        place = "on the GPU " if result["device"] == "cuda" else ""
        ranks = "" if len(by_rank) == 1 else "by rank "
        lines.append(f"  peak memory {place}{ranks}{', '.join(by_rank)}")
    if result.get("latents_path"):
        lines.insert(1, f"  latents in {result['latents_path']}")
    return "\n".join(lines)


def steps_text(request: Steps, spec: ModelSpec) -> str:
    """Return text on how a request's steps differ from the model's own; empty if they do not.

    For a model with two experts, it also says how many evaluations each takes.
    """
    about = request.changed_steps
    parts = [f"{name.replace('_', ' ')} {about[name]}" for name in ("preset", "scheduler") if name in about]
    parts += [f"shift {request.shift:g}"] if request.shift is not None else []
    if request.steps_to_do < request.num_inference_steps:
        parts.insert(0, f"only the last {request.steps_to_do} of {request.num_inference_steps}")
    if request.timesteps is not None:
        before = ",".join(f"{timestep:g}" for timestep in request.timesteps)
        given = ",".join(f"{timestep:.1f}".removesuffix(".0") for timestep in request.model_timesteps(spec))
        parts.append(f"timesteps {before}, for the model {given}")
    if len(spec.transformers) == 2:
        first, second = request.evaluations(spec)
        scales = [f"{scale:g}" for scale in request.guidance_scales(spec)]
        parts.append(f"high-noise expert {first} (guidance {scales[0]}), low-noise {second} ({scales[1]})")
    return "; ".join(parts)


def inputs_text(request: ResolvedRequest) -> str:
    """Return text on the pictures or the video that a request gives, with their sizes; empty without any."""
    found, sizes = [], set()
    for name in INPUTS:
        path = getattr(request, name)
        if path is None:
            continue
        from paradit.inputs.pictures import picture_size
        from paradit.inputs.videos import video_facts

        rate = ""
        if name == "video":
            facts = video_facts(name, path, request.fps)
            size, rate = (facts.width, facts.height), f", {facts.fps:.6g} fps"
        else:
            size = picture_size(name, path)
        sizes.add(size)
        found.append(f"{name.replace('_', ' ')} {Path(path).name} ({size[0]}x{size[1]}{rate})")
    fit = f"; fit {request.fit}" if sizes - {(request.width, request.height)} else ""
    return ", ".join(found) + fit


def queue_text(block: int, num_blocks: int | None, levels: tuple[int, int], steps: int) -> str:
    """Return text on a queue of frame blocks: `[################----] block 37 of 46, level 14..50`.

    The bar shows how many frame blocks are done. levels: steps done by the noisiest and by the most denoised
    frame block.
    """
    bar, of = "", ""
    if num_blocks:
        filled = QUEUE_BAR * (block - 1 + (levels[1] == steps)) // num_blocks
        bar, of = f"[{'#' * filled:-<{QUEUE_BAR}}] ", f" of {num_blocks}"
    return f"{bar}block {block}{of}, level {levels[0]}..{levels[1]}"


def memory_text(by_rank: list[int], stages: list[tuple[str, ...]]) -> str:
    """Return one line with each rank's stages and peak memory, for a run with stages on different ranks."""
    each = (f"{', '.join(names)} {amount(size, 'B')}" for names, size in zip(stages, by_rank, strict=True))
    return "peak memory by rank: " + "; ".join(f"{rank}: {text}" for rank, text in enumerate(each))


def plan_text(plan: dict[str, Any]) -> str:
    parts = sorted(plan["memory_bytes"].items(), key=lambda part: part[0] == "peak")  # last
    memory = ", ".join(f"{part.replace('_', ' ')} {amount(size, 'B')}" for part, size in parts)
    latents = " x ".join(str(size or "any") for size in plan["latent_shape"])
    in_all = "" if plan["flops"] is None else f", {amount(plan['flops'], 'FLOP')} in all"
    at_once, step = ("", "step") if plan["method"] == "full" else (" in a window", "step of a window")
    alone = ", on one rank" if plan["ranks"] > 1 else ""
    guidance = plan["guidance_scale"]
    folder = "" if plan["model_folder"] == plan["model"] else f", {plan['model_folder']}"
    rows = {
        "prompt": plan["prompt"],
        "model": f"{plan['model']} ({plan['pipeline_class']}{folder})",
        **({"loras": ", ".join(plan["loras"])} if "loras" in plan else {}),
        **({"inputs": plan["inputs"]} if plan["inputs"] else {}),
        "video": _video(plan),
        "latents": f"{latents} (channels, frames, height, width), {plan['tokens']} tokens{at_once}",
        "denoise": f"{plan['num_inference_steps']} steps, guidance {guidance:g}, seed {plan['seed']}",
        **({"steps": plan["steps"]} if plan["steps"] else {}),
        "compute": f"{amount(plan['step_flops'], 'FLOP')} a {step}{in_all}",
        "memory": f"estimated, in {plan['dtype']}{alone}: {memory}",
        "output": plan["path"],
    }
    if "used_share" in plan:
        rows["blocks"] = _blocks(plan)
    if plan["ranks"] > 1:
        rows["ranks"] = "; ".join(_share_text(share) for share in plan["shares"])
        peaks = (amount(parts["peak"], "B") for parts in plan["memory_bytes_by_rank"])
        rows["by rank"] = (
            f"estimated memory: {'; '.join(f'{rank}: {peak}' for rank, peak in enumerate(peaks))}"
        )
    return "\n".join(f"{name + ':':<9}{value}" for name, value in rows.items())


def _blocks(plan: dict[str, Any]) -> str:
    """Return a line about a long video's frame blocks, for a dry run: sizes, rounds, and how busy ranks are.

    A round is one pass over the queue of frame blocks.
    """
    sizes = f"of {plan['block_frames']} latent frames, in windows of {plan['window_frames']}"
    lag = f", lag {plan['lag']}" if plan["lag"] > 1 else ""
    used = f"ranks busy for {plan['used_share']:.1%} of the time"
    if plan["num_blocks"] is None:
        return f"without end, {sizes}{lag}; {used}"
    return f"{plan['num_blocks']} {sizes}{lag}; {plan['rounds']} rounds, {used}"


def _video(fields: dict[str, Any]) -> str:
    if fields["num_frames"] is None:
        return f"until it is stopped, {fields['width']}x{fields['height']}, {fields['fps']:g} fps"
    size, length = f"{fields['width']}x{fields['height']}", duration(fields["num_frames"] / fields["fps"])
    frames = "1 frame" if fields["num_frames"] == 1 else f"{fields['num_frames']} frames"
    return f"{frames}, {size}, {fields['fps']:g} fps ({length})"


def _share_text(share: dict[str, Any]) -> str:
    parts = [stage for stage in share["stages"] if stage != "denoise"]
    if "tokens" in share:
        layers = f"{share['layers']} layers, " if "layers" in share else ""
        parts.insert(0, f"{layers}{share['tokens']} tokens, {share['rows']} rows of attention")
    return f"{share['rank']}: {', '.join(parts)}"
