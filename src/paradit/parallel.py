"""Make a diffusers pipeline that the user has loaded run on all ranks of the process group that is there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from paradit.distributed.mesh import Mesh
from paradit.distributed.world import current_world
from paradit.errors import InputError
from paradit.models.wan.forward import replace_forward
from paradit.models.wan.transformer import WanTransformer
from paradit.sampling.together import Together


def parallelize(pipe: Any) -> Callable[[], None]:
    """Spread a `WanPipeline`'s transformers over all ranks; `pipe(prompt, ...)` then runs as before.

    Every rank loads the pipeline, calls this, and calls the pipeline with the same arguments, a `generator`
    of the same seed among them; inputs that differ raise RuntimeError naming the rank. The function returned
    undoes it. Sequence parallelism by `UlyssesExchange`: exact, for any number of tokens, heads and ranks.

    Raises InputError for another pipeline, or where no process group is initialised.
    """
    if type(pipe).__name__ != "WanPipeline":
        raise InputError(f"parallelize takes a WanPipeline, got {type(pipe).__name__}")
    world = current_world(pipe.device)
    if world is None:
        raise InputError("parallelize needs a process group: call torch.distributed.init_process_group first")
    team = Together(Mesh(world))
    modules = [module for module in (pipe.transformer, pipe.transformer_2) if module is not None]
    undos = [replace_forward(module, _Forward(team, module)) for module in modules]

    def undo() -> None:
        for one in undos:
            one()

    return undo


class _Forward:
    """One transformer's forward on all ranks; keeps what does not change over the steps of a request."""

    def __init__(self, team: Together, module: Any) -> None:
        self._team, self._transformer = team, WanTransformer(module)
        self._contexts: list[tuple[Tensor, Any]] = []
        self._layout: tuple[torch.Size, Any] | None = None

    @torch.no_grad()
    def __call__(
        self, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor, image_embeds: Tensor | None
    ) -> Tensor:
        inputs = {"the noise": latents, "the timestep": timestep, "the prompt": prompt_embeds}
        for name, tensor in inputs.items():
            self._team.agree(name, tensor.float().cpu().numpy().tobytes())
        transformer, layout = self._transformer, self._layout_of(latents)
        tokens = transformer.embed(latents, timestep, self._context_of(prompt_embeds, image_embeds), layout)
        return transformer.unpatchify(self._team.forward(transformer, tokens), layout)

    def _context_of(self, prompt_embeds: Tensor, image_embeds: Tensor | None) -> Any:
        for known, context in self._contexts:
            if known is prompt_embeds:
                return context
        context = self._transformer.context(prompt_embeds, image_embeds)
        # A request has two prompts, of its two guidance branches.
        self._contexts = [*self._contexts[-1:], (prompt_embeds, context)]
        return context

    def _layout_of(self, latents: Tensor) -> Any:
        shape = latents.shape[2:]
        if self._layout is None or self._layout[0] != shape:
            frames, height, width = shape
            self._layout = (shape, self._transformer.layout((frames, height, width)))
        return self._layout[1]
