"""One worker thread that owns the model; completions and prefills wait for it in bounded queues.

The order is: completions first, in order of arrival, then prefills. A prefill gives way to a
completion at once. If the completion's prompt has most of what the prefill is working on, the step
in progress is left to finish, because the completion needs it; otherwise it is interrupted. A
prefill that gave way goes on later. Cancelling a completion interrupts the model inside a step.

Requests that cannot be served are not: a full queue refuses, a deadline that passed sheds.

With ``files``, what was evaluated is put on disk when nothing was asked for a while, by a thread
that nobody waits for, and when the engine closes, so that a restart need not evaluate it again.
"""

from __future__ import annotations

import logging
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from sidecars.batching import deadline_passed, draining, queue_full
from sidecars.prefix_cache import PrefixCache, common_prefix
from sidecars.reply_text import ReplyText
from sidecars.state_files import StateFiles
from sidecars.token_model import Sampling, TokenModel

log = logging.getLogger(__name__)
FinishReason = Literal["stop", "length"]
QUIET_S = 30.0  # without a request, before what was evaluated is put on disk


@dataclass(frozen=True, slots=True)
class Started:
    """The prompt is evaluated; ``cached`` of its tokens needed no evaluation."""

    prompt_tokens: int
    cached: int


@dataclass(frozen=True, slots=True)
class Text:
    """More of the reply."""

    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The reply is complete."""

    reason: FinishReason
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Prefilled:
    """A prefill's end: ``tokens`` of the prompt are in the cache, ``cached`` were before."""

    tokens: int
    cached: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The request ended with an error."""

    error: Exception


Event = Started | Text | Finished | Prefilled | Failed
Sink = Callable[[Event], None]
"""Receives a job's events, in the worker thread; must not block."""


@dataclass(slots=True, eq=False)
class Job:
    """One request. ``deadline`` is in seconds on the engine's clock."""

    kind: Literal["completion", "prefill"]
    tokens: array[int]
    sink: Sink
    deadline: float | None = None
    max_tokens: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    stops: tuple[str, ...] = ()
    cancelled: bool = False
    cached: int | None = None


