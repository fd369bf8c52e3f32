"""Checks of the pictures and videos that a request gives, and the size and length that follow from them.

Files are opened here only if a request names some, since that imports NumPy, Pillow and PyAV.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from paradit.config.errors import InputError
from paradit.config.limits import amount, shown, typed
from paradit.config.options import did_you_mean
from paradit.models.spec import ModelSpec

INPUTS = ("image", "last_image", "video")
"""Names of the request fields that name a picture or a video."""
FITS = ("cover", "contain", "stretch")
DEFAULT_STRENGTH = 0.8
"""Strength with which a given video is changed unless the request says otherwise, as in diffusers."""


def with_inputs(found: Mapping[str, Any], spec: ModelSpec, *, multiple: int, endless: bool) -> dict[str, Any]:
    """Check a request's pictures, and return the fields that they decide; none without pictures.

    They decide the size, unless it is given; a video also decides the length. found: fields of the request,
    checked; width, height, num_frames and strength are None if they are not given. multiple: number of pixels
    that sides must be a multiple of. endless: whether the video to make has no end. Raises InputError.
    """
    _check_together(found, [name for name in INPUTS if found[name] is not None], spec, endless=endless)
    made: dict[str, Any] = {name: _path(name, found[name]) for name in INPUTS if found[name] is not None}
    if not made:
        return made
    if "last_image" in made:
        _check_last(found["num_frames"], spec)
    from paradit.inputs.pictures import picture_size
    from paradit.inputs.videos import video_facts

    sizes = [picture_size(name, path) for name, path in made.items() if name != "video"]
    if "video" in made:
        facts = video_facts("video", made["video"], found["fps"])
        sizes = [(facts.width, facts.height)]
        made["num_frames"] = _length(found, made["video"], spec)
        made["strength"] = _strength(found["strength"], found["num_inference_steps"])
    made["width"], made["height"] = _size(found["width"], found["height"], sizes[0], spec, multiple)
    return made


def input_notes(video: str | None, fps: float, num_frames: int) -> list[str]:
    """Return a line on how a request's video is converted and cut; none without a video, or if it is not."""
    if video is None:
        return []
    from paradit.inputs.videos import video_facts

    facts, parts = video_facts("video", video, fps), []
    if not math.isclose(facts.fps, fps, rel_tol=1e-3):
        parts.append(f"{facts.fps:.6g} fps converted to {fps:.6g}")
    if facts.total > num_frames:
        parts.append(f"{num_frames} of {facts.total} frames used")
    return [f"video {shown(Path(video).name)}: {', '.join(parts)}"] if parts else []


def _path(name: str, value: object) -> str:
    """Return the absolute path of a request's picture or video. Raises InputError."""
    try:
        path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    except TypeError:  # it returns no path
        path = None
    if not isinstance(path, str):
        raise InputError(f"{name} must be a path, got {typed(value)}")
    from paradit.inputs.files import input_file

    return str(input_file(name, path))


def _check_together(
    found: Mapping[str, Any], given: Collection[str], spec: ModelSpec, *, endless: bool
) -> None:
    """Refuse inputs that do not belong together, or that the model does not take. Raises InputError."""
    for name in given:
        if name not in spec.takes:
            raise InputError(f"{name} must be left out: {_taken(name, spec)}")
    if "video" in given and len(given) > 1:
        raise InputError("give image or video, not both")
    if "last_image" in given and "image" not in given and spec.needs_image:
        raise InputError("last_image needs image, the picture of the first frame: give both")
    if spec.needs_image and "image" not in given:
        raise InputError(f"image is missing: the model {spec.name!r} makes videos from a picture")
    if spec.needs_last_image and "last_image" not in given:
        raise InputError(f"last_image is missing: the model {spec.name!r} makes videos between two pictures")
    if endless and (ending := next((name for name in ("last_image", "video") if name in given), None)):
        raise InputError(f"{ending} cannot be given for a video without an end: leave duration inf out")
    if found["strength"] is not None and "video" not in given:
        raise InputError("strength needs video: it says how much of that video is changed")
    if found["fit"] not in FITS:
        hint = did_you_mean(found["fit"], FITS)
        raise InputError(f"fit must be one of {', '.join(FITS)}, got {shown(found['fit'])}{hint}")
    if found["fit"] != FITS[0] and not given:
        raise InputError(f"fit {found['fit']} needs a picture or video to fit: give image or video")


def _taken(name: str, spec: ModelSpec) -> str:
    """Return what the model takes instead of an input, and which models take it, for an error message."""
    from paradit.models.published import published_models, published_spec

    able = [model for model in published_models() if name in published_spec(model).takes]
    models = f"; models that take {name}: {', '.join(able)}" if able else ""
    takes = [other for other in INPUTS if other in spec.takes]
    what = f"takes {' and '.join(takes)} only" if takes else "makes videos from text alone"
    return f"the model {spec.name!r} {what}{models}"


def _check_last(num_frames: int | None, spec: ModelSpec) -> None:
    """Refuse a picture of the last frame if that is in the first latent frame. Raises InputError."""
    number = spec.defaults.num_frames if num_frames is None else num_frames
    if number == 1:
        least = spec.vae.temporal_compression + 1
        raise InputError(f"last_image needs num_frames of at least {least}, got 1: leave last_image out")


def _length(found: Mapping[str, Any], path: str, spec: ModelSpec) -> int:
    """Return the number of frames to make of a video, after checking that it has as many."""
    from paradit.inputs.videos import count_frames

    asked, ratio = found["num_frames"], spec.vae.temporal_compression
    wanted = spec.defaults.num_frames if asked is None else asked
    there = count_frames("video", path, found["fps"], wanted)
    if there >= wanted:
        return wanted
    fitting = there if found["trim"] else (there - 1) // ratio * ratio + 1
    if asked is None:
        return fitting
    raise InputError(
        f"num_frames must be at most {there}, the frames of video {shown(Path(path).name)} at "
        f"{found['fps']:.6g} fps, got {asked}: the nearest is {fitting}"
    )


def _strength(strength: object, steps: int) -> float:
    """Return the strength to change a video with. Raises InputError, also if it leaves no step to do."""
    found = amount(
        "strength",
        DEFAULT_STRENGTH if strength is None else strength,
        most=1,
        hint="1 keeps nothing of the video",
    )
    if int(steps * found) < 1:
        least = math.ceil(10_000 / steps) / 10_000  # rounded up, so that it is enough
        raise InputError(
            f"strength must be at least {least:g}, so that one of the {steps} steps is done, got {found:g}"
        )
    return found


def _size(
    width: int | None, height: int | None, picture: tuple[int, int], spec: ModelSpec, multiple: int
) -> tuple[int, int]:
    """Return the width and height of a video in the aspect of a picture; sides that are given stay.

    If none is given, the area is that of the model's default size, as on Wan's model cards.
    """
    aspect, area = picture[1] / picture[0], spec.defaults.width * spec.defaults.height
    if width is None and height is None:
        wide, high = (round(math.sqrt(area * by)) // multiple * multiple for by in (1 / aspect, aspect))
        return max(multiple, wide), max(multiple, high)
    if width is None:
        assert height is not None
        width = max(1, round(height / aspect / multiple)) * multiple
    elif height is None:
        height = max(1, round(width * aspect / multiple)) * multiple
    return width, height
