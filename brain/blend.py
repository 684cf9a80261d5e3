"""The soft-deadline window: take what side models say in time, hand over what comes late.

All tasks start at once. The window closes when every task has answered, or at the soft deadline,
whichever comes first. What is ready then shapes this turn; what is not keeps running until the hard
deadline and is given to ``on_late`` exactly once; after that it is cancelled and counted as missed.
A task that fails is ``down`` and never delays the window.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from brain.clock import Clock
from brain.errors import LimbicError, RemoteTimeout
from brain.events import Emit
from brain.settings import BlendSettings

Outcome = Literal["on_time", "late", "missed", "down", "cancelled"]
OnLate = Callable[[str, Any, float], None]


@dataclass(slots=True)
class SideResult:
    """What one side model did: outcome, its value when on time, its latency, why it failed."""

    outcome: Outcome
    value: Any = None
    latency_ms: float = 0.0
    reason: str = ""


@dataclass(slots=True)
class Window:
    """A closed window: the result of each task by name, and how long it was open."""

    results: dict[str, SideResult]
    open_ms: float
    pending: dict[str, asyncio.Task[Any]] = field(default_factory=dict)

    def value(self, name: str) -> Any:
        """The value of a task that answered in time, else ``None``."""
        found = self.results.get(name)
        return found.value if found is not None and found.outcome == "on_time" else None


class Blend:
    """Runs windows and owns what is still running after them."""

    def __init__(
        self,
        settings: BlendSettings,
        *,
        clock: Clock,
        emit: Emit,
        on_settled: Callable[[str, str, float], None] = lambda name, outcome, latency_ms: None,
    ) -> None:
        self._settings = settings
        self._on_settled = on_settled
        self._clock = clock
        self._emit = emit
        self._late: dict[asyncio.Task[None], Window] = {}
        self._latencies: deque[float] = deque(maxlen=200)

    @property
    def soft_deadline_ms(self) -> float:
        """The deadline in force: fixed, or the rolling p95 within the configured range."""
        s = self._settings
        if not s.adaptive or len(self._latencies) < 20:
            return float(s.soft_deadline_ms)
        ranked = sorted(self._latencies)
        p95 = ranked[min(len(ranked) - 1, int(0.95 * len(ranked)))]
        return float(min(s.adaptive_max_ms, max(s.adaptive_min_ms, p95)))

    async def open(
        self, sides: Mapping[str, Awaitable[Any]], *, turn_id: str, on_late: OnLate
    ) -> Window:
        """Race ``sides`` against the soft deadline.

        ``on_late(name, value, age_ms)`` is called at most once for each late answer, with its age
        since the window opened. If the caller is cancelled, every task is cancelled and nothing is
        handed over.
        """
        started = self._clock.monotonic()
        if not sides:
            return Window(results={}, open_ms=0.0)
        tasks = {name: asyncio.ensure_future(side) for name, side in sides.items()}
        done_at: dict[asyncio.Future[Any], float] = {}

        def stamp(task: asyncio.Future[Any]) -> None:
            done_at[task] = self._clock.monotonic()

        for task in tasks.values():
            task.add_done_callback(stamp)
        try:
            await asyncio.wait(tasks.values(), timeout=self.soft_deadline_ms / 1000)
        except asyncio.CancelledError:
            await _cancel(tasks.values())
            raise
        window = Window(results={}, open_ms=(self._clock.monotonic() - started) * 1000)
        for name, task in tasks.items():
            if task.done():
                ms = (done_at.get(task, self._clock.monotonic()) - started) * 1000
                window.results[name] = _settle(task, ms)
                self._note(name, window.results[name])
            else:
                window.results[name] = SideResult(outcome="late", latency_ms=window.open_ms)
                window.pending[name] = task
        if window.pending:
            follow = asyncio.create_task(self._follow(window, started, turn_id, on_late))
            self._late[follow] = window
            follow.add_done_callback(self._late.pop)
        return window

    async def close(self) -> None:
        """Cancel everything that is still running."""
        late = dict(self._late)
        await _cancel(late)
        for window in late.values():  # one cancelled before its first step has cancelled nothing
            await _cancel(window.pending.values())

    async def settle(self) -> None:
        """Wait until every late answer has been handed over or missed (tests, orderly stops)."""
        while self._late:
            await asyncio.wait(list(self._late))

    async def _follow(self, window: Window, started: float, turn_id: str, on_late: OnLate) -> None:
        hard = started + self._settings.hard_deadline_ms / 1000
        waiting = {task: name for name, task in window.pending.items()}
        try:
            while waiting:
                left = hard - self._clock.monotonic()
                if left <= 0:
                    break
                done, _ = await asyncio.wait(
                    waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    name = waiting.pop(task)
                    age_ms = (self._clock.monotonic() - started) * 1000
                    result = _settle(task, age_ms)
                    if result.outcome == "on_time":
                        result.outcome = "late"
                        self._emit(f"late_{name}", turn_id=turn_id, age_ms=round(age_ms, 1))
                        on_late(name, result.value, age_ms)
                    else:
                        event = "side_missed" if result.outcome == "missed" else "side_down"
                        self._emit(event, turn_id=turn_id, side=name, reason=result.reason)
                    window.results[name] = result
                    self._note(name, result)
            for name in waiting.values():
                limit = float(self._settings.hard_deadline_ms)
                window.results[name] = SideResult(outcome="missed", latency_ms=limit)
                self._latencies.append(limit)
                self._on_settled(name, "missed", limit)
                self._emit("side_missed", turn_id=turn_id, side=name, limit_ms=limit)
        finally:
            await _cancel(waiting)
            window.pending.clear()

    def _note(self, name: str, result: SideResult) -> None:
        self._on_settled(name, result.outcome, result.latency_ms)
        if result.outcome in ("on_time", "late"):
            self._latencies.append(result.latency_ms)


def _settle(task: asyncio.Future[Any], latency_ms: float) -> SideResult:
    if task.cancelled():
        return SideResult(outcome="cancelled", latency_ms=latency_ms)
    error = task.exception()
    if error is None:
        return SideResult(outcome="on_time", value=task.result(), latency_ms=latency_ms)
    if isinstance(error, RemoteTimeout):
        return SideResult(outcome="missed", latency_ms=latency_ms, reason=str(error)[:300])
    if not isinstance(error, LimbicError):
        # A defect of ours must not cost the user the turn, but it must be seen.
        reason = f"unexpected {type(error).__name__}: {error}"
    else:
        reason = f"{error.code}: {error}"
    return SideResult(outcome="down", latency_ms=latency_ms, reason=reason[:300])


async def _cancel(tasks: Any) -> None:
    waiting = [task for task in tasks if not task.done()]
    for task in waiting:
        task.cancel()
    if waiting:
        await asyncio.wait(waiting)
