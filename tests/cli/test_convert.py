"""`paradit convert`: checkpoints of Open-Sora-Plan v1.3 in their published form, with real pickles."""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle as pickles
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nested import nested_tensor
from transformers import MT5Config, MT5EncoderModel, MT5ForConditionalGeneration, T5Tokenizer

from messages import says
from paradit.config.errors import InputError
from paradit.models.checkpoint import Given, convert, find
from paradit.models.common.tensor_files import write_tensors
from paradit.models.folder import find_model
from paradit.models.open_sora_plan.module import OpenSoraT2V_v1_3
from paradit.models.open_sora_plan.wf_vae import WFVAEModel
from paradit.models.spec import read_spec
from paradit.pipeline import load
from tiny import TEXT_DIM, wf_vae

TRANSFORMER = "any93x640x640"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint's folder, with the text encoder beside it in mt5/."""
    folder = tmp_path_factory.mktemp("published") / "Open-Sora-Plan"
    torch.manual_seed(1)
    sizes = {
        "num_attention_heads": 2,
        "attention_head_dim": 24,
        "num_layers": 2,
        "caption_channels": TEXT_DIM,
    }
    OpenSoraT2V_v1_3(**sizes).save_pretrained(folder / TRANSFORMER)
    vae = wf_vae()
    vae.save_config(folder / "vae")
    average = {f"module.{name}": tensor for name, tensor in vae.state_dict().items()}
    other = {name: torch.zeros_like(tensor) for name, tensor in vae.state_dict().items()}
    stored = {"epoch": 3, "ema_state_dict": average, "state_dict": {"gen_model": other, "dics_model": {}}}
    torch.save(stored, folder / "vae" / "merged.ckpt")
    config = MT5Config(vocab_size=259, d_model=TEXT_DIM, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    text_encoder = MT5ForConditionalGeneration(config)
    mt5 = folder.parent / "mt5"
    text_encoder.config.save_pretrained(mt5)
    torch.save(text_encoder.state_dict(), mt5 / "pytorch_model.bin")
    pieces = ["<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    T5Tokenizer(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0).save_pretrained(mt5)
    (folder / "prompt_refiner").mkdir()
    (folder / "prompt_refiner" / "config.json").write_text('{"model_type": "llama"}')
    return folder


@pytest.fixture
def checkpoint(published: Path, tmp_path: Path) -> Path:
    """Return a copy of the checkpoint, which a test may change; the text encoder is in it."""
    folder = shutil.copytree(published, tmp_path / "checkpoint")
    shutil.copytree(published.parent / "mt5", folder / "text_encoder")
    return folder


def converted(folder: Path, **given: Any) -> Path:
    output = folder.parent / "model"
    convert(find(folder, Given(**given)), output, lambda *_: None)
    return output


def refused(folder: Path, message: str, **given: Any) -> None:
    """Check that a checkpoint is refused in these words, and that nothing is left of the attempt."""
    before = sorted(path.name for path in folder.parent.iterdir())
    with pytest.raises(InputError) as error:
        converted(folder, **given)
    assert says(str(error.value), message), error.value
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in folder.parent.iterdir()) == before


def equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_the_command_makes_a_model_folder(published: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "paradit", "convert", str(published), "-o", "model"]
    command += ["--text-encoder", str(published.parent / "mt5")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "model\n"), done.stderr
    files = ("vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors", "transformer/")
    assert says(done.stderr.replace("\n", " "), " .. ".join(files))
    model = tmp_path / "model"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    index = json.loads((model / "model_index.json").read_text())
    assert index["_class_name"] == "OpenSoraPlanPipeline"
    assert index["transformer"][1] == "OpenSoraT2V_v1_3"
    spec = read_spec(find_model(str(model)))
    assert spec.vae.decoder_channels == (8, 16, 32)
    assert {part.component: part.parameters for part in spec.weights}["text_encoder"] > 0
    prompt, mask = load(spec, "fp32", stages=("encode", "decode")).encode_prompt("a red circle")
    assert (prompt.shape, int(mask.sum())) == ((1, 512, TEXT_DIM), 14)
    # The published weights, under their names, without those of training and of the text decoder.
    vae = WFVAEModel.from_pretrained(model / "vae")
    assert equal(vae.state_dict(), wf_vae().state_dict())
    weights = "diffusion_pytorch_model.safetensors"
    own = load_file(published / TRANSFORMER / weights)
    assert equal(load_file(model / "transformer" / weights), own)
    whole = torch.load(published.parent / "mt5" / "pytorch_model.bin", weights_only=True)
    stored = load_file(model / "text_encoder" / "model.safetensors")
    assert all(name == "shared.weight" or name.startswith("encoder.") for name in stored)
    text_encoder: Any = MT5EncoderModel.from_pretrained(model / "text_encoder")
    kept = {name: whole[name] for name in text_encoder.state_dict()}
    assert equal(text_encoder.state_dict(), kept)


def plain(stored: Any) -> dict[str, Tensor]:
    return {name.removeprefix("module."): tensor for name, tensor in stored["ema_state_dict"].items()}


def rewritten(path: Path, change: Callable[[Any], Any], **options: Any) -> None:
    torch.save(change(torch.load(path, weights_only=True)), path, **options)


@pytest.mark.parametrize(
    ("kept", "legacy"),
    [
        (lambda stored: {**stored, "ema_state_dict": {}, "state_dict": plain(stored)}, False),
        (lambda stored: {"ema_state_dict": {}, "state_dict": {"gen_model": plain(stored)}}, False),
        (lambda stored: {"state_dict": {**plain(stored), "loss.weight": torch.ones(3)}}, False),
        (plain, True),
    ],
)
def test_forms_of_the_vae(checkpoint: Path, kept: Callable[[Any], Any], legacy: bool) -> None:
    rewritten(checkpoint / "vae" / "merged.ckpt", kept, _use_new_zipfile_serialization=not legacy)
    found = load_file(converted(checkpoint) / "vae" / "diffusion_pytorch_model.safetensors")
    assert equal(found, wf_vae().state_dict())


def test_an_index_of_one_file(checkpoint: Path) -> None:
    shard = "diffusion_pytorch_model-00001-of-00001.safetensors"
    tensors = load_file((checkpoint / WEIGHTS).rename(checkpoint / TRANSFORMER / shard))
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, shard)}
    (checkpoint / TRANSFORMER / INDEX).write_text(json.dumps(index))
    made = OpenSoraT2V_v1_3.from_pretrained(converted(checkpoint) / "transformer")
    assert equal(made.state_dict(), tensors)


