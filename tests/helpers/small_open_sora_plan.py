"""Tiny random models of Open-Sora-Plan, and its transformer as plain formulas, with masks written out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from diffusers import EulerAncestralDiscreteScheduler
from torch import Tensor
from torch.nn.functional import conv2d, gelu, layer_norm, linear, silu
from transformers import MT5Config, MT5EncoderModel

from paradit.models.open_sora_plan.adapter import OpenSoraPlanPipeline
from paradit.models.open_sora_plan.module import OpenSoraInpaint_v1_3, OpenSoraT2V_v1_3
from paradit.models.open_sora_plan.spec import SCHEDULER
from tiny import TEXT_DIM, all_random, tokenizer, wf_vae


def transformer(
    *, heads: int = 2, layers: int = 6, takes_frames: bool = False, **config: Any
) -> OpenSoraT2V_v1_3:
    """Return a random transformer, of whose layers all but the first two and the last two are sparse."""
    torch.manual_seed(0)
    kind = OpenSoraInpaint_v1_3 if takes_frames else OpenSoraT2V_v1_3
    config = {"attention_head_dim": 24, "caption_channels": TEXT_DIM} | config
    return all_random(kind(num_attention_heads=heads, num_layers=layers, **config))


def text_encoder() -> MT5EncoderModel:
    config = MT5Config(
        vocab_size=259, d_model=TEXT_DIM, d_kv=8, d_ff=32, num_layers=2, num_heads=2, is_encoder_decoder=False
    )
    torch.manual_seed(3)
    return MT5EncoderModel(config).eval().requires_grad_(False)


def save_folder(
    folder: Path, *, heads: int = 2, layers: int = 6, takes_frames: bool = False, **settings: object
) -> Path:
    """Save a whole model as `paradit convert` lays it out; `settings` go into its paradit.json."""
    OpenSoraPlanPipeline(
        tokenizer=tokenizer(),
        text_encoder=text_encoder(),
        transformer=transformer(heads=heads, layers=layers, takes_frames=takes_frames),
        vae=wf_vae(),
        scheduler=EulerAncestralDiscreteScheduler.from_config(SCHEDULER),
    ).save_pretrained(folder)
    if settings:
        (folder / "paradit.json").write_text(json.dumps(settings))
    return folder


def inputs(model: Any, shape: tuple[int, ...], lengths: tuple[int, ...], longest: int = 9) -> Any:
    """Return latents, timesteps, and prompts of the given lengths with meaningless padding and a mask."""
    batch, *grid = shape
    channels = 20 if isinstance(model, OpenSoraInpaint_v1_3) else 8
    embeds = torch.randn(batch, longest, TEXT_DIM, dtype=model.dtype)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    latents = torch.randn(batch, channels, *grid, dtype=model.dtype)
    return latents, torch.tensor([711.0, 20.0][:batch]), (embeds, mask)


def plain(model: Any, latents: Tensor, timestep: Tensor, prompt: tuple[Tensor, Tensor]) -> Tensor:
    """Return the transformer's prediction, computed from its weights by plain formulas."""
    weights, config = model.state_dict(), model.config
    batch, _, frames, height, width = latents.shape
    grid = frames, height // 2, width // 2

    def through(x: Tensor, name: str) -> Tensor:
        return linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def patches(x: Tensor, name: str) -> Tensor:
        by_frame = [
            conv2d(frame, weights[f"{name}.weight"], weights[f"{name}.bias"], stride=2)
            for frame in x.unbind(2)
        ]
        return torch.stack(by_frame, 2).flatten(2).transpose(1, 2)

    def normed(x: Tensor) -> Tensor:
        return layer_norm(x, x.shape[-1:], eps=1e-6)

    def attention(x: Tensor, read: Tensor, allowed: Tensor, name: str, angles: Tensor | None) -> Tensor:
        heads = config["num_attention_heads"]
        q, k, v = (
            through(of, f"{name}.to_{part}").unflatten(2, (heads, -1)).transpose(1, 2)
            for part, of in (("q", x), ("k", read), ("v", read))
        )
        if angles is not None:
            q, k = rotated(q, angles), rotated(k, angles)
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])
        weighted = scores.masked_fill(~allowed, -torch.inf).softmax(dim=3) @ v
        return through(weighted.transpose(1, 2).flatten(2), f"{name}.to_out.0")

    frequencies = torch.exp(torch.arange(128) * (-math.log(10000) / 128))
    sinusoids = timestep[:, None] * frequencies
    e = torch.cat([sinusoids.cos(), sinusoids.sin()], dim=1)
    e = through(e, "adaln_single.emb.timestep_embedder.linear_1")
    e = through(silu(e), "adaln_single.emb.timestep_embedder.linear_2")
    rows = through(silu(e), "adaln_single.linear").unflatten(1, (6, -1))
    embeds, mask = prompt
    text = through(embeds, "caption_projection.linear_1")
    text = through(gelu(text, approximate="tanh"), "caption_projection.linear_2")

    x = patches(latents[:, :8], "pos_embed.proj")
    for name, part in (("masked_hidden_states", latents[:, 8:16]), ("mask", latents[:, 16:])):
        if f"pos_embed_{name}.1.weight" in weights:
            x = x + through(patches(part, f"pos_embed_{name}.0.proj"), f"pos_embed_{name}.1")
    angles = rope_angles(grid, config["attention_head_dim"])
    for layer in range(config["num_layers"]):
        name, allowed = f"transformer_blocks.{layer}", allowed_keys(x.shape[1], layer, config["num_layers"])
        table = weights[f"{name}.scale_shift_table"] + rows
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = table.unsqueeze(2).unbind(1)
        y = normed(x) * (1 + scale) + shift
        x = x + gate * attention(y, y, allowed, f"{name}.attn1", angles)
        x = x + attention(x, text, mask[:, None, None], f"{name}.attn2", None)
        y = through(normed(x) * (1 + mlp_scale) + mlp_shift, f"{name}.ff.net.0.proj")
        x = x + mlp_gate * through(gelu(y, approximate="tanh"), f"{name}.ff.net.2")
    shift, scale = (weights["scale_shift_table"] + e[:, None]).unsqueeze(2).unbind(1)
    values = through(normed(x) * (1 + scale) + shift, "proj_out")
    video = torch.empty(batch, 8, frames, height, width)
    by_token = values.view(batch, *grid, 2, 2, 8)
    for row in range(2):
        for column in range(2):
            video[..., row::2, column::2] = by_token[..., row, column, :].permute(0, 4, 1, 2, 3)
    return video


def allowed_keys(tokens: int, layer: int, layers: int) -> Tensor:
    """Return which keys each query of a layer sees, [tokens, tokens]."""
    if layer < 2 or layer >= layers - 2:
        return torch.ones(tokens, tokens, dtype=torch.bool)
    group = torch.tensor([(i // 4) % 4 if layer % 2 else i % 4 for i in range(tokens)])
    return group[:, None] == group


def rope_angles(grid: tuple[int, int, int], head_dim: int) -> Tensor:
    """Return the angle of every token and pair of channels, [tokens, 3, head_dim / 6]."""
    pairs = head_dim // 6
    frequencies = 10000.0 ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    places = torch.cartesian_prod(*map(torch.arange, grid))
    return (places[:, :, None] * frequencies).float()


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    """Return queries or keys [B, H, S, D], rotated: each third of the channels by one axis, halves paired."""
    first, second = x.unflatten(3, (3, 2, -1)).unbind(4)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([first * cos - second * sin, second * cos + first * sin], dim=4).flatten(3)
