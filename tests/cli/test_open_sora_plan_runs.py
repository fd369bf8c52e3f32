"""A tiny random Open-Sora-Plan: the command makes what a plain loop makes, on one rank and on several."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, MT5EncoderModel

import small_open_sora_plan
from made_videos import latents_in
from paradit.models.common.seeded import seeded
from paradit.sampling.noise import initial_noise, step_generator
from paradit.video.reader import read_video
from runs import finished
from tiny import wf_vae

SIZE: dict[str, Any] = {"width": 48, "height": 32, "num_frames": 9, "num_inference_steps": 3}
"""Two by three tokens in each of three latent frames: 18 in all, which groups of 4 do not divide."""
SEED, STEPS = 5, 3
TEMPLATE = "\n    high quality, high aesthetic, a cat\n    "
NEGATIVE = "wings"


def folder_of(tmp_path_factory: pytest.TempPathFactory, **options: Any) -> Path:
    return small_open_sora_plan.save_folder(tmp_path_factory.mktemp("models") / "osp", **options, **SIZE)


def embedded(folder: Path, text: str) -> tuple[Tensor, Tensor]:
    tokens = AutoTokenizer.from_pretrained(folder / "tokenizer")(text, return_tensors="pt")
    encoder = MT5EncoderModel.from_pretrained(folder / "text_encoder")
    return encoder(**tokens).last_hidden_state, tokens.attention_mask.bool()


@torch.no_grad()
def plain_loop(folder: Path, transformer: Any, further: Tensor) -> Tensor:
    """Return the latents that diffusers' scheduler and plain formulas make.

    further: further channels of the transformer's input.
    """
    prompts = [embedded(folder, text) for text in (TEMPLATE, NEGATIVE)]
    scheduler = EulerAncestralDiscreteScheduler.from_pretrained(folder / "scheduler")
    scheduler.set_timesteps(STEPS)
    latents = initial_noise((1, 8, 3, 4, 6), SEED, torch.device("cpu")) * scheduler.init_noise_sigma
    for step, timestep in enumerate(scheduler.timesteps):
        scaled = torch.cat([scheduler.scale_model_input(latents, timestep), further], dim=1)
        wanted, unwanted = (
            small_open_sora_plan.plain(transformer, scaled, timestep[None], one) for one in prompts
        )
        prediction = unwanted + 7.5 * (wanted - unwanted)
        noise = step_generator(SEED, step)
        latents = scheduler.step(prediction, timestep, latents, generator=noise).prev_sample
    return latents


def generated(tmp_path: Path, folder: Path, *options: str) -> tuple[Tensor, np.ndarray]:
    words = ["generate", "a cat", "--negative-prompt", NEGATIVE, "--model", str(folder), "--seed", str(SEED)]
    words += ["--latents", "l.safetensors", "-o", "v.mp4", "--overwrite"]
    finished(tmp_path, *words, *options)
    return latents_in(tmp_path), read_video(tmp_path / "v.mp4")[0]


def test_text_to_video(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    folder = folder_of(tmp_path_factory)
    latents, frames = generated(tmp_path, folder)
    expected = plain_loop(folder, small_open_sora_plan.transformer(), torch.empty(1, 0, 3, 4, 6))
    # Measured: 5e-6, of values up to 4.
    torch.testing.assert_close(latents, expected, rtol=0, atol=3e-5)
    on_two, frames_of_two = generated(tmp_path, folder, "--ranks", "2", "--attention", "ulysses")
    torch.testing.assert_close(on_two, latents, rtol=0, atol=1e-5)
    assert np.abs(frames_of_two.astype(int) - frames).max() <= 1
    assert frames.shape == (9, 32, 48, 3)


@torch.no_grad()
def test_image_to_video(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """Two ranks denoise, and one of them encodes texts; a third one encodes pictures and decodes."""
    folder = folder_of(tmp_path_factory, takes_frames=True)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3), np.uint8)
    for name, picture in zip(("first", "last"), pictures, strict=True):
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    given = ["--image", "first.png", "--last-image", "last.png"]
    latents, frames = generated(tmp_path, folder, *given)

    video = torch.full((1, 3, 9, 32, 48), -1.0)
    for place, picture in zip((0, -1), pictures, strict=True):
        video[0, :, place] = torch.from_numpy(picture).permute(2, 0, 1) / 127.5 - 1
    mean, log_variance = wf_vae().encode(video)
    noise = torch.randn(mean.shape, generator=seeded("conditions", SEED))
    encoded = 0.18215 * (mean + (0.5 * log_variance).exp() * noise)
    mask = torch.ones(1, 4, 3, 4, 6)  # 1: to be made
    mask[:, :, 0] = mask[:, 3, 2] = 0
    transformer = small_open_sora_plan.transformer(takes_frames=True)
    expected = plain_loop(folder, transformer, torch.cat([encoded, mask], dim=1))
    torch.testing.assert_close(latents, expected, rtol=0, atol=3e-5)

    apart = ["--ranks", "3", "--placement", "denoise=0-1 decode=2 encode=1", "--attention", "pipesp"]
    on_three, frames_of_three = generated(tmp_path, folder, *given, *apart)
    torch.testing.assert_close(on_three, latents, rtol=0, atol=1e-5)
    assert np.abs(frames_of_three.astype(int) - frames).max() <= 1
