"""Folders of Open-Sora-Plan: what is read of them, what is refused, and the scheduler."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import MT5Config, MT5EncoderModel

import small_open_sora_plan
from messages import says
from paradit.config.errors import InputError
from paradit.config.methods.method import resolve
from paradit.config.requests import Request
from paradit.models.find_lora import with_loras
from paradit.models.folder import find_model
from paradit.models.known_schedulers import is_known
from paradit.models.open_sora_plan.module import OpenSoraInpaint_v1_3, OpenSoraT2V_v1_3
from paradit.models.open_sora_plan.scheduler import VariancePreserving
from paradit.models.open_sora_plan.spec import SCHEDULER, transformer_spec
from paradit.models.open_sora_plan.transformer import OpenSoraPlanTransformer
from paradit.models.published import published_spec
from paradit.models.spec import read_spec
from paradit.models.umt5 import UMT5Config, mt5_parameters
from paradit.pipeline import load
from paradit.progress import Progress
from paradit.stages.encode import encode
from seam_inputs import grid_of
from tiny import forward


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_open_sora_plan.save_folder(tmp_path_factory.mktemp("osp") / "model")


def test_the_published_model() -> None:
    spec = published_spec("LanguageBind/Open-Sora-Plan-v1.3.0")
    assert [part.parameters for part in spec.weights] == [5_655_173_120, 2_771_981_600, 147_347_660]
    assert (spec.tokens(93, 352, 640), spec.text_length, spec.takes) == (24 * 22 * 40, 512, frozenset())
    request = resolve(Request(prompt="a cat"), spec)
    assert (request.num_inference_steps, request.guidance_scale, request.fps) == (100, 7.5, 18)
    assert "lowres, bad anatomy" in request.negative_prompt
    assert (
        resolve(Request(prompt="a cat", width=800, height=592), spec).height == 592
    )  # as in PipeDiT's paper


@pytest.mark.parametrize("kind", [OpenSoraT2V_v1_3, OpenSoraInpaint_v1_3])
def test_parameters_are_counted_as_in_the_class(kind: Any) -> None:
    with torch.device("meta"):
        model = kind(num_attention_heads=5, attention_head_dim=18, num_layers=3, caption_channels=44)
    config = {**model.config, "_class_name": kind.__name__}
    assert transformer_spec(config).num_parameters == sum(p.numel() for p in model.parameters())


def test_text_encoder_count_is_the_class_s() -> None:
    sizes: Any = {"vocab_size": 30, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 3, "num_heads": 4}
    with torch.device("meta"):
        model = MT5EncoderModel(MT5Config(**sizes))
    assert mt5_parameters(UMT5Config(**sizes)) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("takes_frames", [False, True])
@torch.no_grad()
def test_flops_are_those_counted(takes_frames: bool) -> None:
    model = small_open_sora_plan.transformer(takes_frames=takes_frames)
    spec = transformer_spec({**model.config, "_class_name": type(model).__name__})
    cut = OpenSoraPlanTransformer(model)
    latents, timestep, (embeds, mask) = small_open_sora_plan.inputs(model, (1, 3, 10, 10), lengths=(9,))
    # The counter does not know the fused CPU kernel; the math backend consists of matrix products.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        layout = cut.layout(grid_of(latents))
        forward(cut, cut.embed(latents, timestep, cut.context(embeds, mask), layout))
    assert counter.get_total_flops() == spec.flops(75, text_tokens=9) + spec.context_flops(9)


def test_what_a_model_takes(folder: Path, tmp_path: Path) -> None:
    spec = read_spec(find_model(str(folder)))
    assert (spec.takes, spec.needs_image, spec.flow) == (frozenset(), False, False)
    stored = {part.component: part.parameters for part in spec.weights}
    assert stored["transformer"] == spec.transformers[0].num_parameters
    taking = read_spec(small_open_sora_plan.save_folder(tmp_path, takes_frames=True))
    assert taking.takes == {"image", "last_image"}
    assert taking.needs_image
    with pytest.raises(InputError, match="image is missing"):
        resolve(Request(prompt="a cat"), taking)
    flow_only: dict[str, Any] = {
        "scheduler": "euler",
        "shift": 3.0,
        "timesteps": (9.0,),
        "preset": "fastwan-3",
    }
    for field, value in flow_only.items():
        with pytest.raises(
            InputError, match=f"^{field} is for flow models, and .* is not one: leave it out$"
        ):
            resolve(Request(prompt="a cat", **{field: value}), spec)


def test_takes_no_loras(folder: Path) -> None:
    for spec in (read_spec(folder), published_spec("LanguageBind/Open-Sora-Plan-v1.3.0")):
        with pytest.raises(InputError, match=f"lora 'a=0.5' must be left out: the model '{spec.name}' takes"):
            with_loras(spec, ["a=0.5"])
        assert with_loras(spec, ()) == spec


@pytest.mark.parametrize(
    ("component", "changes", "said"),
    [
        ("transformer", {"attention_head_dim": 20}, "attention_head_dim must be a multiple of 6"),
        ("transformer", {"patch_size_t": 2}, "transformer/config.json: patch_size_t 2 is not supported"),
        ("transformer", {"caption_channels": 64}, "caption_channels of the transformer must be 32"),
        ("transformer", {"_class_name": "OpenSoraT2V_v1_5"}, "_class_name must be OpenSoraT2V_v1_3"),
        ("transformer", {"out_channels": 16}, "out_channels of the transformer must be 8"),
        ("", {"scheduler": ["diffusers", "DDIMScheduler"]}, "scheduler of this model must be Euler"),
    ],
)  # fmt: skip
def test_refuses_what_does_not_fit(
    component: str, changes: dict[str, Any], said: str, folder: Path, tmp_path: Path
) -> None:
    changed = copied(folder, tmp_path)
    file = changed / component / ("config.json" if component else "model_index.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(InputError) as error:
        read_spec(changed)
    assert says(str(error.value), said)


def copied(folder: Path, copy: Path) -> Path:
    """Return a folder with the small files of another one."""
    for file in folder.rglob("*.json"):
        target = copy / file.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    return copy


def test_prompts_are_put_into_the_template(folder: Path) -> None:
    spec = read_spec(folder)
    model = load(spec, "fp32", stages=("encode",))
    request = resolve(Request(prompt="a {cat}", negative_prompt="wings"), spec)
    encoded = encode(model, request, Progress())
    wrapped = "\n    high quality, high aesthetic, a {cat}\n    "
    for (embeds, mask), text in zip(encoded, (wrapped, "wings"), strict=True):
        assert mask.sum() == len(text) + 1  # a token for each letter, and the end
        alone, _ = model.encode_prompt(text)
        assert torch.equal(embeds, alone)


@pytest.mark.parametrize("changes", [{}, {"rescale_betas_zero_snr": False}, {"timestep_spacing": "leading"}])
def test_scheduler_takes_the_steps_of_diffusers(changes: dict[str, Any]) -> None:
    own = EulerAncestralDiscreteScheduler.from_config(SCHEDULER | changes)
    ours = VariancePreserving.from_config(own.config)
    assert is_known(type(own).__name__, own.config) == (changes == {})
    noise = torch.randn(1, 8, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    for scheduler in (own, ours):
        scheduler.set_timesteps(5)
    expected, latents = noise * own.init_noise_sigma, noise * ours.init_noise_sigma
    for step, timestep in enumerate(own.timesteps):
        scaled = own.scale_model_input(expected, timestep)
        torch.testing.assert_close(latents, scaled, rtol=0, atol=1e-5)
        generators = [torch.Generator().manual_seed(step) for _ in range(2)]
        expected = own.step(0.5 * scaled.sin(), timestep, expected, generator=generators[0]).prev_sample
        latents, *_ = ours.step(0.5 * latents.sin(), timestep, latents, generator=generators[1])
    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-5)
    again = VariancePreserving.from_config(own.config)
    again.set_timesteps(5)
    assert again.step(noise.bfloat16(), own.timesteps[0], noise)[0].dtype == torch.float32
