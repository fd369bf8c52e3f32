"""Methods that DualParal is compared with: windowed, and fifo with a noise level for each frame."""

from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from paradit.config.methods.method import resolve
from paradit.config.placement import Placement
from paradit.config.requests import Request, ResolvedRequest
from paradit.distributed.world import World
from paradit.engine.predictors import sequence_parallel
from paradit.models.protocol import VideoModel
from paradit.parallel.predictor import LocalPredictor, Predictor
from paradit.progress import Event, Progress, Stepped
from paradit.sampling import fifo, full_sequence, windowed
from paradit.sampling.block_state import QueueState
from paradit.sampling.guidance import guide
from paradit.sampling.noise import BlockNoise, PooledNoise, step_generator
from paradit.scheduling.block_queue import BlockQueue
from paradit.testing import run_world
from tiny import drawing_scheduler, load_on_cpu, save_folder

SIZE = 4, 6
"""Height and width of the latents."""
SCALES = 3.0, 2.0
QUEUES = [
    BlockQueue(num_frames=frames, block_frames=block, context_frames=context, num_steps=steps)
    for frames, block, context, steps in [(11, 3, 2, 5), (12, 2, 0, 4), (5, 4, 4, 6), (3, 8, 2, 3)]
]
NAMES = ["four blocks", "no context", "two blocks", "one block"]


def prompts(model: VideoModel) -> tuple[tuple[Tensor, ...], ...]:
    return tuple(model.encode_prompt(text) for text in ("a red circle", "blurry"))


def noise_for(model: VideoModel, queue: BlockQueue) -> BlockNoise:
    return PooledNoise((model.spec.vae.z_dim, *SIZE), 3, queue.block_frames, queue.context_frames)


def request_of(model: VideoModel, queue: BlockQueue) -> ResolvedRequest:
    first, second = SCALES[0], SCALES[1] if len(model.experts) == 2 else None
    asked = Request(
        prompt="any", num_inference_steps=queue.num_steps, guidance_scale=first, guidance_scale_2=second
    )
    return resolve(asked, model.spec)


def make(
    method: ModuleType,
    model: VideoModel,
    queue: BlockQueue,
    *,
    predictor: Predictor | None = None,
    state: QueueState | None = None,
    save: Callable[[QueueState], bool] | None = None,
    progress: Progress | None = None,
) -> list[Tensor]:
    noise = noise_for(model, queue)
    return list(
        method.blocks(
            model,
            queue,
            prompts(model),
            noise,
            request=request_of(model, queue),
            predictor=predictor or LocalPredictor(),
            state=state,
            save=save,
            progress=progress,
        )
    )


def frames_in(queue: BlockQueue) -> int:
    assert queue.num_frames
    return queue.num_frames


def whole_noise(model: VideoModel, queue: BlockQueue) -> Tensor:
    assert queue.num_blocks
    return torch.cat([noise_for(model, queue).block(number) for number in range(queue.num_blocks)], dim=2)


