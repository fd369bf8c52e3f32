"""Engine for Python programs: its ranks load a model once, then make videos as requests come.

with paradit.Engine("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", Placement(ranks=4)) as engine:
    job = engine.submit(Request(prompt="a red circle"), "circle.mp4")
    for event in job.events(): ...
    print(job.result()["path"])
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing.util  # noqa: F401 (its exit function waits for ranks: it must run after `close`)
import os
import sys
import threading
import warnings
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from paradit.config.errors import InputError
from paradit.config.given_values import as_files
from paradit.config.limits import shown
from paradit.config.methods.method import check_placement, method_of, resolve
from paradit.config.placement import Placement
from paradit.config.requests import Request, ResolvedRequest
from paradit.engine.admission import admit
from paradit.engine.driver import HANG_SECONDS, Driver
from paradit.engine.engine_job import EngineJob
from paradit.engine.events import Cancelled, Failed, Finished
from paradit.engine.job import Job, Run
from paradit.engine.orders import Order
from paradit.engine.reserve import files_reserved
from paradit.engine.run import check_devices, leave, make_driver, order_of
from paradit.engine.run_folder import RunFolder
from paradit.files import named
from paradit.models.find_lora import download_loras, with_loras
from paradit.models.folder import BUNDLED, download_weights, find_model
from paradit.models.identity import model_hash
from paradit.models.spec import ModelSpec, read_spec
from paradit.models.warnings import warnings_for
from paradit.progress import Emit, Event, Warned
from paradit.scheduler_check import check_scheduler
from paradit.video.writer import check_target

_LOG = logging.getLogger(__name__)
AUTO = "auto"


class Engine:
    """Engine whose ranks hold one model in memory, and make the videos of requests as they are submitted.

    Use it as a context manager, or call `close`. Any thread may submit.
    """

    def __init__(
        self,
        model: str | Path = BUNDLED,
        placement: Placement | str | None = None,
        *,
        loras: Iterable[str | Path] = (),
        plan_for: Sequence[Request] = (),
        hang_limit: float = HANG_SECONDS,
        emit: Emit | None = None,
    ) -> None:
        """Set up an engine; nothing is loaded before the first request. Raises InputError.

        model: "shapes" (bundled), a folder, or a hub id. loras: LoRA files to merge into it, as for `--lora`,
        such as "FILE=0.8@high". placement: which ranks do which stages; None: one rank, in a
        thread of this process; "auto": the fastest placement. plan_for: requests for which "auto" chooses; if
        empty, it chooses for the first request that is submitted. hang_limit: seconds without progress on any
        rank after which ranks are considered hung. emit: function called with every event of all jobs, in the
        engine's thread; it is called in the thread that submits with warnings about a request and with the
        choice of a placement. Without it, warnings are issued by Python's `warnings`.
        """
        Run(model=str(model), jobs=(), placement=Placement(), hang_limit=hang_limit)  # checks the values
        if emit is not None and not callable(emit):
            raise InputError(f"emit must be a function that takes an event, got {shown(emit)}")
        self.spec: ModelSpec = download_loras(with_loras(read_spec(find_model(str(model))), loras))
        if isinstance(plan_for, Request):
            raise InputError("plan_for must be a list of Requests, got a single one")
        self._model, self._hang_limit, self._emit = str(model), hang_limit, emit
        self._lock = threading.RLock()  # `emit` may submit when a warning about a request is reported to it
        self._pid = os.getpid()
        self._jobs: dict[int, EngineJob] = {}
        """Jobs that have not ended, by their ids."""
        self._count, self._closed = 0, False
        self._first: ResolvedRequest | None = None
        self._driver: Driver | None = None
        self._thread: threading.Thread | None = None
        self._left = threading.Event()
        """`threading.Event` that is set once the engine's thread has ended its work."""
        self._broken: BaseException | None = None
        self.placement: Placement | None = None
        """Placement (which ranks do which stages); None until it is decided."""
        if placement is not None and not isinstance(placement, Placement) and placement != AUTO:
            raise InputError(f"placement must be a Placement or 'auto', got {shown(placement)}")
        if not isinstance(placement, str):
            self.placement = placement or Placement()
        elif plan_for:
            with ExitStack() as held:
                given = [held.enter_context(as_files(request)) for request in plan_for]
                self.placement = self._decided([resolve(one, self.spec, self._ranks()) for one in given])
        atexit.register(self.close, wait=False)

    def submit(
        self,
        request: Request,
        output: str | Path,
        *,
        latents: str | Path | None = None,
        overwrite: bool = False,
        metadata: bool = True,
        checkpoint_steps: int | None = None,
    ) -> EngineJob:
        """Accept a request and return its job at once; its video is made after those of earlier requests.

        output, latents: paths of files to write. checkpoint_steps: denoising steps between checkpoints; None:
        by time. Raises InputError if `paradit generate` would refuse the request; also if it needs another
        dtype than the first request, or a denoising method that divides the weights among ranks in another
        way. Raises RuntimeError if the engine is closed or has failed.
        """
        target = None if latents is None else named("latents", latents)
        with as_files(request) as given, self._lock:
            resolved = resolve(given, self.spec, self._ranks())
            self._check_open()
            placement = self.placement or self._decided([resolved])
            self._check(resolved, placement)
            placement = self.placement or placement  # `emit` may have submitted another request meanwhile
            resolved = placement.tiled(resolved, self.spec)
            check_target(output, fps=resolved.fps, overwrite=overwrite)
            job = Job(request=resolved, output=str(output), latents=target)
            if self._driver is None:
                download_weights(self._model, self.spec.folder)
                self._model_hash = model_hash(self.spec.folder)
            run = self._run_of(job, placement, overwrite, metadata, checkpoint_steps)
            driver = self._start(placement)
            accepted, order = self._hold(run)
            self.placement, self._first = placement, self._first or resolved
            _LOG.info("job %d is accepted: %s", accepted.number, resolved.method)
            driver.add(order)
        return accepted

    def close(self, *, wait: bool = True) -> None:
        """End the ranks once all jobs have ended; with `wait` false, cancel the jobs first.

        May be called twice. An exception that interrupts the wait, such as Ctrl-C, cancels the jobs, too.
        """
        if os.getpid() != self._pid:
            return  # this process was forked from the engine's
        with self._lock:
            self._closed = True
            driver, jobs = self._driver, list(self._jobs.values())
        if driver is not None:
            for job in [] if wait else jobs:
                job.cancel()
            driver.end()
            if threading.current_thread() is not self._thread:
                self._wait_until_left(jobs)
        atexit.unregister(self.close)

    def _wait_until_left(self, jobs: list[EngineJob]) -> None:
        # Not by joining the thread: after a join that Ctrl-C interrupts, Python 3.11 takes it to have ended.
        try:
            self._left.wait()
        except BaseException:
            for job in jobs:
                job.cancel()
            self._left.wait()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(wait=kind is None)

    def _check_open(self) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError("the engine belongs to the process that this one was forked from")
        if self._closed:
            raise RuntimeError("the engine is closed")
        if self._broken is not None:
            raise RuntimeError("the engine has failed, and takes no more requests") from self._broken

    def _check(self, request: ResolvedRequest, placement: Placement) -> None:
        """Refuse a request that cannot be made, before anything is loaded. Raises InputError.

        The checks are those of `paradit generate`.
        """
        check_placement(placement, request, self.spec)
        check_scheduler(self.spec, request)
        check_devices(placement, request.dtype)
        job = Job(request=request, output="", latents=None)
        if request.endless and placement.decode_degree > 1:
            raise InputError("a video of duration inf is decoded by one rank: leave decode_degree out")

        def warn(message: str) -> None:
            self._hear(Warned(message=message))

        for warning in warnings_for(request, self.spec):
            warn(warning)
        admit([job], self.spec, placement, warn)
        first = self._first
        if first is None:
            return
        # All requests share the weights that were loaded for the first one.
        if request.dtype != first.dtype:
            raise InputError(
                f"the engine's weights are in {first.dtype or 'the usual dtype'}, but the request wants "
                f"{request.dtype or 'the usual one'}: use another engine for it"
            )
        apart = len(placement.denoise_ranks) > 1
        if apart and method_of(request).divides_layers != method_of(first).divides_layers:
            raise InputError(
                f"the engine's ranks are made for method {first.method}, but the request wants "
                f"{request.method}: use another engine for it"
            )

    def _ranks(self) -> Placement:
        """Return the placement; as long as it is not decided, one with all stages on all GPUs here."""
        if self.placement is not None:
            return self.placement
        from paradit.devices import visible_ranks

        return Placement(ranks=visible_ranks())

    def _decided(self, requests: list[ResolvedRequest]) -> Placement:
        from paradit.engine.auto import decide

        return decide(requests, self.spec, self._hear)

    def _run_of(
        self, job: Job, placement: Placement, overwrite: bool, metadata: bool, checkpoint_steps: int | None
    ) -> Run:
        return Run(
            model=self._model,
            model_folder=str(self.spec.folder.absolute()),
            model_hash=self._model_hash,
            loras=self.spec.loras,
            jobs=(job,),
            placement=placement,
            overwrite=overwrite,
            checkpoint_steps=checkpoint_steps,
            hang_limit=self._hang_limit,
            metadata=metadata,
        )

    def _hold(self, run: Run) -> tuple[EngineJob, Order]:
        """Create the folder of a run of one job, and reserve the job's file names until the job ends."""
        with ExitStack() as held:
            held.enter_context(files_reserved(run.jobs, overwrite=run.overwrite))
            folder = RunFolder.create(run)
            run = folder.take_inputs(run)
            (job,) = run.jobs
            held.enter_context(folder.locked())
            accepted = EngineJob(self._count, job, self._cancel, held.pop_all())
        # Called first when the job ends, while the folder is still locked and the names are reserved.
        accepted._held.callback(leave, run, folder, accepted.hear)
        self._jobs[self._count] = accepted
        self._count += 1
        return accepted, order_of(run, job, folder, accepted.number)

    def _start(self, placement: Placement) -> Driver:
        if self._driver is None:
            self._driver = make_driver(self.spec, placement, self._hear, hang_limit=self._hang_limit)
            self._thread = threading.Thread(target=self._run, name="paradit engine", daemon=True)
            self._thread.start()
        return self._driver

    def _cancel(self, number: int) -> None:
        if self._driver is not None:
            self._driver.cancel(number)

    def _run(self) -> None:
        """Run the driver of the ranks, in the engine's thread; if that raises, all unfinished jobs fail."""
        assert self._driver is not None
        try:
            self._driver.run()
        except BaseException as error:
            self._broken = error
            for job in list(self._jobs.values()):
                self._hear(Failed(job=job.number, count=1, message=str(error)))
        finally:
            self._left.set()

    def _hear(self, event: Event) -> None:
        """Pass an event on to its job, or to all jobs if it belongs to none, and to the user's `emit`."""
        ended = isinstance(event, Finished | Failed | Cancelled)
        if event.job is None:
            for each in list(self._jobs.values()):
                each.hear(event)
        elif job := self._jobs.get(event.job):
            if ended:
                del self._jobs[event.job]
                # Before the job hears of its end: `end` may report to it that it can be extended, and a job
                # that has ended hears nothing more.
                job.end()
            job.hear(event)
        try:
            if self._emit is not None:
                self._emit(event)
            elif isinstance(event, Warned):
                warnings.warn(event.message, stacklevel=2)
        except Exception:
            if threading.current_thread() is not self._thread:
                raise  # to the caller of `submit` or `cancel`
            # Work goes on; Python reports the error as it reports all errors of threads.
            threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), self._thread)))
