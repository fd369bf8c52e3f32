"""UMT5, the text encoder of several families, as far as it is known without loading it. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from paradit.config.options import decode_known
from paradit.models.folder_json import read_json
from paradit.models.spec import Layers, Size


@dataclass(frozen=True, kw_only=True)
class UMT5Config:
    """What is read of a UMT5EncoderModel's config."""

    vocab_size: Size
    d_model: Size
    d_kv: Size
    d_ff: Size
    num_layers: Layers
    num_heads: Size
    relative_attention_num_buckets: Size = 32


def read_umt5(path: Path) -> UMT5Config:
    """Read a UMT5EncoderModel's config. Raises InputError."""
    return decode_known(UMT5Config, read_json(path), str(path))


def umt5_parameters(config: UMT5Config) -> int:
    """Exact count of a UMT5EncoderModel with this config, whose feed-forward is gated."""
    width, inner = config.d_model, config.num_heads * config.d_kv
    position_bias = config.relative_attention_num_buckets * config.num_heads
    layer = 4 * width * inner + 3 * width * config.d_ff + 2 * width + position_bias
    return config.vocab_size * width + config.num_layers * layer + width