@pytest.mark.parametrize("queue", QUEUES, ids=NAMES)
def test_windows_are_videos_of_their_own_faded_into_each_other(queue: BlockQueue, tmp_path: Path) -> None:
    model = load_on_cpu(save_folder("wan22_a14b", tmp_path, scheduler=drawing_scheduler()))
    blocks, context, num_frames = queue.block_frames, queue.context_frames, frames_in(queue)
    pool = whole_noise(model, queue)
    total, weights = torch.zeros(()), torch.zeros(num_frames)
    for start in range(0, num_frames, blocks):
        window = slice(max(0, start - context), min(num_frames, start + blocks + context))
        latents = torch.zeros_like(pool)[:, :, :num_frames]
        (latents[:, :, window],) = full_sequence.denoise(
            model,
            pool[:, :, window],
            prompts(model),
            request=request_of(model, queue),
            noise=partial(step_generator, 3, part=start // blocks),
            progress=Progress(),
        )
        weight = torch.ones(num_frames)
        ramp = torch.arange(1, 2 * context + 1) / (2 * context + 1)
        for step in range(2 * context):  # there are no ramps at the video's two ends
            left, right = start - context + step, start + blocks + context - 1 - step
            if start and left < num_frames:
                weight[left] = min(weight[left], ramp[step])
            if start + blocks < num_frames and right < num_frames:
                weight[right] = min(weight[right], ramp[step])
        outside = torch.ones(num_frames, dtype=torch.bool)
        outside[window] = False
        weight[outside] = 0
        total, weights = total + latents * weight[:, None, None], weights + weight
    if 2 * context <= blocks:
        assert torch.allclose(weights, torch.ones(()))
    made = make(windowed, model, queue)
    assert [block.shape[2] for block in made] == [queue.frames_of(n) for n in range(len(made))]
    torch.testing.assert_close(torch.cat(made, dim=2), total / weights[:, None, None], rtol=1e-5, atol=1e-5)


def test_one_window_is_the_whole_video_at_once(tmp_path: Path) -> None:
    model = load_on_cpu(save_folder("wan21", tmp_path))
    (expected,) = full_sequence.denoise(
        model,
        noise_for(model, QUEUES[3]).block(0)[:, :, :3],
        prompts(model),
        request=request_of(model, QUEUES[3]),
        noise=partial(step_generator, 0),
        progress=Progress(),
    )
    (made,) = make(windowed, model, QUEUES[3])
    assert torch.equal(made, expected)


@pytest.mark.parametrize("variant", ["wan21", "wan22_ti2v"])
@pytest.mark.parametrize("queue", QUEUES, ids=NAMES)
def test_diagonally_as_written_down_plainly(variant: str, queue: BlockQueue, tmp_path: Path) -> None:
    """Latents equal a plain loop over the module's own `forward`, with a timestep for every frame."""
    model = load_on_cpu(save_folder(variant, tmp_path, scheduler=drawing_scheduler()))
    transformer: Any = model.experts[0]
    module, last, num_frames = transformer.module, queue.num_steps, frames_in(queue)
    latents = whole_noise(model, queue)
    solvers = [model.scheduler(request_of(model, queue)) for _ in range(num_frames)]
    times = [*solvers[0].timesteps.tolist(), 0.0]
    for round in range(num_frames + last - 1):
        level = [min(max(0, round - frame), last) for frame in range(num_frames)]
        active = [frame for frame in range(num_frames) if 0 <= round - frame < last]
        before = latents.clone()
        for head in active[:: queue.block_frames]:
            own = [frame for frame in active if head <= frame < head + queue.block_frames]
            seen = range(
                max(0, own[0] - queue.context_frames), min(own[-1] + queue.context_frames, active[-1]) + 1
            )
            tokens = (SIZE[0] // 2) * (SIZE[1] // 2)
            timestep = torch.tensor([[times[level[frame]] for frame in seen for _ in range(tokens)]])
            predictions = [
                module(before[:, :, list(seen)], timestep, text, return_dict=False)[0]
                for (text,) in prompts(model)
            ]
            prediction = guide(predictions, SCALES[0])
            for frame in own:
                place = frame - seen[0]
                (latents[:, :, frame : frame + 1],) = solvers[frame].step(
                    prediction[:, :, place : place + 1],
                    solvers[frame].timesteps[level[frame]],
                    before[:, :, frame : frame + 1],
                    generator=step_generator(3, level[frame], frame),
                    return_dict=False,
                )
    made = make(fifo, model, queue)
    assert [block.shape[2] for block in made] == [queue.frames_of(n) for n in range(len(made))]
    assert torch.equal(torch.cat(made, dim=2), latents[:, :, :num_frames])


@pytest.mark.parametrize("method", [windowed, fifo])
@pytest.mark.parametrize("queue", QUEUES[:3], ids=NAMES[:3])
def test_goes_on_from_a_saved_state(method: ModuleType, queue: BlockQueue, tmp_path: Path) -> None:
    model = load_on_cpu(save_folder("wan21", tmp_path, scheduler=drawing_scheduler()))
    states: list[bytes] = []

    def save(state: QueueState) -> bool:
        states.append(state.to_bytes())
        return True

    whole = make(method, model, queue, save=save)
    for content in islice(states, 2, None, 3):
        state, steps = QueueState.from_bytes(content), list[Event]()
        rest = make(method, model, queue, state=state, progress=Progress(steps.append))
        counted = [(event.done, event.resumed) for event in steps if isinstance(event, Stepped)]
        assert queue.num_blocks and counted[-1][0] == queue.num_blocks * queue.num_steps
        assert {resumed for _, resumed in counted} == {counted[0][0] if state.round else 0}
        done = method.finished(queue, state.round)
        assert len(rest) == len(whole) - done
        assert all(torch.equal(a, b) for a, b in zip(rest, whole[done:], strict=True))


def on_ranks(world: World, folder: Path, cfg_degree: int) -> list[list[Tensor]]:
    model = load_on_cpu(folder)
    placement = Placement(ranks=world.size, cfg_degree=cfg_degree, attention="ulysses")
    predictor = sequence_parallel(world, placement, model.experts[0].num_heads)
    return [make(method, model, QUEUES[0], predictor=predictor) for method in (windowed, fifo)]


@pytest.mark.parametrize(("num_ranks", "cfg_degree"), [(2, 2), (3, 1)])
def test_ranks_share_each_window(num_ranks: int, cfg_degree: int, tmp_path: Path) -> None:
    folder = save_folder("wan21", tmp_path, heads=3, scheduler=drawing_scheduler())
    expected = [make(method, load_on_cpu(folder), QUEUES[0]) for method in (windowed, fifo)]
    for made in run_world(on_ranks, num_ranks, folder, cfg_degree):
        for blocks, wanted in zip(made, expected, strict=True):
            for block, other in zip(blocks, wanted, strict=True):
                torch.testing.assert_close(block, other, rtol=0, atol=1e-5)
