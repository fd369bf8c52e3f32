"""Few steps: schedulers by name, shift, lists of timesteps, presets, and the steps of two experts."""

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, WanPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from messages import says
from paradit.attention.registry import Choice
from paradit.config.errors import InputError
from paradit.config.methods.method import read_resolved, resolve
from paradit.config.placement import Placement
from paradit.config.presets import presets
from paradit.config.requests import Request, ResolvedRequest
from paradit.config.steps import parse_timesteps
from paradit.models.flow_schedulers import FLOW_SCHEDULERS
from paradit.models.folder import find_spec
from paradit.models.published import published_spec
from paradit.models.spec import ModelSpec, read_spec
from paradit.pipeline import load
from paradit.planner.hardware import find_cluster
from paradit.planner.simulate import Candidate, Simulator
from paradit.progress import Progress
from paradit.sampling.experts import experts_of
from paradit.sampling.noise import initial_noise, step_generator
from paradit.scheduler_check import check_scheduler
from paradit.text_to_video import text_to_video
from tiny import save_folder, save_hunyuan_folder

PROMPT, SEED = "a red circle", 7
SIZE: dict[str, Any] = {"width": 64, "height": 32, "num_frames": 5}
LIST = (1000.0, 750.0, 500.0, 250.0)


def asked(spec: ModelSpec, **settings: Any) -> ResolvedRequest:
    return resolve(Request.of(**({"prompt": PROMPT, "seed": SEED} | SIZE | settings)), spec)


def ours(folder: Path, **settings: Any) -> Tensor:
    spec = read_spec(folder)
    request = asked(spec, **settings)
    check_scheduler(spec, request)
    return text_to_video(load(spec, "fp32"), request, Progress()).latents


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder("wan21", tmp_path_factory.mktemp("wan"))


@pytest.fixture(scope="module")
def two_experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder("wan22_a14b", tmp_path_factory.mktemp("a14b"))


def pipeline_with(folder: Path, name: str, shift: float, sigmas: list[float] | None) -> WanPipeline:
    """Return diffusers' pipeline with a scheduler, whose steps are set by `sigmas` if they are given."""
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    one = FLOW_SCHEDULERS[name]
    scheduler = getattr(diffusers, one.class_name)(**one.config, **{one.shift: shift})
    if sigmas is not None:
        set_timesteps = scheduler.set_timesteps

        def given(_: int, device: Any = None) -> None:
            set_timesteps(sigmas=np.array(sigmas), device=device)

        scheduler.set_timesteps = given
    pipeline.scheduler = scheduler
    return pipeline


@pytest.mark.parametrize("timesteps", [None, LIST], ids=["own", "list"])
@pytest.mark.parametrize("name", FLOW_SCHEDULERS)
def test_each_scheduler_is_the_pipeline(name: str, timesteps: tuple[float, ...] | None, folder: Path) -> None:
    settings = {"scheduler": name, "shift": 5.0, "timesteps": timesteps, "guidance_scale": 3.0}
    if timesteps is None:
        settings["num_inference_steps"] = 4
    elif not FLOW_SCHEDULERS[name].takes_timesteps:
        with pytest.raises(InputError) as error:
            ours(folder, **settings)
        assert says(
            str(error.value), f"scheduler {name} takes no list of timesteps: use one of unipc, euler, lcm"
        )
        return
    made = ours(folder, **settings)
    sigmas = [step / 1000 for step in timesteps] if timesteps else None
    pipeline = pipeline_with(folder, name, 5.0, sigmas)
    if name == "lcm":  # draws noise in each step, which comes from a generator for each step
        noise = initial_noise((1, 16, 2, 4, 8), SEED, torch.device("cpu"))
        step, count = pipeline.scheduler.step, iter(range(4))
        pipeline.scheduler.step = lambda *given, **more: step(
            *given, **more, generator=step_generator(SEED, next(count))
        )
    else:
        noise = None
    expected = pipeline(
        PROMPT,
        generator=torch.Generator("cpu").manual_seed(SEED),
        latents=noise,
        output_type="latent",
        num_inference_steps=4,
        guidance_scale=3.0,
        **SIZE,
    ).frames
    assert torch.equal(made, expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("euler", [1000, 937.5, 2500 / 3, 625]),
        ("lcm", [1000, 937.5, 2500 / 3, 625]),
        ("unipc", [999, 937, 833, 625]),  # the class keeps whole numbers
    ],
)
def test_a_list_is_shifted_once_for_the_model_and_the_sigmas(
    name: str, expected: list[float], folder: Path
) -> None:
    spec = read_spec(folder)
    request = asked(spec, scheduler=name, shift=5, timesteps=LIST)
    scheduler: Any = load(spec, "fp32", stages=("denoise",)).scheduler(request)
    assert scheduler.timesteps.tolist() == pytest.approx(expected, abs=1e-3)
    assert scheduler.sigmas.tolist() == pytest.approx([1, 0.9375, 5 / 6, 0.625, 0], abs=2e-6)
    assert request.model_timesteps(spec) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("steps", [1, 4, 9])
