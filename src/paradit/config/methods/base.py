"""What a method of denoising is: how it resolves and checks a request, and uses the ranks. Torch-free.

To add one, see docs/development/adding_a_method.md.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, ClassVar, cast

from paradit.config.errors import InputError
from paradit.config.limits import typed
from paradit.config.methods.registry import METHODS, Declares, declared_options, methods_with
from paradit.config.options import all_fields, declared, decode, read_all
from paradit.config.placement import Placement
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
from paradit.scheduling.layer_pipeline import StageGrid


class Method(Declares):
    """A way of denoising: one object, found by its name in `METHODS`."""

    sampler: str
    """What denoises, as "module:object": a `paradit.sampling.sampler.Sampler`, which imports torch."""
    player: str | None = None
    """What simulates it, as "module:object": a `paradit.planner.simulate.Player`; None: nothing does."""
    resolved: ClassVar[type[ResolvedRequest]] = ResolvedRequest
    streams = False
    """Whether blocks of latents come one after the other, each decoded as it comes, in memory that hardly
    depends on the video's length; else all latents come at once."""
    endless = False
    """Whether it can go on until it is stopped."""
    later_prompts = False
    """Whether a block may have another prompt than those before."""
    solver_by_block = False
    """Whether each block has a solver of its own, which takes one evaluation of the model a step."""
    divides_layers = False
    """Whether the ranks divide the transformer's layers among them; else each has all."""

    planned_unasked = False
    """Whether ranks of which nothing else is said are used as the planner finds quickest."""

    def suits(self, fields: Mapping[str, Any], spec: ModelSpec) -> bool:  # noqa: ARG002
        """Whether it is taken for a video if no method is asked for. fields: of `resolved_fields`."""
        return False

    def resolve(self, request: Request, fields: dict[str, Any], spec: ModelSpec) -> ResolvedRequest:
        """Return the request, decided and checked. fields: of `resolved_fields`. Raises InputError."""
        if request.endless and not self.endless:
            able = _named(lambda method: method.endless)
            raise InputError(
                f"method {self.name} needs to know the video's length: duration inf needs {able}"
            )
        self._check_foreign(request.options)
        options: object = decode(self.options, request.options)
        made = self.resolved(**fields, method=self.name, **self.chosen(options, fields, spec))
        return self.with_prompts(made, _pairs(request.prompts_at), spec)

    def chosen(self, options: object, fields: Mapping[str, Any], spec: ModelSpec) -> dict[str, Any]:  # noqa: ARG002
        """Return the values of its own options, decided and checked. Raises InputError.

        options: an object of the class `options`.
        """
        return {}

    def with_prompts(
        self,
        request: ResolvedRequest,
        prompts_at: list[tuple[Any, Any]],
        spec: ModelSpec,  # noqa: ARG002
    ) -> ResolvedRequest:
        """Return a request with its later prompts, which are checked. Raises InputError."""
        if prompts_at:
            able = _named(lambda method: method.later_prompts)
            raise InputError(f"method {self.name} has one prompt for all frames: prompts_at need {able}")
        return request

    def check(self, placement: Placement, request: ResolvedRequest, spec: ModelSpec) -> None:
        """Refuse what a placement cannot do for a request. Raises InputError."""
        placement.check_branches(request, spec)
        self.check_ranks(placement, request, spec)
        tokens = spec.tokens(frames_at_once(request, spec), request.height, request.width)
        grid = self.grid(placement, request, spec)
        if grid.sharers > tokens:
            most = tokens * grid.num_stages * placement.cfg_degree
            raise InputError(
                f"{len(placement.denoise_ranks)} ranks are more than there is work for: this video has "
                f"{tokens} tokens, use at most {most}"
            )
        placement.check_tiles(placement.tiled(request, spec), spec)

    def check_ranks(self, placement: Placement, request: ResolvedRequest, spec: ModelSpec) -> None:  # noqa: ARG002
        """Refuse what this method cannot do with a placement's ranks. Raises InputError."""
        own = declared(self.placement_options)
        for name in placement.method_options:
            if name not in own:
                owner = next(m.name for m in METHODS.all() if name in declared(m.placement_options))
                raise InputError(f"{name} is method {owner}'s, and this video's is {self.name}: leave it out")

    def grid(self, placement: Placement, request: ResolvedRequest, spec: ModelSpec) -> StageGrid:  # noqa: ARG002
        """Return how the denoise ranks divide layers, branches and tokens; here all have all layers."""
        return StageGrid(1, placement.cfg_degree, placement.branch_ranks)

    def memory_by_rank(
        self, placement: Placement, request: ResolvedRequest, spec: ModelSpec, dtype_bytes: int
    ) -> list[dict[str, int]]:
        """Estimated bytes by part, as of `ModelSpec.memory_bytes`, for every rank."""
        size = (frames_at_once(request, spec), request.height, request.width)
        grid = self.grid(placement, request, spec)
        shares = Shares.equal(spec.tokens(*size), spec.transformers[0].num_attention_heads, grid.sharers)
        branches = spec.num_branches(request.guidance_scale) // placement.cfg_degree
        in_turn = len(placement.denoise_ranks) == 1
        held = {rank: shares.tokens[grid.place(n)] for n, rank in enumerate(placement.denoise_ranks)}
        return [
            spec.rank_memory_bytes(
                *size,
                dtype_bytes,
                placement.stages_of(rank),
                held=held.get(rank % placement.replica_ranks),
                cached=branches,
                # One process computes a branch after the other; several have both in one batch, or side by
                # side.
                at_once=1 if in_turn else branches,
                tile=request.vae_tile,
                decode_ranks=placement.decode_degree,
            )
            for rank in range(placement.ranks)
        ]

    def divisions(self, placement: Placement, asked: Placement) -> Iterator[Placement]:  # noqa: ARG002
        """Ways of dividing a video's work over a placement's ranks, the plainest first: its decode too.

        asked: the placement that does not fit, whose choices are kept.
        """
        yield placement
        decoders = placement.decode or ()
        if len(decoders) > 1:
            yield replace(placement, encode=decoders[:1], decode_degree=len(decoders))

    def fitting_frames(
        self, request: ResolvedRequest, spec: ModelSpec, fits: Callable[[ResolvedRequest], bool]
    ) -> int | None:
        """Return the most frames with which a request that does not fit would; None if there are none."""
        if self.streams:
            return None
        ratio = spec.vae.temporal_compression
        least, most = 0, (request.num_frames - 1) // ratio + 1
        while most - least > 1:
            middle = (least + most) // 2
            shorter = replace(request, num_frames=(middle - 1) * ratio + 1)
            least, most = (middle, most) if fits(shorter) else (least, middle)
        return (least - 1) * ratio + 1 if least else None

    def instead(self, request: ResolvedRequest, spec: ModelSpec) -> ResolvedRequest | None:
        """Return a request for a long video in blocks, whose memory hardly grows with its length."""
        if not self.streams and latent_shape(request, spec)[1] > spec.trained_latent_frames:
            with suppress(InputError, StopIteration):
                name = next(method.name for method in all_methods() if method.streams)
                return resolve(request.asked(method=name), spec)
        return None

    def dry_run(self, placement: Placement, request: ResolvedRequest, spec: ModelSpec) -> dict[str, Any]:  # noqa: ARG002
        """What only this method has to show before a run, as plain values."""
        return {}

    def warnings(self, placement: Placement, request: ResolvedRequest, spec: ModelSpec) -> list[str]:  # noqa: ARG002
        """What will run but hardly give what was meant, one line each."""
        if not (spec.embedded_guidance and request.negative_prompt):
            return []
        return [
            f"negative_prompt has no effect: the model '{spec.name}' takes the guidance scale as an input, "
            "and computes no second branch"
        ]

    def longer(
        self,
        request: ResolvedRequest,  # noqa: ARG002
        spec: ModelSpec,  # noqa: ARG002
        more: int,  # noqa: ARG002
        finished: int | None,  # noqa: ARG002
        where: str,  # noqa: ARG002
    ) -> ResolvedRequest:
        """Return the request for so many frames more, which goes on from what is kept of the shorter one.

        finished: blocks of a video without end that are there; None: it has ended. where: the run, for
        errors. Raises InputError.
        """
        raise InputError(f"videos of method {self.name} cannot be made longer")

    def made_again(self, request: ResolvedRequest, spec: ModelSpec) -> range:
        """Blocks, counted from 1, in which a video's end shows, so that a longer one has others."""
        return range(1, request.num_blocks(spec) + 1)

    @abstractmethod
    def by_rule(self, placement: Placement, request: ResolvedRequest, spec: ModelSpec) -> str | None:
        """Return why `--placement auto` has all stages together where nothing is known of other ways.

        None if a warm-up tells.
        """

    def _check_foreign(self, options: Mapping[str, Value]) -> None:
        """Refuse options that this method does not have. Raises InputError."""
        foreign = [name for name in options if name not in declared(self.options)]
        if not foreign:
            return
        able = methods_with(foreign[0])
        if not able:
            raise InputError(f"no method has the option {foreign[0]}")
        raise InputError(f"method {self.name} has no {' and '.join(foreign)}: use method {able[0]}")


