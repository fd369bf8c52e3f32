"""Absurd numbers, files and texts, which are refused at once, in one line, wherever they come from."""

from __future__ import annotations

import json
import math
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from messages import says
from paradit.cli.main import app
from paradit.config.errors import InputError
from paradit.config.limits import MAX_PROMPT, MAX_PROMPTS, MAX_RANKS
from paradit.config.methods.blocks import in_blocks
from paradit.config.methods.method import resolve
from paradit.config.placement import Placement
from paradit.config.placement_text import read_groups, read_placement
from paradit.config.requests import ENDLESS, Request, frames_for, parse_size
from paradit.engine.job import Run
from paradit.engine.run_folder import RunFolder
from paradit.models.folder import bundled_folder
from paradit.models.spec import read_spec
from paradit.planner.hardware import find_cluster
from planner_cases import MACHINE

BIG, HUGE = 10**30, 10**5000
"""Absurdly large numbers; HUGE has more digits than Python converts to text."""
SPEC = read_spec(bundled_folder())


def refusal(ask: Callable[..., object], *given: Any, **named: Any) -> str:
    """Return the one-line error of a call."""
    with pytest.raises((InputError, typer.TyperException)) as caught:
        ask(*given, **named)
    error = caught.value
    said = error.format_message() if isinstance(error, typer.TyperException) else str(error)
    assert "\n" not in said
    assert len(said) < 400
    return said


COUNTS = ("ranks", "replicas", "decode_degree", "cfg_degree", "pipeline_degree", "ring_degree", "chunks")
NO_COUNTS = (BIG, HUGE, -BIG, -HUGE, 10**6, 0, -1, 1.5, 1e308, math.nan, math.inf, "2", True, [2])


@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_a_placement(name: str) -> None:
    for value in NO_COUNTS:
        assert refusal(Placement.of, **({"ranks": 4} | {name: value})).startswith(f"{name} ")
        if value not in (HUGE, -HUGE):
            content = json.dumps({"ranks": 4} | {name: value})
            assert refusal(read_placement, content).startswith(f"{name} ")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"ranks": ' + "9" * 6000 + "}", "the placement cannot be read as JSON"),
        ("[" * 100_000, "the placement cannot be read as JSON"),
        ('{"ranks": null}', "ranks must be a whole number, got None"),
        (json.dumps({"denoise": [BIG]}), f"denoise must have ranks from 0 to 127, got {BIG}"),
        (json.dumps({"denoise": list(range(10**5))}), "denoise must have at most 128 ranks, got 100000"),
        (json.dumps({"compile": 10**9}), "compile must be true or false, got 1000000000"),
        (json.dumps({"attention_backend": {}}), "attention_backend must be a text, got {} (dict)"),
        (json.dumps({"x" * 10**5: 1}), "...; known fields: ranks, "),
        ("[]", "the placement must hold a JSON object, got []"),
        (json.dumps({"rank": 4}), "'rank' .. did you mean 'ranks'?"),
    ],
)
def test_files_of_a_placement(content: str, said: str) -> None:
    assert says(refusal(read_placement, content), said)


@pytest.mark.parametrize(
    "text", ["denoise=0-99999999", "decode=99999999", "denoise=0-2 decode=" + "9" * 6000, "x" * 10**5]
)
def test_groups_of_ranks(text: str) -> None:
    refusal(read_groups, text)


def test_ranks_of_a_stage() -> None:
    for ranks in (
        5,
        "ab",
        (1.5,),
        (True,),
        (BIG,),
        (HUGE,),
        (-HUGE,),
        range(10**9),
        tuple(range(10**6)),
    ):
        assert refusal(Placement.of, ranks=4, denoise=ranks).startswith("denoise ")


NUMBERS = (
    "num_frames",
    "num_inference_steps",
    "guidance_scale",
    "seed",
    "fps",
    "block_frames",
    "context_frames",
)
NO_NUMBERS = (BIG, HUGE, -HUGE, 1e308, math.nan, math.inf, True, "x")


