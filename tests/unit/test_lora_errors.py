"""LoRA files that cannot be merged: each is refused in one line, before any weights are read."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lora_files import kohya, original, random_lora, saved
from messages import says
from paradit.config.errors import InputError
from paradit.models import find_lora
from paradit.models.common.loading import check_loras
from paradit.models.find_lora import with_loras, with_same_loras
from paradit.models.spec import ModelSpec, read_spec
from tiny import save_folder, transformer

ZEROS = torch.zeros(3, 64)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return read_spec(save_folder("wan21", tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return read_spec(save_folder("wan22_a14b", tmp_path_factory.mktemp("models") / "two"))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(random_lora(transformer()), tmp_path_factory.mktemp("loras") / "good.safetensors")


def refusal(spec: ModelSpec, *asked: str | Path) -> str:
    with pytest.raises(InputError) as refused:
        check_loras(with_loras(spec, asked))
    assert "\n" not in str(refused.value)
    return str(refused.value)


ASKED = {
    "{good}=x": "scale after = must be a number from -100 to 100, got 'x'",
    "{good}=": "scale after = must be a number .. got ''",
    "{good}=nan": "got 'nan'",
    "{good}=inf": "got 'inf'",
    "{good}=80%": "got '80%'",
    "{good}=1e9": "got '1e9'",
    "{good}@mid": "expert after @ must be high or low, got 'mid'",
    "{good}@": "expert after @ must be high or low, got ''",
    "{good}@high": "names the expert high, but 'tiny' has only one transformer: leave @high out",
    "{good}@high=0.5": "scale comes before the expert: .. good.safetensors=0.5@high'",
    "{folder}": "is a folder: name the file in it (good.safetensors)",
    "{folder}/god.safetensors": "does not exist: did you mean .. good.safetensors'?",
    "{folder}/old.pt": "is not a safetensors file: convert it, by safetensors.torch.save_file",
    "": "lora is empty",
    "somebody": "does not exist: give a safetensors file, or org/name/FILE.safetensors",
    "https://huggingface.co/org/name/resolve/main/a/b.safetensors?download=true": (
        "give it as 'org/name/a/b.safetensors'"
    ),
}


@pytest.mark.parametrize("asked", ASKED)
def test_what_is_asked_for(asked: str, spec: ModelSpec, good: Path) -> None:
    said = refusal(spec, asked.format(good=good, folder=good.parent))
    assert says(said, ASKED[asked]), said


def test_two_experts(two: ModelSpec, good: Path) -> None:
    said = refusal(two, good)
    assert says(said, "name an expert .. which has two: .. good.safetensors@high' .. good.safetensors@low'")
    found = with_loras(two, [f"{good}=0.5@High", f"{good}@low"]).loras
    assert [(lora.scale, lora.expert, lora.index) for lora in found] == [(0.5, "high", 0), (1.0, "low", 1)]


@pytest.mark.parametrize("name", ["a=1.safetensors", "a@b.safetensors", "a=2@low", "a b é.safetensors"])
def test_any_name_of_a_file(name: str, spec: ModelSpec, good: Path, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(good.read_bytes())
    (lora,) = with_loras(spec, [path]).loras
    assert (lora.path, lora.scale) == (str(path), 1.0)
    (lora,) = with_loras(spec, [f"{path}=-0.5"]).loras
    assert (lora.path, lora.scale) == (str(path), -0.5)


def one(key: str) -> dict[str, Tensor]:
    return {**random_lora(transformer()), key: ZEROS}


def one_of(values: Tensor) -> dict[str, Tensor]:
    """Return a LoRA with these values in one of its tensors."""
    return {**random_lora(transformer()), "transformer.blocks.0.attn1.to_q.lora_A.weight": values}


CONTENTS: dict[str, tuple[dict[str, Tensor], str]] = {
    "dora": (one("diffusion_model.blocks.0.self_attn.q.dora_scale"), "cannot be merged: it is DoRA"),
    "dora of peft": (one("transformer.blocks.0.attn1.to_q.lora_magnitude_vector"), "it is DoRA"),
    "lokr": (one("diffusion_model.blocks.0.self_attn.q.lokr_w1"), "it is LoKr .. self_attn.q.lokr_w1"),
    "text encoder": (one("lora_te_layers_0.lora_down.weight"), "it is a LoRA of the text encoder"),
    "whole model": ({"blocks.0.attn1.to_q.weight": ZEROS}, "no LoRA keys: it holds blocks.0.attn1.to_q.wei"),
    "empty": ({}, "no LoRA keys: it holds nothing"),
    "wider": (random_lora(transformer(heads=4)), "channels wide, and 'tiny' has 64"),
    "wider, original": (original(random_lora(transformer(heads=4))), "are 128 channels wide, and"),
    "deeper": (random_lora(transformer(layers=3)), "for another model: it has 3 layers, and 'tiny' has 2"),
    "other inner width": (random_lora(transformer(ffn_dim=128)), "does not fit .. blocks.0.ffn.net.0.proj"),
    "image": (
        original(random_lora(transformer("i2v"), r".*(to_[qkv]|add_[kv]_proj)")),
        "blocks.0.attn2.add_k",
    ),
    "a norm": (one("transformer.blocks.0.norm2.lora_A.weight"), "no weights for blocks.0.norm2.lora_A.wei"),
    "one factor": (
        one("transformer.proj_out.lora_A.weight"),
        "no weights for proj_out.lora_A.weight [3, 64]",
    ),
    "foreign alphas": (
        one("transformer.blocks.0.attn1.to_q.alpha"),
        "no weights for blocks.0.attn1.to_q.alpha",
    ),
    "whole numbers": (
        one_of(torch.zeros(3, 64, dtype=torch.int32)),
        "has values of I32, not of one of F64, F32",
    ),
    "not a number": (
        one_of(torch.full((3, 64), torch.nan)),
        "is damaged: transformer.blocks.0.attn1.to_q.lora_A",
    ),
    "infinite in fp8": (
        one_of(torch.full((3, 64), torch.inf, dtype=torch.float8_e5m2)),
        "is damaged: .. not finite",
    ),
    "alpha not a number": (
        kohya(random_lora(transformer()), alpha=float("nan")),
        "is damaged: .. .alpha has",
    ),
    "alphas missing": (
        {key: one for key, one in kohya(random_lora(transformer()), alpha=1).items() if "alpha" not in key},
        "cannot be converted by diffusers (KeyError: 'blocks_0_self_attn_q.alpha')",
    ),
    "several alphas": (
        {
            key: torch.ones(2) if key.endswith("alpha") else one
            for key, one in kohya(random_lora(transformer()), alpha=1).items()
        },
        "cannot be converted by diffusers (RuntimeError",
    ),
    "of rank 0": (
        {key: one[:0] if "lora_A" in key else one[:, :0] for key, one in random_lora(transformer()).items()},
        "has no weights for blocks.0.attn1.to_k.lora_A.weight [0, 64]",
    ),
    "unknown key": (one("diffusion_model.lora_router.weight"), "cannot be converted by diffusers"),
    "kohya's, not whole": ({"lora_unet_blocks_0_self_attn_q.lora_down.weight": ZEROS}, "(KeyError"),
}


@pytest.mark.parametrize("content", CONTENTS)
def test_what_the_file_holds(content: str, spec: ModelSpec, tmp_path: Path) -> None:
    tensors, wanted = CONTENTS[content]
    said = refusal(spec, saved(tensors, tmp_path / "lora.safetensors"))
    assert says(said, wanted), said


def test_files_that_are_broken(spec: ModelSpec, good: Path, tmp_path: Path) -> None:
    content = good.read_bytes()
    path = tmp_path / "lora.safetensors"
    for broken, wanted in {
        b"": "is not a safetensors file, or is cut off: download it again",
        b"PK\x03\x04" + bytes(2000): "is not a safetensors file: convert it",
        content[:4000]: "is not a safetensors file, or is cut off: download it again",
        content[:-100]: "is cut off: it has .. bytes",
    }.items():
        path.write_bytes(broken)
        assert says(refusal(spec, path), wanted)
    path.unlink()
    path.mkdir()
    assert says(refusal(spec, path), "is a folder: name the file in it")
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "zero.safetensors").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        assert says(refusal(spec, tmp_path / f"{name}.safetensors"), "is not a regular file")


def test_headers_that_are_wrong(spec: ModelSpec, good: Path, tmp_path: Path) -> None:
    content, path = good.read_bytes(), tmp_path / "lora.safetensors"
    length = int.from_bytes(content[:8], "little")
    header, rest = json.loads(content[8 : 8 + length]), content[8 + length :]
    first, entry = next((key, one) for key, one in header.items() if key != "__metadata__")
    begin, end = entry["data_offsets"]
    for wrong in (
        {"dtype": "Q4"},
        {"dtype": None},
        {"shape": [10**18, 64]},
        {"shape": [-3, -64]},
        {"data_offsets": [begin - 10**6, end]},
        {"data_offsets": [begin + 4, end + 4]},
    ):
        text = json.dumps({**header, first: entry | wrong}).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + rest)
        assert says(refusal(spec, path), "is not a valid safetensors file: Error while deserializing header")
    for text, wanted in {
        b'{"a":' * 50_000: "is not a safetensors file",
        json.dumps({**header, "__metadata__": [1]}).encode(): "is not a valid safetensors file",
    }.items():
        path.write_bytes(len(text).to_bytes(8, "little") + text + rest)
        assert says(refusal(spec, path), wanted)
    path.write_bytes(content + bytes(8))
    assert says(refusal(spec, path), "is not a valid safetensors file")


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ("{r", "cannot be read as JSON"),
        ("[1]", "must hold a JSON object, got [1]"),
        ('{"transformer.r": 0}', "r must be at least 1, got 0"),
        ('{"transformer.lora_alpha": "8"}', "lora_alpha must be a number, got '8'"),
        ('{"transformer.lora_alpha": NaN}', "lora_alpha must be a finite number"),
        ('{"transformer.alpha_pattern": {"(": 1}}', "'(' is not a regular expression: missing )"),
        ('{"transformer.rank_pattern": ["a"]}', "rank_pattern must be an object of whole numbers"),
        ('{"transformer.use_dora": true}', "cannot be merged: it is DoRA"),
    ],
)
def test_settings_that_are_wrong(settings: str, wanted: str, spec: ModelSpec, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file(random_lora(transformer()), path, metadata={"lora_adapter_metadata": settings})
    said = refusal(spec, path)
    assert says(said, wanted), said


def test_left_out_parts_are_warned_of(spec: ModelSpec, tmp_path: Path) -> None:
    """The original files may have changes of norms and of the patch embedding, which diffusers leaves out."""
    tensors = original(random_lora(transformer(), biases=True))
    norms = ("blocks.0.norm3.diff", "blocks.0.norm3.diff_b", "blocks.1.self_attn.norm_q.diff")
    dropped = {f"diffusion_model.{name}": torch.zeros(64) for name in (*norms, "patch_embedding.diff_b")}
    path = saved(tensors | dropped, tmp_path / "lora.safetensors")
    (said,) = check_loras(with_loras(spec, [path]))
    assert says(said, "lora.safetensors': as in diffusers .. and 1 more are not merged")
    assert sum(name in said for name in dropped) == 3


def test_a_run_that_goes_on_needs_the_same_file(spec: ModelSpec, good: Path, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    path.write_bytes(good.read_bytes())
    loras = with_loras(spec, [f"{path}=0.5"]).loras
    assert with_same_loras(spec, loras).loras == loras
    saved(random_lora(transformer(), seed=1), path)
    with pytest.raises(InputError, match=r"has changed since the run began, so the video would"):
        with_same_loras(spec, loras)
    path.unlink()
    with pytest.raises(InputError, match=r"does not exist.*the run began with it"):
        with_same_loras(spec, loras)


def test_bundled_loras_are_found_by_name(
    spec: ModelSpec, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "shapes-4step.safetensors").write_bytes(good.read_bytes())
    monkeypatch.setattr(find_lora, "bundled_folder", lambda: tmp_path / "shapes")
    (lora,) = with_loras(spec, ["shapes-4step=0.9"]).loras
    assert (Path(lora.path).parent.name, lora.scale, str(lora)) == ("loras", 0.9, "shapes-4step=0.9")
    assert says(refusal(spec, "shapes-4steps"), "did you mean 'shapes-4step'?")


def test_values_of_python(spec: ModelSpec, good: Path) -> None:
    wrong: list[object] = [str(good), good, None, 3, {str(good): 0.5}]
    for asked in wrong:
        with pytest.raises(InputError, match="loras must be a list, such as"):
            with_loras(spec, asked)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"loras must be paths, or texts such as .*, got 3"):
        with_loras(spec, [3])  # type: ignore[list-item]


def test_memory_of_merging(spec: ModelSpec, good: Path) -> None:
    """Merged weights are in no file that processes could share; one weight at a time is merged."""
    with_lora = with_loras(spec, [good])
    assert spec.is_stored_in(4)
    assert not with_lora.is_stored_in(4)
    size, stages = (1, 8, 8), ("denoise",)
    before, after = (one.rank_memory_bytes(*size, 4, stages) for one in (spec, with_lora))
    assert after["peak"] == max(before["peak"], after["weights"] + 64 * 6 * 64 * 16)
    assert with_lora.rank_memory_bytes(*size, 4, ("decode",)) == spec.rank_memory_bytes(*size, 4, ("decode",))


def test_no_torch_is_needed_to_check_a_header(spec: ModelSpec, good: Path) -> None:
    code = (
        "import sys, pathlib; from paradit.models.spec import read_spec;"
        "from paradit.models.find_lora import with_loras;"
        "print(with_loras(read_spec(pathlib.Path(sys.argv[1])), [sys.argv[2]]).loras[0].about());"
        "assert 'torch' not in sys.modules"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(spec.folder), str(good)], capture_output=True, text=True, check=True
    )
    assert json.loads(ran.stdout.replace("'", '"'))["file"] == good.name
