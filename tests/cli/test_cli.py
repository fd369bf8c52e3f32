"""The real command, as a subprocess: its output, the files it leaves behind, and its exit codes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import tiny
import warm
from made_videos import latents_in
from messages import says
from paradit import __version__
from paradit.cli.jobs import slug
from paradit.cli.text import amount, duration
from paradit.video.reader import read_video
from runs import named

COLD = [sys.executable, "-m", "paradit"]
# The command, in an interpreter that reports on stderr if torch was imported.
NO_TORCH = [
    sys.executable,
    "-c",
    "import atexit, sys\n"
    "atexit.register(lambda: 'torch' in sys.modules and print('TORCH', file=sys.stderr))\n"
    "from paradit.cli.main import main; main()",
]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_folder(
        "wan21",
        tmp_path_factory.mktemp("models") / "tiny-wan",
        width=64,
        height=32,
        num_frames=5,
        fps=8,
        num_inference_steps=2,
        guidance_scale=3.0,
        train_frames=[5, 9],
    )


def run(
    arguments: Sequence[str | Path], folder: Path, command: list[str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command in an interpreter of its own if one is given, and otherwise warm."""
    if command is None:
        return warm.run(arguments, folder, ENV)
    return subprocess.run(
        [*command, *map(str, arguments)],
        cwd=folder,
        env=ENV,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


OPTIONS = [
    "--prompts-file",
    "--prompt-at",
    "--model",
    "--image",
    "--last-image",
    "--video",
    "--strength",
    "--fit",
    "--revision",
    "--variant",
    "--lora",
    "--size",
    "--width",
    "--height",
    "--num-frames",
    "--duration",
    "--num-inference-steps",
    "--guidance-scale",
    "--guidance-scale-2",
    "--preset",
    "--scheduler",
    "--shift",
    "--timesteps",
    "--expert-step",
    "--negative-prompt",
    "--seed",
    "--num-videos",
    "--fps",
    "--dtype",
    "--vae-tile",
    "--method",
    "--block-frames",
    "--context-frames",
    "--lag",
    "--left-level",
    "--left-context",
    "--context-timesteps",
    "--ranks",
    "--placement",
    "--replicas",
    "--decode-degree",
    "--cfg-degree",
    "--pipeline-degree",
    "--attention",
    "--chunks",
    "--ring-degree",
    "--mesh",
    "--interleave",
    "--attention-backend",
    "--compile",
    "--coprocess",
    "--latents",
    "--trace",
    "--trace-layers",
    "--output",
    "--crf",
    "--overwrite",
    "--no-metadata",
    "--checkpoint-steps",
    "--hang-limit",
    "--json",
    "--dry-run",
    "--explain",
    "--verbose",
    "--help",
]


SYSTEM = "import sys; from paradit.cli.main import main; sys.platform = {!r}; main()"
NO_LINUX = "import os; del os.sched_getaffinity; from paradit.cli.main import main; main()"
"""Program that runs the command without what Python has on Linux only, and not on macOS."""


def test_other_systems_get_one_line(tmp_path: Path) -> None:
    done = run(["--version"], tmp_path, [sys.executable, "-c", SYSTEM.format("win32")])
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "win32" in done.stderr and "WSL 2" in done.stderr


def test_one_rank_and_plans_need_nothing_of_linux(model: Path, tmp_path: Path) -> None:
    for arguments in (
        ["generate", "a", "--model", model, "-o", "v.mp4"],
        ["plan", "--model", "shapes", "--gpus", "2xL40"],
    ):
        done = run([*arguments], tmp_path, [sys.executable, "-c", NO_LINUX])
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "v.mp4").is_file()


def test_help_and_version_need_no_torch(tmp_path: Path) -> None:
    shown = run(["--help"], tmp_path, NO_TORCH)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "generate" in shown.stdout
    assert run([], tmp_path).stdout == shown.stdout
    assert run(["--version"], tmp_path, NO_TORCH).stdout == f"{__version__}\n"


def test_the_options_are_these(tmp_path: Path) -> None:
    shown = run(["generate", "--help"], tmp_path, NO_TORCH)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert re.findall(r"^  (?:-o, )?(--[a-z0-9-]+)", shown.stdout, re.MULTILINE) == OPTIONS
    assert "Example: paradit generate" in shown.stdout
    assert "[default: the model's]" in shown.stdout


