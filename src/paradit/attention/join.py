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
    """Set up an attention form on ranks; return a function that makes this rank's attention function.

    The returned function is called for each division of an attention among the ranks. It takes a `Shares`:
    which tokens each rank holds, and which part of the attention it computes. It returns the function that
    computes this rank's part.

    sharers: the ranks that share the attention. All of them call `join` together, once, because it may create
    process groups. They may include helpers, which take a share of the attention but hold no tokens; helpers
    are decode ranks and come last. choice: the attention form and its options. kernel: function that computes
    attention. Attention forms that need the log-sum-exp compute attention with a function of their own
    instead.
    """
    return cast("Join", imported(choice.form.joined_by))(sharers, choice, kernel)
