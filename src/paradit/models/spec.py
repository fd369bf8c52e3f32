"""Sizes and costs of a model, read from its folder's JSON and weight headers.

Loads no weights and does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from math import lcm, prod
from pathlib import Path
from typing import Annotated, Any, cast

from paradit.config.limits import MIN_SHIFT
from paradit.config.options import ABOVE_ZERO, Option
from paradit.config.plugins import imported
from paradit.models.defaults import Defaults
from paradit.models.folder_json import read_index, read_json, stored_weights
from paradit.models.lora import Lora
from paradit.models.registry import family
from paradit.models.transformer_spec import TransformerSpec
from paradit.models.vae_spec import FP32_BYTES, VaeSpec

CONFIG = "config.json"
IN_FP32 = ("vae", "image_encoder")
"""Names of the components that run in fp32, whatever the compute dtype, as the models' cards have it."""
LEAST_ROWS = 16
"""Least number of rows of a table of timesteps, unless there are fewer tokens.

From 16 rows on, a matrix product on a CPU rounds each row alike, however many there are. For fewer rows,
libraries use other kernels.
"""
INDEX_BYTES = 8
"""Number of bytes of an index in torch."""
MAX_SIZE, MAX_LEVELS = 10**7, 16
"""Upper limits on a model's sizes and on its VAE's levels; larger numbers in a configuration are mistakes."""
Size = Annotated[int, Option(least=1, most=MAX_SIZE)]
Layers = Annotated[int, Option(least=1, most=1000)]
Positive = Annotated[float, Option(least=ABOVE_ZERO, most=MAX_SIZE)]
FIXED = Option(fixed=True)
"""Annotation of a configuration field whose only supported value is its default."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Size of one pipeline component's stored weights."""

    component: str
    parameters: int
    file_bytes: int


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Everything that is known about a model folder without loading it."""

    name: str
    folder: Path
    variant: str | None = None
    """Requested variant of the weights, such as "fp16"; None: the usual weights, or the only variant."""
    loras: tuple[Lora, ...] = ()
    """LoRA files that are merged into the transformers' weights when these are read, in this order."""
    pipeline_class: str
    transformers: tuple[TransformerSpec, ...]
    """Sizes of the model's transformer, or of its two experts, with the high-noise expert first."""
    boundary_ratio: float | None = None
    """Fraction of the training timesteps below which the low-noise expert takes over; None: there is one
    expert."""
    expand_timesteps: bool = False
    """Whether each token has a timestep of its own."""
    vae: VaeSpec
    defaults: Defaults
    weights: tuple[Weights, ...]
    text_encoder_dim: int
    text_length: int
    """Number of text tokens that a prompt is padded or cut to."""
    embedded_guidance: bool = False
    """Whether the transformer takes the guidance scale as an input, which saves a second guidance branch."""
    takes: frozenset[str] = frozenset()
    """Names of the pictures that a request may give the model: `image`, `last_image`, `video`."""
    needs_image: bool = False
    """Whether a request must give the model a picture of the first frame (`image`)."""
    needs_last_image: bool = False
    """Whether a request must give the model a picture of the last frame (`last_image`)."""
    scheduler: str = ""
    """Class of the scheduler in the model's folder; empty if it is not known."""
    shift: float | None = None
    """Timestep shift of the scheduler in the model's folder; None if it is not known."""
    given_sigmas: bool = False
    """Whether the pipeline sets the steps of its scheduler by a list of sigmas, not by their number."""
    preset: str | None = None
    """Name of the preset for requests that name none; None: the model has no such preset."""
    flow: bool = True
    """Whether the model was trained by flow matching, so that it can be run with the schedulers of
    `models.flow_schedulers`, with a timestep shift and with a list of timesteps."""
    prompt_template: str = "{}"
    """Text that every prompt is put into, in place of `{}`, before it is encoded; not a negative prompt."""
    one_timestep: bool = False
    """Whether all tokens of a video must have the same timestep."""
    latents_held: int = 1
    """Number of tensors as large as the latents that are in memory while the transformer runs, beside the
    latents themselves and what the scheduler keeps: the prediction of another guidance branch."""
    scheduler_holds: int = 3
    """Number of tensors as large as the latents that the model's scheduler keeps from one step to the next.

    A multistep scheduler keeps two earlier predictions and the previous sample.
    """

    @property
    def size_multiple(self) -> int:
        """Number of pixels that a width or height must be a multiple of: spatial compression x patch size."""
        _, patch_height, patch_width = self.transformers[0].patch_size
        return self.vae.spatial_compression * lcm(patch_height, patch_width)

    @property
    def trained_latent_frames(self) -> int:
        """Number of latent frames of the longest video that the model was trained on.

        If that is not known, it is the number for a video of the model's default length.
        """
        trained = self.defaults.train_frames
        frames = trained[1] if trained else self.defaults.num_frames
        return (frames - 1) // self.vae.temporal_compression + 1

    def weight_bytes(
        self, dtype_bytes: int, stages: Collection[str] = ("encode", "denoise", "decode")
    ) -> int:
        """Return the bytes of the weights that `stages` need; those of `IN_FP32` are in fp32."""
        return sum(
            w.parameters * (FP32_BYTES if w.component in IN_FP32 else dtype_bytes)
            for w in self.weights
            if stage_of(w.component) in stages
        )

    def is_stored_in(self, dtype_bytes: int) -> bool:
        """Return whether the weights are stored in the dtypes in which they will be run.

        If so, loading on a CPU makes no copy, and all processes of a machine share the mapped files. Weights
        with a LoRA in them are stored nowhere. dtype_bytes: the size of one value of the compute dtype.
        """
        if self.loras:
            return False
        used = dict.fromkeys(IN_FP32, FP32_BYTES)  # files also have headers; dtypes differ by a factor of two
        return all(
            w.parameters <= w.file_bytes / used.get(w.component, dtype_bytes) < 1.5 * w.parameters
            for w in self.weights
        )

    def tokens(self, num_frames: int, height: int, width: int) -> int:
        """Return the number of tokens that the transformer computes for a video."""
        _, *latent = self.vae.latent_shape(num_frames, height, width)
        return prod(
            size // patch for size, patch in zip(latent, self.transformers[0].patch_size, strict=True)
        )

    def memory_bytes(
        self, num_frames: int, height: int, width: int, dtype_bytes: int, tile: int | None = None
    ) -> dict[str, int]:
        """Estimate the memory that a video needs in one process: the bytes of each use, and their peak.

        "weights" and "latents" are in memory throughout, "text_cache" and "activations" while denoising, and
        "decode" after that. So "peak" is less than the sum. dtype_bytes: the size of a value of the compute
        dtype. tile: the side, in pixels, of the tiles to decode; None: decoding without tiles.
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
        encoded_frames: int = 0,
        latents: int | None = None,
        by_frame: bool = False,
    ) -> dict[str, int]:
        """Estimate a rank's memory when it runs `stages` of a video: the bytes of each use, and the peak.

        The uses are those of `memory_bytes`. held: the number of tokens that the rank denoises; None: all.
        cached: the number of guidance branches whose text the rank keeps. at_once: the number of guidance
        branches that the rank computes in one batch. decode_ranks: the number of ranks that share the tiles.
        encoded_frames: the number of frames of pictures that the rank encodes at once; if it encodes any, the
        result also has the bytes of "conditions". latents: the bytes of latents while denoising; None: those
        of a video as a whole. by_frame: whether each latent frame has a timestep of its own.
        """
        tokens = self.tokens(num_frames, height, width)
        held = tokens if held is None else held
        weights = self.weight_bytes(dtype_bytes, stages)
        latent_shape = self.vae.latent_shape(num_frames, height, width)
        latent_bytes = prod(latent_shape) * FP32_BYTES
        parts = {"weights": weights, "text_cache": 0, "activations": 0, "latents": 0, "decode": 0}
        if "decode" in stages:
            # The latents as received, and the copy that the decoder reads.
            parts["latents"] = 2 * latent_bytes
            parts["decode"] = self.vae.decode_bytes(height, width, tile, decode_ranks)
        if "denoise" in stages:
            whole = (1 + self.scheduler_holds + self.latents_held) * latent_bytes
            parts["latents"] = whole if latents is None else latents
            # Only the expert that is running caches text.
            values = max(t.cached_values(self.text_length) for t in self.transformers)
            parts["text_cache"] = cached * values * dtype_bytes
            parts["activations"] = max(
                at_once * t.activation_bytes(held, self.text_length, dtype_bytes)
                # Every rank embeds all tokens.
                + (tokens - held) * t.width * dtype_bytes
                + (self.expand_timesteps or by_frame)
                * _modulation_bytes(t, latent_shape[1], tokens, dtype_bytes)
                for t in self.transformers
            )
        if encoded_frames:
            parts["conditions"] = self.vae.encode_bytes(height, width, encoded_frames, tile)
        denoise = parts["text_cache"] + parts["activations"]
        working = parts["latents"] + max(denoise, parts["decode"], parts.get("conditions", 0))
        return {**parts, "peak": weights + max(working, self.merging_bytes(dtype_bytes, stages))}

    def merging_bytes(self, dtype_bytes: int, stages: Collection[str]) -> int:
        """Return the bytes of working memory that merging LoRAs takes while weights are loaded.

        It is that of one weight at a time: its change, in fp32 before and after scaling, and its sum.
        """
        if not self.loras or "denoise" not in stages:
            return 0
        largest = max(t.width * max(t.ffn_dim, 6 * t.width) for t in self.transformers)
        return largest * (2 * FP32_BYTES + 2 * dtype_bytes)


def _modulation_bytes(spec: TransformerSpec, frames: int, tokens: int, dtype_bytes: int) -> int:
    """Return the bytes of a video's time embeddings and modulation, if each frame has its own timestep.

    frames: the number of latent frames.
    """
    # A row for each frame of tokens, a layer's own rows, and the number of each token's row.
    rows = max(LEAST_ROWS, frames // spec.patch_size[0])
    return rows * spec.width * (dtype_bytes + 12 * FP32_BYTES) + tokens * INDEX_BYTES


def _scheduler(folder: Path) -> dict[str, Any]:
    """Return the fields of a spec that say what scheduler a model folder has; none if it has none."""
    path = folder / "scheduler" / "scheduler_config.json"
    if not path.exists():  # a published model, known only by its configurations
        return {}
    config = read_json(path)
    shift = config.get("flow_shift", config.get("shift"))
    # A value that is not valid is reported by `scheduler_check`.
    return {
        "scheduler": str(read_index(folder)["scheduler"][1]),
        "shift": float(shift) if isinstance(shift, int | float) and shift >= MIN_SHIFT else None,
    }


def stage_of(component: str) -> str:
    """Return the stage that uses a component's weights: encode, denoise or decode."""
    if component in IN_FP32:  # pictures are encoded where frames are decoded
        return "decode"
    return "denoise" if component.startswith("transformer") else "encode"


def read_spec(folder: Path, variant: str | None = None) -> ModelSpec:
    """Return the spec (sizes and costs) of a checked model folder, or of a folder with only configurations.

    A checked folder is one that `models.folder.find_model` returned. variant: the variant of the weights to
    count, such as "fp16"; None: the usual weights, or the only variant. Raises InputError for a pipeline
    class that is not supported.
    """
    pipeline_class = read_index(folder)["_class_name"]
    found = family(pipeline_class)
    spec = cast("Callable[[Path], ModelSpec]", imported(found.read_spec))(folder)
    spec = replace(spec, preset=found.presets.get(pipeline_class), **_scheduler(folder))
    if variant is None:
        return spec
    weights = []
    for part in spec.weights:
        parameters, file_bytes = stored_weights(folder / part.component, variant)
        weights.append(replace(part, parameters=parameters or part.parameters, file_bytes=file_bytes))
    return replace(spec, variant=variant, weights=tuple(weights))
