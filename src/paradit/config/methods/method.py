"""Base class of denoising methods: how one resolves and checks a request, and uses the ranks. Torch-free.

To add a method, see docs/development/adding_a_method.md.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, ClassVar, cast

from paradit.config.encoded_pictures import frames_encoded_at_once
from paradit.config.errors import InputError
from paradit.config.limits import typed
from paradit.config.methods.registry import METHODS, Declares, declared_options, methods_with
from paradit.config.options import all_fields, declared, decode, read_all
from paradit.config.placement import Placement
from paradit.config.placement_checks import check_branches, check_patterns, check_tiles
from paradit.config.requests import (
    Request,
    ResolvedRequest,
    frames_at_once,
    latent_shape,
    resolved_fields,
)
from paradit.config.values import Value
from paradit.distributed.shares import Shares
from paradit.models.spec import ModelSpec
from paradit.models.vae_spec import FP32_BYTES
from paradit.scheduling.layer_pipeline import PipelineGrid, split_layers


class Method(Declares):
    """Denoising method, such as `full` or `dualparal`: one object each, found by its name in `METHODS`."""

    sampler: str
    """Import path "module:object" of this method's `paradit.sampling.sampler.Sampler`, which denoises.

    The sampler needs torch.
    """
    cost_model: str | None = None
    """Import path "module:object" of the `paradit.planner.simulate.CostModel` that simulates this denoising
    method for the planner; None if the planner does not know the method."""
    resolved: ClassVar[type[ResolvedRequest]] = ResolvedRequest
    streams = False
    """Whether the denoising method makes the latents one frame block after another, each decoded as it comes.

    Memory then hardly grows with the video's length. Otherwise all latents come at once.
    """
    endless = False
    """Whether the denoising method can make a video of no set length, which ends when the user stops it."""
    later_prompts = False
    """Whether the denoising method lets later frame blocks have other prompts than earlier ones."""
    changes_videos = False
    """Whether the denoising method can change a given video, of which it needs the latents of all frames."""
    solver_by_block = False
    """Whether each frame block has its own scheduler, which must evaluate the model once per step."""
    divides_layers = False
    """Whether ranks divide the transformer's layers among them; otherwise each rank has all layers."""

    timesteps_by_frame = False
    """Whether each latent frame has a timestep of its own, whatever the model."""

    by_ranks: tuple[str, ...] = ()
    """Names of request options whose defaults depend on the ranks that make the video."""

    planned_unasked = False
    """Whether the planner chooses the placement on a calibrated machine even if not asked to do so."""

    def suits(self, fields: Mapping[str, Any], spec: ModelSpec) -> bool:  # noqa: ARG002
        """Return whether this denoising method is chosen for a video if the user names no method.

        fields: the request's values, as `resolved_fields` returns them.
        """
        return False

    def resolve(
        self,
        request: Request,
        fields: dict[str, Any],
        spec: ModelSpec,
        placement: Placement,  # noqa: ARG002
    ) -> ResolvedRequest:
        """Return the request with all values decided by this denoising method and checked. Raises InputError.

        fields: the request's values, as `resolved_fields` returns them. placement: the ranks that make the
        video, for defaults that depend on them (`by_ranks`).
        """
        if request.endless and not self.endless:
            able = _named(lambda method: method.endless)
            raise InputError(f"method {self.name} needs a finite duration, got inf: use method {able}")
        if fields["video"] is not None and not self.changes_videos:
            able = _named(lambda method: method.changes_videos)
            raise InputError(f"method {self.name} cannot change a video: use method {able}")
        self._check_foreign(request.options)
        options: object = decode(self.options, request.options)
        made = self.resolved(**fields, method=self.name, **self.chosen(options, fields, spec))
        return self.with_prompts(made, _pairs(request.prompts_at), spec)

    def chosen(self, options: object, fields: Mapping[str, Any], spec: ModelSpec) -> dict[str, Any]:  # noqa: ARG002
        """Return the values of this denoising method's own options, after checking them.

        Options that the user left out get the model's defaults. options: instance of the dataclass
        `self.options`, with what the user gave. fields: the request's other values, as `resolved_fields`
        returns them. Raises InputError.
        """
        return {}

    def with_prompts(
        self,
        request: ResolvedRequest,
        prompts_at: list[tuple[Any, Any]],
        spec: ModelSpec,  # noqa: ARG002
    ) -> ResolvedRequest:
        """Return the request with its prompts for later times, after checking them. Raises InputError.

        prompts_at: pairs (time in seconds, prompt).
        """
        if prompts_at:
            able = _named(lambda method: method.later_prompts)
            raise InputError(f"method {self.name} has one prompt for all frames: for prompts_at, use {able}")
        return request

    def check(self, placement: Placement, request: ResolvedRequest, spec: ModelSpec) -> None:
        """Refuse a placement that cannot make the requested video. Raises InputError."""
        check_branches(placement, request, spec)
        check_patterns(placement, spec)
        self.check_ranks(placement, request, spec)
        tokens = spec.tokens(frames_at_once(request, spec), request.height, request.width)
        grid = self.grid(placement, request, spec)
        if grid.sharers > tokens:
            most = tokens * grid.num_slices * placement.cfg_degree
            raise InputError(
                f"{len(placement.denoise_ranks)} ranks are too many for a video of {tokens} tokens: use at "
                f"most {most}"
            )
        check_tiles(placement, placement.tiled(request, spec), spec)

    def check_ranks(self, placement: Placement, request: ResolvedRequest, spec: ModelSpec) -> None:  # noqa: ARG002
        """Refuse a placement that this denoising method cannot carry out. Raises InputError."""
        own = declared(self.placement_options)
        for name in placement.method_options:
            if name not in own:
                owner = next(m.name for m in METHODS.all() if name in declared(m.placement_options))
                raise InputError(
                    f"{name} needs method {owner}, but this video's is {self.name}: leave it out"
                )

    def grid(self, placement: Placement, request: ResolvedRequest, spec: ModelSpec) -> PipelineGrid:  # noqa: ARG002
        """Return how denoise ranks divide layers, guidance branches and tokens.

        This base class gives all layers to each rank.
        """
        return PipelineGrid(1, placement.cfg_degree, placement.branch_ranks)

    def layers(self, placement: Placement, request: ResolvedRequest, spec: ModelSpec) -> list[range]:
        """Return the layers of each layer slice, divided by the layers' operations.

        A run measures the layers instead, so its slices may differ by a layer.
        """
        return split_layers(layer_costs(request, spec), self.grid(placement, request, spec).num_slices)

    def memory_by_rank(
        self, placement: Placement, request: ResolvedRequest, spec: ModelSpec, dtype_bytes: int
    ) -> list[dict[str, int]]:
        """Return each rank's estimated memory in bytes, by part as in `ModelSpec.memory_bytes`."""
        size = (frames_at_once(request, spec), request.height, request.width)
        grid = self.grid(placement, request, spec)
        shares = Shares.equal(spec.tokens(*size), spec.transformers[0].num_attention_heads, grid.sharers)
        branches = request.num_branches(spec) // placement.cfg_degree
        in_turn = len(placement.denoise_ranks) == 1
        held = {rank: shares.tokens[grid.place(n)] for n, rank in enumerate(placement.denoise_ranks)}
        encoded = frames_encoded_at_once(request, spec)
        return [
            spec.rank_memory_bytes(
                *size,
                dtype_bytes,
                placement.stages_of(rank),
                held=held.get(rank % placement.replica_ranks),
                cached=branches,
                # One process computes the branches in turn; several compute both at once or interleaved.
                at_once=1 if in_turn else branches,
                tile=request.vae_tile,
                decode_ranks=placement.decode_degree,
                latents=self.latents_bytes(request, spec, dtype_bytes),
                by_frame=self.timesteps_by_frame,
                encoded_frames=encoded if "conditions" in placement.work_of(rank) else 0,
            )
            for rank in range(placement.ranks)
        ]

    def latents_bytes(self, request: ResolvedRequest, spec: ModelSpec, dtype_bytes: int) -> int:  # noqa: ARG002
        """Estimate the bytes of latents on a rank that denoises, and of all that is as large as they are."""
        frames = request.window_frames(latent_shape(request, spec)[1])
        held = 1 + scheduler_holds(request, spec) + spec.latents_held
        return held * frames * frame_bytes(request, spec)

    def divisions(self, placement: Placement, asked: Placement) -> Iterator[Placement]:  # noqa: ARG002
        """Yield ways to divide a video's work over the same ranks, as placements, the simplest first.

        They are tried if the video does not fit into memory. placement: placement whose work is divided
        further, as is its decode. asked: the placement that does not fit; choices that the user made in it
        are kept.
        """
        yield placement
        decoders = placement.decode or ()
        if len(decoders) > 1:
            yield replace(placement, encode=decoders[:1], decode_degree=len(decoders))

    def fitting_frames(
        self, request: ResolvedRequest, spec: ModelSpec, fits: Callable[[ResolvedRequest], bool]
    ) -> int | None:
        """Return the largest number of frames that fits into memory, for a request that does not fit.

        Returns None if no number fits, or if the method has frame blocks, whose memory hardly depends on the
        video's length. fits: function that says whether a shorter request fits.
        """
        if self.streams:
            return None
        ratio = spec.vae.temporal_compression
        # Bisection of the number of latent frames: `least` fits (or is 0), and `most` does not.
        least, most = 0, (request.num_frames - 1) // ratio + 1
        while most - least > 1:
            middle = (least + most) // 2
            shorter = replace(request, num_frames=(middle - 1) * ratio + 1)
            least, most = (middle, most) if fits(shorter) else (least, middle)
        return (least - 1) * ratio + 1 if least else None

    def instead(self, request: ResolvedRequest, spec: ModelSpec) -> ResolvedRequest | None:
        """Return the request changed to a method that makes the video in frame blocks, to save memory.

        In frame blocks, the memory hardly grows with the video's length. Returns None if this denoising
        method already has frame blocks, the video is no longer than the model was trained on, or no method
        can make it in frame blocks.
        """
        if not self.streams and latent_shape(request, spec)[1] > spec.trained_latent_frames:
            with suppress(InputError, StopIteration):
                name = next(method.name for method in all_methods() if method.streams)
                return resolve(request.asked(method=name), spec)
        return None

    def dry_run(self, placement: Placement, request: ResolvedRequest, spec: ModelSpec) -> dict[str, Any]:  # noqa: ARG002
        """Return the additional values, by name, that `--dry-run` shows for this denoising method."""
        return {}

    def warnings(self, placement: Placement, request: ResolvedRequest, spec: ModelSpec) -> list[str]:  # noqa: ARG002
        """Return warnings, one line each, about a request that runs but may not come out as meant."""
        if not (spec.embedded_guidance and request.negative_prompt):
            return []
        return [
            f"negative_prompt has no effect: the model '{spec.name}' takes the guidance scale as an input, "
            "and has no branch for it"
        ]

    def longer(
        self,
        request: ResolvedRequest,  # noqa: ARG002
        spec: ModelSpec,  # noqa: ARG002
        more: int,  # noqa: ARG002
        finished: int | None,  # noqa: ARG002
        where: str,  # noqa: ARG002
    ) -> ResolvedRequest:
        """Return a request for the same video, but `more` frames longer, resumed from its saved state.

        request: the request of the video as it is. finished: number of finished frame blocks of a video
        without a set length, which the user has stopped; None for a video with a set length, which is
        complete. where: text that names the run in error messages, such as its path. Raises InputError if the
        video cannot be made longer.
        """
        raise InputError(f"videos of method {self.name} cannot be extended")

    def made_again(self, request: ResolvedRequest, spec: ModelSpec) -> range:
        """Return serial numbers, from 1, of the frame blocks to make again when the video is made longer.

        The old end of the video affected these blocks while they were denoised.
        """
        return range(1, request.num_blocks(spec) + 1)

    @abstractmethod
    def by_rule(self, placement: Placement, request: ResolvedRequest, spec: ModelSpec) -> str | None:
        """Return the reason why `--placement auto` keeps all stages on the same ranks, without measuring.

        Returns None if this denoising method has no such rule; a short warm-up then chooses the placement.
        """

    def _check_foreign(self, options: Mapping[str, Value]) -> None:
        """Refuse options that only other denoising methods have. Raises InputError."""
        foreign = [name for name in options if name not in declared(self.options)]
        if not foreign:
            return
        able = methods_with(foreign[0])
        if not able:
            raise InputError(f"no method has the option {foreign[0]}")
        raise InputError(f"method {self.name} does not take {' and '.join(foreign)}: use method {able[0]}")