BAD = {
    # name: (arguments, text in the error line); MODEL is a whole model, the others are made below
    "no prompt": ([], "no prompt"),
    "empty prompt": (["  "], "prompt is empty"),
    "two prompts": (["a", "b"], "unexpected extra argument"),
    "prompt and file": (["a", "--prompts-file", "prompts.txt"], "not both"),
    "no prompts file": (["--prompts-file", "none.txt"], "'none.txt' cannot be read"),
    "prompts file without prompts": (["--prompts-file", "comments.txt"], "no prompt"),
    "field of a request": (
        ["--prompts-file", "requests.jsonl"],
        "'requests.jsonl': line 2: unknown field 'widht': did you mean 'width'",
    ),
    "picture for a model of texts": (["a", "--image", "prompts.txt"], "image .* takes video only"),
    "strength without a video": (["a", "--strength", "0.5"], "strength needs video"),
    "fit without a picture": (["a", "--fit", "contain"], "fit contain needs a picture"),
    "prompts file that is no text": (["--prompts-file", "binary.txt"], "not UTF-8"),
    "frames": (["a", "--num-frames", "18"], "num_frames must be 4n.1 .* got 18: use 17 or 21"),
    "no frames": (["a", "--num-frames", "0"], "num_frames must be at least 1, got 0"),
    "size": (["a", "--size", "100x60"], "got 100x60: the nearest is 96x64"),
    "negative size": (["a", "--size=-16x16"], "width must be at least 1, got -16"),
    "size format": (["a", "--size", "big"], "WIDTHxHEIGHT.*'big'"),
    "size and width": (
        ["a", "--size", "64x32", "--width", "64"],
        "or width .64., not both",
    ),
    "width": (["a", "--width", "100"], "got 100x32: the nearest is 96x32"),
    "no videos": (["a", "--num-videos", "0"], "num_videos must be at least 1, got 0"),
    "many videos": (
        ["--prompts-file", "prompts.txt", "--num-videos", "5001"],
        "num_videos must be at most 5000, got 5001",
    ),
    "seeds beyond": (
        ["a", "--seed", f"{2**64 - 1}", "--num-videos", "2"],
        "seed must be from 0 .*got 18446744073709551616",
    ),
    "videos without end": (["a", "--duration", "inf", "--num-videos", "2"], "give one prompt, and one video"),
    "crf": (["a", "--crf", "52"], "crf must be at most 51, got 52"),
    "crf of a gif": (
        ["a", "--crf", "20", "-o", "a.gif"],
        "crf .* .mp4, .webm, .mov, .mkv,.* 'a.gif'",
    ),
    "revision of a folder": (
        ["a", "--revision", "main"],
        "revision .* hub, .* is a folder",
    ),
    "revision that is none": (
        ["a", "--revision", "../x"],
        "revision '../x' is not a valid name of a revision",
    ),
    "variant": (["a", "--variant", "fp16"], "has no weights of variant 'fp16'"),
    "steps": (["a", "--num-inference-steps", "-1"], "num_inference_steps must be at least 1, got -1"),
    "not a number": (["a", "--num-inference-steps", "x"], "--num-inference-steps"),
    "guidance": (["a", "--guidance-scale", "nan"], "guidance_scale must be a finite .* got nan"),
    "zero guidance": (["a", "--guidance-scale", "0"], "guidance_scale .* got 0"),
    "fps": (["a", "--fps", "inf"], "fps must be a finite .* got inf"),
    "seed": (["a", "--seed", "-1"], "seed .* got -1: the nearest is 0"),
    "seed that is no number": (["a", "--seed", "1e3"], "seed must be a whole number or random, got '1e3'"),
    "prompt with a dash": (["-a cat"], "prompt .* dash .*: -- '-a cat'"),
    "output to a stream": (["a", "-o", "-"], "'-' would be a stream"),
    "outputs to a stream": (["--prompts-file", "prompts.txt", "-o", "-"], "'-' would be a stream"),
    "output to a device": (["a", "-o", "/dev/null", "--overwrite"], "'/dev/null' is a device or a pipe"),
    "dtype": (["a", "--dtype", "fp16"], "bf16, fp32, got 'fp16'"),
    "option": (["a", "--nonsense"], "No such option: --nonsense"),
    "missing model": (["a", "--model", "/none/tiny"], "'/none/tiny' does not exist"),
    "model of nobody": (["a", "--model", "~nosuchuser/tiny"], "'~nosuchuser/tiny' does not exist"),
    "misspelt model": (["a", "--model", "broken/pikcled"], "did you mean 'broken/pickled'"),
    "incomplete model": (["a", "--model", "broken/incomplete"], "vae/config.json is missing"),
    "unsupported class": (["a", "--model", "broken/flux"], "FluxPipeline.*supported are .*WanPipeline"),
    "pickled weights": (["a", "--model", "broken/pickled"], "pickled weights .*save_pretrained"),
    "hub id without a connection": (["a", "--model", "org/name"], "not downloaded earlier"),
    "missing output folder": (["a", "-o", "none/a.mp4"], "folder 'none' does not exist"),
    "output in a file": (["a", "-o", "prompts.txt/a.mp4"], "is not a folder"),
    "output that cannot be written": (["a", "-o", "/proc/a.mp4"], "'/proc' cannot be written"),
    "output too long while it grows": (
        ["a", "-o", "é" * 125 + ".mp4", "--method", "dualparal"],
        r"output, while it grows, .*: File name too long \(at most 255 bytes",
    ),
    "output suffix": (["a", "-o", "a.avi"], "'.avi'; known: .mp4, .webm, .mov, .mkv, .gif"),
    "output exists": (["a", "-o", "there.mp4"], "'there.mp4' exists.*--overwrite"),
    "output is a folder with other files": (["a", "-o", "broken"], "files that are not frames"),
    "fast gif": (["a", "-o", "a.gif", "--fps", "60"], "at most 50 in a GIF, got 60"),
    "latents exist": (["a", "--latents", "there.safetensors"], "'there.safetensors' exists.*--overwrite"),
    "trace suffix": (["a", "--trace", "t.txt"], "must end in .json: use 't.txt.json'"),
    "trace exists": (["a", "--trace", "there.json"], "'there.json' exists.*--overwrite"),
    "trace folder": (["a", "--trace", "none/t.json"], "folder 'none' does not exist"),
    "layers of no trace": (["a", "--trace-layers"], "trace_layers needs --trace FILE.json"),
    "latents suffix": (["a", "--latents", "a.pt"], "must end in .safetensors"),
    "one of many": (["--prompts-file", "prompts.txt", "-o", "there"], "'there/01-two-seed0.mp4' exists"),
    "placement": (["a", "--placement", "decode=x"], "placement must be written like 'denoise=0-5 decode=6"),
    "idle rank": (["a", "--ranks", "3", "--placement", "denoise=0 decode=1"], "rank 2 has no stage"),
    "rank beyond": (["a", "--ranks", "2", "--placement", "decode=2"], "ranks from 0 to 1, got 2"),
    "tile": (["a", "--vae-tile", "50"], "got 50: the nearest is 64"),
    "too few tiles": (
        ["a", "--ranks", "2", "--placement", "denoise=0-1 decode=0-1", "--decode-degree", "2"],
        r"1 tile of 256 pixels .* 64x32: .*vae_tile of 32.* decode_degree of 1",
    ),
    "no placement file": (["a", "--placement", "none.json"], "'none.json' cannot be read"),
    "command": (None, "No such command"),
}


