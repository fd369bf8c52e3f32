"""Long videos by blocks: what is computed, and that the bits are the same on any number of ranks."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import small_open_sora_plan
from messages import says
from paradit.attention.local_attention import sdpa
from paradit.config.methods.method import resolve
from paradit.config.requests import Request, ResolvedRequest
from paradit.distributed import tensor_queue
from paradit.distributed.world import World
from paradit.models.common.latent_blocks import LatentBlocks
from paradit.models.protocol import VideoModel
from paradit.parallel.run_blocks import run
from paradit.progress import Event, Progress, Stepped
from paradit.sampling import block_pipeline, full_sequence, pipeline_links
from paradit.sampling.block_pipeline import BlockPipeline
from paradit.sampling.block_state import QueueState
from paradit.sampling.guidance import guide
from paradit.sampling.layer_split import LayerCosts, LayerShare, divide_layers, measure_layers
from paradit.sampling.noise import BlockNoise, PooledNoise, step_generator
from paradit.scheduling.block_queue import LEVELS, BlockQueue, BlockStep
from paradit.scheduling.layer_pipeline import PipelineGrid, idle_slots
from paradit.testing import run_world
from threads import one_thread
from tiny import VARIANTS, decoded, drawing_scheduler, load_on_cpu, save_folder, save_hunyuan_folder

SIZE = 4, 6
"""Height and width of the latents."""


@dataclass(frozen=True)
class Case:
    """Size of a video in blocks, and the options of its block queue."""

    frames: int
    block_frames: int
    context_frames: int
    steps: int
    left_level: str = "same-level"
    left_source: str = "latents"
    guided: bool = True
    lag: int = 1
    true_timesteps: bool = False

    @property
    def queue(self) -> BlockQueue:
        return BlockQueue(
            num_frames=self.frames,
            block_frames=self.block_frames,
            context_frames=self.context_frames,
            num_steps=self.steps,
            left_level=self.left_level,
            left_source=self.left_source,
            lag=self.lag,
            true_timesteps=self.true_timesteps,
        )


CASES = [
    Case(11, 3, 2, 5),
    Case(11, 3, 2, 5, left_level="one-cleaner"),
    Case(11, 3, 2, 5, left_source="cache"),
    Case(12, 2, 2, 4, left_source="cache", guided=False),
    Case(7, 2, 1, 2, left_level="one-cleaner"),  # fewer steps than ranks
    Case(5, 4, 4, 6),  # two blocks, the last of one frame
    Case(3, 8, 2, 3, guided=False),  # one block
    Case(6, 2, 0, 3),
    Case(11, 3, 2, 5, lag=2),
    Case(11, 3, 2, 6, lag=4, left_source="cache"),
    Case(11, 3, 2, 5, lag=2, true_timesteps=True),
    Case(8, 2, 2, 4, lag=4, guided=False),  # one block in the queue at a time
]
LAGGING = [case for case in CASES if case.lag > 1]


def noise_for(model: VideoModel, case: Case, seed: int = 3) -> BlockNoise:
    return PooledNoise((model.spec.vae.z_dim, *SIZE), seed, case.block_frames, case.context_frames)


def request_of(model: VideoModel, case: Case) -> ResolvedRequest:
    second = 2.0 if len(model.experts) == 2 else None
    asked = Request(prompt="any", num_inference_steps=case.steps, guidance_scale=3.0, guidance_scale_2=second)
    return resolve(asked, model.spec)


def pipeline(
    model: VideoModel,
    case: Case,
    share: LayerShare | None = None,
    state: QueueState | None = None,
    queue: BlockQueue | None = None,
    *,
    progress: Progress | None = None,
) -> BlockPipeline:
    texts = ["a red circle", "blurry"] if case.guided and not model.spec.embedded_guidance else ["a circle"]
    return BlockPipeline(
        model,
        queue or case.queue,
        tuple(model.encode_prompt(text) for text in texts),
        noise_for(model, case),
        SIZE,
        request=request_of(model, case),
        share=share,
        state=state,
        progress=progress,
    )


def alone(folder: Path, cases: list[Case]) -> list[list[Tensor]]:
    with one_thread():
        model = load_on_cpu(folder)
        return [list(pipeline(model, case).blocks()) for case in cases]


def on_ranks(
    world: World,
    folder: Path,
    cases: list[Case],
    costs: LayerCosts | None,
    grid: PipelineGrid,
) -> list[list[Tensor]]:
    model = load_on_cpu(folder, layers=False)
    share = divide_layers(model, world, costs, grid)
    return [list(pipeline(model, case, share).blocks()) for case in cases]


def check_ranks(
    folder: Path, cases: list[Case], grid: PipelineGrid | int, costs: LayerCosts | None = None
) -> None:
    """Compare a video on several ranks with that of one process.

    It must be equal bit for bit, or within 1e-5 if ranks share tokens. grid: a grid of ranks, or a number of
    pipeline ranks.
    """
    grid = grid if isinstance(grid, PipelineGrid) else PipelineGrid(grid)
    expected = alone(folder, cases)
    first, *others = run_world(on_ranks, grid.num_ranks, folder, cases, costs, grid, timeout=240)
    assert all(made == [[] for _ in cases] for made in others)
    for case, made, blocks in zip(cases, first, expected, strict=True):
        assert sum(block.shape[2] for block in made) == case.frames
        worst = max((a - b).abs().max().item() for a, b in zip(made, blocks, strict=True))
        assert worst <= (0 if grid.sharers == 1 else 1e-5), case


@pytest.mark.parametrize(("num_ranks", "layers"), [(1, 2), (2, 5), (3, 4), (4, 4), (4, 7)])
def test_same_bits_on_any_number_of_ranks(num_ranks: int, layers: int, tmp_path: Path) -> None:
    folder = save_folder("wan21", tmp_path, layers=layers, scheduler=drawing_scheduler())
    check_ranks(folder, CASES, num_ranks)


@pytest.mark.parametrize("variant", ["wan22_a14b", "wan22_ti2v"])
def test_every_wan_on_three_ranks(variant: str, tmp_path: Path) -> None:
    folder = save_folder(variant, tmp_path, layers=3)
    check_ranks(folder, [*CASES[:3], *LAGGING[:2]], 3)


def test_hunyuan_video_on_two_ranks(tmp_path: Path) -> None:
    """The model has two double and two single blocks; the text's tokens travel between ranks too."""
    check_ranks(save_hunyuan_folder(tmp_path), CASES[:3], 2, LayerCosts((3.0, 1.0, 1.0, 1.0)))


