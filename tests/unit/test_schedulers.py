"""Schedulers of model folders: they run with their own noise, or are refused before a run begins."""

import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DEISMultistepScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    LCMScheduler,
    PNDMScheduler,
    SASolverScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from torch import Tensor

from paradit.config.errors import InputError
from paradit.config.methods.method import resolve
from paradit.config.requests import Request
from paradit.models.known_schedulers import is_known
from paradit.models.spec import read_spec
from paradit.pipeline import load
from paradit.progress import Progress
from paradit.sampling.noise import initial_noise, step_generator
from paradit.scheduler_check import check_scheduler
from paradit.text_to_video import text_to_video
from tiny import drawing_scheduler, save_folder, save_hunyuan_folder

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
SIZE = {"width": 64, "height": 32, "num_frames": 5, "num_inference_steps": 4, "guidance_scale": 1.0}
PROMPT, SEED = "a red circle", 2**64 - 5

DRAWING = {
    "sde-dpmsolver++": drawing_scheduler(),
    "stochastic flow": FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True),
    "flow lcm": FlowMatchLCMScheduler(shift=3.0),
    "ancestral": EulerAncestralDiscreteScheduler(),
    "sa": SASolverScheduler(**FLOW),
}
STEADY = {
    "dpmsolver++": DPMSolverMultistepScheduler(**FLOW),
    "deis": DEISMultistepScheduler(**FLOW),
    "euler": EulerDiscreteScheduler(),
    "flow euler": FlowMatchEulerDiscreteScheduler(shift=5.0, use_karras_sigmas=True),
    "flow heun": FlowMatchHeunDiscreteScheduler(shift=3.0),
}
HUNYUAN_STEADY = {
    "unipc": UniPCMultistepScheduler(**FLOW),
    "flow euler": FlowMatchEulerDiscreteScheduler(shift=7.0),
    "euler": EulerDiscreteScheduler(),  # diffusers leaves out its last step
}


def folder_with(scheduler: SchedulerMixin, path: Path, *, hunyuan: bool = False) -> Path:
    if hunyuan:
        return save_hunyuan_folder(path, scheduler=scheduler)
    return save_folder("wan21", path, scheduler=scheduler)


def ours(folder: Path, **settings: object) -> Tensor:
    spec = read_spec(folder)
    request = resolve(Request.of(prompt=PROMPT, seed=SEED, **(SIZE | settings)), spec)
    check_scheduler(spec, request)
    return text_to_video(load(spec, "fp32"), request, Progress()).latents


def of_the_pipeline(folder: Path) -> Tensor:
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(SEED)
    made: Tensor = pipeline(PROMPT, generator=generator, output_type="latent", **SIZE).frames
    return made


@torch.no_grad()
def plainly(folder: Path) -> Tensor:
    """Denoise in a plain loop over diffusers' transformer and scheduler, with a generator for each step."""
    spec = read_spec(folder)
    model, latents = load(spec, "fp32"), initial_noise((1, 16, 2, 4, 8), SEED, torch.device("cpu"))
    (text,), scheduler = (
        model.encode_prompt(PROMPT),
        model.scheduler(resolve(Request.of(prompt=PROMPT, **SIZE), spec)),
    )
    expert: Any = model.experts[0]
    for step, time in enumerate(scheduler.timesteps):
        (prediction,) = expert.module(latents, time.expand(1), text, return_dict=False)
        generator = step_generator(SEED, step)
        (latents,) = scheduler.step(prediction, time, latents, generator=generator, return_dict=False)[:1]
    return latents


@pytest.mark.parametrize("name", DRAWING)
def test_noise_comes_from_the_seed_and_the_step(name: str, tmp_path: Path) -> None:
    folder = folder_with(DRAWING[name], tmp_path)
    made = ours(folder)
    torch.manual_seed(1)  # torch's own generator must not matter
    assert torch.equal(ours(folder), made)
    assert torch.equal(plainly(folder), made)


@pytest.mark.parametrize("name", STEADY)
def test_wan_with_another_scheduler_is_the_pipeline(name: str, tmp_path: Path) -> None:
    folder = folder_with(STEADY[name], tmp_path)
    assert torch.equal(ours(folder), of_the_pipeline(folder))


@pytest.mark.parametrize("name", HUNYUAN_STEADY)
def test_hunyuan_video_with_another_scheduler_is_the_pipeline(name: str, tmp_path: Path) -> None:
    folder = folder_with(HUNYUAN_STEADY[name], tmp_path, hunyuan=True)
    torch.testing.assert_close(ours(folder), of_the_pipeline(folder), rtol=0, atol=5e-6)