@pytest.fixture(scope="module")
def place(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the files that wrong commands refer to."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "prompts.txt").write_text("# two of them\none\n\ntwo\n")
    (folder / "comments.txt").write_text("# one\n\n")
    (folder / "requests.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b", "widht": 64}\n')
    (folder / "binary.txt").write_bytes(b"\xff\xfe\x00")
    for name in ("there.mp4", "there.safetensors", "there.json"):
        (folder / name).touch()
    (folder / "there").mkdir()
    (folder / "there" / "01-two-seed0.mp4").touch()
    for name in ("incomplete", "flux", "pickled"):
        shutil.copytree(model, folder / "broken" / name)
    (folder / "broken" / "incomplete" / "vae" / "config.json").unlink()
    (folder / "broken" / "flux" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    weights = folder / "broken" / "pickled" / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    return folder


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line(model: Path, place: Path, case: str) -> None:
    before = names(place)
    arguments, says = BAD[case]
    command = ["gneerate"] if arguments is None else ["generate", "--model", str(model), *arguments]
    ended = run(command, place, NO_TORCH)
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    assert re.fullmatch(r"paradit: error: [^\n]+\n", ended.stderr), ended.stderr  # no line says TORCH
    assert re.search(says, ended.stderr)
    assert names(place) == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["none.safetensors"], "'none.safetensors' cannot be read"),
        (["MODEL/transformer"], "is a folder: name a file that --latents wrote"),
        (["x" * 5000], "latents 'x*.*: File name too long"),
        (["prompts.txt"], "'prompts.txt' cannot be read"),
        (["MODEL/transformer/diffusion_pytorch_model.safetensors"], "has no tensor 'latents'"),
        (["other.safetensors"], "made by the model 'another', not"),
        (["broken.safetensors"], "metadata of .* cannot be read: .*'many'"),
        (["short.safetensors"], r"\[1, 16, frames.*\[1, 4, 3, 2, 2\]"),
        (["good.safetensors"], "'good.mp4' exists.*--overwrite"),
        (["good.safetensors", "-o", "x.avi"], "'.avi'; known: "),
    ],
)
def test_latents_that_cannot_be_decoded(model: Path, place: Path, arguments: list[str], says: str) -> None:
    whole = np.zeros((1, 16, 3, 6, 6), np.float32)
    save_file({"latents": whole}, place / "other.safetensors", {"model": "another"})
    save_file({"latents": np.zeros((1, 4, 3, 2, 2), np.float32)}, place / "short.safetensors")
    save_file({"latents": whole}, place / "good.safetensors")
    save_file({"latents": whole}, place / "broken.safetensors", {"num_inference_steps": "many"})
    (place / "good.mp4").touch()
    before = names(place)
    given = [argument.replace("MODEL", str(model)) for argument in arguments]
    ended = run(["decode", "--model", str(model), *given], place, NO_TORCH)
    assert (ended.returncode, ended.stdout) == (2, ""), ended.stderr
    assert re.fullmatch(r"paradit: error: [^\n]+\n", ended.stderr), ended.stderr
    assert re.search(says, ended.stderr)
    assert names(place) == before


