"""`paradit doctor`: its options."""

from __future__ import annotations

from dataclasses import dataclass

from paradit.cli.commands.command import Entry
from paradit.cli.commands.shared import JsonObject


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """What this machine has, what ParaDiT can use of it, and what to install to go faster."""

    json: JsonObject = False


def doctor(options: DoctorOptions) -> int | None:
    """Run the command."""
    from paradit.cli.doctor import doctor as run
    from paradit.streams import code_of_output

    run(as_json=options.json)
    return code_of_output()


ENTRY = Entry(
    options=DoctorOptions,
    run=doctor,
    example="doctor",
)
