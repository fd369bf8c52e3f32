"""Jobs and runs: which videos to make, with which model, on which ranks, and into which files. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from paradit.config.limits import MAX_FRAMES, MAX_SECONDS
from paradit.config.methods.method import method_of
from paradit.config.options import Option, check
from paradit.config.placement import Placement
from paradit.config.requests import ResolvedRequest
from paradit.models.lora import Lora
from paradit.models.spec import ModelSpec
from paradit.video.writer import growing_name


@dataclass(frozen=True, kw_only=True)
class Job:
    """Job of a run or an engine: a video to make, and the files to write."""

    request: ResolvedRequest
    output: str
    latents: Path | None
    crf: int | None = None
    """Constant rate factor (quality) of the video file's encoding; None: no visible loss."""
    make_folder: Path | None = None
    """Folder to create for the output if it does not exist yet; None: none is created."""
    index: int = 0
    """Index of the request in its run, from 0."""
    count: int = 1
    """Number of requests in the same run."""

    @property
    def growing(self) -> Path | None:
        """Path of the video's file while it grows; None if the file appears only when it is complete."""
        return growing_name(self.output) if method_of(self.request).streams else None

    def about(self, spec: ModelSpec) -> dict[str, Any]:
        """Return a description of the video as plain values, for results and metadata."""
        request = self.request
        return {
            "path": self.output,
            "model": spec.name,
            **({"loras": [str(lora) for lora in spec.loras]} if spec.loras else {}),
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            "width": request.width,
            "height": request.height,
            "num_frames": request.num_frames,
            "num_inference_steps": request.num_inference_steps,
            "guidance_scale": request.guidance_scale,
            **request.changed_steps,
            "seed": request.seed,
            "fps": request.fps,
            "dtype": request.dtype,
            "method": request.method,
            "vae_tile": request.vae_tile,
        }


@dataclass(frozen=True, kw_only=True)
class Run:
    """Description of a run: its jobs, model and placement, and how they are carried out."""

    model: str
    """Model as the user named it: `bundled`, a folder or a hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub model, if the user asked for one; None: the newest."""
    variant: str | None = None
    """Variant of the weights, such as `fp16`, if the user asked for one."""
    loras: tuple[Lora, ...] = ()
    """LoRAs that are merged into the model; their files are not copied into the run's folder."""
    model_folder: str = ""
    """Path to the folder that held the model's files when the run began."""
    model_hash: str = ""
    """Hash of the model's files (`models.identity`), by which a resumed run checks that the model is
    unchanged."""
    jobs: tuple[Job, ...]
    placement: Placement
    overwrite: Annotated[bool, Option(help="Whether files that exist are replaced.")] = False
    checkpoint_steps: Annotated[int | None, Option(least=1, most=MAX_FRAMES)] = None
    """Denoising steps between checkpoints; None: about `engine.checkpoints.CHECKPOINT_SECONDS` of work."""
    hang_limit: Annotated[float, Option(least=1, most=MAX_SECONDS)] = 600.0
    """Seconds without progress on any rank after which the run is considered hung."""
    metadata: Annotated[bool, Option(help="Whether files say what they were made from.")] = True
    """Whether each video's metadata says what the video was made from (`provenance`)."""

    def __post_init__(self) -> None:
        check(self)
