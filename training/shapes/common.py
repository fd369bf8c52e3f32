"""Parts that both trainings share: a resumable run with a learning rate by time, averaging and progress."""

from __future__ import annotations

import copy
import math
import time
from contextlib import AbstractContextManager
from pathlib import Path

import torch
import torch.distributed as dist


def device_and_dtype() -> tuple[torch.device, torch.dtype]:
    """Return the device to train on, a GPU if there is one, and the dtype of matrix products.

    A CPU with instructions for bf16 is four times as fast with it. One without them is forty times as slow,
    and uses fp32.
    """
    if torch.cuda.is_available():
        return torch.device("cuda"), torch.bfloat16
    quicker = _seconds_to_multiply(torch.bfloat16) < _seconds_to_multiply(torch.float32)
    return torch.device("cpu"), torch.bfloat16 if quicker else torch.float32


def _seconds_to_multiply(dtype: torch.dtype) -> float:
    """Return the seconds that the second of two products of 256 x 256 matrices takes on this CPU."""
    matrix = torch.ones(256, 256, dtype=dtype)
    matrix @ matrix
    start = time.perf_counter()
    matrix @ matrix
    return time.perf_counter() - start


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Return a context manager in which matrix products are computed in `dtype`."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


class Run:
    """Optimiser, averaged weights and clock of one training.

    Progress is counted in seconds of training, so that a run takes the time that is given to it. The learning
    rate warms up over the first 2 % of that time, and then falls to 2 % along a cosine.
    """

    def __init__(self, minutes: float, lr: float, module: torch.nn.Module, decay: float) -> None:
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1
        self.budget, self.lr, self.module, self.decay = minutes * 60, lr, module, decay
        self.optimizer = torch.optim.AdamW(module.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
        self.average = copy.deepcopy(module).eval().requires_grad_(False)
        self.step, self.seconds = 0, 0.0
        self._tick = time.monotonic()
        self._printed = self._saved = 0.0
        self._loss: float | None = None

    @property
    def finished(self) -> bool:
        return self.seconds >= self.budget

    @property
    def done(self) -> float:
        """Fraction of the training that is done, from 0 to 1."""
        return min(self.seconds / self.budget, 1.0)

    def begin(self) -> None:
        """Start the clock on all ranks at once; preparations before it do not count as training."""
        self.wait_for_all()
        self._tick = time.monotonic()

    def wait_for_all(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    def update(self, loss: torch.Tensor, note: str) -> None:
        """Take one optimiser step on `loss`; print a line of progress every 15 seconds."""
        rate = self.lr * min(1.0, self.done / 0.02 + 0.01)
        rate *= 0.02 + 0.98 * (1 + math.cos(math.pi * self.done)) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss.backward()
        now = time.monotonic()
        value, seconds = self._average_gradients(loss.item(), now - self._tick)
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        # At first the average follows the weights closely, because the first ones are random.
        decay = min(self.decay, self.step / (self.step + 20))
        with torch.no_grad():
            for mine, theirs in zip(self.average.parameters(), self.module.parameters(), strict=True):
                mine.lerp_(theirs, 1 - decay)
        self.seconds += seconds
        self._tick = now
        self._loss = value if self._loss is None else 0.98 * self._loss + 0.02 * value
        if self.rank == 0 and (self.seconds - self._printed >= 15 or self.finished):
            self._printed = self.seconds
            print(
                f"{self.seconds / 60:6.1f}/{self.budget / 60:.0f} min  step {self.step}  "
                f"loss {self._loss:.4f}  lr {rate:.1e}  {note}",
                flush=True,
            )

    def _average_gradients(self, loss: float, seconds: float) -> tuple[float, float]:
        """Average gradients, loss and seconds over the ranks, so that all ranks take the same step.

        Returns the averages of loss and seconds.
        """
        if self.world_size == 1:
            return loss, seconds
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        rest = gradients[0].new_tensor([loss, seconds])
        # One message for all, because each message would have its own latency.
        flat = torch.cat([*(g.flatten() for g in gradients), rest])
        dist.all_reduce(flat)
        flat /= self.world_size
        for gradient, part in zip(
            gradients, flat.split([g.numel() for g in gradients] + [2])[:-1], strict=True
        ):
            gradient.copy_(part.view_as(gradient))
        return flat[-2].item(), flat[-1].item()

    def checkpoint_due(self, seconds: float) -> bool:
        if self.rank != 0 or self.seconds - self._saved < seconds:
            return False
        self._saved = self.seconds
        return True


def save_training_state(folder: Path, run: Run, **counts: int) -> None:
    """Write `state.pt`, atomically; `counts` are returned later by `load_training_state`."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        "module": run.module.state_dict(),
        "average": run.average.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "step": run.step,
        "seconds": run.seconds,
        "counts": counts,
    }
    torch.save(state, folder / "state.pt.part")
    # A rename is atomic: whenever the training is stopped, `state.pt` is complete.
    (folder / "state.pt.part").replace(folder / "state.pt")


def load_training_state(folder: Path, run: Run) -> dict[str, int]:
    """Resume from `state.pt` if it exists, and return the counts saved with it; otherwise return none."""
    if not (folder / "state.pt").exists():
        return {}
    state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    run.module.load_state_dict(state["module"])
    run.average.load_state_dict(state["average"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.step, run.seconds = state["step"], state["seconds"]
    print(f"going on from step {run.step}, {run.seconds / 60:.1f} min")
    counts: dict[str, int] = state.get("counts", {})
    return counts
