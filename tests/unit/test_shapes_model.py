"""The bundled model: complete, small, loaded like any published one, and true to its prompts.

`benchmarks/quality.py` measures how often; a few prompts here reveal a broken asset.
"""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from transformers import UMT5EncoderModel

import paradit
from paradit.config.methods.method import resolve
from paradit.config.requests import Request
from paradit.models.folder import find_model
from paradit.models.spec import read_spec
from paradit.models.warnings import warnings_for
from paradit.shapes.evaluate import evaluate
from paradit.shapes.scenes import OTHER_FORMS, WORDS, Scene

MOST_BYTES = 24_000_000
STEPS = 3


@pytest.fixture(scope="module")
def folder() -> Path:
    return find_model("shapes")


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> WanPipeline:
    pipe = WanPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_is_of_the_real_classes(pipeline: WanPipeline) -> None:
    assert isinstance(pipeline.transformer, WanTransformer3DModel)
    assert isinstance(pipeline.vae, AutoencoderKLWan)
    assert isinstance(pipeline.text_encoder, UMT5EncoderModel)
    assert isinstance(pipeline.scheduler, UniPCMultistepScheduler)


def test_is_small(folder: Path) -> None:
    assert sum(file.stat().st_size for file in folder.rglob("*.safetensors")) <= MOST_BYTES


def test_every_word_is_one_token_and_others_are_dropped(pipeline: WanPipeline) -> None:
    tokenizer = pipeline.tokenizer
    ids = tokenizer(" ".join(WORDS)).input_ids
    assert len(set(ids)) == len(ids) == len(WORDS) + 1  # one more for the end token
    for form, word in OTHER_FORMS.items():
        assert tokenizer(form).input_ids == tokenizer(word).input_ids
    plain = tokenizer("red circle moving right dark background").input_ids
    wordy = tokenizer(
        "Behold: a RED, reddish circle that moves  right...\non a (dark) background 42!"
    ).input_ids
    assert wordy == plain
    assert tokenizer("the quick fox").input_ids == tokenizer("").input_ids


@pytest.mark.parametrize("guidance_scale", [None, 1.0])
def test_generate_is_wan_pipeline(pipeline: WanPipeline, guidance_scale: float | None) -> None:
    prompt, seed = "a white ring bouncing on a brown background", 5
    made = paradit.generate(
        prompt,
        seed=seed,
        num_frames=9,
        num_inference_steps=STEPS,
        guidance_scale=guidance_scale,
        dtype="fp32",
    )
    expected = pipeline(
        prompt,
        height=96,
        width=96,
        num_frames=9,
        num_inference_steps=STEPS,
        guidance_scale=made.request.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(seed),
        output_type="latent",
    ).frames
    assert torch.equal(made.latents, expected)


@pytest.mark.parametrize(
    "scene",
    [
        Scene("purple", "square", "shrinking", "brown"),
        Scene("red", "circle", "moving right", "dark"),
        Scene("cyan", "triangle", "standing still", "brown"),
    ],
    ids=lambda scene: scene.prompt,
)
def test_shows_what_the_prompt_says(scene: Scene) -> None:
    made = paradit.generate(scene.prompt)
    assert made.frames.shape == (33, 96, 96, 3)
    assert all(evaluate(made.frames).right(scene).values())


def test_warns_of_a_prompt_with_no_known_word(folder: Path) -> None:
    spec = read_spec(folder)
    (warning,) = warnings_for(resolve(Request(prompt="a cat in the rain"), spec), spec)
    for word in WORDS:
        assert word in warning or word == "background"
    assert not warnings_for(resolve(Request(prompt="a ring in the rain"), spec), spec)
