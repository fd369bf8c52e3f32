"""Long videos during and after a run: watched, stopped and extended, with prompts that change over time."""

import json
import signal
from pathlib import Path

import av
import pytest
import torch

import paradit
from made_videos import latents_in
from messages import says
from paradit.video.reader import read_video
from runs import Command, finished, named, run_folder
from tiny import save_folder

STEPS, BLOCK = 4, 2
LONGER_BLOCKS = 9
"""Number of blocks in a video of 63 frames, which has 17 latent frames."""
FRAMES = 34  # ten latent frames in five blocks; three frames of the last latent frame are dropped


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-wan"
    sizes = {"width": 48, "height": 48, "num_frames": 9, "num_inference_steps": STEPS, "fps": 16}
    return save_folder("wan21", folder, heads=3, layers=4, **sizes)


def arguments(model: Path, *options: str, frames: int | None = FRAMES, latents: bool = True) -> list[str]:
    blocks = ["--block-frames", str(BLOCK), "--context-frames", "1", "--method", "dualparal"]
    return [
        *["generate", "a red circle", "--model", str(model), *blocks, "-o", "v.mp4", *options],
        *(["--num-frames", str(frames)] if frames else []),
        *(["--latents", "l.safetensors"] if latents else []),
    ]


def frames_there(path: Path) -> int:
    """Return the number of frames that a player would show now."""
    with av.open(str(path)) as file:
        return sum(1 for _ in file.decode(video=0))


@pytest.mark.parametrize(
    ("options", "suffix"), [([], ".mp4"), (["--placement", "denoise=0-1 decode=2"], ".webm")]
)
def test_it_plays_while_it_grows(model: Path, tmp_path: Path, options: list[str], suffix: str) -> None:
    # Many frames, because an encoder looks some frames ahead before it writes any.
    command = Command(tmp_path, *arguments(model, *options, frames=201, latents=False), "-o", f"v{suffix}")
    command.until_event("growing", path=f"v.part{suffix}")
    assert command.until(lambda event: event["event"] == "block" and event["frames_written"] >= 120)
    assert not (tmp_path / f"v{suffix}").exists()
    assert frames_there(tmp_path / f"v.part{suffix}") >= 60
    command.end_well()
    (result,) = named(command.told, "result")
    assert result["seconds_to_first_frame"] > 0
    assert {"denoise", "decode"} <= set(result["seconds"])
    assert len(read_video(tmp_path / f"v{suffix}")[0]) == result["num_frames"] == 201
    assert {path.name for path in tmp_path.iterdir()} == {f"v{suffix}", "paradit-runs"}


def test_the_queue_is_told(model: Path, tmp_path: Path) -> None:
    command = finished(tmp_path, *arguments(model))
    blocks = named(command.told, "block")
    assert [(about["block"], about["levels"]) for about in blocks] == [
        (1, [1, 1]), (1, [1, 2]), (1, [1, 3]), (1, [1, 4]), (2, [1, 4]), (3, [2, 4]), (4, [3, 4]), (5, [4, 4])
    ]  # fmt: skip
    assert {about["num_blocks"] for about in blocks} == {5}
    assert blocks[-1]["frames_written"] > blocks[0]["frames_written"] == 0


@pytest.mark.parametrize("options", [["--ranks", "2"], ["--placement", "denoise=0-2 decode=3"]])
def test_prompts_by_time(model: Path, tmp_path: Path, options: list[str]) -> None:
    """A block that has left the queue before a prompt begins is unchanged; results are equal on any ranks."""
    first, then = ["--prompt-at", "1s", "a blue square"], ["--prompt-at", "1.5s", "a red circle"]
    for name, more in {"one": first, "alone": [*first, *then], "ranks": [*first, *then, *options]}.items():
        (tmp_path / name).mkdir()
        finished(tmp_path / name, *arguments(model, *more))
    one, alone, ranks = (latents_in(tmp_path / name) for name in ("one", "alone", "ranks"))
    assert torch.equal(alone, ranks)
    # Blocks begin at frames 0, 5, 13, 21, 29: the fourth has the first text, the fifth the second.
    same = [torch.equal(a, b) for a, b in zip(one.split(BLOCK, 2), alone.split(BLOCK, 2), strict=True)]
    assert same[0]
    assert not same[4]
    run = json.loads((run_folder(tmp_path / "alone") / "run.json").read_text())
    assert run["jobs"][0]["request"]["prompts_at"] == [[1.0, "a blue square"], [1.5, "a red circle"]]


