"""Assignment of GPUs: each rank needs one of its own if there are GPUs."""

import pytest
import torch

from paradit.config.errors import InputError
from paradit.config.placement import Placement
from paradit.devices import SHARE_GPUS, device_of
from paradit.engine.run import check_devices


def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_devices(Placement(ranks=2), None)
    with pytest.raises(InputError, match=r"3 ranks .* has 2: use at most 2"):
        check_devices(Placement(ranks=3), None)
    monkeypatch.setenv(SHARE_GPUS, "1")
    check_devices(Placement(ranks=3), None)
    assert [device_of(rank).index for rank in range(3)] == [0, 1, 0]


def test_a_cpu_runs_any_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check_devices(Placement(ranks=5), None)
