"""Attention among ranks, built as its form says."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, cast

from paradit.attention.base import Attend, Kernel
from paradit.attention.registry import Choice
from paradit.config.registry import imported
from paradit.distributed.mesh import Sharers
from paradit.distributed.shares import Shares

Join: TypeAlias = Callable[[Sharers, Choice, Kernel], Callable[[Shares], Attend]]
"""Type of what `Form.joined_by` names."""


def join(sharers: Sharers, choice: Choice, kernel: Kernel) -> Callable[[Shares], Attend]:
    """Return what builds this rank's attention for given shares.

    All ranks call it together, once for a team: here groups of ranks are made. kernel: what computes
    attention; a form that needs the log-sum-exp has its own. A form that is `helped` is also joined by
    ranks that hold no tokens, which are the last of `sharers`.
    """
    return cast("Join", imported(choice.form.joined_by))(sharers, choice, kernel)