@pytest.mark.parametrize("file", ["none.json", "there.mp4", "there.json", "/dev/zero"])
def test_files_without_a_trace(place: Path, file: str) -> None:
    ended = run(["trace", "summary", file], place, NO_TORCH)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert re.fullmatch(rf"paradit: error: [^\n]*'{file}'[^\n]*\n", ended.stderr), ended.stderr


def test_decode_makes_the_same_video(model: Path, tmp_path: Path) -> None:
    common = ["--model", str(model)]
    made = run(
        ["generate", "a red circle", *common, "--latents", "l.safetensors", "-o", "a.mp4", "--fps", "12"],
        tmp_path,
    )
    assert made.returncode == 0, made.stderr
    again = run(["decode", "l.safetensors", *common, "--json"], tmp_path)
    assert again.returncode == 0, again.stderr
    result = json.loads(again.stdout.splitlines()[-1])
    assert (result["path"], result["prompt"], result["fps"]) == ("l.mp4", "a red circle", 12)
    assert (tmp_path / "l.mp4").read_bytes() == (tmp_path / "a.mp4").read_bytes()


def test_explain(model: Path, tmp_path: Path) -> None:
    arguments = ["generate", "a", "--model", str(model), "--num-frames", "13", "--ranks", "2", "--dry-run"]
    done = run([*arguments, "--explain"], tmp_path, NO_TORCH)
    assert done.returncode == 0, done.stderr
    for said in ("paradit: method full: ", "paradit: attention auto: ", "paradit: memory, in fp32: at most"):
        assert said in done.stderr
    assert "attention auto" not in run(arguments, tmp_path, NO_TORCH).stderr


