"""Circuit breaker, one per remote: after repeated failures it answers at once instead of asking.

Closed → open after ``failures`` consecutive failures inside ``window_s``. Open → half-open once
``open_s`` have passed. Half-open lets one probe through: its success closes, its failure opens
again. A success forgets earlier failures, so a remote that mostly works never trips it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from brain.clock import Clock
from brain.errors import (
    BreakerOpen,
    ProtocolError,
    RemoteRejected,
    RemoteTimeout,
    RemoteUnavailable,
    StreamBroken,
)
from brain.events import Emit
from brain.settings import BreakerSettings

BreakerState = Literal["closed", "open", "half_open"]

# A 4xx proves the remote alive; 429 (busy) and a supervised child that is down say nothing of it.
_FAILURES = (RemoteUnavailable, RemoteTimeout, ProtocolError, StreamBroken)


class CircuitBreaker:
    """Counts outcomes of calls to one remote and refuses calls while it is considered down.

    Every ``check()`` that returns must be followed by one of ``success()``, ``failure()`` or
    ``release()``; ``guard()`` and ``record()`` do that from the outcome itself.
    """

    def __init__(self, settings: BreakerSettings, *, remote: str, clock: Clock, emit: Emit) -> None:
        self._settings = settings
        self._remote = remote
        self._clock = clock
        self._emit = emit
        self._failed_at: deque[float] = deque(maxlen=settings.failures)
        self._opened_at: float | None = None
        self._probing = False

    @property
    def state(self) -> BreakerState:
        """``closed``, ``open``, or ``half_open`` once the open time has passed."""
        if self._opened_at is None:
            return "closed"
        return "half_open" if self._left_s() <= 0 else "open"

    def check(self) -> None:
        """Ask for leave to call the remote.

        Raises:
            BreakerOpen: open, or half-open with its one probe under way.
        """
        if self._opened_at is None:
            return
        left_s = self._left_s()
        if left_s > 0:
            raise BreakerOpen(
                f"the {self._remote} failed repeatedly and is not asked for another {left_s:.1f} s",
                remote=self._remote,
            )
        if self._probing:
            raise BreakerOpen(
                f"the {self._remote} failed repeatedly; one request is testing it now, try again",
                remote=self._remote,
            )
        self._probing = True
        self._emit("breaker_half_open", remote=self._remote)

    def success(self) -> None:
        """The remote answered: forget failures; a probe closes the breaker."""
        self._failed_at.clear()
        self._probing = False
        if self._opened_at is not None:
            self._opened_at = None
            self._emit("breaker_closed", remote=self._remote)

    def failure(self) -> None:
        """The remote failed: count it; the last allowed one, or a failed probe, opens."""
        now = self._clock.monotonic()
        if self._opened_at is not None:
            # Calls begun before it opened may still fail; only a probe's failure counts here.
            if self._probing:
                self._open(now)
            return
        self._failed_at.append(now)
        full = len(self._failed_at) == self._settings.failures
        if full and now - self._failed_at[0] <= self._settings.window_s:
            self._open(now)

    def release(self) -> None:
        """The call ended without a verdict (cancelled): a probe frees its slot."""
        self._probing = False

    def record(self, outcome: BaseException | None) -> None:
        """Count one finished call by how it ended; ``None`` is success.

        This is the only definition of which errors count against a remote.
        """
        if outcome is None or isinstance(outcome, RemoteRejected):
            self.success()
        elif isinstance(outcome, _FAILURES):
            self.failure()
        else:
            self.release()

    @contextmanager
    def guard(self) -> Iterator[None]:
        """``check()`` before the block, ``record()`` after it, whatever happens inside.

        Raises:
            BreakerOpen: the block was not entered.
        """
        self.check()
        try:
            yield
        except (Exception, asyncio.CancelledError, GeneratorExit) as error:
            self.record(error)
            raise
        self.record(None)

    def _left_s(self) -> float:
        assert self._opened_at is not None
        return self._opened_at + self._settings.open_s - self._clock.monotonic()

    def _open(self, now: float) -> None:
        self._opened_at = now
        self._probing = False
        self._emit("breaker_opened", remote=self._remote, open_s=self._settings.open_s)