@pytest.mark.parametrize("field", [*NUMBERS, "width", "height", "vae_tile"])
def test_numbers_of_a_request(field: str) -> None:
    for value in NO_NUMBERS:
        asked = {"prompt": "a", "num_frames": 97, "method": "dualparal"} | {field: value}
        said = refusal(resolve, Request.of(**asked), SPEC)
        assert said.startswith(("size ", f"{field} "))


def test_texts_and_times() -> None:
    for name in ("prompt", "negative_prompt"):
        said = refusal(resolve, Request.of(**({"prompt": "a"} | {name: "a" * 10**8})), SPEC)
        assert said == f"{name} must be at most {MAX_PROMPT} characters long, got 100000000"
    for duration in (
        BIG,
        HUGE,
        1e308,
        math.nan,
        "9" * 400 + "s",
        "999999999999999s",
        "9999999min",
        "999999999999999h",
        "1e9s",
        "0s",
    ):
        assert refusal(frames_for, duration, None, 16, SPEC).startswith("duration ")
    for fps in (math.nan, math.inf, -1, 0, 1e308, "x"):
        assert refusal(frames_for, "5s", None, fps, SPEC).startswith("fps ")
    assert parse_size("9" * 6000 + "x96")[0] > 10**9
    for at in (BIG, HUGE, 1e15, math.inf):
        asked = Request(prompt="a", num_frames=ENDLESS, prompts_at=((at, "b"),))
        assert "prompts_at" in refusal(resolve, asked, SPEC)
    # Possible durations are found at once too: latent frames hold four frames each, except the first.
    late = Request(prompt="a", num_frames=ENDLESS, prompts_at=((1.75, "b"), (9_000_000.0, "c")))
    assert in_blocks(resolve(late, SPEC)).prompt_blocks(SPEC) == [2, 5_142_858]


