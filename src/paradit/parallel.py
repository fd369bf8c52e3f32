"""Make a diffusers pipeline that the user has loaded run on all ranks of the process group that is there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from paradit.distributed.mesh import Mesh
from paradit.distributed.world import current_world
from paradit.errors import InputError
from paradit.models.protocol import Transformer
from paradit.models.registry import SUPPORTED_PIPELINES, seam
from paradit.sampling.together import Together


def parallelize(pipe: Any) -> Callable[[], None]:
    """Spread a `WanPipeline`'s or `HunyuanVideoPipeline`'s transformers over all ranks.

    `pipe(prompt, ...)` then runs as before. Every rank loads the pipeline, calls this, and calls the pipeline
    with the same arguments, a `generator` of the same seed among them; inputs that differ raise RuntimeError
    naming the rank. The function returned undoes it. Sequence parallelism by `UlyssesExchange`: exact, for
    any number of tokens, heads and ranks.

    Raises InputError for another pipeline, or where no process group is initialised.
    """
    pipeline_class = type(pipe).__name__
    if pipeline_class not in SUPPORTED_PIPELINES:
        supported = " or ".join(f"a {name}" for name in SUPPORTED_PIPELINES)
        raise InputError(f"parallelize takes {supported}, got {pipeline_class}")
    world = current_world(pipe.device)
    if world is None:
        raise InputError("parallelize needs a process group: call torch.distributed.init_process_group first")
    team = Together(Mesh(world))
    transformer_class, replace_forward = seam(pipeline_class)
    modules = [getattr(pipe, name, None) for name in ("transformer", "transformer_2")]
    undos = [
        replace_forward(module, _Forward(team, transformer_class(module)))
        for module in modules
        if module is not None
    ]

    def undo() -> None:
        for one in undos:
            one()

    return undo


class _Forward:
    """One transformer's forward on all ranks; keeps what does not change over the steps of a request."""

    def __init__(self, team: Together, transformer: Transformer) -> None:
        self._team, self._transformer = team, transformer
        self._contexts: list[tuple[tuple[Tensor | None, ...], Any]] = []
        self._layout: tuple[torch.Size, Any] | None = None

    @torch.no_grad()
    def __call__(self, latents: Tensor, timestep: Tensor, prompt: tuple[Tensor | None, ...]) -> Tensor:
        self._agree("the noise", latents)
        self._agree("the timestep", timestep)
        self._agree("the prompt", *prompt)
        transformer, layout = self._transformer, self._layout_of(latents)
        tokens = transformer.embed(latents, timestep, self._context_of(prompt), layout)
        return transformer.unpatchify(self._team.forward(transformer, tokens), layout)

    def _agree(self, name: str, *tensors: Tensor | None) -> None:
        values = [tensor.float().cpu().numpy().tobytes() for tensor in tensors if tensor is not None]
        self._team.agree(name, b"".join(values))

    def _context_of(self, prompt: tuple[Tensor | None, ...]) -> Any:
        for known, context in self._contexts:
            if all(part is other for part, other in zip(known, prompt, strict=True)):
                return context
        context = self._transformer.context(*prompt)
        # A request has two prompts, of its two guidance branches.
        self._contexts = [*self._contexts[-1:], (prompt, context)]
        return context

    def _layout_of(self, latents: Tensor) -> Any:
        shape = latents.shape[2:]
        if self._layout is None or self._layout[0] != shape:
            frames, height, width = shape
            self._layout = (shape, self._transformer.layout((frames, height, width)))
        return self._layout[1]
