"""The first stage: a request's texts become what the transformer reads."""

from __future__ import annotations

from paradit.models.protocol import Prompt, VideoModel
from paradit.models.spec import ModelSpec
from paradit.progress import Progress
from paradit.requests import Request


def texts(spec: ModelSpec, request: Request) -> list[str]:
    """The prompt and, for guidance, the negative prompt of a resolved request."""
    prompts = [request.prompt]
    if spec.num_branches(request.guidance_scale or 1.0) == 2:
        prompts.append(request.negative_prompt or "")
    return prompts


def encode(model: VideoModel, request: Request, progress: Progress) -> tuple[Prompt, ...]:
    """Each of the texts as the model encodes it; told as stage "encode"."""
    prompts = texts(model.spec, request)
    with progress.stage("encode", total=len(prompts)):
        return tuple(model.encode_prompt(prompt, request.guidance_scale) for prompt in prompts)