def frame_bytes(request: ResolvedRequest, spec: ModelSpec) -> int:
    """Return the bytes of a latent frame."""
    channels, _, height, width = latent_shape(request, spec)
    return channels * height * width * FP32_BYTES


def scheduler_holds(request: ResolvedRequest, spec: ModelSpec) -> int:
    """Return how many tensors as large as the latents the request's scheduler keeps between two steps."""
    scheduler = request.flow_scheduler(spec)
    return spec.scheduler_holds if scheduler is None else scheduler.holds


def layer_costs(request: ResolvedRequest, spec: ModelSpec) -> tuple[float, ...]:
    """Return the cost of each of the transformer's layers, as a multiple of the cheapest layer's cost."""
    tokens = spec.tokens(frames_at_once(request, spec), request.height, request.width)
    return spec.transformers[0].layer_costs(tokens, spec.text_length)


def find_method(name: str) -> Method:
    """Return the denoising method with this name.

    Raises InputError, which suggests the nearest name, if there is none.
    """
    return cast(Method, METHODS.find(name))


def method_of(request: ResolvedRequest) -> Method:
    """Return the denoising method of a resolved request."""
    return find_method(request.method)


def all_methods() -> list[Method]:
    """Return all denoising methods that can be imported, built-in ones first."""
    return cast(list[Method], METHODS.all())


