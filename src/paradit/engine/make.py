"""Load what this rank needs and make the videos: the program of every rank, and of a run without ranks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from math import prod

import torch

from paradit.distributed.channel import Channel
from paradit.distributed.world import World
from paradit.engine.job import Job, Report
from paradit.engine.keep import keep
from paradit.errors import OutOfMemory
from paradit.memory import peak_memory_bytes
from paradit.models.kernels import load_kernel
from paradit.models.protocol import Prompt
from paradit.models.spec import ModelSpec
from paradit.placement import Placement
from paradit.sampling.team import Alone, Team
from paradit.sampling.together import together
from paradit.scheduling.stages import AHEAD, decoder_of, program
from paradit.stages.decode import decode
from paradit.stages.denoise import denoise
from paradit.stages.encode import encode, texts
from paradit.text_to_video import load


def make_videos(
    jobs: list[Job],
    spec: ModelSpec,
    placement: Placement,
    report: Report,
    *,
    overwrite: bool,
    world: World | None = None,
    device: torch.device | None = None,
) -> None:
    """Do this rank's part of every job; all ranks of a placement call it. world: None for one process.

    A job that fails, since its latents are not finite or its video cannot be written, fails alone.
    """
    rank = _Rank(jobs, spec, placement, report, world, overwrite=overwrite)
    rank.load(device)
    steps = program(rank.stages, rank.decoder, len(placement.decode_groups), len(jobs))
    for index, stages in groupby(steps, key=lambda step: step[1]):
        for stage, _ in stages:
            getattr(rank, stage)(index)
        rank.account()
    rank.close()


class _Rank:
    """One rank of a run: what it does in each stage, and the channels to the others."""

    def __init__(
        self,
        jobs: list[Job],
        spec: ModelSpec,
        placement: Placement,
        report: Report,
        world: World | None,
        *,
        overwrite: bool,
    ) -> None:
        self._jobs, self._spec, self._placement, self._report = jobs, spec, placement, report
        self._overwrite = overwrite
        self._world = world
        self._rank = world.rank if world else 0
        self.stages = placement.stages_of(self._rank)
        decoders, leader = placement.decode_groups, placement.denoise_ranks[0]
        self.decoder = next((n for n, group in enumerate(decoders) if self._rank in group), -1)
        self._writes = self._rank in (group[0] for group in decoders)
        self._sharers = _sharers(placement, world)
        self._team = _team(placement, spec, world)
        self._prompts = Channel(world, placement.encode_ranks[0], placement.denoise_ranks, AHEAD)
        self._latents = [Channel(world, leader, group, AHEAD) for group in decoders]
        # Where all ranks denoise, they meet after every request.
        self._all_meet = len(placement.denoise_ranks) == placement.ranks
        self._seconds: list[dict[str, float]] = [{} for _ in jobs]
        self._done: int | None = None

    def load(self, device: torch.device | None) -> None:
        """What this rank's stages need."""
        report = self._report if self._rank == 0 else Report()
        dtype, compile = self._jobs[0].request.dtype, self._placement.compile
        self._model = load(self._spec, dtype, report, device=device, stages=self.stages, compile=compile)
        self._seconds[0].update(report.seconds)

    def encode(self, index: int) -> None:
        """The texts of a request, sent to all ranks that denoise."""
        request = self._jobs[index].request
        self._report.request(index, len(self._jobs), request.prompt)
        with self._timed(index, "encode"):
            prompts = encode(self._model, request, self._report)
        self._prompts.send(torch.cat([part.flatten() for prompt in prompts for part in prompt]))

    def denoise(self, index: int) -> None:
        """The latents of a request, sent by the first rank that denoises to those that decode."""
        team, request = self._team, self._jobs[index].request
        assert team is not None
        prompts = self._receive_prompts(len(texts(self._spec, request)))
        report = self._report if team.is_first else Report()
        try:
            with self._timed(index, "denoise"):
                latents = denoise(self._model, request, prompts, report, team)
        except FloatingPointError as error:  # on all of these ranks alike
            latents = torch.full(self._latent_shape(index), torch.nan, device=self._model.device)
            if team.is_first:
                self._fail(index, str(error))
        if team.is_first:
            took = latents.new_tensor([self._seconds[index].get("denoise", 0.0)])
            self._latents[decoder_of(index, len(self._latents))].send(torch.cat([latents.flatten(), took]))

    def decode(self, index: int) -> None:
        """The video of a request, and its file: all of it, or this rank's tiles for the one that writes."""
        job, shape = self._jobs[index], self._latent_shape(index)
        channel = self._latents[self.decoder]
        message = channel.receive([prod(shape) + 1], torch.float32, self._model.device)
        latents, took = message[:-1].view(shape), message[-1]
        if not latents.isfinite().all():
            return  # it has failed already, and that was told
        self._seconds[index].setdefault("denoise", took.item())
        try:
            with self._timed(index, "decode"):
                decode(
                    self._model,
                    latents,
                    job.request.vae_tile,
                    self._report if self._writes else Report(),
                    lambda frames: keep(job, self._spec, latents, frames, self._overwrite),
                    world=self._sharers,
                )
        except OSError as error:
            self._fail(index, f"{error.strerror or error}: {error.filename or job.output}")
        except OutOfMemory as error:  # on all that share the decode alike
            if self._writes:
                self._fail(index, str(error))
        else:
            self._done = index if self._writes else None

    def account(self) -> None:
        """Tell of the request that is done, if this rank has just decoded one."""
        memory = self._peak_memory() if self._all_meet else None
        index, self._done = self._done, None
        if index is None:
            return
        job = self._jobs[index]
        result = {
            **job.about(self._spec),
            "latents_path": str(job.latents) if job.latents else None,
            "seconds": {name: round(took, 4) for name, took in self._seconds[index].items() if took > 0},
            "device": self._model.device.type,
        }
        if memory is not None:
            result.update(peak_memory_bytes=max(memory), peak_memory_bytes_by_rank=memory)
        self._report.result(result)

    def close(self) -> None:
        """Wait until all is taken that was sent; where ranks have not met before, tell of their memory."""
        for channel in (self._prompts, *self._latents):
            channel.close()
        if not self._all_meet:
            memory = self._peak_memory()
            if self._rank == 0:
                stages = [self._placement.stages_of(rank) for rank in range(len(memory))]
                self._report.memory(memory, stages)

    def _peak_memory(self) -> list[int]:
        """Of every rank; all ranks call it."""
        mine = torch.tensor([peak_memory_bytes(self._model.device)], device=self._model.device)
        everyone = self._world.transport().all_gather(mine) if self._world else [mine]
        return [int(one) for one in everyone]

    def _receive_prompts(self, number: int) -> tuple[Prompt, ...]:
        model, shapes = self._model, self._model.prompt_shapes
        sizes = [prod(shape) for shape in shapes]
        flat = self._prompts.receive([number * sum(sizes)], model.dtype, model.device)
        return tuple(
            tuple(part.view(shape) for part, shape in zip(torch.split(prompt, sizes), shapes, strict=True))
            for prompt in flat.chunk(number)
        )

    def _latent_shape(self, index: int) -> tuple[int, ...]:
        request = self._jobs[index].request
        assert request.num_frames and request.height and request.width
        return 1, *self._spec.vae.latent_shape(request.num_frames, request.height, request.width)

    def _fail(self, index: int, reason: str) -> None:
        self._report.failed(index, len(self._jobs), f"{self._jobs[index].request.prompt!r}: {reason}")

    @contextmanager
    def _timed(self, index: int, stage: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._seconds[index][stage] = time.monotonic() - began


def _sharers(placement: Placement, world: World | None) -> World | None:
    """The ranks that decode a video together with this one, if there are any."""
    # With messages of their own: between the same two ranks prompts or latents may be on their way.
    share = world is not None and placement.decode_degree > 1
    return world.part(placement.decode_ranks, apart=True) if share and world else None


def _team(placement: Placement, spec: ModelSpec, world: World | None) -> Team | None:
    """This rank among those that denoise; None where it does not."""
    kernel = load_kernel(placement.kernel)
    part = world.part(placement.denoise_ranks) if world else None
    if len(placement.denoise_ranks) == 1:
        return Alone(kernel)
    if part is None:
        return None
    num_branches = 1 if spec.embedded_guidance else 2
    return together(part, placement, spec.transformers[0].num_attention_heads, num_branches, kernel)
