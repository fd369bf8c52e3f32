"""Sizes of CLIP's picture encoder, read without loading it. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from paradit.config.options import decode_known
from paradit.models.folder_json import read_json
from paradit.models.spec import FIXED, Layers, Size


@dataclass(frozen=True, kw_only=True)
class CLIPVisionConfig:
    """Fields that are read from a CLIPVisionModel's configuration, with the class's defaults."""

    model_type: Annotated[str, FIXED] = "clip_vision_model"
    hidden_size: Size = 768
    intermediate_size: Size = 3072
    num_hidden_layers: Layers = 12
    num_channels: Size = 3
    image_size: Size = 224
    patch_size: Size = 32

    @property
    def tokens(self) -> int:
        """Number of tokens of a picture: one for each patch, and one for the whole."""
        return (self.image_size // self.patch_size) ** 2 + 1


def read_clip_vision(path: Path) -> CLIPVisionConfig:
    """Read a CLIPVisionModel's configuration file. Raises InputError if it is not valid."""
    return decode_known(CLIPVisionConfig, read_json(path), str(path))


def clip_vision_parameters(config: CLIPVisionConfig) -> int:
    """Return the exact number of parameters of a CLIPVisionModel."""
    width, inner = config.hidden_size, config.intermediate_size
    patches = config.num_channels * config.patch_size**2 * width
    # Attention (q, k, v and output), feed-forward, and two norms; all linear layers have a bias.
    layer = 4 * (width**2 + width) + 2 * width * inner + inner + width + 4 * width
    # The token for the whole, positions, and a norm before and one after the layers.
    return width + patches + config.tokens * width + config.num_hidden_layers * layer + 4 * width
