"""Transfer of encoded texts and pictures from the ranks that encode them to those that denoise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from paradit.config.placement import Placement
from paradit.config.requests import ResolvedRequest
from paradit.distributed.tensor_queue import Channel
from paradit.distributed.world import World
from paradit.engine.latent_transfer import FailedElsewhere
from paradit.models.protocol import Prompt, VideoModel
from paradit.sampling.early_stop import Unwanted
from paradit.scheduling.stages import AHEAD

UNWANTED, READY, FAILED = range(3)
"""Kinds of messages to the denoise ranks: nobody wants the video; the tensors are there; encoding failed."""
Shapes = Sequence[Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Encoded texts and pictures of a request, which denoising needs."""

    prompts: tuple[Prompt, ...]
    conditions: tuple[Tensor, ...]


class InputTransfer:
    """One rank's ends of the channels by which inputs of denoising travel to all denoise ranks.

    Texts come from the encode rank, pictures from the first of the ranks that will decode the request.
    """

    def __init__(self, model: VideoModel, placement: Placement, world: World | None) -> None:
        decoders, to = placement.decode_groups, placement.denoise_ranks
        depth = AHEAD * len(decoders)
        self._model = model
        self._prompts = _Tensors(Channel(world, placement.encode_ranks[0], to, depth), model.dtype, model)
        self._conditions = [
            _Tensors(Channel(world, group[0], to, AHEAD), torch.float32, model) for group in decoders
        ]

    def send_prompts(self, request: ResolvedRequest, prompts: tuple[Prompt, ...] | None) -> None:
        """Send a request's prompt embeddings, or None if the request is no longer wanted."""
        parts = None if prompts is None else [part for prompt in prompts for part in prompt]
        self._prompts.send(self._prompt_shapes(request), parts)

    def send_conditions(
        self, request: ResolvedRequest, decoder: int, conditions: Sequence[Tensor] | None, *, failed: bool
    ) -> None:
        """Send a request's encoded pictures, or None if the request is no longer wanted, or they failed.

        decoder: index of the decode group whose first rank sends them. failed: whether encoding has failed,
        which this rank reports.
        """
        shapes = self._model.condition_shapes(request)
        self._conditions[decoder].send(shapes, conditions, without=FAILED if failed else UNWANTED)

    def receive(self, request: ResolvedRequest, decoder: int) -> Inputs | Exception:
        """Return a request's encoded texts and pictures; each denoise rank calls this.

        If there are none, returns the exception with which denoising ends: Unwanted if the request is no
        longer wanted, FailedElsewhere if another rank reports that encoding has failed.
        """
        parts = self._prompts.receive(self._prompt_shapes(request))
        conditions: list[Tensor] | Exception = []
        if request.has_pictures:  # received also if there are no prompts, since it was sent
            conditions = self._conditions[decoder].receive(self._model.condition_shapes(request))
        if isinstance(parts, Exception):
            return parts
        if isinstance(conditions, Exception):
            return conditions
        number = len(self._model.prompt_shapes)
        prompts = (tuple(parts[first : first + number]) for first in range(0, len(parts), number))
        return Inputs(prompts=tuple(prompts), conditions=tuple(conditions))

    def close(self) -> None:
        """Wait until all inputs that were sent have been received."""
        for each in (self._prompts, *self._conditions):
            each.channel.close()

    def _prompt_shapes(self, request: ResolvedRequest) -> Shapes:
        return self._model.prompt_shapes * len(request.texts(self._model.spec))


class _Tensors:
    """Messages with the tensors of a request, whose shapes both sides know, or with the reason why not."""

    def __init__(self, channel: Channel, dtype: torch.dtype, model: VideoModel) -> None:
        self.channel, self._dtype, self._device = channel, dtype, model.device

    def send(self, shapes: Shapes, tensors: Iterable[Tensor] | None, without: int = UNWANTED) -> None:
        """Send tensors with these shapes; if there are None, a message of this size that says `without`."""
        parts = [torch.zeros(_size(shapes), dtype=self._dtype, device=self._device)]
        if tensors is not None:
            parts = [part.flatten() for part in tensors]
        kind = parts[0].new_tensor([float(without if tensors is None else READY)])
        self.channel.send(torch.cat([*parts, kind]))

    def receive(self, shapes: Shapes) -> list[Tensor] | Exception:
        """Return the tensors that were sent, or the exception with which denoising ends without them."""
        flat = self.channel.receive([_size(shapes) + 1], self._dtype, self._device)
        kind = flat[-1].item()
        if kind != READY:
            return FailedElsewhere() if kind == FAILED else Unwanted()
        parts = torch.split(flat[:-1], [prod(shape) for shape in shapes])
        return [part.view(*shape) for part, shape in zip(parts, shapes, strict=True)]


def _size(shapes: Shapes) -> int:
    return sum(prod(shape) for shape in shapes)
