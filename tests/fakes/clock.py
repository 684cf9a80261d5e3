"""A clock that moves only when a test says so, or jumps over every sleep."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random


class ManualClock:
    """Implements ``brain.clock.Clock``.

    By default a sleeper waits until ``advance`` carries the clock past its moment; with
    ``jump=True`` each sleep returns at once and moves the clock itself. ``slept`` lists every
    requested duration, in order.
    """

    def __init__(
        self, *, start: float = 1_000.0, epoch: float = 1.7e9, jump: bool = False, seed: int = 0
    ) -> None:
        self.rng = random.Random(seed)
        self.slept: list[float] = []
        self._now = start
        self._epoch_offset = epoch - start
        self._suspended = 0.0
        self._jump = jump
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def monotonic(self) -> float:
        return self._now

    def uptime(self) -> float:
        return self._now + self._suspended

    def time(self) -> float:
        return self._now + self._epoch_offset

    def set_time(self, epoch: float) -> None:
        """Jump the wall clock (and only it), as a machine's administrator may."""
        self._epoch_offset = epoch - self._now

    def suspend(self, seconds: float) -> None:
        """The machine sleeps: no deadline comes nearer, but time passes."""
        self._suspended += seconds
        self._epoch_offset += seconds

    @property
    def sleeping(self) -> int:
        """How many tasks wait for this clock now."""
        return sum(not future.done() for _, _, future in self._sleepers)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if self._jump or seconds <= 0:
            self._now += max(0.0, seconds)
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), future))
        await future

    async def advance(self, seconds: float) -> None:
        """Move forward, waking sleepers in order and letting each run before the next."""
        end = self._now + seconds
        await self._settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            moment, _, future = heapq.heappop(self._sleepers)
            self._now = max(self._now, moment)
            if not future.done():
                future.set_result(None)
                await self._settle()
        self._now = end
        await self._settle()

    @staticmethod
    async def _settle() -> None:
        for _ in range(10):
            await asyncio.sleep(0)
