"""Command `paradit doctor`: print this machine's devices, links and software.

Imports torch only when it runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from paradit.cli.commands.doctor_options import DoctorOptions
from paradit.cli.text import amount
from paradit.streams import code_of_output


def doctor(options: DoctorOptions) -> int:
    """Print this machine's devices, links and software, and return the exit code."""
    _print(as_json=options.json)
    return code_of_output()


def _print(*, as_json: bool) -> None:
    try:
        from paradit.engine.machine_report import examine
    except ImportError as error:  # nothing else can be examined without torch
        said = f"{error}: reinstall ParaDiT with its dependencies"
        print(json.dumps({"event": "doctor", "error": said}) if as_json else said)
        return

    found = examine()
    if as_json:
        print(json.dumps({"event": "doctor", **found}))
        return
    for heading, show in _SHOWN.items():
        part = found[heading]
        failed = isinstance(part, dict) and "error" in part
        lines = [part["error"]] if failed else list(show(part))
        for number, line in enumerate(lines):
            print(f"{heading if number == 0 else '':<10}{line}")


def _versions(found: dict[str, str | None]) -> Iterator[str]:
    yield ", ".join(f"{name} {version or 'none'}" for name, version in found.items())


def _devices(found: list[dict[str, Any]]) -> Iterator[str]:
    for one in found:
        parts = f"{one['cores']} cores" if one["kind"] == "cpu" else f"capability {one['capability']}"
        yield f"{one['name']}: {parts}, {amount(one['memory_bytes'], 'B')}"


def _links(found: dict[str, Any] | None) -> Iterator[str]:
    if found is None:
        yield "one device, so no link to measure"
        return
    pair, everyone = (amount(found[f"{which}_bytes_per_second"], "B/s") for which in ("pair", "all"))
    own = found["neighbours_bytes_per_second"]
    neighbours = f" ({amount(own, 'B/s')} between 0 and 1, 2 and 3, ...)" if own else ""
    yield (
        f"{found['ranks']} ranks over {found['over']}: latency {1e6 * found['latency_seconds']:.0f} us; "
        f"a rank sends {pair} to one other{neighbours}, {everyone} if all send to all"
    )


def _states(found: dict[str, str]) -> Iterator[str]:
    for state in dict.fromkeys(sorted(found.values(), key=lambda state: state != "ready")):
        yield f"{state}: {', '.join(name for name, other in found.items() if other == state)}"


def _use(found: dict[str, Any]) -> Iterator[str]:
    threads = found["threads_per_rank"]
    yield f"{found['command']}  ({found['device']}, {found['dtype']}, {threads} threads a rank)"


def _list(found: list[str]) -> Iterator[str]:
    yield from found or ["none"]


_SHOWN: dict[str, Any] = {
    "versions": _versions,
    "devices": _devices,
    "links": _links,
    "attention_backends": _states,
    "formats": _states,
    "use": _use,
    "warnings": _list,
    "faster": _list,
}
