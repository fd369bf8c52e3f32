"""What a model is and costs, read from its folder's JSON and weight headers: no torch, nothing loaded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from math import lcm, prod
from pathlib import Path
from typing import Annotated, ClassVar, cast

from paradit.config.options import ABOVE_ZERO, Option
from paradit.config.registry import imported
from paradit.config.tiles import SIDES_APART, Grid, grid
from paradit.models.defaults import Defaults
from paradit.models.folder_json import read_index, stored_weights
from paradit.models.registry import family, find_family

FP32_BYTES = 4
CONFIG = "config.json"
MAX_SIZE, MAX_LEVELS = 10**7, 16
"""Of a model: larger numbers in its configurations are mistakes."""
Size = Annotated[int, Option(least=1, most=MAX_SIZE)]
Layers = Annotated[int, Option(least=1, most=1000)]
Positive = Annotated[float, Option(least=ABOVE_ZERO, most=MAX_SIZE)]
FIXED = Option(fixed=True)
"""A key of a configuration of which only the default is supported."""


@dataclass(frozen=True, kw_only=True)
class TransformerSpec:
    """One diffusion transformer: its sizes, under diffusers' names where diffusers has one."""

    num_attention_heads: int
    attention_head_dim: int
    num_layers: int
    ffn_dim: int
    patch_size: tuple[int, int, int]
    in_channels: int
    out_channels: int
    text_dim: int
    freq_dim: int
    max_positions: int
    """Tokens along one axis of the video that the rotary tables reach."""
    num_parameters: int
    """Exact count of the diffusers class with this config."""

    @property
    def width(self) -> int:
        """Channels of a token: heads x head dim."""
        return self.num_attention_heads * self.attention_head_dim

    def flops(self, tokens: int, text_tokens: int, timesteps: int = 1) -> int:
        """Floating-point operations of one forward of one video's tokens (a multiply-add is two).

        timesteps: time embeddings, one, or one for each token with `ModelSpec.expand_timesteps`. Matrix
        products only. The text's keys and values are computed once per request: see `context_flops`.
        """
        width = self.width
        cross_attention = self.num_layers * 4 * tokens * width**2 + self.cross_attention_flops(
            tokens, text_tokens
        )
        feed_forward = 4 * tokens * width * self.ffn_dim
        patch = prod(self.patch_size)
        ends = 2 * tokens * width * patch * (self.in_channels + self.out_channels)
        time = 2 * timesteps * (self.freq_dim * width + width**2 + 6 * width**2)
        projections = 8 * tokens * width**2
        blocks = self.num_layers * (projections + feed_forward) + cross_attention
        return blocks + self.self_attention_flops(tokens, text_tokens) + ends + time

    def self_attention_flops(self, tokens: int, text_tokens: int) -> int:  # noqa: ARG002
        """Those of `flops` that grow with the square of the tokens: of all layers, without projections."""
        return self.num_layers * 4 * tokens**2 * self.width

    def cross_attention_flops(self, tokens: int, text_tokens: int) -> int:
        """Those of `flops` that grow with tokens and text: of all layers, without projections."""
        return self.num_layers * 4 * tokens * text_tokens * self.width

    def context_flops(self, text_tokens: int) -> int:
        """Operations on one prompt's embeddings, once per request: embedder, keys and values."""
        embedder = 2 * text_tokens * (self.text_dim * self.width + self.width**2)
        return embedder + self.num_layers * 4 * text_tokens * self.width**2

    def cached_values(self, text_tokens: int) -> int:
        """Values that are kept of one prompt over the steps: every layer's keys and values of the text."""
        return 2 * self.num_layers * text_tokens * self.width

    def activation_bytes(self, tokens: int, text_tokens: int, dtype_bytes: int) -> int:  # noqa: ARG002
        """Estimate of the blocks' working memory for one video, in a dtype of `dtype_bytes`."""
        # Rotating: the embedded tokens, the residual, q, k, v, two fp32 copies, and what is made of them. The
        # feed-forward's: the embedded tokens, the residual before attention and after it, the attended
        # values, the normed ones, and the inner activation before and after.
        rounded = dtype_bytes if dtype_bytes < FP32_BYTES else 0
        rotating = self.width * (5 * dtype_bytes + 2 * FP32_BYTES + rounded)
        feed_forward = (5 * self.width + 2 * self.ffn_dim) * dtype_bytes
        rotary_tables = 2 * self.attention_head_dim * FP32_BYTES
        return tokens * (max(rotating, feed_forward) + rotary_tables)


