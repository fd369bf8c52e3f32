"""The first stage: a request's texts become what the transformer reads."""

from __future__ import annotations

import textwrap

from paradit.config.requests import Request, prompt_blocks
from paradit.models.protocol import Prompt, VideoModel
from paradit.models.spec import ModelSpec
from paradit.progress import Progress

QUOTED = 200
"""Most characters of a prompt's end that a warning quotes."""


def texts(spec: ModelSpec, request: Request) -> list[str]:
    """The prompt, for guidance the negative prompt, and each other later prompt of a resolved request."""
    prompts = [request.prompt]
    if spec.num_branches(request.guidance_scale or 1.0) == 2:
        prompts.append(request.negative_prompt or "")
    later = dict.fromkeys(text for _, text in request.prompts_at)
    return prompts + [text for text in later if text not in prompts]


def by_block(
    spec: ModelSpec, request: Request, prompts: tuple[Prompt, ...]
) -> tuple[tuple[Prompt, ...], list[tuple[int, Prompt]]]:
    """The encoded prompt and negative prompt, and the prompts that take the first one's place.

    prompts: of `texts`. Of the latter each with the block, from 0, that it is the first for.
    """
    of_text = dict(zip(texts(spec, request), prompts, strict=True))
    blocks = prompt_blocks(request, spec)
    later = [
        (block, of_text[text])
        for block, (_, text) in zip(blocks, request.prompts_at, strict=True)
        if block is not None
    ]
    return prompts[: spec.num_branches(request.guidance_scale or 1.0)], later


def encode(model: VideoModel, request: Request, progress: Progress) -> tuple[Prompt, ...]:
    """Each of the texts as the model encodes it; told as stage "encode"."""
    prompts = texts(model.spec, request)
    for prompt in prompts:
        for encoder, (length, rest) in model.left_out(prompt).items():
            progress.warn(
                f"the prompt is longer than the {length} tokens that {encoder} reads: it leaves out "
                f"{textwrap.shorten(rest, QUOTED, placeholder=' [...]')!r}"
            )
    with progress.stage("encode", total=len(prompts)):
        return tuple(model.encode_prompt(prompt, request.guidance_scale) for prompt in prompts)
