"""Pipelines of both families, and the parts of their transformers that tests attach something to."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from diffusers import HunyuanVideoPipeline, WanPipeline
from torch import Tensor

FAMILIES = ("wan21", "hunyuan")


def load(folder: Path) -> Any:
    pipe = (HunyuanVideoPipeline if folder.name == "hunyuan" else WanPipeline).from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def like(pipe: Any) -> Any:
    """Return a copy of a pipeline with a transformer of its own, which is faster than loading it again."""
    other = type(pipe)(**pipe.components | {"transformer": deepcopy(pipe.transformer)})
    other.set_progress_bar_config(disable=True)
    other.remove_all_hooks()  # also from the components that the two share
    return other


def generate(pipe: Any, prompt: str | None = "a red circle", **options: Any) -> Tensor:
    return pipe(
        prompt,
        height=48,
        width=48,
        num_frames=9,
        num_inference_steps=2,
        guidance_scale=3.0,
        generator=torch.Generator("cpu").manual_seed(4),
        output_type="latent",
        **options,
    ).frames


def blocks(pipe: Any) -> Any:
    names = ("blocks", "transformer_blocks")
    return next(getattr(pipe.transformer, name) for name in names if hasattr(pipe.transformer, name))


def attention(pipe: Any) -> Any:
    block = blocks(pipe)[0]
    return block.attn1 if hasattr(block, "attn1") else block.attn
