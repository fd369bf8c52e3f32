"""Record of what a video was made from, for its file's metadata: enough to make it again. Torch-free."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from paradit.config.request_inputs import INPUTS
from paradit.config.requests import ResolvedRequest
from paradit.inputs.files import sha256
from paradit.models.identity import model_hash
from paradit.models.spec import ModelSpec
from paradit.version import __version__

_NOT_DECIDING = ("trim", "dtype", *INPUTS)
"""Request fields left out of the record of what a video was made from.

They do not change the video's frames or their times. The dtype that the run used is recorded separately, and
pictures are recorded by their content.
"""


def provenance(
    request: ResolvedRequest, spec: ModelSpec, dtype: str, attention_backend: str
) -> dict[str, Any]:
    """Return all that decides a resolved request's frames: the request, the model and this version.

    dtype: data type that the transformers ran in. attention_backend: its name, as diffusers has it. The
    placement, the time and the command are left out, so that equal frames make equal files.
    """
    fields = {name: value for name, value in vars(request).items() if name not in _NOT_DECIDING}
    if request.endless:  # the number is a sentinel, not the video's length
        del fields["num_frames"]
    paths = {name: Path(path) for name in INPUTS if (path := getattr(request, name))}
    if not paths:
        del fields["fit"]  # nothing was fitted
    return {
        "software": f"paradit {__version__}",
        "model": spec.name,
        "model_hash": model_hash(spec.folder, spec.variant),
        **({"loras": [lora.about() for lora in spec.loras]} if spec.loras else {}),
        **{name: value for name, value in fields.items() if value not in (None, ())},
        **{name: {"name": path.name, "sha256": sha256(path)} for name, path in paths.items()},
        "dtype": dtype,
        "attention_backend": attention_backend,
    }


def tags(about: dict[str, Any]) -> dict[str, str]:
    """Return the metadata for a video file: the prompt as its title, and the record `about` as JSON.

    about: record of what the video was made from, as `provenance` returns it.
    """
    title = " ".join(str(about.get("prompt", "")).split())
    return {"title": title, "comment": json.dumps(about, ensure_ascii=False)}
