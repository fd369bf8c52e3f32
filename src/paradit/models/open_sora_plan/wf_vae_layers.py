"""Layers of WF-VAE: each reads only a video's present and earlier frames, so a video can run in pieces.

The names of their weights are the published ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad, scaled_dot_product_attention, silu


@dataclass
class Past:
    """Memory of a video from one of its pieces to the next; a new one begins a video."""

    kept: dict[nn.Module, Tensor] = field(default_factory=dict)
    """Features of earlier frames, by the layer that needs them."""
    last: bool = True
    """Whether the piece that runs is the video's last."""

    def begins(self, layer: nn.Module) -> bool:
        """Return whether a layer gets the video's first frames now, and remember that it has had them."""
        if layer in self.kept:
            return False
        self.kept[layer] = torch.empty(0)
        return True


class CausalConv3d(nn.Module):
    """Convolution with a kernel of three in time and space; in front of a video, its first frame is repeated.

    With stride 2, a video of 2n + 1 frames becomes one of n + 1 frames.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 3, stride, padding=(0, 1, 1) if stride == 1 else 0)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        before = past.kept.get(self)
        seen = torch.cat([x[:, :, :1].expand(-1, -1, 2, -1, -1) if before is None else before, x], dim=2)
        y: Tensor = self.conv(seen if self.conv.stride[0] == 1 else pad(seen, (0, 1, 0, 1)))
        # A copy: a view would keep all frames in memory.
        past.kept[self] = seen[:, :, y.shape[2] * self.conv.stride[0] :].clone()
        return y


class PointwiseConv3d(nn.Module):
    """Linear map of each position's channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y


class FrameConv(nn.Conv2d):
    """Convolution of each frame with a kernel of three.

    With stride 2, frames are padded only below and to the right.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__(inputs, outputs, 3, stride, padding=1 if stride == 1 else 0)

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:  # noqa: ARG002
        frames = x.transpose(1, 2)
        flat = frames.flatten(0, 1)
        y = super().forward(flat if self.stride[0] == 1 else pad(flat, (0, 1, 0, 1)))
        return y.reshape(*frames.shape[:2], *y.shape[1:]).transpose(1, 2)


class Norm(nn.Module):
    """Layer norm over channels, with scale and shift."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.movedim(1, -1))
        return y.movedim(-1, 1)


Conv: TypeAlias = type[CausalConv3d] | type[FrameConv]


class ResBlock(nn.Module):
    """Residual block with two convolutions, which are of class `conv`."""

    def __init__(self, inputs: int, outputs: int, conv: Conv = CausalConv3d) -> None:
        super().__init__()
        self.norm1, self.conv1 = Norm(inputs), conv(inputs, outputs)
        self.norm2, self.conv2 = Norm(outputs), conv(outputs, outputs)
        if inputs != outputs:
            self.nin_shortcut = PointwiseConv3d(inputs, outputs)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        h = self.conv1(silu(self.norm1(x)), past)
        h = self.conv2(silu(self.norm2(h)), past)
        y: Tensor = (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h
        return y


class Attention(nn.Module):
    """Attention of each frame's positions among themselves, with one head, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = Norm(channels)
        self.q, self.k, self.v, self.proj_out = (PointwiseConv3d(channels, channels) for _ in range(4))

    def forward(self, x: Tensor, past: Past) -> Tensor:  # noqa: ARG002
        h = self.norm(x)
        # As [B, F, H W, C], each frame is an attention of its own.
        q, k, v = (part(h).permute(0, 2, 3, 4, 1).flatten(2, 3) for part in (self.q, self.k, self.v))
        attended = scaled_dot_product_attention(q, k, v).transpose(2, 3)
        y: Tensor = x + self.proj_out(attended.reshape(x.transpose(1, 2).shape).transpose(1, 2))
        return y


class Downsample(nn.Module):
    """Convolution of each frame that halves height and width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = FrameConv(channels, channels, stride=2)

    def forward(self, x: Tensor, past: Past) -> Tensor:  # noqa: ARG002
        y: Tensor = self.conv(x)
        return y


class Downsample3D(nn.Module):
    """Convolution that halves height and width, and the number of frames after the first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, channels, stride=2)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        y: Tensor = self.conv(x, past)
        return y


class Upsample(nn.Module):
    """Doubling of height and width by repetition, then a convolution of each frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = FrameConv(channels, channels)

    def forward(self, x: Tensor, past: Past) -> Tensor:  # noqa: ARG002
        y: Tensor = self.conv(x.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4))
        return y


class Upsample3D(nn.Module):
    """Doubling of height and width, and of the number of frames after the first, then a causal convolution.

    Values between frames are interpolated. The second of the two frames that a frame becomes depends on the
    next frame: it is returned with that frame's piece.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, channels)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        y: Tensor = self.conv(
            interpolate(self._doubled(x, past), scale_factor=(1, 2, 2), mode="trilinear"), past
        )
        return y

    def _doubled(self, x: Tensor, past: Past) -> Tensor:
        """Return those frames of the video with twice the frame rate that are known with the frames of `x`.

        The video's first frame is not doubled, and the others are interpolated without it.
        """
        first, before = x[:, :, :0], past.kept.get(self)
        if before is None:
            first, x = x[:, :, :1], x[:, :, 1:]
            before = x[:, :, :0]
        seen = torch.cat([before, x], dim=2)
        past.kept[self] = seen[:, :, -1:].clone()
        if not seen.shape[2]:
            return first
        doubled = interpolate(seen, scale_factor=(2, 1, 1), mode="trilinear")
        # The first of the two frames that `before` becomes was returned with the last piece.
        known = doubled[:, :, before.shape[2] : doubled.shape[2] - (not past.last)]
        return torch.cat([first, known], dim=2)


class Chain(nn.Sequential):
    """Layers that run one after another."""

    def forward(self, x: Tensor, past: Past) -> Tensor:  # type: ignore[override]
        for layer in self:
            x = layer(x, past)
        return x