def test_dry_run(model: Path, tmp_path: Path) -> None:
    arguments = ["generate", "A red circle!", "--model", str(model), "--num-frames", "13", "--dry-run"]
    shown = run(arguments, tmp_path, NO_TORCH)
    assert shown.returncode == 0
    (warning,) = shown.stderr.splitlines()
    assert says(warning, "paradit: warning: num_frames 13 .. 5 to 9 .. 'tiny-wan'")
    for words in (
        "13 frames, 64x32, 8 fps",
        "16 x 4 x 4 x 8",
        "32 tokens",
        "a-red-circle-seed0.mp4",
        "weights",
    ):
        assert words in shown.stdout
    shown = run([*arguments, "--json"], tmp_path, NO_TORCH)
    warning, plan = map(json.loads, shown.stdout.splitlines())
    assert (warning["event"], plan["event"], shown.stderr) == ("warning", "plan", "")
    assert (plan["tokens"], plan["latent_shape"]) == (32, [16, 4, 4, 8])
    assert plan["flops"] > plan["step_flops"] > 0
    assert plan["memory_bytes"]["weights"] > 0
    assert not names(tmp_path)


def test_a_hub_model_that_was_downloaded_earlier(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "hub" / "models--org--name"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0" * 40)
    shutil.copytree(model, cache / "snapshots" / ("0" * 40))
    monkeypatch.setitem(ENV, "HF_HOME", str(tmp_path))
    shown = run(["generate", "a", "--model", "org/name", "--dry-run"], tmp_path, NO_TORCH)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "tokens" in shown.stdout


def test_a_video_and_its_latents(model: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    ended = run(
        ["generate", "A red circle!", "--model", model, "--latents", "l.safetensors", "--seed", "7"],
        tmp_path,
        COLD,
    )
    assert ended.returncode == 0, ended.stderr
    assert names(tmp_path) == ["a-red-circle-seed7.mp4", "l.safetensors"]
    frames, fps = read_video(tmp_path / "a-red-circle-seed7.mp4")
    assert (frames.shape, fps) == ((5, 32, 64, 3), 8)
    with safe_open(tmp_path / "l.safetensors", "pt") as file:
        assert file.get_slice("latents").get_shape() == [1, 16, 2, 4, 8]
        assert file.metadata()["prompt"] == "A red circle!"
        assert file.metadata()["seed"] == "7"
    lines = ended.stdout.splitlines()
    assert lines[0] == "a-red-circle-seed7.mp4"
    assert "5 frames, 64x32, 8 fps" in ended.stdout
    assert "denoise: 2 steps" in ended.stderr
    for stage in ("load", "encode", "denoise", "decode"):
        assert re.search(rf"\b{stage} [\d.]+ s", lines[3])
    assert "peak memory" in lines[4]


def test_many_prompts_as_json(model: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("# two\nred thing\n\nblue thing\n")
    ended = run(
        ["generate", "--prompts-file", "prompts.txt", "--model", model, "--json", "-o", "videos",
         "--latents", "l.safetensors"],
        tmp_path,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    events = [json.loads(line) for line in ended.stdout.splitlines()]
    results = named(events, "result")
    assert [result["path"] for result in results] == [
        "videos/00-red-thing-seed0.mp4",
        "videos/01-blue-thing-seed0.mp4",
    ]
    assert [result["latents_path"] for result in results] == ["l-00.safetensors", "l-01.safetensors"]
    assert [event["stage"] for event in named(events, "stage_start")].count("load") == 1
    assert {"stage": "denoise", "done": 2, "total": 2} in [
        {key: event[key] for key in ("stage", "done", "total")} for event in named(events, "step")
    ]
    assert all(result["peak_memory_bytes"] > 0 for result in results)
    assert len(names(tmp_path / "videos")) == 2


def planned(arguments: list[str], model: Path, folder: Path) -> list[dict[str, Any]]:
    """Return the `plan` events of a dry run."""
    ended = run(["generate", *arguments, "--model", model, "--dry-run", "--json"], folder, NO_TORCH)
    assert ended.returncode == 0, ended.stderr
    return named([json.loads(line) for line in ended.stdout.splitlines()], "plan")


def test_several_seeds_of_a_prompt(model: Path, tmp_path: Path) -> None:
    several = ["red thing", "--seed", "7", "--num-videos", "3"]
    assert [(plan["path"], plan["seed"]) for plan in planned(several, model, tmp_path)] == [
        (f"red-thing-seed{seed}.mp4", seed) for seed in (7, 8, 9)
    ]
    for output, names_ in {"v.mov": "v-{:02}.mov", "videos": "videos/red-thing-seed{seed}.mp4"}.items():
        paths = [plan["path"] for plan in planned([*several, "-o", output], model, tmp_path)]
        assert paths == [names_.format(index, seed=7 + index) for index in range(3)]
    (tmp_path / "prompts.txt").write_text("red thing\nblue thing\n")
    each = planned(["--prompts-file", "prompts.txt", "--num-videos", "2"], model, tmp_path)
    assert [(plan["path"], plan["prompt"], plan["seed"]) for plan in each] == [
        ("00-red-thing-seed0.mp4", "red thing", 0),
        ("01-red-thing-seed1.mp4", "red thing", 1),
        ("02-blue-thing-seed0.mp4", "blue thing", 0),
        ("03-blue-thing-seed1.mp4", "blue thing", 1),
    ]


def test_each_of_several_seeds_gives_its_own_video(model: Path, tmp_path: Path) -> None:
    latents = ["--latents", "l.safetensors", "--model", str(model)]
    for arguments in (
        ["--num-videos", "2", "--width", "32", "-o", "v.mkv"],
        ["--seed", "1", "--size", "32x32"],
    ):
        ended = run(["generate", "a", *arguments, *latents], tmp_path)
        assert ended.returncode == 0, ended.stderr
    one, two, alone = (latents_in(tmp_path, f"l{end}") for end in ("-00", "-01", ""))
    assert np.array_equal(two, alone)
    assert not np.array_equal(one, alone)
    assert {"v-00.mkv", "v-01.mkv"} < {*names(tmp_path)}


def start(arguments: Sequence[str | Path], folder: Path) -> warm.Warm | subprocess.Popen[str]:
    return warm.start(["generate", "a", "--json", *arguments], folder, ENV)


def wait_for_step(process: warm.Warm | subprocess.Popen[str], stage: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "step" and event["stage"] == stage:
            return
    raise AssertionError(process.communicate(timeout=30)[1])


def test_ctrl_c_while_denoising(model: Path, tmp_path: Path) -> None:
    arguments = ["--num-inference-steps", "1000", "--size", "128x128", "--latents", "l.safetensors"]
    process = start(["--model", model, *arguments], tmp_path)
    wait_for_step(process, "denoise")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)  # the same one, passed on by a program around us
    events, errors = process.communicate(timeout=30)
    saying = "paradit: ending after this step; once more ends at once"
    assert (process.returncode, errors.split("\n")) == (130, ["", saying, "paradit: interrupted", ""])
    assert [path.name for path in tmp_path.iterdir()] == ["paradit-runs"]
    (run,) = (tmp_path / "paradit-runs").iterdir()
    assert json.loads(events.splitlines()[-1]) == {"event": "resumable", "run_dir": str(run)}


def test_termination_while_writing(model: Path, tmp_path: Path) -> None:
    arguments = ["--num-frames", "201", "--method", "full", "--num-inference-steps", "1", "-o", "frames"]
    process = start(["--model", model, *arguments], tmp_path)
    wait_for_step(process, "decode")
    deadline = time.monotonic() + 60
    while not (partial := [name for name in names(tmp_path) if name.endswith(".part")]):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert partial, "the video was being written"
    assert (process.returncode, errors) == (143, "paradit: terminated\n")
    assert [path.name for path in tmp_path.iterdir()] == ["paradit-runs"], "the latents are safe"


def test_names_and_figures() -> None:
    assert slug("A red circle, moving right!") == "a-red-circle-moving-right"
    assert slug("...") == "video"
    assert slug("x" * 99) == "x" * 48
    assert slug("ein Würfel 日本") == "ein-würfel-日本"
    assert len(slug("word " * 30)) <= 48
    assert [duration(s) for s in (0.123, 9.87, 99.96, 3599, 7260)] == [
        "0.12 s", "9.9 s", "1 min 40 s", "59 min 59 s", "2 h 01 min",
    ]  # fmt: skip
    assert [amount(v, "B") for v in (0, 999, 1234, 5.6e9, 2e21)] == [
        "0 B",
        "999 B",
        "1.23 kB",
        "5.6 GB",
        "2e+03 EB",
    ]