class Command:
    """Object that runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("file", ["vae/merged.ckpt", "text_encoder/pytorch_model.bin"])
def test_code_in_a_pickle_is_not_run(checkpoint: Path, file: str, zipped: bool) -> None:
    ran = checkpoint / "ran"
    unsafe = {"ema_state_dict": {}, "callback": Command(f"touch {ran}")}
    torch.save(unsafe, checkpoint / file, _use_new_zipfile_serialization=zipped)
    refused(checkpoint, f"{file}' holds more than tensors (posix.system), which could run code")
    assert not ran.exists()


@pytest.mark.parametrize(
    ("stored", "named"),
    [
        ({"args": argparse.Namespace(lr=1)}, "argparse.Namespace"),
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    ],
)
def test_other_objects_are_refused(checkpoint: Path, stored: object, named: str) -> None:
    torch.save(stored, checkpoint / "vae" / "merged.ckpt")
    refused(checkpoint, f"holds more than tensors ({named})")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda data: data[: len(data) // 2], "is damaged or of another kind"),
        (lambda _: b"", "is damaged or of another kind"),
        (lambda _: b"hello, this is no pickle\n" * 9, "is damaged or of another kind"),
        (lambda data: data[:99] + bytes(9) + data[109:], "is damaged or of another kind"),
        (lambda _: b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer"),
    ],
)
def test_damaged_pickles(checkpoint: Path, broken: Callable[[bytes], bytes], message: str) -> None:
    path = checkpoint / "vae" / "merged.ckpt"
    path.write_bytes(broken(path.read_bytes()))
    refused(checkpoint, f"merged.ckpt' .. {message}")


DEEP = b"\x80\x02})" + b"\x85" * 300_000 + b"K\x01s."
"""Pickle of a dict with a key of 300,000 tuples, each in the next: to hash it overflows the stack."""
WIDE = b"\x80\x02])q\x00a" + b"".join(b"h%ch%c\x86q%ca" % (n, n, n + 1) for n in range(60)) + b"}h<K\x01s."
"""Pickle of a dict with a key of 2^60 values: 60 tuples, each twice in the next."""


def zipped(pickle: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in (("data.pkl", pickle), ("version", b"3\n"), ("byteorder", b"little")):
            archive.writestr(f"archive/{name}", text)
    return content.getvalue()


def legacy(pickle: bytes) -> bytes:
    parts: tuple[object, ...] = (0x1950A86A20F9469CFC6C, 1001, {})
    return b"".join(pickles.dumps(part, 2) for part in parts) + pickle + pickles.dumps([], 2)


@pytest.mark.parametrize("kept", [zipped, legacy])
@pytest.mark.parametrize("pickle", [DEEP, WIDE])
def test_pickles_that_would_never_be_read(
    checkpoint: Path, pickle: bytes, kept: Callable[[bytes], bytes]
) -> None:
    (checkpoint / "vae" / "merged.ckpt").write_bytes(kept(pickle))
    refused(checkpoint, "merged.ckpt' .. is damaged or of another kind")


NAME = "module.encoder.conv_out.conv.bias"


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ema: ema.pop(NAME), "merged.ckpt' has no tensor encoder.conv_out.conv.bias"),
        (lambda ema: ema.update({NAME: 1}), "merged.ckpt' has no tensor encoder.conv_out.conv.bias"),
        (lambda ema: ema.update({NAME: torch.ones(4)}), "bias must be a tensor [16] .. got [4] of float32"),
        (lambda ema: ema.update({NAME: torch.ones(16).int()}), "bias must be .. got [16] of int32"),
        (lambda ema: ema.update({NAME: torch.ones(16, device="meta")}), "conv.bias has no values"),
        (lambda ema: ema.update({NAME: torch.ones(16).to_sparse()}), "bias must be a tensor"),
        (
            lambda ema: ema.update({NAME: torch.tensor([torch.nan, torch.inf, *[1.0] * 14])}),
            "merged.ckpt' is damaged: encoder.conv_out.conv.bias has 2 of 16 values that are not finite",
        ),
        (lambda ema: ema.update({NAME: nested_tensor([torch.ones(16)])}), "[16] .. got one in another form"),
        (lambda ema: ema.update({NAME: torch._neg_view(torch.ones(16))}), "got one in another form"),
    ],
)
def test_weights_that_do_not_fit(checkpoint: Path, change: Callable[[Any], Any], message: str) -> None:
    def changed(stored: Any) -> Any:
        change(stored["ema_state_dict"])
        return stored

    rewritten(checkpoint / "vae" / "merged.ckpt", changed)
    refused(checkpoint, message)


ONE = "transformer_blocks.0.attn1.to_q.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: tensors[ONE][0].fill_(torch.nan),
            f"safetensors' is damaged: {ONE} has 48 of 2,304 values that are not finite",
        ),
        (
            lambda tensors: tensors.update({"other": tensors.pop(ONE)}),
            f"{TRANSFORMER}' has no tensor {ONE}, which its configuration calls for",
        ),
        (
            lambda tensors: tensors.update({ONE: tensors[ONE].reshape(24, 96)}),
            f"{TRANSFORMER}': {ONE} must be a tensor [48, 48] .. got [24, 96]",
        ),
    ],
)
def test_a_transformer_that_is_wrong(checkpoint: Path, change: Callable[[Any], Any], message: str) -> None:
    tensors = load_file(checkpoint / WEIGHTS)
    change(tensors)
    save_file(tensors, checkpoint / WEIGHTS)
    refused(checkpoint, message)


@pytest.mark.parametrize("average", [[1, 2], torch.ones(3), "abc", 3])
def test_averages_of_another_kind(checkpoint: Path, average: object) -> None:
    rewritten(checkpoint / "vae" / "merged.ckpt", lambda stored: {**stored, "ema_state_dict": average})
    refused(checkpoint, "merged.ckpt' has no tensor encoder.down1.0.weight")


def configured(path: Path, **changes: object) -> None:
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


def moved(folder: Path, name: str) -> None:
    (folder / name).rename(folder / f"not-{name.rpartition('/')[2]}")


VAE, TEXT, SIZES = "vae/config.json", "text_encoder/config.json", f"{TRANSFORMER}/config.json"
TOKENS = "text_encoder/tokenizer.json"
HALF = {"scale": [1.0] * 4, "shift": [0.0] * 4}
INDEX = "diffusion_pytorch_model.safetensors.index.json"
WEIGHTS = f"{TRANSFORMER}/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: configured(folder / VAE, norm_type=None), "norm_type 'groupnorm' is not supported"),
        (lambda folder: configured(folder / VAE, base_channels=16), "must be a tensor .. got"),
        (lambda folder: (folder / VAE).write_text("{"), "vae/config.json .. JSON"),
        (lambda folder: configured(folder / TEXT, d_model="x"), "d_model must be a whole number, got 'x'"),
        (lambda folder: configured(folder / TEXT, num_layers=9), "no tensor encoder.block.2."),
        (
            lambda folder: configured(folder / TEXT, layer_norm_epsilon="x"),
            "is not that of an mT5: .. expected",
        ),
        (lambda folder: configured(folder / TEXT, dtype="x"), "is not that of an mT5: .. 'x'"),
        (lambda folder: configured(folder / TEXT, model_type="t5"), "must be 'mt5', got 't5' .. mt5-xxl"),
        (lambda folder: configured(folder / SIZES, num_layers=3), "and its configuration calls for"),
        (
            lambda folder: configured(folder / SIZES, num_layers=1),
            "weights that no module of its class takes",
        ),
        (lambda folder: configured(folder / SIZES, attention_head_dim=25), f"{TRANSFORMER}/config.json: att"),
        (lambda folder: configured(folder / VAE, latent_dim=4, **HALF), "checkpoint: with this VAE"),
        (lambda folder: moved(folder, VAE), "the checkpoint is incomplete: .. vae/config.json' is missing"),
        (lambda folder: moved(folder, "vae/merged.ckpt"), "vae/merged.ckpt' is missing"),
        (lambda folder: moved(folder, "text_encoder"), "name a copy of google/mt5-xxl with --text-encoder"),
        (lambda folder: moved(folder, "text_encoder/tokenizer_config.json"), "config.json' is missing"),
        (lambda folder: moved(folder, "text_encoder/tokenizer.json"), "spiece.model' is missing"),
        (lambda folder: (folder / TOKENS).write_text("{}"), "tokenizer.json' is not a tokenizer file"),
        (
            lambda folder: (folder / TEXT).with_name("added_tokens.json").mkdir(),
            "added_tokens.json' is not a",
        ),
        (lambda folder: os.mkfifo(folder / "text_encoder" / "added_tokens.json"), "' is not a file"),
        (
            lambda folder: (folder / "text_encoder" / "tokenizer_config.json").write_text("["),
            "tokenizer_config.json .. JSON",
        ),
        (lambda folder: moved(folder, WEIGHTS), f"{TRANSFORMER}/ has no file 'diffusion"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"x" * 99), "is not a safetensors file"),
        (
            lambda folder: (folder / TRANSFORMER / INDEX).write_text(
                '{"weight_map": {"a": "../../x", "b": "' + WEIGHTS.rpartition("/")[2] + '"}}'
            ),
            f"{TRANSFORMER}/ has no file '../../x'",
        ),
        (
            lambda folder: shutil.copytree(folder / TRANSFORMER, folder / f"{TRANSFORMER}_i2v"),
            f"several transformers ({TRANSFORMER}, {TRANSFORMER}_i2v): name one with --transformer",
        ),
        (lambda folder: moved(folder, "vae"), "is not in a format that can be converted"),
        (lambda folder: (folder / "model_index.json").write_text("{}"), "needs no conversion"),
    ],
)
def test_incomplete_checkpoints(checkpoint: Path, change: Callable[[Path], Any], message: str) -> None:
    change(checkpoint)
    refused(checkpoint, message)


def test_a_checkpoint_that_is_not_converted_says_how(published: Path) -> None:
    with pytest.raises(InputError) as error:
        find_model(str(published))
    assert says(str(error.value), "model_index.json is missing: `paradit convert FOLDER` makes")


def test_other_words_that_are_wrong(checkpoint: Path) -> None:
    refused(checkpoint, f"no transformer 'any': it has {TRANSFORMER}", transformer="any")
    refused(checkpoint / "vae", "is not in a format that can be converted")
    refused(checkpoint / "there", "there' does not exist")
    output = converted(checkpoint, transformer=TRANSFORMER)
    refused(checkpoint, "model' exists: name a new folder")
    with pytest.raises(InputError, match="its parent folder does not exist"):
        convert(find(checkpoint, Given()), output / "no" / "model", lambda *_: None)


def test_nothing_is_left_of_an_interrupted_conversion(checkpoint: Path) -> None:
    def interrupt(name: str, *_: int) -> None:
        if name.startswith("transformer/"):
            raise KeyboardInterrupt

    before = sorted(checkpoint.parent.iterdir())
    with pytest.raises(KeyboardInterrupt):
        convert(find(checkpoint, Given()), checkpoint.parent / "model", interrupt)
    assert sorted(checkpoint.parent.iterdir()) == before


def test_written_files_are_those_of_safetensors(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 5),
        "b": torch.randn(4, 6).T,
        "c": torch.randn(7).bfloat16(),
        "d": torch.tensor(2.0),
        "e": torch.empty(0, 3).half(),
    }
    told = []
    write_tensors(tmp_path / "ours", tensors, Path("theirs"), lambda *one: told.append(one))
    assert equal(load_file(tmp_path / "ours"), tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "theirs")
    assert (tmp_path / "ours").stat().st_size <= (tmp_path / "theirs").stat().st_size + 64
    assert told[-1] == (174, 174)
