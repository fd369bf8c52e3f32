"""Driver of ranks: sends them orders (videos to make), reads their events, and replaces failed ranks."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

from paradit.config.errors import RankError
from paradit.config.placement import Placement
from paradit.engine.channel import EVENT, Message, event_of
from paradit.engine.events import Began, Cancelled, Doing, Failed, Finished, Restarted
from paradit.engine.orders import Inbox, Order
from paradit.engine.run_folder import RunFolder
from paradit.engine.started_ranks import LAST_WORDS, LISTEN_SECONDS, Ranks
from paradit.models.spec import ModelSpec
from paradit.progress import Emit, Event, StageEnded, StageStarted
from paradit.stopping import Interrupted, Stop

_LOG = logging.getLogger(__name__)
FAILURES = 3
"""Number of failures of ranks after which a request is given up, or the whole run if no request had begun."""
SILENCE_SECONDS = 60.0
"""Seconds without a heartbeat after which a rank is considered hung, unless the hang limit is shorter."""
LAST_WORDS_SECONDS = 1.0
"""Seconds for which the driver still reads messages after the first failure of a rank.

Another rank may know the cause.
"""
LOG_LINES = 12
HANG_SECONDS = 600.0
"""Seconds without progress on any rank after which the run is considered hung, unless the user sets it."""


@dataclass(frozen=True)
class Failure:
    """Failure of one or more ranks: its description, and the order (a video to make) in which it happened."""

    text: str
    """Description of each failed rank: what it was doing, its last message, and the end of its log."""
    order: int | None
    """Id of the order (a video to make) in which ranks failed; None if they failed before any order."""
    raised_at_start: bool
    """Whether a rank raised an exception before it took any order, as it would again after a restart."""


class Driver:
    """Driver of ranks: a queue of orders (videos to make), and the ranks that carry them out.

    One thread runs it; any thread may add or cancel orders, and end it.
    """

    def __init__(
        self,
        spec: ModelSpec,
        placement: Placement,
        emit: Emit,
        *,
        start: Callable[[], Ranks] | None = None,
        here: Callable[[Inbox, Emit], Callable[[], None]] | None = None,
        stop: Stop | None = None,
        hang_limit: float = HANG_SECONDS,
    ) -> None:
        """Create a driver; no rank is started before `run`.

        Either `start` or `here` is given. start: function that starts the processes of all ranks. here:
        function that returns the program of a single rank, for which no process is started: it runs in the
        thread that calls `run`. hang_limit: seconds without progress on any rank after which the run is
        considered hung.
        """
        self._spec, self._placement, self._emit = spec, placement, emit
        self._start, self._here, self._hang_limit = start, here, hang_limit
        self.stop = stop or Stop()
        self._lock = threading.RLock()
        self._news = threading.Condition(self._lock)
        self._orders: dict[int, Order] = {}
        """Orders (videos to make) that are neither done nor given up, by their ids."""
        self._cancelled: set[int] = set()
        self._begun: set[int] = set()
        self._ended = False
        self._world: _World | Inbox | None = None
        self._tries = 0
        self._denoising: set[int | None] = set()
        """Ids of the orders (videos to make) whose latents are being denoised.

        Meanwhile ranks check after every step whether these orders are still wanted.
        """

    def add(self, order: Order) -> None:
        """Add an order, which is a video to make, to the end of the queue."""
        with self._news:
            self._orders[order.number] = order
            if self._world is not None:
                self._world.add(self._as_of_now(order))
            self._news.notify()

    def cancel(self, number: int) -> None:
        """Cancel an order (a video to make): it ends within a step, or at once if no rank has begun it."""
        with self._lock:
            if number not in self._orders:
                return
            self._cancelled.add(number)
            if self._world is not None:
                self._world.cancel(number)
            queued = number not in self._begun
        if queued:
            self.hear(Cancelled(job=number))

    def end(self) -> None:
        """Declare that no more orders (videos to make) will be added; ranks end once all are done."""
        with self._news:
            self._ended = True
            if self._world is not None:
                self._world.end()
            self._news.notify()

    def run(self) -> None:
        """Carry out orders (videos to make) until no more come; if ranks fail, start new ones.

        Raises RankError if ranks cannot start, or have failed and cannot be replaced, and the exception
        `Interrupted` after the user has asked to stop. Leaves no process behind, even if an exception such as
        Ctrl-C ends it.
        """
        failures: Counter[int | None] = Counter()
        while self._await_orders():
            if self._here is not None:
                inbox = Inbox(self.stop)
                with self._at_work(inbox):
                    self._here(inbox, self.hear)()
                if self.stop.wanted and self._orders:
                    raise Interrupted
            elif self._start is not None:
                _LOG.info("starting %d ranks, try %d", self._placement.ranks, self._tries + 1)
                world = _World(self, self._start(), self._placement.ranks, self._hang_limit)
                with closing(world), self._at_work(world):
                    failure = world.follow()
                if failure is not None:
                    self._judge(failure, failures, again=world.ranks.are_replaced)
                    continue
            for number, order in list(self._orders.items()):  # none is left, unless the ranks have a bug
                count, why = order.job.count, "the ranks ended before this video was made"
                self.hear(Failed(job=number, count=count, message=f"{order.job.request.prompt!r}: {why}"))

    def hear(self, event: Event) -> None:
        """Update the driver's state by an event about an order (a video to make), and pass the event on.

        Any thread may call it.
        """
        with self._lock:
            order = self._orders.get(event.job) if event.job is not None else None
            match event:
                case Began():
                    self._begun.add(event.job or 0)
                case StageStarted() if event.stage.startswith("denoise"):
                    self._denoising.add(event.job)
                case StageEnded() if event.stage.startswith("denoise"):
                    self._denoising.discard(event.job)
                case Finished() | Failed() | Cancelled():
                    self._denoising.discard(event.job)
                    if order is None or (isinstance(event, Cancelled) and self.stop.wanted):
                        return  # the order has ended already, or the run has
                    del self._orders[order.number]
                    self._cancelled.discard(order.number)
                    self._begun.discard(order.number)
            self.stop.heeded = bool(self._denoising)
        self._emit(event)

    def _await_orders(self) -> bool:
        """Wait until there is an order or no more come; return whether there is one to carry out."""
        with self._news:
            while not self._orders and not self._ended:
                self._news.wait()
            return bool(self._orders)

    @contextmanager
    def _at_work(self, world: _World | Inbox) -> Iterator[None]:
        """Send all unfinished orders (videos to make) to started ranks.

        While the `with` block runs, new orders are sent, too.
        """
        try:
            self._hand_over(world)
            yield
        finally:
            with self._lock:
                self._world = None
                self._denoising.clear()
                self.stop.heeded = False

    def _hand_over(self, world: _World | Inbox) -> None:
        finished = []
        with self._lock:
            for order in list(self._orders.values()):
                # A rank may have failed after it wrote the video and before it reported that.
                if order.folder is not None and RunFolder(order.folder).is_done(order.job):
                    about = {**order.job.about(self._spec), "seconds": {}, "device": "cpu"}
                    finished.append(Finished(job=order.number, result=about))
                else:
                    world.add(self._as_of_now(order))
            for number in self._cancelled:
                world.cancel(number)
            self._begun.clear()
            if self._ended:
                world.end()
            self._world, self._tries = world, self._tries + 1
        for event in finished:
            self.hear(event)

    def _as_of_now(self, order: Order) -> Order:
        """Return an order (a video to make), with the fields set that are decided only when it is sent.

        These fields say whether the order's latents are saved already, and which replica (group of ranks)
        makes the video: the one with the fewest unfinished orders that were added earlier.
        """
        folder, replicas = order.folder, self._placement.replicas
        done = folder is not None and RunFolder(folder).is_denoised(order.job)
        # After a failure, files that exist were written by the ranks before.
        overwrite = order.overwrite or self._tries > 0
        # After a restart all orders are dealt out anew, and later ones still have their old replica.
        taken = Counter(each.replica for each in self._orders.values() if each.number < order.number)
        replica = min(range(replicas), key=lambda number: taken[number])
        order = replace(order, is_denoised=done, overwrite=overwrite, replica=replica)
        self._orders[order.number] = order
        _LOG.info("order %d goes to replica %d%s", order.number, replica, ", to be decoded" if done else "")
        return order

    def _judge(self, failure: Failure, failures: Counter[int | None], *, again: bool) -> None:
        """Decide how to continue after a failure: give up an order, give up all, or start the ranks again.

        An order is a video to make. Raises RankError to give up all orders. again: whether the launcher can
        start ranks again.
        """
        if failure.order is not None:
            failures[None] = 0  # the ranks can start, so failures at the start count from zero again
        failures[failure.order] += 1
        count = failures[failure.order]
        _LOG.info("ranks have failed in order %s, %d of %d times", failure.order, count, FAILURES)
        hopeless = failure.order is None and (failure.raised_at_start or count == FAILURES)
        if hopeless or not again:
            raise RankError(failure.text)
        order = self._orders.get(failure.order) if failure.order is not None else None
        if order is not None and count == FAILURES:
            job = order.job
            why = f"{job.request.prompt!r}: given up after {FAILURES} failures; the last one:\n{failure.text}"
            self.hear(Failed(job=order.number, count=job.count, message=why))
            return
        what = "the start" if order is None else f"request {order.job.index + 1}"
        next_try = f"restarting from saved progress (failure {count} of {FAILURES} in {what})"
        self._emit(Restarted(message=f"{failure.text}\n{next_try}"))

    def stopped(self, world: _World) -> bool:
        """Cancel all orders (videos to make) if the user has asked to stop.

        Returns whether the run can end at once. world: the started ranks, which are told of the
        cancellations.
        """
        if not self.stop.wanted:
            return False
        with self._lock:
            for number in self._orders:
                world.cancel(number)
            # An endless video is still decoded as far as it was denoised, and reported.
            endless = any(self._orders[number].job.request.endless for number in self._begun)
            return bool(self._orders) and not self._denoising and not endless

    def has_work(self) -> bool:
        """Return whether an order (a video to make) is left to carry out."""
        return bool(self._orders)

    def sweep(self) -> None:
        """Remove the half-written files of ranks whose processes have ended."""
        for order in self._orders.values():
            if order.folder is not None:
                RunFolder(order.folder).sweep([order.job])

    def about(self, stage: str, number: int | None) -> str:
        """Return in words what a rank was doing: the stage, and the request if the stage belongs to one."""
        order = self._orders.get(number) if number is not None else None
        return stage if order is None else f"{stage} of request {order.job.index + 1}"


class _World:
    """Driver's view of started ranks: which still run, what each does, and when each was last heard.

    Each start of the ranks gets a new object.
    """

    def __init__(self, driver: Driver, started: Ranks, ranks: int, hang_limit: float) -> None:
        self._driver, self.ranks, self._hang_limit = driver, started, hang_limit
        self._running = set(range(ranks))
        self._doing: list[tuple[str, int | None]] = [("load", None) for _ in range(ranks)]
        self._progress = time.monotonic()
        self._heard: dict[int, float] = {}
        """Mapping from rank to the time of its last message, on the monotonic clock.

        A rank that has sent no message has no entry and is not considered hung, because it may be loading its
        libraries.
        """
        self._last_words: dict[int, tuple[str, str]] = {}
        """Mapping from each failed rank to the reason for its failure: the kind of failure, and a text."""
        self._told: set[int] = set()

    def add(self, order: Order) -> None:
        self.ranks.tell_all("order", order.plain())

    def cancel(self, number: int) -> None:
        if number not in self._told:  # `Driver.stopped` cancels all orders again and again
            self._told.add(number)
            self.ranks.tell_all("cancel", number)

    def end(self) -> None:
        self.ranks.tell_all("end")

    def close(self) -> None:
        """Kill all ranks, and remove the files that they have left half-written."""
        self.ranks.end()
        self._driver.sweep()

    def follow(self) -> Failure | None:
        """Pass on ranks' events until every rank is done or a rank has failed; return the failure, if any.

        Raises Interrupted after the user has asked to stop.
        """
        while self._running:
            failed = [self._take(rank, message) for rank, message in self._listen()]
            if any(failed) or self._find_hanging():
                return self._failure()
            if self._driver.stopped(self):
                raise Interrupted
        return None

    def _listen(self) -> list[tuple[int, Message]]:
        before = time.monotonic()
        heard = self.ranks.hear(LISTEN_SECONDS)
        slept = time.monotonic() - before - LISTEN_SECONDS
        if slept > 1.0:  # this process was suspended, and perhaps the ranks with it
            self._heard = {rank: then + slept for rank, then in self._heard.items()}
            self._progress += slept
        return heard

    def _take(self, rank: int, message: Message) -> bool:
        """Handle one message from a rank; return whether it says that the rank has failed."""
        word, values = message
        starts = rank not in self._heard
        self._heard[rank] = time.monotonic()
        # A heartbeat is not progress, except a rank's first message, and while there is nothing to do.
        if word != "alive" or starts or not self._driver.has_work():
            self._progress = self._heard[rank]
        if word in LAST_WORDS:
            self._running.discard(rank)
            _LOG.info("rank %d: %s", rank, word)
            if values:
                self._last_words[rank] = word, str(values[0]).rstrip()
        elif word == EVENT:
            event = event_of(*values)
            if isinstance(event, Doing):
                self._doing[rank] = event.stage, event.job
            self._driver.hear(event)
        return word in ("raised", "ended")

    def _find_hanging(self) -> bool:
        """Return whether ranks hang: some send no heartbeats, or no rank makes progress.

        If ranks hang, this is recorded as the reason why they failed, and all running ranks are asked to
        write their stacks to their logs.
        """
        now, limit = time.monotonic(), self._hang_limit
        silence = min(limit, SILENCE_SECONDS)
        silent = {rank for rank in self._running if now - self._heard.get(rank, now) > silence}
        words = f"no response for {silence:g} s"
        if not silent and now - self._progress > limit:
            silent, words = self._running, f"no progress for {limit:g} s"
        self._last_words.update(dict.fromkeys(silent, ("hangs", words)))
        if silent:
            for rank in self._running:
                self.ranks.send_to(rank, "stacks")
        return bool(silent)

    def _failure(self) -> Failure:
        """Wait briefly for the last messages of other ranks, and return a description of all failed ranks."""
        deadline = time.monotonic() + LAST_WORDS_SECONDS
        while self._running and time.monotonic() < deadline:
            for rank, message in self.ranks.hear(LISTEN_SECONDS):
                self._take(rank, message)
        # Ranks raise because another has gone: only that one's log shows the cause.
        causes = {rank: text for rank, (event, text) in self._last_words.items() if event != "raised"}
        orders = [self._doing[rank][1] for rank in sorted(causes or self._last_words)]
        lines = []
        for rank, (_, text) in sorted(self._last_words.items()):
            if causes and rank not in causes:
                text = text.splitlines()[-1]  # noqa: PLW2901
            lines.append(f"rank {rank} ({self._driver.about(*self._doing[rank])}): {text}")
            if rank in causes:
                lines += [f"  | {line}" for line in self.ranks.log(rank)[-LOG_LINES:]]
        return Failure("\n".join(lines), orders[0], not causes and orders[0] is None)
