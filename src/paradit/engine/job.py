"""What a run is asked to do. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from paradit.config.limits import MAX_FRAMES, MAX_SECONDS
from paradit.config.methods.base import method_of
from paradit.config.options import Option, check
from paradit.config.placement import Placement
from paradit.config.requests import ResolvedRequest
from paradit.models.spec import ModelSpec
from paradit.video.writer import growing_name


@dataclass(frozen=True, kw_only=True)
class Job:
    """One video to make, and where to put it."""

    request: ResolvedRequest
    output: str
    latents: Path | None
    crf: int | None = None
    """Constant rate factor of the video's file; None: one at which no loss is seen."""
    make_folder: Path | None = None
    """A folder to make for the output, where it is not there yet."""
    index: int = 0
    """Which of the run's requests it is, from 0."""
    count: int = 1
    """How many requests the run has."""

    @property
    def growing(self) -> Path | None:
        """Path to the video while it grows; None if it gets its name whole."""
        return growing_name(self.output) if method_of(self.request).streams else None

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
            "method": request.method,
            "vae_tile": request.vae_tile,
        }


@dataclass(frozen=True, kw_only=True)
class Run:
    """All that a run is asked for."""

    model: str
    """As the user named it: bundled, a folder or a hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub model that was asked for; None: the newest."""
    variant: str | None = None
    """Variant of the weights that was asked for."""
    model_folder: str = ""
    """Path to the model's files when the run began."""
    model_hash: str = ""
    """Hash of their content (`models.identity`)."""
    jobs: tuple[Job, ...]
    placement: Placement
    overwrite: bool = False
    checkpoint_steps: Annotated[int | None, Option(least=1, most=MAX_FRAMES)] = None
    """Denoising steps between checkpoints; None: about `engine.keeper.CHECKPOINT_SECONDS` of work."""
    hang_limit: Annotated[float, Option(least=1, most=MAX_SECONDS)] = 600.0
    """Seconds without progress on any rank after which the run is taken to hang."""
    metadata: bool = True
    """Whether videos say what they were made from (`provenance`)."""

    def __post_init__(self) -> None:
        check(self)
