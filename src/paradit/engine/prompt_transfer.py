"""Transfer of prompt embeddings from the rank that encodes to those that denoise."""

from __future__ import annotations

from math import prod

import torch

from paradit.config.placement import Placement
from paradit.config.requests import ResolvedRequest
from paradit.distributed.tensor_queue import Channel
from paradit.distributed.world import World
from paradit.models.protocol import Prompt, VideoModel
from paradit.scheduling.stages import AHEAD


class Prompts:
    """One rank's end of the channel by which prompt embeddings travel from encode to denoise ranks."""

    def __init__(self, placement: Placement, world: World | None) -> None:
        self._channel = Channel(world, placement.encode_ranks[0], placement.denoise_ranks, AHEAD)

    def send(self, model: VideoModel, request: ResolvedRequest, prompts: tuple[Prompt, ...] | None) -> None:
        """Send a request's prompt embeddings, or None if the request is no longer wanted."""
        if prompts is None:  # the receiver waits for a message of this size in any case
            size = self._size(model, request)
            parts = [torch.zeros(size, dtype=model.dtype, device=model.device)]
        else:
            parts = [part.flatten() for prompt in prompts for part in prompt]
        wanted = parts[0].new_tensor([float(prompts is not None)])
        self._channel.send(torch.cat([*parts, wanted]))

    def receive(self, model: VideoModel, request: ResolvedRequest) -> tuple[Prompt, ...] | None:
        """Return the prompt embeddings that were sent; None if the request is no longer wanted."""
        flat = self._channel.receive([self._size(model, request) + 1], model.dtype, model.device)
        if not flat[-1].item():
            return None
        shapes = model.prompt_shapes
        sizes = [prod(shape) for shape in shapes]
        return tuple(
            tuple(part.view(shape) for part, shape in zip(torch.split(prompt, sizes), shapes, strict=True))
            for prompt in flat[:-1].chunk(len(request.texts(model.spec)))
        )

    def close(self) -> None:
        """Wait until all prompt embeddings that were sent have been received."""
        self._channel.close()

    def _size(self, model: VideoModel, request: ResolvedRequest) -> int:
        return len(request.texts(model.spec)) * sum(prod(shape) for shape in model.prompt_shapes)
