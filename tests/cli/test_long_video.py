"""Long videos by the command line: made in blocks, of exact length, and the same whatever happens."""

from pathlib import Path
from typing import Any

import pytest
import torch

from made_videos import latents_in
from messages import says
from paradit.config.methods.dualparal import QueueRequest
from paradit.config.methods.method import resolve
from paradit.config.placement import Placement
from paradit.config.requests import Request
from paradit.models.spec import read_spec
from paradit.planner.hardware import find_cluster
from paradit.planner.long_video import LongVideo
from paradit.scheduling.block_queue import LEFT_SOURCES, BlockQueue
from paradit.scheduling.layer_pipeline import idle_slots
from paradit.trace.spans import STEP
from paradit.trace.summary import read_trace
from paradit.video.reader import read_video
from runs import Command, finished, run_folder
from tiny import save_folder

FRAMES = 34  # not 4n+1: ten latent frames in five blocks, of which three decoded frames are dropped


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-wan"
    return save_folder(
        "wan21", folder, heads=3, layers=4, width=48, height=48, num_frames=9, num_inference_steps=4
    )


def arguments(model: Path, *options: str, frames: int = FRAMES) -> list[str]:
    sizes = ["--num-frames", str(frames), "--block-frames", "2", "--context-frames", "1"]
    files = ["-o", "v.mp4", "--latents", "l.safetensors"]
    return [
        "generate",
        "a red circle",
        "--model",
        str(model),
        "--method",
        "dualparal",
        *sizes,
        *files,
        *options,
    ]


