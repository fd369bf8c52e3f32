"""Model folders: what is found in them, and the error for each broken one; nothing is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import tiny
from messages import says
from paradit.config.errors import InputError
from paradit.models.folder import download_weights, find_model


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_folder("wan21", tmp_path_factory.mktemp("models") / "tiny-wan")


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    """Return a copy of a model folder, for a test to break."""
    return shutil.copytree(whole, tmp_path / "tiny-wan")


def refusal(model: Path | str) -> str:
    with pytest.raises(InputError) as caught:
        find_model(str(model))
    message = str(caught.value)
    assert "\n" not in message
    return message


def edit_index(model: Path, **changes: object) -> None:
    path = model / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_whole_folder_is_found(whole: Path) -> None:
    assert find_model(str(whole)) == whole
    download_weights(str(whole), whole)  # nothing to do


def test_components_may_be_links(model: Path) -> None:
    (model / "vae").rename(model.with_name("shared-vae"))
    (model / "vae").symlink_to(model.with_name("shared-vae"))
    find_model(str(model))


def test_absent_components_are_fine(model: Path) -> None:
    edit_index(model, transformer_2=[None, None], boundary_ratio=None, expand_timesteps=False)
    find_model(str(model))


def test_a_missing_folder_suggests_the_nearest(whole: Path) -> None:
    assert "did you mean" in refusal(whole.with_name("tiny-wam"))
    assert "tiny-wan" in refusal(whole.with_name("tiny-wam"))
    assert "did you mean 'shapes'" in refusal("shpes")
    assert "hub id" in refusal("/nowhere/at/all")


def test_a_file_is_not_a_model(whole: Path) -> None:
    assert "not a folder" in refusal(whole / "model_index.json")


@pytest.mark.parametrize(
    "missing",
    [
        "model_index.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "transformer/config.json",
        "text_encoder/model.safetensors",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/tokenizer.json",
    ],
)
def test_the_missing_file_is_named(model: Path, missing: str) -> None:
    (model / missing).unlink()
    message = refusal(model)
    assert "incomplete" in message
    assert missing in message or f"the folder {Path(missing).parent}/" in message


def test_a_missing_component(model: Path) -> None:
    shutil.rmtree(model / "transformer")
    assert "the folder transformer/ is missing" in refusal(model)
    edit_index(model, vae=[None, None])
    assert "names no vae" in refusal(model)


def test_a_broken_index(model: Path) -> None:
    (model / "model_index.json").write_text("{")
    assert "cannot be read as JSON" in refusal(model)


def test_an_unsupported_class_names_the_supported(model: Path) -> None:
    edit_index(model, _class_name="FluxPipeline")
    assert "FluxPipeline" in refusal(model)
    assert "WanPipeline" in refusal(model)


def test_pickled_weights_are_refused(model: Path) -> None:
    weights = model / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    message = refusal(model)
    assert "transformer/diffusion_pytorch_model.bin" in message
    assert "save_pretrained" in message


def test_every_shard_must_be_there(model: Path) -> None:
    weights = model / "transformer" / "diffusion_pytorch_model.safetensors"
    shards = {"a": "part-1-of-2.safetensors", "b": "part-2-of-2.safetensors"}
    weights.rename(weights.with_name(shards["a"]))
    weights.with_name(weights.name + ".index.json").write_text(json.dumps({"weight_map": shards}))
    assert "transformer/part-2-of-2.safetensors is missing" in refusal(model)


def test_an_index_that_names_no_files(model: Path) -> None:
    weights = model / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.with_name(weights.name + ".index.json").write_text('{"weight_map": ["a"]}')
    assert says(refusal(model), "weight_map .. got ['a'] (list)")


def test_weights_of_one_variant_only(model: Path) -> None:
    stem = "diffusion_pytorch_model"
    weights = model / "transformer" / f"{stem}.safetensors"
    weights.rename(weights.with_name(f"{stem}.fp16.safetensors"))
    assert find_model(str(model)) == model
    index = weights.with_name(f"{stem}.safetensors.index.json")  # comes with the small files
    index.write_text(json.dumps({"weight_map": {"a": f"{stem}-00001-of-00001.safetensors"}}))
    assert find_model(str(model)) == model
    vae = model / "vae" / f"{stem}.safetensors"
    vae.rename(vae.with_name(f"{stem}.bf16.safetensors"))
    assert says(refusal(model), "variants (bf16, fp16)")


def test_an_original_checkpoint_names_the_same_model_in_diffusers_format(model: Path) -> None:
    (model / "model_index.json").unlink()
    renamed = model.rename(model.with_name("Wan2.1-T2V-1.3B"))
    assert "use 'Wan-AI/Wan2.1-T2V-1.3B-Diffusers'" in refusal(renamed)


def test_weights_that_are_cut_off_or_not_there_at_all(model: Path) -> None:
    weights = model / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "copy it again" in refusal(model)
    weights.write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "git lfs pull" in refusal(model)
