"""Haar wavelet transforms of videos, in time and space or in space alone, and their inverses.

A transform splits a video into bands: sums (L, low) and differences (H, high) of neighbouring values along
each axis. Each band has half of the video's size along each of these axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import conv2d, conv3d, conv_transpose2d, conv_transpose3d

from paradit.models.open_sora_plan.wf_vae_layers import Past

SCALE_3D, SCALE_2D = 0.3536, 0.5
"""Factors of a transform's sums and differences. In three dimensions it is the published, rounded value of
the square root of 1/8: a video that is transformed and restored has 1.00026 times its values."""
BANDS_3D = ("h", "g", "hh", "gh", "h_v", "g_v", "hh_v", "gh_v")
"""Published names of the bands LLL, LLH, LHL, LHH, HLL, HLH, HHL, HHH; their letters are for time, height and
width."""
BANDS_2D = ("aa", "ad", "da", "dd")
"""Published names of the bands LL, HL, LH, HH; their letters are for height and width."""


def filters_3d() -> list[Tensor]:
    """Return the filters [1, 1, 2, 2, 2] of the bands in `BANDS_3D`."""
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    made = [torch.einsum("i,j,k->ijk", *signs[list(letters)]) for letters in product((0, 1), repeat=3)]
    return [SCALE_3D * one[None, None] for one in made]


def filters_2d() -> list[Tensor]:
    """Return the filters [1, 1, 2, 2] of the bands in `BANDS_2D`."""
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    letters = [(0, 0), (1, 0), (0, 1), (1, 1)]
    return [SCALE_2D * torch.outer(signs[height], signs[width])[None, None] for height, width in letters]


def transformed(video: Tensor, filters: Sequence[Tensor]) -> Tensor:
    """Return the bands [B, 8 C, F / 2, H / 2, W / 2] of a video [B, C, F, H, W], band by band."""
    batch, channels = video.shape[:2]
    bands = conv3d(video.flatten(0, 1)[:, None], torch.cat([*filters]), stride=2)
    return bands.reshape(batch, channels, *bands.shape[1:]).transpose(1, 2).flatten(1, 2)


def restored(bands: Tensor, filters: Sequence[Tensor]) -> Tensor:
    """Return the video [B, C, 2 F, 2 H, 2 W] of bands [B, 8 C, F, H, W], in the order of `transformed`."""
    batch, count = len(bands), len(filters)
    by_channel = bands.reshape(batch, count, -1, *bands.shape[2:]).transpose(1, 2).flatten(0, 1)
    video = conv_transpose3d(by_channel, torch.cat([*filters]), stride=2)
    return video.reshape(batch, -1, *video.shape[2:])


class Haar3D(Module):
    """Transform in time and space of a video of 2n + 1 frames to bands of n + 1 frames.

    The first frame is repeated once in front of the video.
    """

    def __init__(self) -> None:
        super().__init__()
        for name, values in zip(BANDS_3D, filters_3d(), strict=True):
            stored = Module()
            stored.conv = Module()
            stored.conv.register_buffer("weight", values)
            self.add_module(f"{name}_conv", stored)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        if past.begins(self):
            x = torch.cat([x[:, :, :1], x], dim=2)
        return transformed(x, [self.get_buffer(f"{name}_conv.conv.weight") for name in BANDS_3D])


class InverseHaar3D(Module):
    """Inverse of `Haar3D`; it drops the frame that `Haar3D` adds."""

    def __init__(self) -> None:
        super().__init__()
        for name, values in zip(BANDS_3D, filters_3d(), strict=True):
            self.register_buffer(name, values)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        video = restored(x, [self.get_buffer(name) for name in BANDS_3D])
        return video[:, :, 1:] if past.begins(self) else video


class Haar2D(Module):
    """Transform in space of each frame of a video."""

    def __init__(self) -> None:
        super().__init__()
        for name, values in zip(BANDS_2D, filters_2d(), strict=True):
            self.register_buffer(name, values)

    def forward(self, x: Tensor) -> Tensor:
        filters = torch.cat([self.get_buffer(name) for name in BANDS_2D])
        batch, channels, frames = x.shape[:3]
        bands = conv2d(x.flatten(0, 2)[:, None], filters, stride=2)
        return bands.reshape(batch, channels, frames, *bands.shape[1:]).movedim(3, 1).flatten(1, 2)


class InverseHaar2D(Haar2D):
    """Inverse of `Haar2D`."""

    def forward(self, x: Tensor) -> Tensor:
        filters = torch.cat([self.get_buffer(name) for name in BANDS_2D])
        by_frame = x.reshape(len(x), len(BANDS_2D), -1, *x.shape[2:]).movedim(1, 3)
        frames = conv_transpose2d(by_frame.flatten(0, 2), filters, stride=2).squeeze(1)
        return frames.reshape(*by_frame.shape[:3], *frames.shape[1:])
