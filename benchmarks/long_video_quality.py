"""Measure the quality of long videos: `python benchmarks/long_video_quality.py --videos FOLDER`.

The bundled model makes videos of 257 and 1,025 frames in blocks of several sizes, with both noise
initialisations, every way of reading the left neighbour, and the controls; for comparison, also videos of its
own 33 frames in one piece. `paradit.shapes.evaluate` judges them. Each video is kept in the folder, so that
an interrupted run resumes. Writes `results/long_video_quality.json` and, with `--images FOLDER`, contact
sheets: frames over the whole video, and frames around the worst border.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from machine import write_results
from paradit.config.methods.method import resolve
from paradit.config.requests import Request
from paradit.models.common.latent_blocks import LatentBlocks
from paradit.models.folder import find_model
from paradit.models.protocol import VideoModel
from paradit.models.spec import read_spec
from paradit.parallel.predictor import LocalPredictor
from paradit.progress import Progress
from paradit.sampling import fifo, full_sequence, windowed
from paradit.sampling.block_pipeline import BlockPipeline
from paradit.sampling.noise import BlockNoise, IndependentNoise, PooledNoise, initial_noise, step_generator
from paradit.scheduling.block_queue import BlockQueue
from paradit.shapes.evaluate import evaluate, evaluate_long
from paradit.shapes.scenes import Scene
from paradit.stages.decode import frames as decode_frames
from paradit.text_to_video import load
from paradit.video.contact_sheet import contact_sheet

BLOCKS = {"windowed": windowed.blocks, "fifo": fifo.blocks}
SCENES = [
    Scene("red", "circle", "moving right", "dark"),
    Scene("yellow", "ring", "bouncing", "blue"),
    Scene("white", "triangle", "circling", "blue"),
    Scene("green", "square", "growing", "gray"),
]
FIGURES = (
    "present",
    "color",
    "shape",
    "motion",
    "border_flicker",
    "border_jump",
    "border_turn",
    "turn_pixels",
    "largest_turn_pixels",
    "largest_leap_pixels",
    "drift",
)
DEFAULT = {"block_frames": 7, "context_frames": 3}
MAIN: list[dict[str, Any]] = [
    DEFAULT,
    {"method": "windowed", **DEFAULT},
    {"method": "fifo", **DEFAULT},
    {**DEFAULT, "noise": "independent"},
    {**DEFAULT, "left_source": "cache"},
]
OTHERS: list[dict[str, Any]] = [
    {"block_frames": 8, "context_frames": 2},
    {"block_frames": 8, "context_frames": 2, "noise": "independent"},
    {"block_frames": 5, "context_frames": 4},
    {**DEFAULT, "left_level": "one-cleaner"},
    {"method": "windowed", **DEFAULT, "noise": "independent"},
    {"method": "fifo", **DEFAULT, "noise": "independent"},
]


@dataclass(frozen=True, eq=False)
class Row:
    """One video to make and judge: scene, seed, length and settings."""

    scene: Scene
    seed: int
    num_frames: int
    settings: dict[str, Any] = field(default_factory=dict)
    """Options of the video's method; empty for a video in one piece."""

    @property
    def name(self) -> str:
        scene = self.scene.motion.replace(" ", "-")
        return "_".join(map(str, [self.num_frames, scene, self.seed, *self.settings.values()]))


def rows() -> Iterator[Row]:
    """Yield every video of the benchmark, the most expensive last."""
    yield from (Row(scene, seed, 33) for scene in SCENES for seed in (0, 1))
    yield from (Row(scene, 0, 257, settings) for scene in SCENES for settings in MAIN)
    yield from (Row(scene, 1, 257, settings) for scene in SCENES[:3] for settings in MAIN)
    yield from (Row(scene, seed, 257, way) for seed, scene in enumerate(SCENES[:3]) for way in OTHERS)
    yield Row(SCENES[2], 2, 257, DEFAULT)  # DEFAULT's video to compare with OTHERS' third scene
    yield from (Row(SCENES[0], 0, 1025, settings) for settings in MAIN)


def make(model: VideoModel, row: Row) -> np.ndarray:
    """Make a video, and return its frames [F, H, W, 3]."""
    defaults = model.spec.defaults
    channels, frames, *size = model.spec.vae.latent_shape(row.num_frames, defaults.height, defaults.width)
    shape = (1, channels, frames, *size)
    prompts = model.encode_prompt(row.scene.prompt), model.encode_prompt("")
    request = resolve(Request(prompt=row.scene.prompt), model.spec)
    if not row.settings:
        latents: Any
        (latents,) = full_sequence.denoise(
            model,
            initial_noise(shape, row.seed, model.device),
            prompts,
            request=request,
            noise=partial(step_generator, row.seed),
            progress=Progress(),
        )
        return np.stack(list(decode_frames(model, latents, None, Progress())))
    settings = dict(row.settings)
    method, kind = settings.pop("method", "dualparal"), settings.pop("noise", "pooled")
    queue = BlockQueue(num_frames=frames, num_steps=defaults.num_inference_steps, **settings)
    frame, sizes = (channels, size[0], size[1]), (queue.block_frames, queue.context_frames)
    noise: BlockNoise = PooledNoise(frame, row.seed, *sizes)
    if kind == "independent":
        noise = IndependentNoise(frame, row.seed, queue.block_frames)
    if method == "dualparal":
        pipeline = BlockPipeline(model, queue, prompts, noise, (size[0], size[1]), request=request)
        blocks = pipeline.blocks()
    else:
        blocks = BLOCKS[method](model, queue, prompts, noise, request=request, predictor=LocalPredictor())
    latents = LatentBlocks(shape, blocks)
    return np.stack(list(decode_frames(model, latents, None, Progress())))


