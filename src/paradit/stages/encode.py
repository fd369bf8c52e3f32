"""The first stage: a request's texts become what the transformer reads."""

from __future__ import annotations

import textwrap

from paradit.config.requests import ResolvedRequest
from paradit.models.protocol import Prompt, VideoModel
from paradit.progress import Progress

QUOTED = 200
"""Most characters of a prompt's end that a warning quotes."""


def encode(model: VideoModel, request: ResolvedRequest, progress: Progress) -> tuple[Prompt, ...]:
    """Each of the texts as the model encodes it; told as stage "encode"."""
    prompts = request.texts(model.spec)
    for prompt in prompts:
        for encoder, (length, rest) in model.left_out(prompt).items():
            progress.warn(
                f"the prompt is longer than the {length} tokens that {encoder} reads: it leaves out "
                f"{textwrap.shorten(rest, QUOTED, placeholder=' [...]')!r}"
            )
    with progress.stage("encode", total=len(prompts)):
        return tuple(model.encode_prompt(prompt, request.guidance_scale) for prompt in prompts)
