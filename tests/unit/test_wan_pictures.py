"""Videos made from pictures and from a video: they equal those of diffusers' pipelines, bit for bit."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    SchedulerMixin,
    WanImageToVideoPipeline,
    WanVideoToVideoPipeline,
)
from PIL import Image
from torch import Tensor

from messages import says
from paradit.config.encoded_pictures import num_encoded
from paradit.config.errors import OutOfMemory
from paradit.config.methods.method import resolve
from paradit.config.requests import Request, ResolvedRequest
from paradit.models.protocol import Pixels
from paradit.models.spec import read_spec
from paradit.models.wan.conditions import CleanFrames
from paradit.models.wan.encoder import WanEncoder
from paradit.parallel.predictor import LocalPredictor
from paradit.pipeline import load
from paradit.progress import Event, Progress, StageStarted, Stepped
from paradit.sampling.sampler import Work
from paradit.stages.conditions import conditions, pixels
from paradit.stages.denoise import denoise
from paradit.stages.encode import encode
from tiny import save_folder, vae
from video_jobs import Warned

PROMPT, NEGATIVE, SEED = "a red circle", "blurry", 11


def picture(width: int, height: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def resolved(folder: Path, **given: Any) -> ResolvedRequest:
    """Return a request, to which pictures' names are added as if their files were there."""
    own = {"width": 64, "height": 32, "num_frames": 9, "num_inference_steps": 4}
    names = {name: given.pop(name) for name in ("image", "last_image", "video", "strength") if name in given}
    asked = Request(prompt=PROMPT, negative_prompt=NEGATIVE, seed=SEED, **own | given)
    return replace(
        resolve(asked, replace(read_spec(folder), needs_image=False, needs_last_image=False)), **names
    )


@torch.no_grad()
def ours(folder: Path, pixels: Pixels, dtype: str = "fp32", **given: Any) -> Tensor:
    names = {name: name for name in ("image", "last_image", "video") if getattr(pixels, name) is not None}
    request = resolved(folder, **names, **given)
    model = load(read_spec(folder), dtype)
    conditions = model.encode_conditions(request, pixels)
    assert tuple(tuple(one.shape) for one in conditions) == model.condition_shapes(request)
    assert all(one.dtype == torch.float32 for one in conditions)
    prompts = encode(model, request, Progress())
    work = Work(model=model, request=request, prompts=prompts, conditions=conditions, progress=Progress(),
                predictor=LocalPredictor())  # fmt: skip
    (latents,) = denoise(work)
    return latents