def planned_methods() -> list[Method]:
    """Return the denoising methods that the planner can simulate."""
    return [method for method in all_methods() if method.cost_model is not None]


def resolve(request: Request, spec: ModelSpec, placement: Placement | None = None) -> ResolvedRequest:
    """Return the request with the model's defaults filled in by its method, and everything checked.

    placement: the ranks that make the video, as far as they are known; None: one rank. Some methods have
    defaults that depend on them. Raises InputError, one line that names the field, its value and the nearest
    valid one.
    """
    fields = resolved_fields(request, spec)
    if request.method is None:
        method = next(method for method in all_methods() if method.suits(fields, spec))
    else:
        method = find_method(request.method)
    return method.resolve(request, fields, spec, placement or Placement())


def read_resolved(fields: Mapping[str, Any]) -> ResolvedRequest:
    """Return the resolved request that a run's `run.json` holds as plain values. Raises InputError.

    Options that only other methods have are dropped: version 0.1 wrote those of all methods.
    """
    method = find_method(fields.get("method", ""))
    others = declared_options().keys() - declared(method.options).keys()
    own = {name: value for name, value in fields.items() if name not in others}
    return method.resolved(**read_all(all_fields(method.resolved), own))


def check_placement(placement: Placement, request: ResolvedRequest, spec: ModelSpec) -> None:
    """Refuse a placement that cannot make the requested video. Raises InputError."""
    method_of(request).check(placement, request, spec)


def _named(can: Callable[[Method], bool]) -> str:
    """Return the name of the first denoising method for which `can` is true, for error messages."""
    return next((method.name for method in all_methods() if can(method)), "another method")


def _pairs(prompts_at: Iterable[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    try:
        return [(at, text) for at, text in prompts_at]
    except (TypeError, ValueError):
        wanted = "prompts_at must be pairs of seconds and a text"
        raise InputError(f"{wanted}, got {typed(prompts_at)}") from None
