"""Files of prompts: text with a prompt on each line, or JSON lines with a whole request on each."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from paradit.config.errors import InputError
from paradit.config.limits import MAX_PROMPTS
from paradit.config.methods.registry import declared_options
from paradit.config.options import Declared, all_fields, named, read_all, read_object
from paradit.config.request_inputs import INPUTS
from paradit.config.requests import Request
from paradit.files import read_text

REQUESTS = ".jsonl"
"""Suffix of files with a request, as a JSON object, on each line."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """Fields that are given for one request, at least its prompt; others are those of the command line."""

    fields: Mapping[str, Any]
    where: str = ""
    """File and line that the fields stand in, for error messages; empty if the command line gives them."""


def read_prompts_file(path: Path) -> list[Given]:
    """Return what a file gives for each of its requests. Raises InputError."""
    said = f"prompts file {str(path)!r}"
    try:
        lines = [line.strip() for line in read_text(path).splitlines()]
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"{said} cannot be read: {reason}") from None
    numbered = [(n, line) for n, line in enumerate(lines, 1) if line and not line.startswith("#")]
    if not numbered:
        raise InputError(f"{said} has no prompt: write one on each line")
    if len(numbered) > MAX_PROMPTS:
        raise InputError(f"{said} has {len(numbered)} prompts: a run can have at most {MAX_PROMPTS}")
    if path.suffix.lower() != REQUESTS:
        return [Given(fields={"prompt": line}) for _, line in numbered]
    return [_request(line, f"{said}: line {number}", path.absolute().parent) for number, line in numbered]


def _request(line: str, where: str, folder: Path) -> Given:
    """Return the fields of a request that are written in JSON. Raises InputError.

    where: file and line, for error messages. folder: folder that paths of pictures are relative to.
    """
    plain = read_object(line, where)
    with named(where):
        found = read_all(_fields(), {"prompt": plain.pop("prompt", None), **plain})
    for name in INPUTS:
        path = found.get(name)
        if isinstance(path, str) and path and ":/" not in path:  # a URL is refused later
            found[name] = os.path.join(folder, os.path.expanduser(path))  # noqa: PTH111, PTH118 (never raise)
    return Given(fields=found, where=where)


@cache
def _fields() -> Mapping[str, Declared]:
    """Return the fields of a request that a file can give, by name, with those of all methods."""
    own = {name: field for name, field in all_fields(Request).items() if name != "options"}
    paths = {name: Declared.of(name, str | None, None) for name in INPUTS}
    later = {"prompts_at": Declared.of("prompts_at", tuple[tuple[float, str], ...], ())}
    return {**own, **paths, **later, **declared_options()}
