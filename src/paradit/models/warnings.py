"""Warnings before a run about requests that can run, but are unlikely to produce what the user wants."""

from __future__ import annotations

from paradit.config.methods.method import method_of
from paradit.config.placement import Placement
from paradit.config.request_inputs import input_notes
from paradit.config.requests import ResolvedRequest
from paradit.models.folder import bundled_folder
from paradit.models.spec import ModelSpec


def warnings_for(request: ResolvedRequest, spec: ModelSpec, placement: Placement | None = None) -> list[str]:
    """Return the warnings about a request for a model, and what becomes of its video, a line each."""
    of_model = _of_bundled(request, spec) if spec.folder == bundled_folder() else []
    notes = input_notes(request.video, request.fps, request.num_frames)
    return [*notes, *of_model, *method_of(request).warnings(placement or Placement(), request, spec)]


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