@pytest.fixture(scope="module")
def alone(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the video that one process makes."""
    folder = tmp_path_factory.mktemp("alone")
    finished(folder, *arguments(model))
    return folder


def same_video(folder: Path, expected: Path) -> None:
    made, wanted = (latents_in(where) for where in (folder, expected))
    assert torch.equal(made, wanted)
    frames, wanted_frames = (read_video(where / "v.mp4")[0] for where in (folder, expected))
    assert (frames == wanted_frames).all()
    # The run's folder is kept: the video can be made longer.
    assert {path.name for path in folder.iterdir()} == {"v.mp4", "l.safetensors", "paradit-runs"}
    assert not [path for path in run_folder(folder).iterdir() if path.name.endswith((".step.pt", ".part"))]


def test_exactly_so_many_frames(alone: Path) -> None:
    assert len(read_video(alone / "v.mp4")[0]) == FRAMES
    assert latents_in(alone).shape[2] == 10


@pytest.mark.parametrize(
    "options",
    [
        ["--ranks", "2"],
        ["--ranks", "3", "--placement", "denoise=0-2 decode=0", "--pipeline-degree", "3"],
        ["--ranks", "4", "--cfg-degree", "2"],
        ["--ranks", "2", "--pipeline-degree", "1"],
        ["--placement", "denoise=0-3 decode=4", "--pipeline-degree", "2"],
        ["--placement", "denoise=0 decode=1"],
        ["--placement", "denoise=0-1 decode=2 encode=2"],
        ["--placement", "denoise=1-2 decode=0,3", "--decode-degree", "2", "--vae-tile", "32"],
    ],
)
def test_the_same_on_any_ranks(model: Path, alone: Path, tmp_path: Path, options: list[str]) -> None:
    finished(tmp_path, *arguments(model, *options))
    if "--vae-tile" in options:  # frames differ where tiles are blended
        made, wanted = (latents_in(where) for where in (tmp_path, alone))
        assert torch.equal(made, wanted)
    else:
        same_video(tmp_path, alone)


def test_more_ranks_than_layers(model: Path, alone: Path, tmp_path: Path) -> None:
    """All ranks share the tokens, and matrix products of only four rows may round differently."""
    finished(tmp_path, *arguments(model, "--ranks", "5"))
    made, wanted = (latents_in(where) for where in (tmp_path, alone))
    torch.testing.assert_close(made, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [[], ["--placement", "denoise=0-1 decode=2"]], ids=["alone", "apart"])
def test_a_killed_run_goes_on(model: Path, alone: Path, tmp_path: Path, options: list[str]) -> None:
    """A run that is killed after some blocks are done repeats no block, and no step before its checkpoint."""
    command = Command(tmp_path, *arguments(model, *options, "--checkpoint-steps", "1"))
    command.until_event("step", stage="decode", done=3)
    command.kill()
    blocks = len(list(run_folder(tmp_path).glob("*.block-*.pt")))
    assert blocks >= 2
    resumed = finished(tmp_path, "resume")
    steps = [told for told in resumed.told if told["event"] == "step" and told["stage"] == "denoise"]
    assert len(steps) <= 4 * (5 - blocks) + 4
    same_video(tmp_path, alone)


def test_a_killed_rank_is_replaced(model: Path, alone: Path, tmp_path: Path) -> None:
    command = Command(tmp_path, *arguments(model, "--ranks", "2", "--checkpoint-steps", "1"))
    command.until_event("step", stage="denoise", done=12)
    command.ranks()[1].kill()
    command.end_well()
    same_video(tmp_path, alone)


@pytest.mark.parametrize(
    ("method", "options"),
    [("windowed", []), ("fifo", ["--placement", "denoise=0-1 decode=2", "--attention", "ulysses"])],
)
def test_what_it_is_compared_to(model: Path, tmp_path: Path, method: str, options: list[str]) -> None:
    """Killed and resumed runs of the controls equal uninterrupted runs, also on ranks that share windows."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    for folder in (alone, together):
        folder.mkdir()
    finished(alone, *arguments(model, "--method", method))
    command = Command(together, *arguments(model, "--method", method, *options, "--checkpoint-steps", "1"))
    command.until_event("step", stage="decode", done=3)
    command.kill()
    resumed = finished(together, "resume")
    steps = [told for told in resumed.told if told["event"] == "step" and told["stage"] == "denoise"]
    assert max(told["done"] for told in steps) == 20
    assert max(told["done"] - told["resumed"] for told in steps) <= 16
    made, wanted = (latents_in(folder) for folder in (together, alone))
    torch.testing.assert_close(made, wanted, rtol=0, atol=1e-5 if options else 0)
    assert len(read_video(together / "v.mp4")[0]) == FRAMES


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--method", "magic"], "method .. full, dualparal, windowed, fifo, got 'magic'"),
        (["--block-frames", "0"], "block_frames must be at least 1, got 0"),
        (["--context-frames", "3"], "context_frames .. at most 2, .. got 3"),
        (["--block-frames", "60", "--context-frames", "8"], "at most 64 latent frames"),
        (["--left-context", "disk"], "left_context must be latents or cache, got 'disk'"),
        (
            ["--method", "windowed", "--left-context", "cache"],
            "method windowed does not take left_context: use method",
        ),
        (["--lag", "5"], "lag must be at most 4, the number of steps, got 5"),
        (["--lag", "2", "--left-level", "same-level"], "left_level is for a lag of 1"),
        (["--left-level", "one-cleaner", "--left-context", "cache"], "one-cleaner needs .. latents"),
        (["--context-timesteps", "own"], "context_timesteps must be block or true, got 'own'"),
        (["--method", "full"], "full .. block_frames and context_frames: use method dualparal"),
        (
            ["--ranks", "6", "--pipeline-degree", "6"],
            "6 .. 4 layers: use a pipeline_degree of 3",
        ),
        (
            ["--ranks", "4", "--cfg-degree", "2", "--pipeline-degree", "4"],
            "2 ranks .. 4 .. use a pipeline_degree of",
        ),
        (["--pipeline-degree", "0"], "pipeline_degree must be at least 1, got 0"),
        (["--ranks", "2", "--attention", "ring"], "layers .. leave attention out"),
        (["--placement", "denoise=0-1 decode=1"], "rank 1 cannot denoise .. and decode"),
        (
            ["--method", "fifo", "--placement", "denoise=0 decode=1", "--coprocess"],
            "coprocess .. method fifo: leave it out",
        ),
        (["--duration", "2s"], "give a duration (2s) or num_frames (34), not both"),
    ],
)
def test_what_cannot_be_is_refused(model: Path, tmp_path: Path, options: list[str], said: str) -> None:
    command = Command(tmp_path, *arguments(model, *options))
    code, errors = command.end()
    assert code == 2
    assert says(errors, said)
    assert len(errors.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options", [["--left-context", "cache"], ["--lag", "2"], ["--left-level", "one-cleaner"]], ids=str
)
def test_other_left_contexts(model: Path, alone: Path, tmp_path: Path, options: list[str]) -> None:
    """Latents differ from the usual ones of four steps, and are equal on one rank and on several."""
    made = []
    for ranks in (1, 3):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        finished(folder, *arguments(model, *options, "--ranks", str(ranks)))
        made.append(latents_in(folder))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], latents_in(alone))


