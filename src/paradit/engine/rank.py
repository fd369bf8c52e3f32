"""Program that every rank runs, even a single one: it takes orders (videos to make) and does their stages."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from paradit.config.errors import InputError, OutOfMemory
from paradit.config.methods.method import method_of
from paradit.config.placement import Placement
from paradit.distributed.world import World
from paradit.engine import predictors
from paradit.engine.checkpoints import SavedProgress
from paradit.engine.events import Began, Cancelled, Doing, Finished
from paradit.engine.input_transfer import Inputs, InputTransfer
from paradit.engine.latent_transfer import BlockStream, FailedElsewhere, Latents
from paradit.engine.orders import Inbox, Order
from paradit.engine.output import Written, save_latents, write_output
from paradit.engine.replicas import gathered_memory, of_replica, own_world, tell_memory
from paradit.engine.request_record import Open
from paradit.engine.run_folder import RunFolder
from paradit.memory_check import name_of
from paradit.models.common.latent_blocks import LatentBlocks
from paradit.models.protocol import Frames
from paradit.models.spec import ModelSpec
from paradit.parallel.predictor import Predictor
from paradit.pipeline import load, run
from paradit.progress import Emit, Progress
from paradit.provenance import provenance
from paradit.sampling.early_stop import Unwanted, no_blocks
from paradit.sampling.layer_split import LayerShare
from paradit.sampling.sampler import Work, sampler_of
from paradit.scheduling.stages import decoder_of, program
from paradit.stages.conditions import conditions
from paradit.stages.decode import Undecoded, decode
from paradit.stages.denoise import denoise
from paradit.stages.encode import encode
from paradit.trace.spans import STAGE, span

FAILURES = (OSError, InputError, OutOfMemory)
"""Exceptions that end one request, and no other."""


def rank_program(
    inbox: Inbox,
    spec: ModelSpec,
    placement: Placement,
    emit: Emit,
    *,
    world: World | None = None,
    device: torch.device | None = None,
) -> Callable[[], None]:
    """Wait for the first order (a video to make), and return the function that does this rank's work.

    The returned function does this rank's part of every order, until no more come. An order that is no longer
    wanted ends within a step, on all ranks alike. If an order fails, because its latents are not finite or
    its video cannot be written, other orders are not affected.

    All ranks call it. world: process group of all ranks; None for one process.
    """
    at_end = None
    if placement.replicas > 1:
        assert world is not None
        at_end = partial(tell_memory, world, placement, emit)
        # From here on the replica is all that this rank knows of, with ranks counted from 0.
        inbox.replica = world.rank // placement.replica_ranks
        world = own_world(world, placement.replica_ranks)
        placement, emit = placement.replica, of_replica(emit, inbox.replica)
    first = inbox.first()
    if first is None:  # no video for this replica, but `tell_memory` needs all ranks
        return at_end or (lambda: None)
    return partial(run, _Rank(first, inbox, spec, placement, emit, world=world, device=device, at_end=at_end))


class _Rank:
    """One rank's work in each stage, for `pipeline.run`, and its channels to the other ranks."""

    def __init__(
        self,
        first: Order,
        inbox: Inbox,
        spec: ModelSpec,
        placement: Placement,
        emit: Emit,
        *,
        world: World | None,
        device: torch.device | None,
        at_end: Callable[[], None] | None,
    ) -> None:
        self._first, self._inbox, self._spec, self._placement = first, inbox, spec, placement
        self._emit, self._at_end, self._device = emit, at_end, device
        self._world, request = world, first.job.request
        self._rank = world.rank if world else 0
        self._stages = placement.stages_of(self._rank)
        decoders = placement.decode_groups
        self._decoder = next((n for n, group in enumerate(decoders) if self._rank in group), -1)
        self._writes = self._rank in (group[0] for group in decoders)
        # These calls make process groups, so all ranks make them, in the same order.
        self._sharers = predictors.sharers(placement, world)
        denoisers = world.part(placement.denoise_ranks) if world else None
        self._helped, self._helper = predictors.coprocess(placement, spec, world, denoisers)
        self._predictor = predictors.predictor(placement, spec, denoisers, self._helped)
        self._pipeline = predictors.pipeline(placement, request, world)
        self._grid = method_of(request).grid(placement, request, spec)
        # If all ranks denoise, they gather their memory figures after every request.
        self._all_meet = len(placement.denoise_ranks) == placement.ranks
        # Inputs are sent ahead, so results that travel the other way must not queue behind them.
        self._ahead = world if world is None or self._all_meet else world.way_back()
        self._open: dict[int, Open] = {}
        self._taken = 0
        self._began = time.monotonic()
        """Time, on the monotonic clock, from which the seconds to the next video's first frame are counted.

        It is the time of the rank's start, of the end of the video before, or of the arrival of an order (a
        video to make) while the rank was idle.
        """
        self._layers: LayerShare | None = None

    def load(self) -> None:
        """Load the parts of the model that this rank's stages need."""
        progress = Progress(self._emit) if self._rank == 0 else Progress()
        self._emit(Doing(stage="load"))
        with span("load", STAGE):
            self._model = load(
                self._spec,
                self._first.job.request.dtype,
                progress,
                device=self._device,
                stages=self._stages,
                compile=self._placement.compile,
                layers=self._pipeline is None or self._grid.num_slices == 1,
            )
        self._load_seconds = progress.seconds
        self._inputs = InputTransfer(self._model, self._placement, self._ahead)
        self._latents = Latents(self._spec, self._placement, self._world, self._model.device)

    def requests(self) -> Iterator[tuple[tuple[str, ...], Order]]:
        """Yield orders (videos to make) as they come, each with the stages that this rank has to do next."""
        return program(
            self._placement.work_of(self._rank),
            self._decoder,
            len(self._placement.decode_groups),
            self._take,
            is_denoised=lambda order: order.is_denoised,
            has_pictures=lambda order: order.job.request.has_pictures,
        )

    def _take(self, wait: bool) -> Order | None:
        """Take the next order (a video to make) from the inbox, create a record of it, and return it.

        wait: whether to wait for one. Returns None if there is none; after waiting, no more will come.
        """
        order = self._inbox.take(wait)
        if order is not None:
            if not self._open:
                self._began = time.monotonic() if self._taken else self._began
            # The first video's result includes the seconds of loading.
            self._open[order.number] = Open(self._taken, {} if self._taken else self._load_seconds)
            self._taken += 1
        return order

    def encode(self, order: Order) -> None:
        """Encode a request's texts, and send the embeddings to the ranks that denoise.

        Sends None instead if the request is no longer wanted.
        """
        request, prompts = order.job.request, None
        self._emit(Doing(job=order.number, stage="encode"))
        if self._inbox.is_wanted(order):
            self._emit(Began(job=order.number, count=order.job.count, prompt=request.prompt))
            with self._open[order.number].timed("encode", order.job.index):
                prompts = encode(self._model, request, self._telling(order))
        self._inputs.send_prompts(request, prompts)

    def conditions(self, order: Order) -> None:
        """Encode a request's pictures, and send them to the ranks that denoise.

        Sends None instead if the request is no longer wanted, or if its pictures cannot be encoded.
        """
        request, encoded, open_ = order.job.request, None, self._open[order.number]
        self._emit(Doing(job=order.number, stage="conditions"))
        if self._inbox.is_wanted(order):
            try:
                with open_.timed("conditions", order.job.index):
                    encoded = conditions(self._model, request, self._telling(order))
            except FAILURES as error:
                self._end_early(order, error)
        self._inputs.send_conditions(request, self._decoder, encoded, failed=open_.has_ended)

    def denoise(self, order: Order) -> None:
        """Denoise a request's latents; the first rank that denoises sends them to the decoder."""
        predictor, open_, latents = self._predictor, self._open[order.number], None
        assert predictor is not None
        self._emit(Doing(job=order.number, stage="denoise"))
        inputs = self._inputs.receive(order.job.request, self._decoder_of(order))
        if method_of(order.job.request).streams:
            self._denoise_blocks(order, inputs, predictor)
            return
        try:
            with self._open[order.number].timed("denoise", order.job.index):
                (latents,) = self._blocks(order, inputs, predictor)
        except (FloatingPointError, Unwanted, FailedElsewhere) as error:  # on all of these ranks alike
            if predictor.is_first:
                self._end_early(order, error)
        if predictor.is_first and latents is not None and (saved_progress := self._saved_progress(order)):
            saved_progress.save_latents(latents, self._spec)
        if self._helped is not None:  # decode ranks that help wait for latents too
            open_.helped_steps = self._helped.latents(self._placement.helpers_of(self._decoder_of(order)))
        if predictor.is_first:
            seconds = open_.seconds.get("denoise", 0.0)
            self._latents.send(self._decoder_of(order), order.job.request, latents, seconds)

    def _denoise_blocks(self, order: Order, inputs: Inputs | Exception, predictor: Predictor) -> None:
        """Denoise a long video; the first denoise rank sends each denoised frame block to the decoder."""
        if self._decoder >= 0 and predictor.is_first:
            # This rank decodes, too: each block before the next one is denoised.
            self._open[order.number].block_stream = BlockStream(self._blocks(order, inputs, predictor))
            return
        try:
            with self._open[order.number].timed("denoise", order.job.index):
                blocks = self._blocks(order, inputs, predictor)
                if predictor.is_first:
                    self._latents.send_blocks(self._decoder_of(order), order.job.request, blocks)
                deque(blocks, maxlen=0)  # other ranks take part, and get no blocks
        except (FloatingPointError, Unwanted, FailedElsewhere) as error:  # on all of these ranks alike
            # If the decode has failed, the rank that decodes has reported why.
            if predictor.is_first and not (isinstance(error, Unwanted) and self._inbox.is_wanted(order)):
                self._end_early(order, error)

    def _blocks(self, order: Order, inputs: Inputs | Exception, predictor: Predictor) -> Iterator[Tensor]:
        """Return an iterator over denoised latents: frame blocks, or all latents as one.

        On the first rank that denoises, the iterator yields them; on the others it yields nothing.
        """
        if isinstance(inputs, Exception):
            return no_blocks(inputs)
        progress = self._telling(order if predictor.is_first else None)
        saved_progress = self._saved_progress(order) if predictor.is_first else None
        work = Work(
            model=self._model,
            request=order.job.request,
            prompts=inputs.prompts,
            conditions=inputs.conditions,
            progress=progress,
            predictor=predictor,
            checkpoints=saved_progress.checkpoints(self._model.device) if saved_progress else None,
            wanted=lambda: self._world is None or not self._world.is_published(order.undecoded),
        )
        # Layers are divided by their measured times, for which a request and its inputs are needed.
        if self._layers is None and self._pipeline is not None:
            with progress.stage("load"), self._open[order.number].timed("load", order.job.index):
                self._layers = sampler_of(work.request).divide(work, self._pipeline, self._grid)
        return denoise(replace(work, share=self._layers))

    def decode(self, order: Order) -> None:
        """Decode a video and write its file, or decode this rank's tiles for the rank that writes it.

        denoise rank --- all latents, or block by block ---> decode ranks --- frames ---> one writes
          or file              (`_latents_of`)             (`stages.decode`)             (`_write`)
        """
        self._emit(Doing(job=order.number, stage="decode"))
        latents, open_ = self._latents_of(order), self._open[order.number]
        open_.is_through = True
        if isinstance(latents, Tensor) and not latents.isfinite().all():
            if order.is_denoised and self._writes:
                self._end_early(order, FloatingPointError("the saved latents are not finite"))
            return  # else the request has ended early, and that was reported
        progress, tile = self._telling(order if self._writes else None), order.job.request.vae_tile
        write = partial(self._write, order, latents, progress)
        try:
            with self._open[order.number].timed("decode", order.job.index):
                open_.written = decode(self._model, latents, tile, progress, write, world=self._sharers)
        except (*FAILURES, FloatingPointError, Unwanted, Undecoded, FailedElsewhere) as error:
            if self._writes or isinstance(error, OSError):  # all ranks that share the decode end it alike
                self._end_early(order, error)
        else:
            open_.is_decoded = True
            if open_.written is not None and (saved_progress := self._saved_progress(order)):
                saved_progress.finish()
        open_.end_block_stream(order, self._world)

    def _write(
        self, order: Order, latents: Tensor | LatentBlocks, progress: Progress, frames: Generator[Frames]
    ) -> Written:
        """Write a video's file from its frames; the first of the ranks that share its decode calls this."""
        saved_progress = self._saved_progress(order)
        whole = latents if isinstance(latents, Tensor) else None
        return write_output(
            order.job,
            self._spec,
            whole,
            # A stream of frame blocks ends by itself once the video is cancelled.
            frames if whole is None else self._while_wanted(order, frames),
            overwrite=order.overwrite,
            about=self._provenance(order),
            progress=progress,
            name_next=saved_progress.name_next if saved_progress else None,
        )

    def _while_wanted(self, order: Order, frames: Generator[Frames]) -> Generator[Frames]:
        """Yield frames while the video is wanted; raise the exception `Undecoded` once it is cancelled."""
        for frame in frames:
            if not self._inbox.is_wanted(order):
                raise Undecoded
            yield frame

    def _latents_of(self, order: Order) -> Tensor | LatentBlocks:
        """Return the latents to decode, from the denoise rank or from an earlier run's file."""
        request, open_, number = order.job.request, self._open[order.number], self._decoder_of(order)
        if method_of(request).streams:
            if open_.block_stream is None:
                open_.block_stream = self._latents.receive_blocks(number, request)
            blocks = self._received(order, open_.block_stream)
            return LatentBlocks(self._latents.shape(request), blocks, endless=request.endless)
        if order.is_denoised:
            saved_progress = self._saved_progress(order)
            assert saved_progress is not None
            return saved_progress.load_latents().to(self._model.device)
        if self._helper is not None:  # help until the latents are ready
            open_.helped_steps = self._helper.until_latents()
        latents, seconds = self._latents.receive(number, request)
        open_.seconds.setdefault("denoise", seconds)
        return latents

    def _received(self, order: Order, block_stream: BlockStream) -> Iterator[Tensor]:
        """Yield the frame blocks to decode as they come; then save them all if the job asks for latents."""
        job, collected = order.job, []
        for block in block_stream:
            if job.latents is not None:
                collected.append(block)
            yield block
        if job.latents is not None and self._writes:
            latents = torch.cat(collected, dim=2)
            save_latents(job.latents, latents, job.about(self._spec), self._provenance(order))

    def account(self, order: Order) -> None:
        """Report a request's result if this rank wrote the video; called after this rank's stages of it."""
        open_, job = self._open[order.number], order.job
        # The first rank stops an endless video; the others do not reach this line.
        meet = self._all_meet and not order.is_denoised and not job.request.endless
        memory = gathered_memory(self._world, self._model.device) if meet else None
        if self._decoder_of(order) != self._decoder or open_.is_through:
            del self._open[order.number]
        if open_.written is None:
            return
        device, dtype = self._model.device.type, name_of(self._model.dtype)
        result = open_.result(job, self._spec, began=self._began, memory=memory, device=device, dtype=dtype)
        self._emit(Finished(job=order.number, result=result))
        self._began = time.monotonic()

    def close(self) -> None:
        """Wait until all that was sent is received; report peak memory if `Finished` events have not."""
        if self._helper is not None:
            self._helper.until_latents()  # ends the helping: no more latents come
        self._inputs.close()
        self._latents.close()
        if self._helped is not None:
            self._helped.close()
        if not self._all_meet:
            assert self._world is not None  # some ranks do not denoise, so there are several
            tell_memory(self._world, self._placement, self._emit)
        if self._at_end is not None:
            self._at_end()

    def _decoder_of(self, order: Order) -> int:
        """Return the index of the decode group that takes a request; decode groups take requests in turn."""
        return decoder_of(self._open[order.number].position, len(self._placement.decode_groups))

    def _saved_progress(self, order: Order) -> SavedProgress | None:
        if order.folder is None:
            return None
        folder, wanted = RunFolder(order.folder), partial(self._inbox.is_wanted, order)
        return SavedProgress(folder, order.job, self._telling(order), wanted, order.checkpoint_steps)

    def _provenance(self, order: Order) -> dict[str, Any] | None:
        """Return the record, for metadata, of what a video was made from; None if metadata is not wanted."""
        dtype, backend = name_of(self._model.dtype), self._placement.attention_backend
        return provenance(order.job.request, self._spec, dtype, backend) if order.metadata else None

    def _telling(self, order: Order | None) -> Progress:
        """Return a reporter of progress on an order (a video to make); for None, of warnings only."""
        return Progress(self._emit, order.number) if order is not None else Progress()

    def _end_early(self, order: Order, error: Exception) -> None:
        """Report that an order was cancelled, or has failed because of `error`; another rank may do that."""
        open_, is_cancelled = self._open[order.number], isinstance(error, (Unwanted, Undecoded))
        if not open_.has_ended and not isinstance(error, FailedElsewhere):
            self._emit(Cancelled(job=order.number) if is_cancelled else order.failed(error))
        open_.has_ended = True
