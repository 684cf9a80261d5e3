"""Signs of life of one running child: heartbeats, and resident memory."""

from __future__ import annotations

import asyncio

from brain.clock import Clock
from brain.control import ControlClient
from brain.errors import RemoteError
from brain.events import Emit, Endpoint
from brain.processes import rss_bytes
from brain.settings import SidecarSettings

MIB = 1024 * 1024


class Vitals:
    """What was measured of one life. ``rss`` in bytes, ``queue`` in requests; ``None``: unknown.

    The two watches run until something is wrong and return the reason in one line.
    """

    def __init__(
        self,
        name: str,
        settings: SidecarSettings,
        *,
        control: ControlClient,
        clock: Clock,
        emit: Emit,
    ) -> None:
        self.rss: int | None = None
        self.queue: int | None = None
        self._name = name
        self._settings = settings
        self._control = control
        self._clock = clock
        self._emit = emit

    async def until_silent(self, endpoint: Endpoint) -> str:
        """Ask ``/health`` at every interval, until it has not answered for the timeout.

        Two misses at least: after this process itself was stopped for a while, the first timeout
        says nothing about the child.
        """
        interval, timeout = self._settings.heartbeat_interval_s, self._settings.heartbeat_timeout_s
        answered = self._clock.monotonic()
        misses = 0
        while True:
            await self._clock.sleep(min(interval, timeout / 4) if misses else interval)
            try:
                self.queue = await self._control.health(endpoint, timeout_s=timeout / 2)
            except RemoteError as error:
                misses += 1
                silent_s = self._clock.monotonic() - answered
                self._emit("sidecar_heartbeat_missed", name=self._name, reason=str(error))
                if misses >= 2 and silent_s >= timeout:
                    return f"hung: no heartbeat for {silent_s:.1f} s ({error})"
            else:
                answered = self._clock.monotonic()
                misses = 0

    async def until_too_big(self, pid: int) -> str:
        """Sample the memory at every interval, until it is over ``memory_limit_mb``."""
        limit_mb = self._settings.memory_limit_mb
        while True:
            await self.sample(pid)
            if limit_mb is not None and self.rss is not None and self.rss > limit_mb * MIB:
                return (
                    f"uses {self.rss / MIB:.0f} MB of memory, over its limit of {limit_mb} MB "
                    f"(sidecars.{self._name}.memory_limit_mb)"
                )
            await self._clock.sleep(self._settings.heartbeat_interval_s)

    async def sample(self, pid: int) -> None:
        """Measure the memory now."""
        rss = await asyncio.to_thread(rss_bytes, pid)
        if rss:  # a zombie has none
            self.rss = rss
