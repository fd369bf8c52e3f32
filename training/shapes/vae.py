"""Training of the bundled model's VAE, from random weights.

It is an `AutoencoderKLWan` of Wan 2.2's kind (residual, 2x2 patches) with 8x8x4 compression.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import (
    Run,
    autocast,
    device_and_dtype,
    load_training_state,
    save_training_state,
)
from diffusers import AutoencoderKLWan
from torch.nn import functional as F

from paradit.shapes.scenes import MAX_FRAMES, all_scenes, draw

LATENT_CHANNELS = 16
CONFIG = {
    "base_dim": 16,
    "z_dim": LATENT_CHANNELS,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 8,
    "latents_mean": [0.0] * LATENT_CHANNELS,
    "latents_std": [1.0] * LATENT_CHANNELS,
}
LENGTHS = (9, 9, 9, 17, 9, 5, 17, 33)
"""Numbers of frames of the training clips in successive steps, repeated.

A batch of longer clips has fewer of them, so that all batches have about the same number of frames.
"""
Loss = Callable[[AutoencoderKLWan, torch.Tensor], tuple[torch.Tensor, float]]
KL_WEIGHT = 3e-4
LATENT_NOISE = 0.05
"""Standard deviation of the noise added to latents to refine the decoder, relative to the latents' own."""
CROP = 48
"""Side, in pixels, of the crops used in the first part of the training, which contain some of the object."""
WHOLE_FRAMES_FROM = 0.75
"""Fraction of the training after which whole frames are used, because the decoder's attention is over the
whole picture."""


