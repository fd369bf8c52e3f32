"""LoRAs merged while weights are read: the bits that diffusers' `fuse_lora` makes, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import HunyuanVideoPipeline, WanImageToVideoPipeline, WanPipeline
from peft import LoraConfig, get_peft_model_state_dict
from safetensors import safe_open
from torch import Tensor

from lora_files import LINEARS, fused, kohya, original, random_lora, saved
from paradit.models.common import lora_weights
from paradit.models.common.loading import check_loras
from paradit.models.common.lora_weights import LoraWeights
from paradit.models.common.stored_weights import StoredWeights
from paradit.models.find_lora import with_loras
from paradit.models.lora import Lora, layer_of
from paradit.models.spec import ModelSpec, read_spec
from paradit.pipeline import load
from tiny import save_folder, save_hunyuan_folder, transformer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
EVERYTHING = (
    rf"{LINEARS}|proj_out|patch_embedding|condition_embedder\..*linear_[12]|condition_embedder\.time_proj"
)
ENDS = rf"{LINEARS}|proj_out|condition_embedder\.text_embedder\.linear_[12]|condition_embedder\.time_proj"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    made = {name: save_folder(name, root / name) for name in ("wan21", "wan22_a14b")}
    return {**made, "hunyuan": save_hunyuan_folder(root / "hunyuan")}


def merged(spec: ModelSpec, dtype: str, expert: int = 0) -> dict[str, Tensor]:
    assert check_loras(spec) == []
    return dict(load(spec, dtype, stages=("denoise",)).experts[expert].module.state_dict())  # type: ignore[attr-defined]


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert value.dtype == wanted[name].dtype, name
        assert torch.equal(value, wanted[name]), name


FORMS: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "diffusers": lambda tensors: tensors,
    "original": original,
    "comfyui": lambda tensors: original(tensors, alpha=5.0),
    "kohya": lambda tensors: kohya(tensors, alpha=0.1),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_file_is_merged_as_diffusers_does(
    form: str, dtype: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = folders["wan21"]
    pipe = WanPipeline.from_pretrained(folder, dtype=DTYPES[dtype])
    modules = {"diffusers": EVERYTHING, "original": ENDS}.get(form, LINEARS)
    tensors = random_lora(pipe.transformer, modules, biases=form in ("diffusers", "original"))
    path = saved(FORMS[form](tensors), tmp_path / "lora.safetensors")
    plain = {name: value.clone() for name, value in pipe.transformer.state_dict().items()}
    wanted = fused(pipe, [(path, 0.7)])
    assert_equal(merged(with_loras(read_spec(folder), [f"{path}=0.7"]), dtype), wanted)
    changed = [name for name, value in wanted.items() if not torch.equal(value, plain[name])]
    assert len(changed) == sum(not key.endswith("lora_A.weight") for key in tensors)


def test_names_without_a_prefix_are_understood(folders: dict[str, Path], tmp_path: Path) -> None:
    spec = read_spec(folders["wan21"])
    tensors = random_lora(transformer())
    wanted = merged(with_loras(spec, [saved(tensors, tmp_path / "0.safetensors")]), "fp32")
    bare = {key.removeprefix("transformer."): value for key, value in tensors.items()}
    peft = {f"base_model.model.{key}": value for key, value in bare.items()}
    others = {k.removeprefix("diffusion_model."): v for k, v in original(tensors).items()}
    for form in (bare, peft, others):
        assert_equal(merged(with_loras(spec, [saved(form, tmp_path / "1.safetensors")]), "fp32"), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_several_files_and_settings_of_peft(dtype: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """A file may have peft's settings in its header, with ranks and alphas that differ by module."""
    folder = folders["wan21"]
    pipe = WanPipeline.from_pretrained(folder, dtype=DTYPES[dtype])
    first = saved(random_lora(pipe.transformer), tmp_path / "first.safetensors")
    second = tmp_path / "second.safetensors"
    other = transformer()
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["to_q", "to_out.0", "net.2"],
        rank_pattern={"attn1.to_q": 2},
        alpha_pattern={r"blocks\.1\.ffn\.net\.2": 3},
        use_rslora=True,
        init_lora_weights=False,
    )
    other.add_adapter(config)
    WanPipeline.save_lora_weights(
        tmp_path,
        get_peft_model_state_dict(other),
        weight_name=second.name,
        transformer_lora_adapter_metadata=other.peft_config["default"].to_dict(),
    )
    spec = with_loras(read_spec(folder), [f"{second}=-0.4", f"{first}=1.3"])
    assert_equal(merged(spec, dtype), fused(pipe, [(second, -0.4), (first, 1.3)]))


