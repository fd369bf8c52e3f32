"""Measure the quality of the bundled model's videos: `python benchmarks/quality.py`.

Generates a video for each of `--prompts` combinations that were held out of training, with the command line's
own defaults, and judges colour, shape and motion with `paradit.shapes.evaluate`. Also judges as many real
synthetic videos, which shows the evaluator's own error rate. Writes `results/quality.json` and, with
`--images FOLDER`, a contact sheet of the first dozen and a GIF of six.
"""

from __future__ import annotations

import argparse
import collections
from pathlib import Path

import numpy as np

from machine import write_results
from paradit.config.methods.method import resolve
from paradit.config.requests import Request
from paradit.models.folder import find_model
from paradit.models.spec import read_spec
from paradit.progress import Progress
from paradit.shapes.evaluate import Verdict, evaluate
from paradit.shapes.scenes import Scene, all_scenes, draw
from paradit.text_to_video import load, text_to_video
from paradit.video.contact_sheet import contact_sheet
from paradit.video.writer import open_video

TRAITS = ("color", "shape", "motion")


def held_out_scenes(count: int, seed: int = 0) -> list[Scene]:
    scenes = [scene for scene in all_scenes() if scene.held_out]
    order = np.random.default_rng(seed).permutation(len(scenes))
    return [scenes[i] for i in order[:count]]


def summary(scenes: list[Scene], verdicts: list[Verdict]) -> dict[str, float]:
    """Return the percentage of right colours, shapes and motions, and the mean stray pixels and flicker."""
    figures = {
        trait: 100 * float(np.mean([v.right(s)[trait] for s, v in zip(scenes, verdicts, strict=True)]))
        for trait in TRAITS
    }
    figures["stray"] = 100 * float(np.mean([v.stray for v in verdicts]))
    figures["flicker"] = float(np.mean([v.flicker for v in verdicts]))
    return figures


def mistakes(scenes: list[Scene], verdicts: list[Verdict]) -> dict[str, int]:
    """Return how often each value was mistaken for which other, most frequent first."""
    counts: collections.Counter[str] = collections.Counter()
    for scene, verdict in zip(scenes, verdicts, strict=True):
        for trait, right in verdict.right(scene).items():
            if not right:
                counts[f"{trait}: {getattr(scene, trait)} -> {getattr(verdict, trait)}"] += 1
    return dict(counts.most_common())


def save_gif(videos: list[np.ndarray], path: Path, fps: float) -> None:
    """Save six videos as one GIF, in two rows and at twice their size."""
    rows = [np.concatenate(videos[i : i + 3], axis=2) for i in (0, 3)]
    frames = np.concatenate(rows, axis=1).repeat(2, axis=1).repeat(2, axis=2)
    with open_video(path, frames.shape[2], frames.shape[1], fps, overwrite=True) as file:
        for frame in frames:
            file.write(frame)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--num-inference-steps", type=int, help="the model's default")
    parser.add_argument("--guidance-scale", type=float, help="the model's default")
    parser.add_argument("--images", type=Path, help="folder for contact_sheet.png and generated.gif")
    parser.add_argument("--name", default="quality", help="name of the results file")
    args = parser.parse_args()

    scenes = held_out_scenes(args.prompts)
    spec = read_spec(find_model(args.model))
    model = load(spec)
    verdicts, real, videos = [], [], []
    for seed, scene in enumerate(scenes):
        request = Request(
            prompt=scene.prompt,
            seed=seed,
            num_inference_steps=args.num_inference_steps,
            guidance_scale=args.guidance_scale,
        )
        request = resolve(request, spec)
        video = np.stack(list(text_to_video(model, request, Progress()).frames()))
        verdicts.append(evaluate(video))
        real.append(evaluate(draw(scene, len(video), np.random.default_rng(seed), video.shape[1])))
        right = verdicts[-1].right(scene)
        print(
            f"{seed + 1:3} {scene.prompt}: " + ("right" if all(right.values()) else str(verdicts[-1])),
            flush=True,
        )
        videos.append(video)

    print(f"\n{'':12}{'color %':>9}{'shape %':>9}{'motion %':>10}{'stray %':>9}{'flicker':>9}")
    results = {"generated": summary(scenes, verdicts), "synthetic": summary(scenes, real)}
    for name, figures in results.items():
        print(
            f"{name:12}"
            + "{color:9.1f}{shape:9.1f}{motion:10.1f}{stray:9.2f}{flicker:9.2f}".format(**figures)
        )
    settings = {"num_inference_steps": request.num_inference_steps, "guidance_scale": request.guidance_scale,
                "prompts": len(scenes), "num_frames": request.num_frames}  # fmt: skip
    write_results(args.name, {"settings": settings, **results, "mistakes": mistakes(scenes, verdicts)})
    if args.images:
        captions = [scene.prompt for scene in scenes[:12]]
        contact_sheet(videos[:12], captions).save(args.images / "contact_sheet.png", optimize=True)
        save_gif(videos[:6], args.images / "generated.gif", spec.defaults.fps)


if __name__ == "__main__":
    main()