@pytest.mark.parametrize(
    ("ranks", "given", "lag"),
    [
        ({}, {}, 4),
        ({"ranks": 4}, {}, 4),
        ({"ranks": 4}, {"guidance_scale": 1.0}, 4),
        ({"ranks": 8, "cfg_degree": 2}, {}, 4),
        ({"ranks": 4}, {"num_inference_steps": 14}, 2),
        ({"ranks": 4, "pipeline_degree": 1}, {"num_inference_steps": 16}, 4),
        ({}, {"num_inference_steps": 4}, 1),
        ({}, {"left_context": "cache"}, 1),
        ({}, {"left_level": "one-cleaner"}, 1),
        ({"ranks": 4}, {"lag": 20}, 20),
    ],
    ids=str,
)
def test_the_default_lag(model: Path, ranks: dict[str, int], given: dict[str, Any], lag: int) -> None:
    sizes = {"num_frames": FRAMES, "trim": True, "num_inference_steps": 20}
    request = Request.of(prompt="any", method="dualparal", **{**sizes, **given})
    resolved = resolve(request, read_spec(model), Placement.of(**ranks))
    assert isinstance(resolved, QueueRequest)
    assert resolved.lag == lag
    assert resolve(resolved.asked(), read_spec(model), Placement(ranks=8)) == resolved, "it is recorded"


def test_what_a_dry_run_says_of_stages(model: Path, tmp_path: Path) -> None:
    command = finished(tmp_path, *arguments(model, "--ranks", "4", "--pipeline-degree", "2", "--dry-run"))
    (plan,) = [told for told in command.told if told["event"] == "plan"]
    assert plan["pipeline_degree"] == 2
    assert [share["layers"] for share in plan["shares"]] == [2] * 4
    assert sum(share["tokens"] for share in plan["shares"][:2]) == plan["tokens"]


def test_stages_are_of_long_videos(model: Path, tmp_path: Path) -> None:
    command = Command(tmp_path, "generate", "a", "--model", str(model), "--pipeline-degree", "1")
    assert command.end()[0] == 2


def test_a_dry_run_knows_blocks(model: Path, tmp_path: Path) -> None:
    command = finished(
        tmp_path, *arguments(model, "--dry-run", "--ranks", "4", "--pipeline-degree", "4", frames=13)
    )
    (plan,) = [told for told in command.told if told["event"] == "plan"]
    queue = BlockQueue(num_frames=4, block_frames=2, context_frames=1, num_steps=4)
    assert (plan["num_blocks"], plan["window_frames"], plan["rounds"]) == (2, 4, 5)
    assert plan["used_share"] == pytest.approx(8 / (8 + idle_slots(queue, 4, parts=2)), abs=1e-4)
    *_, warning = [told["message"] for told in command.told if told["event"] == "warning"]
    assert says(warning, "2 blocks .. 4 ")


@pytest.mark.parametrize("left_context", LEFT_SOURCES)
def test_a_trace_has_the_steps_of_blocks_in_the_simulated_order(
    left_context: str, model: Path, tmp_path: Path
) -> None:
    own = "--ranks", "2", "--trace", "t.json", "--left-context", left_context
    finished(tmp_path, *arguments(model, *own, frames=21))
    by_rank = read_trace(tmp_path / "t.json")
    spec = read_spec(model)
    sizes = {"num_frames": 21, "block_frames": 2, "context_frames": 1}
    asked = Request.of(prompt="any", method="dualparal", left_context=left_context, **sizes)
    request = resolve(asked, spec)
    assert isinstance(request, QueueRequest)
    simulated = LongVideo(
        cluster=find_cluster("2xL40"),
        spec=spec,
        request=request,
        placement=Placement.of(ranks=2, pipeline_degree=2),
        dtype="fp32",
        decode=0.1,
    ).simulation()
    for rank in (0, 1):
        steps = [span for span in by_rank[rank] if span.category == STEP]
        found = [f"block {span.about['block'] - 1}, step {span.about['step'] - 1}" for span in steps]
        assert len(found) == len(set(found)) == 3 * 4
        uses = [use.name for use in simulated.uses if use.resource == f"rank {rank}"]
        assert found == [name for name in dict.fromkeys(uses) if ", step " in name]


def test_how_long_is_written(tmp_path: Path) -> None:
    """The bundled model knows the length it was trained on; longer videos are made in blocks."""
    for text, frames in (("2s", 32), ("0.1min", 96)):
        command = finished(tmp_path, "generate", "a red circle", "--duration", text, "--dry-run")
        (plan,) = [told for told in command.told if told["event"] == "plan"]
        assert (plan["num_frames"], plan["method"]) == (frames, "dualparal" if frames > 49 else "full")
        assert plan["latent_shape"][1] == -(-(frames - 1) // 4) + 1
