"""Memory of a process that loads a model: weights in the run's dtype, without another copy of the files."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

from paradit.config.errors import InputError
from paradit.models.folder import find_model
from paradit.models.spec import read_spec
from paradit.pipeline import load
from tiny import save_folder, save_hunyuan_folder

MIB = 2**20

# Anonymous memory belongs to one process alone; pages of files are shared by all processes that map them.
MEASURE = """
import gc, json, sys, threading
from pathlib import Path
import torch
from paradit.models.spec import read_spec
from paradit.sampling.layer_split import measure_layers
from paradit.pipeline import load

def memory():
    lines = [line.split() for line in open("/proc/self/smaps_rollup")]
    return {words[0]: int(words[1]) * 1024 for words in lines if words[0] in ("Anonymous:", "Rss:")}

tiny, folder, dtype, part = sys.argv[1:]
# Imports, and what they leave behind.
load(read_spec(Path(tiny)), dtype, stages=("encode", "denoise"))
gc.collect()
before, peak, done = memory(), [], threading.Event()

def watch():
    while not done.wait(0.002):
        peak.append(memory()["Anonymous:"])

watcher = threading.Thread(target=watch)
watcher.start()
if part == "all":
    model = load(read_spec(Path(folder)), dtype, stages=("encode", "denoise"))
else:  # the first rank of a pipeline, or the last: both begin without layers, and the first one measures
    model = load(read_spec(Path(folder)), dtype, stages=("denoise",), layers=False)
    prompt = tuple(torch.zeros(shape, dtype=model.dtype) for shape in model.prompt_shapes)
    measure_layers(model, (3, 4, 4), prompt)
    model.experts[0].keep_layers(range(0, 6) if part == "first" else range(6, 12))
