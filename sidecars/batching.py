"""A bounded queue that gathers concurrent requests into micro-batches for one worker thread.

While the model runs one batch, new requests gather; the next batch takes them all, up to a limit.
Nobody waits for company: a lone request runs at once. What cannot be answered in time is not
computed: a full queue refuses (429), a request whose deadline passed while it waited is shed (503),
and one whose client left is dropped.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from brain.errors import LimbicError

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
AsideT = TypeVar("AsideT")


class Shed(LimbicError):
    """A request that was not computed. ``reason`` is the machine-readable code."""

    retryable = True

    def __init__(
        self, reason: str, message: str, *, status: int, retry_after_s: int | None
    ) -> None:
        self.reason = reason
        self.status = status
        self.retry_after_s = retry_after_s
        super().__init__(message)


def queue_full(limit: int) -> Shed:
    """The refusal of a full queue: HTTP 429."""
    message = f"{limit} requests are already waiting; try again"
    return Shed("queue_full", message, status=429, retry_after_s=1)


def deadline_passed(before: str = "it could start") -> Shed:
    """The refusal of a request whose ``deadline_ms`` passed while it waited: HTTP 503."""
    message = f"the request's deadline passed before {before}"
    return Shed("deadline_passed", message, status=503, retry_after_s=None)


def draining() -> Shed:
    """The refusal of a sidecar that is stopping: HTTP 503."""
    return Shed("draining", "the sidecar is stopping", status=503, retry_after_s=1)


@dataclass(slots=True, eq=False)
class _Waiting(Generic[ItemT, ResultT]):
    item: ItemT
    deadline: float | None
    answer: asyncio.Future[ResultT]


class MicroBatcher(Generic[ItemT, ResultT]):
    """Run ``compute`` on batches of waiting items, one batch at a time, in one thread.

    Args:
        compute: maps N items to N results, in order; runs in the worker thread, may block.
        max_batch: most items in one call.
        max_queue: most items waiting; more are refused.
        now: the clock that deadlines are given in, in seconds.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[ItemT]], Sequence[ResultT]],
        *,
        name: str,
        max_batch: int = 16,
        max_queue: int = 128,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        if max_batch < 1 or max_queue < 1:
            raise ValueError("max_batch and max_queue must be at least 1")
        self._compute = compute
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._now = now
        self._waiting: deque[_Waiting[ItemT, ResultT]] = deque()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._runner: asyncio.Task[None] | None = None
        self._closed = False
        self.batches = 0
        self.items = 0

    @property
    def queue_length(self) -> int:
        """Items waiting, without the batch that is being computed."""
        return len(self._waiting)

    async def submit(self, item: ItemT, *, deadline: float | None = None) -> ResultT:
        """Compute one item, in company or alone.

        Args:
            deadline: on the ``now`` clock; ``None`` waits as long as it takes.

        Raises:
            Shed: queue full, deadline passed, or closed.
            Exception: what ``compute`` raised for this item.
        """
        if self._closed:
            raise draining()
        if len(self._waiting) >= self._max_queue:
            raise queue_full(self._max_queue)
        waiting: _Waiting[ItemT, ResultT] = _Waiting(
            item, deadline, asyncio.get_running_loop().create_future()
        )
        self._waiting.append(waiting)
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run())
        return await waiting.answer

    async def submit_many(
        self, items: Sequence[ItemT], *, deadline: float | None = None
    ) -> list[ResultT]:
        """Compute several items of one request; all or the first error."""
        if len(self._waiting) + len(items) > self._max_queue:
            raise queue_full(self._max_queue)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.submit(item, deadline=deadline)) for item in items]
        return [task.result() for task in tasks]

    async def aside(self, work: Callable[[], AsideT]) -> AsideT:
        """Run ``work`` in the worker thread once no item waits; an item that comes meanwhile is
        next, so keep ``work`` short.

        Raises:
            Shed: closed. Exception: what ``work`` raised.
        """
        while self._runner is not None and not self._runner.done():
            await asyncio.wait([self._runner])
        if self._closed:
            raise draining()
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def close(self) -> None:
        """Refuse what waits, let the running batch finish, end the thread."""
        self._closed = True
        while self._waiting:
            _settle(self._waiting.popleft(), draining())
        if self._runner is not None:
            await asyncio.wait([self._runner])
        self._thread.shutdown(wait=False)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := self._next_batch():
            self.batches += 1
            self.items += len(batch)
            for waiting, outcome in await loop.run_in_executor(self._thread, self._work, batch):
                _settle(waiting, outcome)

    def _next_batch(self) -> list[_Waiting[ItemT, ResultT]]:
        batch: list[_Waiting[ItemT, ResultT]] = []
        while self._waiting and len(batch) < self._max_batch:
            waiting = self._waiting.popleft()
            if waiting.answer.done():
                continue  # its client left
            if waiting.deadline is not None and self._now() >= waiting.deadline:
                _settle(waiting, deadline_passed())
                continue
            batch.append(waiting)
        return batch

    def _work(
        self, batch: list[_Waiting[ItemT, ResultT]]
    ) -> list[tuple[_Waiting[ItemT, ResultT], ResultT | Exception]]:
        """In the thread. One bad item must not fail its neighbours: they are tried alone."""
        try:
            results = self._compute([waiting.item for waiting in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"{len(batch)} items gave {len(results)} results")
            return list(zip(batch, results, strict=True))
        except Exception as error:
            if len(batch) == 1:
                return [(batch[0], error)]
            return [pair for waiting in batch for pair in self._work([waiting])]


def _settle(waiting: _Waiting[ItemT, ResultT], outcome: ResultT | Exception) -> None:
    if waiting.answer.done():
        return
    if isinstance(outcome, Exception):
        waiting.answer.set_exception(outcome)
    else:
        waiting.answer.set_result(outcome)