def find_method(name: str) -> Method:
    """Return the method of that name. Raises InputError, which names the nearest, if there is none."""
    return cast(Method, METHODS.find(name))


def method_of(request: ResolvedRequest) -> Method:
    """Return the method of a request."""
    return find_method(request.method)


def all_methods() -> list[Method]:
    """Return all methods that can be imported, in the order of their names."""
    return cast(list[Method], METHODS.all())


def planned_methods() -> list[Method]:
    """Return the methods that the planner knows."""
    return [method for method in all_methods() if method.player is not None]


def resolve(request: Request, spec: ModelSpec) -> ResolvedRequest:
    """Fill what is open from the model's defaults, by the method, and check everything.

    Raises `InputError`, one line naming the field, its value and the nearest that works.
    """
    fields = resolved_fields(request, spec)
    if request.method is None:
        method = next(method for method in all_methods() if method.suits(fields, spec))
    else:
        method = find_method(request.method)
    return method.resolve(request, fields, spec)


def read_resolved(fields: Mapping[str, Any]) -> ResolvedRequest:
    """Read the plain values of a request that was resolved. Raises InputError.

    An option that only other methods have is left out: 0.1 wrote those of all methods.
    """
    method = find_method(fields.get("method", ""))
    others = declared_options().keys() - declared(method.options).keys()
    own = {name: value for name, value in fields.items() if name not in others}
    return method.resolved(**read_all(all_fields(method.resolved), own))


def check_placement(placement: Placement, request: ResolvedRequest, spec: ModelSpec) -> None:
    """Refuse what a placement cannot do for a request. Raises InputError."""
    method_of(request).check(placement, request, spec)


def _named(can: Callable[[Method], bool]) -> str:
    """Return the name of the first method that can do something."""
    return next((method.name for method in all_methods() if can(method)), "another method")


def _pairs(prompts_at: Iterable[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    try:
        return [(at, text) for at, text in prompts_at]
    except (TypeError, ValueError):
        wanted = "prompts_at must be pairs of seconds and a text"
        raise InputError(f"{wanted}, got {typed(prompts_at)}") from None
