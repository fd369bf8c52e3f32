"""What a model is and costs, read from its folder's JSON and weight headers: no torch, nothing loaded."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import lcm, prod
from pathlib import Path

from paradit.models.folder_json import read_json
from paradit.models.registry import spec_reader

FP32_BYTES = 4


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
        cross_attention = 4 * tokens * width**2 + 4 * tokens * text_tokens * width
        feed_forward = 4 * tokens * width * self.ffn_dim
        patch = prod(self.patch_size)
        ends = 2 * tokens * width * patch * (self.in_channels + self.out_channels)
        time = 2 * timesteps * (self.freq_dim * width + width**2 + 6 * width**2)
        projections = 8 * tokens * width**2
        blocks = self.num_layers * (projections + cross_attention + feed_forward)
        return blocks + self.self_attention_flops(tokens, text_tokens) + ends + time

    def self_attention_flops(self, tokens: int, text_tokens: int) -> int:  # noqa: ARG002
        """Those of `flops` that grow with the square of the tokens: of all layers, without projections."""
        return self.num_layers * 4 * tokens**2 * self.width

    def context_flops(self, text_tokens: int) -> int:
        """Operations on one prompt's embeddings, once per request: embedder, keys and values."""
        embedder = 2 * text_tokens * (self.text_dim * self.width + self.width**2)
        return embedder + self.num_layers * 4 * text_tokens * self.width**2

    def cached_values(self, text_tokens: int) -> int:
        """Values that are kept of one prompt over the steps: every layer's keys and values of the text."""
        return 2 * self.num_layers * text_tokens * self.width

    def activation_bytes(self, tokens: int, text_tokens: int, dtype_bytes: int) -> int:  # noqa: ARG002
        """Estimate of a block's working memory for one video, in a dtype of `dtype_bytes`."""
        # Attention's peak: the residual, q, k, v, the attended values and one rotated copy. The
        # feed-forward's: the residual, the norm's two fp32 copies, the inner activation before and after.
        attention = 6 * self.width * dtype_bytes
        feed_forward = self.width * (dtype_bytes + 2 * FP32_BYTES) + 2 * self.ffn_dim * dtype_bytes
        return tokens * max(attention, feed_forward)


