"""Reasons that `--explain` prints for a run's choices (method, placement, attention form) and for its memory.

Imports no torch.
"""

from __future__ import annotations

from paradit.attention.registry import AUTO
from paradit.cli.choose_placement import Arranged
from paradit.cli.commands.generate_options import GenerateOptions
from paradit.cli.text import amount, pictures_text, steps_text
from paradit.config.methods.method import method_of
from paradit.config.placement import Placement
from paradit.config.presets import find_preset
from paradit.config.requests import ResolvedRequest
from paradit.models.spec import ModelSpec

BYTES = {"bf16": 2, "fp32": 4}


def explain(
    options: GenerateOptions, request: ResolvedRequest, arranged: Arranged, spec: ModelSpec
) -> list[str]:
    """Return lines that explain a request's method, use of ranks, attention form and peak memory."""
    return [
        _method(options, request, spec),
        *_steps(request, spec),
        *arranged.why,
        *_attention(request, arranged, spec),
        *_memory(request, arranged.placement, spec),
    ]


def _method(options: GenerateOptions, request: ResolvedRequest, spec: ModelSpec) -> str:
    if options.method is not None:
        return f"method {request.method}: as requested"
    if request.video is not None:
        return f"method {request.method}: a video is changed as a whole"
    trained = spec.defaults.train_frames
    if trained is None:
        return f"method {request.method}: the length that the model was trained on is not known"
    limit = (1 if request.trim else 2) * trained[1]
    than = "more" if request.num_frames > limit else "no more"
    twice = "" if request.trim else "twice "
    return (
        f"method {request.method}: {request.num_frames} frames are {than} than {limit}, {twice}the length "
        "of the longest videos that the model was trained on"
    )


def _steps(request: ResolvedRequest, spec: ModelSpec) -> list[str]:
    text = steps_text(request, spec)
    if not text or request.preset is None:
        return [f"steps: {text}"] if text else []
    preset = find_preset(request.preset)
    return [f"steps: {text}", f"preset {request.preset}: for {preset.about} (from {preset.source})"]


def _attention(request: ResolvedRequest, arranged: Arranged, spec: ModelSpec) -> list[str]:
    placement = arranged.placement
    if placement.branch_ranks == 1 or method_of(request).divides_layers:
        return []
    if arranged.form:
        return [arranged.form]
    first = spec.transformers[0]
    choices = placement.choices(first.num_attention_heads, patterns=first.sparse_patterns)
    if placement.attention == AUTO or len(choices) > 1:
        return [
            f"attention {placement.attention}: the fastest form, which is measured in the first step "
            "(--verbose names it)"
        ]
    return [f"attention {placement.attention}: as requested"]


def _memory(request: ResolvedRequest, placement: Placement, spec: ModelSpec) -> list[str]:
    dtype = request.dtype or "fp32"
    by_rank = method_of(request).memory_by_rank(placement, request, spec, BYTES[dtype])
    rank = max(range(len(by_rank)), key=lambda number: by_rank[number]["peak"])
    parts = ", ".join(
        f"{name.replace('_', ' ')} {amount(size, 'B')}"
        for name, size in by_rank[rank].items()
        if name != "peak"
    )
    most = amount(by_rank[rank]["peak"], "B")
    return [
        *([pictures_text(placement, by_rank, None)] if request.has_pictures else []),
        f"memory, in {dtype}: at most about {most}, on rank {rank} ({parts})",
    ]
