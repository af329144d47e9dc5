"""Micro-batches across requests.

A request is encoded in a thread of its own kind, then waits as a **job**. One thread owns the
models: it fills a batch up to a budget of tokens with documents of all waiting jobs in turn, scores
it, and answers each job whose last document is done. So one big request does not hold up a small
one for longer than a batch, and what is cancelled gives up what was not started.

The batcher knows neither HTTP nor torch; whatever encodes and scores can be put behind it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from rankwright.types import ScoredList

logger = logging.getLogger(__name__)

T = TypeVar("T")

# a job gives a quarter of a batch in its turn, so that four fit beside each other
TURNS = 4


class ScoringError(Exception):
    """The model gave no score; the message is one line without any text of the request."""


class ClosedError(Exception):
    """The batcher takes no more work."""


class Encoded(Protocol):
    """An example in tokens, cut into units: documents, or passages of them."""

    @property
    def shared(self) -> int:
        """Tokens that are computed once for all units of one example in a batch."""
        ...

    @property
    def units(self) -> Sequence[int]:
        """Tokens of each unit beside them."""
        ...


class Scorer(Protocol):
    """A model."""

    @property
    def batch_tokens(self) -> int:
        """Tokens it scores at a time."""
        ...

    def score(self, parts: Sequence[tuple[Any, Sequence[int]]]) -> list[list[float]]:
        """Score the chosen units of each encoded example; always called in the same thread."""
        ...

    def pool(self, encoded: Any, scores: Sequence[float]) -> ScoredList:
        """The documents of an encoded example with their scores, from those of all its units."""
        ...


@dataclass(frozen=True)
class BatchStats:
    """A batch that was scored.

    Attributes:
        tokens: in it.
        units: documents or passages.
        requests: jobs that shared it.
        seconds: that it took.
    """

    tokens: int
    units: int
    requests: int
    seconds: float


@dataclass(eq=False)
class _Job:
    scorer: Scorer
    encoded: list[Encoded]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[None]
    arrived: float
    scores: list[list[float]] = field(init=False)
    # (tokens, example, unit), the next one last
    waiting: list[tuple[int, int, int]] = field(init=False)
    tokens: int = 0
    over: bool = False

    def __post_init__(self) -> None:
        self.scores = [[0.0] * len(encoded.units) for encoded in self.encoded]
        units = [
            (tokens, index, unit)
            for index, encoded in enumerate(self.encoded)
            for unit, tokens in enumerate(encoded.units)
        ]
        # similar lengths stand together, longest first
        self.waiting = sorted(units, key=lambda unit: (unit[0], -unit[1], -unit[2]))
        # what waits, roughly: a shared prefix is not counted
        self.tokens = sum(tokens for tokens, _, _ in units)


@dataclass
class _Share:
    """What one job has in a batch."""

    job: _Job
    units: dict[int, list[int]] = field(default_factory=dict)
    tokens: int = 0

    def take(self, turn: int, room: int, *, alone: bool) -> int:
        """Move units from the job into the share: one turn's worth, none beyond the room.

        Args:
            turn: tokens of a turn; a unit above it is a turn by itself.
            room: tokens left in the batch.
            alone: the batch is empty, so one unit fits whatever it takes.

        Returns:
            Tokens taken.
        """
        taken = 0
        while self.job.waiting:
            tokens, index, unit = self.job.waiting[-1]
            cost = tokens + (0 if index in self.units else self.job.encoded[index].shared)
            full = taken + cost > room and not (alone and not taken)
            if full or (taken and taken + cost > turn):
                break
            self.job.waiting.pop()
            self.job.tokens -= tokens
            self.units.setdefault(index, []).append(unit)
            taken += cost
        self.tokens += taken
        return taken

    def parts(self) -> list[tuple[Encoded, Sequence[int]]]:
        return [(self.job.encoded[index], units) for index, units in self.units.items()]

    def keep(self, results: Sequence[list[float]]) -> None:
        """Write the scores of ``parts`` where they belong."""
        for (index, units), scores in zip(self.units.items(), results, strict=True):
            for unit, score in zip(units, scores, strict=True):
                self.job.scores[index][unit] = score


class Batcher:
    """Merges the work of concurrent requests into batches of tokens.

    Args:
        max_wait: seconds that a job waits at most for others to share its batch; only while others
            are known to be on their way, or came with the last batch.
        encoders: threads that encode.
        watch: called in the model's thread after each batch.
    """

    def __init__(
        self,
        *,
        max_wait: float = 0.003,
        encoders: int = 2,
        watch: Callable[[BatchStats], None] | None = None,
    ) -> None:
        self.max_wait = max_wait
        self._watch = watch
        self._encoders = ThreadPoolExecutor(encoders, thread_name_prefix="rankwright-encode")
        self._changed = threading.Condition()
        self._jobs: deque[_Job] = deque()
        self._expected = 0
        self._last_requests = 1
        self._closed = False
        self._rate = 0.0
        self._thread = threading.Thread(target=self._run, name="rankwright-model", daemon=True)
        self._thread.start()

    async def score(self, scorer: Scorer, encoded: Sequence[Encoded]) -> list[ScoredList]:
        """Score encoded examples together with whatever else waits.

        A cancelled call gives up what was not started.

        Args:
            scorer: the model.
            encoded: what its ``encode`` gave.

        Returns:
            The examples with their documents' scores, in their order.

        Raises:
            ScoringError: the model failed, or gave a score that is not a finite number.
            ClosedError: the batcher takes no more work.
        """
        loop = asyncio.get_running_loop()
        job = _Job(scorer, list(encoded), loop, loop.create_future(), time.monotonic())
        if job.waiting:
            await self._done(job)
        pairs = zip(job.encoded, job.scores, strict=True)
        return [scorer.pool(part, scores) for part, scores in pairs]

    async def _done(self, job: _Job) -> None:
        """Let a job wait for its batches."""
        with self._changed:
            if self._closed:
                raise ClosedError
            self._jobs.append(job)
            self._changed.notify_all()
        try:
            await job.future
        finally:
            with self._changed:
                job.over = True
                if job in self._jobs:
                    self._jobs.remove(job)

    async def encode(self, work: Callable[[], T]) -> T:
        """Do what encodes a request off the event loop; batches wait a moment for it."""
        with self._coming():
            return await asyncio.get_running_loop().run_in_executor(self._encoders, work)

    @property
    def waiting_tokens(self) -> int:
        """Tokens that wait."""
        with self._changed:
            return sum(job.tokens for job in self._jobs)

    @property
    def waiting_requests(self) -> int:
        """Jobs with documents that wait."""
        with self._changed:
            return len(self._jobs)

    @property
    def seconds_to_drain(self) -> float:
        """How long what waits will take at the present speed; 0 where nothing is known."""
        return self.waiting_tokens / self._rate if self._rate else 0.0

    @property
    def alive(self) -> bool:
        """Whether the model's thread runs."""
        return self._thread.is_alive()

    def close(self, *, wait: bool = True) -> None:
        """Finish what waits, take nothing more, and stop the threads.

        Args:
            wait: for the threads to end.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if wait:
            self._thread.join()
        self._encoders.shutdown(wait=wait, cancel_futures=True)

    @contextmanager
    def _coming(self) -> Iterator[None]:
        with self._changed:
            self._expected += 1
        try:
            yield
        finally:
            with self._changed:
                self._expected -= 1
                self._changed.notify_all()

    # --- the model's thread --------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._jobs and not self._closed:
                    self._changed.wait()
                if not self._jobs:
                    return
                self._gather()
                shares = self._next()
            if shares:
                self._compute(shares)

    def _gather(self) -> None:
        """Wait a moment for requests that are about to come; one client alone never waits."""
        while self._jobs and not self._closed:
            wanted = max(self._last_requests, len(self._jobs) + self._expected)
            left = self._jobs[0].arrived + self.max_wait - time.monotonic()
            full = sum(job.tokens for job in self._jobs) >= self._jobs[0].scorer.batch_tokens
            if left <= 0 or len(self._jobs) >= wanted or full:
                return
            self._changed.wait(left)

    def _next(self) -> list[_Share]:
        """Fill a batch from the jobs of the first one's model, a turn each until it is full."""
        if not self._jobs:
            return []
        scorer = self._jobs[0].scorer
        shares = [_Share(job) for job in self._jobs if job.scorer is scorer]
        turn, room = max(1, scorer.batch_tokens // TURNS), scorer.batch_tokens
        ring = shares
        while ring:
            again = []
            for share in ring:
                # what is above the budget by itself is a batch of its own
                taken = share.take(turn, room, alone=room == scorer.batch_tokens)
                room -= taken
                if taken and share.job.waiting:
                    again.append(share)
            ring = again
        served = [share for share in shares if share.units]
        for share in served:
            self._jobs.remove(share.job)
            if share.job.waiting:
                self._jobs.append(share.job)
        self._last_requests = len(served)
        return served

    def _compute(self, shares: list[_Share]) -> None:
        live = [share for share in shares if not share.job.over]
        if not live:
            return
        begin = time.monotonic()
        self._attempt(live)
        seconds = time.monotonic() - begin
        tokens = sum(share.tokens for share in live)
        rate = tokens / max(seconds, 1e-6)
        self._rate = 0.8 * self._rate + 0.2 * rate if self._rate else rate
        units = sum(len(units) for share in live for units in share.units.values())
        if self._watch is not None:
            self._watch(BatchStats(tokens, units, len(live), seconds))

    def _attempt(self, shares: list[_Share]) -> None:
        """Score; where the model fails, once more each job by itself, so that one fails alone."""
        parts = [part for share in shares for part in share.parts()]
        try:
            results = iter(shares[0].job.scorer.score(parts))
            for share in shares:
                share.keep([next(results) for _ in share.units])
        except Exception as error:
            if len(shares) > 1:
                for share in shares:
                    self._attempt([share])
                return
            reason = (str(error).strip() or "no message").splitlines()[0]
            logger.error("the model failed: %s: %s", type(error).__name__, reason)
            self._fail(shares[0].job, f"the model failed ({type(error).__name__}); see the log")
            return
        for share in shares:
            self._advance(share.job)

    def _advance(self, job: _Job) -> None:
        if job.waiting or job.over:
            return
        if all(math.isfinite(score) for scores in job.scores for score in scores):
            self._answer(job, lambda: job.future.set_result(None))
        else:
            self._fail(
                job,
                "the model gave a score that is not a finite number; it is broken, or its "
                "half-precision weights overflow (try --torch_dtype float32)",
            )

    def _fail(self, job: _Job, message: str) -> None:
        with self._changed:
            job.over = True
            if job in self._jobs:
                self._jobs.remove(job)
        self._answer(job, lambda: job.future.set_exception(ScoringError(message)))

    @staticmethod
    def _answer(job: _Job, act: Callable[[], None]) -> None:
        def answer() -> None:
            if not job.future.done():
                act()

        # the loop has gone where the process is ending
        with suppress(RuntimeError):
            job.loop.call_soon_threadsafe(answer)
