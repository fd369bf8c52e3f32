"""LoRA files of all key forms for tiny models, and the weights that diffusers makes of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

LINEARS = r"blocks\.\d+\.(attn[12]\.(to_[qkv]|to_out\.0)|ffn\.net\.(0\.proj|2))"
"""Modules that LoRAs of Wan usually change, as a regular expression."""
_ORIGINAL = {
    "attn1.": "self_attn.",
    "attn2.": "cross_attn.",
    "to_out.0": "o",
    "add_k_proj": "k_img",
    "add_v_proj": "v_img",
    "to_": "",
    "net.0.proj": "0",
    "net.2": "2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "proj_out": "head.head",
    "transformer.": "diffusion_model.",
}
"""Parts of diffusers' names, in the order of replacing, and what the original files have in their place."""


def random_lora(
    transformer: torch.nn.Module, modules: str = LINEARS, *, seed: int = 0, biases: bool = False
) -> dict[str, Tensor]:
    """Return a random LoRA of rank 3, by diffusers' names, for the modules that match a pattern."""
    torch.manual_seed(seed)
    found = {}
    for name, module in transformer.named_modules():
        if re.fullmatch(modules, name):
            weight: Any = module.weight
            ones = (1 for _ in weight.shape[2:])
            found[f"transformer.{name}.lora_A.weight"] = 0.3 * torch.randn(3, *weight.shape[1:])
            found[f"transformer.{name}.lora_B.weight"] = 0.3 * torch.randn(weight.shape[0], 3, *ones)
            if biases:
                found[f"transformer.{name}.lora_B.bias"] = 0.3 * torch.randn(weight.shape[0])
    return found


def original(tensors: dict[str, Tensor], *, alpha: float | None = None) -> dict[str, Tensor]:
    """Return the tensors by the names of the original files and ComfyUI's, with alphas if one is given."""
    found = {}
    for name, tensor in tensors.items():
        key = name.replace("lora_B.bias", "diff_b")
        for part, other in _ORIGINAL.items():
            key = key.replace(part, other)
        if alpha is not None:
            found[f"{key.split('.lora_')[0].removesuffix('.diff_b')}.alpha"] = torch.tensor(alpha)
            found[key.replace("lora_A", "lora_down").replace("lora_B", "lora_up")] = tensor
        else:
            found[key] = tensor
    return found


def kohya(tensors: dict[str, Tensor], *, alpha: float) -> dict[str, Tensor]:
    """Return the tensors by the names of kohya's and musubi's files."""
    found = {}
    for key, tensor in original(tensors, alpha=alpha).items():
        module, dot, end = re.fullmatch(r"diffusion_model\.(.*?)(\.)(lora_.*|alpha)", key).groups()  # type: ignore[union-attr]
        found[f"lora_unet_{module.replace('.', '_')}{dot}{end}"] = tensor
    return found


def saved(tensors: dict[str, Tensor], path: Path) -> Path:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    return path


def fused(pipe: Any, loras: list[tuple[Path, float]], into: str = "transformer") -> dict[str, Tensor]:
    """Return a transformer's weights after diffusers has loaded and fused LoRA files with their scales."""
    module, names = getattr(pipe, into), [f"lora{number}" for number in range(len(loras))]
    for name, (path, _) in zip(names, loras, strict=True):
        pipe.load_lora_weights(
            path.parent,
            weight_name=path.name,
            adapter_name=name,
            load_into_transformer_2=into != "transformer",
        )
    module.set_adapters(names, [scale for _, scale in loras])
    pipe.fuse_lora(components=[into])
    module.unload_lora()
    return dict(module.state_dict())
