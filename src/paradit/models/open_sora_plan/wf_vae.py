"""WFVAEModel, the video autoencoder of Open-Sora-Plan v1.3 (arXiv 2411.17459), for use, not for training.

It transforms a video by wavelets before encoding and after decoding. Two further branches lead the low
frequencies of the coarser scales past the encoder's and the decoder's levels. A latent frame stands for four
frames, except the first, which stands for one.

Both halves read only present and earlier frames, with one exception: the decoder interpolates between latent
frames. So a video can be computed in pieces; a `Past` keeps what a piece needs of earlier ones. Without a
`Past`, the whole video is one piece. diffusers does not have this class. Its weights have the published
names.
"""
# ruff: noqa: ARG002 (diffusers takes the arguments of __init__ as the configuration's fields)

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn.functional import silu

from paradit.models.open_sora_plan.vae_spec import BANDS
from paradit.models.open_sora_plan.wavelets import (
    Haar2D,
    Haar3D,
    InverseHaar2D,
    InverseHaar3D,
    filters_3d,
    restored,
    transformed,
)
from paradit.models.open_sora_plan.wf_vae_layers import (
    Attention,
    CausalConv3d,
    Chain,
    Downsample,
    Downsample3D,
    FrameConv,
    Norm,
    Past,
    ResBlock,
    Upsample,
    Upsample3D,
)


class Encoder(nn.Module):
    """Encoder of a transformed video [B, 24, 2n + 1, H / 2, W / 2] to [B, 2 C, n + 1, H / 8, W / 8].

    Its output is the latents' mean and log-variance.
    """

    def __init__(self, latent_dim: int, base: int, num_resblocks: int, flow: int) -> None:
        super().__init__()
        self.down1 = Chain(
            FrameConv(BANDS, base),
            *(ResBlock(base, base, FrameConv) for _ in range(num_resblocks)),
            Downsample(base),
        )
        self.down2 = Chain(
            FrameConv(base + flow, 2 * base),
            *(ResBlock(2 * base, 2 * base) for _ in range(num_resblocks)),
            Downsample3D(2 * base),
        )
        self.connect_l1 = FrameConv(12, flow)
        self.connect_l2 = FrameConv(24, flow)
        self.mid = Chain(
            ResBlock(2 * base + flow, 4 * base), Attention(4 * base), ResBlock(4 * base, 4 * base)
        )
        self.norm_out = Norm(4 * base)
        self.conv_out = CausalConv3d(4 * base, 2 * latent_dim)
        self.wavelet_tranform_l1, self.wavelet_tranform_l2 = Haar2D(), Haar3D()  # spelled as published

    def forward(self, bands: Tensor, past: Past) -> Tensor:
        """Encode a piece of a video. Its first piece is one frame; each other one has an even number."""
        low1 = self.wavelet_tranform_l1(bands[:, :3])
        low2 = self.wavelet_tranform_l2(low1[:, :3], past)
        h = self.down1(bands, past)
        h = self.down2(torch.cat([h, self.connect_l1(low1)], dim=1), past)
        h = self.mid(torch.cat([h, self.connect_l2(low2)], dim=1), past)
        y: Tensor = self.conv_out(silu(self.norm_out(h)), past)
        return y


