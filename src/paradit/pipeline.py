"""The main loop of a rank: load a model, then encode, denoise and decode each request. Read this first.

Every rank of an engine executes `run`, alone or with others. How a stage works is in `stages/`; which ranks
get its results, and what is saved of them, in `engine/rank.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from threading import Lock
from typing import Protocol, TypeVar

import torch

from paradit.memory_check import DTYPES, where_and_how
from paradit.models.families import loader
from paradit.models.protocol import VideoModel
from paradit.models.spec import ModelSpec
from paradit.progress import Progress
from paradit.scheduling.stages import STAGES

R = TypeVar("R")

_LOADING = Lock()
"""Lock held while a model is loaded, because diffusers and accelerate then replace parts of torch for all
threads."""


class Rank(Protocol[R]):
    """Interface of one process of a run: the work of each stage of a request. The function `run` calls it."""

    def load(self) -> None:
        """Load the parts of the model that this process's stages need, by `paradit.pipeline.load`."""

    def requests(self) -> Iterator[tuple[tuple[str, ...], R]]:
        """Yield requests as they come, each with the stages that this process has to do for it next."""

    def encode(self, request: R) -> None:
        """Encode a request's texts, and send the embeddings to the processes that denoise."""

    def conditions(self, request: R) -> None:
        """Encode a request's pictures, and send them to the processes that denoise."""

    def denoise(self, request: R) -> None:
        """Denoise a request's latents, with the other denoising processes, and send them to the decoder."""

    def decode(self, request: R) -> None:
        """Decode a request's latents, and write the frames to a file as they come."""

    def account(self, request: R) -> None:
        """Report the result of a request if its last stage ran on this process."""

    def close(self) -> None:
        """Wait until the other processes have received what was sent to them."""


def run(rank: Rank[R]) -> None:
    """Do one process's part of all requests, as they come, until no more come."""
    rank.load()
    for stages, request in rank.requests():
        if "encode" in stages:
            rank.encode(request)
        if "conditions" in stages:  # only if the request has pictures
            rank.conditions(request)
        if "denoise" in stages:
            rank.denoise(request)
        if "decode" in stages:
            rank.decode(request)
        rank.account(request)
    rank.close()


def load(
    spec: ModelSpec,
    dtype: str | None = None,
    progress: Progress | None = None,
    *,
    device: torch.device | None = None,
    stages: Collection[str] = STAGES,
    compile: bool = False,
    layers: bool = True,
) -> VideoModel:
    """Load a model onto a GPU, in bf16, if there is one; else onto the CPU, in fp32.

    dtype, device: values to use instead of these defaults. stages: stages whose weights are loaded; a process
    that only denoises thus has neither text encoder nor VAE. compile: whether to compile the transformers'
    code before and after attention, when it is first used. layers: whether to load the transformers' layers;
    if False, `keep_layers` reads them later, because a rank may have only some of them.
    """
    usual, dtype = where_and_how(dtype)
    with _LOADING, (progress or Progress()).stage("load"):
        load_model = loader(spec.pipeline_class)
        return load_model(spec, DTYPES[dtype], device or usual, stages=stages, compile=compile, layers=layers)
