"""One video to make, and how a run tells of it. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paradit.models.spec import ModelSpec
from paradit.progress import Progress
from paradit.requests import Request


@dataclass(frozen=True, kw_only=True)
class Job:
    """One video to make, and where to put it."""

    request: Request
    """A resolved one."""
    output: str
    latents: Path | None
    make_folder: Path | None = None
    """A folder to make for the output, where it is not there yet."""

    def about(self, spec: ModelSpec) -> dict[str, Any]:
        """What is made, as plain values."""
        request = self.request
        return {
            "path": self.output,
            "model": spec.name,
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            "width": request.width,
            "height": request.height,
            "num_frames": request.num_frames,
            "num_inference_steps": request.num_inference_steps,
            "guidance_scale": request.guidance_scale,
            "seed": request.seed,
            "fps": request.fps,
            "dtype": request.dtype,
            "vae_tile": request.vae_tile,
        }


class Report(Progress):
    """A run's progress, and its results as they come."""

    def request(self, index: int, count: int, prompt: str) -> None:
        """Request `index` (from 0) of `count` begins."""

    def result(self, result: dict[str, Any]) -> None:
        """A video is there: `Job.about`, seconds by stage, and peak memory by rank where ranks have met."""

    def failed(self, index: int, count: int, message: str) -> None:
        """Request `index` of `count` has failed, and the others go on."""

    def memory(self, by_rank: list[int], stages: list[tuple[str, ...]]) -> None:
        """Peak memory (bytes) and stages of every rank, at the end of a run whose stages are apart."""


class RankError(RuntimeError):
    """Ranks failed; the message has each one's number and its traceback or signal."""
