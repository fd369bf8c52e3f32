"""Construction of attention on ranks, in forms such as Ulysses or ring, by the function that a form names."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, cast

from paradit.attention.base import Attend, Kernel
from paradit.attention.registry import Choice
from paradit.config.registry import imported
from paradit.distributed.mesh import Sharers
from paradit.distributed.shares import Shares

Join: TypeAlias = Callable[[Sharers, Choice, Kernel], Callable[[Shares], Attend]]
"""Type of the function that `Form.joined_by` names, which sets up a form of attention on the ranks."""


def join(sharers: Sharers, choice: Choice, kernel: Kernel) -> Callable[[Shares], Attend]:
    """Return a function that builds this rank's attention for given shares of tokens and work.

    All ranks call it together, once per group that denoises together, because it creates process groups.
    kernel: function that computes attention; a form that needs the log-sum-exp uses its own. If a form allows
    helpers, the ranks that hold no tokens also call it; they are the last of `sharers`.
    """
    return cast("Join", imported(choice.form.joined_by))(sharers, choice, kernel)