def expected(
    folder: Path,
    pipeline_class: type[DiffusionPipeline] = WanImageToVideoPipeline,
    dtype: torch.dtype = torch.float32,
    tile: int | None = None,
    **given: Any,
) -> Tensor:
    kept = {"vae": torch.float32, "image_encoder": torch.float32}
    pipeline: Any = pipeline_class.from_pretrained(folder, dtype=kept | {"default": dtype})
    pipeline.set_progress_bar_config(disable=True)
    if tile is not None:
        pipeline.vae.enable_tiling(tile, tile, tile * 3 // 4, tile * 3 // 4)
    own = {"width": 64, "height": 32, "num_inference_steps": 4}
    return pipeline(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        generator=torch.Generator("cpu").manual_seed(SEED),
        output_type="latent",
        **own | given,
    ).frames


@cache
def made(variant: str, folder: Path) -> Path:
    return save_folder(variant, folder / variant)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


SIZES = [(64, 32), (32, 96)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("variant", ["i2v", "flf2v", "i2v_a14b", "wan22_ti2v"])
def test_a_video_from_an_image_equals_the_pipeline(
    variant: str, dtype: str, size: tuple[int, int], folders: Path
) -> None:
    folder, (width, height) = made(variant, folders), size
    first, last = picture(width, height), picture(width, height, 1) if variant == "flf2v" else None
    given: dict[str, Any] = {"width": width, "height": height, "guidance_scale": 3.0}
    latents = ours(folder, Pixels(image=first, last_image=last), dtype, num_frames=9, **given)
    pictures: dict[str, Any] = {"image": Image.fromarray(first)}
    pictures |= {} if last is None else {"last_image": Image.fromarray(last)}
    torch_dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    assert torch.equal(latents, expected(folder, dtype=torch_dtype, num_frames=9, **pictures, **given))


def test_both_ends_are_given_to_both_experts(folders: Path) -> None:
    folder, first, last = made("i2v_a14b", folders), picture(64, 32), picture(64, 32, 1)
    model = load(read_spec(folder), "fp32")
    request = resolved(folder)
    assert {model.expert_at(timestep) for timestep in model.scheduler(request).timesteps} == {0, 1}
    latents = ours(folder, Pixels(image=first, last_image=last), guidance_scale=1.0)
    pictures: dict[str, Any] = {"image": Image.fromarray(first), "last_image": Image.fromarray(last)}
    assert torch.equal(latents, expected(folder, num_frames=9, guidance_scale=1.0, **pictures))


@pytest.mark.parametrize(
    "scheduler",
    [None, FlowMatchEulerDiscreteScheduler(shift=3.0), FlowMatchHeunDiscreteScheduler(shift=3.0)],
)
@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_a_changed_video_equals_the_pipeline(
    strength: float, scheduler: SchedulerMixin | None, tmp_path: Path
) -> None:
    folder = save_folder("wan21", tmp_path, scheduler=scheduler)
    video = np.stack([picture(64, 32, seed) for seed in range(9)])
    latents = ours(folder, Pixels(video=video), strength=strength, guidance_scale=3.0)
    frames = [Image.fromarray(frame) for frame in video]
    other = expected(folder, WanVideoToVideoPipeline, video=frames, strength=strength, guidance_scale=3.0)
    assert torch.equal(latents, other)


@pytest.mark.parametrize(("variant", "side"), [("i2v_a14b", 32), ("wan22_ti2v", 64)])
def test_tiles_equal_those_of_the_vae(variant: str, side: int, folders: Path) -> None:
    """The 5B model's VAE has other tiles when it encodes than when it decodes."""
    folder, pixels = made(variant, folders), picture(96, 64)
    given: dict[str, Any] = {"width": 96, "height": 64, "guidance_scale": 1.0}
    latents = ours(folder, Pixels(image=pixels), vae_tile=side, num_frames=5, **given)
    assert torch.equal(
        latents, expected(folder, tile=side, image=Image.fromarray(pixels), num_frames=5, **given)
    )


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("tile", [None, 32])
@torch.no_grad()
def test_a_long_video_is_encoded_as_far_as_its_picture_shows(
    last: bool, tile: int | None, folders: Path
) -> None:
    """The encoding of grey frames becomes constant, and equals that of the whole video."""
    folder, frames, size = made("i2v_a14b", folders), 30, {"width": 32 if tile is None else 48, "height": 16}
    given = {"last_image": "last.png"} if last else {}
    request = resolved(
        folder, num_frames=4 * frames - 3, image="first.png", vae_tile=tile, method="full", **size, **given
    )
    model: Any = load(read_spec(folder), "fp32")
    pixels = [picture(**size, seed=seed) for seed in range(2)]
    encoded = model.encode_conditions(
        request, Pixels(image=pixels[0], last_image=pixels[1] if last else None)
    )
    assert encoded[0].shape[2] == 22 + last < frames

    pipeline = model._pipeline
    video = torch.zeros(1, 3, 4 * frames - 3, size["height"], size["width"])
    for place, frame in zip([0, -1] if last else [0], pixels, strict=False):
        video[:, :, place] = pipeline.video_processor.preprocess(Image.fromarray(frame))
    if tile is not None:
        pipeline.vae.enable_tiling(tile, tile, tile * 3 // 4, tile * 3 // 4)
    whole = pipeline.vae.encode(video).latent_dist.mode()
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1)
        for values in (pipeline.vae.config.latents_mean, pipeline.vae.config.latents_std)
    )
    joined = model.conditions(request, encoded).model_input(torch.zeros_like(whole), range(frames))
    assert torch.equal(joined[:, 20:], (whole - mean) * (1.0 / std))
    ones = joined[0, 16:20, :, 0, 0].nonzero().tolist()
    assert ones == sorted([[channel, 0] for channel in range(4)] + ([[3, frames - 1]] if last else []))


@pytest.mark.parametrize("variant", ["wan21", "wan22_ti2v"])
@pytest.mark.parametrize("frames", [1, 5, 13])
@torch.no_grad()
def test_encoding_in_pieces_equals_the_vae(variant: str, frames: int) -> None:
    own, video = vae(variant), torch.rand(1, 3, frames, 32, 64) * 2 - 1
    encoder = WanEncoder(own, None)
    pieces = [video[:, :, :1], *(video[:, :, start : start + 4] for start in range(1, frames, 4))]
    mean, std = (
        torch.tensor(own.config[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std")
    )
    whole = (own.encode(video).latent_dist.mode() - mean) * (1.0 / std)
    assert torch.equal(encoder.encode(lambda: pieces, 32, 64), whole)


def test_given_frames_stay_clean_whichever_part_of_a_video_is_denoised(folders: Path) -> None:
    model = load(read_spec(made("wan22_ti2v", folders)), "fp32")
    clean = torch.full((1, 48, 1, 2, 4), 7.0)
    given = CleanFrames(model, {0: clean, 9: clean})
    latents, level = torch.zeros(1, 48, 3, 2, 4), torch.tensor(500)
    assert given.model_input(latents, [0, 1, 2])[0, 0, :, 0, 0].tolist() == [7, 0, 0]
    assert given.model_timestep(level, latents, [0, 1, 2]).tolist() == [[0, 500, 500]]
    assert given.model_timestep(level, latents, [7, 8, 9]).tolist() == [[500, 500, 0]]
    assert given.end(latents, [3, 4, 9])[0, 0, :, 0, 0].tolist() == [0, 0, 7]
    assert latents.abs().max() == 0


def test_loading_warns_about_no_library_that_is_not_needed(folders: Path) -> None:
    """transformers tells everyone who imports the pipelines of pictures that torchvision is missing."""
    load_both = """
import sys
from paradit.models.spec import read_spec
from paradit.pipeline import load
load(read_spec(Path(sys.argv[1])), "fp32")
assert "diffusers.pipelines.wan.pipeline_wan_i2v" not in sys.modules
load(read_spec(Path(sys.argv[2])), "fp32")
assert "diffusers.pipelines.wan.pipeline_wan_i2v" in sys.modules
"""
    command = [sys.executable, "-c", "from pathlib import Path" + load_both]
    command += [str(made("wan21", folders)), str(made("i2v", folders))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "torchvision" not in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("variant", "names", "tile"),
    [
        ("i2v_a14b", ("image", "last_image"), None),
        ("wan22_ti2v", ("image", "last_image"), None),
        ("wan21", ("video",), None),
        ("wan21", ("video",), 32),
    ],
)
def test_progress_of_encoding(
    variant: str, names: tuple[str, ...], tile: int | None, folders: Path, tmp_path: Path
) -> None:
    model, events = load(read_spec(made(variant, folders)), "fp32", stages=("decode",)), list[Event]()
    Image.fromarray(picture(64, 64)).save(tmp_path / "image.png")
    np.save(tmp_path / "video.npy", np.stack([picture(64, 64)] * 9))
    files = {"image": "image.png", "last_image": "image.png", "video": "video.npy"}
    given: dict[str, Any] = {name: str(tmp_path / files[name]) for name in names}
    request = resolved(model.spec.folder, width=64, height=64, num_frames=9, vae_tile=tile, **given)
    conditions(model, request, Progress(events.append))
    (begun,) = [event for event in events if isinstance(event, StageStarted)]
    steps = [event.done for event in events if isinstance(event, Stepped)]
    assert begun.total == num_encoded(request, model.spec) > 1
    assert steps == list(range(1, begun.total + 1))


@pytest.mark.parametrize("variant", ["i2v_a14b", "wan22_ti2v"])
def test_memory_that_runs_out_is_answered_with_smaller_tiles(
    variant: str, folders: Path, tmp_path: Path
) -> None:
    """The whole picture and the first tiles are too large for the encoder; the next tiles are not."""
    model: Any = load(read_spec(made(variant, folders)), "fp32", stages=("decode",))
    patch, told = model.spec.vae.pixel_patch, Warned()
    side = 2 * model.spec.vae.tile_multiple * patch
    Image.fromarray(picture(2 * side, side)).save(tmp_path / "picture.png")
    size = {"width": 2 * side, "height": side, "num_frames": 5}
    request = resolved(model.spec.folder, **size, image=str(tmp_path / "picture.png"))
    most = 0

    def refuse(_: object, inputs: tuple[Tensor, ...]) -> None:
        if max(inputs[0].shape[3:]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    model._pipeline.vae.encoder.register_forward_pre_hook(refuse)
    with pytest.raises(OutOfMemory, match="no smaller tiles"):
        conditions(model, request, told)
    assert told.said
    told.said.clear()
    most = model.spec.vae.tile_multiple
    found = conditions(model, request, told)
    assert says(told.said[0], "memory ran out .. whole pictures .. encoding again in tiles")
    assert says(told.said[-1], f"encoding again in tiles of {most * patch} pixels")
    pieces = model.encode_conditions(replace(request, vae_tile=most), pixels(request))
    assert all(torch.equal(one, other) for one, other in zip(found, pieces, strict=True))
