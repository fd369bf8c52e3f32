"""Cost formulas that predict the seconds of each operation from the model's sizes and the device's figures.

A kernel takes as long as its computing or its memory accesses, whichever is longer (the roofline, Williams et
al., CACM 52, 2009). Its rate falls if its tiles do not fill the device. A sequence of kernels takes at least
the time that Python needs to launch them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import ceil

from paradit.attention.patterns import Pattern
from paradit.config.encoded_pictures import encoded_clips
from paradit.config.requests import ResolvedRequest
from paradit.models.spec import ModelSpec, stage_of
from paradit.models.transformer_spec import TransformerSpec
from paradit.models.vae_spec import VaeSpec
from paradit.planner.hardware import Device

ITEMSIZE = {"bf16": 2, "fp32": 4}
TILE = 128
"""Number of rows, and of columns, of the result tile that one GPU multiprocessor computes at once; a usual
size for both matrix products and attention."""
PASSES = 50
"""Number of times that a transformer block reads or writes a tensor as large as its tokens, not counting its
matrix products. These are the passes of three norms with their modulation (in fp32), of the norms of q and k,
of RoPE, of three gated residuals, and of the activation."""
KERNELS = 70
"""Approximate number of GPU kernels that a transformer block launches: for its matrix products, norms, RoPE,
gated residuals and activation."""

CONVOLUTION_KERNELS = 10
"""Approximate number of GPU kernels that a VAE's decoder launches for each of its convolutions: the
convolution itself, its padding with the frames before, and the norm and activation. Counted: 382 for the 38
convolutions of a Wan 2.1 VAE, and 250 for 25 of a small Wan 2.2 VAE."""

COPIES = 2.5
"""Number of tensors, out of queries, keys, values and results, that are copied to or from groups of tokens in
a layer with a pattern. It is the average of 4 for groups of runs, and of 1, the results, for groups whose
tokens are equally far apart."""


@dataclass(frozen=True, kw_only=True)
class BlockSeconds:
    """Predicted seconds of each part of a transformer block on one rank.

    They are averages over the layers, except those of attention if they are for layers of one pattern.
    """

    value: float
    """Seconds to compute V, the values, from the tokens. Computing the keys, or the queries, takes as long,
    with RoPE included."""
    finish: float
    head_row: float
    """Seconds in which one query of one head attends to all keys that it sees, on a fully used device."""
    wave: float
    """Fixed seconds of the kernels of each attention: their launches, and their last waves of tiles, which on
    average leave half of the device idle."""
    merge: float
    """Seconds to merge two partial attention results of one query and head, if its keys are processed in
    parts."""
    gathering: float = 0.0
    """Seconds to copy one token's query, key, value and result in one head, to and from its group of tokens,
    if the layer has a pattern."""
    crowding: float = 0.0
    """Slowdown of attention by messages between ranks: seconds added for each second in which messages travel
    while attention is computed."""

    def attention(self, head_rows: float, beside: float = 0.0) -> float:
        """Return the seconds that a rank takes to compute attention.

        head_rows: number of (head, query) pairs to compute, counted over the whole batch. beside: seconds for
        which messages travel while the attention is computed, and slow it down.
        """
        seconds = head_rows * (self.head_row + self.gathering) + self.wave if head_rows else 0.0
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
    pattern: Pattern | None = None,
) -> BlockSeconds:
    """Return the predicted times of the parts of a transformer block on one rank.

    held: number of tokens that the rank holds. tokens: number of tokens of the whole video. batch: number of
    videos, or guidance branches, computed at once. text: number of prompt tokens. kernel: kind of attention
    kernel, `flash` or `efficient` (see devices.toml). pattern: pattern of the layers whose attention is timed
    (`attention.grouped`); None: the average over all layers, each with a single kernel call.
    """
    size = ITEMSIZE[dtype]
    # FLOPs per layer without attention; the few operations outside the layers are spread over them.
    cross = spec.cross_attention_flops(held, text)
    linear = (spec.flops(held, text) - spec.self_attention_flops(held, text) - cross) / spec.num_layers
    projection = 2 * held * spec.width**2
    weights = spec.num_parameters / spec.num_layers * size
    passes = PASSES * held * spec.width * size * batch
    product = _product_rate(device, dtype, max(1, batch * held) * spec.width)

    def seconds(flops: float, weight_bytes: float, passed: float, kernels: float) -> float:
        # With few tokens, reading the weights takes longer than multiplying by them.
        computed = max(batch * flops / product, weight_bytes / device.copy_rate)
        return _launched(device, computed + passed / device.copy_rate, kernels)

    part = spec.width**2 * size
    # Each of the projections to q, k and v counts as an eighth of the block's passes and kernels.
    value = seconds(projection, part, passes / 8, KERNELS / 8)
    finish = seconds(linear - 3 * projection, weights - 3 * part, passes * 5 / 8, KERNELS * 5 / 8)
    attending = device.attention_rate(kernel, dtype, spec.attention_head_dim)
    finish += batch * cross / spec.num_layers / attending
    # Joint attention has query rows for the text too, so the FLOPs are divided over them as well.
    rows = spec.attention_rows(tokens, text)
    flops, pieces = spec.self_attention_flops(tokens, text), spec.num_layers * spec.num_attention_heads * rows
    if pattern is not None:
        flops, pieces = 4 * pattern.pairs(rows) * spec.width, spec.num_attention_heads * rows
    head_row = flops / pieces / attending
    groups = pattern.groups if pattern else 1
    copies = COPIES if groups > 1 else 0
    return BlockSeconds(
        value=value if held else 0.0,
        finish=finish if held else 0.0,
        head_row=head_row,
        crowding=device.crowding,
        # Eight fp32 passes: read and write the row so far, cast and read the other, and their differences.
        merge=8 * 4 * spec.attention_head_dim / device.copy_rate,
        wave=groups * _wave(device, head_row),
        gathering=2 * copies * spec.attention_head_dim * size / device.copy_rate,
    )


def product_seconds(device: Device, dtype: str, rows: int, inner: int, columns: int) -> float:
    """Return the seconds of a single matrix product [rows, inner] x [inner, columns]."""
    computed = 2 * rows * inner * columns / _product_rate(device, dtype, rows * columns)
    return _launched(device, computed, 1)


def attention_seconds(device: Device, dtype: str, head_rows: int, keys: int, head_dim: int) -> float:
    """Return the seconds of an attention kernel in which each query attends to `keys` keys.

    head_rows: number of (head, query) pairs.
    """
    head_row = 4 * keys * head_dim / device.attention_rate("flash", dtype, head_dim)
    return head_rows * head_row + _wave(device, head_row)


def _product_rate(device: Device, dtype: str, values: int) -> float:
    """Return the FLOP/s of a matrix product whose result has `values` elements; small products are slower."""
    return device.rate("product", dtype) * device.filled(values / TILE**2)


def _launched(device: Device, seconds: float, kernels: float) -> float:
    """Return the seconds of a sequence of kernels, including the time that Python takes to launch each.

    seconds: computing time of the kernels. kernels: number of kernels.
    """
    launch = kernels * device.launch
    # Kernels that are launched ahead run while Python launches the next ones.
    return max(seconds, launch) if device.ahead else seconds + launch


def _wave(device: Device, head_row: float) -> float:
    # A full wave is one tile of rows on each multiprocessor.
    return head_row * TILE * device.multiprocessors / 2 + device.launch


def replicated_rows(spec: TransformerSpec, text: int) -> int:
    """Return the number of text tokens that every rank holds: all in joint attention, otherwise 0."""
    return spec.attention_rows(0, text)


def encode_seconds(spec: ModelSpec, device: Device, dtype: str, prompts: int) -> float:
    """Return the seconds to encode `prompts` prompts: 2 FLOPs per text encoder parameter and token."""
    parameters = sum(w.parameters for w in spec.weights if stage_of(w.component) == "encode")
    computed = 2 * parameters * spec.text_length * prompts / device.rate("product", dtype)
    # Few tokens are encoded, so reading the weights may take longer.
    return max(computed, parameters * ITEMSIZE[dtype] / device.copy_rate)


def context_seconds(spec: ModelSpec, device: Device, dtype: str, prompts: int) -> float:
    """Return the seconds that a denoise rank takes to process the prompt embeddings before the first step.

    It embeds the text, and computes the text's keys and values in every layer.
    """
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
    """Return the seconds to decode a whole video of size (frames, height, width) with the VAE.

    tile: side, in pixels, of the overlapping tiles in which frames are decoded; None: whole frames are
    decoded. ranks: number of ranks that share the tiles.
    """
    frames, height, width = size
    grid, scale = vae.grid(height, width, tile), vae.spatial_compression
    rate, kernels = _vae_rate(vae, device, dtype), _decode_kernels(vae, frames)

    @cache
    def seconds(rows: int, columns: int) -> float:
        flops = vae.decode_flops(frames, scale * rows, scale * columns)
        return _launched(device, flops / rate, kernels)

    sizes = [(tile.rows.size, tile.columns.size) for tile in grid.tiles]
    # The rank with the most work decides.
    return max(sum(seconds(*sizes[number]) for number in hand) for hand in grid.dealt(ranks))


def _decode_kernels(vae: VaeSpec, frames: int) -> int:
    """Return the approximate number of kernels that the VAE launches to decode a video, or a tile of it."""
    latent_frames = vae.latent_shape(frames, 0, 0)[1]
    calls = 1 + ceil((latent_frames - 1) / vae.LATENT_FRAMES_AT_ONCE)
    return CONVOLUTION_KERNELS * vae.decoder_convolutions * calls


def _vae_rate(vae: VaeSpec, device: Device, dtype: str) -> float:
    """Return the FLOP/s of a VAE's convolutions."""
    # Convolutions with few channels move more bytes per operation. The last level, which has the fewest,
    # takes longest.
    return device.convolution_rate(dtype) / (1 + device.narrow / vae.decoder_dim)


def conditions_seconds(spec: ModelSpec, device: Device, request: ResolvedRequest) -> float:
    """Return the seconds in which one rank encodes a request's pictures.

    The encoder is taken to be as efficient as the decoder, which is measured.
    """
    vae, rate = spec.vae, _vae_rate(spec.vae, device, "fp32")
    flops, scale = 0, vae.spatial_compression
    for frames in encoded_clips(request, spec):
        for part in vae.encode_grid(request.height, request.width, request.vae_tile).tiles:
            flops += vae.encode_flops(frames, scale * part.rows.size, scale * part.columns.size)
    image_encoder = sum(w.parameters for w in spec.weights if w.component == "image_encoder")
    embedded = 2 * image_encoder * max(one.image_tokens for one in spec.transformers)
    return flops / rate + embedded / device.rate("product", "fp32")
