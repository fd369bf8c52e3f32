"""Few steps on several ranks: an expert without guidance, and a scheduler that draws noise in each step."""

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from paradit.config.methods.blocks import in_blocks
from paradit.config.methods.method import resolve
from paradit.config.placement import Placement
from paradit.config.requests import Request, ResolvedRequest
from paradit.distributed.world import World
from paradit.engine.predictors import sequence_parallel
from paradit.models.protocol import VideoModel
from paradit.models.spec import read_spec
from paradit.parallel.predictor import Predictor
from paradit.pipeline import load
from paradit.progress import Progress
from paradit.sampling.block_pipeline import BlockPipeline
from paradit.sampling.layer_split import divide_layers
from paradit.sampling.noise import PooledNoise
from paradit.scheduling.layer_pipeline import PipelineGrid
from paradit.testing import run_world
from paradit.text_to_video import text_to_video
from threads import one_thread
from tiny import save_folder

SCALES = [(3.0, 1.0), (1.0, 3.0), (1.0, 1.0)]
"""Guidance scales of the two experts."""


def asked(folder: Path, scales: tuple[float, float]) -> ResolvedRequest:
    request = Request(
        prompt="a red circle",
        width=64,
        height=48,
        num_frames=9,
        preset="lightx2v-4",
        scheduler="lcm",
        guidance_scale=scales[0],
        guidance_scale_2=scales[1],
    )
    return resolve(request, read_spec(folder))


def whole(folder: Path, predictor: Predictor | None) -> list[Tensor]:
    model = load(read_spec(folder), "fp32")
    requests = [asked(folder, scales) for scales in SCALES]
    return [text_to_video(model, request, Progress(), predictor).latents for request in requests]


def in_queue(folder: Path, world: World | None) -> list[list[Tensor]]:
    spec = read_spec(folder)
    model: VideoModel = load(spec, "fp32")
    share = divide_layers(model, world, None, PipelineGrid(2)) if world else None
    made = []
    for scales in SCALES:
        options = {"block_frames": 2, "context_frames": 1, "num_frames": 21}
        fields = vars(asked(folder, scales)) | {"method": "dualparal"} | options
        request = resolve(Request.of(**fields), spec)
        prompts = tuple(model.encode_prompt(text) for text in request.texts(spec))
        noise, queue = PooledNoise((16, 6, 8), 0, 2, 1), in_blocks(request).queue(spec)
        for left_source in ("latents", "cache"):
            cached = replace(queue, left_source=left_source)
            pipeline = BlockPipeline(model, cached, prompts, noise, (6, 8), request=request, share=share)
            made.append(list(pipeline.blocks()))
    return made


def on_ranks(world: World, folder: Path) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    heads = read_spec(folder).transformers[0].num_attention_heads
    forms = [
        Placement.of(ranks=2, attention="ulysses"),
        Placement.of(ranks=2, attention="ulysses", interleave=True),
    ]
    shared = [whole(folder, sequence_parallel(world, placement, heads)) for placement in forms]
    return shared, in_queue(folder, world)


def test_two_ranks_make_the_video_of_one(tmp_path: Path) -> None:
    folder = save_folder("wan22_a14b", tmp_path)
    with one_thread():
        expected, blocks = whole(folder, None), in_queue(folder, None)
    (shared, divided), (also, _) = run_world(on_ranks, 2, folder, timeout=240)
    for videos in (*shared, *also):
        for latents, video in zip(videos, expected, strict=True):
            assert float((latents - video).abs().max()) <= 1e-5
    for made, of_one in zip(divided, blocks, strict=True):
        assert len(made) == 3
        for latents, video in zip(made, of_one, strict=True):
            assert float((latents - video).abs().max()) <= 1e-5
