"""Launchers' variables, and leftovers of them in the shell; and ranks that wait for each other."""

from __future__ import annotations

import socket

import pytest

from launcher_variables import MEET, SECOND
from paradit.config.errors import InputError
from paradit.launcher_environment import Launched, check_meeting_point, is_spoken_for, launched


def test_what_is_no_launcher() -> None:
    assert launched({}) is None
    assert launched({"RANK": "", "WORLD_SIZE": " "}) is None
    assert launched({**MEET, "LOCAL_RANK": "x", "SLURM_PROCID": "3", "SLURM_NTASKS": "4"}) is None


def test_what_a_launcher_says() -> None:
    here = launched(SECOND)
    assert here == Launched(
        rank=1,
        ranks=2,
        local_rank=1,
        local_ranks=None,
        address="127.0.0.1",
        port=29500,
        by_torchrun=False,
        agent_store=False,
        attempt="",
        unset="unset RANK WORLD_SIZE MASTER_ADDR MASTER_PORT, or start all ranks with torchrun",
    )
    assert not is_spoken_for(SECOND)
    torchrun = {**SECOND, "RANK": "5", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "::1"}
    torchrun["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    here = launched(torchrun)
    assert here is not None
    assert (here.local_rank, here.local_ranks, here.by_torchrun, here.agent_store) == (1, 4, True, True)
    assert here.meeting_point == "[::1]:29500"
    assert is_spoken_for(torchrun)
    assert not is_spoken_for({**torchrun, "RANK": "0"})


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ({"RANK": "1"}, "RANK is set, .*WORLD_SIZE, MASTER_ADDR and MASTER_PORT"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is set, .*RANK, MASTER_ADDR and MASTER_PORT"),
        (
            {"RANK": "0", "WORLD_SIZE": "2"},
            "RANK and WORLD_SIZE are set, .*MASTER_ADDR and MASTER_PORT",
        ),
        ({**SECOND, "RANK": "2"}, r"RANK .* 0 to 1 \(WORLD_SIZE is 2\), got '2'"),
        ({**SECOND, "RANK": "abc"}, "RANK must be .*, got 'abc'"),
        ({**SECOND, "RANK": "-1"}, "RANK must be .*, got '-1'"),
        ({**SECOND, "RANK": "9" * 5000}, "RANK must be .*, got '9{59}\\.\\.\\.: "),
        ({**SECOND, "WORLD_SIZE": "0"}, "WORLD_SIZE .* 1 to 128, got '0'"),
        ({**SECOND, "MASTER_PORT": "abc"}, "MASTER_PORT .* 1 to 65535, got 'abc'"),
        ({**SECOND, "MASTER_PORT": "99999999"}, "MASTER_PORT .*, got '99999999'"),
        ({**SECOND, "LOCAL_RANK": "2"}, r"LOCAL_RANK .* 0 to 1 \(2 ranks .*, got '2'"),
        ({**SECOND, "LOCAL_WORLD_SIZE": "3"}, r"LOCAL_WORLD_SIZE .* 1 to 2 \(.*, got '3'"),
    ],
)
def test_what_a_launcher_does_not_say(said: dict[str, str], complaint: str) -> None:
    with pytest.raises(InputError, match=rf"^{complaint}.*unset [A-Z_ ]*,.* torchrun$"):
        launched(said)


def test_places_where_ranks_cannot_meet() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        with pytest.raises(InputError, match=rf"^MASTER_PORT {port}.* is in use .*: unset"):
            check_meeting_point(place(RANK="0", MASTER_PORT=port))
        check_meeting_point(place(RANK="1", MASTER_PORT=port))  # the first rank may be what listens there
    for name in ("no-such-host.invalid", "a..b"):
        with pytest.raises(InputError, match=rf"^MASTER_ADDR '{name}' .*: unset "):
            check_meeting_point(place(MASTER_ADDR=name))


def place(**said: str) -> Launched:
    here = launched({**SECOND, **said})
    assert here is not None
    return here
