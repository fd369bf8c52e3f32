"""Patch of HunyuanVideoTransformer3DModel's forward, with which `parallelize` spreads it over ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from diffusers.models.attention_processor import Attention
from diffusers.models.normalization import AdaLayerNormZero, AdaLayerNormZeroSingle
from diffusers.models.transformers import transformer_hunyuan_video as diffusers_hunyuan
from torch import Tensor
from torch.nn import Module

from paradit.attention.base import Kernel
from paradit.models.common.attachments import Opened
from paradit.models.common.patch_forward import ForwardPatch, Output, Predict, output, refuse
from paradit.models.hunyuan_video.transformer import HunyuanVideoTransformer
from paradit.models.protocol import Transformer, of_any_family


def _cut(module: Module, kernel: Kernel) -> Transformer:  # noqa: ARG001 (ranks share all attention)
    assert isinstance(module, diffusers_hunyuan.HunyuanVideoTransformer3DModel)
    return of_any_family(HunyuanVideoTransformer(module))


def _forward(predict: Predict) -> Callable[..., Output]:
    def forward(  # noqa: PLR0917 (the signature of the patched method)
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        pooled_projections: Tensor,
        guidance: Tensor | None = None,
        attention_kwargs: Mapping[str, object] | None = None,
        return_dict: bool = True,
    ) -> Output:
        refuse(attention_kwargs)
        prompt = encoder_hidden_states, encoder_attention_mask, pooled_projections, guidance
        return output(predict(hidden_states, timestep, prompt), return_dict)

    return forward


FORWARD_PATCH = ForwardPatch(
    opened=Opened(
        modules={
            "": diffusers_hunyuan.HunyuanVideoTransformer3DModel,
            "transformer_blocks.*": diffusers_hunyuan.HunyuanVideoTransformerBlock,
            "transformer_blocks.*.attn": Attention,
            # ParaDiT calls the submodules of these norms, once before and once after attention.
            "transformer_blocks.*.norm1": AdaLayerNormZero,
            "transformer_blocks.*.norm1_context": AdaLayerNormZero,
            "single_transformer_blocks.*": diffusers_hunyuan.HunyuanVideoSingleTransformerBlock,
            "single_transformer_blocks.*.attn": Attention,
            "single_transformer_blocks.*.norm": AdaLayerNormZeroSingle,
        },
        processor=diffusers_hunyuan.HunyuanVideoAttnProcessor2_0,
    ),
    cut=_cut,
    forward=_forward,
)
