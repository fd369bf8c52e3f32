"""Skiparse-aware attention: tokens are dealt to ranks by the groups in which a model's sparse layers attend.

Open-Sora-Plan v1.3 (github.com/PKU-YuanGroup/Open-Sora-Plan) calls its sparse attention skiparse: a token
attends to the tokens of its group, and neighbouring layers have different groups. In Ulysses each layer moves
four tensors: queries, keys, values and results. Here the hidden states move once between two layers.
"""

from __future__ import annotations

from paradit.attention.dealing import fits
from paradit.attention.registry import Asked, Choice, Form
from paradit.config.errors import InputError


class Skiparse(Form):
    name = "skiparse"
    help = "Each rank holds whole groups of a model's sparse attention, and tokens move between layers."
    exactness = "exact: bit for bit the result of one process"
    automatic = patterns = True
    joined_by = "paradit.attention.dealt:join"
    timed_by = "paradit.attention.timing.dealt:layer"

    def check(self, asked: Asked) -> None:
        super().check(asked)
        if asked.patterns is None:
            return
        if not asked.patterns:
            raise InputError(
                f"attention {self.name} needs a model with sparse attention, such as Open-Sora-Plan: use "
                "ulysses or pipesp"
            )
        if not all(fits(pattern, asked.ranks) for pattern in asked.patterns):
            groups = max(pattern.groups for pattern in asked.patterns)
            fewer = max(n for n in range(1, asked.ranks) if all(fits(one, n) for one in asked.patterns))
            raise InputError(
                f"attention {self.name} deals {groups} groups of tokens to ranks, and {asked.ranks} ranks "
                f"neither divide {groups} nor are a multiple of it: use ulysses or pipesp, or {fewer} ranks"
            )

    def candidates(self, asked: Asked, heads: int) -> list[Choice]:
        return [] if asked.ranks == 1 else self.choices(asked, heads)


SKIPARSE = Skiparse()
