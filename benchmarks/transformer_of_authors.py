"""Compare Open-Sora-Plan's transformers with the authors' classes, with the same random weights and inputs.

    git clone --branch v1.3.1 https://github.com/PKU-YuanGroup/Open-Sora-Plan
    pip install einops
    python benchmarks/transformer_of_authors.py Open-Sora-Plan

Prints the largest differences of predictions in fp32, of 32 layers, for text to video and for pictures.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from paradit.models.open_sora_plan.module import OpenSoraInpaint_v1_3, OpenSoraT2V_v1_3
from paradit.models.open_sora_plan.transformer import OpenSoraPlanTransformer
from paradit.parallel.predictor import LocalPredictor

PACKAGE = "opensora.models.diffusion.opensora_v1_3"
KINDS = {"modeling_opensora": OpenSoraT2V_v1_3, "modeling_inpaint": OpenSoraInpaint_v1_3}
SIZES = (2, 24), (3, 96)
"""Heads and head dims."""
GRIDS = (2, 4, 12), (3, 10, 10), (1, 4, 6), (5, 10, 14), (8, 16, 16)
"""Sizes of latents, most of whose numbers of tokens do not divide by the groups of sparse layers."""
LENGTH, TEXT_DIM, USED = 16, 32, 11
FIXED = {
    "in_channels": 8,
    "out_channels": 8,
    "num_layers": 32,
    "dropout": 0.0,
    "attention_bias": True,
    "sample_size_h": 8,
    "sample_size_w": 8,
    "sample_size_t": 5,
    "patch_size": 2,
    "patch_size_t": 1,
    "activation_fn": "gelu-approximate",
    "only_cross_attention": False,
    "double_self_attention": False,
    "upcast_attention": False,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "caption_channels": TEXT_DIM,
    "interpolation_scale_h": 1.0,
    "interpolation_scale_w": 1.0,
    "interpolation_scale_t": 1.0,
    "sparse1d": True,
    "sparse_n": 4,
}


def authors_class(checkout: Path, module: str, name: str) -> Any:
    """Return one of the authors' classes; packages that import more than it needs become empty ones."""
    parts = PACKAGE.split(".")
    for package in [*(".".join(parts[:n]) for n in range(1, len(parts) + 1)), "opensora.utils"]:
        empty = ModuleType(package)
        empty.__path__ = [str(checkout.joinpath(*package.split(".")))]
        sys.modules.setdefault(package, empty)
    utils: Any = ModuleType("opensora.utils.utils")
    utils.to_2tuple = lambda x: x if isinstance(x, tuple) else (x, x)
    sys.modules["opensora.utils.utils"] = utils
    torch.backends.cuda.sdp_kernel = lambda **_: nullcontext()  # type: ignore[assignment,misc]
    return getattr(import_module(f"{PACKAGE}.{module}"), name)


def pair(theirs: Any, own: Any, heads: int, head_dim: int) -> tuple[Any, Any]:
    """Return a model of the authors' class, and one of ours, with the same random weights."""
    torch.manual_seed(0)
    sizes = {
        "num_attention_heads": heads,
        "attention_head_dim": head_dim,
        "cross_attention_dim": heads * head_dim,
    }
    one = theirs(**FIXED, **sizes).eval()
    for weights in one.parameters():
        weights.add_(0.05 * torch.randn_like(weights))
    ours = own.from_config(dict(one.config)).eval()
    ours.load_state_dict(one.state_dict())
    return one, ours


def of_authors(model: Any, latents: Tensor, timestep: Tensor, text: Tensor, mask: Tensor) -> Tensor:
    """Return the prediction of the authors' class, with masks as its pipeline makes them."""
    batch, _, frames, height, width = latents.shape
    seen = torch.ones(batch, frames, height, width)
    found: Tensor = model(
        latents, timestep=timestep, encoder_hidden_states=text[:, None], attention_mask=seen,
        encoder_attention_mask=mask[:, None], return_dict=False,
    )[0]  # fmt: skip
    return found


def of_ours(model: Any, latents: Tensor, timestep: Tensor, text: Tensor, mask: Tensor) -> Tensor:
    seam: Any = OpenSoraPlanTransformer(model)
    alone, layout = LocalPredictor(), seam.layout(tuple(latents.shape[2:]))
    return alone.predict(seam, latents, timestep, alone.contexts(seam, [(text, mask)]), layout)[0]


@torch.no_grad()
def main() -> None:
    checkout = Path(sys.argv[1])
    for module, own in KINDS.items():
        theirs = authors_class(checkout, module, own.__name__)
        for heads, head_dim in SIZES:
            one, ours = pair(theirs, own, heads, head_dim)
            largest = difference = 0.0
            for number, grid in enumerate(GRIDS):
                torch.manual_seed(1 + number)
                channels = 20 if own is OpenSoraInpaint_v1_3 else 8
                text, mask = torch.randn(1, LENGTH, TEXT_DIM), (torch.arange(LENGTH) < USED).float()[None]
                given = torch.randn(1, channels, *grid), torch.tensor([340.0]), text, mask
                expected = of_authors(one, *given)
                largest = max(largest, float(expected.abs().max()))
                difference = max(difference, float((of_ours(ours, *given) - expected).abs().max()))
            print(
                f"{own.__name__}, {heads} heads x {head_dim}: {difference:.1e} of {largest:.1f}", flush=True
            )


if __name__ == "__main__":
    main()
