"""Files from outside with arbitrary content, which give a value or a one-line error, and never hang.

Random values replace every field of every such file, in process with the real readers; a few files go through
the real command line. PARADIT_EXAMPLES sets how many are tried of each.
"""

from __future__ import annotations

import inspect
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paradit.config.errors import InputError
from paradit.config.methods.method import check_placement, resolve
from paradit.config.options import all_fields
from paradit.config.placement_text import read_placement
from paradit.config.requests import Request
from paradit.engine.run_folder import RunFolder
from paradit.models.folder import bundled_folder, find_model
from paradit.models.hunyuan_video import spec as hunyuan_video
from paradit.models.spec import read_spec
from paradit.models.wan import spec as wan
from paradit.models.wan import vae_spec as wan_vae
from paradit.planner.hardware import find_cluster
from paradit.sampling.block_state import QueueState
from paradit.sampling.solver_state import SolverState
from paradit.scheduler_check import check_scheduler
from tiny import save_hunyuan_folder
from version_0_1 import FILES, run_of

EXAMPLES = int(os.environ.get("PARADIT_EXAMPLES", "30"))
HANG = 60.0
"""Seconds of this process's own CPU time after which an answer counts as hanging."""

NUMBERS = st.one_of(
    st.integers(-2, 5), st.sampled_from([2**31 - 1, 2**63, 10**30, -(10**30)]), st.floats(), st.booleans()
)
TEXTS = st.sampled_from(["", "4", "0-3", "nan", "null", "-", "\0", "\ud800", "a/b", ".."])
VALUES = st.recursive(
    st.one_of(st.none(), NUMBERS, TEXTS),
    lambda one: st.one_of(st.lists(one, max_size=3), st.dictionaries(st.text(max_size=3), one, max_size=2)),
    max_leaves=4,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to every value in a JSON file, at any depth."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def changed(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return the content with another value at a path."""
    if not path:
        return value
    copy = dict(content) if isinstance(content, dict) else list(content)
    copy[path[0]] = changed(content[path[0]], path[1:], value)
    return copy


@contextmanager
def one_line(what: object = "") -> Iterator[None]:
    """Check that the body either succeeds or raises an InputError of one line, and does not hang."""
    began = time.process_time()
    try:
        yield
    except InputError as error:
        assert "\n" not in str(error), (what, error)
        assert str(error), what
    assert time.process_time() - began < HANG, what


def examples(function: Callable[..., None]) -> Callable[..., None]:
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    return settings(
        max_examples=EXAMPLES, deadline=None, suppress_health_check=checks, derandomize=True, database=None
    )(function)


def mutate(data: st.DataObject, path: Path) -> tuple[str, object]:
    """Change or add one value in a JSON file, and return where, and the value."""
    content = json.loads(path.read_text())
    place = data.draw(st.sampled_from(list(places(content))))
    value = data.draw(VALUES)
    path.write_text(json.dumps(changed(content, place, value)))
    return f"{path.name} {place}", value


PLACEMENT = json.loads((FILES / "placement.json").read_text())


@examples
@given(st.dictionaries(st.sampled_from([*PLACEMENT, "rank"]), VALUES, max_size=3))
def test_placements(values: dict[str, Any]) -> None:
    with one_line(values):
        read_placement(json.dumps(values))
    with one_line(values):
        read_placement(json.dumps(PLACEMENT | values))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        "wan": bundled_folder(),
        "hunyuan_video": save_hunyuan_folder(tmp_path_factory.mktemp("models") / "tiny", width=32),
    }


CONFIGS = (
    *("wan/paradit.json", "wan/model_index.json", "wan/transformer/config.json", "wan/vae/config.json"),
    *("wan/text_encoder/config.json", "wan/scheduler/scheduler_config.json"),
    *("hunyuan_video/paradit.json", "hunyuan_video/transformer/config.json", "hunyuan_video/vae/config.json"),
    *("hunyuan_video/text_encoder/config.json", "hunyuan_video/text_encoder_2/config.json"),
)


