"""The only source of time, sleep and randomness, so that tests can drive all three."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Protocol

# Linux stops CLOCK_MONOTONIC while it sleeps, and macOS does not.
_UPTIME = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Clock(Protocol):
    """What the rest of the brain may ask about time and chance."""

    rng: random.Random

    def monotonic(self) -> float:
        """Seconds on a clock that never jumps; for deadlines and durations."""
        ...

    def uptime(self) -> float:
        """Like ``monotonic``, but it goes on while the machine sleeps; for moods, not deadlines."""
        ...

    def time(self) -> float:
        """Seconds since the epoch; for records and for decay across restarts."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Suspend the task for ``seconds``."""
        ...


class SystemClock:
    """The machine's own clock. ``seed`` fixes the jitter of retries and restarts."""

    def __init__(self, seed: int | None = None) -> None:
        self.rng = random.Random(seed)

    def monotonic(self) -> float:
        return time.monotonic()

    def uptime(self) -> float:
        return time.clock_gettime(_UPTIME)

    def time(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
