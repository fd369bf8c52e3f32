"""Generated videos that equal WanPipeline's, and a streamed decode that equals the VAE's own."""

import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanPipeline
from safetensors.torch import save_file

import paradit
from paradit import memory_check
from paradit.cli.main import app
from paradit.config.errors import InputError
from paradit.config.methods.method import resolve
from paradit.config.placement import Placement
from paradit.config.requests import Request
from paradit.models.spec import read_spec
from paradit.pipeline import load
from paradit.progress import Event, Progress, Stepped
from paradit.text_to_video import text_to_video
from tiny import VARIANTS, decoded, save_folder

SIZE: dict[str, Any] = {"width": 64, "height": 32, "num_frames": 9, "num_inference_steps": 4}
# 32 pixels are one token of the TI2V model: compression 16, patch 2.
PROMPT, NEGATIVE, SEED = "a red circle", "blurry", 11


@pytest.fixture(scope="module", params=VARIANTS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return save_folder(request.param, tmp_path_factory.mktemp(request.param))


def expected(
    folder: Path, dtype: torch.dtype = torch.float32, output_type: str = "latent", **settings: Any
) -> Any:
    pipeline = WanPipeline.from_pretrained(folder, dtype={"vae": torch.float32, "default": dtype})
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(SEED)
    return pipeline(
        PROMPT, negative_prompt=NEGATIVE, generator=generator, output_type=output_type, **SIZE, **settings
    ).frames


def ours(folder: Path, dtype: str = "fp32", **settings: Any) -> Any:
    request = Request(prompt=PROMPT, negative_prompt=NEGATIVE, seed=SEED, **SIZE, **settings)
    spec = read_spec(folder)
    return text_to_video(load(spec, dtype), resolve(request, spec), Progress())


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("guidance_scale", [1.0, 6.0])
def test_equals_the_pipeline(folder: Path, guidance_scale: float | None, dtype: str) -> None:
    video = ours(folder, dtype, guidance_scale=guidance_scale)
    torch_dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    assert video.latents.dtype == torch.float32
    assert torch.equal(video.latents, expected(folder, torch_dtype, guidance_scale=guidance_scale))


def test_frames_equal_the_pipeline(folder: Path) -> None:
    frames = np.stack(list(ours(folder).frames()))
    defaults = read_spec(folder).defaults
    scales: dict[str, Any] = {"guidance_scale": defaults.guidance_scale}
    if defaults.guidance_scale_2:
        scales["guidance_scale_2"] = defaults.guidance_scale_2
    video = expected(folder, output_type="np", **scales)[0]
    assert frames.shape == (9, 32, 64, 3)
    assert np.array_equal(frames, (video * 255).round().astype("uint8"))


def test_both_experts_serve(tmp_path: Path) -> None:
    spec = read_spec(save_folder("wan22_a14b", tmp_path))
    model = load(spec, "fp32")
    served = [
        model.expert_at(timestep)
        for timestep in model.scheduler(resolve(Request(prompt="any", num_inference_steps=8), spec)).timesteps
    ]
    assert served == sorted(served)
    assert set(served) == {0, 1}
    for given, expected in [((4.0, None), (4, 3)), ((7.0, None), (7, 7)), ((4.0, 1.0), (4, 1))]:
        asked = Request(prompt="any", guidance_scale=given[0], guidance_scale_2=given[1])
        assert resolve(asked, spec).guidance_scales(spec) == expected


@torch.no_grad()
def test_decode_streams_and_equals_the_vae(folder: Path) -> None:
    model: Any = load(read_spec(folder), "fp32")
    vae = model._pipeline.vae
    latents = torch.randn(1, vae.config.z_dim, 3, 4, 6)
    parts = decoded(model, latents)
    assert [len(part) for part in parts] == [1, 4, 4]

    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    whole = vae.decode(latents / (1.0 / std) + mean).sample
    whole = model._pipeline.video_processor.postprocess_video(whole, output_type="np")[0]
    assert np.array_equal(
        np.concatenate(list(decoded(model, latents))), (whole * 255).round().astype("uint8")
    )


@torch.no_grad()
def test_two_decodes_at_a_time_do_not_disturb_each_other(tmp_path: Path) -> None:
    model = load(read_spec(save_folder("wan21", tmp_path)), "fp32")
    latents = torch.randn(2, 1, 16, 2, 2, 2)
    alone = [np.concatenate(list(decoded(model, each))) for each in latents]
    first, second = zip(*zip(*(decoded(model, each) for each in latents), strict=True), strict=True)
    assert np.array_equal(np.concatenate(first), alone[0])
    assert np.array_equal(np.concatenate(second), alone[1])


def test_generate(tmp_path: Path) -> None:
    folder = save_folder("wan21", tmp_path, fps=12, num_inference_steps=2)
    made = paradit.generate(PROMPT, model=str(folder), width=32, height=48, num_frames=5, guidance_scale=2)
    assert made.frames.shape == (5, 48, 32, 3)
    assert made.frames.dtype == np.uint8
    assert made.latents.shape == (1, 16, 2, 6, 4)
    assert made.fps == 12
    assert made.request.num_inference_steps == 2
    assert list(made.seconds) == ["load", "encode", "denoise", "decode"]
    assert made.peak_memory_bytes > 0


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[Event] = []
    folder = save_folder("wan21", tmp_path)
    paradit.generate(PROMPT, model=str(folder), **SIZE, progress=Progress(told.append))
    steps = [(event.stage, event.done) for event in told if isinstance(event, Stepped)]
    stages = {"encode": (1, 2), "denoise": (1, 2, 3, 4), "decode": (1, 2, 3)}
    assert steps == [(stage, done) for stage, all_done in stages.items() for done in all_done]


def test_saved_latents_that_are_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_folder("wan21", tmp_path / "model")
    latents = torch.zeros(1, 16, 2, 4, 4)
    latents[0, 0, 1, 2, 3] = torch.nan
    save_file({"latents": latents}, tmp_path / "l.safetensors")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match=r"'l.safetensors' is damaged: latents has 1 of 512 values that are not"
    ):
        app(["decode", "l.safetensors", "--model", str(folder)], standalone_mode=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["l.safetensors", "model"]


def test_memory_is_checked_before_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = read_spec(save_folder("wan21", tmp_path))
    request = resolve(Request(prompt="a", width=64, height=32, num_frames=5), spec)
    parts = spec.memory_bytes(5, 32, 64, 4)
    has = partial(monkeypatch.setattr, memory_check, "total_memory_bytes")
    has(lambda _: parts["peak"])
    assert memory_check.check_memory(spec, request) is None
    has(lambda _: parts["peak"] - 1)
    assert "of memory will be needed, but this machine has" in str(memory_check.check_memory(spec, request))
    has(lambda _: round(parts["peak"] / 1.1) - 1)
    with pytest.raises(InputError, match=r"64x32, 5 frames .* this machine has"):
        memory_check.check_memory(spec, request)
    has(lambda _: parts["weights"] - 1)
    with pytest.raises(InputError, match=r"for its weights in fp32, but this machine has"):
        memory_check.check_memory(spec, request)


def test_memory_is_checked_by_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = read_spec(save_folder("wan21", tmp_path))
    request = resolve(Request(prompt="a", width=64, height=32, num_frames=5), spec)
    parts, two = spec.memory_bytes(5, 32, 64, 4), Placement(ranks=2, replicas=2)
    has = partial(monkeypatch.setattr, memory_check, "total_memory_bytes")
    # Without a GPU, all ranks share the machine's memory, and the pages of the files.
    needed = 2 * parts["peak"] - parts["weights"]
    has(lambda _: needed)
    assert memory_check.check_memory(spec, request, two) is None
    has(lambda _: needed - 1)
    assert "will be needed on 2 ranks, but this machine has" in str(
        memory_check.check_memory(spec, request, two)
    )
    assert memory_check.check_memory(spec, request, two, local_ranks=1) is None
    has(lambda _: parts["weights"] - 1)
    with pytest.raises(InputError, match=r"for its weights in fp32 on 2 ranks, but"):
        memory_check.check_memory(spec, request, two)
    # If the dtype differs from the files', each rank has weights of its own.
    in_bf16 = replace(request, dtype="bf16")
    halved = spec.memory_bytes(5, 32, 64, 2)
    has(lambda _: 2 * halved["peak"])
    assert memory_check.check_memory(spec, in_bf16, two) is None
    has(lambda _: 2 * halved["peak"] - 1)
    assert "will be needed on 2 ranks" in str(memory_check.check_memory(spec, in_bf16, two))

    # On GPUs, each rank has memory of its own.
    monkeypatch.setattr(memory_check, "where_and_how", lambda _: (torch.device("cuda"), "fp32"))
    has(lambda _: parts["peak"])
    assert memory_check.check_memory(spec, request, two) is None
    has(lambda _: parts["weights"] - 1)
    with pytest.raises(InputError, match="on the fullest rank, but the GPU has"):
        memory_check.check_memory(spec, request, two)


def test_a_prompt_that_is_too_long_is_said_to_be(tmp_path: Path) -> None:
    folder = save_folder("wan21", tmp_path, width=32, height=32, num_frames=1, num_inference_steps=1)
    fits = "a" * 511  # a byte is a token, and one marks the end
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paradit.generate(fits, model=str(folder))
    with pytest.warns(
        UserWarning, match="longer than the 512 tokens that the text encoder reads: .* 'the end'"
    ):
        paradit.generate(f"{fits} the end", model=str(folder))
    with pytest.warns(UserWarning, match=r"this is ignored: 'b+ \[...\]'"):
        paradit.generate("a red circle", negative_prompt=f"{fits}{'b' * 99} {'c' * 200}", model=str(folder))
