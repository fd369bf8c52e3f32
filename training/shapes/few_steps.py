"""Train the bundled model's LoRA for four steps without guidance, on the model's own trajectories.

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 training/shapes/few_steps.py --minutes 60

The teacher is the bundled model with 16 steps and guidance. Its latents at the student's four noise levels
and at the end are kept in a file. The student is the same model with a LoRA. It makes its own four steps
from the same noise. Every step is trained to end where the teacher is at that level, so that it also corrects
the errors of the steps before it. In a third of the videos the first frame is given. The training is seeded,
and the same command resumes it from the last checkpoint, which is at most four minutes old.
"""

from __future__ import annotations

import argparse
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from common import Run, autocast, device_and_dtype, load_training_state, save_training_state
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline
from peft import LoraConfig, get_peft_model_state_dict
from text import caption
from torch import Tensor
from transformer import CONFIG, DEFAULT_LATENT_FRAMES, DEFAULTS, SIZE, TextToLatents

from paradit.models.folder import find_model
from paradit.shapes.scenes import all_scenes, draw

TEACHER_STEPS = 16
LEVELS = (1.0, 0.9375, 0.8333333, 0.625, 0.0)
"""Noise levels at which a step of the student begins or ends: four equal steps, shifted by 5."""
SHIFT = 5.0
RANK = 32
"""Rank of the LoRA; its alpha is the same."""
TARGETS = [
    *("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2", "proj_out"),
    *("time_embedder.linear_1", "time_embedder.linear_2", "time_proj"),
]
"""Names, by their ends, of the linear layers that have a LoRA."""