REFUSED: dict[str, tuple[SchedulerMixin, bool, dict[str, object], str]] = {
    "no begin index": (DDIMScheduler(), False, {}, "DDIMScheduler, cannot be run: .*set_begin_index"),
    "another one": (PNDMScheduler(), False, {}, "PNDMScheduler, cannot be run"),
    "no sigmas to read": (LCMScheduler(), False, {}, "LCMScheduler, cannot be run: it does not have sigmas"),
    "dynamic shifting without mu": (
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        False,
        {},
        "FlowMatchEulerDiscreteScheduler, cannot be run: .*mu",
    ),
    "no sigmas to take": (
        DPMSolverMultistepScheduler(**FLOW),
        True,
        {},
        "it does not take sigmas, which Hunyuan",
    ),
    "dynamic shifting in HunyuanVideo": (
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        True,
        {},
        "cannot be run: .*mu",
    ),
    "two evaluations a step in blocks": (
        FlowMatchHeunDiscreteScheduler(),
        False,
        {"method": "dualparal", "num_frames": 17, "block_frames": 2, "context_frames": 1},
        "evaluates the model 7 times in 4 steps, .* use method full",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_run_is_refused(name: str, tmp_path: Path) -> None:
    scheduler, hunyuan, settings, said = REFUSED[name]
    folder = folder_with(scheduler, tmp_path, hunyuan=hunyuan)
    with pytest.raises(InputError, match=said):
        ours(folder, **settings)


class Unseeded(FlowMatchEulerDiscreteScheduler):
    """Scheduler that draws from torch's own generator and ignores the one that it is given."""

    def step(self, *inputs: Any, generator: Any = None, return_dict: bool = True) -> Any:  # noqa: ARG002
        (stepped,) = super().step(*inputs, return_dict=False)
        return (stepped + 0.1 * torch.randn(stepped.shape),)


def test_noise_that_no_seed_decides_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffusers, "Unseeded", Unseeded, raising=False)
    folder = folder_with(FlowMatchEulerDiscreteScheduler(), tmp_path)
    _change(folder / "model_index.json", scheduler=["diffusers", "Unseeded"])
    with pytest.raises(InputError, match="Unseeded, draws noise"):
        ours(folder)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"solver_type": "bh9"}, "the model's scheduler, .*bh9"),
        ({"use_beta_sigmas": True}, "the model's scheduler, .*scipy"),
        ({"num_train_timesteps": -3}, "num_train_timesteps must be at least 1, got -3"),
    ],
)
def test_a_configuration_that_fails_is_refused(values: dict[str, object], said: str, tmp_path: Path) -> None:
    folder = save_folder("wan21", tmp_path)
    _change(_config(folder), **values)
    with pytest.raises(InputError, match=said):
        ours(folder)


def test_a_class_that_diffusers_does_not_have_is_refused(tmp_path: Path) -> None:
    folder = save_folder("wan21", tmp_path)
    _change(folder / "model_index.json", scheduler=["diffusers", "EulerScheduler"])
    with pytest.raises(InputError, match=r"EulerScheduler, .* no such class"):
        ours(folder)


def _config(folder: Path) -> Path:
    return folder / "scheduler" / "scheduler_config.json"


def _change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_all_of_diffusers_run_or_are_refused_in_one_line(tmp_path: Path) -> None:
    """Every scheduler class is tried in both families; those accepted resume from any checkpoint."""
    ran, refused = set(), set()
    for hunyuan in (False, True):
        folder = folder_with(FlowMatchEulerDiscreteScheduler(), tmp_path / str(hunyuan), hunyuan=hunyuan)
        spec = read_spec(folder)
        request = resolve(Request.of(prompt=PROMPT, **SIZE), spec)
        for name in dir(diffusers):
            if not name.endswith("Scheduler") or not inspect.isclass(getattr(diffusers, name)):
                continue
            _config(folder).write_text(json.dumps(FLOW | {"_class_name": name}))
            _change(folder / "model_index.json", scheduler=["diffusers", name])
            try:
                check_scheduler(spec, request)
                ran.add((name, hunyuan))
            except InputError as error:
                assert name in str(error)
                assert "\n" not in str(error)
                refused.add((name, hunyuan))
    assert {("UniPCMultistepScheduler", True), ("SASolverScheduler", False)} <= ran
    assert {("DPMSolverSDEScheduler", False), ("CosineDPMSolverMultistepScheduler", False)} <= refused


def test_published_configurations_need_no_trial(tmp_path: Path) -> None:
    folder = save_folder("wan21", tmp_path / "wan")
    unipc = json.loads(_config(folder).read_text())
    flow = json.loads(_config(save_hunyuan_folder(tmp_path / "hunyuan")).read_text())
    assert is_known("UniPCMultistepScheduler", unipc)
    assert is_known("FlowMatchEulerDiscreteScheduler", flow)
    assert not is_known("UniPCMultistepScheduler", {})  # the class's defaults predict noise, not flow
    for name, config in (("UniPCMultistepScheduler", unipc), ("FlowMatchEulerDiscreteScheduler", flow)):
        for key, value in config.items():
            if not key.startswith("_"):
                assert not is_known(name, config | {key: "other" if value is None else None})
