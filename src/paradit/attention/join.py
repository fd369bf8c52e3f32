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
"""Type of the function, named by `Form.joined_by`, that sets up an attention form on ranks."""


def join(sharers: Sharers, choice: Choice, kernel: Kernel) -> Callable[[Shares], Attend]:
    """Return a function that takes ranks' shares of tokens and work, and returns this rank's attention.

    sharers: the ranks that share the attention. All of them call this function together, once, because it may
    create process groups. They may include helpers, which take a share of the attention but hold no tokens;
    helpers are decode ranks and come last. kernel: function that computes attention. Attention forms that
    need the log-sum-exp compute attention with a function of their own instead.
    """
    return cast("Join", imported(choice.form.joined_by))(sharers, choice, kernel)
