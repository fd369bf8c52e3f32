"""Predictions that several ranks compute together, by dividing tokens or guidance branches among them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from paradit.attention.base import Attend, Deal, Dealt, Kernel, Layout, Wait
from paradit.attention.join import join
from paradit.attention.local_attention import local, sdpa
from paradit.attention.registry import Choice
from paradit.distributed.mesh import Mesh
from paradit.distributed.redistribution import Redistribution, start
from paradit.distributed.shares import Box, Shares
from paradit.models.protocol import Prompt, Tokens, Transformer
from paradit.parallel.coprocess import Helped
from paradit.parallel.coprocess_message import DTYPES, Message
from paradit.parallel.predictor import Branches
from paradit.parallel.run_blocks import run_interleaved, through_blocks, through_dealt_blocks
from paradit.trace.spans import REHEARSAL, span, unrecorded


@dataclass(frozen=True, kw_only=True)
class Step:
    """Input of one denoising step: the video's tokens, and the guidance branches to compute."""

    transformer: Transformer
    branches: Branches
    tokens: Tokens
    """Embedded tokens of the whole video, all of which every rank has."""
    number: int = 0

    def shares(self, num_ranks: int) -> Shares:
        """Return equal shares of the step's tokens, and of its attention, for `num_ranks` ranks."""
        return Shares.equal(
            num_tokens=self.tokens.hidden_states.shape[1],
            num_heads=self.transformer.num_heads,
            num_ranks=num_ranks,
            num_replicated=self.tokens.layout.num_replicated,
        )


@dataclass(frozen=True, kw_only=True)
class Undecided:
    """Denoising step whose attention form is still to be chosen, with all that the choice depends on."""

    choices: Sequence[Choice]
    """Attention forms (such as Ulysses), with their options, to choose from; the simplest comes first."""
    step: Step
    shares: Shares
    mesh: Mesh
    kernel: Kernel
    gather_number: Callable[[int], list[int]]
    """Function that takes this rank's number, and returns every rank's number; all ranks call it together."""


Choose = Callable[[Undecided], Choice]
"""Type of a function that chooses a step's attention form; all ranks call it, and get the same result."""


