"""Measure what a lag does to long videos: `python benchmarks/lag.py --videos FOLDER`.

With a lag, a frame block of `dualparal` joins the queue every few rounds. The bundled model makes videos with
several lags, and `paradit.shapes.evaluate` judges the borders between blocks in pixels. Each video is kept in
the folder, so that an interrupted run resumes. Also computes how long ranks are idle, and when the first
block is there. Writes `results/lag.json` and, with `--images FOLDER`, two contact sheets: frames over the
whole of each video, and frames around its worst border.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from long_video_quality import Row, arguments, borders, make_missing
from machine import write_results
from paradit.scheduling.block_queue import BlockQueue
from paradit.scheduling.layer_pipeline import idle_slots, slots_until_first_block
from paradit.shapes.evaluate import evaluate_long
from paradit.shapes.scenes import Scene
from paradit.video.contact_sheet import contact_sheet

SCENES = [
    Scene("red", "circle", "moving right", "dark"),
    Scene("yellow", "ring", "bouncing", "blue"),
    Scene("white", "triangle", "circling", "blue"),
    Scene("green", "square", "moving left", "gray"),
    Scene("orange", "triangle", "moving up", "dark"),
    Scene("cyan", "ring", "moving down", "brown"),
]
LAGS = (1, 2, 4)
USUAL = {"block_frames": 7, "context_frames": 3}
CACHED = {"block_frames": 5, "context_frames": 4, "lag": 1, "left_source": "cache"}
TRUE = {**USUAL, "lag": 4, "true_timesteps": True}
COLORS = 128
"""Number of colours in contact sheets, so that their files are small."""
SCHEDULES = [(8, 50, 32), (4, 50, 10), (8, 20, 32), (2, 20, 10)]
"""Ranks, steps and frame blocks for which idle slots are computed."""


def rows() -> Iterator[Row]:
    """Yield every video of the benchmark, the most expensive last."""
    lags = [{**USUAL, "lag": lag} for lag in LAGS]
    yield from (
        Row(scene, seed, 257, way) for seed in (0, 1) for scene in SCENES for way in (*lags, CACHED, TRUE)
    )
    yield from (Row(scene, 0, 1025, way) for scene in (SCENES[0], SCENES[3]) for way in (*lags, TRUE))


def summary(judged: dict[Row, dict[str, float]]) -> list[dict[str, Any]]:
    """Return figures over all videos of each length and way of making them: means, and the worst.

    Objects that bounce or circle change their velocity all the time, so they are apart.
    """

    def way(row: Row) -> tuple[int, str, list[tuple[str, str]]]:
        path = "straight" if row.scene.motion.startswith("moving") else "curved"
        return row.num_frames, path, [(name, str(value)) for name, value in row.settings.items()]

    found = []
    for (num_frames, path, settings), of_one_way in groupby(sorted(judged, key=way), key=way):
        verdicts = [judged[row] for row in of_one_way]
        measured = [verdict["measured_borders"] for verdict in verdicts]
        turns = [verdict["turn_pixels"] for verdict in verdicts]
        found.append({
            "num_frames": num_frames,
            "path": path,
            **dict(settings),
            "videos": len(verdicts),
            "borders": sum(measured),
            "turn_pixels": float(np.average(turns, weights=measured)),
            "largest_turn_pixels": max(verdict["largest_turn_pixels"] for verdict in verdicts),
            "inside_turn_pixels": float(np.mean([verdict["inside_turn_pixels"] for verdict in verdicts])),
            "largest_leap_pixels": max(verdict["largest_leap_pixels"] for verdict in verdicts),
            "present": float(np.mean([verdict["present"] for verdict in verdicts])),
            "least_present": min(verdict["present"] for verdict in verdicts),
            "motion": float(np.mean([verdict["motion"] for verdict in verdicts])),
            "color": float(np.mean([verdict["color"] for verdict in verdicts])),
            "shape": float(np.mean([verdict["shape"] for verdict in verdicts])),
            "drift": float(np.mean([verdict["drift"] for verdict in verdicts])),
            "largest_drift": max(verdict["drift"] for verdict in verdicts),
        })  # fmt: skip
    return found


def schedules() -> Iterator[dict[str, float]]:
    """Yield how long ranks are idle, and when the first block is finished, in slots (block-steps)."""
    for ranks, steps, blocks in SCHEDULES:
        queue = BlockQueue(num_frames=7 * blocks, num_steps=steps, **USUAL)
        for lag in LAGS:
            for branches in (2, 1):
                lagging = replace(queue, lag=lag)
                yield {
                    "ranks": ranks,
                    "steps": steps,
                    "blocks": blocks,
                    "lag": lag,
                    "branches": branches,
                    "busy": steps * blocks,
                    "idle": idle_slots(lagging, ranks, branches),
                    "first_block": slots_until_first_block(lagging, ranks, branches),
                }


def sheets(videos: dict[Row, np.ndarray], judged: dict[Row, dict[str, float]], folder: Path) -> None:
    """Save two contact sheets: of whole videos with the largest lag, and of the worst border of each video.

    Both have videos of the first seed only, the second one those that move straight on.
    """
    lags = [{**USUAL, "lag": lag} for lag in LAGS]
    first = {row: video for row, video in videos.items() if row.seed == 0 and row.settings in lags}
    largest = {row: video for row, video in first.items() if row.settings["lag"] == LAGS[-1]}
    sheet = contact_sheet(list(largest.values()), list(map(caption, largest)), 14)
    sheet.quantize(COLORS).save(folder / "lag_videos.png", optimize=True)
    excerpts, captions = [], []
    for row, video in first.items():
        if not row.scene.motion.startswith("moving"):
            continue
        worst = int(judged[row]["worst_border"])
        excerpts.append(video[max(0, worst - 6) : worst + 8])
        turned = judged[row]["largest_turn_pixels"]
        captions.append(f"{caption(row)}: border at frame {worst}, {turned:.2f} pixels")
    sheet = contact_sheet(excerpts, captions, 14)
    sheet.quantize(COLORS).save(folder / "lag_borders.png", optimize=True)


def caption(row: Row) -> str:
    scene = row.scene
    return f"{scene.color} {scene.shape} {scene.motion}, {row.num_frames} frames, lag {row.settings['lag']}"


def show(figures: list[dict[str, Any]]) -> None:
    """Print dicts with the same keys as a table."""
    for names, group in groupby(figures, key=tuple):
        print("".join(f"{name.replace('_pixels', ''):>14}" for name in names))
        for one in group:
            shown = (f"{value:.3f}" if isinstance(value, float) else str(value) for value in one.values())
            print("".join(f"{value:>14}" for value in shown), flush=True)


def main() -> None:
    args = arguments(__doc__)
    paths = make_missing(rows(), args.videos, args.make)
    videos = {row: np.load(path)["video"] for row, path in paths.items() if path.exists()}
    judged = {row: asdict(evaluate_long(video, row.scene, borders(row))) for row, video in videos.items()}
    each = [{"video": row.name, **verdict} for row, verdict in judged.items()]
    show([{"video": row.name, **verdict} for row, verdict in judged.items()])
    means, slots = summary(judged), list(schedules())
    show(means)
    show(slots)
    not_there = [row.name for row in paths if row not in videos]
    write_results("lag", {"means": means, "schedules": slots, "videos": each, "not_made": not_there})
    if args.images:
        sheets(videos, judged, args.images)


if __name__ == "__main__":
    main()
