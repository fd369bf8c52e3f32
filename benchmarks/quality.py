"""Measure the quality of the bundled model's videos: `python benchmarks/quality.py`.

Generates a video for each of `--prompts` combinations that were held out of training, with the command line's
own defaults, and judges colour, shape and motion with `paradit.shapes.evaluate`. Also judges as many real
synthetic videos, which shows the evaluator's own error rate. Writes `results/NAME.json` and, with
`--images FOLDER`, a contact sheet of the first dozen and a GIF of six.

    python benchmarks/quality.py --given first last --name quality_both
    python benchmarks/quality.py --prompts 256 --lora shapes-4step --preset shapes-4 --name quality_4_steps

`--given`: the first frame, the last one, or both are given, from a synthetic video of the same combination.
The first generated frame is compared with the picture, and so is the VAE's reconstruction of it (PSNR, dB).
"""

from __future__ import annotations

import argparse
import collections
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from machine import write_results
from paradit.config.methods.method import resolve
from paradit.config.requests import Request, ResolvedRequest
from paradit.models.find_lora import with_loras
from paradit.models.folder import find_model
from paradit.models.protocol import Pixels, VideoModel
from paradit.models.spec import ModelSpec, read_spec
from paradit.progress import Progress
from paradit.shapes.evaluate import Verdict, evaluate
from paradit.shapes.scenes import Scene, all_scenes, draw
from paradit.stages.decode import frames
from paradit.text_to_video import load, text_to_video
from paradit.video.contact_sheet import contact_sheet
from paradit.video.writer import open_video

TRAITS = ("color", "shape", "motion")


def held_out_scenes(count: int, seed: int = 0) -> list[Scene]:
    """Return `count` combinations that were held out of training; beyond their number they repeat."""
    scenes = [scene for scene in all_scenes() if scene.held_out]
    order = np.random.default_rng(seed).permutation(len(scenes))
    return [scenes[order[i % len(order)]] for i in range(count)]


def given_pictures(scene: Scene, seed: int, spec: ModelSpec, given: list[str], folder: str) -> dict[str, str]:
    """Write the given frames of a synthetic video, and return a request's fields with their paths."""
    video = draw(scene, spec.defaults.num_frames, np.random.default_rng((9, seed)), spec.defaults.width)
    found = {}
    for name, frame, field in (("first", video[0], "image"), ("last", video[-1], "last_image")):
        if name in given:
            found[field] = f"{folder}/{seed}-{name}.png"
            Image.fromarray(frame).save(found[field])
    return found


def psnr(frame: np.ndarray, reference: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio of a frame, in dB."""
    return float(10 * np.log10(255**2 / np.square(frame.astype(float) - reference).mean()))


def reconstruction(model: VideoModel, request: ResolvedRequest, picture: np.ndarray) -> np.ndarray:
    """Return the VAE's reconstruction of a picture [H, W, 3]."""
    latents, *_ = model.encode_conditions(request, Pixels(image=picture))
    return next(frames(model, latents[:, :, :1], None, Progress()))


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


class Made:
    """Videos made so far, and how they are judged."""

    def __init__(self) -> None:
        self.verdicts: list[Verdict] = []
        self.real: list[Verdict] = []
        """Verdicts on real synthetic videos of the same scenes."""
        self.videos: list[np.ndarray] = []
        """Videos, of which only the first dozen are whole."""
        self.decibels: list[list[float]] = []
        """PSNR of each given first frame: that of the video's frame, and that of the VAE's reconstruction."""

    def add(self, model: VideoModel, scene: Scene, seed: int, args: argparse.Namespace) -> None:
        """Make and judge the video of a scene, and print a line about it."""
        with tempfile.TemporaryDirectory() as folder:
            pictures = given_pictures(scene, seed, model.spec, args.given, folder)
            request = resolve(asked(scene, seed, args, pictures), model.spec)
            video = np.stack(list(text_to_video(model, request, Progress()).frames()))
            if "image" in pictures:
                picture = np.asarray(Image.open(pictures["image"]))
                own = reconstruction(model, request, picture)
                self.decibels.append([psnr(frame, picture) for frame in (video[0], own)])
        self.verdicts.append(evaluate(video))
        self.real.append(evaluate(draw(scene, len(video), np.random.default_rng(seed), video.shape[1])))
        right = self.verdicts[-1].right(scene)
        said = "right" if all(right.values()) else str(self.verdicts[-1])
        print(f"{seed + 1:3} {scene.prompt}: {said}", flush=True)
        self.videos.append(video[:: 1 if len(self.videos) < 12 else len(video)])


def asked(scene: Scene, seed: int, args: argparse.Namespace, pictures: dict[str, str]) -> Request:
    return Request(
        prompt=scene.prompt,
        seed=seed,
        num_inference_steps=args.num_inference_steps,
        guidance_scale=args.guidance_scale,
        preset=args.preset,
        **pictures,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--num-inference-steps", type=int, help="the model's default")
    parser.add_argument("--guidance-scale", type=float, help="the model's default")
    parser.add_argument("--given", nargs="+", choices=("first", "last"), default=[])
    parser.add_argument("--lora", action="append", default=[], help="as for `paradit generate`")
    parser.add_argument("--preset", help="as for `paradit generate`")
    parser.add_argument("--images", type=Path, help="folder for contact_sheet.png and generated.gif")
    parser.add_argument("--name", default="quality", help="name of the results file")
    args = parser.parse_args()

    scenes = held_out_scenes(args.prompts)
    spec = with_loras(read_spec(find_model(args.model)), args.lora)
    model = load(spec)
    made = Made()
    for seed, scene in enumerate(scenes):
        made.add(model, scene, seed, args)
    verdicts, real, videos, decibels = made.verdicts, made.real, made.videos, made.decibels
    print(f"\n{'':12}{'color %':>9}{'shape %':>9}{'motion %':>10}{'stray %':>9}{'flicker':>9}")
    results = {"generated": summary(scenes, verdicts), "synthetic": summary(scenes, real)}
    for name, figures in results.items():
        print(
            f"{name:12}"
            + "{color:9.1f}{shape:9.1f}{motion:10.1f}{stray:9.2f}{flicker:9.2f}".format(**figures)
        )
    if decibels:
        first, own = np.mean(decibels, axis=0)
        worst = max(reference - frame for frame, reference in decibels)
        results["first_frame"] = {"psnr": first, "psnr_of_the_vae": own, "largest_difference": worst}
        print(f"first frame {first:.2f} dB, the VAE's own {own:.2f} dB, at most {worst:.2f} dB apart")
    request = resolve(asked(scenes[0], 0, args, {}), spec)
    settings = {"num_inference_steps": request.num_inference_steps, "guidance_scale": request.guidance_scale,
                "prompts": len(scenes), "num_frames": request.num_frames}  # fmt: skip
    write_results(args.name, {"settings": settings, **results, "mistakes": mistakes(scenes, verdicts)})
    if args.images:
        captions = [scene.prompt for scene in scenes[:12]]
        usual = args.name == "quality"
        sheet, animation = ("contact_sheet", "generated") if usual else (args.name, args.name)
        contact_sheet(videos[:12], captions).save(args.images / f"{sheet}.png", optimize=True)
        save_gif(videos[:6], args.images / f"{animation}.gif", spec.defaults.fps)


if __name__ == "__main__":
    main()
