"""Compare WF-VAE with the authors' own class, with the same random weights, pixels and latents, in fp32.

    git clone --branch v1.3.1 https://github.com/PKU-YuanGroup/Open-Sora-Plan
    pip install einops
    python benchmarks/wf_vae_of_authors.py Open-Sora-Plan

Prints the largest differences of values, once with the published sizes and once with small ones.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from paradit.models.open_sora_plan.wf_vae import WFVAEModel
from paradit.models.open_sora_plan.wf_vae_layers import Past

PUBLISHED = {
    "base_channels": 128,
    "encoder_energy_flow_hidden_size": 64,
    "decoder_energy_flow_hidden_size": 128,
}
SMALL = {"base_channels": 32, "encoder_energy_flow_hidden_size": 16, "decoder_energy_flow_hidden_size": 32}
CASES = [
    (PUBLISHED, 9, 64, 96),
    (SMALL, 1, 64, 96),
    (SMALL, 17, 64, 96),
    (SMALL, 33, 32, 48),
    (SMALL, 21, 32, 48),
]


def authors_class(checkout: Path) -> Any:
    """Return the authors' class; packages whose `__init__` imports more than it needs become empty ones."""
    package = "opensora.models.causalvideovae.model"
    parts = package.split(".")
    for name in [*(".".join(parts[:n]) for n in range(1, 5)), f"{package}.vae", f"{package}.utils"]:
        module = ModuleType(name)
        module.__path__ = [str(checkout.joinpath(*name.split(".")))]
        sys.modules[name] = module
    return import_module(f"{package}.vae.modeling_wfvae").WFVAEModel


def pair(theirs: Any, sizes: dict[str, int]) -> tuple[Any, WFVAEModel]:
    """Return a model of the authors' class, and one of ours, with equal weights; norms have random ones."""
    torch.manual_seed(0)
    fixed = {"norm_type": "layernorm", "t_interpolation": "trilinear", "connect_res_layer_num": 2}
    one = theirs(**sizes, **fixed).eval()
    for module in one.modules():
        if isinstance(module, torch.nn.LayerNorm):
            torch.nn.init.normal_(module.weight, 1, 0.2)
            torch.nn.init.normal_(module.bias, 0, 0.2)
    ours = WFVAEModel(**sizes).eval()
    ours.load_state_dict(one.state_dict())
    return one, ours


def in_pieces(vae: WFVAEModel, latents: Tensor) -> Tensor:
    past, made = Past(last=False), []
    for index, z in enumerate(latents.split(1, dim=2)):
        past.last = index == latents.shape[2] - 1
        made.append(vae.pixels(vae.decoder(z, past), first=index == 0))
    return torch.cat(made, dim=2)


def encoded_in_pieces(vae: WFVAEModel, pixels: Tensor) -> Tensor:
    past = Past()
    parts = [part for part in (pixels[:, :, :1], *pixels[:, :, 1:].split(4, dim=2)) if part.shape[2]]
    return torch.cat([vae.encode(part, past)[0] for part in parts], dim=2)


def apart(one: Tensor, other: Tensor) -> str:
    return f"{float((one - other).abs().max()):.1e}"


@torch.no_grad()
def main() -> None:
    theirs = authors_class(Path(sys.argv[1]))
    print("base, frames, height, width | mean | log-variance | decode | ours in pieces: encode, decode | "
          "theirs in chunks: encode, decode | largest value decoded")  # fmt: skip
    for sizes, frames, height, width in CASES:
        one, ours = pair(theirs, sizes)
        pixels = torch.randn(1, 3, frames, height, width).clamp(-1, 1)
        latents = torch.randn(1, 8, (frames + 3) // 4, height // 8, width // 8)
        found, (mean, log_variance) = one.encode(pixels), ours.encode(pixels)
        whole, decoded = one.decode(latents), ours.decode(latents)
        cells = [apart(found.mean, mean), apart(found.logvar, log_variance), apart(whole, decoded)]
        cells += [apart(encoded_in_pieces(ours, pixels), mean), apart(in_pieces(ours, latents), decoded)]
        one.enable_tiling()
        cells += [apart(one.encode(pixels).mean, found.mean), apart(one.decode(latents), whole)]
        cells.append(f"{float(whole.abs().max()):.2f}")
        print(sizes["base_channels"], frames, height, width, "|", " | ".join(cells), flush=True)


if __name__ == "__main__":
    main()
