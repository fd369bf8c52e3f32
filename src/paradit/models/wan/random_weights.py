"""Parts of Wan models with random weights, of any size, for measurements of how long such parts take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.video_processor import VideoProcessor
from torch import Tensor

from paradit.models.protocol import Frames
from paradit.models.transformer_spec import TransformerSpec
from paradit.models.vae_spec import VaeSpec
from paradit.models.wan.decoder import WanDecoder
from paradit.models.wan.spec import transformer_spec
from paradit.models.wan.transformer import WanBlock, WanTokens, WanTransformer
from paradit.models.wan.vae_spec import vae_spec

TEXT_DIM = 64


@torch.no_grad()
def random_block(
    heads: int,
    head_dim: int,
    latent_shape: tuple[int, int, int],
    *,
    text_tokens: int,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[WanBlock, WanTokens, TransformerSpec]:
    """Return a transformer block with random weights, a video's tokens as its input, and the block's spec.

    latent_shape: (frames, height, width) of the latents, of which a token covers 1x2x2. The feed-forward is
    four times as wide as the block. The spec describes a transformer of such blocks, without what comes
    before and after the blocks.
    """
    with device:
        module = WanTransformer3DModel(
            num_attention_heads=heads,
            attention_head_dim=head_dim,
            num_layers=1,
            ffn_dim=4 * heads * head_dim,
            text_dim=TEXT_DIM,
        )
        latents = torch.randn(1, 16, *latent_shape, dtype=dtype)
        text = torch.randn(1, text_tokens, TEXT_DIM, dtype=dtype)
        timestep = torch.tensor([500])
    # The same dtypes as from_pretrained gives the weights.
    for name, parameter in module.eval().named_parameters():
        if not any(part in name for part in module._keep_in_fp32_modules):
            parameter.data = parameter.data.to(dtype)
    whole = transformer_spec(dict(module.config))
    parameters = sum(parameter.numel() for parameter in module.blocks.parameters())
    spec = replace(whole, in_channels=0, out_channels=0, freq_dim=0, num_parameters=parameters)
    transformer = WanTransformer(module)
    context = transformer.context(text)
    tokens = transformer.embed(latents, timestep, context, transformer.layout(latent_shape))
    return transformer.blocks[0], transformer.branch(tokens, context), spec


def random_decoder(channels: int, device: torch.device) -> tuple[Callable[[Tensor], list[Frames]], VaeSpec]:
    """Return a function that decodes normalised latents [1, C, F, h, w] to frames, and the sizes of its VAE.

    The VAE has random weights. channels: the number of channels of its decoder's last, full-resolution level.
    """
    with device:
        vae = AutoencoderKLWan(base_dim=channels)
    vae.eval()
    spec = vae_spec(dict(vae.config))
    processor = VideoProcessor(vae_scale_factor=spec.spatial_compression)

    def decode(latents: Tensor) -> list[Frames]:
        decoder = WanDecoder(vae, processor, latents, park=False)
        height, width = (spec.spatial_compression * size for size in latents.shape[3:])
        (tile,) = spec.grid(height, width, None).tiles
        return list(decoder.frames(decoder.pieces(tile)))

    return decode, spec