class SequenceParallel:
    """Predictor on several ranks, which are divided by guidance branch, and share each branch's tokens.

    Exact: it does the same operations on the same rows as one process. Only the division of matrix products
    into tiles may differ, which affects the last bits.
    """

    def __init__(
        self,
        mesh: Mesh,
        choices: Sequence[Choice] = (Choice.plain(),),
        kernel: Kernel = sdpa,
        helped: Helped | None = None,
        choose: Choose | None = None,
    ) -> None:
        """Set up each of the attention forms `choices` on the ranks of the mesh.

        choices: attention forms (such as Ulysses), with options, that may be used. kernel: function that
        computes attention. helped: object by which idle decode ranks take a share of the attention, made with
        the same choices; None: no decode ranks help. choose: function that chooses among several attention
        forms; it is called once for each number of tokens and of guidance branches. Raises ValueError if
        there are several choices and no `choose`.
        """
        if len(choices) > 1 and choose is None:
            raise ValueError(f"there are {len(choices)} choices of attention, but no function that chooses")
        self._mesh, self._choices, self._kernel, self._helped = mesh, choices, kernel, helped
        self._choose = choose
        self._builds = {choice: join(mesh.sharers, choice, kernel) for choice in choices}
        self._world = mesh.world.transport()
        self.is_first = mesh.world.rank == 0
        self._attends: dict[tuple[Choice, Shares], Attend | Dealt] = {}
        self.chosen: dict[tuple[Shares, int], Choice] = {}
        """Mapping from (shares of tokens, number of guidance branches) to the attention form chosen."""

    def share(
        self, make: Callable[[], Tensor], shape: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        tensor = make() if self.is_first else torch.empty(tuple(shape), dtype=dtype, device=device)
        # The other ranks receive into a tensor of this shape and dtype.
        if (tuple(tensor.shape), tensor.dtype) != (tuple(shape), dtype):
            raise ValueError(f"{tensor.dtype} {tuple(tensor.shape)} is shared as {dtype} {tuple(shape)}")
        return self._world.broadcast(tensor)

    def agree(self, what: str, value: bytes) -> None:
        self.agree_all({what: value})

    def agree_all(self, values: Mapping[str, bytes], advice: Mapping[str, str] | None = None) -> None:
        """Raise RuntimeError, naming the ranks and the value, if `values` differ between processes.

        values: bytes to compare, under names for the error message. advice: for some of these names, text to
        add to the error message if the value differs. All values are compared by a single collective.
        """
        # Digests of fixed size travel instead of the values, which may be large.
        mine = b"".join(hashlib.sha256(value).digest() for value in values.values())
        sent = torch.frombuffer(bytearray(mine), dtype=torch.uint8).to(self._mesh.world.device)
        digests = torch.stack(self._world.all_gather(sent)).cpu().chunk(len(values), dim=1)
        for what, by_rank in zip(values, digests, strict=True):
            others = [rank for rank, digest in enumerate(by_rank) if not torch.equal(digest, by_rank[0])]
            if others:
                ranks = "rank" if len(others) == 1 else "ranks"
                numbers = ", ".join(map(str, others))
                hint = f": {advice[what]}" if advice and what in advice else ""
                raise RuntimeError(f"{ranks} {numbers}: {what} differs from that of rank 0{hint}")

    def gather_number(self, number: int) -> list[int]:
        mine = torch.tensor([number], device=self._mesh.world.device)
        return [int(other) for other in self._world.all_gather(mine)]

    def contexts(self, transformer: Transformer, prompts: Sequence[Prompt]) -> Branches:
        if self._mesh.cfg_degree == 1:
            branches = Branches(transformer, prompts)
            _ = branches.joined  # joins the contexts now, before anything refers to one of them
            return branches
        if len(prompts) != self._mesh.cfg_degree:
            raise ValueError(f"{len(prompts)} guidance branches on {self._mesh.cfg_degree} groups of ranks")
        return Branches(transformer, [prompts[self._mesh.cfg_rank]])

    def predict(
        self,
        transformer: Transformer,
        latents: Tensor,
        timestep: Tensor,
        contexts: Branches,
        layout: Layout,
        *,
        step: int = 0,
    ) -> list[Tensor]:
        # Embed once for all branches, as one process does: two time embeddings may round differently.
        tokens = transformer.embed(latents, timestep, contexts.each[0], layout)
        begun = Step(transformer=transformer, branches=contexts, tokens=tokens, number=step)
        choice, helped = self._chosen(begun), self._helped
        attend = helped.begin(self._message(begun, choice)) if helped else None
        works = self._works(begun, choice, attend)
        values = torch.cat([transformer.head(done) for done in run_interleaved(works, choice.lag)])
        values = self._of_all_tokens(begun, values, choice)
        if helped:
            helped.end()
        if self._mesh.cfg_degree > 1:
            predictions = self._mesh.cfg.all_gather(values)
        else:
            predictions = list(torch.split(values, len(latents)))
        return [transformer.unpatchify(prediction, layout) for prediction in predictions]

    def forward(self, transformer: Transformer, tokens: Tokens) -> Tensor:
        """Return the transformer's output for all tokens, [B, S, patch values], on every rank.

        Uses the first of the predictor's attention forms.
        """
        step = Step(transformer=transformer, branches=Branches(transformer, []), tokens=tokens)
        (done,) = run_interleaved([self._work(step, tokens, self._choices[0])])
        return self._of_all_tokens(step, transformer.head(done), self._choices[0])

    def _chosen(self, step: Step) -> Choice:
        """Return the attention form of a step, with its options.

        If several forms are possible, they are compared once for each number of tokens and of guidance
        branches.
        """
        branches = len(step.branches.each)
        # A single branch has no other to be interleaved with.
        choices = [choice for choice in self._choices if branches > 1 or not choice.interleave]
        choices = choices or list(self._choices)
        if len(choices) == 1:
            return choices[0]
        assert self._choose is not None
        shares = step.shares(self._mesh.branch.num_ranks)
        key = shares, branches
        if key not in self.chosen:
            undecided = Undecided(
                choices=choices,
                step=step,
                shares=shares,
                mesh=self._mesh,
                kernel=self._kernel,
                gather_number=self.gather_number,
            )
            # The trace shows that time was spent here, but not the layers and messages of the trials.
            with span("rehearse", REHEARSAL), unrecorded():
                self.chosen[key] = self._choose(undecided)
        return self.chosen[key]

    def _works(
        self, step: Step, choice: Choice, attend: Attend | None
    ) -> list[Generator[Wait, None, Tokens]]:
        """Return generators that run a step's guidance branches through the transformer blocks.

        There is one generator for each branch if the attention form `choice` interleaves them, else one for
        all branches. Each yields the operations that it has to wait for, and returns the tokens after the
        last block. attend: attention function with help from decode ranks; None: no decode ranks help.
        """
        contexts = step.branches.each if choice.interleave else [step.branches.joined]
        parts = [step.transformer.branch(step.tokens, context) for context in contexts]
        return [self._work(step, part, choice, attend) for part in parts]

    def _work(
        self, step: Step, tokens: Tokens, choice: Choice, attend: Attend | None = None
    ) -> Generator[Wait, None, Tokens]:
        """Return a generator that runs this rank's share of `tokens` through the transformer blocks.

        The generator yields the operations that it has to wait for, and returns the tokens after the last
        block. choice: attention form to use. attend: attention function to use in place of the form's, if
        decode ranks take a share of the attention; None: none do.
        """
        blocks, shares = step.transformer.blocks, step.shares(self._mesh.branch.num_ranks)
        if shares.num_ranks == 1:  # nothing travels, except to helpers
            return through_blocks(blocks, tokens, attend or local(self._kernel), step.number)
        own = attend or self._attend(choice, shares)
        if isinstance(own, Dealt):
            return through_dealt_blocks(blocks, tokens, self._deals(step, own), step.number)
        mine = shares.tokens_of(self._mesh.rank)
        return through_blocks(blocks, tokens.shard(mine.start, mine.stop), own, step.number)

    def _attend(self, choice: Choice, shares: Shares) -> Attend | Dealt:
        """Return this rank's attention function of a form, made once for each division of tokens."""
        if (choice, shares) not in self._attends:
            self._attends[choice, shares] = self._builds[choice](shares)
        return self._attends[choice, shares]

    def _deals(self, step: Step, dealt: Dealt) -> list[Deal]:
        """Return how an attention form that deals tokens to ranks deals them in each transformer block."""
        sites = [block.sites[0] for block in step.transformer.blocks]
        return dealt.by_layer(sites, step.tokens.hidden_states.device)

    def _of_all_tokens(self, step: Step, values: Tensor, choice: Choice) -> Tensor:
        """Return the values of all tokens, [B, S, values], gathered from the ranks that hold the tokens.

        values: values of this rank's tokens, [B, tokens, values], after the last block. choice: attention
        form that was used.
        """
        shares = step.shares(self._mesh.branch.num_ranks)
        if shares.num_ranks == 1:
            return values
        attend = self._attend(choice, shares)
        if isinstance(attend, Dealt):
            return self._deals(step, attend)[-1].gather(values)
        # A redistribution moves [B, tokens, heads, D]: here D values of a single head.
        held = [[replace(shares.tokens_of(rank), last_head=1)] for rank in range(shares.num_ranks)]
        everywhere = [[Box(0, 1, 0, shares.num_tokens)]] * shares.num_ranks
        gather = Redistribution(held, everywhere, self._mesh.branch)
        ((all_values,),) = start([gather.move([values[:, :, None]], like=values[:, :, None])]).wait()
        return all_values[:, :, 0]

    def _message(self, step: Step, choice: Choice) -> Message:
        """Return the message that describes a step's attention to the decode ranks that help with it."""
        assert self._helped is not None
        x, transformer = step.tokens.hidden_states, step.transformer
        branches = len(step.branches.each)
        streams = branches if choice.interleave else 1
        return Message(
            batch=len(x) * branches // streams,
            num_tokens=x.shape[1],
            num_replicated=step.tokens.layout.num_replicated,
            num_heads=transformer.num_heads,
            head_dim=x.shape[2] // transformer.num_heads,
            sites=self._helped.number_of(transformer.sites),
            dtype=DTYPES.index(x.dtype),
            choice=self._choices.index(choice),
            streams=streams,
            lag=choice.lag,
        )