def test_sparse_layers(tmp_path: Path) -> None:
    check_ranks(small_open_sora_plan.save_folder(tmp_path, heads=3), CASES[:3], PipelineGrid(2, 1, 2))


GUIDED = [case for case in CASES if case.guided]


@pytest.mark.parametrize(
    ("grid", "layers"),
    [(PipelineGrid(1, 2), 2), (PipelineGrid(2, 2), 3), (PipelineGrid(1, 2, 2), 2)],
    ids=str,
)
def test_branches_on_ranks_of_their_own(grid: PipelineGrid, layers: int, tmp_path: Path) -> None:
    check_ranks(save_folder("wan21", tmp_path, heads=3, layers=layers), GUIDED, grid)


@pytest.mark.parametrize(
    ("grid", "layers"),
    [(PipelineGrid(1, 1, 2), 2), (PipelineGrid(1, 1, 4), 2), (PipelineGrid(2, 1, 2), 3)],
    ids=str,
)
def test_tokens_shared_in_a_stage(grid: PipelineGrid, layers: int, tmp_path: Path) -> None:
    """Three heads do not divide among the ranks, and blocks have so few tokens that some ranks hold none."""
    check_ranks(save_folder("wan21", tmp_path, heads=3, layers=layers), CASES, grid)


@pytest.mark.parametrize("variant", ["wan22_a14b", "wan22_ti2v"])
def test_groups_of_every_wan(variant: str, tmp_path: Path) -> None:
    cases = [*GUIDED[:3], *LAGGING[:2]]
    check_ranks(save_folder(variant, tmp_path, heads=3, layers=2), cases, PipelineGrid(2, 1, 2))


