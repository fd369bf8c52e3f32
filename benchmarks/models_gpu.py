"""Compare ParaDiT with diffusers on a GPU: denoising steps, encode and decode, and a video in four steps.

    python benchmarks/models_gpu.py            # on a GPU of at least 80 GB, about ten minutes
    python benchmarks/models_gpu.py --tiny     # tries the script, anywhere

Models are of the real classes and widths, with random weights in bf16 and the VAE in fp32; Wan 2.2 A14B has
fewer layers, and no text encoder is loaded. Both sides have the same weights, inputs and attention backend
(diffusers' native one) and take turns; figures are ratios of medians, ParaDiT's time divided by that of
diffusers. A step is one forward pass of the conditional branch.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from machine import write_results
from paradit.config.methods.method import resolve
from paradit.config.requests import Request, ResolvedRequest, latent_shape
from paradit.distributed.timing import now
from paradit.models.protocol import Pixels
from paradit.models.spec import ModelSpec
from paradit.models.wan.adapter import WanModel
from paradit.parallel.predictor import LocalPredictor
from paradit.progress import Progress
from paradit.sampling.sampler import Work
from paradit.stages.decode import frames
from paradit.stages.denoise import denoise
from random_models import random_pipeline

WAN_1B, I2V_A14B = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "Wan-AI/Wan2.2-I2V-A14B-Diffusers"
CASES: list[tuple[str, dict[str, int], tuple[int, int, int]]] = [
    (WAN_1B, {}, (832, 480, 81)),
    (I2V_A14B, {"num_layers": 6}, (832, 480, 81)),
]
TINY = [(WAN_1B, {"num_layers": 1}, (64, 64, 5)), (I2V_A14B, {"num_layers": 1}, (64, 64, 5))]
FEW_STEPS = 4


class Sides:
    """A model in the form that ParaDiT runs and in that which diffusers runs, with one request's inputs."""

    def __init__(self, name: str, layers: dict[str, int], size: tuple[int, int, int]) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.pipeline, self.spec = random_pipeline(name, layers, self.dtype, self.device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.model = WanModel(self.pipeline, self.spec, self.dtype)
        width, height, num_frames = size
        picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        self.pixels = Pixels(image=picture) if self.spec.needs_image else Pixels()
        self.request = resolved(self.spec, picture, num_frames)
        generator = torch.Generator().manual_seed(0)
        (text,) = self.model.prompt_shapes
        self.prompt = torch.randn(text, generator=generator).to(self.device, self.dtype)
        shape = (1, *latent_shape(self.request, self.spec))
        self.latents = torch.randn(shape, generator=generator).to(self.device)

    def their_step(self, transformer: Any) -> Callable[[], object]:
        """Return a function that runs one forward pass of diffusers' transformer."""
        encoded = self.model.encode_conditions(self.request, self.pixels)
        conditions = self.model.conditions(self.request, encoded)
        latents = conditions.model_input(self.latents, range(self.latents.shape[2]))
        timestep = torch.tensor([900], device=self.device)
        return lambda: transformer(latents, timestep, self.prompt, return_dict=False)

    def our_step(self, model: WanModel) -> Callable[[], object]:
        """Return a function that runs one forward pass of ParaDiT's split transformer."""
        predictor, transformer = LocalPredictor(), model.experts[0]
        encoded = model.encode_conditions(self.request, self.pixels)
        conditions = model.conditions(self.request, encoded)
        every = range(self.latents.shape[2])
        latents = conditions.model_input(self.latents, every)
        timestep = conditions.model_timestep(torch.tensor(900, device=self.device), self.latents, every)
        contexts = predictor.contexts(transformer, conditions.prompts(((self.prompt,),)))
        layout = transformer.layout(tuple(self.latents.shape[2:]))
        return lambda: predictor.predict(transformer, latents, timestep, contexts, layout, step=0)

    def our_video(self) -> None:
        """Make a video: encode the picture, denoise, decode."""
        work = Work(
            model=self.model,
            request=self.request,
            prompts=((self.prompt,),),
            conditions=self.model.encode_conditions(self.request, self.pixels),
            progress=Progress(),
            predictor=LocalPredictor(),
        )
        (latents,) = denoise(work)
        for _ in frames(self.model, latents, None, Progress()):
            pass

    def their_video(self) -> None:
        """Make the same video with diffusers' pipeline."""
        request = self.request
        image = {} if self.pixels.image is None else {"image": Image.fromarray(self.pixels.image)}
        self.pipeline(
            **image,
            prompt_embeds=self.prompt,
            height=request.height,
            width=request.width,
            num_frames=request.num_frames,
            num_inference_steps=FEW_STEPS,
            guidance_scale=1.0,
            latents=self.latents,
            output_type="np",
        )


def resolved(spec: ModelSpec, picture: np.ndarray, num_frames: int) -> ResolvedRequest:
    height, width = picture.shape[:2]
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/picture.png"
        Image.fromarray(picture).save(path)
        asked = Request(
            prompt="a circle",
            width=width,
            height=height,
            num_frames=num_frames,
            num_inference_steps=FEW_STEPS,
            guidance_scale=1.0,
            image=path if spec.needs_image else None,
        )
        return resolve(asked, spec)


def in_turns(repeats: int, device: torch.device, works: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Return the median seconds of each work, which take turns; a first turn does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            began = now(device)
            work()
            if turn:
                seconds[name].append(now(device) - began)
    return {name: median(each) for name, each in seconds.items()}


@torch.no_grad()
def measured(name: str, layers: dict[str, int], size: tuple[int, int, int], repeats: int) -> dict[str, Any]:
    sides = Sides(name, layers, size)
    device, pipeline, model = sides.device, sides.pipeline, sides.model
    compiled = copy.deepcopy(pipeline.transformer)
    compiled.compile_repeated_blocks(fullgraph=True)
    ours_compiled = WanModel(pipeline, sides.spec, sides.dtype, compile=True)
    works = {
        "step": sides.our_step(model),
        "step of diffusers": sides.their_step(pipeline.transformer),
        "step, compiled": sides.our_step(ours_compiled),
        "step of diffusers, compiled": sides.their_step(compiled),
    }
    found = in_turns(repeats, device, works)
    del compiled, ours_compiled, works
    if sides.spec.needs_image:
        video = torch.zeros(1, 3, size[2], size[1], size[0], device=device)
        found |= in_turns(repeats, device, {
            "encode": lambda: model.encode_conditions(sides.request, sides.pixels),
            "encode of diffusers": lambda: pipeline.vae.encode(video),
        })  # fmt: skip
    latents = sides.latents
    found |= in_turns(repeats, device, {
        "decode": lambda: list(frames(model, latents, None, Progress())),
        "decode of diffusers": lambda: pipeline.video_processor.postprocess_video(
            pipeline.vae.decode(latents, return_dict=False)[0], output_type="np"),
    })  # fmt: skip
    found |= in_turns(repeats, device, {
        "video in four steps": sides.our_video,
        "video in four steps of diffusers": sides.their_video,
    })  # fmt: skip
    return found


def ratios(seconds: dict[str, float]) -> dict[str, float]:
    """Return ParaDiT's seconds divided by those of diffusers."""
    found = {}
    for name, theirs in seconds.items():
        ours = name.replace(" of diffusers", "")
        if ours != name:
            found[ours] = seconds[ours] / theirs
    found["step, compiled, over eager diffusers"] = seconds["step, compiled"] / seconds["step of diffusers"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    rows = []
    for name, layers, size in TINY if args.tiny else CASES:
        seconds = measured(name, layers, size, args.repeats)
        row = {"model": name, "layers": layers, "size": size, "seconds": seconds, "ratios": ratios(seconds)}
        rows.append(row)
        for what, ratio in ratios(seconds).items():
            print(f"{name}: {what}: {ratio:.3f} of diffusers", flush=True)
        # After every model, so that an interrupted run has results, too.
        if not args.tiny:
            write_results("models_gpu", {"rows": rows})


if __name__ == "__main__":
    main()