@pytest.mark.parametrize("name", FLOW_SCHEDULERS)
def test_timesteps_without_torch_are_those_of_the_class(name: str, steps: int, two_experts: Path) -> None:
    spec = read_spec(two_experts)
    model = load(spec, "fp32", stages=("decode",))
    for shift in (None, 1.0, 12.0):
        request = asked(spec, scheduler=name, shift=shift, num_inference_steps=steps)
        timesteps = model.scheduler(request).timesteps
        known = request.model_timesteps(spec)
        tolerance = 0 if FLOW_SCHEDULERS[name].whole_timesteps else 1e-2
        assert known == pytest.approx(timesteps.tolist(), abs=tolerance)
        experts = experts_of(model, request, timesteps)
        assert request.evaluations(spec) == (experts.count(0), experts.count(1))


def test_a_scheduler_takes_the_shift_of_the_folder(folder: Path) -> None:
    spec = read_spec(folder)
    model = load(spec, "fp32", stages=("decode",))
    assert spec.shift is not None
    cases: list[tuple[dict[str, Any], float]] = [({"scheduler": "euler"}, spec.shift), ({"shift": 9.0}, 9.0)]
    for settings, shift in cases:
        config = model.scheduler(asked(spec, **settings)).config
        assert config.get("shift", config.get("flow_shift")) == shift


@pytest.mark.parametrize("second", [2.0, 3.0])
def test_guidance_of_the_second_expert_is_the_pipelines(second: float, two_experts: Path) -> None:
    settings = {"num_inference_steps": 6, "guidance_scale": 5.0, "guidance_scale_2": second}
    pipeline = DiffusionPipeline.from_pretrained(two_experts)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(SEED)
    expected = pipeline(PROMPT, generator=generator, output_type="latent", **SIZE, **settings).frames
    assert torch.equal(ours(two_experts, **settings), expected)


def test_the_switch_by_step_is_that_of_a_boundary(two_experts: Path) -> None:
    settings = {"scheduler": "euler", "shift": 5.0, "timesteps": LIST, "guidance_scale": 1.0}
    made = {step: ours(two_experts, **settings, expert_step=step) for step in (1, 2, 4)}
    timesteps = [1000, 937.5, 833.3, 625, 0]
    index = two_experts / "model_index.json"
    before = index.read_text()
    try:
        for step, latents in made.items():
            # The first `step` steps have timesteps above the boundary.
            boundary = (timesteps[step] + 1) / 1000
            index.write_text(json.dumps(json.loads(before) | {"boundary_ratio": boundary}))
            assert torch.equal(ours(two_experts, **settings), latents), step
    finally:
        index.write_text(before)
    assert not torch.equal(made[1], made[2])