def clips(rng: np.random.Generator, num_clips: int, num_frames: int, crop: int | None = None) -> torch.Tensor:
    """Return clips of random videos, which begin at random times: float32 `[B, 3, F, H, W]` in [-1, 1]."""
    scenes = all_scenes()
    videos = []
    for _ in range(num_clips):
        first = int(rng.integers(0, MAX_FRAMES - num_frames + 1))
        video = draw(scenes[rng.integers(len(scenes))], num_frames, rng, first_frame=first)
        videos.append(video if crop is None else cut(video, crop, rng))
    return torch.from_numpy(np.stack(videos)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def cut(video: np.ndarray, crop: int, rng: np.random.Generator) -> np.ndarray:
    """Crop a video to a square around a random pixel of the object in a random frame."""
    frame = video[rng.integers(len(video))].astype(np.int16)
    # The median is the background's colour, from which the object differs.
    ys, xs = np.nonzero(np.abs(frame - np.median(frame, axis=(0, 1))).max(axis=2) > 60)
    pick = rng.integers(len(ys))
    limit = video.shape[1] - crop
    top, left = (int(np.clip(at - rng.integers(crop), 0, limit)) for at in (ys[pick], xs[pick]))
    return video[:, top : top + crop, left : left + crop]


def object_weight(video: torch.Tensor) -> torch.Tensor:
    """Return weights for the loss: 5 on the object and its rim, which are small and matter most, else 1."""
    border = torch.cat([video[..., :2, :].flatten(3), video[..., -2:, :].flatten(3)], dim=3)
    # The border of the picture is mostly background.
    background = border.median(dim=3).values[..., None, None]
    inside = ((video - background).abs().amax(dim=1, keepdim=True) > 0.15).float()
    return 1 + 4 * F.max_pool3d(inside, (1, 3, 3), stride=1, padding=(0, 1, 1))


def loss_of(vae: AutoencoderKLWan, video: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return the loss of encoder and decoder, and the PSNR in dB."""
    posterior = vae.encode(video).latent_dist
    reconstruction, psnr = reconstruction_loss(vae, posterior.sample(), video)
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    return reconstruction + KL_WEIGHT * kl, psnr


def decoder_loss_of(vae: AutoencoderKLWan, video: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return the loss of the decoder alone, on latents that are slightly wrong, like those of a transformer.

    Also returns the PSNR in dB.
    """
    with torch.no_grad():
        latents = vae.encode(video).latent_dist.mode()
        std = torch.tensor(vae.config.latents_std, device=latents.device).view(1, -1, 1, 1, 1)
        latents = latents + LATENT_NOISE * std * torch.randn_like(latents)
    return reconstruction_loss(vae, latents, video)


def reconstruction_loss(
    vae: AutoencoderKLWan, latents: torch.Tensor, video: torch.Tensor
) -> tuple[torch.Tensor, float]:
    error = vae.decode(latents).sample.float() - video
    psnr = -10 * torch.log10(error.detach().square().mean() / 4).item()
    return (object_weight(video) * (error.abs() + error.square())).mean(), psnr


def train(folder: Path, minutes: float, num_clips: int, init: Path | None = None, lr: float = 2e-3) -> None:
    """Train for a number of minutes, counted over all starts, and write `folder/vae`.

    init: pipeline folder with a VAE to start from; None: random weights. A step uses `num_clips` clips of 9
    whole frames, or twice as many crops, or fewer and longer clips.
    """
    torch.manual_seed(0)
    vae = AutoencoderKLWan.from_pretrained(init, subfolder="vae") if init else AutoencoderKLWan(**CONFIG)
    run = Run(minutes, lr, _prepared(vae), decay=0.998)
    if _train(run, folder, num_clips, loss_of, crops_until=WHOLE_FRAMES_FROM):
        measure_latents(vae)
        save(vae, folder)


def refine_decoder(folder: Path, vae_folder: Path, minutes: float, num_clips: int, lr: float = 1e-3) -> None:
    """Train the decoder of the VAE in `vae_folder` further, and write the VAE to `folder/vae`.

    The encoder stays the same, and so do the latents: a transformer that was trained on them still fits.
    """
    torch.manual_seed(0)
    vae = AutoencoderKLWan.from_pretrained(vae_folder)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    run = Run(minutes, lr, _prepared(vae), decay=0.998)
    if _train(run, folder, num_clips, decoder_loss_of, crops_until=0):
        save(vae, folder)


def _prepared(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    for module in vae.modules():  # channels last: a third faster on CPUs
        if isinstance(module, torch.nn.Conv3d):
            module.weight.data = module.weight.data.to(memory_format=torch.channels_last_3d)
    return vae.to(device_and_dtype()[0])


def _train(run: Run, folder: Path, num_clips: int, loss_of: Loss, *, crops_until: float) -> bool:
    """Train the run's VAE, and set it to the averaged weights; return whether this rank has to write it."""
    device, dtype = device_and_dtype()
    vae = run.module
    load_training_state(folder, run)
    there = run.finished and (folder / "vae").exists()
    torch.manual_seed(1 + run.rank)
    run.begin()
    while not run.finished:
        num_frames = LENGTHS[run.step % len(LENGTHS)]
        rng = np.random.default_rng((1, run.step, run.rank))
        crop = CROP if run.done < crops_until else None
        count = num_clips * (2 if crop else 1) * 9 / num_frames
        video = clips(rng, max(1, round(count)), num_frames, crop).to(device)
        with autocast(device, dtype):
            value, psnr = loss_of(vae, video)
        run.update(value, f"psnr {psnr:.1f} dB on {tuple(video.shape)}")
        if run.checkpoint_due(seconds=180):
            save_training_state(folder, run)
    if run.rank == 0 and not there:
        save_training_state(folder, run)
    vae.load_state_dict(run.average.state_dict())
    return run.rank == 0 and not there


@torch.no_grad()
def measure_latents(vae: AutoencoderKLWan) -> None:
    """Write the mean and standard deviation of each latent channel into the VAE's configuration."""
    rng = np.random.default_rng(2)
    videos = (clips(rng, 4, MAX_FRAMES).to(vae.device) for _ in range(16))
    values = torch.cat([vae.encode(video).latent_dist.mode() for video in videos]).transpose(0, 1).flatten(1)
    vae.register_to_config(
        latents_mean=[round(v, 4) for v in values.mean(dim=1).tolist()],
        latents_std=[round(v, 4) for v in values.std(dim=1).tolist()],
    )


@torch.no_grad()
def save(vae: AutoencoderKLWan, folder: Path) -> None:
    """Write `folder/vae`, and print the PSNR of the VAE on videos of 33 frames."""
    video = clips(np.random.default_rng(3), 8, 33).to(vae.device)
    error = vae.decode(vae.encode(video).latent_dist.mode()).sample - video
    print(f"33 frames: psnr {-10 * torch.log10(error.square().mean() / 4):.2f} dB", flush=True)
    vae.save_pretrained(folder / "vae")
