"""Method `dualparal`: a queue of frame blocks; ranks divide the layers (DualParal, arXiv 2505.21070)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, cast

from paradit.attention.registry import AUTO
from paradit.config.encoded_pictures import frames_encoded_at_once
from paradit.config.errors import InputError
from paradit.config.limits import MAX_FRAMES, MAX_RANKS
from paradit.config.methods.blocks import BlockOptions, BlocksRequest, InBlocks, with_later_prompts
from paradit.config.methods.full import is_long
from paradit.config.methods.method import frame_bytes, layer_costs, resolve, scheduler_holds
from paradit.config.options import Option
from paradit.config.placement import Placement, divisors
from paradit.config.requests import Request, ResolvedRequest, latent_shape
from paradit.config.steps import MAX_STEPS, Steps
from paradit.config.values import Values
from paradit.distributed.shares import Shares
from paradit.models.spec import ModelSpec, stage_of
from paradit.scheduling.block_queue import ONE_CLEANER, SAME_LEVEL, BlockQueue
from paradit.scheduling.layer_pipeline import (
    PipelineGrid,
    choose_slices,
    used_share,
    usual_lag,
)

HOPS = 2
"""Number of tensors of hidden states that may be on their way to a rank, or from it, while it computes."""


@dataclass(frozen=True, kw_only=True)
class QueueOptions(BlockOptions):
    """Options for the size of frame blocks, when each joins the queue, and how it sees the one before it."""

    lag: Annotated[
        int | None,
        Option(
            help="Number of rounds after which the next frame block of dualparal joins the queue. The block "
            "before it is that many steps further denoised, so with a larger lag, borders between blocks "
            "are seen less and the first frames come sooner, but ranks wait for each other more. "
            "[default: 4, 2 or 1: the largest with which no rank waits in the middle of the video; 1 with "
            "--left-level or --left-context cache]",
            metavar="N",
            least=1,
            most=MAX_STEPS,
        ),
    ] = None
    left_level: Annotated[
        Literal["same-level", "one-cleaner"] | None,
        Option(
            help="Noise level of the frames that a frame block of dualparal sees of the one before it, with "
            "--lag 1: same-level (its own) or one-cleaner (one step further denoised). [default: "
            "same-level]",
            metavar="NAME",
        ),
    ] = None

    left_context: Annotated[
        Literal["latents", "cache"],
        Option(
            help="What a frame block of dualparal sees of the one before it: latents (computed again with "
            "the block), or cache (keys and values kept from the previous round: less computing, more "
            "memory). [default: latents]",
            metavar="NAME",
        ),
    ] = "latents"

    context_timesteps: Annotated[
        Literal["block", "true"],
        Option(
            help="Timesteps of the frames that a frame block of dualparal sees of its neighbours: block (its "
            "own timestep, though they are further or less denoised) or true (those of their noise levels), "
            "for a model that takes a timestep for each frame. [default: block]",
            metavar="NAME",
        ),
    ] = "block"


@dataclass(frozen=True, kw_only=True)
class PipelineOptions:
    """Placement options of the method `dualparal`: the number of slices that the layers are divided into."""

    pipeline_degree: Annotated[
        int | None,
        Option(
            help="Number of slices that dualparal divides the layers into; the ranks of a slice share its "
            "tokens. [default: planned if `paradit calibrate` has measured this machine, else as many as "
            "stay busy]",
            metavar="N",
            least=1,
            most=MAX_RANKS,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class QueueRequest(BlocksRequest):
    """Resolved request for a video that is denoised as a queue of frame blocks."""

    left_context: str
    """Way in which a frame block sees its left neighbour's frames: `latents` computes these frames once more
    with the block; `cache` reads the keys and values that the neighbour computed."""
    lag: int = 1
    """Number of rounds after which the next frame block joins the queue."""
    left_level: str | None = SAME_LEVEL
    """Noise level of the left neighbour's frames, with a lag of 1; None with a larger lag, with which these
    frames are as far denoised as they are."""
    context_timesteps: str = "block"
    """Timesteps of the neighbours' frames: `block`, the one of the frame block that reads them, or `true`,
    those of their own noise levels."""

    def queue(self, spec: ModelSpec) -> BlockQueue:
        level = self.left_level or SAME_LEVEL
        return replace(
            super().queue(spec),
            left_source=self.left_context,
            lag=self.lag,
            left_level=level,
            true_timesteps=self.context_timesteps == "true",
        )


class DualParal(InBlocks):
    name = "dualparal"
    help = (
        "frame blocks, whose layers the ranks divide (approximate: a frame sees only its neighbours, at "
        "other noise levels)"
    )
    default_for = " for videos much longer than those that the model was trained on"
    options = QueueOptions
    placement_options = PipelineOptions
    resolved: ClassVar[type[QueueRequest]] = QueueRequest
    sampler = "paradit.sampling.dualparal:SAMPLER"
    cost_model = "paradit.planner.block_costs:IN_BLOCKS"
    endless = later_prompts = divides_layers = planned_unasked = True
    by_ranks = ("lag",)

    def suits(self, fields: Mapping[str, Any], spec: ModelSpec) -> bool:
        return is_long(fields, spec)

    def resolve(
        self, request: Request, fields: dict[str, Any], spec: ModelSpec, placement: Placement
    ) -> ResolvedRequest:
        own = request.options
        is_open = own.get("lag") is None and own.get("left_level") is None
        if is_open and own.get("left_context") in (None, "latents"):
            steps = Steps(**{name: fields[name] for name in Steps.__dataclass_fields__})
            slices = num_slices(placement) or min(placement.branch_ranks, _num_layers(spec))
            branches = -(-steps.num_branches(spec) // placement.cfg_degree)
            lag = usual_lag(steps.num_inference_steps, slices, branches)
            request = replace(request, options=Values({**own, "lag": lag}))
        return super().resolve(request, fields, spec, placement)

    def chosen(self, options: object, fields: Mapping[str, Any], spec: ModelSpec) -> dict[str, Any]:
        own = cast(QueueOptions, options)
        lag, steps = own.lag or 1, fields["num_inference_steps"]
        if lag > steps:
            raise InputError(f"lag must be at most {steps}, the number of steps, got {lag}")
        if lag > 1 and own.left_level is not None:
            raise InputError(
                f"left_level is for a lag of 1: with {lag}, a frame block always sees the latest frames of "
                "the one before it, so leave left_level out"
            )
        if own.left_context == "cache" and own.left_level == ONE_CLEANER:
            raise InputError(
                f"left_level {ONE_CLEANER} needs the left_context latents: cached keys are at the same level"
            )
        if own.context_timesteps == "true" and spec.one_timestep:
            raise InputError(
                f"context_timesteps true needs a model that takes a timestep for each frame, and "
                f"{spec.name!r} takes one for all: leave it out"
            )
        return {
            **super().chosen(options, fields, spec),
            "left_context": own.left_context,
            "context_timesteps": own.context_timesteps,
            "lag": lag,
            "left_level": own.left_level or (SAME_LEVEL if lag == 1 else None),
        }

    def with_prompts(
        self, request: ResolvedRequest, prompts_at: list[tuple[Any, Any]], spec: ModelSpec
    ) -> ResolvedRequest:
        return with_later_prompts(cast(QueueRequest, request), prompts_at, spec)

    def check_ranks(self, placement: Placement, request: ResolvedRequest, spec: ModelSpec) -> None:
        super().check_ranks(placement, request, spec)
        other = ["attention"] if placement.attention != AUTO else []
        other += [*placement.options, *(["interleave"] if placement.interleave is not None else [])]
        if other:
            named = ", ".join(other)
            raise InputError(f"method {self.name} divides the layers over the ranks: leave {named} out")
        ranks, degree = placement.branch_ranks, num_slices(placement) or 1
        if ranks % degree:
            branches = " for each guidance branch" if placement.cfg_degree > 1 else ""
            raise InputError(
                f"{ranks} rank{'s' * (ranks > 1)}{branches} cannot be divided into {degree} layer slices: "
                f"use a pipeline_degree of {divisors(ranks)}"
            )
        layers = _num_layers(spec)
        if degree > layers:
            most = max(n for n in range(1, layers + 1) if ranks % n == 0)
            raise InputError(
                f"{degree} layer slices cannot divide {layers} layers: use a pipeline_degree of {most}"
            )

    def grid(self, placement: Placement, request: ResolvedRequest, spec: ModelSpec) -> PipelineGrid:
        slices = num_slices(placement)
        if slices is None:
            slices = choose_slices(
                cast(QueueRequest, request).queue(spec),
                placement.branch_ranks,
                layer_costs(request, spec),
                request.num_branches(spec) // placement.cfg_degree,
            )
        return PipelineGrid(slices, placement.cfg_degree, placement.branch_ranks // slices)

    def divisions(self, placement: Placement, asked: Placement) -> Iterator[Placement]:
        if num_slices(asked) is None:
            yield placement
        for slices in range(placement.branch_ranks, 0, -1):
            if placement.branch_ranks % slices == 0:
                yield with_slices(placement, slices)

    def memory_by_rank(
        self, placement: Placement, request: ResolvedRequest, spec: ModelSpec, dtype_bytes: int
    ) -> list[dict[str, int]]:
        return [
            self._memory(placement, cast(QueueRequest, request), spec, dtype_bytes, rank)
            for rank in (rank % placement.replica_ranks for rank in range(placement.ranks))
        ]

    def _memory(
        self, placement: Placement, request: QueueRequest, spec: ModelSpec, dtype_bytes: int, rank: int
    ) -> dict[str, int]:
        """Return a rank's estimated memory in bytes, by part; each denoise rank has only some of the layers.

        Part "keys" is the cache of keys and values that the next step reads.
        """
        stages, ranks = placement.stages_of(rank), placement.denoise_ranks
        encodes = "conditions" in placement.work_of(rank)
        queue, transformer = request.queue(spec), spec.transformers[0]
        computed = queue.most_computed(len(spec.transformers))
        size = ((computed - 1) * spec.vae.temporal_compression + 1, request.height, request.width)
        grid = self.grid(placement, request, spec)
        place = ranks.index(rank) if rank in ranks else 0
        branches = request.num_branches(spec) // grid.cfg_degree
        shares = Shares.equal(spec.tokens(*size), transformer.num_attention_heads, grid.sharers)
        parts = spec.rank_memory_bytes(
            *size,
            dtype_bytes,
            stages,
            held=shares.tokens[grid.place(place)],
            cached=branches,
            at_once=1,
            tile=request.vae_tile,
            encoded_frames=frames_encoded_at_once(request, spec) if encodes else 0,
            by_frame=queue.true_timesteps,
        )
        if "denoise" not in stages:
            return {**parts, "keys": 0}
        held = len(self.layers(placement, request, spec)[grid.slice_of(place)])
        part = held / transformer.num_layers
        # `rank_memory_bytes` has counted all layers.
        whole = sum(w.parameters for w in spec.weights if stage_of(w.component) == "denoise") * dtype_bytes
        parts["weights"] -= round(whole * (1 - part))
        parts["text_cache"] = round(parts["text_cache"] * part)
        # A rank that shares tokens keeps the keys of the heads that it works on.
        tokens = spec.tokens(1, request.height, request.width)
        keys = 2 * branches * held * queue.context_frames * tokens * transformer.width * dtype_bytes
        cached = min(queue.most_kept, (queue.num_blocks or MAX_FRAMES) - 1)
        parts["keys"] = keys * (1 + cached * (queue.left_source == "cache")) // grid.sharers
        hops = _hops(grid, place) * shares.tokens[grid.place(place)] * transformer.width * dtype_bytes
        # Windows without context on one side, or on both, have rotary tables of their own.
        tables = 3 * (queue.context_frames > 0) * queue.window_frames * tokens * transformer.rotary_bytes
        parts["activations"] += hops + tables
        parts["latents"] = self._latents(request, spec, grid, place, computed)
        denoise = parts["text_cache"] + parts["activations"]
        # A rank that also decodes does so between two denoising steps of frame blocks.
        working = parts["latents"] + parts["keys"] + max(denoise, parts["text_cache"] + parts["decode"])
        working = max(working, parts.get("conditions", 0))  # pictures are encoded before that
        return {**parts, "peak": parts["weights"] + max(working, spec.merging_bytes(dtype_bytes, stages))}

    def _latents(
        self, request: QueueRequest, spec: ModelSpec, grid: PipelineGrid, place: int, computed: int
    ) -> int:
        """Estimate the bytes of latents on a denoise rank, and of all that is as large as they are.

        place: the rank's index among the denoise ranks. computed: the number of latent frames that go through
        the transformer at once.
        """
        if grid.slice_of(place):
            return 0
        frames = (1 + spec.latents_held) * computed
        if place == 0:
            queue, levels = request.queue(spec), 2
            kept = queue.most_kept
            blocks = kept * (levels + scheduler_holds(request, spec))
            # The next block may join before the last step of the first one is collected.
            blocks += (queue.num_blocks or kept + 1) > kept
            frames += blocks * queue.block_frames
        return frames * frame_bytes(request, spec)

    def dry_run(self, placement: Placement, request: ResolvedRequest, spec: ModelSpec) -> dict[str, Any]:
        """Return values for `--dry-run`: how the video divides into frame blocks, and how busy ranks are."""
        queue = cast(QueueRequest, request).queue(spec)
        channels, _, height, width = latent_shape(request, spec)
        unknown: dict[str, Any] = {"num_frames": None, "num_blocks": None, "rounds": None, "flops": None}
        unknown["latent_shape"] = [channels, None, height, width]
        return {
            "num_blocks": queue.num_blocks,
            "rounds": queue.num_rounds,
            "lag": queue.lag,
            "block_frames": queue.block_frames,
            "context_frames": queue.context_frames,
            "window_frames": queue.window_frames,
            "used_share": self._used_share(placement, request, spec),
            **(unknown if request.endless else {}),
        }

    def warnings(self, placement: Placement, request: ResolvedRequest, spec: ModelSpec) -> list[str]:
        found = super().warnings(placement, request, spec)
        queue = cast(QueueRequest, request).queue(spec)
        slices = self.grid(placement, request, spec).num_slices
        in_queue = "steps" if queue.lag == 1 else f"blocks in the queue (lag {queue.lag})"
        for number, what in ((queue.num_blocks or 0, "blocks"), (queue.full, in_queue)):
            if number < slices:
                share = self._used_share(placement, request, spec)
                found.append(
                    f"{number} {what} are too few for {slices} layer slices, which are busy for {share:.0%} "
                    "of the time"
                )
        return found

    def _used_share(self, placement: Placement, request: ResolvedRequest, spec: ModelSpec) -> float:
        grid = self.grid(placement, request, spec)
        branches = request.num_branches(spec) // grid.cfg_degree
        return round(used_share(cast(QueueRequest, request).queue(spec), grid.num_slices, branches), 4)

    def longer(
        self, request: ResolvedRequest, spec: ModelSpec, more: int, finished: int | None, where: str
    ) -> ResolvedRequest:
        request, there = cast(QueueRequest, request), request.num_frames
        if finished is not None:
            # The last round before another block would be finished.
            latest = request.lag * finished + request.num_inference_steps - 1
            blocks = request.queue(spec).joined(latest)
            frames = request.block_frames * spec.vae.temporal_compression
            there = max(0, finished * frames - spec.vae.temporal_compression + 1)
            least = blocks * frames + 1 - there  # so that no block in the queue is the last
            if not finished or more < least:
                raise InputError(
                    f"the queue of {where!r} has {blocks} blocks already: add at least {least} frames"
                )
        return resolve(request.asked(num_frames=there + more, trim=True), spec)

    def made_again(self, request: ResolvedRequest, spec: ModelSpec) -> range:
        queue = cast(QueueRequest, request).queue(spec)
        return range(max(1, queue.finished(queue.open_rounds) + 1), (queue.num_blocks or 0) + 1)

    def by_rule(self, placement: Placement, request: ResolvedRequest, spec: ModelSpec) -> str:
        slices = self.grid(placement, request, spec).num_slices
        number = "1 layer slice" if slices == 1 else f"{slices} layer slices"
        return (
            f"together, {number}, by a rule of thumb; to have it planned, first run `paradit calibrate "
            f"--ranks {placement.ranks}`"
        )


def num_slices(placement: Placement) -> int | None:
    """Return the number of slices that a placement divides the layers into; None if that is left open."""
    return cast(int | None, placement.method_options.get("pipeline_degree"))


def with_slices(placement: Placement, slices: int | None) -> Placement:
    """Return a copy of the placement with the layers divided into this many slices."""
    return replace(placement, method_options=Values(pipeline_degree=slices))


def _hops(grid: PipelineGrid, place: int) -> int:
    """Return how many tensors of hidden states on their way to and from other layer slices a rank holds.

    place: the rank's index among the denoise ranks.
    """
    layer_slice = grid.slice_of(place)
    return HOPS * (layer_slice > 0) + HOPS * (layer_slice < grid.num_slices - 1)


def _num_layers(spec: ModelSpec) -> int:
    return min(transformer.num_layers for transformer in spec.transformers)


DUALPARAL = DualParal()
