"""Text side of the bundled model: a word tokenizer, a small UMT5 encoder, and captions to train on."""

from __future__ import annotations

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from paradit.shapes.scenes import OTHER_FORMS, WORDS, Scene

TEXT_DIM = 64
MAX_SEQUENCE_LENGTH = 512
"""Length to which `WanPipeline` pads the prompt embeddings, with zeros."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token for each known word; it first drops all other words from a text."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            *(normalizers.Replace(Regex(rf"\b{form}\b"), word) for form, word in OTHER_FORMS.items()),
            normalizers.Replace(Regex(rf"\b(?!(?:{'|'.join(WORDS)})\b)\w+\b"), " "),
            normalizers.Replace(Regex(r"[^a-z]+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=MAX_SEQUENCE_LENGTH,
    )


def build_text_encoder(vocab_size: int) -> UMT5EncoderModel:
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocab_size,
            d_model=TEXT_DIM,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_heads=4,
            relative_attention_num_buckets=16,
            relative_attention_max_distance=32,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            is_encoder_decoder=False,
        )
    )


def caption(scene: Scene, rng: np.random.Generator, drop: float = 0.1) -> str:
    """Return a random caption of the scene: clauses in varying order, some left out.

    drop: probability of an empty caption, which classifier-free guidance needs.
    """
    if rng.random() < drop:
        return ""
    thing = f"{scene.color if rng.random() > 0.03 else ''} {scene.shape if rng.random() > 0.03 else ''}"
    motion = scene.motion if rng.random() > 0.04 else ""
    if motion.startswith("moving ") and rng.random() < 0.15:
        motion = motion.removeprefix("moving ")
    background = f"{scene.background} background" if rng.random() > 0.06 else ""
    order = rng.random()
    if order < 0.7:
        return f"{thing} {motion} {background}"
    if order < 0.8:
        return f"{background} {thing} {motion}"
    if order < 0.9:
        return f"{motion} {thing} {background}"
    return f"{thing} {background} {motion}"


def pad_bias(lengths: torch.Tensor, width: int) -> torch.Tensor:
    """Return an attention bias `[B, 1, 1, width + 1]` that makes one padding key stand for all of them.

    `WanPipeline` pads the embeddings with zeros to `MAX_SEQUENCE_LENGTH`, and the transformer attends to the
    padding, too. All those keys are equal, so one key whose score is raised by the logarithm of their number
    has the same effect at a fraction of the cost.
    """
    position = torch.arange(width + 1, device=lengths.device)
    bias = torch.zeros(len(lengths), width + 1, device=lengths.device)
    bias[position[None] >= lengths[:, None]] = float("-inf")
    bias[:, width] = torch.log((MAX_SEQUENCE_LENGTH - lengths).float())
    return bias[:, None, None]
