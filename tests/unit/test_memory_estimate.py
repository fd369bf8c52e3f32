"""Planner's estimate of a run's memory, compared with what torch's allocator hands out."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo, AutoencoderKLWan
from diffusers.video_processor import VideoProcessor
from PIL import Image
from torch import Tensor

import small_open_sora_plan
from allocated import allocated_peak
from denoised_memory import estimated_of_peak, save_model
from paradit.config.methods.method import method_of, resolve
from paradit.config.placement import Placement
from paradit.config.requests import Request, ResolvedRequest
from paradit.models.hunyuan_video.decoder import HunyuanVideoDecoder
from paradit.models.hunyuan_video.spec import vae_spec
from paradit.models.open_sora_plan.decoder import WfVaeDecoder
from paradit.models.open_sora_plan.encoder import encoded
from paradit.models.open_sora_plan.vae_spec import vae_spec as wf_vae_spec
from paradit.models.open_sora_plan.wf_vae import WFVAEModel
from paradit.models.spec import read_spec
from paradit.models.wan.encoder import WanEncoder
from paradit.models.wan.random_weights import random_decoder
from paradit.models.wan.vae_spec import vae_spec as wan_vae_spec
from paradit.parallel.predictor import LocalPredictor
from paradit.pipeline import load
from paradit.progress import Progress
from paradit.sampling.sampler import Work
from paradit.stages.denoise import denoise
from tiny import save_folder, save_hunyuan_folder

BYTES = {"fp32": 4, "bf16": 2}
PROMPT = "a red circle " * 200
"""Prompt of the greatest possible length."""


@pytest.mark.parametrize(
    ("variant", "dtype"),
    [
        *product(["wan21", "wan22_ti2v", "hunyuan"], BYTES),
        *[("i2v", "fp32"), ("open_sora_plan", "fp32")],
    ],
)
def test_denoising(variant: str, dtype: str, tmp_path: Path) -> None:
    """The feed-forward is as wide, relative to the tokens, as in published models.

    Where a token covers more pixels, tokens are wider, as in Wan 2.2 5B.
    """
    if variant == "hunyuan":
        save_hunyuan_folder(tmp_path, heads=8)
    elif variant == "open_sora_plan":
        small_open_sora_plan.save_folder(tmp_path, heads=8, layers=5, takes_frames=True)
    else:
        heads = 16 if variant == "wan22_ti2v" else 8
        save_folder(variant, tmp_path, heads=heads, ffn_dim=160 * heads)
    spec = read_spec(tmp_path)
    model = load(spec, dtype)
    picture = tmp_path / "picture.png" if spec.needs_image else None
    if picture:
        Image.new("RGB", (256, 256)).save(picture)
    asked = Request(prompt=PROMPT, num_inference_steps=3, width=256, height=256, num_frames=33, dtype=dtype)
    request = resolve(replace(asked, image=picture), spec)
    branches = request.num_branches(spec)
    prompts = (model.encode_prompt(PROMPT),) * branches

    def denoised() -> Tensor:
        conditions = tuple(map(torch.randn, model.condition_shapes(request)))
        work = Work(model=model, request=request, prompts=prompts, conditions=conditions,
                    progress=Progress(), predictor=LocalPredictor())  # fmt: skip
        return next(denoise(work))

    peak = allocated_peak(denoised)
    parts = spec.rank_memory_bytes(33, 256, 256, BYTES[dtype], ["denoise"], cached=branches)
    estimated = parts["latents"] + parts["text_cache"] + parts["activations"]
    # Parts that are small beside the tokens of a published model matter here: bf16 predictions count as fp32.
    assert 0.98 < estimated / peak < 1.04, f"{estimated / peak:.3f}"


@pytest.mark.parametrize(
    "asked",
    [
        {"method": "fifo"},
        {"method": "windowed"},
        {"method": "dualparal", "lag": 2},
        {"method": "dualparal", "lag": 1, "left_context": "cache"},
        {"method": "dualparal", "lag": 1, "left_level": "one-cleaner", "context_timesteps": "true"},
    ],
    ids=lambda asked: " ".join(map(str, asked.values())),
)
def test_denoising_in_frame_blocks(asked: dict[str, object], tmp_path: Path) -> None:
    """Beside what is estimated there are the tables of schedulers, and on a CPU the pool of noise."""
    ratio = estimated_of_peak(None, save_model(tmp_path), asked, Placement())
    assert 0.93 < ratio < 1.02, f"{ratio:.3f}"


def wan_decoding(channels: int, frames: int, side: int) -> tuple[int, int]:
    """Return the peak bytes of a decode, and the estimate."""
    decode, spec = random_decoder(channels, torch.device("cpu"))
    latents = torch.randn(1, *spec.latent_shape(frames, side, side))
    return allocated_peak(lambda: decode(latents)), spec.decode_bytes(side, side)


def hunyuan_decoding(channels: int, frames: int, side: int) -> tuple[int, int]:
    vae = AutoencoderKLHunyuanVideo(block_out_channels=[channels * times for times in (1, 2, 4, 4)]).eval()
    spec = vae_spec(dict(vae.config))
    latents = torch.randn(1, *spec.latent_shape(frames, side, side))

    def decode() -> None:
        decoder = HunyuanVideoDecoder(vae, VideoProcessor(vae_scale_factor=8), latents)
        (tile,) = spec.grid(side, side, None).tiles
        for _ in decoder.frames(decoder.pieces(tile)):
            pass

    return allocated_peak(decode), spec.decode_bytes(side, side)


@pytest.mark.parametrize(
    ("decoding", "size"),
    [
        (wan_decoding, (32, 9, 128)),
        (wan_decoding, (96, 9, 64)),
        (hunyuan_decoding, (32, 17, 64)),
        (hunyuan_decoding, (32, 33, 64)),
        (hunyuan_decoding, (64, 17, 64)),
    ],
)
def test_decoding(decoding: Callable[..., tuple[int, int]], size: tuple[int, int, int]) -> None:
    """The estimate includes the convolutions' own memory on a GPU, which a CPU's peak does not have.

    benchmarks/planner_gpu.py measures that part.
    """
    peak, estimated = decoding(*size)
    assert 1.03 < estimated / peak < 1.08, f"{estimated / peak:.3f}"


def test_decoding_of_wf_vae() -> None:
    # So high that the convolutions are those of larger pictures: small ones take memory for copies.
    channels, size = 32, (512, 8)
    vae = WFVAEModel(base_channels=channels, decoder_energy_flow_hidden_size=channels).eval()
    spec = wf_vae_spec(dict(vae.config))
    latents = torch.randn(1, *spec.latent_shape(9, *size))

    def decode() -> None:
        decoder = WfVaeDecoder(vae, VideoProcessor(vae_scale_factor=8), latents, park=False)
        (tile,) = spec.grid(*size, None).tiles
        for _ in decoder.frames(decoder.pieces(tile)):
            pass

    ratio = spec.decode_bytes(*size) / allocated_peak(decode)
    assert 1.0 < ratio < 1.08, f"{ratio:.3f}"


RESIDUAL = {
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_spatial": 16,
}
"""Fields in which the VAE of Wan 2.2 5B differs from others, as far as its encoder depends on them."""


@pytest.mark.parametrize("fields", [{}, RESIDUAL])
def test_encoding(fields: dict[str, Any]) -> None:
    """Pictures are so large that the convolutions of the first two levels make no copies for a product.

    The estimate includes their own memory on a GPU, as that of a decode does.
    """
    vae = AutoencoderKLWan(base_dim=96, **fields).eval()
    spec = wan_vae_spec(dict(vae.config))
    side = 72 * spec.pixel_patch
    first, later = (torch.zeros(1, 3, frames, side, side) for frames in (1, 4))
    encoder = WanEncoder(vae, None)
    peak = allocated_peak(lambda: encoder.encode(lambda: [first, later, later], side, side))
    estimated = spec.encode_bytes(side, side, 4)
    assert 1.03 < estimated / peak < 1.08, f"{estimated / peak:.3f}"


def test_encoding_by_wf_vae() -> None:
    # So large that the convolutions are those of larger pictures: small ones take memory for copies.
    size = (512, 64)
    vae = WFVAEModel(base_channels=32, encoder_energy_flow_hidden_size=16).eval()
    spec = wf_vae_spec(dict(vae.config))
    pieces = [torch.zeros(1, 3, frames, *size) for frames in (1, 4)]
    grid = spec.encode_grid(*size, None)
    peak = allocated_peak(lambda: encoded(vae, lambda: pieces, grid, torch.Generator()))
    ratio = spec.encode_bytes(*size, 4) / peak
    assert 1.0 < ratio < 1.08, f"{ratio:.3f}"
    # A tile to encode is as large as one to decode.
    assert spec.encode_bytes(512, 768, 4, 128) == spec.encode_bytes(128, 128, 4)


def test_encoding_in_tiles(tmp_path: Path) -> None:
    """A tile to encode holds as many of the encoder's inputs as a tile to decode has pixels."""
    spec = read_spec(save_folder("wan22_ti2v", tmp_path, width=256, height=256)).vae
    patch = spec.pixel_patch
    assert patch == 2
    assert spec.encode_bytes(512, 768, 4, 128) == spec.encode_bytes(256, 256, 4)
    assert spec.encode_bytes(512, 768, 4, 1024) == spec.encode_bytes(512, 768, 4)
    assert spec.encode_bytes(512, 768, 1) < spec.encode_bytes(512, 768, 4) / 2


def test_encoding_is_part_of_a_rank_s_memory(tmp_path: Path) -> None:
    """Only ranks that encode pictures need memory for it, and only for requests that have some."""
    spec = read_spec(save_folder("wan22_ti2v", tmp_path, width=128, height=128, num_frames=9))
    text = resolve(Request(prompt="a"), spec)
    apart = Placement(ranks=2, denoise=(0,), decode=(1,))

    def parts(request: ResolvedRequest) -> list[int]:
        by_rank = method_of(request).memory_by_rank(apart, request, spec, 4)
        return [rank.get("conditions", 0) for rank in by_rank]

    assert parts(text) == [0, 0]
    assert parts(replace(text, image="a.png")) == [0, spec.vae.encode_bytes(128, 128, 1)]
    assert parts(replace(text, last_image="a.png")) == [0, spec.vae.encode_bytes(128, 128, 4)]
