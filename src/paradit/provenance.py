"""What a video was made from, for its file's metadata: enough to make it again. Torch-free."""

from __future__ import annotations

import json
from typing import Any

from paradit import __version__
from paradit.config.requests import Request
from paradit.models.identity import model_hash
from paradit.models.spec import ModelSpec

_DECIDING = (
    *("prompt", "negative_prompt", "prompts_at", "seed", "width", "height", "num_frames", "fps"),
    *("num_inference_steps", "guidance_scale", "method", "block_frames", "context_frames", "left_context"),
    "vae_tile",
)
"""Fields of a request that decide frames and their times."""


def provenance(request: Request, spec: ModelSpec, dtype: str, kernel: str) -> dict[str, Any]:
    """Return what decides a resolved request's frames: itself, the model, and this version.

    dtype, kernel: what the transformers ran in, and what computed attention. Neither the placement, nor the
    time, nor the command is among it, so that equal frames make equal files.
    """
    fields = {name: getattr(request, name) for name in _DECIDING}
    if request.endless:
        del fields["num_frames"]
    return {
        "software": f"paradit {__version__}",
        "model": spec.name,
        "model_hash": model_hash(spec.folder),
        **{name: value for name, value in fields.items() if value not in (None, ())},
        "dtype": dtype,
        "kernel": kernel,
    }


def tags(about: dict[str, Any]) -> dict[str, str]:
    """Return metadata for a file: the prompt as its title, and all of `about` as JSON."""
    title = " ".join(str(about.get("prompt", "")).split())
    return {"title": title, "comment": json.dumps(about, ensure_ascii=False)}
