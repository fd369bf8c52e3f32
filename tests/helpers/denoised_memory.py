"""Peak of memory while a rank denoises a video in frame blocks, beside its estimate."""

from pathlib import Path

from allocated import allocated_peak
from paradit.config.methods.method import method_of, resolve
from paradit.config.placement import Placement
from paradit.config.requests import Request
from paradit.distributed.world import World
from paradit.engine.predictors import sequence_parallel
from paradit.models.spec import read_spec
from paradit.parallel.predictor import LocalPredictor, Predictor
from paradit.pipeline import load
from paradit.progress import Progress
from paradit.sampling.layer_split import divide_layers
from paradit.sampling.sampler import Work, sampler_of
from tiny import save_folder

SIZES = {
    "width": 128,
    "height": 128,
    "num_frames": 45,
    "block_frames": 4,
    "context_frames": 1,
    "num_inference_steps": 4,
}
"""Sizes of the video: three blocks, fewer than there are steps."""


def save_model(folder: Path) -> Path:
    """Save a model whose feed-forward is as wide, relative to the tokens, as in published models."""
    return save_folder("wan21", folder, heads=4, ffn_dim=640)


def estimated_of_peak(
    world: World | None, folder: Path, asked: dict[str, object], placement: Placement
) -> float:
    """Return a rank's estimated bytes beside weights, as a fraction of those that the allocator hands out."""
    spec = read_spec(folder)
    request = resolve(Request.of(prompt="a circle", dtype="fp32", **SIZES, **asked), spec, placement)
    method, model, share = method_of(request), load(spec, "fp32"), None
    prompts = tuple(model.encode_prompt("a circle " * 200) for _ in range(request.num_branches(spec)))
    predictor: Predictor = LocalPredictor()
    if world:
        predictor = sequence_parallel(world, placement, model.experts[0].num_heads)
        if method.divides_layers:
            share = divide_layers(model, world, None, method.grid(placement, request, spec))

    def denoise() -> None:
        work = Work(model=model, request=request, prompts=prompts, progress=Progress(), predictor=predictor,
                    share=share)  # fmt: skip
        for _ in sampler_of(request).blocks(work):
            pass

    peak = allocated_peak(denoise)
    parts = method.memory_by_rank(placement, request, spec, 4)[world.rank if world else 0]
    names = ("latents", "text_cache", "activations", "keys")
    return sum(parts.get(name, 0) for name in names) / peak
