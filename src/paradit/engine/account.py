"""What a rank knows of a request until it is through with it, and what is told of its video then."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from paradit.engine.job import Job
from paradit.engine.keep import Written
from paradit.engine.latents import Coming
from paradit.models.spec import ModelSpec


@dataclass
class Open:
    """What a rank knows of an order that it is not through with."""

    position: int
    """Among the orders of its world, or replica."""
    seconds: dict[str, float] = field(default_factory=dict)
    coming: Coming | None = None
    """Blocks of a long video."""
    written: Written | None = None
    helped_steps: int | None = None
    is_decoded: bool = False
    is_through: bool = False
    """Whether its decode has ended, if only early."""

    def result(
        self, job: Job, spec: ModelSpec, began: float, memory: list[int] | None, device: str
    ) -> dict[str, Any]:
        """Return what is told of a video that is there. memory: peak bytes by rank, if ranks have met."""
        assert self.written is not None
        seconds = self.seconds
        if self.coming is not None:  # blocks were denoised, or waited for, while they were decoded
            seconds["denoise"] = self.coming.denoise_seconds
            seconds["decode"] = seconds.pop("decode") - self.coming.waited
        result = {
            **job.about(spec),
            "num_frames": self.written.num_frames,
            "latents_path": str(job.latents) if job.latents else None,
            "seconds": {name: round(took, 4) for name, took in seconds.items() if took > 0},
            "seconds_to_first_frame": round(self.written.first_frame - began, 4),
            "device": device,
        }
        if memory is not None:
            result.update(peak_memory_bytes=max(memory), peak_memory_bytes_by_rank=memory)
        if self.helped_steps is not None:
            result["coprocessed_steps"] = self.helped_steps
        return result
