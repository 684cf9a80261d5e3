"""From a spawned child to one that says it is ready, within a deadline that progress extends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from brain.child import ChildProcess
from brain.clock import Clock
from brain.control import ControlClient
from brain.errors import ProtocolError, RemoteError, RemoteTimeout
from brain.events import Endpoint
from brain.handshake import Handshake
from brain.processes import settle
from brain.schema import Hello, Ready
from brain.settings import SidecarSettings

READY_POLL_MIN_S = 0.002
READY_POLL_MAX_S = 0.02
READY_REQUEST_S = 2.0
EXIT_AFTER_EOF_S = 0.5


class StartFailed(Exception):
    """The child will not become ready. ``stuck``: it may be hanging, so ask it for its stack.

    Internal to the supervisor: becomes a status and a reason, never leaves it.
    """

    def __init__(self, reason: str, *, permanent: bool = False, stuck: bool = False) -> None:
        self.reason = reason
        self.permanent = permanent
        self.stuck = stuck
        super().__init__(reason)


class StartDeadline:
    """``ready_deadline_s`` after the last sign of progress, never past ``ready_hard_cap_s``."""

    def __init__(self, clock: Clock, settings: SidecarSettings) -> None:
        self._clock = clock
        self._patience_s = settings.ready_deadline_s
        self._cap_s = settings.ready_hard_cap_s
        self._started = self._progressed = clock.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return self._clock.monotonic() - self._started

    def extend(self) -> None:
        """The child showed progress."""
        self._progressed = self._clock.monotonic()

    def remaining_s(self) -> float:
        """Seconds left; not positive once it has passed."""
        limit = min(self._progressed + self._patience_s, self._started + self._cap_s)
        return limit - self._clock.monotonic()

    def describe(self) -> str:
        """Which of the two limits passed."""
        if self.elapsed_s >= self._cap_s:
            return f"not ready within the hard cap of {self._cap_s:g} s"
        return f"no progress for {self._patience_s:g} s while starting"


class Startup:
    """One start of one child. ``line`` is the child's ``on_line``; ``on_progress`` gets details."""

    def __init__(
        self,
        name: str,
        settings: SidecarSettings,
        *,
        clock: Clock,
        on_progress: Callable[[str], None],
    ) -> None:
        self.deadline = StartDeadline(clock, settings)
        self._name = name
        self._clock = clock
        self._on_progress = on_progress
        self._talk = Handshake(name)
        self._done = False
        self._said: asyncio.Future[Hello | ProtocolError] = (
            asyncio.get_running_loop().create_future()
        )

    def line(self, pid: int, line: bytes) -> None:
        """One line of the child's standard output; after the start they are only drained."""
        if self._done:
            return
        try:
            kind = self._talk.feed(line, pid)
        except ProtocolError as error:
            if not self._said.done():
                self._said.set_result(error)
            return
        if kind == "progress":
            self.deadline.extend()
            self._on_progress(self._talk.detail)
        elif kind == "hello" and self._talk.hello is not None and not self._said.done():
            self.deadline.extend()
            self._said.set_result(self._talk.hello)

    async def handshake(self, child: ChildProcess) -> Hello:
        """Wait for the child's hello.

        Raises:
            StartFailed: a deadline passed, its output ended, or the hello is wrong.
        """
        events: list[asyncio.Future[Any]] = [self._said, child.output_ended]
        either = asyncio.ensure_future(asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED))
        try:
            while not either.done() and (remaining := self.deadline.remaining_s()) > 0:
                await settle(self._clock, either, remaining)
        finally:
            either.cancel()
        if self._said.done():
            said = self._said.result()
            if isinstance(said, ProtocolError):
                raise StartFailed(str(said), permanent=True)
            return said
        junk = self._talk.junk + child.oversized_lines
        heard = f" ({junk} unusable lines on its standard output)" if junk else ""
        if child.output_ended.done():
            await settle(self._clock, child.exited, EXIT_AFTER_EOF_S)
            raise StartFailed(f"closed its standard output without a handshake{heard}")
        raise StartFailed(f"{self.deadline.describe()}: no handshake{heard}", stuck=True)

    async def until_ready(self, control: ControlClient, endpoint: Endpoint) -> Ready:
        """Ask ``/ready`` until it says so.

        Raises:
            StartFailed: a deadline passed.
        """
        pause = READY_POLL_MIN_S
        problem = ""
        while (remaining := self.deadline.remaining_s()) > 0:
            try:
                ready = await control.ready(endpoint, timeout_s=min(remaining, READY_REQUEST_S))
            except RemoteTimeout as error:
                problem = problem or str(error)  # the last request is cut short by the deadline
            except RemoteError as error:
                problem = str(error)
            else:
                if ready.ready:
                    self._done = True
                    return ready
                problem = f"{self._name} says that it is not ready"
            await self._clock.sleep(pause)
            pause = min(pause * 2, READY_POLL_MAX_S)
        raise StartFailed(f"{self.deadline.describe()}: {problem or 'never asked'}", stuck=True)
