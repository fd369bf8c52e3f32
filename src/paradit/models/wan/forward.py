"""Another way of computing a WanTransformer3DModel's forward, put in its place for a while."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor

Predict = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""(latents [B, C, F, H, W], timestep, prompt embeds [B, T, text_dim], image embeds) -> prediction."""


def replace_forward(module: Any, predict: Predict) -> Callable[[], None]:
    """Have `module(...)` call `predict`; the function returned puts the module's own forward back.

    LoRA scales in `attention_kwargs` are not applied: merge the adapters first (`fuse_lora`).
    """

    def forward(  # noqa: PLR0917 (the signature that it stands in for)
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_image: Tensor | None = None,
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if attention_kwargs:
            raise ValueError(f"attention_kwargs {sorted(attention_kwargs)} are not supported: fuse adapters")
        sample = predict(hidden_states, timestep, encoder_hidden_states, encoder_hidden_states_image)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    if "forward" in vars(module):
        raise ValueError("this transformer's forward is replaced already: undo that first")
    module.forward = forward

    def undo() -> None:
        del module.forward

    return undo
