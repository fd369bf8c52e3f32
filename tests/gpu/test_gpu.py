"""Videos on a GPU: equal to those on the CPU, and to those of several ranks over NCCL.

On a machine with one GPU the ranks share it, which NCCL supports since 2.30: NCCL_MULTI_RANK_GPU_ENABLE=1.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.multiprocessing.spawn import spawn

from paradit.config.methods.method import method_of, resolve
from paradit.config.placement import Placement
from paradit.config.requests import Request
from paradit.device_memory import peak_memory_bytes
from paradit.devices import SHARE_GPUS, device_of, may_share_gpus
from paradit.distributed.world import join_world
from paradit.engine.fixed_list import make_videos
from paradit.engine.job import Job
from paradit.models.folder import find_model
from paradit.models.spec import read_spec
from paradit.pipeline import load
from paradit.progress import Progress
from paradit.text_to_video import text_to_video
from runs import Command, finished
from tiny import save_folder, save_hunyuan_folder

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
several = pytest.mark.skipif(
    torch.cuda.device_count() < 4 and not may_share_gpus(),
    reason=f"there are fewer than four GPUs, and {SHARE_GPUS} is not set (NCCL 2.30 has it)",
)

SIZES: dict[str, Any] = {"width": 48, "height": 48, "num_frames": 9, "num_inference_steps": 3}
PROMPTS = ["a red circle", "a blue square", "a green ring"]
BLOCKS = {"method": "dualparal", "num_frames": 34, "block_frames": 2, "context_frames": 1}
APART = {"denoise": (0, 1), "decode": (2,), "attention": "ulysses"}

Case = tuple[str, int, dict[str, Any], dict[str, Any]]
CASES: list[Case] = [
    # Model, ranks, placement, request.
    ("wan", 2, {"attention": "pipesp", "chunks": 2}, {}),
    ("wan", 2, {"attention": "pipesp", "chunks": 3, "interleave": True}, {}),
    ("wan", 2, {"attention": "ring"}, {}),
    ("wan", 2, {"cfg_degree": 2, "attention": "ulysses"}, {}),
    ("wan", 2, {"attention": "ulysses", "decode": (0, 1), "decode_degree": 2}, {"vae_tile": 32}),
    ("wan", 2, {"attention": "ulysses", "replicas": 2}, {}),
    ("wan", 2, {}, BLOCKS),
    ("hunyuan", 2, {"attention": "pipesp", "chunks": 2}, {}),
    ("hunyuan", 2, {"attention": "ring"}, {}),
    ("hunyuan", 2, {}, BLOCKS),
    ("wan", 3, {"attention": "ulysses"}, {}),
    ("wan", 3, APART, {}),
    ("wan", 3, {**APART, "coprocess": True}, {}),
    ("hunyuan", 3, {**APART, "coprocess": True}, {}),
    ("wan", 4, {"attention": "usp", "mesh": "ulysses,ring"}, {}),
    ("wan", 4, {"pipeline_degree": 2, "cfg_degree": 2}, BLOCKS),
]


@pytest.fixture(autouse=True)
def no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch off TF32, with which cuDNN's convolutions, such as the patch embedding, round to 2**-11."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that holds a Wan and a HunyuanVideo model."""
    folder = tmp_path_factory.mktemp("models")
    save_folder("wan21", folder / "wan", heads=3, layers=4, **SIZES)
    save_hunyuan_folder(folder / "hunyuan", heads=3, **SIZES)
    return folder


def jobs(model: Path, folder: Path, dtype: str, asked: dict[str, Any]) -> list[Job]:
    folder.mkdir(parents=True, exist_ok=True)
    spec = read_spec(model)
    return [
        Job(
            request=resolve(
                Request.of(prompt=prompt, seed=number, dtype=dtype, trim=bool(asked.get("method")), **asked),
                spec,
            ),
            output=str(folder / f"{number}.mp4"),
            latents=folder / f"{number}.safetensors",
            index=number,
            count=len(PROMPTS),
        )
        for number, prompt in enumerate(PROMPTS)
    ]


def folder_of(folder: Path, number: int, dtype: str) -> Path:
    return folder / f"way {number} {dtype}"


