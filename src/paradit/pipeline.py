"""THE STORY: load a model; then encode, denoise and decode each request as it comes. Read this first.

`run` is what every rank of an engine does, alone or with others. How a stage works stands in `stages/`; who
its results go to, and what is kept of them, in `engine/rank.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from threading import Lock
from typing import Protocol, TypeVar

import torch

from paradit.models.families import loader
from paradit.models.protocol import VideoModel
from paradit.models.spec import ModelSpec
from paradit.progress import Progress
from paradit.room import DTYPES, where_and_how
from paradit.scheduling.stages import STAGES

R = TypeVar("R")

_LOADING = Lock()
"""Held while a model is loaded: diffusers and accelerate replace parts of torch then, for all threads."""


class Rank(Protocol[R]):
    """A process that takes part: its stages of each request, and its ways to the others."""

    def load(self) -> None:
        """Load what this process's stages need, by `load`."""

    def requests(self) -> Iterator[tuple[tuple[str, ...], R]]:
        """Iterate over requests as they come, each with the stages that are this process's turn now."""

    def encode(self, request: R) -> None:
        """Turn a request's texts into what the transformer reads, for those that denoise."""

    def denoise(self, request: R) -> None:
        """Turn noise into latents, together with the others that denoise, for those that decode."""

    def decode(self, request: R) -> None:
        """Turn latents into frames, as they come, and frames into a file."""

    def account(self, request: R) -> None:
        """Tell what has become of a request, if it ends here."""

    def close(self) -> None:
        """Wait until the others have taken what was sent to them."""


def run(rank: Rank[R]) -> None:
    """Do one process's part of all requests, as they come, until no more do."""
    rank.load()
    for stages, request in rank.requests():
        if "encode" in stages:
            rank.encode(request)
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
    """Load a model to the GPU, in bf16, where there is one; else to the CPU, in fp32, unless told otherwise.

    Only what `stages` need is loaded: a process that only denoises has neither text encoder nor VAE.
    `compile` compiles what is before and after the transformers' attention, when it is first used. layers:
    False where the transformers' are read later, by `keep_layers`, since a rank has a part of them only.
    """
    usual, dtype = where_and_how(dtype)
    with _LOADING, (progress or Progress()).stage("load"):
        load_model = loader(spec.pipeline_class)
        return load_model(spec, DTYPES[dtype], device or usual, stages=stages, compile=compile, layers=layers)
