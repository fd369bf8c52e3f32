"""Jobs of a few small videos, where they run, and the events that they report."""

from pathlib import Path
from typing import Any

from paradit.config.methods.method import resolve
from paradit.config.placement import Placement
from paradit.config.placement_text import read_groups
from paradit.config.requests import Request
from paradit.engine.events import Began, Failed, Finished, MemoryUsed
from paradit.engine.job import Job
from paradit.models.spec import read_spec
from paradit.progress import Event, Progress

PROMPTS = ["a red circle", "a blue square", "a green ring", "a white triangle", "a cyan circle"]
PLACEMENTS = [
    (1, ""),
    (2, "denoise=0 decode=1"),
    (2, "denoise=0-1 decode=1 encode=0"),
    (3, "denoise=0-1 decode=2"),
    (3, "denoise=1-2 decode=0 encode=1"),
    (4, "denoise=1-2 decode=0,3 encode=1"),
    (4, "denoise=0-2 decode=2,3 encode=3"),
]
"""Where stages run, as (ranks, groups)."""


def placement(ranks: int, groups: str, **fields: Any) -> Placement:
    return Placement.of(ranks=ranks, **(read_groups(groups) if groups else {}), **fields)


class Kept(Progress):
    """Progress that keeps the events in `told`."""

    def __init__(self) -> None:
        super().__init__(self.hear)
        self.told: list[tuple[str, Any]] = []

    def hear(self, event: Event) -> None:
        match event:
            case Began():
                self.told.append(("request", (event.job, event.count, event.prompt)))
            case Finished():
                self.told.append(("result", event.result))
            case Failed():
                self.told.append(("failed", (event.job, event.count, event.message)))
            case MemoryUsed():
                self.told.append(("memory", (event.by_rank, event.stages)))


def jobs(model: Path, folder: Path) -> list[Job]:
    folder.mkdir(parents=True, exist_ok=True)
    spec = read_spec(model)
    return [
        Job(
            request=resolve(Request.of(prompt=prompt, seed=number), spec),
            output=str(folder / f"{number}.mp4"),
            latents=folder / f"{number}.safetensors",
            index=number,
            count=len(PROMPTS),
        )
        for number, prompt in enumerate(PROMPTS)
    ]


class Warned(Progress):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def warn(self, message: str) -> None:
        self.said.append(message)
