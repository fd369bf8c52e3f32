"""Record that a rank keeps of each open request, and the result that it reports once the video is written."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from paradit.distributed.world import World
from paradit.engine.job import Job
from paradit.engine.latent_transfer import BlockStream
from paradit.engine.orders import Order
from paradit.engine.output import Written
from paradit.models.spec import ModelSpec
from paradit.trace.spans import STAGE, span


@dataclass
class Open:
    """Record of a request that is open on a rank: taken by it, and not yet through its last stage on it."""

    position: int
    """Position of the request, from 0, among those of its replica (group of ranks).

    The position decides which decode ranks get the request.
    """
    seconds: dict[str, float] = field(default_factory=dict)
    block_stream: BlockStream | None = None
    """Iterator over a long video's frame blocks, on the rank that decodes them; None on other ranks."""
    written: Written | None = None
    helped_steps: int | None = None
    is_decoded: bool = False
    has_ended: bool = False
    """Whether this rank has reported that the request has failed or was cancelled, which is reported once."""
    is_through: bool = False
    """Whether this rank has reached the request's decode, its last stage; the record is then deleted."""

    @contextmanager
    def timed(self, stage: str, index: int) -> Iterator[None]:
        """Time and trace a stage of the request, which runs in the `with` block.

        index: index of the request in its run.
        """
        began = time.monotonic()
        with span(stage, STAGE, request=index):
            yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - began

    def end_block_stream(self, order: Order, world: World | None) -> None:
        """Let the ranks that denoise a long video reach its end, also if its decode has failed.

        order: the order (a video to make) of the request. world: all ranks; None: this process alone.
        """
        if world and self.block_stream is not None and not order.job.request.endless:
            if not self.is_decoded:
                world.publish(order.undecoded)  # they then denoise no further
            self.block_stream.drain()

    def result(
        self, job: Job, spec: ModelSpec, *, began: float, memory: list[int] | None, device: str, dtype: str
    ) -> dict[str, Any]:
        """Return the fields of the `Finished` event for a video that has been written.

        began: time at which work on the video began, on the monotonic clock. memory: peak bytes of each rank;
        None: they were not gathered after this video, and are left out. device: `cpu` or `cuda`. dtype: name
        of the dtype that the model ran in.
        """
        assert self.written is not None
        seconds = self.seconds
        if self.block_stream is not None:  # the decode's time includes that of the blocks it waited for
            seconds["denoise"] = self.block_stream.denoise_seconds
            seconds["decode"] = seconds.pop("decode") - self.block_stream.waited
        result = {
            **job.about(spec),
            "dtype": dtype,  # the request may leave it open
            "num_frames": self.written.num_frames,
            "latents_path": str(job.latents) if job.latents else None,
            "seconds": {name: round(took, 4) for name, took in seconds.items() if took > 0},
            "seconds_to_first_frame": round(self.written.first_frame - began, 4),
            "device": device,
        }
        if memory is not None:
            result.update(peak_memory_bytes=max(memory), peak_memory_bytes_by_rank=memory)
        if self.helped_steps is not None:
            result["coprocessed_steps"] = self.helped_steps
        return result
