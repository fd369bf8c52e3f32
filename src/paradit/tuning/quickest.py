"""Which of several forms of attention is quickest here: as it was once found, or as it is rehearsed now."""

from __future__ import annotations

import torch

from paradit.attention.measured import MeasuredKernel
from paradit.attention.registry import Choice
from paradit.distributed.timing import Link, measure_link
from paradit.parallel.together import Undecided
from paradit.scheduling.balance import worth_taking
from paradit.tuning.rehearsal import BlockCost, measure_block, rehearse
from paradit.tuning.remembered import Remembered


def quickest(step: Undecided) -> Choice:
    """The choice that is remembered for such a step on this machine, or that a rehearsal finds quickest.

    All ranks of the mesh call it together, and get the same.
    """
    x = step.tokens.hidden_states
    what = (
        f"{step.shares}, {len(step.branches.each)} branches, width {x.shape[2]}, {x.dtype}, "
        f"{torch.get_num_threads()} threads, {len(step.transformer.blocks)} layers, {step.choices}"
    )
    names = [str(choice) for choice in step.choices]
    remembered = Remembered().find(what)
    # The first rank's memory counts, for all.
    index, *_ = step.gather_number(names.index(remembered) if remembered in names else -1)
    if index < 0:
        index = _rehearsed(step)
        if step.mesh.world.rank == 0:
            Remembered().keep(what, names[index])
    return step.choices[index]


def _rehearsed(step: Undecided) -> int:
    """Which choice is quickest; the slowest rank's time counts, so that all decide alike."""
    ways = {choice.interleave for choice in step.choices}
    costs = {interleave: _costs(step, interleave) for interleave in ways}
    kernel = MeasuredKernel(step.kernel, step.tokens.hidden_states.device)
    link = _link(step, next(iter(costs.values())))
    taken = [
        rehearse(
            choice,
            step.shares,
            step.mesh.branch.rank,
            link=link,
            streams=len(step.branches.each) if choice.interleave else 1,
            blocks=costs[choice.interleave],
            kernel=kernel,
        )
        for choice in step.choices
    ]
    return worth_taking([max(step.gather_number(round(1e9 * seconds))) for seconds in taken])


def _costs(step: Undecided, interleave: bool) -> list[BlockCost]:
    """A few blocks' costs, each of one branch where branches are interleaved, else of all of them."""
    mine = step.shares.tokens_of(step.mesh.branch.rank)
    context = step.branches.each[0] if interleave else step.branches.joined
    part = step.transformer.branch(step.tokens, context).shard(mine.start, mine.stop)
    kinds = [step.transformer.blocks[0], step.transformer.blocks[-1]]  # HunyuanVideo's differ
    return [measure_block(block, part) for block in kinds] * 2


def _link(step: Undecided, costs: list[BlockCost]) -> Link:
    """The link between the ranks of a branch, for messages as large as the exchange's."""
    num_bytes = max(step.gather_number(costs[0].value.nbytes // step.shares.num_ranks))
    return measure_link(step.mesh.branch, num_bytes, step.tokens.hidden_states.device)