@dataclass(frozen=True, kw_only=True)
class VaeSpec:
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

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(channels, frames, height, width) of the latents of a video; sizes are taken as divisible."""
        frames = (num_frames - 1) // self.temporal_compression + 1
        return self.z_dim, frames, height // self.spatial_compression, width // self.spatial_compression

    def decode_flops(self, num_frames: int, height: int, width: int) -> int:
        """Operations of decoding a whole video: convolutions and attention, as torch counts them."""
        raise NotImplementedError

    def decode_bytes(self, height: int, width: int) -> int:
        """Estimate of the decoder's working memory for one latent frame, in fp32.

        The last level has the most values: every causal convolution there keeps its last two frames, and
        about six maps of one latent frame's frames are alive at the peak.
        """
        level = self.decoder_dim * (height // self.pixel_patch) * (width // self.pixel_patch)
        convolutions = 2 * (self.num_res_blocks + 1)
        return FP32_BYTES * level * (2 * convolutions + 6 * self.temporal_compression)


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What a request gets where it does not say."""

    width: int
    height: int
    num_frames: int
    fps: int
    num_inference_steps: int
    guidance_scale: float
    guidance_scale_2: float | None = None
    """Guidance of the low-noise expert, for models that have one; None means guidance_scale."""
    negative_prompt: str = ""
    train_frames: tuple[int, int] | None = None
    """Shortest and longest video, in frames, that the model was trained on, where known."""


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
    pipeline_class: str
    transformers: tuple[TransformerSpec, ...]
    """One, or two experts: the high-noise one first."""
    boundary_ratio: float | None
    """The low-noise expert serves timesteps below this part of the training timesteps."""
    expand_timesteps: bool
    """Whether each token has a timestep of its own (Wan 2.2 TI2V)."""
    vae: VaeSpec
    defaults: Defaults
    weights: tuple[Weights, ...]
    text_encoder_dim: int
    text_length: int
    """Text tokens that a prompt is padded or cut to."""
    embedded_guidance: bool = False
    """Whether the transformer takes the guidance scale as an input, instead of a second branch."""

    @property
    def size_multiple(self) -> int:
        """Widths and heights, in pixels, must be multiples of this: spatial compression x patch."""
        _, patch_height, patch_width = self.transformers[0].patch_size
        return self.vae.spatial_compression * lcm(patch_height, patch_width)

    def num_branches(self, guidance_scale: float) -> int:
        """Forwards in a denoising step: of the prompt, and for guidance of the negative prompt.

        At a guidance_scale of 1 the second would cancel out.
        """
        return 1 if self.embedded_guidance or guidance_scale <= 1 else 2

    def tokens(self, num_frames: int, height: int, width: int) -> int:
        """Tokens of a video in the transformer."""
        _, *latent = self.vae.latent_shape(num_frames, height, width)
        return prod(
            size // patch for size, patch in zip(latent, self.transformers[0].patch_size, strict=True)
        )

    def memory_bytes(self, num_frames: int, height: int, width: int, dtype_bytes: int) -> dict[str, int]:
        """Estimated bytes by part for a video made in one process, in a dtype of `dtype_bytes`.

        "weights" and "latents" stay; "text_cache" and "activations" live while denoising, "decode"
        after it; so "peak" is less than the sum.
        """
        every = ("encode", "denoise", "decode")
        return self.rank_memory_bytes(num_frames, height, width, dtype_bytes, every)

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
    ) -> dict[str, int]:
        """The same parts for a rank that does `stages` of a video.

        held: how many of the tokens it denoises; None: all. cached, at_once: of how many guidance branches
        it keeps the text, and computes at the same time.
        """
        tokens = self.tokens(num_frames, height, width)
        held = tokens if held is None else held
        weights = sum(
            w.parameters * (FP32_BYTES if w.component == "vae" else dtype_bytes)
            for w in self.weights
            if stage_of(w.component) in stages
        )
        latents = prod(self.vae.latent_shape(num_frames, height, width)) * FP32_BYTES
        parts = {"weights": weights, "text_cache": 0, "activations": 0, "latents": 0, "decode": 0}
        if "decode" in stages:
            # What came, and what the decoder reads.
            parts["latents"] = 2 * latents
            parts["decode"] = self.vae.decode_bytes(height, width)
        if "denoise" in stages:
            # The sample, both predictions, and the two model outputs that a multistep scheduler keeps.
            parts["latents"] = 5 * latents
            # For the expert at work.
            values = max(t.cached_values(self.text_length) for t in self.transformers)
            parts["text_cache"] = cached * values * dtype_bytes
            parts["activations"] = max(
                at_once * self._activation_bytes(t, held, dtype_bytes)
                # Every rank embeds all tokens, and keeps its own.
                + (tokens - held) * (t.width * dtype_bytes + self._modulation_bytes(t))
                for t in self.transformers
            )
        denoise = parts["text_cache"] + parts["activations"]
        return {**parts, "peak": weights + parts["latents"] + max(denoise, parts["decode"])}

    def _activation_bytes(self, spec: TransformerSpec, tokens: int, dtype_bytes: int) -> int:
        working = spec.activation_bytes(tokens, self.text_length, dtype_bytes)
        return working + tokens * self._modulation_bytes(spec)

    def _modulation_bytes(self, spec: TransformerSpec) -> int:
        """Of a token, where each has its own."""
        return 6 * spec.width * 2 * FP32_BYTES if self.expand_timesteps else 0


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


def read_spec(folder: Path) -> ModelSpec:
    """The spec of a checked model folder (`models.folder.find_model`).

    Raises InputError for a pipeline class that is not supported.
    """
    pipeline_class = read_json(folder / "model_index.json")["_class_name"]
    return spec_reader(pipeline_class)(folder)