def test_groups_of_hunyuan_video(tmp_path: Path) -> None:
    check_ranks(save_hunyuan_folder(tmp_path, heads=3), CASES[:3], PipelineGrid(2, 1, 2))


def in_bf16(world: World, folder: Path) -> list[Tensor]:
    model = load_on_cpu(folder, torch.bfloat16, layers=False)
    share = divide_layers(model, world, None)
    return list(pipeline(model, CASES[0], share).blocks())


def test_bf16(tmp_path: Path) -> None:
    folder = save_folder("wan22_a14b", tmp_path, layers=3)
    (expected,), (made, *_) = (run_world(in_bf16, num_ranks, folder) for num_ranks in (1, 3))
    assert all(block.dtype == torch.float32 for block in made)
    assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))


class Clock:
    """Counter of time slots on real ranks; every message carries the sender's time to its receiver."""

    now = 0.0

    class Channel(tensor_queue.Channel):
        def send(self, tensor: Tensor) -> None:
            super().send(tensor)
            super().send(torch.tensor([Clock.now]))

        def receive(self, *args: Any) -> Tensor:
            message = super().receive(*args)
            Clock.now = max(Clock.now, float(super().receive(*args)))
            return message

    class Expected(tensor_queue.Expected):
        def __init__(self, world: World, sender: int, shapes: Iterator[Any], dtype: torch.dtype) -> None:
            super().__init__(world, sender, ([*group, (1,)] for group in shapes), dtype)

        def receive(self) -> list[Tensor]:
            *messages, time = super().receive()
            Clock.now = max(Clock.now, float(time))
            return messages


def slots_taken(world: World, folder: Path, cases: list[Case]) -> list[float]:
    """Return the slots, in block-steps, until rank 0 has its last prediction, for each case."""
    model, taken = load_on_cpu(folder), []
    share = divide_layers(model, world, None)

    def run_in_one_slot(work: Any) -> Any:
        Clock.now += 1
        return run(work)

    vars(pipeline_links).update(Channel=Clock.Channel, Expected=Clock.Expected)
    vars(block_pipeline).update(run=run_in_one_slot)
    pipeline_links.HOP_DEPTH *= 2
    for case in cases:
        Clock.now = 0.0
        list(pipeline(model, case, share).blocks())
        taken.append(Clock.now / (2 if case.guided else 1))
    return taken


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_idle_slots_of_real_runs(num_ranks: int, tmp_path: Path) -> None:
    """Real runs idle exactly as scheduled: with one branch for (N-1)^2 and N^2-1 slots."""
    folder, size = save_folder("wan21", tmp_path, layers=4), (2 * num_ranks + 2, 2, 1, num_ranks)
    cases = [Case(*size, level, guided=guided) for guided in (False, True) for level in LEVELS]
    cases += [Case(*size, guided=guided, lag=2) for guided in (False, True)]
    slots, *_ = run_world(slots_taken, num_ranks, folder, cases)
    idle = [taken - (num_ranks + 1) * num_ranks for taken in slots]
    assert idle[:2] == [(num_ranks - 1) ** 2, num_ranks**2 - 1]
    assert idle == [idle_slots(case.queue, num_ranks, 1 + case.guided) for case in cases]


@pytest.mark.parametrize("layers", [True, False], ids=["given up", "read"])
def test_a_rank_holds_its_own_layers_only(layers: bool, tmp_path: Path) -> None:
    folder = save_folder("wan22_a14b", tmp_path, layers=3)
    held = run_world(layers_held, 2, folder, layers)
    assert held == [(range(0, 1), [1, 1]), (range(1, 3), [2, 2])]