def judge(row: Row, video: np.ndarray) -> dict[str, float]:
    if not row.settings:
        return {figure: float(right) for figure, right in evaluate(video).right(row.scene).items()}
    return asdict(evaluate_long(video, row.scene, borders(row)))


def borders(row: Row) -> list[int]:
    """Return the first frame of each block except the first block."""
    # The first latent frame becomes one frame, each later one four.
    period = 4 * row.settings["block_frames"]
    return list(range(period - 3, row.num_frames, period))


def summary(judged: dict[Row, dict[str, float]]) -> list[dict[str, Any]]:
    """Return the mean figures of each variant over prompts and seeds, without growing shapes.

    A shape cannot grow for as long as these videos last.
    """
    found = []
    of_all = sorted((row for row in judged if row.scene.motion != "growing"), key=_way)
    for (num_frames, settings), of_one_way in groupby(of_all, key=_way):
        verdicts = [judged[row] for row in of_one_way]
        means = {figure: float(np.nanmean([v[figure] for v in verdicts])) for figure in verdicts[0]}
        found.append({"num_frames": num_frames, **dict(settings), "videos": len(verdicts), **means})
    return found


def _way(row: Row) -> tuple[int, list[tuple[str, str]]]:
    return row.num_frames, [(name, str(value)) for name, value in row.settings.items()]


def sheets(videos: dict[Row, np.ndarray], folder: Path) -> None:
    """Save two contact sheets with a row for each video: of the whole video, and of its worst border."""
    long = {row: video for row, video in videos.items() if row.settings}
    contact_sheet(list(long.values()), [row.name for row in long], 16).save(folder / "long_videos.png")
    excerpts, captions = [], []
    for row, video in long.items():
        changes = {at: np.abs(video[at].astype(int) - video[at - 1]).mean() for at in borders(row)}
        worst = max(changes, key=changes.__getitem__)
        excerpts.append(video[max(0, worst - 8) : worst + 8])
        captions.append(f"{row.name}: frame {worst}")
    contact_sheet(excerpts, captions, 16).save(folder / "worst_borders.png")


def arguments(description: str | None) -> argparse.Namespace:
    """Return the options of a benchmark that makes videos, keeps and judges them."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--videos", type=Path, required=True, help="folder where videos are kept")
    parser.add_argument("--make", type=int, help="make at most so many more, and judge those there are")
    parser.add_argument("--images", type=Path, help="folder for contact sheets")
    return parser.parse_args()


def make_missing(rows: Iterable[Row], folder: Path, at_most: int | None) -> dict[Row, Path]:
    """Make at most so many of the videos that the folder lacks, and return the path of each row's video.

    Files of videos that were not made do not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = {row: folder / f"{row.name}.npz" for row in rows}
    missing = [row for row in paths if not paths[row].exists()][:at_most]
    model = load(read_spec(find_model("shapes"))) if missing else None
    for row in missing:
        part = paths[row].with_suffix(".part.npz")
        np.savez_compressed(part, video=make(model, row))
        # Renamed when it is complete, so that an interrupted run leaves no partial video under that name.
        part.rename(paths[row])
        print(row.name, flush=True)
    return paths


def main() -> None:
    args = arguments(__doc__)
    paths = make_missing(rows(), args.videos, args.make)
    there = {row: path for row, path in paths.items() if path.exists()}
    judged, videos = {}, {}
    names = (figure.replace("border_", "").replace("_pixels", ", px") for figure in FIGURES)
    print(f"{'':40}" + "".join(f"{name:>17}" for name in names))
    for row, path in there.items():
        video = np.load(path)["video"]
        judged[row] = judge(row, video)
        if args.images:
            videos[row] = video
        values = (judged[row].get(figure, float("nan")) for figure in FIGURES)
        print(f"{row.name:40}" + "".join(f"{value:17.2f}" for value in values), flush=True)
    rows_of_all = [
        {"scene": row.scene.prompt, "seed": row.seed, "num_frames": row.num_frames, **row.settings, **verdict}
        for row, verdict in judged.items()
    ]
    not_there = [row.name for row in paths if row not in there]
    results = {"means": summary(judged), "videos": rows_of_all, "not_made": not_there}
    write_results("long_video_quality", results)
    if args.images:
        sheets(videos, args.images)


if __name__ == "__main__":
    main()
