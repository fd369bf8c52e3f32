"""Pictures in the planner: the operations of encoding them, and when ranks do it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from messages import says
from paradit.cli import plan as planning
from paradit.cli.commands.plan_options import PlanOptions
from paradit.cli.text import pictures_text, steps_text
from paradit.config.methods.method import resolve
from paradit.config.requests import Request
from paradit.models.protocol import Pixels
from paradit.models.spec import read_spec
from paradit.pipeline import load
from paradit.planner.costs import conditions_seconds
from paradit.planner.hardware import find_cluster
from paradit.planner.search import find_plans
from paradit.planner.simulate import Simulator, latency_of
from tiny import save_folder
from video_jobs import placement


# Clean frames, with and without tiles; channels for all frames, of which some are not encoded.
@pytest.mark.parametrize(
    ("variant", "given", "fields"),
    [
        ("wan22_ti2v", ("image",), {}),
        ("wan22_ti2v", ("image", "last_image"), {"vae_tile": 64, "width": 160}),
        ("i2v_a14b", ("image", "last_image"), {}),
        ("i2v_a14b", ("image",), {"num_frames": 161, "width": 16, "height": 16}),
        ("wan21", ("video",), {}),
    ],
)
def test_operations_are_those_that_run(
    tmp_path: Path, variant: str, given: tuple[str, ...], fields: dict[str, Any]
) -> None:
    spec = read_spec(save_folder(variant, tmp_path / variant))
    asked = Request(**{"prompt": "a", "width": 64, "height": 64, "num_frames": 9, **fields})
    bare = resolve(asked, replace(spec, needs_image=False))
    names: dict[str, Any] = {name: name for name in given}
    request = replace(bare, **names, strength=0.5 if "video" in given else None)
    picture = np.zeros((request.height, request.width, 3), np.uint8)
    video = np.stack([picture] * request.num_frames)
    pixels = Pixels(**{name: video if name == "video" else picture for name in given})
    model = load(spec, "fp32", stages=("decode",))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.encode_conditions(request, pixels)
    device = find_cluster("RTX 4090").device
    rate = device.convolution_rate("fp32") / (1 + device.narrow / spec.vae.decoder_dim)
    assert conditions_seconds(spec, device, request) == pytest.approx(counter.get_total_flops() / rate)


def test_plans_have_the_stage(tmp_path: Path) -> None:
    spec = read_spec(save_folder("wan22_ti2v", tmp_path / "tiny", width=64, height=64, num_frames=9))
    text = resolve(Request(prompt="a"), spec)
    cluster = find_cluster("2xRTX 4090")
    without, plans = (
        find_plans(Simulator(cluster, spec, request, "fp32"), 3, "latency")
        for request in (text, replace(text, image="picture.png"))
    )
    assert all("conditions" not in plan.simulated.stages for plan in without.best)
    for plan in plans.best:
        assert plan.simulated.stages["conditions"] > 0
        assert plan.simulated.latency >= max(
            sum(seconds for stage, seconds in plan.simulated.stages.items() if stage != one)
            for one in ("encode", "conditions")
        )


def test_steps_that_a_changed_video_skips_do_not_count(tmp_path: Path) -> None:
    spec = read_spec(save_folder("wan21", tmp_path / "tiny", width=64, height=64, num_frames=9))
    steps: dict[str, Any] = {"num_inference_steps": 5, "guidance_scale": 3.0}
    for scheduler, evaluations in ((None, 3), ("heun", 5)):
        whole = resolve(Request(prompt="a", scheduler=scheduler, **steps), spec)
        request = replace(whole, video="video.mp4", strength=0.6)
        assert request.evaluations(spec) == (evaluations,)
        assert request.forward_passes(spec) == 2 * evaluations
        assert request.model_timesteps(spec) == whole.model_timesteps(spec)[-evaluations:]
        assert steps_text(request, spec).endswith("only the last 3 of 5") is (scheduler is None)
    cluster = find_cluster("RTX 4090")
    seconds = [
        find_plans(Simulator(cluster, spec, each, "fp32"), 1, "latency").best[0].simulated.stages["denoise"]
        for each in (whole, request)
    ]
    assert seconds[1] < 0.7 * seconds[0]


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("denoise=0 decode=1", "0.50 s .. 8 kB .. after the texts .. rank 1, which decodes"),
        ("denoise=0 decode=1 encode=0", "0.50 s .. 8 kB .. while rank 0 encodes the texts .. rank 1"),
        ("denoise=0 decode=1-2 encode=2", "8 kB .. while rank 2 encodes .. ranks 1, 2 in turn"),
    ],
)
def test_where_pictures_are_encoded_is_explained(written: str, said: str) -> None:
    ranks = 3 if "2" in written else 2
    by_rank = [{"peak": 9}] + [{"peak": 9000, "conditions": 8000}] * (ranks - 1)
    assert says(pictures_text(placement(ranks, written), by_rank, 0.5), f"pictures: encoded .. {said}")


def test_a_plan_says_it_and_its_command_gives_the_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "picture.png")
    given: dict[str, Any] = {"image": str(tmp_path / "picture.png"), "lora": ("shapes-4step",)}
    asked: dict[str, Any] = {"model": "shapes", "gpus": "2xRTX 4090", "num_prompts": 3, "dtype": "fp32"}
    assert planning.plan(PlanOptions(**asked)) == 0
    assert "pictures: " not in capsys.readouterr().out
    assert planning.plan(PlanOptions(**asked, **given)) == 0
    said = capsys.readouterr().out
    assert "\npictures: encoded in " in said
    (command,) = (line for line in said.splitlines() if line.startswith("1. paradit generate"))
    assert f"--image {given['image']}" in command
    assert "--lora shapes-4step" in command


def test_texts_and_pictures_are_encoded_at_once_on_different_ranks() -> None:
    stages = {"encode": 2.0, "conditions": 3.0, "denoise": 5.0, "decode": 1.0}
    assert latency_of(placement(2, "denoise=0 decode=1"), stages) == 11
    assert latency_of(placement(2, "denoise=0 decode=1 encode=0"), stages) == 9
