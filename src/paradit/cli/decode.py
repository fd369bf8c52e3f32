"""Command `paradit decode`: check saved latents, then decode them to a video file.

Imports torch only after all other checks.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from paradit.cli.commands.decode_options import DecodeOptions
from paradit.cli.reporters import make_reporter
from paradit.config.errors import InputError
from paradit.config.methods.method import resolve
from paradit.config.requests import Request, ResolvedRequest
from paradit.engine.job import Job
from paradit.engine.reserve import files_reserved
from paradit.models.folder import download_weights, find_spec
from paradit.models.hub import snapshot_of
from paradit.models.spec import ModelSpec
from paradit.video.writer import check_target

_KNOWN: dict[str, Callable[[str], Any]] = {
    "prompt": str,
    "negative_prompt": str,
    "seed": int,
    "guidance_scale": float,
    "num_inference_steps": int,
    "fps": float,
    "vae_tile": int,
}
"""Request fields that a file of saved latents stores as text, with functions that convert the texts.

Width, height and number of frames are not among them: they follow from the latents' shape.
"""


def decode(options: DecodeOptions) -> None:
    """Make the video of latents that `paradit generate --latents` saved.

    Raises InputError if that cannot be done, before weights are loaded or a file is made.
    """
    latents, overwrite = options.latents, options.overwrite
    with make_reporter(options.json) as report:
        shape, about = _read(latents)
        spec = find_spec(options.model, revision=options.revision, variant=options.variant)
        asked = _request(latents, shape, about, options.fps, spec)
        tile = options.vae_tile
        asked = asked if tile is None else replace(asked, vae_tile=tile)
        # Its pictures are in the latents.
        request = resolve(asked, replace(spec, needs_image=False, needs_last_image=False))
        output = options.output if options.output is not None else f"{latents.stem}.mp4"
        job = Job(request=request, output=output, latents=None, crf=options.crf)
        check_target(job.output, fps=request.fps, overwrite=overwrite, crf=job.crf)

        # Imports torch, to query the device: after all other checks, and before weights are downloaded.
        from paradit.engine.saved_latents import decode_saved
        from paradit.memory_check import check_decode_memory

        if warning := check_decode_memory(request, spec):
            report.warn(warning)
        with files_reserved([job], overwrite=overwrite):
            download_weights(options.model, spec.folder, options.variant)
            provenance = None if options.no_metadata else _provenance(about, request)
            decode_saved(latents, job, spec, report, overwrite=overwrite, about=provenance)


def _provenance(about: dict[str, str], request: ResolvedRequest) -> dict[str, Any] | None:
    """Return the record of what a file's latents were made from; None if the file has no such record.

    about: the file's metadata. In the returned record, `fps` and the tile size are those of the present
    decode, because the decode decides them.
    """
    try:
        found = json.loads(about["provenance"])
    except (KeyError, ValueError):
        return None
    if not isinstance(found, dict):
        return None
    decided = {"fps": request.fps, "vae_tile": request.vae_tile}
    return {**found, **{name: value for name, value in decided.items() if value is not None}}


def _read(path: Path) -> tuple[list[int], dict[str, str]]:
    """Return the shape of the latents in a file, and the file's metadata. Raises InputError."""
    if path.is_dir():
        raise InputError(f"latents {str(path)!r} is a folder: name a file that --latents wrote")
    try:
        with safe_open(path, framework="numpy") as file:  # "pt" would import torch
            if "latents" not in file.keys():  # noqa: SIM118 (not a dict)
                raise InputError(f"{str(path)!r} has no tensor 'latents', only {', '.join(file.keys())}")
            shape: list[int] = file.get_slice("latents").get_shape()
            return shape, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise InputError(f"latents {str(path)!r} cannot be read: {error}") from None


def _request(
    path: Path, shape: list[int], about: dict[str, str], fps: float | None, spec: ModelSpec
) -> Request:
    """Return the request that made the latents, as far as it is known. Raises InputError."""
    name, vae = about.get("model", spec.name), spec.vae
    snapshot = snapshot_of(spec.folder)  # earlier versions stored its revision as the model's name
    if name not in (spec.name, snapshot and snapshot[1]):
        raise InputError(
            f"{str(path)!r} was made by the model {name!r}, not {spec.name!r}: name that model with --model"
        )
    if len(shape) != 5 or shape[:2] != [1, vae.z_dim]:
        raise InputError(
            f"latents of the model {spec.name!r} must have the shape [1, {vae.z_dim}, frames, height, "
            f"width], got {shape} in {str(path)!r}"
        )
    _, _, frames, height, width = shape
    try:
        known = {field: kind(about[field]) for field, kind in _KNOWN.items() if field in about}
    except ValueError as error:
        raise InputError(f"metadata of {str(path)!r} cannot be read: {error}") from None
    if fps is not None:
        known["fps"] = fps
    return Request(
        **{"prompt": path.stem, **known},
        width=width * vae.spatial_compression,
        height=height * vae.spatial_compression,
        num_frames=(frames - 1) * vae.temporal_compression + 1,
    )