@pytest.mark.parametrize("name", CONFIGS)
@examples
@given(data=st.data())
def test_model_folders(name: str, models: dict[str, Path], tmp_path: Path, data: st.DataObject) -> None:
    family, _, file = name.partition("/")
    shutil.rmtree(tmp_path / "model", ignore_errors=True)
    folder = shutil.copytree(models[family], tmp_path / "model")
    what = mutate(data, folder / file)
    with one_line(what):
        find_model(str(folder))
        spec = read_spec(folder)
        request = resolve(Request(prompt="a red circle"), spec)
        assert request.num_frames and request.width and request.height
        spec.memory_bytes(request.num_frames, request.height, request.width, 2)
        spec.vae.decode_flops(request.num_frames, request.height, request.width)
        check_scheduler(spec, request)


@examples
@given(data=st.data())
def test_weights(tmp_path: Path, data: st.DataObject) -> None:
    """Both the index of weights and the header of their file get random values."""
    shutil.rmtree(tmp_path / "model", ignore_errors=True)
    folder = shutil.copytree(bundled_folder(), tmp_path / "model")
    stem = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    header = {"__metadata__": {"format": "pt"}, "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    place = data.draw(st.sampled_from(list(places(header))))
    text = json.dumps(changed(header, place, data.draw(VALUES))).encode()
    stem.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    if data.draw(st.booleans()):
        index = {"weight_map": {"a": stem.name}}
        place = data.draw(st.sampled_from(list(places(index))))
        index_file = stem.with_name(f"{stem.name}.index.json")
        index_file.write_text(json.dumps(changed(index, place, data.draw(VALUES))))
    with one_line(text):
        find_model(str(folder))
        read_spec(folder)


@examples
@given(data=st.data())
def test_run_folders(tmp_path: Path, data: st.DataObject) -> None:
    shutil.rmtree(tmp_path / "paradit-runs", ignore_errors=True)
    run = run_of("full", tmp_path)
    what = mutate(data, run / "run.json")
    with one_line(what):
        found = RunFolder(run).read()
        for job in found.jobs:
            spec = read_spec(bundled_folder())
            check_placement(found.placement, resolve(job.request.asked(), spec), spec)


MACHINE = (FILES / "machine.toml").read_text()
FIGURES = [line for line in MACHINE.splitlines() if " = " in line and "what" not in line]

TOML = ["nan", "-1", "0", "1e999", "true", '"4"', "[]", "{}", "{ fp8 = 1.0 }", "9" * 400, "[" * 9999]


@examples
@given(line=st.sampled_from(FIGURES), value=st.sampled_from(TOML))
def test_machine_files(line: str, value: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("machine") / "machine.toml"
    for change in (f"{line.partition(' = ')[0]} = {value}", "", f"{line}\nother = {value}"):
        path.write_text(MACHINE.replace(line, change, 1))
        with one_line(change):
            find_cluster(str(path))


@pytest.mark.parametrize(
    ("file", "read"),
    [("full/00000.step.pt", SolverState.from_bytes), ("long/00000.open.pt", QueueState.from_bytes)],
)
@examples
@given(data=st.data())
def test_checkpoints(file: str, read: Callable[[bytes], object], data: st.DataObject) -> None:
    stored = torch.load(FILES / file, weights_only=True)
    place = data.draw(st.sampled_from([path for path in places(stored) if len(path) < 4 and path]))
    buffer = io.BytesIO()
    torch.save(changed(stored, place, data.draw(VALUES)), buffer)
    with one_line(place):
        read(buffer.getvalue())


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (wan.PipelineConfig, diffusers.WanPipeline),
        (wan.TransformerConfig, diffusers.WanTransformer3DModel),
        (wan_vae.VaeConfig, diffusers.AutoencoderKLWan),
        (hunyuan_video.TransformerConfig, diffusers.HunyuanVideoTransformer3DModel),
        (hunyuan_video.VaeConfig, diffusers.AutoencoderKLHunyuanVideo),
    ],
)
def test_configurations_are_those_of_diffusers(ours: type, theirs: type) -> None:
    parameters = inspect.signature(theirs).parameters
    known = {
        name: tuple(one.default) if isinstance(one.default, list) else one.default
        for name, one in parameters.items()
        if name != "self" and one.default is not inspect.Parameter.empty
    }
    if issubclass(theirs, diffusers.DiffusionPipeline):
        known = {name: default for name, default in known.items() if not name.startswith("transformer")}
    assert known == {name: field.default for name, field in all_fields(ours).items() if name[0] != "_"}