def make_all(rank: int, ranks: int, models: Path, folder: Path) -> None:
    """Join a world as one rank, and make the videos of all placements of its size.

    A world of one rank makes all videos, for comparison.
    """
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False
    with join_world(rank, ranks, folder / f"meet-{ranks}", device=device_of(rank)) as world:
        for number, (name, of, fields, asked) in enumerate(CASES):
            if ranks not in (1, of):
                continue
            placement = Placement() if ranks == 1 else Placement.of(ranks=ranks, **fields)
            for dtype in ("fp32", "bf16"):
                mine = jobs(models / name, folder_of(folder, number, dtype), dtype, asked)
                make_videos(
                    mine, read_spec(models / name), placement, Progress(), overwrite=True,
                    world=world if ranks > 1 else None, device=world.device,
                )  # fmt: skip


def latents(folder: Path, number: int, dtype: str) -> torch.Tensor:
    where = folder_of(folder, number, dtype)
    return torch.stack([load_file(where / f"{n}.safetensors")["latents"] for n in range(len(PROMPTS))])


def distance(made: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the relative distance of two tensors in the 2-norm."""
    return float((made - expected).norm() / expected.norm())


@several
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_over_nccl(ranks: int, models: Path, tmp_path: Path) -> None:
    for number in (1, ranks):
        (tmp_path / str(number)).mkdir()
        spawn(make_all, (number, models, tmp_path / str(number)), nprocs=number, daemon=True)
    said, wrong = [], False
    for number, (name, of, fields, asked) in enumerate(CASES):
        if of != ranks:
            continue
        alone, alone_in_bf16 = (latents(tmp_path / "1", number, dtype) for dtype in ("fp32", "bf16"))
        made, in_bf16 = (latents(tmp_path / str(ranks), number, dtype) for dtype in ("fp32", "bf16"))
        # In bf16 sums in another order differ in the last bit: the error is at most twice that of one rank.
        differs = float((made - alone).abs().max())
        ratio = distance(in_bf16, alone) / distance(alone_in_bf16, alone)
        said.append(f"{name} {fields} {asked}: {differs:.1e}, bf16 {ratio:.2f}")
        wrong |= not (differs < 1e-5 and ratio < 2)
    print("\n".join(said))
    assert not wrong, "\n".join(said)


@pytest.mark.parametrize("name", ["wan", "hunyuan"])
def test_as_on_the_cpu(name: str, models: Path) -> None:
    """Noise is made on the CPU in both cases, so only the order of sums differs."""
    spec = read_spec(models / name)
    made = {}
    for device in ("cpu", "cuda"):
        for dtype in ("fp32", "bf16"):
            request = resolve(Request.of(prompt=PROMPTS[0], dtype=dtype), spec)
            model = load(spec, dtype, device=torch.device(device))
            made[device, dtype] = text_to_video(model, request, Progress()).latents.cpu()
    expected = made.pop(("cpu", "fp32"))
    far = {way: distance(latents, expected) for way, latents in made.items()}
    print(far)
    assert far["cuda", "fp32"] < 1e-5, far
    assert far["cuda", "bf16"] < 1.5 * far["cpu", "bf16"], far


def test_the_peak_is_at_most_the_estimated_one() -> None:
    """The bundled model's peak stays within 1.1 times the estimate, the limit in scheduling.fitting."""
    own = 64e6  # bytes that cuBLAS and cuDNN take for themselves, for any model
    spec = read_spec(find_model("shapes"))
    for dtype, itemsize in (("fp32", 4), ("bf16", 2)):
        request = resolve(Request.of(prompt=PROMPTS[0], num_inference_steps=2, dtype=dtype), spec)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        video = text_to_video(load(spec, dtype), request, Progress())
        video.all_frames()
        (estimated,) = method_of(request).memory_by_rank(Placement(), request, spec, itemsize)
        peak = peak_memory_bytes(video.latents.device)
        print(dtype, peak / estimated["peak"])
        assert peak < 1.1 * estimated["peak"] + own, dtype
        del video


def test_one_gpu_by_the_command_line(tmp_path: Path) -> None:
    finished(tmp_path, "generate", PROMPTS[0], "--num-inference-steps", "2", "-o", "v.mp4")
    command = Command(tmp_path, "doctor")
    command.end_well()
    assert torch.cuda.get_device_name() in json.dumps(command.told)


@several
def test_two_ranks_by_the_command_line(tmp_path: Path) -> None:
    options = ["--ranks", "2", "--num-inference-steps", "2", "-o", "v.mp4"]
    finished(tmp_path, "generate", PROMPTS[0], *options)