class Trajectories:
    """The teacher's latents at the student's noise levels, in a file, so that a restart finds them again."""

    def __init__(
        self, folder: Path, number: int, model: TextToLatents, vae: AutoencoderKLWan, run: Run
    ) -> None:
        self.model, self.vae, self.run, self.number = model, vae, run, number
        self.scenes = [scene for scene in all_scenes() if not scene.held_out]
        self.mean, self.std = (
            torch.tensor(values).view(1, -1, 1, 1, 1)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        side = SIZE // vae.config.scale_factor_spatial
        shape = (number, len(LEVELS), vae.config.z_dim, DEFAULT_LATENT_FRAMES, side, side)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "trajectories.npy"
        if run.rank == 0 and not path.exists():
            np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape).flush()
        run.wait_for_all()
        self.latents = np.lib.format.open_memmap(path, mode="r+")

    def caption(self, number: int) -> str:
        rng = np.random.default_rng((6, number))
        return caption(self.scenes[int(rng.integers(len(self.scenes)))], rng, drop=0.02)

    def is_given(self, number: int) -> bool:
        """Return whether the first latent frame of this trajectory is an image's, and free of noise."""
        return number % 3 == 0

    @torch.no_grad()
    def complete(self, batch: int) -> None:
        """Compute the trajectories that the file lacks; each rank computes its share."""
        mine = [
            number
            for number in range(self.run.rank, self.number, self.run.world_size)
            if not self.latents[number, -1].any()
        ]
        for first in range(0, len(mine), batch):
            numbers = mine[first : first + batch]
            path = self._path(numbers)
            for number, latents in zip(numbers, path, strict=True):
                self.latents[number] = latents.numpy().astype(np.float16)
            print(f"rank {self.run.rank}: {first + len(numbers)} of {len(mine)} trajectories", flush=True)
        self.run.wait_for_all()

    def _path(self, numbers: list[int]) -> Tensor:
        """Return the teacher's latents at all levels, `[B, L, C, F, h, w]`."""
        shape = self.latents.shape[2:]
        latents = torch.stack(
            [torch.randn(shape, generator=torch.Generator().manual_seed(10_000 + i)) for i in numbers]
        )
        captions, given = [self.caption(i) for i in numbers], [self.is_given(i) for i in numbers]
        first = torch.stack(
            [
                self._first_frame(number) if is_given else noise[:, :1]
                for number, is_given, noise in zip(numbers, given, latents, strict=True)
            ]
        )
        scheduler = UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT
        )
        scheduler.set_timesteps(sigmas=1 - np.arange(TEACHER_STEPS) / TEACHER_STEPS)
        path = [latents]
        for number, timestep in enumerate(scheduler.timesteps):
            noisy = with_first(latents, first, given)
            times = token_times(timestep.expand(len(numbers)), noisy, given)
            with_text = self.model(noisy, times, captions).float()
            without = self.model(noisy, times, [""] * len(numbers)).float()
            velocity = without + DEFAULTS["guidance_scale"] * (with_text - without)
            latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
            if (number + 1) % (TEACHER_STEPS // 4) == 0:
                path.append(latents)
        path = [with_first(latents, first, given) for latents in path]
        return torch.stack(path, dim=1)

    def _first_frame(self, number: int) -> Tensor:
        rng = np.random.default_rng((6, number))
        scene = self.scenes[int(rng.integers(len(self.scenes)))]
        pixels = torch.from_numpy(draw(scene, 1, np.random.default_rng((7, number)), SIZE))
        latents = self.vae.encode(pixels.permute(3, 0, 1, 2)[None].float() / 127.5 - 1).latent_dist.mode()
        return ((latents - self.mean) / self.std)[0]


def with_first(latents: Tensor, first: Tensor, given: list[bool]) -> Tensor:
    """Return the latents with the first frames put in where they are given."""
    mask = torch.tensor(given)[:, None, None, None, None]
    return torch.cat([torch.where(mask, first, latents[:, :, :1]), latents[:, :, 1:]], dim=2)


def token_times(timestep: Tensor, latents: Tensor, given: list[bool]) -> Tensor:
    """Return timesteps by token, `[B, S]`: 0 in a first frame that is given."""
    _, height, width = CONFIG["patch_size"]
    in_frame = (latents.shape[3] // height) * (latents.shape[4] // width)
    times = timestep[:, None].repeat(1, latents.shape[2])
    times[torch.tensor(given), 0] = 0
    return times.repeat_interleave(in_frame, dim=1)


def loss_of_steps(model: TextToLatents, path: Tensor, captions: list[str], given: list[bool]) -> Tensor:
    """Return the sum of the squared errors of the velocity in the student's four steps.

    Each step begins with the student's own latents.
    """
    latents, losses = path[:, 0], []
    for number, (level, following) in enumerate(pairwise(LEVELS)):
        noisy = with_first(latents, path[:, 0, :, :1], given)
        times = token_times(torch.full((len(given),), 1000 * level), noisy, given)
        velocity = model(noisy, times, captions).float()
        wanted = (path[:, number + 1] - noisy) / (following - level)
        losses.append((velocity - wanted)[:, :, 1:].square().mean())
        # The first frame counts only where it is generated.
        free = [n for n, is_given in enumerate(given) if not is_given]
        if free:
            losses[-1] = losses[-1] * 8 / 9 + (velocity - wanted)[free, :, :1].square().mean() / 9
        latents = (noisy + (following - level) * velocity).detach()
    return torch.stack(losses).sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/few_steps"), help="checkpoints and results")
    parser.add_argument("--model", default="shapes", help="pipeline folder of the teacher")
    parser.add_argument("--minutes", type=float, default=60, help="of training after the trajectories")
    parser.add_argument("--trajectories", type=int, default=800)
    parser.add_argument("--batch", type=int, default=4, help="videos in a rank's batch")
    args = parser.parse_args()
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    device, dtype = device_and_dtype()
    torch.manual_seed(0)
    model = TextToLatents()
    model.load(Path(find_model(args.model)))
    model.requires_grad_(False)
    vae = AutoencoderKLWan.from_pretrained(find_model(args.model), subfolder="vae")
    run = Run(args.minutes, 1e-3, model, decay=0.99)
    trajectories = Trajectories(args.folder, args.trajectories, model, vae, run)
    trajectories.complete(batch=8)
    model.transformer.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS))
    run = Run(args.minutes, 1e-3, model, decay=0.99)
    load_training_state(args.folder, run)
    run.begin()
    while not run.finished:
        rng = np.random.default_rng((8, run.step, run.rank))
        numbers = [int(i) for i in rng.integers(0, args.trajectories, args.batch)]
        path = torch.from_numpy(np.stack([trajectories.latents[i] for i in numbers])).float()
        captions = [trajectories.caption(i) for i in numbers]
        with autocast(device, dtype):
            loss = loss_of_steps(model, path, captions, [trajectories.is_given(i) for i in numbers])
        run.update(loss, f"{args.trajectories} trajectories")
        if run.checkpoint_due(seconds=240):
            save(run, args.folder)
    if run.rank == 0:
        save(run, args.folder)
    if dist.is_initialized():
        dist.destroy_process_group()


def save(run: Run, folder: Path) -> None:
    """Write the state to resume from, and the averaged LoRA in diffusers' form."""
    save_training_state(folder, run)
    layers = {
        name: tensor.to(torch.bfloat16)
        for name, tensor in get_peft_model_state_dict(run.average.transformer).items()
    }
    WanPipeline.save_lora_weights(folder / "lora", transformer_lora_layers=layers)


if __name__ == "__main__":
    main()