WRONG = [
    ("placement.json", {"ranks": "4"}, "ranks must be a whole number, got '4' (str)"),
    ("placement.json", {"ranks": "0-3"}, "ranks must be a whole number"),
    ("placement.json", {"chunks": "nan"}, "chunks must be a whole number"),
    ("placement.json", {"pipeline_degree": "null"}, "pipeline_degree must be a whole number"),
    ("placement.json", {"replicas": None}, "replicas must be a whole number, got None"),
    ("placement.json", {"attention_backend": [[]]}, "attention_backend must be a text, got [[]] (list)"),
    ("placement.json", {"pipeline_degree": "-", "replicas": 2147483648}, "pipeline_degree must be a whole"),
    ("paradit.json", {"train_frames": 5}, "train_frames must be a list of 2 whole numbers, got 5 (int)"),
    ("paradit.json", {"negative_prompt": 3}, "negative_prompt must be a text, got 3 (int)"),
    ("transformer/config.json", {"patch_size": [0, 0]}, "patch_size must be a list of 3 whole numbers"),
    ("transformer/config.json", {"attention_head_dim": 1e300}, "attention_head_dim must be a whole number"),
    ("transformer/config.json", {"num_attention_heads": [0, 0]}, "num_attention_heads must be a whole"),
    ("transformer/config.json", {"qk_norm": "layer"}, "qk_norm 'layer' is not supported: only 'rms_"),
    ("vae/config.json", {"scale_factor_spatial": 0}, "scale_factor_spatial must be at least 1, got 0"),
    ("vae/config.json", {"base_dim": None}, "base_dim must be a whole number, got None"),
    ("scheduler/scheduler_config.json", {"num_train_timesteps": 2**31}, "timesteps must be at most 100000"),
    ("text_encoder/config.json", {"d_model": ...}, "d_model is missing: it must be a whole number"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "values", "said"), WRONG)
def test_wrong_values_by_name(file: str, values: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = shutil.copytree(bundled_folder(), tmp_path / "model")
    path = folder / file
    content = json.loads(path.read_text()) if path.exists() else {}
    content = {name: value for name, value in (content | values).items() if value is not ...}
    path.write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        if file == "placement.json":
            read_placement(path.read_text())
        spec = read_spec(folder)
        check_scheduler(spec, resolve(Request(prompt="a"), spec))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    if file != "placement.json":
        assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("file", "values"), [WRONG[6][:2], WRONG[9][:2], WRONG[-1][:2]], ids=["placement", "transformer", "text"]
)
def test_the_command_line(file: str, values: dict[str, Any], tmp_path: Path) -> None:
    folder = shutil.copytree(bundled_folder(), tmp_path / "model")
    path = folder / file
    content = json.loads(path.read_text()) if path.exists() else {}
    content = {name: value for name, value in (content | values).items() if value is not ...}
    path.write_text(json.dumps(content))
    placement = ["--placement", str(path)] if file == "placement.json" else []
    done = subprocess.run(
        [sys.executable, "-m", "paradit", "generate", "a", "--dry-run", "--model", str(folder), *placement],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("paradit: error: ") and path.name in line
