"""Set-up of an attention form, such as Ulysses or ring, on the ranks that share attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, cast

from paradit.attention.base import Attend, Kernel
from paradit.attention.registry import Choice
from paradit.config.plugins import imported
from paradit.distributed.mesh import Sharers
from paradit.distributed.shares import Shares

Join: TypeAlias = Callable[[Sharers, Choice, Kernel], Callable[[Shares], Attend]]
"""Type of the function, named by `Form.joined_by`, that sets up a form of attention on ranks."""


def join(sharers: Sharers, choice: Choice, kernel: Kernel) -> Callable[[Shares], Attend]:
    """Return a function that takes ranks' shares of tokens and work, and returns this rank's attention.

    All ranks of `sharers` call it together, once, because it may create process groups. If a form allows
    helpers (decode ranks that hold no tokens), the helpers also call it, as the last of these ranks. kernel:
    function that computes attention; a form that needs the log-sum-exp uses its own.
    """
    return cast("Join", imported(choice.form.joined_by))(sharers, choice, kernel)