def test_how_a_run_is_kept(tmp_path: Path) -> None:
    kept: dict[str, Any] = {"model": "shapes", "jobs": (), "placement": Placement()}
    for name, values in {
        "checkpoint_steps": (BIG, HUGE, 0, 1.5, math.nan, "x"),
        "hang_limit": (BIG, HUGE, 1e308, 0.5, math.nan, math.inf, "x"),
    }.items():
        for value in values:
            assert refusal(Run, **kept, **{name: value}).startswith(f"{name} ")
    (tmp_path / "run.json").write_text(
        json.dumps({"model": "shapes", "jobs": [], "placement": {"ranks": BIG}})
    )
    assert f"ranks must be at most {MAX_RANKS}, got {BIG}" in refusal(RunFolder(tmp_path).read)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("num_layers", 10**9, "config.json: num_layers .. 1000, got 1000000000"),
        ("num_layers", BIG, "config.json: num_layers must be at most 1000"),
        ("num_layers", 0, "config.json: num_layers must be at least 1, got 0"),
        ("num_attention_heads", 1e308, "config.json: num_attention_heads .. got 1e+308"),
        ("attention_head_dim", "x", "config.json: attention_head_dim .. got 'x'"),
        ("patch_size", [1, 0, 2], "config.json: patch_size must be at least 1, got 0"),
    ],
)
def test_folders_of_a_model(name: str, value: Any, said: str, tmp_path: Path) -> None:
    folder = shutil.copytree(bundled_folder(), tmp_path / "model")
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {name: value}))
    assert says(refusal(read_spec, folder), said)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("ranks = 2", "ranks = 1000000000", "ranks must be at most 128"),
        ("ranks = 2", "ranks = 64\nmachines = 64", "ranks must be at most 2"),
        ("ranks = 2", "ranks = 2\nmachines = 1000000000000", "machines must be at most 128"),
        ("ranks = 2", "ranks = " + "9" * 6000, "is not valid TOML: Exceeds"),
        ("memory = 8e9", "memory = nan", "memory .. got nan"),
        ("memory = 8e9", 'memory = "8 GB"', "memory must be a number, got '8 GB'"),
        ("bandwidth = 1e9", "bandwidth = 0", "bandwidth .. got 0"),
        ("bandwidth = 1e9", "bandwidth = 1e308", "bandwidth must be from 0 to 1e+30"),
        ("bf16 = 1e12", "bf16 = inf", "dense .. got inf"),
        ("latency = 5e-5", "latency = -1", "latency .. got -1"),
        (
            "efficiency = { flash = 0.4 }",
            "efficiency = 0.4",
            "efficiency .. got 0.4 (float)",
        ),
    ],
)
def test_files_of_a_machine(before: str, after: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "machine.toml"
    path.write_text(MACHINE.replace(before, after, 1))
    assert says(refusal(find_cluster, str(path)), said)


NINES = "9" * 400
OPTIONS = {
    "--ranks 129": "ranks must be at most 128, got 129",
    f"--ranks {BIG}": f"ranks must be at most 128, got {BIG}",
    "--ranks nan": "'--ranks'",
    "--replicas 100000": "replicas must be at most 128, got 100000",
    "--replicas 1e308": "'--replicas'",
    f"--ranks 2 --decode-degree {BIG}": f"decode_degree must be at most 128, got {BIG}",
    f"--ranks 2 --cfg-degree {BIG}": f"cfg_degree must be at most 128, got {BIG}",
    f"--ranks 2 --chunks {BIG}": f"chunks must be at most 128, got {BIG}",
    f"--ranks 2 --attention usp --ring-degree {BIG}": f"ring_degree must be at most 128, got {BIG}",
    f"--ranks 2 --duration 9s --pipeline-degree {BIG}": f"pipeline_degree must be at most 128, got {BIG}",
    "--placement denoise=0-99999999": "denoise must have ranks from 0 to 127, got 99999999",
    "--placement placement.json": f"ranks must be at most 128, got {BIG}",
    f"--size {BIG}x96": "size must be at most 4096 pixels a side",
    f"--size 96x-{BIG}": "height must be at least 1, got -",
    f"--num-frames {BIG}": f"num_frames must be at most 1000000, got {BIG}",
    "--num-frames 1000001": "num_frames must be at most 1000000, got 1000001",
    "--duration 999999999999999h": "duration must be written like 60s or 1.5min",
    "--duration 999999999999s": "duration must be from 0 to 10000000, got 1e+12",
    f"--duration {NINES}s": "duration .. got inf",
    "--duration 9000000s": "num_frames must be at most 1000000, got 144000000",
    "--duration 5s --fps nan": "fps .. got nan",
    "--duration 5s --fps inf": "fps .. got inf",
    "--fps 1e308": "fps .. 0.1 to 1000, got 1e+308 .. 1000",
    f"--num-inference-steps {BIG}": f"num_inference_steps must be at most 1000, got {BIG}",
    "--guidance-scale nan": "guidance_scale .. got nan",
    "--guidance-scale 1e308": "guidance_scale .. 0 to 1000, got 1e+308 .. 1000",
    f"--vae-tile {BIG}": f"vae_tile must be at most 65536, got {BIG}",
    f"--seed {BIG}": f"seed must be from 0 to 2**64 - 1, got {BIG}",
    f"--method dualparal --block-frames {BIG}": f"block_frames must be at most 1000000, got {BIG}",
    f"--method dualparal --context-frames {BIG}": f"context_frames must be at most 1000000, got {BIG}",
    "--duration inf --prompt-at '999999999999999s b'": "got 1e+15: the nearest is 10000000",
    f"--checkpoint-steps {BIG}": f"checkpoint_steps must be at most 1000000, got {BIG}",
    "--hang-limit nan": "hang_limit .. got nan",
    "--hang-limit 1e308": "hang_limit must be from 1 to 10000000, got 1e+308",
}
PROMPTS = {
    "lines.txt": "'lines.txt' .. 10001 prompts .. at most 10000",
    "long.txt": "'long.txt' .. more than 10000000 bytes",
    "prompt.txt": "prompt .. 100000 characters .. got 100001",
}
PLANS = {
    "--num-prompts 1001": "num_prompts must be at most 1000, got 1001",
    f"--num-prompts {BIG}": f"num_prompts must be at most 1000, got {BIG}",
    "--gpus 999999x999999xH100": "gpus must be 1 to 128 in all",
    "--gpus machine.toml": "ranks must be at most 128, got 1000000000",
    f"--num-frames {BIG}": f"num_frames must be at most 100000, got {BIG}",
    "--duration 999999s": "num_frames must be at most 100000, got 23999976",
    "--duration inf": "duration must be finite for a plan, got inf",
    f"--size 96x{BIG}": "size must be at most 16384 pixels a side, got 96x1",
    f"--num-inference-steps {BIG}": f"num_inference_steps must be at most 1000, got {BIG}",
    "--guidance-scale nan": "guidance_scale .. got nan",
    f"--duration 60s --block-frames {BIG}": f"block_frames must be at most 1000000, got {BIG}",
    f"--duration 60s --context-frames {BIG}": f"context_frames must be at most 1000000, got {BIG}",
}
OTHERS = {
    "calibrate -o new.toml --ranks 129": "ranks must be at most 128, got 129",
    f"calibrate -o new.toml --ranks {BIG}": f"ranks must be at most 128, got {BIG}",
    "decode video.safetensors --fps nan": "fps .. got nan",
    f"decode video.safetensors --vae-tile {BIG}": f"vae_tile must be at most 65536, got {BIG}",
    f"extend run --duration {NINES}s": "duration .. got inf",
    "extend run --duration 999999s": "num_frames must be at most 1000000, got 16000081",
    f"extend run --num-frames {BIG}": "num_frames must be at most 1000000, got 1",
    f"extend run --ranks {BIG} --duration 5s": f"ranks must be at most 128, got {BIG}",
}
COMMANDS = {
    **{f"generate a --dry-run {options}": said for options, said in OPTIONS.items()},
    **{f"generate --dry-run --prompts-file {file}": said for file, said in PROMPTS.items()},
    **{f"plan --model HunyuanVideo --gpus 2xL40 {options}": said for options, said in PLANS.items()},
    **OTHERS,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the files that the commands refer to."""
    import numpy as np
    from safetensors.numpy import save_file

    from paradit.engine.job import Job

    folder = tmp_path_factory.mktemp("place")
    (folder / "placement.json").write_text(json.dumps({"ranks": BIG}))
    (folder / "machine.toml").write_text(MACHINE.replace("ranks = 2", "ranks = 1000000000"))
    (folder / "lines.txt").write_text("a red circle\n" * (MAX_PROMPTS + 1))
    (folder / "long.txt").write_text("a" * 20_000_000)
    (folder / "prompt.txt").write_text("a" * (MAX_PROMPT + 1))
    shape = (1, SPEC.vae.z_dim, 3, 12, 12)
    save_file({"latents": np.zeros(shape, np.float32)}, folder / "video.safetensors")
    request = resolve(Request(prompt="a", num_frames=97, method="dualparal"), SPEC)
    job = Job(request=request, output=str(folder / "a.mp4"), latents=None)
    made = RunFolder.create(Run(model="shapes", jobs=(job,), placement=Placement()))
    (made.path / "00000.done").write_text("done")
    made.open_state(0).touch()
    made.path.rename(folder / "run")
    return folder


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[:70])
def test_options(command: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    said = refusal(app, shlex.split(command), prog_name="paradit", standalone_mode=False)
    assert says(said, COMMANDS[command])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("generate", "a", "--ranks", str(BIG)), f"ranks must be at most 128, got {BIG}"),
        (("plan", "--model", "HunyuanVideo", "--gpus", "9999x9999xH100"), "gpus must be 1 to 128 in all"),
        (("generate", "--prompts-file", "/dev/zero"), "it has more than 10000000 bytes"),
    ],
)
def test_the_real_command(arguments: tuple[str, ...], said: str, place: Path) -> None:
    command = [sys.executable, "-m", "paradit", *arguments]
    ended = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("paradit: error: ")
    assert ended.stderr.count("\n") == 1
    assert says(ended.stderr, said)
