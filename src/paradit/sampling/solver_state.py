"""State of a whole video's denoising after a step, saved so that it can be resumed bit for bit."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from torch import Tensor

from paradit.config.options import Option, decode
from paradit.models.protocol import Scheduler
from paradit.parallel.predictor import Predictor
from paradit.progress import Progress
from paradit.sampling.sampler import Checkpoints


@dataclass(frozen=True, kw_only=True)
class SolverState:
    """State of a video's denoising after `step` steps: its latents and its scheduler."""

    step: Annotated[int, Option(least=0)]
    latents: Tensor
    """Latents after `step` denoising steps, [B, C, F, h, w], fp32."""
    scheduler: dict[str, object]
    """Attributes of the scheduler that `scheduler_state` returned. They include a multistep solver's memory
    of its last steps."""

    def to_bytes(self) -> bytes:
        buffer = io.BytesIO()
        # A plain dict, because torch.load(weights_only=True) does not load our classes.
        torch.save(vars(self), buffer)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> SolverState:
        """Read a saved state, with its tensors on the CPU.

        Raises InputError, or any error of the library that reads the bytes, if they are not a valid state.
        """
        return decode(cls, torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))


def resumed(
    checkpoints: Checkpoints | None,
    predictor: Predictor,
    scheduler: Scheduler,
    latents: Tensor,
    progress: Progress,
) -> tuple[int, Tensor]:
    """Resume from the first process's checkpoint; return the number of steps taken and the resulting latents.

    latents: the noise to begin with if there is no checkpoint; 0 and this noise are then returned.
    checkpoints: saved progress, on the first process; None on the others. Also restores the scheduler's
    state. Called on all processes that denoise together.
    """
    device = latents.device
    content = checkpoints.last(SolverState.from_bytes) if checkpoints and predictor.is_first else b""
    # `share` needs the size on every process.
    size, *_ = predictor.gather_number(len(content))
    if not size:
        return 0, latents
    shared = predictor.share(partial(as_tensor, content, device), (size,), torch.uint8, device)
    position = SolverState.from_bytes(shared.cpu().numpy().tobytes())
    restore(scheduler, position.scheduler, device)
    progress.resume("denoise", position.step)
    return position.step, position.latents.to(device)


def kept(
    checkpoints: Checkpoints | None, predictor: Predictor, scheduler: Scheduler, latents: Tensor, step: int
) -> bool:
    """Save a checkpoint of the state after `step` steps if one is due; return whether denoising continues.

    Only the first process saves checkpoints and decides; the other processes return True.
    """
    if checkpoints is None or not predictor.is_first:
        return True
    return checkpoints.offer(
        # A function, so that the bytes are made only if a checkpoint is due.
        lambda: SolverState(step=step, latents=latents, scheduler=scheduler_state(scheduler)).to_bytes()
    )


def scheduler_state(scheduler: Scheduler) -> dict[str, object]:
    """Return a scheduler's attributes that can be saved: tensors, booleans, numbers, None, and lists."""
    return {name: value for name, value in vars(scheduler).items() if _is_plain(value)}


def restore(scheduler: Scheduler, state: dict[str, object], device: torch.device) -> None:
    """Set a scheduler's attributes to those that `scheduler_state` returned for another scheduler.

    Both must have been set to the same number of steps. device: the latents' device.
    """
    for name, value in state.items():
        now = getattr(scheduler, name, None)  # the first step adds some
        # Some schedulers keep their sigmas on the CPU, whatever the device.
        setattr(scheduler, name, _on(now.device if isinstance(now, Tensor) else device, value))


def _on(device: torch.device, value: object) -> object:
    if isinstance(value, list):
        return [_on(device, item) for item in value]
    return value.to(device) if isinstance(value, Tensor) else value


def _is_plain(value: object) -> bool:
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (Tensor, bool, int, float))


def as_tensor(content: bytes, device: torch.device) -> Tensor:
    """Return bytes as a uint8 tensor on a device."""
    # Copy the bytes: torch warns about a buffer that cannot be written to.
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).to(device)
