"""Specs of models: exact counts, geometry and defaults, read without torch."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

from paradit.config.errors import InputError
from paradit.models.published import published_spec
from paradit.models.registry import FAMILIES, family, supported_pipelines
from paradit.models.spec import read_spec
from paradit.models.umt5 import UMT5Config as UMT5
from paradit.models.umt5 import umt5_parameters
from paradit.models.wan.spec import transformer_spec
from tiny import save_folder, transformer

# Transformer configs of the published checkpoints, huggingface.co/Wan-AI/*-Diffusers: the fields that differ
# from the class's defaults.
PUBLISHED = {
    "Wan2.1-T2V-1.3B": {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
    "Wan2.1-T2V-14B, Wan2.2-T2V-A14B": {},
    "Wan2.2-TI2V-5B": {
        "num_attention_heads": 24,
        "ffn_dim": 14336,
        "num_layers": 30,
        "in_channels": 48,
        "out_channels": 48,
    },
    "Wan2.1-I2V-14B": {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120},
    "Wan2.1-FLF2V-14B": {
        "in_channels": 36,
        "image_dim": 1280,
        "added_kv_proj_dim": 5120,
        "pos_embed_seq_len": 514,
    },
    "other": {"num_layers": 1, "num_attention_heads": 2, "cross_attn_norm": False, "patch_size": (2, 2, 4)},
}


@pytest.mark.parametrize("config", PUBLISHED.values(), ids=PUBLISHED.keys())
def test_parameter_count_is_the_class_s(config: Any) -> None:
    with torch.device("meta"):
        model = WanTransformer3DModel(**config)
    assert transformer_spec(config).num_parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("timesteps", [1, 48])
@torch.no_grad()
def test_flops_are_those_counted(timesteps: Any) -> None:
    model = transformer()
    spec = transformer_spec(model.config)
    latents, text = torch.randn(1, 16, 3, 8, 8), torch.randn(1, 20, 32)
    timestep = torch.tensor([3]) if timesteps == 1 else torch.full((1, timesteps), 3)
    # The counter does not know the fused CPU kernel; the math backend consists of matrix products.
    math_kernel = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with FlopCounterMode(display=False) as counter, math_kernel:
        model(latents, timestep, text)
    expected = spec.flops(48, text_tokens=20, timesteps=timesteps) + spec.context_flops(20)
    assert counter.get_total_flops() == expected


def test_reads_a_folder(tmp_path: Path) -> None:
    spec = read_spec(save_folder("wan22_a14b", tmp_path, name="tiny", width=64, train_frames=[5, 9]))
    assert spec.name == "tiny"
    assert spec.pipeline_class == "WanPipeline"
    assert len(spec.transformers) == 2
    assert spec.boundary_ratio == 0.875
    assert not spec.expand_timesteps
    assert spec.text_encoder_dim == spec.transformers[0].text_dim == 32
    assert (spec.defaults.width, spec.defaults.height, spec.defaults.num_frames) == (64, 480, 81)
    assert (spec.defaults.num_inference_steps, spec.defaults.train_frames) == (40, (5, 9))
    assert (spec.defaults.guidance_scale, spec.defaults.guidance_scale_2) == (4.0, 3.0)
    by_component = {weights.component: weights for weights in spec.weights}
    assert by_component["transformer_2"].parameters == spec.transformers[1].num_parameters
    stored = (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert by_component["vae"].file_bytes == stored


def test_geometry(tmp_path: Path) -> None:
    spec = read_spec(save_folder("wan22_ti2v", tmp_path))
    assert spec.expand_timesteps
    assert spec.vae.latent_shape(121, 704, 1280) == (48, 31, 44, 80)
    assert spec.tokens(121, 704, 1280) == 31 * 22 * 40
    assert spec.size_multiple == 32
    assert (spec.defaults.width, spec.defaults.height, spec.defaults.fps) == (1280, 704, 24)


def test_memory_grows_with_what_is_asked(tmp_path: Path) -> None:
    spec = read_spec(save_folder("wan21", tmp_path))
    small, long = (spec.memory_bytes(frames, 480, 832, 2) for frames in (17, 81))
    assert small["weights"] == long["weights"] > 0
    assert small["decode"] == long["decode"]  # frames are written as they are decoded
    assert small["activations"] < long["activations"]
    assert long["peak"] <= sum(value for part, value in long.items() if part != "peak")


def test_refuses_what_it_cannot_read(tmp_path: Path) -> None:
    folder = save_folder("wan21", tmp_path, num_frame=5)
    with pytest.raises(InputError, match=r"num_frame\b.*num_frames"):
        read_spec(folder)
    (folder / "paradit.json").write_text("[")
    with pytest.raises(InputError, match="JSON"):
        read_spec(folder)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(InputError, match=r"FluxPipeline.*WanPipeline"):
        read_spec(folder)


def test_a_sharded_component_is_counted_once(tmp_path: Path) -> None:
    folder = save_folder("wan21", tmp_path)
    plain = read_spec(folder).weights
    transformer().save_pretrained(folder / "transformer", max_shard_size="100KB")
    assert len(list((folder / "transformer").glob("*-of-*.safetensors"))) > 1
    assert [w.parameters for w in read_spec(folder).weights] == [w.parameters for w in plain]


def test_specs_import_no_torch(tmp_path: Path) -> None:
    folder = save_folder("wan21", tmp_path)
    code = (
        "import sys, pathlib, paradit; from paradit.models.spec import read_spec;"
        "read_spec(pathlib.Path(sys.argv[1]));"
        "print([name for name in ('torch', 'diffusers', 'transformers') if name in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "[]"


# google/umt5-xxl, the text encoder of every published Wan, and small ones.
@pytest.mark.parametrize(
    "config",
    [
        {"vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64},
        {"vocab_size": 30, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4,
         "relative_attention_num_buckets": 16},
    ],
)  # fmt: skip
def test_text_encoder_count_is_the_class_s(config: Any) -> None:
    with torch.device("meta"):
        model = UMT5EncoderModel(UMT5Config(feed_forward_proj="gated-gelu", **config))
    assert umt5_parameters(UMT5(**config)) == sum(p.numel() for p in model.parameters())


def test_a_model_whose_weights_are_not_downloaded_yet(tmp_path: Path) -> None:
    whole = save_folder("wan21", tmp_path / "whole")
    there = {w.component: w.parameters for w in read_spec(whole).weights}
    for file in whole.glob("*/*.safetensors"):
        file.unlink()
    index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (whole / "text_encoder" / "model.safetensors.index.json").write_text(json.dumps(index))
    expected = {w.component: w.parameters for w in read_spec(whole).weights}
    assert expected == there | {"vae": 0}


def test_supported_classes() -> None:
    from_pictures = ("WanImageToVideoPipeline", "WanVideoToVideoPipeline")
    names = ("WanPipeline", *from_pictures, "WanDMDPipeline", "HunyuanVideoPipeline", "OpenSoraPlanPipeline")
    assert supported_pipelines() == names
    assert family("WanPipeline") is FAMILIES.find("wan")
    with pytest.raises(InputError, match=r"supported: WanPipeline, .*OpenSoraPlanPipeline"):
        family("CogVideoXPipeline")


@pytest.mark.parametrize(
    ("variant", "takes", "needs"),
    [
        ("i2v", {"image"}, (True, False)),
        ("flf2v", {"image", "last_image"}, (True, True)),
        ("i2v_a14b", {"image", "last_image"}, (True, False)),
        ("wan22_ti2v", {"image"}, (False, False)),
        ("wan22_a14b", set(), (False, False)),
        ("wan21", {"video"}, (False, False)),
    ],
)
def test_what_a_model_takes(variant: str, takes: set[str], needs: tuple[bool, bool], tmp_path: Path) -> None:
    spec = read_spec(save_folder(variant, tmp_path))
    assert spec.takes == takes
    assert (spec.needs_image, spec.needs_last_image) == needs
    counted = {part.component: part.parameters for part in spec.weights}
    assert counted["transformer"] == spec.transformers[0].num_parameters
    for file in tmp_path.glob("*/*.safetensors"):
        file.unlink()
    assert {w.component: w.parameters for w in read_spec(tmp_path).weights} == counted | {"vae": 0}


def test_a_folder_may_say_that_it_takes_pictures(tmp_path: Path) -> None:
    spec = read_spec(save_folder("wan21", tmp_path / "a", takes=["image", "last_image"]))
    assert spec.takes == {"image", "last_image", "video"}
    assert not spec.needs_image
    with pytest.raises(InputError, match="takes is for a text-to-video model with one transformer"):
        read_spec(save_folder("wan22_ti2v", tmp_path / "b", takes=["last_image"]))
    with pytest.raises(InputError, match=r"paradit.json: takes must be .*last_image.*'video'"):
        read_spec(save_folder("wan21", tmp_path / "c", takes=["video"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 16}, "a WanImageToVideoPipeline with this VAE has 36 in_channels, got 16"),
        ({"image_dim": 32}, "image_dim is 32, but image_encoder has a hidden_size of 24"),
        ({"pos_embed_seq_len": 514}, "pos_embed_seq_len must be 10 for two pictures"),
    ],
)
def test_refuses_a_transformer_that_the_pipeline_does_not_fit(
    change: dict[str, int], message: str, tmp_path: Path
) -> None:
    config = save_folder("i2v", tmp_path) / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(InputError, match=message):
        read_spec(tmp_path)


def test_refuses_a_transformer_that_attends_to_pictures_without_their_encoder(tmp_path: Path) -> None:
    index = save_folder("i2v", tmp_path) / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"image_encoder": [None, None]}))
    with pytest.raises(InputError, match="names no image_encoder"):
        read_spec(tmp_path)


def test_published_models_that_make_videos_from_pictures() -> None:
    small, large, ends, experts, any_start = (
        published_spec(f"Wan-AI/{name}iffusers")
        for name in (
            "Wan2.1-I2V-14B-480P-D",
            "Wan2.1-I2V-14B-720P-D",
            "Wan2.1-FLF2V-14B-720P-d",
            "Wan2.2-I2V-A14B-D",
            "Wan2.2-TI2V-5B-D",
        )
    )
    for spec in (small, large):
        assert (spec.defaults.num_inference_steps, spec.defaults.guidance_scale) == (50, 5.0)
        assert (spec.transformers[0].images, spec.transformers[0].image_tokens) == (1, 257)
    assert (large.defaults.width, large.defaults.height) == (1280, 720)
    assert ends.transformers[0].image_tokens == 514
    assert (experts.defaults.num_inference_steps, experts.boundary_ratio) == (40, 0.9)
    assert (experts.defaults.guidance_scale, experts.defaults.guidance_scale_2) == (3.5, 3.5)
    assert any_start.takes == {"image"}
    with torch.device("meta"):
        encoder = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=1280,
                intermediate_size=5120,
                num_hidden_layers=32,
                num_attention_heads=16,
                image_size=224,
                patch_size=14,
            )
        )
    (weights,) = (part for part in small.weights if part.component == "image_encoder")
    assert weights.parameters == sum(p.numel() for p in encoder.parameters())