class Decoder(nn.Module):
    """Decoder of latents [B, C, n + 1, h, w] to a transformed video [B, 24, 2n + 1, 4 h, 4 w]."""

    def __init__(
        self, latent_dim: int, base: int, num_resblocks: int, flow: int, num_connecting: int
    ) -> None:
        super().__init__()
        deep = 4 * base
        self.flow, self.num_before = flow, num_resblocks
        self.conv_in = CausalConv3d(latent_dim, deep)
        self.mid = Chain(ResBlock(deep, deep), Attention(deep), ResBlock(deep, deep + flow))
        self.up2 = Chain(
            *(ResBlock(deep, deep) for _ in range(num_resblocks)),
            Upsample3D(deep),
            ResBlock(deep, deep + flow),
        )
        self.up1 = Chain(
            *(ResBlock(2 * base if index else deep, 2 * base) for index in range(num_resblocks)),
            Upsample(2 * base),
            ResBlock(2 * base, 2 * base),
        )
        self.layer = Chain(ResBlock(2 * base, base), ResBlock(base, base))
        self.connect_l1, self.connect_l2 = (
            Chain(*(ResBlock(flow, flow) for _ in range(num_connecting)), FrameConv(flow, bands))
            for bands in (12, 24)
        )
        self.norm_out = Norm(base)
        self.conv_out = FrameConv(base, BANDS)
        self.inverse_wavelet_tranform_l1 = InverseHaar2D()  # spelled as published
        self.inverse_wavelet_tranform_l2 = InverseHaar3D()

    def forward(self, z: Tensor, past: Past) -> Tensor:
        """Decode a piece of a video, at least one latent frame.

        The output begins with the frame that the output of the last piece lacked, if any. It lacks the last
        frame of this piece, unless that is the video's first frame or `past.last` is set.
        """
        h, low2 = self._apart(self.mid(self.conv_in(z, past), past))
        low2 = self.inverse_wavelet_tranform_l2(self.connect_l2(low2, past), past)
        return self._doubled(self.up2[: self.num_before](h, past), low2, past)

    def end(self, past: Past) -> Tensor:
        """Return the frame that the last piece lacked, if the video has ended with that piece.

        The video must have had more than one latent frame.
        """
        past.last = True
        h, low2 = past.kept[self.up2[self.num_before]], past.kept[self]
        return self._doubled(h[:, :, :0], low2[:, :, :0], past)

    def _doubled(self, h: Tensor, low2: Tensor, past: Past) -> Tensor:
        """Run the part of the decoder that has twice the frame rate, as far as frames are known.

        h, low2: features and low frequencies of new latent frames.
        """
        h, low1 = self._apart(self.up2[self.num_before :](h, past))
        low1 = self.connect_l1(low1, past)
        # Low frequencies are not interpolated, so they are ready one frame earlier than the features.
        low2 = torch.cat([past.kept.get(self, low2[:, :, :0]), low2], dim=2)
        past.kept[self] = low2[:, :, h.shape[2] :].clone()
        low1[:, :3] += low2[:, :, : h.shape[2]]
        h = self.layer(self.up1(h, past), past)
        bands: Tensor = self.conv_out(silu(self.norm_out(h)))
        bands[:, :3] += self.inverse_wavelet_tranform_l1(low1)
        return bands

    def _apart(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Split features into those of the decoder's next level and those of its low frequencies."""
        return h[:, : -self.flow], h[:, -self.flow :]


class WFVAEModel(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """WF-VAE with layer norms, attention, and a decoder that interpolates in time.

    Its parameters are named as in published configurations.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        *,
        latent_dim: int = 8,
        base_channels: int = 128,
        encoder_num_resblocks: int = 2,
        encoder_energy_flow_hidden_size: int = 64,
        decoder_num_resblocks: int = 2,
        decoder_energy_flow_hidden_size: int = 128,
        connect_res_layer_num: int = 2,
        scale: Sequence[float] = (0.18215,) * 8,
        shift: Sequence[float] = (0.0,) * 8,
        # Published configurations have these, too. Their values are fixed (`vae_spec.VaeConfig`), or have no
        # effect.
        dropout: float = 0.0,
        use_attention: bool = True,
        norm_type: str = "layernorm",
        t_interpolation: str = "trilinear",
        l1_dowmsample_block: str = "Downsample",
        l1_downsample_wavelet: str = "HaarWaveletTransform2D",
        l2_dowmsample_block: str = "Spatial2xTime2x3DDownsample",
        l2_downsample_wavelet: str = "HaarWaveletTransform3D",
        l1_upsample_block: str = "Upsample",
        l1_upsample_wavelet: str = "InverseHaarWaveletTransform2D",
        l2_upsample_block: str = "Spatial2xTime2x3DUpsample",
        l2_upsample_wavelet: str = "InverseHaarWaveletTransform3D",
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.encoder = Encoder(
            latent_dim, base_channels, encoder_num_resblocks, encoder_energy_flow_hidden_size
        )
        self.decoder = Decoder(
            latent_dim,
            base_channels,
            decoder_num_resblocks,
            decoder_energy_flow_hidden_size,
            connect_res_layer_num,
        )

    def encode(self, pixels: Tensor, past: Past | None = None) -> tuple[Tensor, Tensor]:
        """Return the mean and the log-variance [B, C, f, h, w] of a video's latents.

        pixels: the video [B, 3, F, H, W], from -1 to 1. past: the video's memory, if it is encoded in pieces:
        first one frame, then a multiple of four.
        """
        past = past or Past()
        if past.begins(self):
            pixels = torch.cat([pixels[:, :, :1], pixels], dim=2)
        bands = transformed(pixels, [one.to(pixels) for one in filters_3d()])
        mean, log_variance = self.encoder(bands, past).chunk(2, dim=1)
        return mean, log_variance.clamp(-30, 20)

    def decode(self, z: Tensor) -> Tensor:
        """Return the pixels [B, 3, 4n + 1, 8 h, 8 w], from about -1 to 1, of latents [B, C, n + 1, h, w]."""
        return self.pixels(self.decoder(z, Past()), first=True)

    def pixels(self, bands: Tensor, *, first: bool) -> Tensor:
        """Return the pixels [B, 3, F, H, W] of the decoder's output.

        first: whether it begins a video.
        """
        video = restored(bands, [one.to(bands) for one in filters_3d()])
        return video[:, :, 1:] if first else video

    def normalised(self, latents: Tensor) -> Tensor:
        """Convert latents as `encode` describes them to latents as the transformer reads them."""
        scale, shift = self._scale(latents)
        return (latents - shift) * scale

    def denormalised(self, latents: Tensor) -> Tensor:
        """Convert latents as the transformer reads them to latents as `decode` takes them."""
        scale, shift = self._scale(latents)
        return latents / scale + shift

    def _scale(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = (
            torch.tensor(self.config[name], dtype=torch.float64).view(1, -1, 1, 1, 1).to(latents)
            for name in ("scale", "shift")
        )
        return scale, shift
