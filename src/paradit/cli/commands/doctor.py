"""`paradit doctor`: its options."""

from __future__ import annotations

from typing import Annotated

import typer


def doctor(json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False) -> int:
    """What this machine has, what ParaDiT can use of it, and what to install to go faster."""
    from paradit.cli.doctor import doctor as run
    from paradit.streams import code_of_output

    run(as_json=json)
    return code_of_output()
