"""Another way of computing a HunyuanVideoTransformer3DModel's forward, put in its place for a while."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from paradit.models.replaced import Predict, output, put_in_place, refuse


def replace_forward(module: Any, predict: Predict) -> Callable[[], None]:
    """Have `module(...)` call `predict`; the function returned puts the module's own forward back.

    LoRA scales in `attention_kwargs` are not applied: merge the adapters first (`fuse_lora`).
    """

    def forward(  # noqa: PLR0917 (the signature that it stands in for)
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        pooled_projections: Tensor,
        guidance: Tensor | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> Any:
        refuse(attention_kwargs)
        prompt = encoder_hidden_states, encoder_attention_mask, pooled_projections, guidance
        return output(predict(hidden_states, timestep, prompt), return_dict)

    return put_in_place(module, forward)
