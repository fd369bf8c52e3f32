"""Encode, the first stage: turns a request's texts into prompt embeddings for the transformer."""

from __future__ import annotations

import textwrap

from paradit.config.requests import ResolvedRequest
from paradit.models.protocol import Prompt, VideoModel
from paradit.models.spec import ModelSpec
from paradit.progress import Progress

QUOTED = 200
"""Largest number of characters that a warning quotes from the part of a prompt that was cut off."""


def encode(model: VideoModel, request: ResolvedRequest, progress: Progress) -> tuple[Prompt, ...]:
    """Return the prompt embeddings of each of a request's texts: prompt, negative prompt, later prompts.

    Reported as stage "encode". Warns, through `progress`, about each text that is longer than a text encoder
    can read.
    """
    prompts = _with_template(request, model.spec)
    for prompt in prompts:
        for encoder, (length, rest) in model.left_out(prompt).items():
            progress.warn(
                f"the prompt is longer than the {length} tokens that {encoder} reads: this is ignored: "
                f"{textwrap.shorten(rest, QUOTED, placeholder=' [...]')!r}"
            )
    encoded = []
    with progress.stage("encode", total=len(prompts)):
        for number, prompt in enumerate(prompts, 1):
            encoded.append(model.encode_prompt(prompt, request.guidance_scale))
            progress.step("encode", number)
    return tuple(encoded)


def _with_template(request: ResolvedRequest, spec: ModelSpec) -> list[str]:
    """Return a request's texts, the prompts within the model's template for prompts."""
    prompt, *others = request.texts(spec)
    negative = [others.pop(0)] if request.num_branches(spec) == 2 else []
    return [spec.prompt_template.format(prompt), *negative, *map(spec.prompt_template.format, others)]
