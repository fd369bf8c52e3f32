"""Division of a model's layers among the ranks of a layer pipeline, by measured times."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count

import torch

from paradit.attention.local_attention import local
from paradit.distributed.timing import seconds
from paradit.distributed.world import World
from paradit.models.common.no_conditions import NoConditions
from paradit.models.protocol import Block, Conditions, Prompt, Tokens, VideoModel
from paradit.parallel.run_blocks import run
from paradit.sampling.block_window import Sharing
from paradit.scheduling.layer_pipeline import PipelineGrid, split_layers


@dataclass(frozen=True)
class LayerCosts:
    """Costs, such as seconds, of a transformer's layers, its embedding and its head in one forward pass."""

    layers: tuple[float, ...]
    embed: float = 0.0
    head: float = 0.0


@dataclass(frozen=True)
class LayerShare:
    """One rank's part in a layer pipeline: its layers, and its connections to the other ranks."""

    world: World
    way_back: World
    """Connection by which predictions travel from the last layer slice back to the first rank."""
    grid: PipelineGrid
    sharing: Sharing
    """Division of tokens among the ranks that hold the same layers as this rank and compute the same guidance
    branch."""
    layers: range
    videos: Iterator[int] = field(default_factory=count)
    """Counter whose next value is the serial number of the next video made with this pipeline, the same on
    all ranks."""


@torch.no_grad()
def measure_layers(
    model: VideoModel, shape: tuple[int, int, int], prompt: Prompt, conditions: Conditions | None = None
) -> LayerCosts:
    """Measure the seconds that each layer, the embedding and the head take, for latents of (F, h, w).

    Measures one layer of each kind, because all layers of a kind cost the same. Layers with different
    patterns of attention are of different kinds. If the model has no layer of some kind in memory, one such
    layer is read from disk, and replaces the model's present layers. shape: (F, h, w). prompt: an encoded
    prompt. conditions: effect of the request's pictures; None: it has none.
    """
    conditions, frames = conditions or NoConditions(model), range(shape[0])
    transformer, device = model.experts[0], model.device
    # The time does not depend on the values.
    latents = torch.zeros(1, model.spec.vae.z_dim, *shape, dtype=model.dtype, device=device)
    timestep = conditions.model_timestep(torch.zeros((), device=device), latents, frames)
    latents, (prompt,) = conditions.model_input(latents, frames), conditions.prompts((prompt,))
    layout, layers, attend = transformer.layout(shape), transformer.layers, local()

    def layer(block: Block[Tokens], tokens: Tokens) -> None:
        run(block.run(tokens, attend))

    spec, by_kind = model.spec.transformers[0], {}
    kinds = [(kind, spec.pattern(number)) for number, kind in enumerate(layers.kinds)]
    for kind in dict.fromkeys(kinds):
        first = kinds.index(kind)
        if first not in layers.held:
            transformer.keep_layers(range(first, first + 1))
        block = transformer.blocks[layers.held.index(first)]
        context = transformer.context(*prompt)
        tokens = transformer.embed(latents, timestep, context, layout)
        by_kind[kind] = seconds(partial(layer, block, tokens), device)
    return LayerCosts(
        layers=tuple(by_kind[kind] for kind in kinds),
        embed=seconds(partial(transformer.embed, latents, timestep, context, layout), device),
        head=seconds(lambda: transformer.unpatchify(transformer.head(tokens), layout), device),
    )


def divide_layers(
    model: VideoModel, world: World, costs: LayerCosts | None, grid: PipelineGrid | None = None
) -> LayerShare:
    """Divide the layers among the ranks, and return this rank's share; the model keeps only these layers.

    All ranks call it, once per model. costs: measured costs of the layers, by which they are divided; only
    the first rank's are used, so other ranks may pass None. On the first rank, None: all layers cost the
    same. grid: division of the ranks into layer slices; None: every rank has a slice of its own. Raises
    InputError if there are more layer slices than layers.
    """
    grid = grid or PipelineGrid(world.size)
    num_layers = len(model.experts[0].layers.kinds)
    # Without costs, all layers count alike. Ranks other than the first need only a split of the right size,
    # because the broadcast below replaces it.
    costs = costs or LayerCosts((1.0,) * num_layers)
    split = split_layers(costs.layers, grid.num_slices, costs.embed, costs.head)
    starts = torch.tensor([part.start for part in split] + [num_layers], device=world.device)
    # Measured times differ from rank to rank; all must use the same split.
    starts = world.transport().broadcast(starts)
    place = grid.slice_of(world.rank)
    mine = range(int(starts[place]), int(starts[place + 1]))
    for expert in model.experts:
        expert.keep_layers(mine)
    # With one or two layer slices, some ranks send to each other in both directions.
    way_back = world.way_back() if grid.num_slices <= 2 else world
    return LayerShare(world, way_back, grid, _sharing(world, grid), mine)


def _sharing(world: World, grid: PipelineGrid) -> Sharing:
    """Return how ranks share tokens: this rank's index among those that share them, and their connection."""
    # The connection is separate from those for latents and predictions, which travel between the same ranks.
    if grid.sharers == 1:
        return Sharing()
    place = grid.place(world.rank)
    if grid.num_ranks == grid.sharers:
        everybody = world.part(range(world.size), own_group=True)
        assert everybody is not None
        return Sharing(everybody.transport(), place)
    (transport,) = (each for each in world.transports(grid.groups()) if each is not None)
    return Sharing(transport, place)
