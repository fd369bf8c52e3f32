"""Sizes of UMT5 and mT5, text encoders of several families, read without loading them. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from paradit.config.options import decode_known
from paradit.models.folder_json import read_json
from paradit.models.spec import Layers, Size


@dataclass(frozen=True, kw_only=True)
class UMT5Config:
    """Fields that are read from the configuration of a UMT5EncoderModel or an MT5EncoderModel."""

    vocab_size: Size
    d_model: Size
    d_kv: Size
    d_ff: Size
    num_layers: Layers
    num_heads: Size
    relative_attention_num_buckets: Size = 32


def read_umt5(path: Path) -> UMT5Config:
    """Read the configuration file of a UMT5EncoderModel or an MT5EncoderModel. Raises InputError."""
    return decode_known(UMT5Config, read_json(path), str(path))


def umt5_parameters(config: UMT5Config) -> int:
    """Return the exact number of parameters of a UMT5EncoderModel, whose feed-forward is gated."""
    width, inner = config.d_model, config.num_heads * config.d_kv
    position_bias = config.relative_attention_num_buckets * config.num_heads
    # Attention, gated feed-forward, two norms, and the position bias, which each layer of UMT5 has of its
    # own; linear layers have no bias.
    layer = 4 * width * inner + 3 * width * config.d_ff + 2 * width + position_bias
    return config.vocab_size * width + config.num_layers * layer + width


def mt5_parameters(config: UMT5Config) -> int:
    """Return the exact number of parameters of an MT5EncoderModel, whose layers share one position bias."""
    position_bias = config.relative_attention_num_buckets * config.num_heads
    return umt5_parameters(config) - (config.num_layers - 1) * position_bias