def test_prompts_by_time_from_python(model: Path, tmp_path: Path) -> None:
    default_blocks = ["--block-frames", "1"]  # a third of the length that the model was trained on
    finished(tmp_path, *arguments(model, *default_blocks, "--prompt-at", "1s", "a blue square"))
    made = paradit.generate(
        "a red circle",
        model=str(model),
        num_frames=FRAMES,
        method="dualparal",
        prompts_at=[(1.0, "a blue square")],
    )
    assert torch.allclose(made.latents, latents_in(tmp_path), atol=1e-5)  # the number of threads differs
    assert len(made.frames) == FRAMES


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--prompt-at", "0s", "a blue square"], "prompt_at must be a time and a text"),
        (["--prompt-at", "0.0001s", ""], "the text of prompts_at is empty"),
        (["--prompt-at", "1s", "b", "--prompt-at", "1s", "c"], "must increase, got 1 s after 1 s"),
        (["--prompt-at", "1s", "b", "--prompt-at", "1.2s", "c"], "prompts_at at 1 s has no effect"),
        (["--prompt-at", "1.9s", "b"], "last block .. 2.125 s begins at 1.8125 s"),
        (
            ["--prompt-at", "1s", "b", "--method", "full"],
            "one prompt .. for prompts_at, use dualparal",
        ),
    ],
)
def test_prompts_that_cannot_be(model: Path, tmp_path: Path, options: list[str], said: str) -> None:
    given = arguments(model, *options)
    if "full" in options:
        given = ["generate", "a", "--model", str(model), *options]
    code, errors = Command(tmp_path, *given).end()
    assert code == 2
    assert says(errors, said)
    assert len(errors.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def longer(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a video that is made in its whole length at once."""
    folder = tmp_path_factory.mktemp("longer")
    finished(folder, *arguments(model, frames=63))
    return folder


def same_video(folder: Path, expected: Path, name: str = "v.mp4") -> None:
    assert torch.equal(latents_in(folder), latents_in(expected))
    assert (folder / name).read_bytes() == (expected / "v.mp4").read_bytes()


@pytest.mark.parametrize(
    ("frames", "ranks", "then"), [(34, "1", "1"), (37, "2", "2"), (27, "1", "3"), (59, "2", "1")]
)
def test_made_longer_it_is_the_same(  # noqa: PLR0917
    model: Path, longer: Path, tmp_path: Path, frames: int, ranks: str, then: str
) -> None:
    """A video extended twice equals one made at once, for any ranks and whole or partial last blocks."""
    first = finished(tmp_path, *arguments(model, "--ranks", ranks, frames=frames))
    (about,) = named(first.told, "extendable")
    run = str(run_folder(tmp_path))
    assert Path(run) == tmp_path / about["run_dir"]
    halfway = (frames + 63) // 2
    finished(tmp_path, "extend", run, "--num-frames", str(halfway - frames), "--ranks", then)
    second = finished(tmp_path, "extend", run, "--duration", f"{(63 - halfway) / 16}s", "--ranks", then)
    same_video(tmp_path, longer)
    blocks = -(-(halfway - 1 + 4) // 4 // BLOCK)
    assert f"blocks {max(1, blocks - STEPS + 1)} to {blocks}" in named(second.told, "warning")[0]["message"]
    steps = [event for event in named(second.told, "step") if event["stage"] == "denoise"]
    assert len(steps) < STEPS * LONGER_BLOCKS


@pytest.mark.parametrize(("ranks", "again"), [("1", False), ("2", True)])
def test_made_longer_with_cached_keys(model: Path, tmp_path: Path, ranks: str, again: bool) -> None:
    """Keys that one rank has saved are given to all; if other ranks had some, the video is made again."""
    cached = "--left-context", "cache", "--lag", "2"
    (tmp_path / "once").mkdir()
    finished(tmp_path / "once", *arguments(model, *cached, frames=42))
    finished(tmp_path, *arguments(model, *cached, "--ranks", ranks))
    command = finished(tmp_path, "extend", str(run_folder(tmp_path)), "--num-frames", "8", "--ranks", "2")
    same_video(tmp_path, tmp_path / "once")
    warned = " ".join(about["message"] for about in named(command.told, "warning"))
    assert says(warned, "cannot be read, so the request starts from the beginning: it has the keys") is again


def test_made_longer_under_another_name(model: Path, longer: Path, tmp_path: Path) -> None:
    finished(tmp_path, *arguments(model))
    before = (tmp_path / "v.mp4").read_bytes()
    run = str(run_folder(tmp_path))
    command = Command(tmp_path, "extend", run, "--num-frames", "29", "-o", "w.mp4")
    command.until_event("step", stage="decode", done=3)
    command.kill()
    finished(tmp_path, "resume", run)
    same_video(tmp_path, longer, "w.mp4")
    assert (tmp_path / "v.mp4").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"v.mp4", "w.mp4", "l.safetensors", "paradit-runs"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "--duration to add, such as 30s, or --num-frames"),
        (["--duration", "inf"], "the duration to add must be finite"),
        (["--num-frames", "0"], "at least one frame must be added, got 0"),
        (["--num-frames", "9", "-o", "v.mp4"], "exists: name another file, or use --overwrite"),
        (["--num-frames", "9", "--ranks", "0"], "ranks must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_made_longer(longer: Path, options: list[str], said: str) -> None:
    code, errors = Command(longer, "extend", str(run_folder(longer)), *options).end()
    assert code == 2
    assert says(errors, said)


@pytest.mark.parametrize(
    ("options", "lag"), [([], 1), (["--ranks", "2"], 2), (["--placement", "denoise=0-1 decode=2"], 1)]
)
def test_until_it_is_stopped(model: Path, tmp_path: Path, options: list[str], lag: int) -> None:
    """A stopped run leaves a complete video, and resumes and extends it to the same frames."""
    lagging = "--lag", str(lag)
    endless = [*arguments(model, *options, *lagging, frames=None, latents=False), "--duration", "inf"]
    for number, begin in enumerate((endless, ["resume"])):
        command = Command(tmp_path, *begin)
        command.until_event("block", block=5 + 3 * number)
        command.process.send_signal(signal.SIGINT)
        command.end_well()
        (result,) = named(command.told, "result")
        frames = read_video(tmp_path / "v.mp4")[0]
        assert len(frames) == result["num_frames"] >= (5 + 3 * number - 1) * 4 * BLOCK - 3
        assert {path.name for path in tmp_path.iterdir()} == {"v.mp4", "paradit-runs"}
        blocks = list(run_folder(tmp_path).glob("*.block-*.pt"))
        assert len(frames) == len(blocks) * 4 * BLOCK - 3
    run, there = str(run_folder(tmp_path)), len(frames)
    code, errors = Command(tmp_path, "extend", run, "--num-frames", "5").end()
    assert code == 2
    in_queue = -(-(STEPS - 1) // lag)
    assert f"add at least {in_queue * 4 * BLOCK + 4} frames" in errors
    finished(tmp_path, "extend", run, "--num-frames", "60", "-o", "w.mp4")
    (tmp_path / "once").mkdir()
    finished(tmp_path / "once", *arguments(model, *lagging, frames=there + 60))
    assert (tmp_path / "w.mp4").read_bytes() == (tmp_path / "once" / "v.mp4").read_bytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--latents", "l.safetensors"], "would fill the memory: leave --latents out"),
        (["-o", "v.gif"], "a GIF is written when all its frames are there"),
        (["--method", "full"], "method full .. use method dualparal"),
    ],
)
def test_what_cannot_be_endless(model: Path, tmp_path: Path, options: list[str], said: str) -> None:
    given = arguments(model, *options, frames=None, latents=False)
    code, errors = Command(tmp_path, *given, "--duration", "inf").end()
    assert code == 2
    assert says(errors, said)
    assert not list(tmp_path.iterdir())


def test_killed_and_gone_on(model: Path, longer: Path, tmp_path: Path) -> None:
    """A resumed run repeats no more block-steps than the checkpoints' interval allows."""
    every = 2  # rounds
    command = Command(tmp_path, *arguments(model, "--checkpoint-steps", str(every), frames=63))
    command.until_event("step", stage="denoise", done=23)
    command.kill()
    assert (tmp_path / "v.part.mp4").exists()
    again = finished(tmp_path, "resume")
    same_video(tmp_path, longer)
    assert not (tmp_path / "v.part.mp4").exists()
    steps = [
        event["done"]
        for event in [*named(command.told, "step"), *named(again.told, "step")]
        if event["stage"] == "denoise"
    ]
    assert set(steps) == set(range(1, LONGER_BLOCKS * STEPS + 1))
    assert len(steps) - LONGER_BLOCKS * STEPS <= every * STEPS
    blocks = [event["block"] for event in named(again.told, "block")]
    assert min(blocks) >= max(event["block"] for event in named(command.told, "block")) - every