def layers_held(world: World, folder: Path, layers: bool) -> tuple[range, list[int]]:
    model = load_on_cpu(folder, layers=layers)
    share = divide_layers(model, world, LayerCosts((1.0,) * 3, embed=2.0) if world.rank == 0 else None)
    experts: Any = model.experts
    held = [len(expert.module.blocks) for expert in experts]
    assert held == [len(expert.blocks) for expert in model.experts]
    return share.layers, held


@pytest.mark.parametrize("layers", [True, False], ids=["all there", "none yet"])
def test_costs_are_measured(layers: bool, tmp_path: Path) -> None:
    """Costs are measured for both kinds of layers, with at most one layer loaded if none was."""
    model = load_on_cpu(save_hunyuan_folder(tmp_path), layers=layers)
    costs = measure_layers(model, (3, *SIZE), model.encode_prompt("a circle"))
    assert len(costs.layers) == 4
    assert costs.layers[0] == costs.layers[1] != costs.layers[2] == costs.layers[3]
    assert min(*costs.layers, costs.head, costs.embed) > 0
    assert len(model.experts[0].blocks) == (4 if layers else 1)


def test_costs_of_sparse_layers_are_measured_by_pattern(tmp_path: Path) -> None:
    model = load_on_cpu(small_open_sora_plan.save_folder(tmp_path))
    full, _, single, group, *ends = measure_layers(model, (3, *SIZE), model.encode_prompt("a circle")).layers
    assert ends == [full, full]
    assert len({full, single, group}) == 3


@pytest.mark.parametrize("guided", [True, False])
def test_one_block_is_the_whole_video_at_once(guided: bool, tmp_path: Path) -> None:
    model = load_on_cpu(save_folder("wan22_a14b", tmp_path))
    case = Case(5, 5, 0, 6, guided=guided)
    texts = ["a red circle", "blurry"] if guided else ["a circle"]
    with one_thread():
        (expected,) = full_sequence.denoise(
            model,
            noise_for(model, case).block(0),
            tuple(model.encode_prompt(text) for text in texts),
            request=request_of(model, case),
            noise=partial(step_generator, 0),
            progress=Progress(),
        )
        (made,) = pipeline(model, case).blocks()
    assert torch.equal(made, expected)


