"""Pictures that a run was given: copied into its folder, checked, and named in the video's metadata."""

from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from paradit.config.errors import InputError
from paradit.config.methods.method import resolve
from paradit.config.placement import Placement
from paradit.config.requests import Request
from paradit.engine.job import Job, Run
from paradit.engine.run_folder import RunFolder
from paradit.models.folder import bundled_folder
from paradit.models.spec import read_spec
from paradit.provenance import provenance

T2V = replace(read_spec(bundled_folder()), takes=frozenset[str]())
FLF2V = replace(T2V, takes=frozenset({"image", "last_image"}))


@pytest.fixture
def marked(tmp_path: Path) -> Path:
    """A picture file."""
    Image.new("RGB", (64, 32), "red").save(tmp_path / "marked.png")
    return tmp_path / "marked.png"


def run_of(request: Request, model: Any, folder: Path) -> Run:
    """Return a run of one video, whose file is to stand in a folder."""
    job = Job(request=resolve(request, model), output=str(folder / "made.mp4"), latents=None)
    return Run(model="shapes", jobs=(job,), placement=Placement())


def test_a_run_keeps_its_pictures(tmp_path: Path, marked: Path) -> None:
    Image.new("RGB", (40, 30), "green").save(tmp_path / "last one.png")
    request = Request(prompt="a", image=marked, last_image=tmp_path / "last one.png")
    run = run_of(request, FLF2V, tmp_path)
    folder = RunFolder.create(run)
    kept = folder.take_inputs(run)
    assert replace(kept.jobs[0].request, image=None, last_image=None) == replace(
        run.jobs[0].request, image=None, last_image=None
    )
    content = marked.read_bytes()
    digest = sha256(content).hexdigest()
    marked.unlink()
    assert folder.read().jobs[0].request == kept.jobs[0].request
    folder.check_inputs(folder.read())

    moved = RunFolder(folder.path.rename(tmp_path / "moved"))
    found = moved.read().jobs[0].request
    assert found.image and Path(found.image).read_bytes() == content
    assert Path(found.image).relative_to(moved.path).parts == (
        "inputs",
        digest,
        "marked.png",
    )
    assert Path(found.image).stat().st_mode & 0o777 == 0o600
    assert found.last_image and Path(found.last_image).name == "last one.png"
    assert resolve(found.asked(), FLF2V) == found
    about = provenance(found, FLF2V, "fp32", "native")
    assert about["image"] == {"name": "marked.png", "sha256": digest}
    moved.check_inputs(moved.read())
    moved.reopen(moved.read())
    assert str(moved.path) not in (moved.path / "run.json").read_text()

    Path(found.image).write_bytes(content + b" ")
    with pytest.raises(InputError, match=r"image 'marked.png' of the run has changed"):
        moved.check_inputs(moved.read())
    Path(found.image).unlink()
    with pytest.raises(InputError, match=r"image 'marked.png' of the run is missing"):
        moved.check_inputs(moved.read())


def test_a_run_without_pictures_has_no_copies(tmp_path: Path) -> None:
    run = run_of(Request(prompt="a"), T2V, tmp_path)
    folder = RunFolder.create(run)
    assert folder.take_inputs(run) == run
    assert [path.name for path in folder.path.iterdir()] == ["run.json"]
    about = provenance(run.jobs[0].request, T2V, "fp32", "native")
    assert not {"image", "last_image", "video", "strength", "fit"} & about.keys()