def test_each_expert_gets_its_own(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders["wan22_a14b"]
    pipe = WanPipeline.from_pretrained(folder)
    paths = [
        saved(random_lora(pipe.transformer, seed=seed), tmp_path / f"{seed}.safetensors") for seed in (0, 1)
    ]
    spec = with_loras(read_spec(folder), [f"{paths[0]}=0.5@high", f"{paths[1]}@low", f"{paths[0]}@low"])
    assert_equal(merged(spec, "fp32", 0), fused(pipe, [(paths[0], 0.5)]))
    assert_equal(merged(spec, "fp32", 1), fused(pipe, [(paths[1], 1.0), (paths[0], 1.0)], "transformer_2"))


def test_hunyuan_video(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders["hunyuan"]
    pipe = HunyuanVideoPipeline.from_pretrained(folder)
    modules = r".*blocks\.\d+\.(attn\.(to_[qkv]|add_q_proj|to_add_out)|ff\.net\.2|proj_mlp|norm.*linear)"
    path = saved(random_lora(pipe.transformer, modules), tmp_path / "lora.safetensors")
    spec = with_loras(read_spec(folder), [f"{path}=0.7"])
    assert_equal(merged(spec, "fp32"), fused(pipe, [(path, 0.7)]))


def test_a_text_to_video_lora_on_an_image_to_video_model(tmp_path: Path) -> None:
    module = transformer("i2v")
    module.save_pretrained(tmp_path / "model")
    tensors = original(random_lora(transformer()))
    path = saved(tensors, tmp_path / "lora.safetensors")
    lora = Lora(file="lora", path=str(path), sha256="")
    weights = LoraWeights(lora, WanImageToVideoPipeline.lora_state_dict)
    stored = StoredWeights(tmp_path / "model", torch.float32, torch.device("cpu"), loras=[weights])
    assert stored.check_loras() == []
    found = stored.without_layers(())
    pipe = WanImageToVideoPipeline(
        tokenizer=None, text_encoder=None, vae=None, scheduler=None, transformer=module
    )
    assert_equal(dict(found.state_dict()), fused(pipe, [(path, 1.0)]))


def test_only_the_parts_of_layers_that_are_kept_are_read(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    class Counted:
        """A safetensors file that notes the names of the tensors that are read."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.file = safe_open(*arguments, **options)

        def __enter__(self) -> Any:
            self.file.__enter__()
            return self

        def __exit__(self, *_: object) -> None:
            self.file.__exit__(*_)

        def metadata(self) -> Any:
            return self.file.metadata()

        def get_tensor(self, key: str) -> Tensor:
            read.append(key)
            return self.file.get_tensor(key)

    for number, form in enumerate((FORMS["diffusers"], FORMS["comfyui"], FORMS["kohya"])):
        tensors = form(random_lora(transformer()))
        path = saved(tensors, tmp_path / f"{number}.safetensors")
        spec = with_loras(read_spec(folders["wan21"]), [path])
        assert check_loras(spec) == []
        expected = merged(spec, "fp32")
        monkeypatch.setattr(lora_weights, "safe_open", Counted)
        (found,) = load(spec, "fp32", stages=("denoise",), layers=False).experts
        assert read == []
        found.keep_layers(range(1, 2))
        assert set(read) == {key for key in tensors if layer_of(key) == (False, 1)}
        assert len(read) == len(set(read)) == len(tensors) // 2
        for name, value in found.module.blocks[0].state_dict().items():  # type: ignore[attr-defined]
            assert torch.equal(value, expected[f"blocks.1.{name}"])
        read.clear()
        monkeypatch.undo()
