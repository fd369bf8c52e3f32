"""Warnings before a run about requests that can run, but are unlikely to produce what the user wants."""

from __future__ import annotations

from pathlib import Path

from paradit.config.methods.method import method_of
from paradit.config.placement import Placement
from paradit.config.request_inputs import input_notes
from paradit.config.requests import ResolvedRequest
from paradit.models.folder import bundled_folder
from paradit.models.registry import family
from paradit.models.spec import ModelSpec


def warnings_for(request: ResolvedRequest, spec: ModelSpec, placement: Placement | None = None) -> list[str]:
    """Return the warnings about a request for a model, and what becomes of its video, a line each."""
    of_model = _of_bundled(request, spec) if spec.folder == bundled_folder() else []
    notes = input_notes(request.video, request.fps, request.num_frames)
    of_method = method_of(request).warnings(placement or Placement(), request, spec)
    return [*notes, *of_model, *of_method, *to_convert(spec)]


def to_convert(spec: ModelSpec) -> list[str]:
    """Return a warning if a model is a published one whose checkpoint must be converted before it can run."""
    if spec.folder != Path(spec.name) or not family(spec.pipeline_class).checkpoint:
        return []
    return [
        f"to run {spec.name!r}, download its checkpoint, convert it with `paradit convert`, and give the new "
        "folder as model"
    ]


def _of_bundled(request: ResolvedRequest, spec: ModelSpec) -> list[str]:
    """Return warnings about parts of a request that the bundled model was not trained for."""
    from paradit.shapes import scenes  # imports numpy

    found, defaults = [], spec.defaults
    if not scenes.known_words(request.prompt):
        found.append(
            f"no word of the prompt is known to the model '{spec.name}', which knows the colours "
            f"{', '.join(scenes.COLORS)}; the shapes {', '.join(scenes.SHAPES)}; the motions "
            f"{', '.join(scenes.MOTIONS)}; the backgrounds {', '.join(scenes.BACKGROUNDS)}"
        )
    if (request.width, request.height) != (defaults.width, defaults.height):
        found.append(
            f"size {request.width}x{request.height} is not the {defaults.width}x{defaults.height} that the "
            f"model '{spec.name}' was trained on: the picture may break"
        )
    return found
