"""Load what this rank needs and make the videos: the program of every rank, and of a run without ranks."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from math import prod
from typing import Any

import torch
from torch import Tensor

from paradit.config.errors import InputError, OutOfMemory
from paradit.config.methods.base import method_of
from paradit.config.placement import Placement
from paradit.config.requests import latent_shape
from paradit.distributed.channel import Channel
from paradit.distributed.world import World
from paradit.engine import teams
from paradit.engine.coming import Coming, ComingFrom, FailedElsewhere, send_blocks
from paradit.engine.events import Began, Doing, Failed, Finished, MemoryUsed
from paradit.engine.job import Job
from paradit.engine.keep import Written, keep, save_latents
from paradit.engine.keeper import Keeper
from paradit.engine.replicas import replica_of
from paradit.memory import peak_memory_bytes
from paradit.models.common.latent_blocks import LatentBlocks
from paradit.models.protocol import Frames, Prompt
from paradit.models.spec import ModelSpec
from paradit.parallel.team import Team
from paradit.progress import Progress
from paradit.provenance import provenance
from paradit.room import name_of
from paradit.sampling.early_end import Unwanted
from paradit.sampling.layer_split import LayerShare
from paradit.sampling.sampler import Work, sampler_of
from paradit.scheduling.stages import AHEAD, decoder_of, program
from paradit.stages.decode import decode
from paradit.stages.denoise import denoise
from paradit.stages.encode import encode
from paradit.text_to_video import load
from paradit.trace.spans import STAGE, span


def make_videos(
    jobs: list[Job],
    spec: ModelSpec,
    placement: Placement,
    report: Progress,
    *,
    overwrite: bool,
    metadata: bool = True,
    world: World | None = None,
    device: torch.device | None = None,
    keeper: Keeper | None = None,
) -> None:
    """Do this rank's part of every job; all ranks of a placement call it. world: None for one process.

    A job that fails, since its latents are not finite or its video cannot be written, fails alone. What
    `keeper` has of a job is not done again; the first rank that denoises, and those that decode, need one.
    """
    if placement.replicas > 1:
        assert world is not None
        mine = replica_of(world, placement, jobs, report)
        if mine.jobs:
            make_videos(
                mine.jobs,
                spec,
                mine.placement,
                mine.report,
                overwrite=overwrite,
                metadata=metadata,
                world=mine.world,
                device=device,
                keeper=keeper,
            )
        mine.tell_memory()
        return
    files: dict[str, Any] = {"keeper": keeper, "overwrite": overwrite, "metadata": metadata}
    rank = _Rank(jobs, spec, placement, report, world=world, **files)
    rank.load(device)
    steps = program(rank.stages, rank.decoder, len(placement.decode_groups), len(jobs), rank.denoised)
    for index, stages in groupby(steps, key=lambda step: step[1]):
        for stage, _ in stages:
            report.emit(Doing(job=jobs[index].index, stage=stage))
            getattr(rank, stage)(index)
        rank.account(index)
    rank.close()


class _Rank:
    """One rank of a run: what it does in each stage, and the channels to the others."""

    def __init__(
        self,
        jobs: list[Job],
        spec: ModelSpec,
        placement: Placement,
        report: Progress,
        *,
        world: World | None,
        keeper: Keeper | None,
        overwrite: bool,
        metadata: bool,
    ) -> None:
        self._jobs, self._spec, self._placement, self._report = jobs, spec, placement, report
        self._keeper, self._overwrite, self._metadata = keeper, overwrite, metadata
        self.denoised = _denoised(jobs, keeper, world)
        self._world = world
        self._rank = world.rank if world else 0
        self.stages = placement.stages_of(self._rank)
        decoders, leader = placement.decode_groups, placement.denoise_ranks[0]
        self.decoder = next((n for n, group in enumerate(decoders) if self._rank in group), -1)
        self._writes = self._rank in (group[0] for group in decoders)
        self._sharers = teams.sharers(placement, world)
        team = world.part(placement.denoise_ranks) if world else None
        self._helped, self._helper = teams.coprocess(placement, spec, world, team)
        self._team = teams.team(placement, spec, team, self._helped)
        self._pipeline = teams.pipeline(placement, jobs, world)
        self._grid = method_of(jobs[0].request).grid(placement, jobs[0].request, spec)
        self._prompts = Channel(world, placement.encode_ranks[0], placement.denoise_ranks, AHEAD)
        self._latents = [Channel(world, leader, group, AHEAD) for group in decoders]
        # Where all ranks denoise, they meet after every request.
        self._all_meet = len(placement.denoise_ranks) == placement.ranks
        self._seconds: list[dict[str, float]] = [{} for _ in jobs]
        self._done: int | None = None
        self._helped_steps: dict[int, int] = {}
        self._coming: dict[int, Coming] = {}
        """Of long videos."""
        self._began = time.monotonic()
        """When the first video was begun, or the one before was done."""
        self._written: dict[int, Written] = {}
        self._layers: LayerShare | None = None

    def load(self, device: torch.device | None) -> None:
        """What this rank's stages need."""
        report = Progress(self._report.emit) if self._rank == 0 else Progress()
        with span("load", STAGE):
            self._model = load(
                self._spec,
                self._jobs[0].request.dtype,
                report,
                device=device,
                stages=self.stages,
                compile=self._placement.compile,
                layers=self._pipeline is None or self._grid.num_stages == 1,
            )
        self._seconds[0].update(report.seconds)

    def encode(self, index: int) -> None:
        """The texts of a request, sent to all ranks that denoise."""
        job = self._jobs[index]
        request = job.request
        self._report.emit(Began(job=job.index, count=job.count, prompt=request.prompt))
        with self._timed(index, "encode"):
            prompts = encode(self._model, request, self._telling(job))
        self._prompts.send(torch.cat([part.flatten() for prompt in prompts for part in prompt]))

    def denoise(self, index: int) -> None:
        """The latents of a request, sent by the first rank that denoises to the one that decodes."""
        team, job = self._team, self._jobs[index]
        request = job.request
        assert team is not None
        prompts = self._receive_prompts(len(request.texts(self._spec)))
        report = self._telling(job if team.is_first else None)
        if method_of(request).streams:
            self._denoise_blocks(index, prompts, report, team)
            return
        try:
            with self._timed(index, "denoise"):
                (latents,) = self._denoised_blocks(job, prompts, report, team)
        except FloatingPointError as error:  # on all of these ranks alike
            latents = torch.full(self._latent_shape(index), torch.nan, device=self._model.device)
            if team.is_first:
                self._fail(index, str(error))
        else:
            if team.is_first and self._keeper:
                self._keeper.save_latents(job, latents, self._spec)
        self._tell_of_latents(index)
        if team.is_first:
            took = latents.new_tensor([self._seconds[index].get("denoise", 0.0)])
            self._latents[decoder_of(index, len(self._latents))].send(torch.cat([latents.flatten(), took]))

    def _denoise_blocks(self, index: int, prompts: tuple[Prompt, ...], report: Progress, team: Team) -> None:
        """The same of a long video: its blocks go to the rank that decodes as they are finished."""
        job = self._jobs[index]
        if self._layers is None and self._pipeline is not None:
            with report.stage("load"), self._timed(index, "load"):
                self._layers = sampler_of(job.request).divide(
                    self._model, job.request, prompts, self._pipeline, self._grid
                )
        blocks = self._denoised_blocks(job, prompts, report, team)
        if self.decoder >= 0 and team.is_first:
            # Each is decoded before the next is made.
            self._coming[index] = Coming(blocks)
            return
        channel = self._latents[decoder_of(index, len(self._latents))]
        try:
            with self._timed(index, "denoise"):
                if team.is_first:
                    send_blocks(blocks, channel, self._block_shapes(job), self._model.device)
                deque(blocks, maxlen=0)  # on the others none come
        except Unwanted:
            pass  # whoever decodes it has told why
        except FloatingPointError as error:  # on all of these ranks alike
            if team.is_first:
                self._fail(index, str(error))

    def _denoised_blocks(
        self, job: Job, prompts: tuple[Prompt, ...], report: Progress, team: Team
    ) -> Iterator[Tensor]:
        """The blocks of a request's latents as they are finished; of some methods one, which is all."""
        keeper, device = self._keeper if team.is_first else None, self._model.device
        work = Work(
            model=self._model,
            request=job.request,
            prompts=prompts,
            progress=report,
            team=team,
            share=self._layers,
            checkpoints=keeper.checkpoints(job, device) if keeper else None,
            wanted=lambda: self._world is None or not self._world.told(self._unwanted(job)),
        )
        return denoise(work, self._keeper.heeding_stop() if self._keeper else None)

    def _block_shapes(self, job: Job) -> Iterator[tuple[int, ...]]:
        channels, _, *size = latent_shape(job.request, self._spec)
        return ((1, channels, frames, *size) for frames in job.request.block_sizes(self._spec))

    def _blocks_of(self, index: int) -> Iterator[Tensor]:
        """The blocks that are to be decoded, as they come."""
        job, collected = self._jobs[index], []
        for block in self._coming[index]:
            if job.latents is not None:
                collected.append(block)
            yield block
        if job.latents is not None and self._writes:
            latents = torch.cat(collected, dim=2)
            save_latents(job.latents, latents, job.about(self._spec), self._provenance(job))

    def decode(self, index: int) -> None:
        """The video of a request, and its file: all of it, or this rank's tiles for the one that writes."""
        job = self._jobs[index]
        latents = self._latents_of(index)
        if isinstance(latents, Tensor) and not latents.isfinite().all():
            return  # it has failed already, and that was told
        whole = latents if isinstance(latents, Tensor) else None
        report = self._telling(job if self._writes else None)

        def consume(frames: Generator[Frames]) -> Written:
            return keep(
                job,
                self._spec,
                whole,
                frames,
                overwrite=self._overwrite,
                about=self._provenance(job),
                report=report,
                name_next=partial(self._keeper.name_next, job) if self._keeper else None,
            )

        failed = True
        try:
            with self._timed(index, "decode"):
                tile = job.request.vae_tile
                written = decode(self._model, latents, tile, report, consume, world=self._sharers)
        except FailedElsewhere:
            pass
        except OSError as error:
            self._fail(index, f"{error.strerror or error}: {error.filename or job.output}")
        except (InputError, OutOfMemory, FloatingPointError) as error:
            if self._writes:  # memory runs out on all that share the decode alike
                self._fail(index, str(error))
        else:
            failed = False
            self._done = index if self._writes else None
            if written is not None:
                self._written[index] = written
                if self._keeper:
                    self._keeper.finish(job)
        if self._world and index in self._coming and not job.request.endless:
            if failed:
                self._world.tell(self._unwanted(job))
            self._coming[index].drain()  # the others come to its end too, if this has ended before

    def _provenance(self, job: Job) -> dict[str, Any] | None:
        """What a video's metadata says, if it says anything."""
        if not self._metadata:
            return None
        return provenance(job.request, self._spec, name_of(self._model.dtype), self._placement.kernel)

    def _unwanted(self, job: Job) -> str:
        """The word that nobody needs more of a long video: its decode has failed."""
        return f"video {job.index} is not wanted"

    def _latents_of(self, index: int) -> Tensor | LatentBlocks:
        """What is to be decoded: it comes from the rank that denoised it, or is there from an earlier run."""
        request, shape = self._jobs[index].request, self._latent_shape(index)
        if method_of(request).streams:
            if index not in self._coming:
                channel, shapes = self._latents[self.decoder], self._block_shapes(self._jobs[index])
                self._coming[index] = ComingFrom(channel, shapes, self._model.device)
            return LatentBlocks(shape, self._blocks_of(index), endless=request.endless)
        if index in self.denoised:
            assert self._keeper is not None
            return self._keeper.load_latents(self._jobs[index]).to(self._model.device)
        channel = self._latents[self.decoder]
        self._help_until_latents(index)
        message = channel.receive([prod(shape) + 1], torch.float32, self._model.device)
        self._seconds[index].setdefault("denoise", message[-1].item())
        return message[:-1].view(shape)

    def account(self, index: int) -> None:
        """After all that this rank does of a request in one go: tell of it, if it is done here."""
        # A video without end is stopped where its first rank is; the others do not come here.
        meet = self._all_meet and index not in self.denoised and not self._jobs[index].request.endless
        memory = self._peak_memory() if meet else None
        if self._done != index:
            return
        job, seconds = self._jobs[index], self._seconds[index]
        if index in self._coming:  # blocks were denoised, or waited for, while they were decoded
            coming = self._coming.pop(index)
            seconds["denoise"] = coming.denoise_seconds
            seconds["decode"] = seconds.pop("decode") - coming.waited
        result = {
            **job.about(self._spec),
            "num_frames": self._written[index].num_frames,
            "latents_path": str(job.latents) if job.latents else None,
            "seconds": {name: round(took, 4) for name, took in seconds.items() if took > 0},
            "seconds_to_first_frame": round(self._written[index].first_frame - self._began, 4),
            "device": self._model.device.type,
        }
        if memory is not None:
            result.update(peak_memory_bytes=max(memory), peak_memory_bytes_by_rank=memory)
        if index in self._helped_steps:
            result["coprocessed_steps"] = self._helped_steps[index]
        self._report.emit(Finished(job=job.index, result=result))
        self._began = time.monotonic()

    def close(self) -> None:
        """Wait until all is taken that was sent; where ranks have not met before, tell of their memory."""
        if self._helper is not None:
            self._helper.until_latents()  # and none come any more
        for channel in (self._prompts, *self._latents):
            channel.close()
        if self._helped is not None:
            self._helped.close()
        if not self._all_meet:
            memory = self._peak_memory()
            if self._rank == 0:
                stages = [self._placement.stages_of(rank) for rank in range(len(memory))]
                self._report.emit(MemoryUsed(by_rank=memory, stages=stages))

    def _tell_of_latents(self, index: int) -> None:
        """That those of a request come now: to the rank that decodes them, where it helps."""
        if self._helped is None:
            return
        decoders, helpers = self._placement.decode_groups, self._placement.helper_ranks
        group = decoders[decoder_of(index, len(decoders))]
        told = [number for number, rank in enumerate(helpers) if rank in group]
        self._helped_steps[index] = self._helped.latents(told)

    def _help_until_latents(self, index: int) -> None:
        """While this rank waits for those of a request, where it helps."""
        if self._helper is not None:
            self._helped_steps[index] = self._helper.until_latents()

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
        return 1, *latent_shape(self._jobs[index].request, self._spec)

    def _fail(self, index: int, reason: str) -> None:
        job = self._jobs[index]
        message = f"{job.request.prompt!r}: {reason}"
        self._report.emit(Failed(job=job.index, count=job.count, message=message))

    def _telling(self, job: Job | None) -> Progress:
        """What tells of a job; of none, what tells nothing but warnings."""
        return Progress(self._report.emit, job.index) if job is not None else Progress()

    @contextmanager
    def _timed(self, index: int, stage: str) -> Iterator[None]:
        began = time.monotonic()
        with span(stage, STAGE, request=self._jobs[index].index):
            yield
        seconds = self._seconds[index]
        seconds[stage] = seconds.get(stage, 0.0) + time.monotonic() - began


def _denoised(jobs: list[Job], keeper: Keeper | None, world: World | None) -> set[int]:
    """The jobs of which nothing but the decode is left, as the first rank finds them."""
    there = torch.tensor([keeper is not None and keeper.has_latents(job) for job in jobs])
    if world:
        there = world.transport().broadcast(there.to(world.device))
    return set(there.nonzero().flatten().tolist())
