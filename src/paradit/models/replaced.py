"""A diffusers transformer whose `forward` is computed in another way for a while."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor

Predict = Callable[[Tensor, Tensor, tuple[Tensor | None, ...]], Tensor]
"""(latents [B, C, F, H, W], timestep, the arguments of the transformer's `context`) -> prediction."""


def put_in_place(module: Any, forward: Callable[..., Any]) -> Callable[[], None]:
    """Have `module(...)` call `forward`; the function returned puts the module's own back."""
    if "forward" in vars(module):
        raise ValueError("this transformer's forward is replaced already: undo that first")
    module.forward = forward

    def undo() -> None:
        del module.forward

    return undo


def refuse(attention_kwargs: dict[str, Any] | None) -> None:
    """LoRA scales are not applied: raises ValueError where any are given."""
    if attention_kwargs:
        raise ValueError(f"attention_kwargs {sorted(attention_kwargs)} are not supported: fuse adapters")


def output(sample: Tensor, return_dict: bool) -> Any:
    """A prediction as diffusers' transformers give it."""
    return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)
