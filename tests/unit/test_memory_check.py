"""Memory checks: what cannot fit is refused before anything is loaded, and advised options are accepted."""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import save_file

import paradit.cli.decode
import paradit.cli.extend
import paradit.cli.generate as command
import paradit.cli.resume
import paradit.pipeline  # if first imported while GPUs are pretended, it would keep to them
from paradit import memory_check
from paradit.cli.main import app, told
from paradit.config.errors import InputError
from paradit.config.placement import Placement
from paradit.config.placement_text import read_groups, write_groups
from paradit.engine.run_folder import RunFolder
from paradit.models.spec import read_spec
from paradit.scheduling.fitting import SURELY
from runs import COMMAND
from tiny import save_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-wan"
    return save_folder(
        "wan21", folder, heads=8, layers=4, width=64, height=64, num_frames=9, train_frames=[5, 9]
    )


class Accepted(Exception):
    """Raised in place of the download of weights, once all checks have passed."""


Generate = Callable[..., None]


@pytest.fixture
def generate(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generate:
    """Return a function that runs `paradit generate` until it would download weights."""

    def accept(*_: object) -> None:
        raise Accepted

    def run(*options: str) -> None:
        prompt = [] if "--prompts-file" in options else ["a"]
        with pytest.raises(Accepted):
            app(["generate", *prompt, "--model", str(model), *options], standalone_mode=False)

    monkeypatch.setattr(command, "download_weights", accept)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return run


def on_gpus(monkeypatch: pytest.MonkeyPatch, memory: float, count: int) -> None:
    """Pretend that there are `count` GPUs with `memory` bytes each, as far as memory checks go."""
    monkeypatch.setattr(memory_check, "where_and_how", lambda dtype: (torch.device("cuda"), dtype or "fp32"))
    monkeypatch.setattr(memory_check, "total_memory_bytes", lambda _: round(memory))
    monkeypatch.setattr(memory_check, "num_gpus", lambda: count)


BIG = ("--size", "512x512", "--num-frames", "5")
SMALL = ("--size", "64x64")
MANY = (
    "--size",
    "128x128",
    "--method",
    "full",
    "--dtype",
    "bf16",
    "--num-inference-steps",
    "4",
    "--vae-tile",
    "32",
)
LONG = ("--size", "128x128", "--method", "dualparal", "--duration", "6s")
TWO = ("--ranks", "2")
CASES = [
    # Options; the GPU's memory as a fraction of what they need; number of GPUs; advised options.
    (BIG, 0.8, 1, r"--vae-tile \d+"),
    (
        (*BIG, *TWO, "--vae-tile", "32"),
        0.75,
        2,
        "--placement 'denoise=0-1 decode=0-1 encode=0' --decode-degree 2",
    ),
    ((*SMALL, *TWO, "--replicas", "2", "--prompts-file", "prompts"), 0.9, 2, "--replicas 1|--dtype bf16"),
    ((*SMALL, *TWO, "--placement", "auto"), 0.6, 2, "--dtype bf16"),
    ((*MANY, "--num-frames", "253"), 0.8, 8, r"--ranks \d"),
    (SMALL, 0.7, 1, "--dtype bf16"),
    (BIG, 0.51, 1, r"--dtype bf16 --vae-tile \d+"),
    ((*MANY, "--num-frames", "253"), 0.85, 1, r"--num-frames \d+, or with --method dualparal"),
    ((*MANY, "--duration", "15s"), 0.85, 1, r"--duration [\d.]+s, or with --method dualparal"),
    ((*LONG, *TWO), 0.85, 2, "--"),
    ((*LONG, *TWO, "--pipeline-degree", "1"), 0.85, 2, "--"),
    ((*LONG, "--dtype", "bf16", "--vae-tile", "32"), 0.85, 4, "--ranks 2"),
    ((*LONG, "--ranks", "3", "--placement", "denoise=0-1 decode=2"), 0.85, 3, "--"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(case[0]))
def test_what_is_said_to_fit_is_accepted(
    case: tuple[tuple[str, ...], float, int, str],
    generate: Generate,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    options, part, gpus, said = case
    (tmp_path / "prompts").write_text("a\nb\n")
    needed = _needed(options, generate, monkeypatch)
    on_gpus(monkeypatch, part * needed, gpus)
    with pytest.raises(InputError, match=rf" fits with {said}") as refused:
        generate(*options)
    (found,) = re.findall(r"fits with (.*)$", str(refused.value))
    capsys.readouterr()
    for words in found.split(", or with "):
        generate(*options, *shlex.split(words))
        assert "of memory will be needed" not in capsys.readouterr().err


TILES = (*BIG, "--vae-tile", "32")
FILES = [
    # Options; the file's settings; those that stay; memory as a fraction of the need; advised options.
    (TILES, {"ranks": 2, "attention": "pipesp", "chunks": 2}, "attention chunks", 0.75, "--placement .*"),
    (TILES, {"ranks": 2, "interleave": False, "compile": True}, "interleave compile", 0.75, "--placement .*"),
    (SMALL, {"denoise": [0, 1], "decode": [2], "cfg_degree": 2}, "cfg_degree denoise", 0.6, "--dtype bf16"),
    (SMALL, {"ranks": 2, "cfg_degree": 1, "chunks": 2}, "chunks", 0.85, "--cfg-degree 2"),
    (
        SMALL,
        {"ranks": 2, "replicas": 2, "attention_backend": "_native_math"},
        "attention_backend",
        0.9,
        "--replicas 1 .*",
    ),
    (SMALL, {"denoise": [0], "decode": [1], "coprocess": True, "chunks": 2}, "chunks", 0.85, ".*"),
]


@pytest.mark.parametrize("case", FILES, ids=lambda case: " ".join(case[1]))
def test_what_a_file_says_is_kept(
    case: tuple[tuple[str, ...], dict[str, Any], str, float, str],
    generate: Generate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Advised options keep a placement file's settings, whether they replace the file or add to it."""
    options, said, kept, part, words = case
    Path("placement.json").write_text(json.dumps(said))
    Path("prompts").write_text("a\nb\n")
    options = (*options, "--prompts-file", "prompts", "--placement", "placement.json")
    on_gpus(monkeypatch, part * _needed(options, generate, monkeypatch), 2 if "denoise" not in said else 3)
    with pytest.raises(InputError) as refused:
        generate(*options)
    (found,) = re.findall(r"fits with (.*)$", str(refused.value))
    placements: list[Placement] = []
    monkeypatch.setattr(command, "check_devices", lambda placement, _: placements.append(placement))
    generate(*options, *shlex.split(found))
    for name in kept.split():
        value = placements[0].flat()[name]
        assert (list(value) if isinstance(value, tuple) else value) == said[name]
    assert re.fullmatch(words, found)


def _needed(options: tuple[str, ...], generate: Generate, monkeypatch: pytest.MonkeyPatch) -> float:
    """Return the estimated peak bytes of the fullest rank for these options."""
    peaks: list[int] = []
    on_gpus(monkeypatch, 1e12, 8)
    room_bytes = memory_check.room_bytes
    with monkeypatch.context() as patched:

        def noted(*arguments: object) -> dict[str, int]:
            found = room_bytes(*arguments)  # type: ignore[arg-type]
            peaks.append(found["peak"])
            return found

        patched.setattr(memory_check, "room_bytes", noted)
        generate(*options)
    return float(max(peaks))


def test_between_a_warning(
    generate: Generate, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = _needed(BIG, generate, monkeypatch)
    for times, said in ((1.0, 0), (1.01, 1), (SURELY - 0.01, 1)):
        on_gpus(monkeypatch, needed / times + 1, 1)
        capsys.readouterr()
        generate(*BIG)
        assert capsys.readouterr().err.count("of memory will be needed, but the GPU has") == said
    on_gpus(monkeypatch, needed / SURELY - 1, 1)
    with pytest.raises(InputError, match=r"512x512, 5 frames .* most is for the decode"):
        generate(*BIG)
    # A dry run may be meant for another machine.
    app(["generate", "a", "--model", "shapes", "--size", "2048x2048", "--dry-run"], standalone_mode=False)


def test_what_no_option_helps(generate: Generate, monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpus(monkeypatch, 1e5, 1)
    with pytest.raises(InputError, match=r"for its weights in fp32, but the GPU has 0\.0 GB$"):
        generate(*BIG)
    on_gpus(monkeypatch, 2e7, 1)
    with pytest.raises(InputError, match=r"; it fits with a smaller --size only$"):
        generate("--size", "1024x1024", "--num-frames", "5")


def test_a_machine_refuses(model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rope_max_seq_len": 65536}))
    spec, there = read_spec(folder), psutil.virtual_memory().total
    side = next(2**n for n in range(9, 17) if spec.memory_bytes(5, 2**n, 2**n, 4)["peak"] > SURELY * there)
    asked = ["generate", "a", "--model", str(folder), "--size", f"{side}x{side}", "--num-frames", "5"]
    done = subprocess.run(
        [*COMMAND, *asked], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert re.match(rf"paradit: error: {side}x{side}, 5 frames .* \d+", line)
    assert list(tmp_path.iterdir()) == [folder]


def test_saved_latents(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = read_spec(model)
    save_file({"latents": torch.zeros(1, *spec.vae.latent_shape(5, 512, 512))}, tmp_path / "l.safetensors")

    def accept(*_: object) -> None:
        raise Accepted

    def decode(*options: str) -> None:
        app(["decode", "l.safetensors", "--model", str(model), *options], standalone_mode=False)

    def needed(tile: int | None) -> int:
        return spec.rank_memory_bytes(5, 512, 512, 4, ["decode"], tile=tile)["peak"]

    monkeypatch.setattr(paradit.cli.decode, "download_weights", accept)
    monkeypatch.chdir(tmp_path)
    for there, warned in ((needed(None), False), (0.99 * needed(None), True), (needed(128), False)):
        monkeypatch.setattr(memory_check, "total_memory_bytes", lambda _, there=there: round(there))
        tile = [] if there > 0.9 * needed(None) else ["--vae-tile", "128"]
        if tile:
            with pytest.raises(InputError, match=r"decode of 512x512 .* --vae-tile 128$"):
                decode()
        with pytest.raises(Accepted):
            decode(*tile)
        assert ("it fits with --vae-tile 256" in capsys.readouterr().err) == warned


def test_a_run_that_has_begun(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run is refused before anything is loaded, with advice to use its own options or to begin anew."""

    def typed(*words: str) -> int:
        capsys.readouterr()
        try:
            return int(app(words, standalone_mode=False) or 0)
        except InputError as error:
            return told(error)

    def refused(*words: str) -> str:
        assert typed(*words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    def accept(*_: object) -> None:
        raise Accepted

    monkeypatch.chdir(tmp_path)
    long = ("--method", "dualparal", "--num-frames", "34", "--num-inference-steps", "2")
    assert typed("generate", "a", "--model", str(model), *SMALL, *long, "-o", "v.mp4") == 0
    (path,) = (tmp_path / "paradit-runs").iterdir()
    run = RunFolder(path).read()
    begun = RunFolder.create(run).path
    extend, resume = ("extend", str(path), "--num-frames", "9"), ("resume", str(begun), "--overwrite")
    monkeypatch.setattr(paradit.cli.extend, "complete_run_model", accept)
    monkeypatch.setattr(paradit.cli.resume, "complete_run_model", accept)
    there = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}

    peak = memory_check.room_bytes(read_spec(model), run.jobs[0].request, run.placement)["peak"]
    on_gpus(monkeypatch, 0.85 * peak, 2)
    assert re.search(r"is too much: about .*; it fits with --ranks 2$", refused(*extend))
    anew = r"is too much: .*: use a machine with more memory, or run `paradit generate` again with --ranks 2$"
    assert re.search(anew, refused(*resume))
    with pytest.raises(Accepted):
        typed(*extend, "--ranks", "2")

    on_gpus(monkeypatch, 1e5, 1)
    for words in (extend, resume):
        assert re.search(r"GPU has 0\.0 GB: .*more memory$", refused(*words))

    on_gpus(monkeypatch, peak / 1.05, 1)
    for words in (extend, resume):
        with pytest.raises(Accepted):
            typed(*words)
        assert "of memory will be needed, but the GPU has" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == there


def test_groups_are_read_as_they_are_written() -> None:
    for placement in (
        Placement(ranks=3),
        Placement(ranks=3, denoise=(0, 1), decode=(2,)),
        Placement(ranks=5, encode=(1,), denoise=(0, 2, 3), decode=(1, 4)),
    ):
        read = Placement(ranks=placement.ranks, **read_groups(write_groups(placement)))  # type: ignore[arg-type]
        for stage in ("encode_ranks", "denoise_ranks", "decode_ranks"):
            assert getattr(read, stage) == getattr(placement, stage)
