"""Process groups of the ranks that share the work of a stage, and the objects that do this rank's part."""

from __future__ import annotations

from paradit.attention.base import Kernel
from paradit.attention.local_attention import sdpa
from paradit.attention.patterns import Pattern
from paradit.config.methods.method import method_of
from paradit.config.placement import Placement
from paradit.config.requests import ResolvedRequest
from paradit.distributed.mesh import Mesh
from paradit.distributed.timing import trace_link
from paradit.distributed.world import World
from paradit.models.common.attention_kernel import load_kernel
from paradit.models.spec import ModelSpec
from paradit.parallel.coprocess import Helped, Helper
from paradit.parallel.predictor import LocalPredictor, Predictor
from paradit.parallel.sequence_parallel import SequenceParallel
from paradit.trace.spans import is_recording
from paradit.tuning.quickest import quickest


def sharers(placement: Placement, world: World | None) -> World | None:
    """Return the process group of the ranks that decode each video together; None if this rank is in none."""
    # Its own process group, because prompts or latents may be on their way between the same two ranks.
    share = world is not None and placement.decode_degree > 1
    return world.part(placement.decode_ranks, own_group=True) if share and world else None


def predictor(
    placement: Placement, spec: ModelSpec, part: World | None, helped: Helped | None
) -> Predictor | None:
    """Return the object that computes predictions of denoising steps on this rank, alone or with others.

    Returns None if several ranks denoise, and this rank does not. part: process group of the ranks that
    denoise. helped: object by which idle decode ranks do some of this rank's attention (co-processing); None:
    without co-processing.
    """
    kernel = load_kernel(placement.attention_backend)
    if len(placement.denoise_ranks) == 1 and helped is None:
        return LocalPredictor(kernel)
    if part is None:
        return None
    first = spec.transformers[0]
    return sequence_parallel(
        part,
        placement,
        first.num_attention_heads,
        _num_branches(spec),
        kernel,
        patterns=first.sparse_patterns,
        helped=helped,
    )


def _num_branches(spec: ModelSpec) -> int:
    return 1 if spec.embedded_guidance else 2


def sequence_parallel(
    world: World,
    placement: Placement,
    num_heads: int,
    num_branches: int = 2,
    kernel: Kernel = sdpa,
    *,
    patterns: frozenset[Pattern] = frozenset(),
    helped: Helped | None = None,
) -> SequenceParallel:
    """Return the object by which the ranks of a process group compute denoising predictions together.

    If the placement allows several attention forms (such as Ulysses or ring), the fastest on this machine is
    taken. world: the process group. num_heads: number of the model's attention heads. num_branches: number of
    guidance branches. patterns: patterns of the model's sparse layers. helped: object by which idle decode
    ranks do some of this rank's attention (co-processing); None: without co-processing.
    """
    mesh = Mesh(world, placement.cfg_degree)
    if is_recording():
        trace_link(world.transport(), world.device)
    choices = placement.choices(num_heads, num_branches, patterns)
    return SequenceParallel(mesh, choices, kernel, helped, quickest)


def pipeline(placement: Placement, request: ResolvedRequest, world: World | None) -> World | None:
    """Return the process group of ranks that divide the model's layers; None if each rank has all layers."""
    if world is None or not method_of(request).divides_layers or len(placement.denoise_ranks) == 1:
        return None
    # Its own process group, for the reason in `sharers`.
    return world.part(placement.denoise_ranks, own_group=True)


def coprocess(
    placement: Placement, spec: ModelSpec, world: World | None, denoisers: World | None
) -> tuple[Helped | None, Helper | None]:
    """Return this rank's object for co-processing, in which idle decode ranks do some of the attention.

    The result is a pair: the object of a rank that denoises, and the object of an idle decode rank. At most
    one of them is not None; both are None if there is no co-processing, or if this rank has no part in it.
    denoisers: process group of the ranks that denoise; None on other ranks.
    """
    if not placement.coprocess:
        return None, None
    assert world is not None  # there are ranks that denoise, and others
    # All ranks must take part in making a process group, also those that are not in it.
    union = world.part([*placement.denoise_ranks, *placement.helper_ranks], own_group=True)
    kernel = load_kernel(placement.attention_backend)
    first = spec.transformers[0]
    choices = placement.choices(first.num_attention_heads, _num_branches(spec), first.sparse_patterns)
    if union is None:
        return None, None
    if denoisers is None:
        return None, Helper(union, len(placement.denoise_ranks), kernel, choices)
    return Helped(denoisers, union, kernel, choices), None
