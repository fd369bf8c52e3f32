"""Choice of the fastest attention form on this machine: read from a file of earlier results, or simulated.

An attention form is a way for ranks to share attention, such as Ulysses or ring. The simulation is called a
rehearsal; it uses times that are measured first.
"""

from __future__ import annotations

import logging

import torch

from paradit.attention.measured import MeasuredKernel
from paradit.attention.patterns import Pattern
from paradit.attention.registry import Choice
from paradit.distributed.timing import Link, measure_link
from paradit.models.protocol import Transformer
from paradit.parallel.sequence_parallel import Undecided
from paradit.scheduling.balance import worth_taking
from paradit.tuning.rehearsal import BlockCost, measure_block, rehearse
from paradit.tuning.remembered import Remembered

_LOG = logging.getLogger(__name__)


def quickest(open: Undecided) -> Choice:
    """Return the fastest attention form for a step, from a file of earlier results or else by a rehearsal.

    A rehearsal simulates each form with measured times. All ranks that share the step call this function
    together, and get the same result. open: the step, and the forms (such as Ulysses or ring) to choose from.
    """
    step, x = open.step, open.step.tokens.hidden_states
    what = (
        f"{open.shares}, {len(step.branches.each)} branches, width {x.shape[2]}, {x.dtype}, "
        f"{torch.get_num_threads()} threads, {len(step.transformer.blocks)} layers, {open.choices}"
    )
    if patterns := _patterns(step.transformer):
        what += f", {patterns}"
    names = [str(choice) for choice in open.choices]
    remembered = Remembered().find(what)
    # The first rank's file decides for all ranks.
    index, *_ = open.gather_number(names.index(remembered) if remembered in names else -1)
    how = "as remembered" if index >= 0 else "as rehearsed"
    if index < 0:
        index = _rehearsed(open)
        if open.mesh.world.rank == 0:
            Remembered().keep(what, names[index])
    _LOG.info("attention %s, %s", names[index], how)
    return open.choices[index]


def _rehearsed(open: Undecided) -> int:
    """Simulate a step with each choice of attention form, and return the index of the fastest.

    Each choice's time is that of the slowest rank, so that all ranks choose alike. The first choice wins if
    no other is clearly faster.
    """
    ways = {choice.interleave for choice in open.choices}
    costs = {interleave: _costs(open, interleave) for interleave in ways}
    kernel = MeasuredKernel(open.kernel, open.step.tokens.hidden_states.device)
    link = _link(open, next(iter(costs.values())))
    taken = [
        rehearse(
            choice,
            open.shares,
            open.mesh.branch.rank,
            link=link,
            streams=len(open.step.branches.each) if choice.interleave else 1,
            blocks=costs[choice.interleave],
            kernel=kernel,
        )
        for choice in open.choices
    ]
    # In nanoseconds, because ranks gather whole numbers.
    slowest = [max(open.gather_number(round(1e9 * seconds))) for seconds in taken]
    for choice, nanoseconds in zip(open.choices, slowest, strict=True):
        _LOG.debug("attention %s would take %.4g s a step", choice, nanoseconds / 1e9)
    return worth_taking(slowest)


def _costs(open: Undecided, interleave: bool) -> list[BlockCost]:
    """Return the measured times of the transformer blocks to simulate, which stand for all blocks.

    The times are for one guidance branch if `interleave` is set, because interleaved branches run separately;
    otherwise for all branches together.
    """
    step, mine = open.step, open.shares.tokens_of(open.mesh.branch.rank)
    context = step.branches.each[0] if interleave else step.branches.joined
    part = step.transformer.branch(step.tokens, context).shard(mine.start, mine.stop)
    blocks = step.transformer.blocks
    if not _patterns(step.transformer):
        kinds = [blocks[0], blocks[-1]]  # a model's blocks may be of two kinds
        return [measure_block(block, part) for block in kinds] * 2
    # Patterns may alternate, and the layers at both ends may have none. So one block of each eighth is taken,
    # in turn the first one of the eighth and the one after it.
    last = len(blocks) - 1
    chosen = [blocks[min(len(blocks) * eighth // 8 + eighth % 2, last)] for eighth in range(8)]
    return [measure_block(block, part) for block in chosen]


def _patterns(transformer: Transformer) -> list[Pattern]:
    """Return the patterns of a transformer's attentions that are not full, in the order of its layers."""
    return [site.pattern for site in transformer.sites if site.pattern is not None]


def _link(open: Undecided, costs: list[BlockCost]) -> Link:
    """Measure the link between ranks of a guidance branch, by messages as large as those of attention."""
    value = costs[0].attentions[0].value
    num_bytes = max(open.gather_number(value.nbytes // open.shares.num_ranks))
    return measure_link(open.mesh.branch, num_bytes, open.step.tokens.hidden_states.device)
