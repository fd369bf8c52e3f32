"""Ranks that divide a model's layers read only their parts of its LoRAs, and make what one process makes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from lora_files import original, random_lora, saved
from paradit.config.methods.method import resolve
from paradit.config.placement import Placement
from paradit.config.requests import Request
from paradit.distributed.world import World
from paradit.engine.fixed_list import make_videos
from paradit.models.common.lora_weights import LoraWeights
from paradit.models.find_lora import with_loras
from paradit.models.lora import layer_of
from paradit.models.spec import read_spec
from paradit.progress import Progress
from paradit.sampling.dualparal import QueueSampler
from paradit.testing import run_world
from tiny import save_folder, transformer
from video_jobs import jobs


def on_ranks(world: World, model: Path, lora: Path, folder: Path) -> tuple[set[int], set[int]]:
    """Make a video; return the layers that this rank keeps, and those whose part of the LoRA it has read."""
    kept: set[int] = set()
    read: set[int] = set()
    divide, read_part = QueueSampler.divide, LoraWeights._read

    def divided(self: Any, *arguments: Any) -> Any:
        share = divide(self, *arguments)
        kept.update(share.layers)
        return share

    def counted(self: Any, wanted: Any) -> Any:
        read.update(layer[1] for key in filter(wanted, self._shapes) if (layer := layer_of(key)))
        return read_part(self, wanted)

    QueueSampler.divide, LoraWeights._read = divided, counted  # type: ignore[method-assign, assignment]
    spec = with_loras(read_spec(model), [f"{lora}=0.5"])
    request = resolve(Request.of(prompt="a", method="dualparal", block_frames=1, context_frames=1), spec)
    job = replace(jobs(model, folder)[0], request=request)
    many = world.size > 1
    where = Placement.of(ranks=2, pipeline_degree=2) if many else Placement()
    make_videos([job], spec, where, Progress(), overwrite=False, world=world if many else None)
    return kept, read


def test_each_rank_reads_the_parts_of_its_own_layers(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"width": 32, "height": 32, "num_frames": 9, "num_inference_steps": 2}
    model = save_folder("wan21", tmp_path / "tiny", layers=4, **settings)
    lora = saved(original(random_lora(transformer(layers=4)), alpha=2.0), tmp_path / "lora.safetensors")
    ((_, read),) = run_world(on_ranks, 1, model, lora, tmp_path / "1")
    assert read == {0, 1, 2, 3}
    seen = run_world(on_ranks, 2, model, lora, tmp_path / "2")
    assert [kept for kept, _ in seen] == [read for _, read in seen]
    assert sorted(layer for _, read in seen for layer in read) == [0, 1, 2, 3]
    alone, together = (load_file(tmp_path / name / "0.safetensors")["latents"] for name in "12")
    assert torch.equal(alone, together)
