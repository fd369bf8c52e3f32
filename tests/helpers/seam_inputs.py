"""Random inputs of transformers, as the classes of diffusers take them."""

from typing import Any

import torch
from torch import Tensor

from tiny import POOLED_DIM, TEXT_DIM


def wan_inputs(model: Any, shape: tuple[int, ...], text_length: int = 9) -> Any:
    batch, *grid = shape
    latents = torch.randn(batch, model.config.in_channels, *grid, dtype=model.dtype)
    return latents, torch.randn(batch, text_length, TEXT_DIM, dtype=model.dtype)


def hunyuan_inputs(model: Any, shape: tuple[int, ...], text_length: int = 9) -> Any:
    """Return (latents, timestep, prompt), with the prompt as the class takes it, without padding."""
    batch, *grid = shape
    dtype = model.dtype
    prompt = (
        torch.randn(batch, text_length, TEXT_DIM, dtype=dtype),
        torch.ones(batch, text_length, dtype=dtype),
        torch.randn(batch, POOLED_DIM, dtype=dtype),
        torch.tensor([6000.0, 1000.0][:batch]).to(dtype),
    )
    return torch.randn(batch, 16, *grid, dtype=dtype), torch.tensor([711.0, 20.0][:batch]), prompt


def grid_of(latents: Tensor) -> tuple[int, int, int]:
    """Return the number of frames of latents, their height and their width."""
    _, _, frames, height, width = latents.shape
    return frames, height, width
