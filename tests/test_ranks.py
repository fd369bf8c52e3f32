"""`paradit generate --ranks N`: the same video, and what is left when a rank dies or the user stops."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from paradit.engine.job import Job, RankError, Report, Run, Stop
from paradit.engine.run import make
from paradit.engine.run_folder import RunFolder
from paradit.models.spec import read_spec
from paradit.placement import Placement
from paradit.requests import Request, resolve
from tiny import save_folder

COMMAND = [sys.executable, "-c", "from paradit.cli.main import main; main()", "generate", "a red circle"]
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-wan"
    return save_folder("wan21", folder, heads=3, width=48, height=48, num_frames=9, num_inference_steps=3)


def command(model: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    whole = [*COMMAND, "--model", str(model), *options]
    return subprocess.run(
        whole, cwd=folder, env=ENV, capture_output=True, text=True, timeout=120, check=False
    )


def latents(model: Path, folder: Path, *options: str) -> torch.Tensor:
    done = command(model, folder, "--latents", "l.safetensors", "--overwrite", *options)
    assert done.returncode == 0, done.stderr
    assert ("by rank" in done.stdout) == bool(options)
    return load_file(folder / "l.safetensors")["latents"]


def test_the_same_video(model: Path, tmp_path: Path) -> None:
    alone = latents(model, tmp_path)
    for options in (
        ["--ranks", "3"],
        ["--ranks", "2", "--cfg-degree", "2"],
        ["--ranks", "2", "--attention", "pipesp", "--chunks", "2", "--interleave"],
        ["--ranks", "4", "--attention", "usp", "--mesh", "ulysses,ring"],
        ["--ranks", "2", "--kernel", "_native_math"],
    ):
        torch.testing.assert_close(latents(model, tmp_path, *options), alone, rtol=0, atol=1e-5)


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
    torch.testing.assert_close(load_file(tmp_path / "l.safetensors")["latents"], alone, rtol=0, atol=1e-5)


def test_a_rank_that_cannot_start_says_so_itself(tmp_path: Path) -> None:
    model = save_folder("wan21", tmp_path / "tiny-wan", heads=3)
    spec = read_spec(model)
    (model / "scheduler" / "scheduler_config.json").write_text("{}")
    (model / "transformer" / "config.json").write_text('{"_class_name": "WanTransformer3DModel"}')
    request = resolve(Request(prompt="a red circle"), spec)
    job = Job(request=request, output=str(tmp_path / "a.mp4"), latents=None)
    run = Run(model=str(model), jobs=(job,), placement=Placement(ranks=2))
    with pytest.raises(RankError, match=r"(?s)rank 0 \(load\): Traceback.*rank 1 \(load\): Traceback"):
        make(run, spec, RunFolder.create(run), Report(), Stop())
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-wan"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ranks", "0"], "ranks must be at least 1, got 0"),
        (
            ["--ranks", "3", "--cfg-degree", "2"],
            "3 ranks do not divide into 2 guidance branches",
        ),
        (["--ranks", "2", "--cfg-degree", "3"], "cfg_degree must be 1 or 2, got 3"),
        (["--ranks", "2", "--cfg-degree", "2", "--guidance-scale", "1"], "guidance_scale 1 has one"),
        (
            ["--ranks", "28"],
            "28 ranks are more than there is work for",
        ),
        (["--ranks", "2", "--interleave", "--guidance-scale", "1"], "guidance_scale 1 has one"),
        (["--ranks", "2", "--attention", "magic"], "attention must be one of auto, ulysses, pipesp"),
        (["--kernel", "quick"], "kernel must be one of native, "),
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