@dataclass(slots=True)
class EngineCounts:
    """Totals since the start; read by the metrics."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    prefilled_tokens: int = 0
    yields: int = 0
    shed: int = 0
    cancelled: int = 0


class ChatEngine:
    """The worker and its queues. ``submit`` and ``cancel`` may be called from any thread.

    Args:
        chunk_tokens: prompt tokens evaluated in one step; between steps the worker looks up.
        max_queue: most waiting completions, and most waiting prefills.
        cache_bytes: most memory for the saved states of other conversations.
        files: where states outlive the process, and after how many seconds without a request.
        now: the clock of the deadlines, in seconds.
    """

    def __init__(
        self,
        model: TokenModel,
        *,
        chunk_tokens: int = 64,
        max_queue: int = 8,
        cache_bytes: int = 128 * 1024 * 1024,
        files: StateFiles | None = None,
        quiet_s: float = QUIET_S,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._cache = PrefixCache(model, budget_bytes=cache_bytes, files=files)
        self._files = files
        self._quiet_s = quiet_s
        self._writer: threading.Thread | None = None
        self._chunk = chunk_tokens
        self._max_queue = max_queue
        self._now = now
        self._completions: deque[Job] = deque()
        self._prefills: deque[Job] = deque()
        self._current: Job | None = None
        self._closed = False
        self._changed = threading.Condition()
        self.counts = EngineCounts()
        self._thread = threading.Thread(target=self._work, name="llm", daemon=True)

    def start(self) -> None:
        """Start the worker."""
        self._thread.start()

    @property
    def queue_length(self) -> int:
        """Jobs waiting."""
        return len(self._completions) + len(self._prefills)

    @property
    def busy(self) -> bool:
        """Whether a job runs now."""
        return self._current is not None

    @property
    def saved_bytes(self) -> int:
        """Memory held for other conversations."""
        return self._cache.saved_bytes

    @property
    def from_disk(self) -> int:
        """States of an earlier process that were used."""
        return self._cache.from_disk

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            Shed: the queue is full, or the engine closed.
        """
        with self._changed:
            if self._closed:
                raise draining()
            queue = self._completions if job.kind == "completion" else self._prefills
            if len(queue) >= self._max_queue:
                self.counts.shed += 1
                raise queue_full(self._max_queue)
            queue.append(job)
            running = self._current
            if (
                job.kind == "completion"
                and running is not None
                and running.kind == "prefill"
                and not self._wants_step(job, running)
            ):
                self._model.interrupt()
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Drop a job: at once when it waits or generates. A running prefill ends its step first,
        which a request for the same conversation is likely to want."""
        with self._changed:
            if job.cancelled:
                return
            job.cancelled = True
            self.counts.cancelled += 1
            for queue in (self._completions, self._prefills):
                if job in queue:
                    queue.remove(job)
            if self._current is job and job.kind == "completion":
                self._model.interrupt()

    def _wants_step(self, job: Job, running: Job) -> bool:
        """Whether most of the step in progress is part of ``job``'s prompt.

        Most, not all: a prefill that ends with a message may close it with tokens that the prompt
        does not have, where it goes on with that message.
        """
        done = self._cache.length
        step = min(done + self._chunk, len(running.tokens)) - done
        return 2 * (common_prefix(running.tokens, job.tokens) - done) >= step

    def close(self, timeout_s: float = 5.0) -> bool:
        """Refuse what waits, cancel what runs, end the worker; false if it did not end in time."""
        with self._changed:
            self._closed = True
            waiting = [*self._completions, *self._prefills]
            self._completions.clear()
            self._prefills.clear()
            if self._current is not None:
                self._current.cancelled = True
                self._model.interrupt()
            self._changed.notify()
        for job in waiting:
            job.sink(Failed(draining()))
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # -- the worker thread -----------------------------------------------------------------------

    def _work(self) -> None:
        while (job := self._next_job()) is not None:
            try:
                self._run(job)
            except Exception as error:
                log.exception("a %s failed", job.kind)
                job.sink(Failed(error))
            finally:
                with self._changed:
                    self._current = None
        if self._files is not None and self._cache.worth_storing():
            self._files.keep(self._cache.plan())

    def _next_job(self) -> Job | None:
        with self._changed:
            while not self._completions and not self._prefills and not self._closed:
                if not self._changed.wait(self._patience()):
                    self._store()
            if self._closed:
                return None
            self._current = (self._completions or self._prefills).popleft()
            # Under the lock: an interrupt after this is meant for this job.
            self._model.rearm()
            return self._current

    def _patience(self) -> float | None:
        """Seconds to wait for a job before ``_store``; no limit when there is nothing to store."""
        return self._quiet_s if self._cache.worth_storing() else None

    def _store(self) -> None:
        """Put states on disk; written in a thread of its own: a disk that hangs stops no reply."""
        assert self._files is not None
        if self._writer is not None and self._writer.is_alive():
            return
        plan = self._cache.plan()
        self._writer = threading.Thread(
            target=self._files.keep, args=(plan,), name="llm-states", daemon=True
        )
        self._writer.start()

    def _run(self, job: Job) -> None:
        if self._late(job):
            self.counts.shed += 1
            job.sink(Failed(deadline_passed()))
        elif job.kind == "prefill":
            self._prefill(job)
        else:
            self._complete(job)

    def _prefill(self, job: Job) -> None:
        total = len(job.tokens)
        # A prompt the live sequence already begins with is not cut back to its own length.
        held = total if self._cache.holds(job.tokens) else None
        if held is None:
            held = self._cache.adopt(job.tokens, reusable=total)
        if job.cached is None:
            job.cached = held
        while held < total and not job.cancelled and not self._late(job):
            if self._gave_way(job):
                return
            step = job.tokens[held : held + self._chunk]
            if self._cache.extend(step, logits=False):
                self.counts.prefilled_tokens += len(step)
            held = self._cache.length
        job.sink(Prefilled(tokens=held, cached=job.cached))

    def _gave_way(self, job: Job) -> bool:
        with self._changed:
            if self._completions:
                self.counts.yields += 1
                self._prefills.appendleft(job)
                return True
            if not job.cancelled:
                self._model.rearm()  # the completion that interrupted has left again
            return False

    def _complete(self, job: Job) -> None:
        total = len(job.tokens)
        # The last token is evaluated in any case: its logits are needed.
        cached = self._cache.adopt(job.tokens, reusable=total - 1)
        while (done := self._cache.length) < total:
            if job.cancelled:
                return
            if self._late(job):
                self.counts.shed += 1
                job.sink(Failed(deadline_passed()))
                return
            step = job.tokens[done : done + self._chunk]
            self._cache.extend(step, logits=done + len(step) == total)
        self.counts.prompt_tokens += total
        self.counts.cached_tokens += cached
        job.sink(Started(prompt_tokens=total, cached=cached))
        sampler = self._model.sampler(job.sampling)
        try:
            reason, count = self._generate(job, sampler.next)
        finally:
            sampler.close()
        if not job.cancelled:
            job.sink(Finished(reason, count))

    def _generate(self, job: Job, choose: Callable[[], int]) -> tuple[FinishReason, int]:
        text = ReplyText(job.stops)
        count = 0
        reason: FinishReason = "length"
        while not job.cancelled:
            token = choose()
            if self._model.ends(token):
                reason = "stop"
                break
            count += 1
            self.counts.generated_tokens += 1
            if certain := text.feed(self._model.piece(token)):
                job.sink(Text(certain))
            if text.stopped:
                reason = "stop"
                break
            if count >= job.max_tokens or self._cache.length >= self._model.context_tokens:
                break
            if not self._cache.extend([token], logits=True, generated=True):
                break
        if not job.cancelled and (rest := text.finish()):
            job.sink(Text(rest))
        return reason, count

    def _late(self, job: Job) -> bool:
        return job.deadline is not None and self._now() >= job.deadline


def completion(
    tokens: Sequence[int],
    sink: Sink,
    *,
    max_tokens: int,
    sampling: Sampling,
    stops: tuple[str, ...] = (),
    deadline: float | None = None,
) -> Job:
    """A job that writes a reply to the prompt ``tokens``."""
    if not tokens or max_tokens < 1:
        raise ValueError("a completion needs a prompt and room for a token")
    return Job("completion", array("i", tokens), sink, deadline, max_tokens, sampling, stops)


def prefill(tokens: Sequence[int], sink: Sink, *, deadline: float | None = None) -> Job:
    """A job that only evaluates ``tokens``, for a completion that will begin with them."""
    return Job("prefill", array("i", tokens), sink, deadline)