WORKING_MAPS = 14
"""Of a VAE's last level at once, the convolutions' own working memory counted. Measured: 13.7 on a GPU
(benchmarks/planner_gpu.py, eight peaks within 1 %); without it 13.0 (tests/test_memory.py)."""


@dataclass(frozen=True, kw_only=True)
class VaeSpec(ABC):
    """The video autoencoder: its latent geometry, and enough of its decoder to estimate memory."""

    z_dim: int
    temporal_compression: int
    spatial_compression: int
    decoder_dim: int
    """Channels of the decoder's last, full-resolution level."""
    pixel_patch: int
    """The decoder ends at 1/pixel_patch of the height and width and folds channels into pixels."""
    num_res_blocks: int

    decoder_channels: tuple[int, ...] = ()
    """Of its levels, the last, full-resolution one first."""

    LATENT_FRAMES_AT_ONCE = 1
    """How many are decoded together, once the first ones are."""
    TILE_PIXELS: ClassVar[int] = 256
    """The side of a tile in diffusers' `enable_tiling()`."""

    @property
    def default_tile(self) -> int | None:
        """The side, in pixels, of the tiles that it decodes where nothing is said; None: whole pictures."""
        return None

    @property
    def tile_multiple(self) -> int:
        """Sides of tiles, in pixels, are multiples of this, so that tiles begin at latent pixels."""
        return SIDES_APART * self.spatial_compression

    def grid(self, height: int, width: int, tile: int | None) -> Grid:
        """The tiles of a picture, all in pixels. tile: their side; None: one tile."""
        scale = self.spatial_compression
        return grid(height // scale, width // scale, None if tile is None else tile // scale)

    def smaller_tile(self, height: int, width: int, tile: int | None) -> int | None:
        """The side, in pixels, of tiles that need less memory: half; of a whole picture, diffusers' own.

        None where there is none: a tile is `tile_multiple` already.
        """
        side = max(height, width)
        if tile is not None and tile < side:
            side = tile
            wanted = side // 2
        else:
            wanted = min(self.TILE_PIXELS, side // 2)
        found = max(wanted // self.tile_multiple, 1) * self.tile_multiple
        return found if found < side else None

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(channels, frames, height, width) of the latents of a video; sizes are taken as divisible."""
        frames = (num_frames - 1) // self.temporal_compression + 1
        return self.z_dim, frames, height // self.spatial_compression, width // self.spatial_compression

    @abstractmethod
    def decode_flops(self, num_frames: int, height: int, width: int) -> int:
        """Operations of decoding a whole video: convolutions and attention, as torch counts them."""

    def decode_bytes(self, height: int, width: int, tile: int | None = None, ranks: int = 1) -> int:
        """Estimate of the decoder's working memory for one latent frame, in fp32, with tiles of that side.

        ranks: that share the tiles; of the one with most of them.

        Every causal convolution keeps its last two frames, of every tile; and maps of one latent frame's
        frames in the last level are alive at the peak, of one tile. Tiles wait for the last one to be put
        together.
        """
        tiles = self.grid(height, width, tile)
        areas = (self.spatial_compression // self.pixel_patch) ** 2
        convolutions = 2 * (self.num_res_blocks + 1)
        channels = self.decoder_channels or (self.decoder_dim,)
        kept = self.decoder_dim + sum(convolutions * dim / 4.0**level for level, dim in enumerate(channels))
        working = WORKING_MAPS * self.decoder_dim * self.temporal_compression * tiles.largest_area
        values = areas * (2 * round(kept) * tiles.dealt_areas(ranks)[-1] + working)
        return FP32_BYTES * (values + self.temporal_compression * self._waiting(tiles))

    def _waiting(self, tiles: Grid) -> int:
        """Values of a frame's samples in its tiles and, once they are put together, its picture."""
        if tiles.num_tiles == 1:
            return 0
        picture = sum(span.kept for span in tiles.rows) * sum(span.kept for span in tiles.columns)
        return 3 * self.spatial_compression**2 * (tiles.area + picture)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A component's stored weights."""

    component: str
    parameters: int
    file_bytes: int


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model folder, as far as it can be known without loading it."""

    name: str
    folder: Path
    variant: str | None = None
    """Variant of the weights that is asked for; None: the usual ones, or the only others."""
    pipeline_class: str
    transformers: tuple[TransformerSpec, ...]
    """One, or two experts: the high-noise one first."""
    boundary_ratio: float | None = None
    """The low-noise expert serves timesteps below this part of the training timesteps."""
    expand_timesteps: bool = False
    """Whether each token has a timestep of its own."""
    vae: VaeSpec
    defaults: Defaults
    weights: tuple[Weights, ...]
    text_encoder_dim: int
    text_length: int
    """Text tokens that a prompt is padded or cut to."""
    embedded_guidance: bool = False
    """Whether the transformer takes the guidance scale as an input, instead of a second branch."""
    one_timestep: bool = False
    """Whether all tokens must have the same."""
    latents_held: int = 9
    """Tensors of latents' size that live while denoising: the noise, the sample, the predictions, and what
    a multistep scheduler keeps and computes."""

    @property
    def size_multiple(self) -> int:
        """Widths and heights, in pixels, must be multiples of this: spatial compression x patch."""
        _, patch_height, patch_width = self.transformers[0].patch_size
        return self.vae.spatial_compression * lcm(patch_height, patch_width)

    @property
    def trained_latent_frames(self) -> int:
        """Latent frames of the longest video that the model was trained on, as far as that is known."""
        trained = self.defaults.train_frames
        frames = trained[1] if trained else self.defaults.num_frames
        return (frames - 1) // self.vae.temporal_compression + 1

    def num_branches(self, guidance_scale: float) -> int:
        """Forwards in a denoising step: of the prompt, and for guidance of the negative prompt.

        At a guidance_scale of 1 the second would cancel out.
        """
        return 1 if self.embedded_guidance or guidance_scale <= 1 else 2

    def weight_bytes(
        self, dtype_bytes: int, stages: Collection[str] = ("encode", "denoise", "decode")
    ) -> int:
        """Of what `stages` need, the VAE in fp32."""
        return sum(
            w.parameters * (FP32_BYTES if w.component == "vae" else dtype_bytes)
            for w in self.weights
            if stage_of(w.component) in stages
        )

    def is_stored_in(self, dtype_bytes: int) -> bool:
        """Whether its files have the weights as they are used in a dtype of so many bytes.

        On a CPU they are not copied then, and all processes of a machine share them.
        """
        used = {"vae": FP32_BYTES}  # files have headers, dtypes differ by a factor of two
        return all(
            w.parameters <= w.file_bytes / used.get(w.component, dtype_bytes) < 1.5 * w.parameters
            for w in self.weights
        )

    def tokens(self, num_frames: int, height: int, width: int) -> int:
        """Tokens of a video in the transformer."""
        _, *latent = self.vae.latent_shape(num_frames, height, width)
        return prod(
            size // patch for size, patch in zip(latent, self.transformers[0].patch_size, strict=True)
        )

    def memory_bytes(
        self, num_frames: int, height: int, width: int, dtype_bytes: int, tile: int | None = None
    ) -> dict[str, int]:
        """Estimated bytes by part for a video made in one process, in a dtype of `dtype_bytes`.

        tile: the side, in pixels, of the tiles that it is decoded in; None: whole pictures.
        "weights" and "latents" stay; "text_cache" and "activations" live while denoising, "decode"
        after it; so "peak" is less than the sum.
        """
        every = ("encode", "denoise", "decode")
        return self.rank_memory_bytes(num_frames, height, width, dtype_bytes, every, tile=tile)

    def rank_memory_bytes(
        self,
        num_frames: int,
        height: int,
        width: int,
        dtype_bytes: int,
        stages: Collection[str],
        *,
        held: int | None = None,
        cached: int = 2,
        at_once: int = 1,
        tile: int | None = None,
        decode_ranks: int = 1,
    ) -> dict[str, int]:
        """The same parts for a rank that does `stages` of a video.

        held: how many of the tokens it denoises; None: all. cached, at_once: of how many guidance branches
        it keeps the text, and computes at the same time. decode_ranks: how many share the tiles.
        """
        tokens = self.tokens(num_frames, height, width)
        held = tokens if held is None else held
        weights = self.weight_bytes(dtype_bytes, stages)
        latents = prod(self.vae.latent_shape(num_frames, height, width)) * FP32_BYTES
        parts = {"weights": weights, "text_cache": 0, "activations": 0, "latents": 0, "decode": 0}
        if "decode" in stages:
            # What came, and what the decoder reads.
            parts["latents"] = 2 * latents
            parts["decode"] = self.vae.decode_bytes(height, width, tile, decode_ranks)
        if "denoise" in stages:
            parts["latents"] = self.latents_held * latents
            # For the expert at work.
            values = max(t.cached_values(self.text_length) for t in self.transformers)
            parts["text_cache"] = cached * values * dtype_bytes
            parts["activations"] = max(
                at_once * self._activation_bytes(t, held, dtype_bytes)
                # Every rank embeds all tokens.
                + (tokens - held) * (t.width * dtype_bytes + self._modulation_bytes(t, dtype_bytes))
                for t in self.transformers
            )
        denoise = parts["text_cache"] + parts["activations"]
        return {**parts, "peak": weights + parts["latents"] + max(denoise, parts["decode"])}

    def _activation_bytes(self, spec: TransformerSpec, tokens: int, dtype_bytes: int) -> int:
        working = spec.activation_bytes(tokens, self.text_length, dtype_bytes)
        of_a_block = 4 * spec.width * FP32_BYTES if self.expand_timesteps else 0
        return working + tokens * (self._modulation_bytes(spec, dtype_bytes) + of_a_block)

    def _modulation_bytes(self, spec: TransformerSpec, dtype_bytes: int) -> int:
        """Of a token, where each has its own: its time embedding, and what blocks add their own to."""
        return spec.width * (dtype_bytes + 6 * FP32_BYTES) if self.expand_timesteps else 0


def convolution(inputs: int, outputs: int, kernel: int, positions: int) -> int:
    """Operations of a convolution of so many taps, at so many places of what it makes."""
    return 2 * inputs * outputs * kernel * positions


def resnet(inputs: int, outputs: int, positions: int) -> int:
    """Operations of two 3x3x3 convolutions, and of one for the way past them if channels change."""
    shortcut = convolution(inputs, outputs, 1, positions) if inputs != outputs else 0
    return (
        convolution(inputs, outputs, 27, positions) + convolution(outputs, outputs, 27, positions) + shortcut
    )


def stage_of(component: str) -> str:
    """The stage that a component's weights are for."""
    if component == "vae":
        return "decode"
    return "denoise" if component.startswith("transformer") else "encode"


def read_spec(folder: Path, variant: str | None = None) -> ModelSpec:
    """The spec of a checked model folder (`models.folder.find_model`), or of configurations alone.

    variant: of the weights.

    Raises InputError for a pipeline class that is not supported.
    """
    pipeline_class = read_index(folder)["_class_name"]
    found = find_family(pipeline_class) or family(pipeline_class)
    spec = cast("Callable[[Path], ModelSpec]", imported(found.read_spec))(folder)
    if variant is None:
        return spec
    weights = []
    for part in spec.weights:
        parameters, file_bytes = stored_weights(folder / part.component, variant)
        weights.append(replace(part, parameters=parameters or part.parameters, file_bytes=file_bytes))
    return replace(spec, variant=variant, weights=tuple(weights))
