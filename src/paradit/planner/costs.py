"""What each operation takes on a device, from the model's sizes and the device's figures.

A kernel takes the longer of computing and of reading and writing memory (the roofline, Williams et al.,
CACM 52, 2009), its rate falling where its tiles do not fill the device; a row of kernels takes at least what
Python needs to launch them.
"""

from __future__ import annotations

from dataclasses import dataclass

from paradit.models.spec import ModelSpec, TransformerSpec, VaeSpec, stage_of
from paradit.planner.hardware import Device

ITEMSIZE = {"bf16": 2, "fp32": 4}
TILE = 128
"""Rows, and columns, of a result that one streaming multiprocessor computes at once: usual for both kinds."""
PASSES = 50
"""How often a block reads or writes a tensor as large as its tokens besides its matrix products: three
norms with their modulation, in fp32, those of q and k, RoPE, three gated residuals, the activation."""
KERNELS = 70
"""That a block launches, about; those of `PASSES` and its matrix products."""


@dataclass(frozen=True, kw_only=True)
class BlockSeconds:
    """A block on one rank, averaged over the layers."""

    value: float
    """To project values; keys and queries, with RoPE, take the same each."""
    finish: float
    head_row: float
    """Attention of one query row of one head over all keys, on a full device."""
    wave: float
    """What an attention kernel takes besides: half a wave, and its launch."""

    merge: float
    """To merge a head's row with what it got of other keys, where attention comes in parts."""
    crowding: float = 0.0
    """How much longer attention takes while messages travel, in parts of that time."""

    def attention(self, head_rows: float, beside: float = 0.0) -> float:
        """Seconds for so many (head, query row) pieces, of all videos in the batch.

        beside: seconds for which messages travel meanwhile.
        """
        seconds = head_rows * self.head_row + self.wave if head_rows else 0.0
        return seconds + self.crowding * min(seconds, beside)


def block_seconds(
    spec: TransformerSpec,
    device: Device,
    *,
    held: int,
    tokens: int,
    text: int,
    batch: int,
    dtype: str,
    kernel: str = "flash",
) -> BlockSeconds:
    """A rank that holds `held` of a video's `tokens`; batch: videos, or guidance branches, at once.

    text: the prompt's tokens.
    """
    size = ITEMSIZE[dtype]
    # All but attention, over the layers; the few operations before and after them are among it.
    cross = spec.cross_attention_flops(held, text)
    linear = (spec.flops(held, text) - spec.self_attention_flops(held, text) - cross) / spec.num_layers
    projection = 2 * held * spec.width**2
    weights = spec.num_parameters / spec.num_layers * size
    passes = PASSES * held * spec.width * size * batch
    product = _product_rate(device, dtype, max(1, batch * held) * spec.width)

    def seconds(flops: float, weight_bytes: float, passed: float, kernels: float) -> float:
        computed = max(batch * flops / product, weight_bytes / device.copy_rate)
        return _launched(device, computed + passed / device.copy_rate, kernels)

    part = spec.width**2 * size
    value = seconds(projection, part, passes / 8, KERNELS / 8)
    finish = seconds(linear - 3 * projection, weights - 3 * part, passes * 5 / 8, KERNELS * 5 / 8)
    attending = device.attention_rate(kernel, dtype, spec.attention_head_dim)
    finish += batch * cross / spec.num_layers / attending
    # Of a head's row; of joint attention the text's rows are some of them.
    rows = _attention_rows(spec, tokens, text)
    pieces = spec.num_layers * spec.num_attention_heads * rows
    head_row = spec.self_attention_flops(tokens, text) / pieces / attending
    return BlockSeconds(
        value=value if held else 0.0,
        finish=finish if held else 0.0,
        head_row=head_row,
        # In fp32: the row so far is read and written, the other one cast and read, and each difference.
        crowding=device.crowding,
        merge=8 * 4 * spec.attention_head_dim / device.copy_rate,
        wave=_wave(device, head_row),
    )


def product_seconds(device: Device, dtype: str, rows: int, inner: int, columns: int) -> float:
    """A matrix product [rows, inner] x [inner, columns] by itself."""
    computed = 2 * rows * inner * columns / _product_rate(device, dtype, rows * columns)
    return _launched(device, computed, 1)


def attention_seconds(device: Device, dtype: str, head_rows: int, keys: int, head_dim: int) -> float:
    """Attention by itself, of so many (head, query row) pieces over so many keys each."""
    head_row = 4 * keys * head_dim / device.attention_rate("flash", dtype, head_dim)
    return head_rows * head_row + _wave(device, head_row)


def _product_rate(device: Device, dtype: str, values: int) -> float:
    """FLOP/s of a product of so many values."""
    return device.rate("product", dtype) * device.filled(values / TILE**2)


def _launched(device: Device, seconds: float, kernels: float) -> float:
    """Kernels that run for so long in all, when Python launches them."""
    launch = kernels * device.launch
    return max(seconds, launch) if device.ahead else seconds + launch


def _wave(device: Device, head_row: float) -> float:
    return head_row * TILE * device.units / 2 + device.launch


def _attention_rows(spec: TransformerSpec, tokens: int, text: int) -> int:
    """How many query rows a head has: the square root of what its attention grows with."""
    return tokens + replicated_rows(spec, text)


def replicated_rows(spec: TransformerSpec, text: int) -> int:
    """Rows that every rank holds: the text of a joint-attention model."""
    joint = spec.self_attention_flops(1, text) != spec.self_attention_flops(1, 0)
    return text if joint else 0


def encode_seconds(spec: ModelSpec, device: Device, dtype: str, prompts: int) -> float:
    """The text encoders on so many texts: two operations a parameter and token."""
    parameters = sum(w.parameters for w in spec.weights if stage_of(w.component) == "encode")
    computed = 2 * parameters * spec.text_length * prompts / device.rate("product", dtype)
    return max(computed, parameters * ITEMSIZE[dtype] / device.copy_rate)


def context_seconds(spec: ModelSpec, device: Device, dtype: str, prompts: int) -> float:
    """What each rank that denoises computes of the texts before the first step."""
    flops = sum(t.context_flops(spec.text_length) for t in spec.transformers) * prompts
    return flops / device.rate("product", dtype)


def decode_seconds(
    vae: VaeSpec,
    device: Device,
    dtype: str,
    size: tuple[int, int, int],
    *,
    tile: int | None = None,
    ranks: int = 1,
) -> float:
    """A VAE's decoder on a whole video of (frames, height, width).

    tile: the side of its tiles in pixels, which overlap; None: whole pictures. ranks: that share the tiles.
    """
    frames, height, width = size
    rate = device.convolution_rate(dtype)
    # The fewer the channels, the more is read and written for each operation; the last level takes longest.
    rate /= 1 + device.narrow / vae.decoder_dim
    grid, scale = vae.grid(height, width, tile), vae.spatial_compression
    if grid.num_tiles == 1:
        return vae.decode_flops(*size) / rate
    sizes = [(tile.rows.size, tile.columns.size) for tile in grid.tiles]
    flops = {one: vae.decode_flops(frames, scale * one[0], scale * one[1]) for one in set(sizes)}
    return max(sum(flops[sizes[number]] for number in hand) for hand in grid.dealt(ranks)) / rate