class Plainly:
    """Straightforward second version of the method, which keeps everything and looks it up by level."""

    def __init__(self, model: VideoModel, case: Case) -> None:
        self.model, self.case, self.noise = model, case, noise_for(model, case)
        self.latents: dict[tuple[int, int], Tensor] = {}
        self.keys: dict[tuple[int, int, int, int], tuple[Tensor, Tensor]] = {}
        """Keys and values of a block's own frames, by (block, level, branch, layer)."""
        self.schedulers: dict[int, Any] = {}

    def make(self) -> list[Tensor]:
        case, blocks = self.case, -(-self.case.frames // self.case.block_frames)
        for block in range(blocks):
            frames = min(case.block_frames, case.frames - block * case.block_frames)
            self.latents[block, 0] = self.noise.block(block)[:, :, :frames]
            self.schedulers[block] = self.model.scheduler(request_of(self.model, case))
        for round in range(case.lag * (blocks - 1) + case.steps):
            for block in reversed(range(blocks)):
                if 0 <= round - case.lag * block < case.steps:
                    pushed = min(round // case.lag, blocks - 1)
                    self.take(block, round - case.lag * block, pushed)
        return [self.latents[block, case.steps] for block in range(blocks)]

    def take(self, block: int, step: int, pushed: int) -> None:
        case, own, context = self.case, self.latents[block, step], self.case.context_frames
        timestep = self.schedulers[block].timesteps[step]
        expert = self.model.expert_at(timestep)
        before = [own.new_empty(*own.shape[:2], 0, *SIZE)] * 2
        left, right = before
        left_step = read_left = read_right = 0
        if block and context:
            latest = min(step + case.lag, case.steps)
            same_level = case.lag == 1 and case.left_level == "same-level"
            left_step = step if same_level else latest
            left = self.latents[block - 1, left_step][:, :, -context:]
            if case.left_source == "cache" and self.expert(latest - 1) == expert:
                read_left = context
        if block < pushed and context:
            right = self.latents[block + 1, step - case.lag][:, :, :context]
            read_right = right.shape[2] if self.expert(step - case.lag) == expert else 0
        tokens_in_a_frame = SIZE[0] * SIZE[1] // 4
        window = torch.cat([left, own, right], dim=2)
        parts = (left, left_step), (own, step), (right, step - case.lag)
        timesteps = self.timesteps_of(block, parts) if case.true_timesteps else timestep
        predictions = []
        for branch, text in enumerate(["a red circle", "blurry"] if case.guided else ["a circle"]):
            transformer = self.model.experts[expert]
            layout = transformer.layout((window.shape[2], *SIZE))
            context_of_text = transformer.context(*self.model.encode_prompt(text))
            tokens = transformer.embed(
                window, self.model.model_timestep(timesteps, window), context_of_text, layout
            )
            start, stop = (tokens_in_a_frame * frames for frames in (read_left, window.shape[2] - read_right))
            first = tokens_in_a_frame * left.shape[2] - start
            last = first + tokens_in_a_frame * own.shape[2]
            part = tokens.shard(start, stop)
            for layer, cut in enumerate(transformer.blocks):
                value, key, query = cut.project(part)
                self.keys[block, step, branch, layer] = key[:, first:last], value[:, first:last]
                all_keys, all_values = [key], [value]
                if read_left:
                    k, v = self.keys[block - 1, latest - 1, branch, layer]
                    all_keys.insert(0, k[:, -start:])
                    all_values.insert(0, v[:, -start:])
                if read_right:
                    k, v = self.keys[block + 1, step - case.lag, branch, layer]
                    all_keys.append(k[:, : tokens_in_a_frame * read_right])
                    all_values.append(v[:, : tokens_in_a_frame * read_right])
                rotated = layout.rope.apply(torch.cat(all_keys, dim=1))
                attended = sdpa(part.layout.rope.apply(query), rotated, torch.cat(all_values, dim=1))
                part = cut.finish(part, attended)
            values = transformer.head(part)[:, first:last]
            predictions.append(transformer.unpatchify(values, transformer.layout((own.shape[2], *SIZE))))
        guided = guide(predictions, (3.0, 2.0)[expert])
        noise = step_generator(3, step, block)
        (after,) = self.schedulers[block].step(guided, timestep, own, generator=noise, return_dict=False)
        self.latents[block, step + 1] = after

    def timesteps_of(self, block: int, parts: Iterable[tuple[Tensor, int]]) -> Tensor:
        """Return the timestep of each frame of latents, given with the number of steps taken."""
        known = self.schedulers[block].timesteps
        by_step = [*known, torch.zeros_like(known[0])]
        return torch.stack([by_step[step] for latents, step in parts for _ in range(latents.shape[2])])

    def expert(self, step: int) -> int:
        return self.model.expert_at(self.schedulers[0].timesteps[step])


@pytest.mark.parametrize("case", CASES, ids=str)
@torch.no_grad()
def test_equals_the_method_written_plainly(case: Case, tmp_path: Path) -> None:
    model = load_on_cpu(save_folder("wan22_a14b", tmp_path, layers=2, scheduler=drawing_scheduler()))
    experts = [model.expert_at(timestep) for timestep in model.scheduler(request_of(model, case)).timesteps]
    assert 0 in experts
    assert case.steps < 4 or 1 in experts
    for made, expected in zip(pipeline(model, case).blocks(), Plainly(model, case).make(), strict=True):
        torch.testing.assert_close(made, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("case", [*CASES[:5], *LAGGING, "hunyuan_video"], ids=str)
def test_stopped_after_any_round_and_gone_on(case: Case | str, tmp_path: Path) -> None:
    if isinstance(case, Case):
        folder = save_folder("wan22_a14b", tmp_path, scheduler=drawing_scheduler())
    else:
        folder, case = save_hunyuan_folder(tmp_path), CASES[1]
    model = load_on_cpu(folder)
    states: list[QueueState] = []
    done: list[int] = []

    def keep(state: QueueState) -> bool:
        states.append(state)
        done.append(len(made))
        return True

    with one_thread():
        made: list[Tensor] = []
        for block in pipeline(model, case).blocks(keep):
            made.append(block)
        assert [state.round for state in states] == list(range(1, len(states) + 1))
        assert len(states) == case.queue.num_rounds
        assert max(len(state.blocks) for state in states) <= case.steps + 1
        for state, before in zip(states, done, strict=True):
            told: list[Event] = []
            rest = list(
                pipeline(load_on_cpu(folder), case, state=state, progress=Progress(told.append)).blocks()
            )
            steps = [(event.done, event.resumed) for event in told if isinstance(event, Stepped)]
            assert {resumed for _, resumed in steps} == {steps[0][0]}  # the first is of an earlier process
            assert len(rest) == len(made) - before
            assert all(torch.equal(a, b) for a, b in zip(rest, made[before:], strict=True))


def saved_on_ranks(world: World, folder: Path, case: Case, grid: PipelineGrid) -> list[QueueState]:
    model = load_on_cpu(folder)
    states: list[QueueState] = []
    share = divide_layers(model, world, None, grid)
    list(pipeline(model, case, share).blocks(states.append, save_every=3))
    return states


def going_on(world: World, folder: Path, case: Case, state: QueueState, grid: PipelineGrid) -> list[Tensor]:
    model = load_on_cpu(folder)
    share = divide_layers(model, world, None, grid)
    return list(pipeline(model, case, share, state).blocks())


@pytest.mark.parametrize("source", ["latents", "cache"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (PipelineGrid(3), PipelineGrid(2)),
        (PipelineGrid(1, 1, 2), PipelineGrid(1, 2)),
        (PipelineGrid(2), PipelineGrid(1, 1, 3)),
    ],
    ids=str,
)
def test_gone_on_with_another_number_of_ranks(
    source: str, before: PipelineGrid, after: PipelineGrid, tmp_path: Path
) -> None:
    folder, case = save_folder("wan21", tmp_path, layers=3), replace(CASES[0], left_source=source)
    (expected,) = alone(folder, [case])
    by_rank = run_world(saved_on_ranks, before.num_ranks, folder, case, before)
    assert [state.round for state in by_rank[1]] == [3, 6]
    first, *others = (states[-1] for states in by_rank)
    features = {
        key: {of: part for state in (first, *others) for of, part in state.left_features.get(key, {}).items()}
        for state in (first, *others)
        for key in state.left_features
    }
    assert bool(features) == (source == "cache")
    whole = QueueState.from_bytes(replace(first, left_features=features).to_bytes())
    made, *_ = run_world(going_on, after.num_ranks, folder, case, whole, after)
    assert made
    for a, b in zip(made, expected[-len(made) :], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 if before.sharers * after.sharers > 1 else 0)


@pytest.mark.parametrize("case", [*CASES[:3], *LAGGING], ids=str)
def test_a_video_is_extended_from_the_last_state_before_its_end_is_known(case: Case, tmp_path: Path) -> None:
    model = load_on_cpu(save_folder("wan21", tmp_path))
    states: list[QueueState] = []
    longer = replace(case, frames=case.frames + 5)
    with one_thread():
        list(pipeline(model, case).blocks(states.append))
        whole = list(pipeline(model, longer).blocks())
        # Before the last block joins the queue, which may become longer, or get a right neighbour.
        state = states[case.queue.open_rounds - 1]
        rest = list(pipeline(model, longer, state=state).blocks())
    assert all(torch.equal(a, b) for a, b in zip(rest, whole[-len(rest) :], strict=True))


@pytest.mark.parametrize("lag", [1, 2])
def test_a_video_without_end(lag: int, tmp_path: Path) -> None:
    model, case = load_on_cpu(save_folder("wan21", tmp_path)), Case(20, 2, 1, 3, lag=lag)
    with one_thread():
        endless = pipeline(model, case, queue=replace(case.queue, num_frames=None)).blocks()
        whole = pipeline(model, case).blocks()
        for made, expected in zip(islice(endless, 7), whole, strict=False):
            assert torch.equal(made, expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_blocks_are_decoded_as_they_come(variant: str, tmp_path: Path) -> None:
    """Frames equal those of the whole latents, and a block is requested once those before are decoded."""
    model = load_on_cpu(save_folder(variant, tmp_path))
    latents = torch.randn(1, model.spec.vae.z_dim, 6, *SIZE)
    asked: list[int] = []

    def blocks() -> Iterator[Tensor]:
        for block in latents.split([1, 3, 2], dim=2):
            asked.append(len(made))
            yield block

    made: list[Any] = []
    for frames in decoded(model, LatentBlocks(tuple(latents.shape), blocks())):
        made.append(frames)
    assert asked == [0, 1, 4]
    for frames, expected in zip(made, decoded(model, latents), strict=True):
        assert (frames == expected).all()


def test_latents_that_are_not_finite_are_named(tmp_path: Path) -> None:
    model = load_on_cpu(save_folder("wan21", tmp_path))
    experts: Any = model.experts
    experts[0].module.proj_out.bias.data.fill_(torch.inf)
    with pytest.raises(FloatingPointError, match="the latents of block 1 are not finite after step 1"):
        list(pipeline(model, CASES[0]).blocks())


def poisoned(collect: Any, at: tuple[int, int] | None) -> Any:
    """Wrap `collect` so that latents become infinite in one (block, step)."""

    def poison(self: BlockPipeline, step: BlockStep) -> None:
        if (step.block, step.step) == at:
            self._held[step.block].latents *= torch.inf
        collect(self, step)

    return poison


def poisoned_on_ranks(
    world: World, folder: Path, points: list[tuple[int, int]], grid: PipelineGrid
) -> list[Any]:
    """Return this rank's blocks or error for a video poisoned at each point, and then for a sound one."""
    model = load_on_cpu(folder)
    share = divide_layers(model, world, None, grid)
    collect = BlockPipeline._collect
    found: list[Any] = []
    for point in (*points, None):
        BlockPipeline._collect = poisoned(collect, point)  # type: ignore[method-assign]
        try:
            found.append(list(pipeline(model, CASES[0], share).blocks()))
        except FloatingPointError as error:
            found.append(str(error))
    return found


@pytest.mark.parametrize("grid", [PipelineGrid(2), PipelineGrid(4), PipelineGrid(1, 2, 2)])
def test_latents_that_are_not_finite_end_a_video_alone(grid: PipelineGrid, tmp_path: Path) -> None:
    """All ranks end the video alike, without waiting forever, and the next video is right."""
    points = [(0, 0), (0, 4), (2, 1), (3, 4)]  # at the last point, the other ranks have finished already
    folder = save_folder("wan21", tmp_path, layers=4)
    (expected,) = alone(folder, CASES[:1])
    (*failed, made), *others = run_world(poisoned_on_ranks, grid.num_ranks, folder, points, grid, timeout=240)
    for message, (block, step) in zip(failed, points, strict=True):
        assert says(message, f"block {block + 1} .. not finite .. step {step + 1}")
    for block, wanted in zip(made, expected, strict=True):
        torch.testing.assert_close(block, wanted, rtol=0, atol=1e-5 if grid.sharers > 1 else 0)
    assert all(found == [*failed[:3], [], []] for found in others)
