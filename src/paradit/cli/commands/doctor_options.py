"""Options of the command `paradit doctor`."""

from __future__ import annotations

from dataclasses import dataclass

from paradit.cli.commands.command import Entry
from paradit.cli.commands.shared import JsonObject, Verbose


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Report what this machine has, what ParaDiT can use of it, and what to install to go faster."""

    json: JsonObject = False
    verbose: Verbose = False


ENTRY = Entry(
    options=DoctorOptions,
    run="paradit.cli.doctor:doctor",
    example="doctor",
)
