"""Patch of WanTransformer3DModel's forward, with which `parallelize` spreads it over ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from diffusers.models.transformers import transformer_wan as diffusers_wan
from torch import Tensor
from torch.nn import Module

from paradit.attention.base import Kernel
from paradit.config.errors import InputError
from paradit.models.common.attachments import Opened
from paradit.models.common.patch_forward import ForwardPatch, Output, Predict, output, refuse
from paradit.models.protocol import Transformer, of_any_family
from paradit.models.wan.spec import TEXT_LENGTH
from paradit.models.wan.transformer import WanTransformer


def _cut(module: Module, kernel: Kernel) -> Transformer:
    assert isinstance(module, diffusers_wan.WanTransformer3DModel)
    return of_any_family(WanTransformer(module, kernel=kernel))


def _forward(predict: Predict) -> Callable[..., Output]:
    def forward(  # noqa: PLR0917 (the signature of the patched method)
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_image: Tensor | None = None,
        return_dict: bool = True,
        attention_kwargs: Mapping[str, object] | None = None,
    ) -> Output:
        refuse(attention_kwargs)
        _check_text(encoder_hidden_states, encoder_hidden_states_image)
        prompt = encoder_hidden_states, encoder_hidden_states_image
        return output(predict(hidden_states, timestep, prompt), return_dict)

    return forward


def _check_text(text: Tensor, image: Tensor | None) -> None:
    """Refuse a text of another length than diffusers' blocks expect beside a picture. Raises InputError."""
    # They take the last 512 tokens for the text, and all others for the picture.
    if image is not None and text.shape[1] != TEXT_LENGTH:
        raise InputError(
            f"max_sequence_length must be {TEXT_LENGTH} for a transformer that reads a picture, "
            f"got {text.shape[1]}"
        )


FORWARD_PATCH = ForwardPatch(
    opened=Opened(
        modules={
            "": diffusers_wan.WanTransformer3DModel,
            # ParaDiT reads the tables of `rope`, and calls the submodules of `condition_embedder`.
            "rope": diffusers_wan.WanRotaryPosEmbed,
            "condition_embedder": diffusers_wan.WanTimeTextImageEmbedding,
            "blocks.*": diffusers_wan.WanTransformerBlock,
            "blocks.*.attn1": diffusers_wan.WanAttention,
            "blocks.*.attn2": diffusers_wan.WanAttention,
        },
        processor=diffusers_wan.WanAttnProcessor,
    ),
    cut=_cut,
    forward=_forward,
)
