"""`paradit generate --ranks N`: equal videos, and the state after a rank dies or the user stops."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import warm
from made_videos import latents_in
from paradit.config.errors import RankError
from paradit.config.methods.method import resolve
from paradit.config.placement import Placement
from paradit.config.requests import Request
from paradit.engine.job import Job, Run
from paradit.engine.run import make
from paradit.engine.run_folder import RunFolder
from paradit.models.spec import read_spec
from paradit.progress import Progress
from paradit.stopping import Stop
from runs import named
from tiny import save_folder

ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-wan"
    return save_folder("wan21", folder, heads=3, width=48, height=48, num_frames=9, num_inference_steps=3)


def command(model: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return warm.run(["generate", "a red circle", "--model", str(model), *options], folder, ENV)


def latents(model: Path, folder: Path, *options: str) -> torch.Tensor:
    done = command(model, folder, "--latents", "l.safetensors", "--overwrite", *options)
    assert done.returncode == 0, done.stderr
    assert ("by rank" in done.stdout) == bool(options)
    return latents_in(folder)


def test_the_same_video(model: Path, tmp_path: Path) -> None:
    alone = latents(model, tmp_path)
    for options in (
        ["--ranks", "3"],
        ["--ranks", "2", "--cfg-degree", "2"],
        ["--ranks", "2", "--attention", "pipesp", "--chunks", "2", "--interleave"],
        ["--ranks", "4", "--attention", "usp", "--mesh", "ulysses,ring"],
        ["--ranks", "2", "--attention-backend", "_native_math"],
    ):
        torch.testing.assert_close(latents(model, tmp_path, *options), alone, rtol=0, atol=1e-5)


def in_many_prompts(model: Path, folder: Path, *options: str) -> list[dict[str, Any]]:
    """Run three prompts, and return the events."""
    (folder / "prompts.txt").write_text("a red circle\na blue square\na green ring\n")
    arguments = ["--prompts-file", "prompts.txt", "--model", str(model), "--json", "--overwrite"]
    done = warm.run(["generate", *arguments, "--latents", "l.safetensors", *options], folder, ENV)
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def many_latents(folder: Path) -> list[torch.Tensor]:
    return [latents_in(folder, f"l-0{number}") for number in range(3)]


def test_replicas_share_the_prompts(model: Path, tmp_path: Path) -> None:
    in_many_prompts(model, tmp_path)
    alone = many_latents(tmp_path)
    events = in_many_prompts(model, tmp_path, "--replicas", "2")
    assert len(named(events, "result")) == 3
    assert sorted(event["index"] for event in named(events, "request")) == [0, 1, 2]
    assert {event["stage"] for event in named(events, "stage_end")} == {
        f"{stage} in replica {number}"
        for stage in ("load", "encode", "denoise", "decode")
        for number in (0, 1)
    }
    (memory,) = named(events, "memory")
    assert len(memory["peak_memory_bytes_by_rank"]) == 2
    for latents, expected in zip(many_latents(tmp_path), alone, strict=True):
        assert torch.equal(latents, expected)


def test_the_placement_is_chosen_by_a_warm_up(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENV, "XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = ["--placement", "auto", "--ranks", "2"]
    events = in_many_prompts(model, tmp_path, *options, "--dry-run")
    (told,) = named(events, "placement")
    assert "after a warm-up" in told["reason"]
    assert not (tmp_path / "cache").exists()

    events = in_many_prompts(model, tmp_path, *options)
    (chosen,) = named(events, "placement")
    assert set(chosen["seconds"]) == {
        "together", "together, each decodes", "apart, 1 of 2 ranks decodes", "2 replicas"
    }  # fmt: skip
    assert min(chosen["seconds"].values()) > 0
    assert chosen["reason"].startswith(min(chosen["seconds"], key=chosen["seconds"].__getitem__))
    assert named(events, "stage_start")[0]["stage"] == "warm-up"
    assert len(named(events, "result")) == 3
    latents = many_latents(tmp_path)

    # Measured times are remembered, and used by dry runs too.
    for more in ((), ("--dry-run",)):
        events = in_many_prompts(model, tmp_path, *options, *more)
        assert named(events, "placement") == [chosen]
        assert "warm-up" not in {event.get("stage") for event in events}
    assert named(events, "plan")[0]["replicas"] == chosen["replicas"]
    in_many_prompts(model, tmp_path)
    for mine, expected in zip(latents, many_latents(tmp_path), strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-5)


def test_one_rank_has_nothing_to_choose(model: Path, tmp_path: Path) -> None:
    done = command(model, tmp_path, "--placement", "auto", "--ranks", "1", "--json")
    assert done.returncode == 0, done.stderr
    assert '"placement"' not in done.stdout
    assert '"result"' in done.stdout


@pytest.mark.parametrize(
    "options", [["--placement", "auto"], ["--replicas", "2"], ["--placement", "decode=1"]]
)
def test_what_torchrun_does_not_do(
    model: Path, tmp_path: Path, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for name, value in left.items():
        monkeypatch.setitem(ENV, name, value)
    done = command(model, tmp_path, *options)
    assert done.returncode == 2
    assert re.fullmatch(r"paradit: error: .*under torchrun: use --ranks [^\n]*\n", done.stderr)


def test_torchrun_gives_the_same_video(model: Path, tmp_path: Path) -> None:
    alone = latents(model, tmp_path)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    arguments = ["--model", str(model), "--latents", "l.safetensors", "--overwrite", "--json"]
    done = subprocess.run(
        [*torchrun, "-m", "paradit", "generate", "a red circle", *arguments],
        cwd=tmp_path, env=ENV, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (result,) = [json.loads(line) for line in done.stdout.splitlines() if '"result"' in line]
    assert len(result["peak_memory_bytes_by_rank"]) == 3
    torch.testing.assert_close(latents_in(tmp_path), alone, rtol=0, atol=1e-5)


def test_a_rank_that_cannot_start_says_so_itself(tmp_path: Path) -> None:
    model = save_folder("wan21", tmp_path / "tiny-wan", heads=3)
    spec = read_spec(model)
    (model / "scheduler" / "scheduler_config.json").write_text("{}")
    (model / "transformer" / "config.json").write_text('{"_class_name": "WanTransformer3DModel"}')
    request = resolve(Request(prompt="a red circle"), spec)
    job = Job(request=request, output=str(tmp_path / "a.mp4"), latents=None)
    run = Run(model=str(model), jobs=(job,), placement=Placement(ranks=2))
    with pytest.raises(RankError, match=r"(?s)rank 0 \(load\): Traceback.*rank 1 \(load\): Traceback"):
        make(run, spec, RunFolder.create(run), Progress(), Stop())
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-wan"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ranks", "0"], "ranks must be at least 1, got 0"),
        (
            ["--ranks", "3", "--cfg-degree", "2"],
            "3 ranks cannot be divided into 2 guidance branches",
        ),
        (["--ranks", "2", "--cfg-degree", "3"], "cfg_degree must be 1 or 2, got 3"),
        (["--ranks", "2", "--cfg-degree", "2", "--guidance-scale", "1"], "guidance_scale 1 needs only one"),
        (
            ["--ranks", "28"],
            "28 ranks are too many for a video of",
        ),
        (["--ranks", "2", "--interleave", "--guidance-scale", "1"], "guidance_scale 1 needs only one"),
        (["--ranks", "3", "--replicas", "2"], "3 ranks cannot be divided into 2 replicas"),
        (["--replicas", "2"], "replicas must be at most 1, because each makes videos of its own, got 2"),
        (["--replicas", "2", "--placement", "decode=1"], "give replicas or the ranks of stages, not both"),
        (["--replicas", "2", "--placement", "auto"], "--placement auto chooses the replicas"),
        (["--ranks", "2", "--attention", "magic"], "attention must be one of auto, ulysses, pipesp"),
        (["--attention-backend", "quick"], "attention_backend must be one of native, "),
    ],
)
def test_what_cannot_be_is_refused(model: Path, tmp_path: Path, options: list[str], said: str) -> None:
    done = command(model, tmp_path, *options)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_dry_run_shows_the_shares(model: Path, tmp_path: Path) -> None:
    done = command(model, tmp_path, "--ranks", "4", "--cfg-degree", "2", "--dry-run", "--json")
    shares = json.loads(done.stdout.splitlines()[-1])["shares"]
    assert [share["branch"] for share in shares] == [0, 0, 1, 1]
    assert [share["tokens"] for share in shares] == [12, 15, 12, 15]
    assert [share["rows"] for share in shares] == [40, 41, 40, 41]


def test_dry_run_shows_the_memory_by_rank(model: Path, tmp_path: Path) -> None:
    groups = ["--placement", "denoise=0-1 decode=2", "--dry-run"]
    plan = json.loads(command(model, tmp_path, *groups, "--json").stdout.splitlines()[-1])
    denoise, _, decode = plan["memory_bytes_by_rank"]
    assert denoise["decode"] == decode["activations"] == 0
    assert denoise["peak"] > denoise["weights"] > 0
    shown = command(model, tmp_path, *groups).stdout
    assert re.search(
        r"^by rank: estimated memory: 0: [\d.]+ MB; 1: [\d.]+ MB; 2: [\d.]+ MB$", shown, re.MULTILINE
    )
