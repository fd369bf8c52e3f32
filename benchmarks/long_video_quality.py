"""What long videos made by blocks show, measured: `python benchmarks/long_video_quality.py`.

The bundled model makes videos of `--num-frames` in blocks of several sizes, with both noise initialisations
and every way of reading the left neighbour, and beside them one of its own 33 frames in one piece.
`paradit.shapes.evaluate` judges them. Writes `results/long_video_quality.json` and, with `--images FOLDER`,
an MP4 of each video and contact sheets: frames over the whole video, and those about its worst border.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import paradit
from machine import write_results
from paradit.models.folder import find_model
from paradit.models.latent_blocks import LatentBlocks
from paradit.models.protocol import VideoModel
from paradit.models.spec import read_spec
from paradit.progress import Progress
from paradit.sampling.block_pipeline import BlockPipeline
from paradit.sampling.guidance import scales
from paradit.sampling.noise import IndependentNoise, PooledNoise
from paradit.scheduling.block_queue import BlockQueue
from paradit.shapes.evaluate import evaluate, evaluate_long
from paradit.shapes.world import Scene
from paradit.stages.decode import frames as decode_frames
from paradit.text_to_video import load
from paradit.video.contact_sheet import contact_sheet
from paradit.video.writer import open_video

SCENES = [
    Scene("red", "circle", "moving right", "dark"),
    Scene("yellow", "ring", "bouncing", "blue"),
    Scene("white", "triangle", "circling", "blue"),
]
SETTINGS: list[dict[str, Any]] = [
    {"block_frames": 8, "context_frames": 2},
    {"block_frames": 8, "context_frames": 2, "noise": "independent"},
    {"block_frames": 7, "context_frames": 3},
    {"block_frames": 7, "context_frames": 3, "left_source": "cache"},
    {"block_frames": 7, "context_frames": 3, "left_level": "one-cleaner"},
    {"block_frames": 5, "context_frames": 4},
]
FIGURES = ("present", "color", "shape", "motion", "border_flicker", "border_jump", "drift")


def make(model: VideoModel, scene: Scene, seed: int, num_frames: int, settings: dict[str, Any]) -> np.ndarray:
    """Frames [F, H, W, 3]."""
    spec, settings = model.spec, dict(settings)
    defaults, noise = spec.defaults, settings.pop("noise", "pooled")
    channels, frames, *size = spec.vae.latent_shape(num_frames, defaults.height, defaults.width)
    queue = BlockQueue(num_frames=frames, num_steps=defaults.num_inference_steps, **settings)
    frame, blocks = (channels, *size), (queue.block_frames, queue.context_frames)
    pipeline = BlockPipeline(
        model,
        queue,
        (model.encode_prompt(scene.prompt), model.encode_prompt("")),
        IndependentNoise(frame, seed, blocks[0])
        if noise == "independent"
        else PooledNoise(frame, seed, *blocks),
        (size[0], size[1]),
        guidance_scales=scales(spec, defaults.guidance_scale),
    )
    latents = LatentBlocks((1, channels, frames, *size), pipeline.blocks())
    return np.stack(list(decode_frames(model, latents, None, Progress())))


def about_worst_border(video: np.ndarray, borders: list[int]) -> tuple[int, np.ndarray]:
    """The border at which the frames differ most, and the sixteen frames about it."""
    changes = [np.abs(video[border].astype(int) - video[border - 1]).mean() for border in borders]
    worst = borders[int(np.argmax(changes))]
    return worst, video[max(0, worst - 8) : worst + 8]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--num-frames", type=int, default=257)
    parser.add_argument("--images", type=Path, help="folder for MP4s and contact sheets")
    args = parser.parse_args()

    model = load(read_spec(find_model("shapes")))
    whole = [
        evaluate(paradit.generate(scene.prompt, seed=seed).frames).right(scene)
        for seed, scene in enumerate(SCENES)
    ]
    print("33 frames in one piece:", whole, flush=True)
    rows, sheets = [], []
    print(f"{'':58}" + "".join(f"{figure:>15}" for figure in FIGURES))
    for seed, scene in enumerate(SCENES):
        for settings in SETTINGS:
            video = make(model, scene, seed, args.num_frames, settings)
            period = 4 * settings["block_frames"]
            borders = list(range(period - 3, len(video), period))
            verdict = asdict(evaluate_long(video, scene, borders))
            name = " ".join([scene.motion.replace(" ", "-"), *map(str, settings.values())])
            rows.append({"scene": scene.prompt, "seed": seed, **settings, **verdict})
            print(f"{name:58}" + "".join(f"{verdict[figure]:15.2f}" for figure in FIGURES), flush=True)
            sheets.append((name, video, *about_worst_border(video, borders)))
            if args.images:
                path = args.images / f"{name.replace(' ', '_')}.mp4"
                with open_video(path, video.shape[2], video.shape[1], 16, overwrite=True) as file:
                    for frame in video:
                        file.write(frame)
    write_results("long_video_quality", {"num_frames": args.num_frames, "whole": whole, "videos": rows})
    if args.images:
        names = [name for name, *_ in sheets]
        contact_sheet([video for _, video, *_ in sheets], names, 16).save(args.images / "long_videos.png")
        captions = [f"{name}: frame {worst}" for name, _, worst, _ in sheets]
        borders_sheet = contact_sheet([frames for *_, frames in sheets], captions, 16)
        borders_sheet.save(args.images / "worst_borders.png")


if __name__ == "__main__":
    main()
