"""WF-VAE: layers against plain formulas, published weights, and pieces of a video against the whole."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, cast

import numpy as np
import pytest
import torch
from diffusers.video_processor import VideoProcessor
from torch import Tensor
from torch.nn.functional import conv2d, conv3d, pad

from allocated import allocated_peak
from messages import says
from paradit.config.errors import InputError
from paradit.config.tiles import Grid
from paradit.distributed.agreement import Agreement
from paradit.models.common.latent_blocks import LatentBlocks
from paradit.models.open_sora_plan.decoder import WfVaeDecoder
from paradit.models.open_sora_plan.encoder import encoded
from paradit.models.open_sora_plan.vae_spec import vae_spec
from paradit.models.open_sora_plan.wavelets import Haar2D, Haar3D, InverseHaar2D, InverseHaar3D
from paradit.models.open_sora_plan.wf_vae import WFVAEModel
from paradit.models.open_sora_plan.wf_vae_layers import (
    Attention,
    CausalConv3d,
    FrameConv,
    Norm,
    Past,
    Upsample,
    Upsample3D,
)
from paradit.stages.decode import pictures
from tiny import wf_vae

SIGNS = {"L": (1, 1), "H": (1, -1)}


@pytest.fixture(scope="module")
def vae() -> WFVAEModel:
    return wf_vae()


def near(found: Tensor, expected: Tensor, within: float = 1e-6) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=within)


def in_pieces(layer: Callable[[Tensor, Past], Tensor], x: Tensor, sizes: list[int]) -> Tensor:
    """Return the output of a layer for a video that it gets in pieces of `sizes` frames."""
    past, made = Past(last=False), []
    parts = x.split(sizes, dim=2)
    for index, part in enumerate(parts):
        past.last = index == len(parts) - 1
        made.append(layer(part, past))
    return torch.cat(made, dim=2)


# Published weights


def test_names_and_shapes_of_weights() -> None:
    with torch.device("meta"):
        model = WFVAEModel()
    assert sum(parameter.numel() for parameter in model.parameters()) == 147_347_660
    stored = model.state_dict()
    shapes = {name: list(tensor.shape) for name, tensor in stored.items()}
    assert shapes["encoder.down1.1.norm1.norm.weight"] == [128]
    assert shapes["encoder.wavelet_tranform_l2.gh_v_conv.conv.weight"] == [1, 1, 2, 2, 2]
    assert shapes["decoder.mid.2.nin_shortcut.conv.weight"] == [640, 512, 1, 1, 1]
    assert shapes["decoder.up1.2.conv.weight"] == [256, 256, 3, 3]
    # All of them, as the authors' class (Open-Sora-Plan v1.3.1) has them.
    lines = "\n".join(f"{name} {shape}" for name, shape in sorted(shapes.items()))
    assert len(shapes) == 244
    assert hashlib.sha256(lines.encode()).hexdigest().startswith("adb3754f11a92902")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"norm_type": "groupnorm"}, "norm_type 'groupnorm' is not supported: only 'layernorm' is"),
        ({"t_interpolation": "nearest"}, "t_interpolation 'nearest' is not supported: only 'trilinear' is"),
        ({"latent_dim": 4}, "scale must have a number for each of latent_dim 4, got 8"),
        ({"base_channels": 0}, "base_channels must be at least 1, got 0"),
    ],
)
def test_configurations_that_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        vae_spec(config)
    assert says(str(error.value), message)


# Layers


def test_wavelets_in_time_and_space() -> None:
    x = torch.randn(2, 3, 5, 4, 6)
    seen = torch.cat([x[:, :, :1], x], dim=2)
    bands = []
    for letters in product("LH", repeat=3):  # for time, height, width
        t, h, w = (SIGNS[letter] for letter in letters)
        corners = product((0, 1), repeat=3)
        parts = [t[i] * h[j] * w[k] * seen[:, :, i::2, j::2, k::2] for i, j, k in corners]
        bands.append(0.3536 * torch.stack(parts).sum(0))
    expected = torch.cat(bands, dim=1)
    found = Haar3D()(x, Past())
    near(found, expected)
    near(in_pieces(Haar3D(), x, [1, 2, 2]), expected)
    # 0.3536 is the rounded square root of 1/8.
    near(InverseHaar3D()(found, Past()), 8 * 0.3536**2 * x)
    near(in_pieces(InverseHaar3D(), found, [1, 1, 1]), 8 * 0.3536**2 * x)


def test_wavelets_in_space() -> None:
    x = torch.randn(2, 3, 5, 4, 6)
    (a, b), (c, d) = ([x[..., i::2, j::2] for j in (0, 1)] for i in (0, 1))
    expected = torch.cat([a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d], dim=1) / 2
    found = Haar2D()(x)
    near(found, expected)
    near(InverseHaar2D()(found), x)


@pytest.mark.parametrize("sizes", [[7], [1, 2, 4], [1, 1, 1, 1, 1, 1, 1], [3, 4]])
def test_causal_convolution(sizes: list[int]) -> None:
    x, layer = torch.randn(1, 2, 7, 4, 6), CausalConv3d(2, 3)
    seen = torch.cat([x[:, :, :1], x[:, :, :1], x], dim=2)
    expected = conv3d(seen, layer.conv.weight, layer.conv.bias, padding=(0, 1, 1))
    near(in_pieces(layer, x, sizes), expected)


@pytest.mark.parametrize("sizes", [[7], [1, 2, 4], [1, 6]])
def test_causal_convolution_that_halves(sizes: list[int]) -> None:
    x, layer = torch.randn(1, 2, 7, 4, 6), CausalConv3d(2, 3, stride=2)
    seen = pad(torch.cat([x[:, :, :1], x[:, :, :1], x], dim=2), (0, 1, 0, 1))
    frames = [
        conv3d(seen[:, :, i : i + 3], layer.conv.weight, layer.conv.bias, (1, 2, 2)) for i in (0, 2, 4, 6)
    ]
    near(in_pieces(layer, x, sizes), torch.cat(frames, dim=2))


@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_of_frames(stride: int) -> None:
    x, layer = torch.randn(2, 2, 3, 4, 6), FrameConv(2, 3, stride=stride)
    padded = pad(x, (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1))
    frames = [conv2d(frame, layer.weight, layer.bias, stride) for frame in padded.unbind(2)]
    near(layer(x), torch.stack(frames, dim=2))


def norm_of(x: Tensor, norm: Norm) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    scaled = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
    weight, bias = (values.view(1, -1, 1, 1, 1) for values in (norm.norm.weight, norm.norm.bias))
    return scaled * weight + bias


def silu_of(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def test_residual_block(vae: WFVAEModel) -> None:
    block: Any = vae.decoder.mid[2]
    x, past = torch.randn(1, 32, 3, 4, 6), Past()
    h = block.conv1(silu_of(norm_of(x, block.norm1)), past)
    h = block.conv2(silu_of(norm_of(h, block.norm2)), past)
    short = block.nin_shortcut.conv
    expected = h + torch.einsum("oi,bithw->bothw", short.weight[:, :, 0, 0, 0], x)
    near(block(x, Past()), expected + short.bias.view(1, -1, 1, 1, 1), 1e-5)


def test_attention_within_frames() -> None:
    x, layer = torch.randn(1, 6, 2, 3, 4), cast("Any", Attention(6))
    for frame in range(2):
        tokens = norm_of(x, layer.norm)[0, :, frame].flatten(1).T
        q, k, v = (
            tokens @ part.conv.weight[:, :, 0, 0, 0].T + part.conv.bias
            for part in (layer.q, layer.k, layer.v)
        )
        out = torch.softmax(q @ k.T / 6**0.5, dim=1) @ v
        out = out @ layer.proj_out.conv.weight[:, :, 0, 0, 0].T + layer.proj_out.conv.bias
        near(layer(x, Past())[0, :, frame], x[0, :, frame] + out.T.view(6, 3, 4))


def lines_between(x: Tensor, dim: int) -> Tensor:
    """Return values at a quarter before and after each value along a dimension, interpolated; ends repeat."""
    before = torch.cat([x.narrow(dim, 0, 1), x.narrow(dim, 0, x.shape[dim] - 1)], dim)
    after = torch.cat([x.narrow(dim, 1, x.shape[dim] - 1), x.narrow(dim, x.shape[dim] - 1, 1)], dim)
    return torch.stack([x * 0.75 + before * 0.25, x * 0.75 + after * 0.25], dim + 1).flatten(dim, dim + 1)


@pytest.mark.parametrize("frames", [1, 2, 3, 6])
def test_upsampling_in_time(frames: int) -> None:
    x, layer = torch.randn(1, 2, frames, 3, 4), Upsample3D(2)
    doubled = [x[:, :, :1], *([lines_between(x[:, :, 1:], 2)] if frames > 1 else [])]
    expected = layer.conv(lines_between(lines_between(torch.cat(doubled, dim=2), 3), 4), Past())
    assert expected.shape[2] == 2 * frames - 1
    near(layer(x, Past()), expected)
    near(in_pieces(layer, x, [1] * frames), expected)
    near(in_pieces(layer, x, [1, frames - 1] if frames > 1 else [1]), expected)


def test_upsampling_in_space() -> None:
    x, layer = torch.randn(1, 2, 3, 3, 4), Upsample(2)
    rows, columns = ([i // 2 for i in range(2 * size)] for size in x.shape[3:])
    near(layer(x, Past()), layer.conv(x[..., rows, :][..., columns]))


# Pieces of a video

EXACT = 1e-11
"""Largest difference allowed in fp64. In fp32, convolutions of fewer frames round differently (2e-6)."""


@pytest.fixture(scope="module")
def fp64(vae: WFVAEModel) -> WFVAEModel:
    return copy.deepcopy(vae).double()


def grid_of(vae: WFVAEModel, latents: Tensor, tile: int | None = None) -> Grid:
    height, width = (8 * size for size in latents.shape[3:])
    return vae_spec(dict(vae.config)).grid(height, width, tile)


def decoded(vae: WFVAEModel, latents: Tensor | LatentBlocks, grid: Grid) -> Iterator[Tensor]:
    """Yield the pixels that our decoder turns into frames, for one latent frame at a time."""
    made = []

    class Recorder:
        def postprocess_video(self, video: Tensor, **_: Any) -> np.ndarray:
            made.append(video)
            return np.zeros((1, 1))

    processor: Any = Recorder()
    decoder = WfVaeDecoder(vae, processor, latents, park=False)
    for _ in decoder.frames(pictures(decoder, grid, Agreement(None, torch.device("cpu")))):
        yield made.pop()


def whole(vae: WFVAEModel, latents: Tensor) -> Tensor:
    return vae.decode(latents / 0.18215)


@pytest.mark.parametrize(("frames", "made"), [(1, [1]), (2, [1, 4]), (3, [1, 2, 6]), (6, [1, 2, 4, 4, 4, 6])])
def test_decoded_pieces_equal_the_whole(fp64: WFVAEModel, frames: int, made: list[int]) -> None:
    latents = torch.randn(1, 8, frames, 4, 6, dtype=torch.float64)
    parts = list(decoded(fp64, latents, grid_of(fp64, latents)))
    assert [part.shape[2] for part in parts] == made
    near(torch.cat(parts, dim=2), whole(fp64, latents), EXACT)


def test_tiles_are_decoded_by_themselves(fp64: WFVAEModel) -> None:
    latents = torch.randn(1, 8, 3, 6, 4, dtype=torch.float64)
    cut = grid_of(fp64, latents, 32)
    assert cut.num_tiles > 1
    decoder = WfVaeDecoder(fp64, VideoProcessor(vae_scale_factor=8), latents, park=True)
    tile = cut.tiles[1]
    rows, columns = (slice(span.start, span.stop) for span in (tile.rows, tile.columns))
    parts = list(decoder.pieces(tile))
    assert [part.shape for part in parts] == [decoder.piece_shape(index, tile) for index in range(3)]
    pixels = [fp64.pixels(part, first=index == 0) for index, part in enumerate(parts)]
    near(torch.cat(pixels, dim=2), whole(fp64, latents[..., rows, columns]), EXACT)
    assert [part.shape[2:] for part in decoded(fp64, latents, cut)] == [(1, 48, 32), (2, 48, 32), (6, 48, 32)]


@pytest.mark.parametrize("arrived", [1, 2, 4])
def test_a_video_that_ends_early_is_decoded_to_its_end(fp64: WFVAEModel, arrived: int) -> None:
    latents = torch.randn(1, 8, arrived, 4, 6, dtype=torch.float64)
    stream = LatentBlocks((1, 8, 1000, 4, 6), [latents], endless=True)
    near(torch.cat([*decoded(fp64, stream, grid_of(fp64, latents))], dim=2), whole(fp64, latents), EXACT)


def test_memory_does_not_grow_with_the_length(fp64: WFVAEModel) -> None:
    def peak(frames: int) -> int:
        latents = torch.randn(1, 8, frames, 2, 2, dtype=torch.float64)
        return allocated_peak(lambda: sum(1 for _ in decoded(fp64, latents, grid_of(fp64, latents))))

    assert peak(6) <= peak(4)


def in_tiles(vae: WFVAEModel, pixels: Tensor, tile: int | None) -> Tensor:
    """Encode a video in pieces, and each picture in tiles."""
    parts = [part for part in (pixels[:, :, :1], *pixels[:, :, 1:].split(4, dim=2)) if part.shape[2]]
    height, width = pixels.shape[3:]
    grid = vae_spec(dict(vae.config)).encode_grid(height, width, tile)
    return encoded(vae, lambda: parts, grid, torch.Generator().manual_seed(3))


@pytest.mark.parametrize("frames", [1, 5, 17])
def test_encoded_pieces_equal_the_whole(fp64: WFVAEModel, frames: int) -> None:
    pixels = torch.rand(1, 3, frames, 32, 48, dtype=torch.float64) * 2 - 1
    mean, log_variance = fp64.encode(pixels)
    assert mean.shape == log_variance.shape == (1, 8, (frames + 3) // 4, 4, 6)
    found = in_tiles(fp64, pixels, None)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    near(found, (mean + torch.exp(log_variance / 2) * noise) * 0.18215, EXACT)


def test_encoded_tiles_fade_into_each_other(fp64: WFVAEModel) -> None:
    """Tiles of 64 pixels begin 48 pixels apart, and share two latent pixels, first downwards."""
    pixels = torch.rand(1, 3, 5, 112, 64, dtype=torch.float64) * 2 - 1
    tiles: dict[tuple[int, int], Tensor] = {}
    for i, j in product(range(3), range(2)):
        tile = torch.cat(fp64.encode(pixels[..., 48 * i : 48 * i + 64, 48 * j : 48 * j + 64]), dim=1)
        if i:
            for n in range(2):
                tile[..., n, :] = (1 - n / 2) * tiles[i - 1, j][..., n - 2, :] + n / 2 * tile[..., n, :]
        if j:
            for n in range(2):
                tile[..., n] = (1 - n / 2) * tiles[i, j - 1][..., n - 2] + n / 2 * tile[..., n]
        tiles[i, j] = tile
    rows = [torch.cat([tiles[i, j][..., :6, :6] for j in range(2)], dim=4) for i in range(3)]
    mean, log_variance = torch.cat(rows, dim=3).chunk(2, dim=1)
    found = in_tiles(fp64, pixels, 64)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    near(found, (mean + torch.exp(log_variance / 2) * noise) * 0.18215, EXACT)
    assert not torch.allclose(found, in_tiles(fp64, pixels, None))
