"""Final latents on several gloo ranks, equal to those of one process, for sizes that divide by nothing."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

import small_open_sora_plan
from paradit.attention.registry import Choice
from paradit.config.methods.method import resolve
from paradit.config.placement import Placement
from paradit.config.requests import Request
from paradit.distributed.mesh import Mesh
from paradit.distributed.world import World
from paradit.engine.predictors import sequence_parallel
from paradit.models.spec import read_spec
from paradit.parallel.predictor import Predictor
from paradit.parallel.sequence_parallel import SequenceParallel, Undecided
from paradit.pipeline import load
from paradit.progress import Progress
from paradit.sampling.full_sequence import denoise
from paradit.sampling.noise import initial_noise, step_generator
from paradit.testing import run_world
from paradit.text_to_video import text_to_video
from threads import one_thread
from tiny import VARIANTS, drawing_scheduler, load_on_cpu, save_folder

STEPS = 3


def final_latents(
    folder: Path, size: tuple[int, int, int], guided: bool, predictor: Predictor | None
) -> Tensor:
    model = load_on_cpu(folder)
    spec = model.spec
    prompts = ["a red circle", "blurry"] if guided else ["a red circle"]
    (latents,) = denoise(
        model,
        initial_noise((1, *spec.vae.latent_shape(*size)), 3, model.device),
        tuple(model.encode_prompt(prompt) for prompt in prompts),
        request=resolve(Request(prompt="any", num_inference_steps=STEPS, guidance_scale=3.0), spec),
        noise=partial(step_generator, 3),
        progress=Progress(),
        predictor=predictor,
    )
    return latents


def alone(folder: Path, size: tuple[int, int, int], guided: bool) -> Tensor:
    """Return one process's latents, computed with one thread, like a rank's."""
    with one_thread():
        return final_latents(folder, size, guided, None)


def on_ranks(
    world: World, folder: Path, size: tuple[int, int, int], guided: bool, placements: list[Placement]
) -> list[Tensor]:
    heads = read_spec(folder).transformers[0].num_attention_heads
    predictors = [sequence_parallel(world, placement, heads) for placement in placements]
    return [final_latents(folder, size, guided, predictor) for predictor in predictors]


def check(folder: Path, size: tuple[int, int, int], guided: bool, cfg_degree: int, num_ranks: int) -> None:
    expected = alone(folder, size, guided)
    placement = Placement(ranks=num_ranks, cfg_degree=cfg_degree, attention="ulysses")
    for (latents,) in run_world(on_ranks, num_ranks, folder, size, guided, [placement]):
        torch.testing.assert_close(latents, expected, rtol=0, atol=1e-5)


def placements(num_ranks: int) -> dict[str, Placement]:
    """Return all ways to share attention among so many ranks, plain Ulysses first."""
    made = {
        "ulysses": Placement(ranks=num_ranks, attention="ulysses"),
        "auto": Placement(ranks=num_ranks),
        "pipesp, 1 chunk": Placement.of(ranks=num_ranks, attention="pipesp", chunks=1),
        "pipesp, 2 chunks": Placement.of(ranks=num_ranks, attention="pipesp", chunks=2),
        "pipesp, 5 chunks": Placement.of(ranks=num_ranks, attention="pipesp", chunks=5),
        "pipesp-paper": Placement(ranks=num_ranks, attention="pipesp-paper"),
        "interleave": Placement(ranks=num_ranks, attention="ulysses", interleave=True),
        "both": Placement.of(ranks=num_ranks, attention="pipesp", chunks=2, interleave=True),
        "ring": Placement(ranks=num_ranks, attention="ring"),
        "ring, interleaved": Placement(ranks=num_ranks, attention="ring", interleave=True),
    }
    if num_ranks == 4:
        made["usp"] = Placement(ranks=4, attention="usp")
        made["usp, ring inside"] = Placement.of(ranks=4, attention="usp", mesh="ulysses,ring")
        made["ring, cfg"] = Placement(ranks=4, attention="ring", cfg_degree=2)
    return made


@pytest.mark.parametrize(
    ("num_ranks", "size"), [(2, (9, 48, 48)), (3, (9, 64, 96)), (4, (9, 48, 48)), (5, (9, 64, 96))]
)
def test_every_attention(num_ranks: int, size: tuple[int, int, int], tmp_path: Path) -> None:
    folder = save_folder("wan21", tmp_path, heads=3)
    expected = alone(folder, size, guided=True)
    made = placements(num_ranks)
    for by_placement in run_world(on_ranks, num_ranks, folder, size, True, list(made.values()), timeout=240):
        for name, latents in zip(made, by_placement, strict=True):
            difference = float((latents - expected).abs().max())
            assert difference <= 1e-5, (name, difference)
            # Products of interleaved branches have half as many rows; with a dozen or fewer, some CPUs' BLAS
            # (seen: a Xeon with AMX) rounds differently.
            if name == "pipesp, 1 chunk":
                assert torch.equal(latents, by_placement[0]), name


def test_sparse_layers(tmp_path: Path) -> None:
    """Two heads on three ranks: ranks compute some rows of a head, in groups that differ in size."""
    folder, size = small_open_sora_plan.save_folder(tmp_path, heads=2), (9, 48, 80)
    names = "ulysses", "auto", "pipesp, 2 chunks", "pipesp-paper", "both"
    made = {name: placements(3)[name] for name in names}
    expected = alone(folder, size, guided=True)
    for by_placement in run_world(on_ranks, 3, folder, size, True, list(made.values()), timeout=240):
        for name, latents in zip(made, by_placement, strict=True):
            difference = float((latents - expected).abs().max())
            assert difference <= 1e-5, (name, difference)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_wan_on_three_ranks(variant: str, tmp_path: Path) -> None:
    folder = save_folder(variant, tmp_path, scheduler=drawing_scheduler())
    check(folder, (9, 64, 96), guided=True, cfg_degree=1, num_ranks=3)


@pytest.mark.parametrize(
    ("heads", "num_ranks", "size"),
    [
        (12, 5, (5, 64, 96)),
        (3, 8, (5, 64, 96)),
        (2, 2, (9, 48, 48)),  # 27 tokens
    ],
)
def test_what_does_not_divide(heads: int, num_ranks: int, size: tuple[int, int, int], tmp_path: Path) -> None:
    folder = save_folder("wan21", tmp_path, heads=heads)
    check(folder, size, guided=True, cfg_degree=1, num_ranks=num_ranks)


def with_another_seed(world: World, folder: Path) -> None:
    spec = read_spec(folder)
    seed = 8 if world.rank == 1 else 7
    request = resolve(Request(prompt="a red circle", width=32, height=32, num_frames=5, seed=seed), spec)
    with pytest.raises(RuntimeError, match=r"rank 1: the request .* rank 0"):
        text_to_video(load(spec), request, Progress(), SequenceParallel(Mesh(world)))


def test_a_rank_that_is_asked_for_something_else_is_named(tmp_path: Path) -> None:
    run_world(with_another_seed, 3, save_folder("wan21", tmp_path))


def with_other_weights(world: World, folders: list[Path]) -> None:
    spec = read_spec(folders[world.rank])
    wanted = Request(
        prompt="a red circle", width=32, height=32, num_frames=5, num_inference_steps=2, guidance_scale=3.0
    )
    request = resolve(wanted, spec)
    with pytest.raises(RuntimeError, match="rank 1: the model differs from that of rank 0"):
        text_to_video(load(spec), request, Progress(), SequenceParallel(Mesh(world)))


def test_a_rank_with_other_weights_is_named(tmp_path: Path) -> None:
    run_world(with_other_weights, 2, [save_folder(v, tmp_path / v) for v in ("wan21", "wan22_a14b")])


@pytest.mark.parametrize(("guided", "cfg_degree", "num_ranks"), [(True, 2, 4), (True, 2, 2), (False, 1, 2)])
def test_guidance_branches(guided: bool, cfg_degree: int, num_ranks: int, tmp_path: Path) -> None:
    check(save_folder("wan21", tmp_path), (9, 48, 48), guided, cfg_degree, num_ranks)


def offered(world: World, folder: Path, guided: bool) -> set[bool]:
    """Return whether interleaved and plain choices are among those that a step leaves undecided."""
    interleaved: set[bool] = set()

    def first(undecided: Undecided) -> Choice:
        interleaved.update(choice.interleave for choice in undecided.choices)
        return undecided.choices[0]

    choices = Placement(ranks=2).choices(read_spec(folder).transformers[0].num_attention_heads)
    final_latents(folder, (5, 32, 32), guided, SequenceParallel(Mesh(world, 1), choices, choose=first))
    return interleaved


@pytest.mark.parametrize("guided", [True, False])
def test_one_branch_is_not_interleaved_with_another(guided: bool, tmp_path: Path) -> None:
    folder = save_folder("wan21", tmp_path)
    assert run_world(offered, 2, folder, guided) == [{False, True} if guided else {False}] * 2
