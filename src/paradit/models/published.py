"""Specs of published models, from configurations in this package: no network, no weights, no torch.

For each model, published.json holds those settings, as in the model's repository on the hub, that differ from
the defaults of its classes. It also holds the number of the VAE's parameters, counted from the class.

Sizes were compared with the authors' own settings. For Wan, these are width, feed-forward, heads, layers and
VAE strides (wan/configs/wan_t2v_14B.py, wan_t2v_1_3B.py, wan_t2v_A14B.py, wan_ti2v_5B.py, as in
ml-explore/mlx-examples). For HunyuanVideo, these are 20 double and 40 single blocks, 24 heads and width 3072
(hyvideo). For Open-Sora-Plan, these are the numbers of parameters of the authors' classes.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from paradit.config.errors import InputError
from paradit.models.spec import ModelSpec, read_spec


@cache
def _all() -> dict[str, dict[str, Any]]:
    text = (resources.files("paradit.models") / "published.json").read_text(encoding="utf-8")
    models: dict[str, dict[str, Any]] = json.loads(text)
    return models


def published_models() -> list[str]:
    """Return the hub ids of the published models."""
    return list(_all())


def find_published(name: str) -> str | None:
    """Return the hub id of the published model called `name`; None if there is none.

    The name may lack the organisation, and is compared without regard to case.
    """
    for known in _all():
        if name.lower() in (known.lower(), known.lower().rpartition("/")[2]):
            return known
    return None


def published_spec(name: str) -> ModelSpec:
    """Return the spec (sizes and costs) of a published model. Raises InputError if it is not known."""
    known = find_published(name)
    if known is None:
        close = difflib.get_close_matches(name, published_models(), n=1, cutoff=0.4)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise InputError(f"model {name!r} is not known: {hint}known models: {', '.join(published_models())}")
    configs = _all()[known]
    # Families read specs from folders only, so write the configurations to one.
    with TemporaryDirectory() as made:
        folder = Path(made) / known.rpartition("/")[2]  # as a downloaded model may be called
        folder.mkdir()
        (folder / "model_index.json").write_text(json.dumps(configs["model_index"]))
        for component in configs.keys() - {"model_index", "vae_parameters"}:
            (folder / component).mkdir()
            (folder / component / "config.json").write_text(json.dumps(configs[component]))
        spec = read_spec(folder)
    # A spec does not know how many parameters a VAE has without its weights.
    weights = tuple(
        replace(part, parameters=configs["vae_parameters"]) if part.component == "vae" else part
        for part in spec.weights
    )
    return replace(spec, name=known, folder=Path(known), weights=weights)