done.set()
watcher.join()
gc.collect()
after = memory()
modules = [model.experts[0].module, model._pipeline.text_encoder or torch.nn.Module()]
print(json.dumps({
    "weights": sum(p.nbytes for module in modules for p in module.parameters()),
    "own": after["Anonymous:"] - before["Anonymous:"],
    "own_peak": max(peak) - before["Anonymous:"],
    "resident": after["Rss:"] - before["Rss:"],
}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model in fp32 shards: a Wan transformer of 211 MB in five, a text encoder of 169 MB."""
    folder = save_folder("wan21", tmp_path_factory.mktemp("models") / "large")
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        num_attention_heads=8,
        attention_head_dim=64,
        text_dim=32,
        freq_dim=32,
        ffn_dim=2048,
        num_layers=12,
        rope_max_seq_len=64,
    )
    encoder = UMT5EncoderModel(
        UMT5Config(vocab_size=32000, d_model=512, d_kv=64, d_ff=1024, num_layers=10, num_heads=8)
    )
    for name, module in (("transformer", transformer), ("text_encoder", encoder)):
        for file in (folder / name).glob("*.safetensors"):
            file.unlink()
        module.save_pretrained(folder / name, max_shard_size="50MB")
        assert len(list((folder / name).glob("*-of-*.safetensors"))) > 3
    return folder


linux_only = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux only")


def measured(folder: Path, tmp_path: Path, dtype: str, part: str = "all") -> dict[str, int]:
    tiny = save_folder("wan21", tmp_path)
    ran = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tiny), str(folder), dtype, part],
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
    )
    found: dict[str, int] = json.loads(ran.stdout)
    return found


@linux_only
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_no_copy_of_the_checkpoint(dtype: str, folder: Path, tmp_path: Path) -> None:
    found = measured(folder, tmp_path, dtype)
    # In their stored dtype, weights are mapped from the files, which all processes share.
    needed = found["weights"] if dtype == "bf16" else 0
    assert found["own"] < needed + 20 * MIB
    assert found["own_peak"] < needed + 40 * MIB
    if dtype == "bf16":
        assert found["resident"] < needed + 30 * MIB


@linux_only
@pytest.mark.parametrize("part", ["first", "last"])
def test_half_of_the_layers_is_half_of_the_memory(part: str, folder: Path, tmp_path: Path) -> None:
    """A rank of a layer pipeline of two holds half the layers at any time, even while it measures layers."""
    found = measured(folder, tmp_path, "bf16", part)
    assert found["weights"] < 60 * MIB  # all layers have 105
    assert found["own"] < found["weights"] + 20 * MIB
    assert found["own_peak"] < found["weights"] + 40 * MIB
    assert found["resident"] < found["weights"] + 30 * MIB


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("family", ["wan", "hunyuan_video"])
def test_layers_read_later_are_the_same(family: str, dtype: str, folder: Path, tmp_path: Path) -> None:
    """Layers may be read in any order, from shards or a single file, and computed values are equal too."""
    spec = read_spec(folder if family == "wan" else save_hunyuan_folder(tmp_path))
    expected: Any
    (expected,) = load(spec, dtype, stages=("denoise",)).experts
    found: Any
    (found,) = load(spec, dtype, stages=("denoise",), layers=False).experts
    assert found.blocks == []
    everything: Any = range(len(found.layers.kinds))
    for layers in (everything[-1:], everything[1:3], everything):
        found.keep_layers(layers)
        assert len(found.blocks) == len(layers)
    values, wanted = (
        dict([*one.module.named_parameters(), *one.module.named_buffers()]) for one in (found, expected)
    )
    assert list(values) == list(wanted)
    for name, value in values.items():
        assert value.dtype == wanted[name].dtype, name
        assert torch.equal(value, wanted[name]), name


def test_a_layer_that_is_not_stored(tmp_path: Path) -> None:
    folder = save_folder("wan21", tmp_path)
    config = folder / "transformer" / "config.json"
    config.write_text(config.read_text().replace('"num_layers": 2', '"num_layers": 3'))
    (transformer,) = load(read_spec(folder), stages=("denoise",), layers=False).experts
    with pytest.raises(InputError, match=r"has no weights for blocks\.2"):
        transformer.keep_layers(range(1, 3))


def test_loaded_weights_are_those_stored(folder: Path) -> None:
    model: Any = load(read_spec(folder), "bf16")
    pipeline = model._pipeline
    stored = WanTransformer3DModel.from_pretrained(folder / "transformer", dtype=torch.bfloat16)
    expected = stored.state_dict()
    assert {value.dtype for value in expected.values()} == {torch.float32, torch.bfloat16}
    found = pipeline.transformer.state_dict()
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.dtype == expected[name].dtype, name
        assert torch.equal(value, expected[name]), name
    assert {parameter.dtype for parameter in pipeline.vae.parameters()} == {torch.float32}
    encoder = UMT5EncoderModel.from_pretrained(folder / "text_encoder", dtype=torch.bfloat16)
    for (name, value), other in zip(
        encoder.named_parameters(), pipeline.text_encoder.parameters(), strict=True
    ):
        assert value.dtype == other.dtype, name
        assert torch.equal(value, other), name


def test_weights_of_a_variant_are_loaded_if_there_are_no_others(tmp_path: Path) -> None:
    """The transformer has fp16 shards, the text encoder one fp16 file, and the VAE its usual file."""
    folder = save_folder("wan21", tmp_path)
    stored = {}
    for name, kind in (("transformer", WanTransformer3DModel), ("text_encoder", UMT5EncoderModel)):
        module = kind.from_pretrained(folder / name).half()
        for file in (folder / name).glob("*.safetensors"):
            file.unlink()
        module.save_pretrained(folder / name, variant="fp16", max_shard_size="200KB")
        stored[name] = module.float().state_dict()
    assert len(list((folder / "transformer").glob("*.fp16-*.safetensors"))) > 1
    assert (folder / "text_encoder" / "model.fp16.safetensors").exists()
    spec = read_spec(find_model(str(folder)))
    assert all(part.file_bytes > 0 for part in spec.weights)
    model: Any = load(spec, "fp32")
    late: Any
    (late,) = load(spec, "fp32", stages=("denoise",), layers=False).experts
    late.keep_layers(range(2))
    for name, module in (("transformer", late.module), *model._pipeline.components.items()):
        for key, value in stored.get(name, {}).items():
            assert torch.equal(module.state_dict()[key], value), (name, key)
