"""Set-up of an attention form, such as Ulysses or ring, on the ranks that share attention."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeAlias, cast

from torch import Tensor

from paradit.attention.base import Attend, Dealt, Kernel, Layout, Projection, Site, Wait
from paradit.attention.registry import Choice
from paradit.config.plugins import imported
from paradit.distributed.mesh import Sharers
from paradit.distributed.shares import Shares

Join: TypeAlias = Callable[[Sharers, Choice, Kernel], Callable[[Shares], Attend | Dealt]]
"""Type of the function, named by `Form.joined_by`, that sets up an attention form on ranks."""


def join(sharers: Sharers, choice: Choice, kernel: Kernel) -> Callable[[Shares], Attend | Dealt]:
    """Set up an attention form on ranks; return a function that makes this rank's attention function.

    The returned function is called for each division of an attention among the ranks. It takes a `Shares`:
    which tokens each rank holds, and which part of the attention it computes. It returns the function that
    computes this rank's part, or a `Dealt` if the form deals tokens in its own way.

    sharers: the ranks that share the attention. All of them call `join` together, once, because it may create
    process groups. They may include helpers, which take a share of the attention but hold no tokens; helpers
    are decode ranks and come last. choice: the attention form and its options. kernel: function that computes
    attention. Attention forms that need the log-sum-exp compute attention with a function of their own
    instead.
    """
    build = cast("Join", imported(choice.form.joined_by))(sharers, choice, kernel)
    if choice.form.patterns:
        return build
    return lambda shares: _only_full(cast("Attend", build(shares)), choice.name)


def _only_full(attend: Attend, form: str) -> Attend:
    """Return an attention function that refuses sites with a pattern, which it would compute wrongly.

    form: name of its attention form. Raises NotImplementedError. A request for a model with sparse layers is
    refused earlier (`config.placement_checks`).
    """

    def attend_fully(site: Site, projection: Projection, layout: Layout) -> Generator[Wait, None, Tensor]:
        if site.pattern is not None:
            raise NotImplementedError(f"attention {form} takes no patterns, got {site}")
        return attend(site, projection, layout)

    return attend_fully
