"""Files for the pictures and videos that a request gives as values, so that other code sees only paths."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from paradit.config.errors import InputError
from paradit.config.limits import shown
from paradit.config.request_inputs import INPUTS
from paradit.config.requests import Request


@contextmanager
def as_files(request: Request) -> Iterator[Request]:
    """Context manager that puts paths in place of PIL images and arrays; the files exist until `with` ends.

    Raises InputError for values that are not pictures, and if they cannot be written.
    """
    if not isinstance(request, Request):
        raise InputError(f"request must be a Request, got {shown(request)}")
    values = {name: getattr(request, name) for name in INPUTS}
    given = {name: value for name, value in values.items() if not isinstance(value, str | os.PathLike | None)}
    with ExitStack() as held:
        if given:
            from paradit.inputs.values import save_value

            try:
                folder = Path(held.enter_context(TemporaryDirectory(prefix="paradit-")))
                paths = {name: str(save_value(name, value, folder)) for name, value in given.items()}
            except OSError as error:
                raise InputError(f"{' and '.join(given)} cannot be kept in a file: {error}") from None
            request = replace(request, **paths)  # type: ignore[arg-type]
        yield request
