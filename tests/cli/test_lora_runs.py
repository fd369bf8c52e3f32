"""Runs with LoRAs by the command line: divided layers, restarts, and resumed runs that need the same file."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline

import paradit
from lora_files import fused, random_lora, saved
from made_videos import latents_in
from messages import says
from runs import Command, finished, run_folder
from tiny import save_folder

SETTINGS = {"width": 32, "height": 32, "num_frames": 9, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a model of two experts, a LoRA file, and the model with this LoRA fused in by diffusers."""
    root = tmp_path_factory.mktemp("models")
    plain = save_folder("wan22_a14b", root / "plain", layers=3, **SETTINGS)
    pipe = WanPipeline.from_pretrained(plain)
    lora = saved(random_lora(pipe.transformer), root / "lora.safetensors")
    fused(pipe, [(lora, 0.5)])
    fused(pipe, [(lora, 1.0)], "transformer_2")
    pipe.save_pretrained(root / "fused")
    (root / "fused" / "paradit.json").write_text(json.dumps(SETTINGS))
    return {"plain": plain, "fused": root / "fused", "lora": lora}


def arguments(model: Path, *options: str) -> list[str]:
    blocks = ["--method", "dualparal", "--num-frames", "21", "--block-frames", "2", "--context-frames", "1"]
    files = ["-o", "v.mp4", "--latents", "l.safetensors"]
    return ["generate", "a red circle", "--model", str(model), *blocks, *files, *options]


def test_divided_layers_a_killed_rank_and_a_resumed_run(models: dict[str, Path], tmp_path: Path) -> None:
    """All end at the bits of a model with fused weights, and no run resumes with another file."""
    lora, alone, apart = models["lora"], tmp_path / "alone", tmp_path / "apart"
    for folder in (alone, apart):
        folder.mkdir()
    finished(alone, *arguments(models["fused"]))
    loras = ["--lora", f"{lora}=0.5@high", "--lora", f"{lora}@low"]
    command = Command(apart, *arguments(models["plain"], "--ranks", "2", "--checkpoint-steps", "1", *loras))
    command.until_event("step", stage="denoise", done=2)
    command.ranks()[1].kill()
    command.until_event("step", stage="denoise", done=5)
    command.kill()

    run = json.loads((run_folder(apart) / "run.json").read_text())
    assert [(one["path"], one["scale"], one["expert"]) for one in run["loras"]] == [
        (str(lora), 0.5, "high"),
        (str(lora), 1.0, "low"),
    ]
    content = lora.read_bytes()
    lora.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for again in (["resume"], ["extend", str(run_folder(apart)), "--num-frames", "8"]):
        code, errors = Command(apart, *again).end()
        assert (code, len(errors.splitlines())) == (2, 1)
        assert says(errors, "lora.safetensors' has changed since the run began .. restore it")
    lora.write_bytes(content)
    finished(apart, "resume")
    made, wanted = (latents_in(folder) for folder in (apart, alone))
    assert torch.equal(made, wanted)


def test_from_python(models: dict[str, Path], tmp_path: Path) -> None:
    """The engine and `paradit.generate` merge as the command does, and files say with what they were made."""
    loras = [f"{models['lora']}=0.5@high", f"{models['lora']}@low"]
    wanted = paradit.generate("a red circle", model=models["fused"])
    made = paradit.generate("a red circle", model=models["plain"], loras=loras)
    assert torch.equal(made.latents, wanted.latents)
    assert [(one["file"], one["scale"]) for one in made.about["loras"]] == [
        ("lora.safetensors", 0.5),
        ("lora.safetensors", 1.0),
    ]
    with paradit.Engine(models["plain"], loras=loras) as engine:
        job = engine.submit(
            paradit.Request(prompt="a red circle"), tmp_path / "v.mp4", latents=tmp_path / "l.safetensors"
        )
        assert job.result()["loras"] == loras
    assert torch.equal(latents_in(tmp_path), wanted.latents)


def test_refused_before_anything_is_loaded(models: dict[str, Path], tmp_path: Path) -> None:
    for options, wanted in {
        ("--lora", str(models["lora"])): "must name an expert .. @high' .. @low'",
        ("--lora", f"{models['lora']}@high=2"): "scale comes before the expert",
    }.items():
        code, errors = Command(tmp_path, *arguments(models["plain"], *options)).end()
        assert (code, len(errors.splitlines())) == (2, 1), errors
        assert says(errors, wanted)
    assert not list(tmp_path.iterdir())