@pytest.mark.parametrize("scales", [(1.0, 3.0), (3.0, 1.0)])
def test_one_branch_in_the_steps_of_an_expert_without_guidance(
    scales: tuple[float, float], two_experts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = read_spec(two_experts)
    first, second = scales
    settings = {"num_inference_steps": 5, "expert_step": 2, "guidance_scale_2": second}
    request = asked(spec, guidance_scale=first, **settings)
    branches = tuple(2 if scale > 1 else 1 for scale in scales)
    assert request.branches(spec) == branches
    assert request.evaluations(spec) == (2, 3)
    assert request.forward_passes(spec) == 2 * branches[0] + 3 * branches[1]
    assert request.texts(spec) == [PROMPT, ""]
    model: Any = load(spec, "fp32")
    passes = [0, 0]

    def counted(expert: int) -> Any:
        head = model.experts[expert].head

        def call(tokens: Any) -> Tensor:
            passes[expert] += 1
            found: Tensor = head(tokens)
            return found

        return call

    for expert in (0, 1):
        monkeypatch.setattr(model.experts[expert], "head", counted(expert))
    assert text_to_video(model, request, Progress()).latents.isfinite().all()
    assert passes == [2 * branches[0], 3 * branches[1]]


def test_presets_are_defaults(folder: Path, two_experts: Path) -> None:
    one, two = read_spec(folder), read_spec(two_experts)
    for name, preset in presets().items():
        assert preset.source
        assert preset.about
        request = asked(two, preset=name)
        assert request.preset == name
        assert (request.scheduler, request.timesteps) == (preset.scheduler, preset.timesteps)
        assert request.num_inference_steps == len(preset.timesteps)
        assert request.guidance_scales(two) == (1, 1)
        assert request.expert_step == preset.expert_step
        assert asked(one, preset=name).expert_step is None
        assert resolve(request.asked(), two) == request
    request = asked(one, preset="shapes-4")
    assert request.model_timesteps(one) == pytest.approx([1000, 937.5, 2500 / 3, 625])
    # A list that is shifted already is not shifted again.
    assert asked(one, preset="fastwan-3").model_timesteps(one) == pytest.approx([1000, 757, 522])
    won = asked(two, preset="lightx2v-4", scheduler="unipc", shift=3, guidance_scale=2.5, expert_step=1)
    assert (won.scheduler, won.shift, won.guidance_scale, won.expert_step) == ("unipc", 3, 2.5, 1)
    assert asked(one, preset="fastwan-3", timesteps=(900, 400)).shift is None
    assert asked(one, preset="lightning-4", num_inference_steps=8).timesteps is None
    longer = asked(two, preset="lightx2v-4", num_inference_steps=8)
    assert (longer.timesteps, longer.expert_step) == (None, None)


@pytest.mark.parametrize("name", ["lightning-4", "lightx2v-4"])
@pytest.mark.parametrize("model", ["Wan2.2-T2V-A14B-Diffusers", "Wan2.2-I2V-A14B-Diffusers"])
def test_presets_of_published_models_are_their_authors(name: str, model: str, tmp_path: Path) -> None:
    """The authors' programs take four Euler steps, two with each expert, without guidance."""
    spec, image = published_spec(model), tmp_path / "image.png"
    Image.new("RGB", (64, 32)).save(image)
    request = asked(spec, preset=name, image=str(image) if "I2V" in model else None)
    assert (request.scheduler, request.evaluations(spec), request.branches(spec)) == ("euler", (2, 2), (1, 1))
    assert request.model_timesteps(spec) == pytest.approx([1000, 937.5, 2500 / 3, 625])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"scheduler": "unipcc"}, "got 'unipcc': did you mean unipc?"),
        ({"preset": "lightning"}, "got 'lightning': did you mean lightning-4?"),
        ({"scheduler": "FlowMatchLCMScheduler"}, "got 'FlowMatchLCMScheduler': did you mean lcm?"),
        ({"timesteps": "1000,500"}, "timesteps must be a list of numbers, got '1000,500' (str)"),
        ({"scheduler": ""}, "scheduler must be one of unipc, euler"),
        ({"preset": ""}, "preset must be one of shapes-4"),
        ({"shift": 0.0}, "shift must be"),
        ({"shift": 1e-320}, "shift must be from 0.01 to 100, got 9.99989e-321: the nearest is 0.01"),
        (
            {"timesteps": (1000, 999.99999)},
            "1000 is followed by nearly the same noise level after the shift of 3",
        ),
        ({"timesteps": (1000, 999.95), "shift": 100}, "1000 is followed by nearly the same noise level"),
        ({"timesteps": (1000, 1e-9)}, "1e-09 is followed by nearly the same noise level"),
        ({"timesteps": (750, 1000, 250)}, "got 750,1000,250: the nearest is 1000,750,250"),
        ({"timesteps": (500, 500)}, "got 500,500: the nearest is 500"),
        ({"timesteps": (1001, 500)}, "timesteps must be from 0 to 1000, got 1001: the nearest is 1000"),
        ({"timesteps": (500, 0)}, "timesteps must be"),
        ({"timesteps": ()}, "timesteps must be 1 to 1000 numbers, got 0"),
        ({"timesteps": 500}, "timesteps must be a list of numbers, got 500 (int)"),
        ({"timesteps": {1000: 1}}, "timesteps must be a list of numbers, got {1000: 1} (dict)"),
        (
            {"timesteps": LIST, "num_inference_steps": 8},
            "timesteps has 4 steps, and num_inference_steps is 8: leave one out",
        ),
        ({"expert_step": 2}, "expert_step is for models with two experts, and 'wan0' has one: leave it out"),
        ({"guidance_scale_2": 2.0}, "guidance_scale_2 is for models with two experts"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], said: str, folder: Path) -> None:
    with pytest.raises(InputError) as error:
        asked(read_spec(folder), **settings)
    assert said.replace("wan0", read_spec(folder).name) in str(error.value)


