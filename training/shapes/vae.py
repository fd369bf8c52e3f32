"""Train the bundled model's VAE from nothing: `python training/shapes/vae.py --minutes 30`
(on a CPU: `torchrun --nproc-per-node CORES training/shapes/vae.py ...`).

An `AutoencoderKLWan` of Wan 2.2's form (residual, 2x2 patches) with 8x8x4 compression. The learning
rate falls over `--minutes` of training time; stop at any moment and run the command again to go on.
"""

from __future__ import annotations

import argparse
import time
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

from paradit.shapes.world import MAX_FRAMES, all_scenes, draw

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
"""Frames of a training clip, step by step; a batch has about the same number of frames in all."""
CROP = 48
"""Side (pixels) of the crops of the first part of the training, cut where the object passes."""
WHOLE_FRAMES_FROM = 0.75
"""Part of the training after which whole frames are used: the decoder's attention sees the whole picture."""


def clips(rng: np.random.Generator, num_clips: int, num_frames: int, crop: int | None = None) -> torch.Tensor:
    """Random clips from anywhere in the motions: float32 `[B, 3, F, H, W]` in [-1, 1]."""
    scenes = all_scenes()
    videos = []
    for _ in range(num_clips):
        first = int(rng.integers(0, MAX_FRAMES - num_frames + 1))
        video = draw(scenes[rng.integers(len(scenes))], num_frames, rng, first_frame=first)
        videos.append(video if crop is None else cut(video, crop, rng))
    return torch.from_numpy(np.stack(videos)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def cut(video: np.ndarray, crop: int, rng: np.random.Generator) -> np.ndarray:
    """A square about a random pixel of the object in a random frame."""
    frame = video[rng.integers(len(video))].astype(np.int16)
    ys, xs = np.nonzero(np.abs(frame - np.median(frame, axis=(0, 1))).max(axis=2) > 60)
    pick = rng.integers(len(ys))
    limit = video.shape[1] - crop
    top, left = (int(np.clip(at - rng.integers(crop), 0, limit)) for at in (ys[pick], xs[pick]))
    return video[:, top : top + crop, left : left + crop]


def object_weight(video: torch.Tensor) -> torch.Tensor:
    """5 on the object and its rim, 1 on the background: the object is small and matters most."""
    border = torch.cat([video[..., :2, :].flatten(3), video[..., -2:, :].flatten(3)], dim=3)
    background = border.median(dim=3).values[..., None, None]
    inside = ((video - background).abs().amax(dim=1, keepdim=True) > 0.15).float()
    return 1 + 4 * F.max_pool3d(inside, (1, 3, 3), stride=1, padding=(0, 1, 1))


def loss_of(vae: AutoencoderKLWan, video: torch.Tensor, kl_weight: float) -> tuple[torch.Tensor, float]:
    posterior = vae.encode(video).latent_dist
    decoded = vae.decode(posterior.sample()).sample.float()
    weight = object_weight(video)
    error = decoded - video
    reconstruction = (weight * (error.abs() + error.square())).mean()
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    psnr = -10 * torch.log10(error.detach().square().mean() / 4).item()
    return reconstruction + kl_weight * kl, psnr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30, help="training time in all, over every start")
    parser.add_argument("--folder", type=Path, default=Path("runs/vae"), help="checkpoints and result")
    parser.add_argument("--clips", type=int, default=8, help="9-frame clips in a rank's batch")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--kl", type=float, default=3e-4)
    args = parser.parse_args()

    device, dtype = device_and_dtype()
    torch.manual_seed(0)
    vae = AutoencoderKLWan(**CONFIG).to(device)
    for module in vae.modules():  # channels last: a third faster on CPUs
        if isinstance(module, torch.nn.Conv3d):
            module.weight.data = module.weight.data.to(memory_format=torch.channels_last_3d)
    run = Run(args.minutes, args.lr, vae, decay=0.998)
    load_training_state(args.folder, run)
    torch.manual_seed(1 + run.rank)
    while not run.finished:
        num_frames = LENGTHS[run.step % len(LENGTHS)]
        rng = np.random.default_rng((1, run.step, run.rank))
        crop = CROP if run.done < WHOLE_FRAMES_FROM else None
        num_clips = args.clips * (2 if crop else 1) * 9 / num_frames
        video = clips(rng, max(1, round(num_clips)), num_frames, crop).to(device)
        with autocast(device, dtype):
            loss, psnr = loss_of(vae, video, args.kl)
        run.update(loss, f"psnr {psnr:.1f} dB on {tuple(video.shape)}")
        if run.checkpoint_due(seconds=180):
            save_training_state(args.folder, run)
    if run.rank == 0:
        save_training_state(args.folder, run)
        finish(run.average, args.folder, device)


@torch.no_grad()
def finish(vae: AutoencoderKLWan, folder: Path, device: torch.device) -> None:
    """Measure the latents' mean and deviation by channel, write them into the config, save."""
    rng = np.random.default_rng(2)
    latents = [vae.encode(clips(rng, 4, MAX_FRAMES).to(device)).latent_dist.mode() for _ in range(16)]
    values = torch.cat(latents).transpose(0, 1).flatten(1)
    vae.register_to_config(
        latents_mean=[round(v, 4) for v in values.mean(dim=1).tolist()],
        latents_std=[round(v, 4) for v in values.std(dim=1).tolist()],
    )
    started = time.monotonic()
    video = clips(np.random.default_rng(3), 8, 33).to(device)
    error = vae.decode(vae.encode(video).latent_dist.mode()).sample - video
    print(f"33 frames: psnr {-10 * torch.log10(error.square().mean() / 4):.2f} dB, "
          f"{time.monotonic() - started:.1f} s for 8 videos")  # fmt: skip
    vae.save_pretrained(folder / "vae")


if __name__ == "__main__":
    main()
