"""Files of a run: reserved names, links that are written through, and metadata."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import av
import pytest
import torch
from PIL import Image

import paradit
from messages import says
from paradit.cli.run_model import complete_run_model, find_run_model
from paradit.config.errors import InputError
from paradit.config.methods.method import resolve
from paradit.config.placement import Placement
from paradit.config.requests import Request
from paradit.engine.job import Job, Run
from paradit.files import behind_links, reserved, write_whole
from paradit.models.folder import bundled_folder
from paradit.models.identity import model_hash
from paradit.models.spec import read_spec
from runs import finished
from tiny import save_folder

HOLD = """
import sys
from paradit.files import reserved
with reserved("output", "a.mp4"):
    print("held", flush=True)
    sys.stdin.read()
"""
SCRIPT = """
import sys
import paradit
print(sorted(dir(paradit)))
paradit.generate("a cat", model=sys.argv[1]).save("~/a.mp4")
"""
SIZE = {"width": 32, "height": 32, "num_frames": 5, "num_inference_steps": 1}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder("wan21", tmp_path_factory.mktemp("models") / "tiny", **SIZE)


def test_a_name_is_held_until_its_holder_is_gone_however_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.mp4").symlink_to("a.mp4")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    for name in ("a.mp4", "./a.mp4", "link.mp4", tmp_path / "a.mp4"):
        with pytest.raises(InputError, match="is being written by another run"), reserved("output", name):
            pass
    with reserved("output", "b.mp4"):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    for _ in range(2):
        with reserved("output", "a.mp4"):
            assert (tmp_path / "a.mp4").exists() is False
    assert names(tmp_path) == ["link.mp4"]


def test_files_are_written_through_links(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "link.json"
    link.symlink_to("there/real.json")
    write_whole(link, b"{}")
    assert link.is_symlink()
    assert (tmp_path / "there" / "real.json").read_bytes() == b"{}"
    assert behind_links(link) == (tmp_path / "there" / "real.json").resolve()


def test_a_second_run_of_the_same_file_is_refused_and_a_link_is_written_through(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "a.mp4").symlink_to("there/real.mp4")
    arguments = ["a cat", "--model", str(folder), "--overwrite", "-o"]
    command = [sys.executable, "-m", "paradit", "generate", *arguments, "a.mp4"]
    with reserved("output", tmp_path / "there" / "real.mp4"):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert says(done.stderr, "paradit: error: output 'a.mp4' .. another run")
    finished(tmp_path, "generate", *arguments, "a.mp4", "--latents", "l.safetensors")
    assert names(tmp_path) == ["a.mp4", "l.safetensors", "there"]
    assert (tmp_path / "a.mp4").is_symlink()
    about = said_by(tmp_path / "there" / "real.mp4")
    assert about["prompt"] == "a cat"
    # A decode of the latents writes the same metadata, and the same file.
    finished(tmp_path, "decode", "l.safetensors", "--model", str(folder), "-o", "again.mp4")
    assert (tmp_path / "again.mp4").read_bytes() == (tmp_path / "there" / "real.mp4").read_bytes()
    finished(tmp_path, "decode", "l.safetensors", "--model", str(folder), "-o", "bare.mp4", "--no-metadata")
    with av.open(str(tmp_path / "bare.mp4")) as file:
        assert set(file.metadata) <= {"major_brand", "minor_version", "compatible_brands", "encoder"}


def said_by(path: Path) -> dict[str, object]:
    """Return the metadata of a file, which say what it was made from."""
    if path.is_dir():
        text = Image.open(path / "00000.png").info["Comment"]
    elif path.suffix == ".gif":
        text = Image.open(path).info["comment"].decode()
    else:
        with av.open(str(path)) as file:
            found = {name.lower(): value for name, value in file.metadata.items()}
            text = found["comment"]
            assert found["title"] == "a cat"
    about: dict[str, object] = json.loads(text)
    return about


@pytest.mark.parametrize("name", ["v.mp4", "v.webm", "v.gif", "v"])
def test_every_format_says_what_it_was_made_from(name: str, folder: Path, tmp_path: Path) -> None:
    made = paradit.generate("a\ncat", model=folder, seed=5, negative_prompt="dull")
    path = made.save(tmp_path / name)
    assert said_by(path) == {
        "software": f"paradit {paradit.__version__}",
        "model": "tiny",
        "model_hash": model_hash(folder),
        "prompt": "a\ncat",
        "negative_prompt": "dull",
        "seed": 5,
        **SIZE,
        "fps": 16.0,
        "guidance_scale": 5.0,
        "method": "full",
        "dtype": "fp32",
        "attention_backend": "native",
    }
    with pytest.raises(InputError, match="exists"):
        made.save(path)
    again = made.save(tmp_path / f"again-{name}")
    if path.is_file():
        assert again.read_bytes() == path.read_bytes()


def test_a_model_hash_is_that_of_its_content(folder: Path, tmp_path: Path) -> None:
    same = save_folder("wan21", tmp_path / "elsewhere", **SIZE)
    assert model_hash(same) == model_hash(folder)
    assert model_hash(bundled_folder()) != model_hash(folder)
    weights = same / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert model_hash(same) != model_hash(folder)


def test_a_run_is_not_resumed_with_another_model(folder: Path, tmp_path: Path) -> None:
    model = save_folder("wan21", tmp_path / "tiny", **SIZE)
    spec = read_spec(model)
    job = Job(request=resolve(Request(prompt="a cat"), spec), output="a.mp4", latents=None)
    run = Run(
        model="tiny",  # the name by which another folder knew it
        model_folder=str(model),
        model_hash=model_hash(model),
        jobs=(job,),
        placement=Placement(),
    )
    assert find_run_model(run) == model
    complete_run_model(run, model)
    weights = "transformer/diffusion_pytorch_model.safetensors"
    (model / weights).write_bytes((folder / weights).read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="the model 'tiny' has changed since the run began"):
        complete_run_model(run, model)


def test_videos_are_made_in_threads_side_by_side(folder: Path) -> None:
    """Threads make videos concurrently, even with an event loop in the main thread, as in a notebook."""
    import asyncio

    seeds = [0, 1, 0]

    async def all_at_once() -> list[torch.Tensor]:
        made = await asyncio.gather(
            *(asyncio.to_thread(paradit.generate, "a cat", model=folder, seed=seed) for seed in seeds)
        )
        return [one.latents for one in made]

    first, second, third = asyncio.run(all_at_once())
    assert torch.equal(first, third)
    assert not torch.equal(first, second)
    assert torch.equal(second, paradit.generate("a cat", model=folder, seed=1).latents)


def test_what_is_set_in_torch_changes_nothing(folder: Path) -> None:
    plain = paradit.generate("a cat", model=folder).latents
    with torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        assert torch.equal(paradit.generate("a cat", model=folder).latents, plain)
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_default_device().type == "meta"
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(InputError, match=r"default dtype must be float32, got torch\.float64"):
            paradit.generate("a cat", model=folder)
    finally:
        torch.set_default_dtype(torch.float32)


def test_what_cannot_be_from_python(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"progress .* paradit.progress.Progress, got 'x' .str."):
        paradit.generate("a cat", model=folder, progress="x")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"model .* is not a usable name: File name too long"):
        paradit.generate("a cat", model="m" * 300)
    made = paradit.generate("a cat", model=folder)
    for path in (None, 3, b"a.mp4", ["a.mp4"]):
        with pytest.raises(InputError, match="output must be a path, got "):
            made.save(path)  # type: ignore[arg-type]
    for name, said in {
        "a\0.mp4": "is not a usable name: embedded null byte",
        "\udcff.mp4": "cannot be written in utf-8",
        "~nosuchuser/a.mp4": "the folder '~nosuchuser' does not exist",
        ".": "is the current folder or a mount point",
    }.items():
        with pytest.raises(InputError, match=said):
            made.save(name, overwrite=True)
    assert not names(tmp_path)


def test_a_script_needs_no_main_guard(folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(script), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "'generate', 'parallelize'" in done.stdout
    assert (tmp_path / "a.mp4").exists()