def test_steps_of_experts_out_of_range_are_refused(two_experts: Path) -> None:
    spec = read_spec(two_experts)
    with pytest.raises(InputError, match="expert_step must be at most 4"):
        asked(spec, num_inference_steps=4, expert_step=5)
    assert asked(spec, num_inference_steps=4, timesteps=LIST).timesteps == LIST
    assert parse_timesteps("1000, 750,500,250") == LIST
    with pytest.raises(InputError, match="timesteps must be written like 1000,750"):
        parse_timesteps("1000;750")


def test_two_evaluations_a_step_are_refused_in_blocks(folder: Path) -> None:
    blocks = {"method": "dualparal", "num_frames": 17, "block_frames": 2, "context_frames": 1}
    with pytest.raises(InputError, match="scheduler heun evaluates the model 2 times in a step"):
        ours(folder, scheduler="heun", num_inference_steps=4, **blocks)


def test_hunyuan_video_takes_schedulers_that_take_sigmas(tmp_path: Path) -> None:
    folder = save_hunyuan_folder(tmp_path)
    for name in ("euler", "lcm", "unipc"):
        assert ours(folder, scheduler=name, timesteps=LIST, shift=5.0).isfinite().all()
    with pytest.raises(InputError, match=r"scheduler deis does not take sigmas, which HunyuanVideoPipeline"):
        asked(read_spec(folder), scheduler="deis")


def test_few_step_folders_with_a_class_name_of_their_own(tmp_path: Path) -> None:
    folder = save_folder("wan21", tmp_path)
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "WanDMDPipeline"}))
    spec = find_spec(str(folder))
    request = asked(spec)
    assert (request.preset, request.scheduler, request.guidance_scale) == ("fastwan-3", "lcm", 1)
    assert request.model_timesteps(spec) == pytest.approx([1000, 757, 522])
    assert torch.equal(ours(folder), ours(folder, preset="fastwan-3"))
    assert ours(folder, scheduler="unipc", num_inference_steps=2).isfinite().all()


def test_weights_that_no_module_takes_are_refused_by_name(tmp_path: Path) -> None:
    folder = save_folder("wan21", tmp_path)
    (file,) = (folder / "transformer").glob("*.safetensors")
    weights = load_file(file)
    gate = "blocks.0.to_gate_compress.weight"
    save_file(weights | {gate: torch.zeros(2, 2)}, file, metadata={"format": "pt"})
    with pytest.raises(InputError) as error:
        find_spec(str(folder))
    assert says(str(error.value), f"transformer has weights that no module of its class takes: {gate}; ")


def test_the_planner_counts_the_branches_of_each_expert() -> None:
    spec = published_spec("Wan2.2-T2V-A14B-Diffusers")
    one = Candidate(placement=Placement(ranks=1))
    seconds = {}
    for scales in ((3.0, 3.0), (1.0, 1.0), (3.0, 1.0), (1.0, 3.0)):
        first, second = scales
        request = asked(
            spec, preset="lightx2v-4", guidance_scale=first, guidance_scale_2=second, expert_step=1
        )
        simulated = Simulator(find_cluster("1xH100"), spec, request).simulate(one, 1, Choice.plain())
        seconds[scales] = (
            simulated.stages["denoise"] - Simulator(find_cluster("1xH100"), spec, request).context
        )
    both, none = seconds[3.0, 3.0], seconds[1.0, 1.0]
    assert seconds[3.0, 1.0] == pytest.approx(both / 4 + 3 * none / 4)
    assert seconds[1.0, 3.0] == pytest.approx(none / 4 + 3 * both / 4)
    assert 1.5 * none < both


def test_old_runs_without_the_fields_are_read(folder: Path) -> None:
    request = asked(read_spec(folder), scheduler="lcm", timesteps=LIST)
    fields = json.loads(json.dumps(request.__dict__, default=dict))
    assert read_resolved(fields) == request
    for name in ("preset", "scheduler", "shift", "timesteps", "guidance_scale_2", "expert_step"):
        fields.pop(name)
    assert read_resolved(fields).scheduler is None


@pytest.mark.parametrize("method", ["dualparal", "windowed", "fifo"])
def test_lcm_makes_long_videos_from_the_seed(method: str, folder: Path) -> None:
    settings = {
        "method": method,
        "num_frames": 17,
        "block_frames": 2,
        "context_frames": 1,
        "preset": "lightx2v-4",
        "scheduler": "lcm",
    }
    made = ours(folder, **settings)
    torch.manual_seed(1)
    assert torch.equal(ours(folder, **settings), made)
    assert not torch.equal(ours(folder, **settings, seed=8), made)
