"""The shell around ``brain.state``: one session's levels, one lock, one notion of now.

``tick()`` (background) and ``register_event()`` (a user's turn) share one ``asyncio.Lock``; what is
persisted is exactly what becomes visible: ``commit`` runs inside the lock, and if it fails or is
refused the levels stay as they were.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from brain.clock import Clock
from brain.state import Event, HormoneModel, HormoneState, advance

Commit = Callable[[HormoneState], Awaitable[None]]


def utc_offset_s(at: float) -> float:
    """Seconds to add to epoch time for this machine's local time; circadian baselines use it."""
    return float(time.localtime(at).tm_gmtoff)


class StateEngine:
    """Holds one session's hormone state and moves it in real time.

    Elapsed time inside the process is monotonic, so a clock that is set back or forward moves no
    level. Across restarts only the wall clock exists: the time that passed is decayed once, and a
    clock that went backwards counts as no time.
    """

    def __init__(
        self, model: HormoneModel, *, clock: Clock, restored: HormoneState | None = None
    ) -> None:
        self.model = model
        self._clock = clock
        self._lock = asyncio.Lock()
        self._mark = clock.monotonic()
        wall = clock.time()
        now = wall + utc_offset_s(wall)
        if restored is None:
            self._state = model.initial(now)
        else:
            aged = advance(model, restored, dt_s=now - restored.at_s)
            # A clock set back: keep the levels, trust the new date from here on.
            self._state = aged.model_copy(update={"at_s": now})

    @property
    def state(self) -> HormoneState:
        """Levels as of the last tick or event."""
        return self._state

    def peek(self, events: Sequence[Event] = ()) -> HormoneState:
        """Levels now, as they would be after ``events``; changes nothing."""
        return advance(self.model, self._state, dt_s=self._elapsed(), events=events)

    async def tick(self) -> HormoneState:
        """Let the time since the last tick or event pass."""
        return await self.register_event()

    async def register_event(self, *events: Event, commit: Commit | None = None) -> HormoneState:
        """Advance to now, apply ``events``, persist through ``commit``, then make it visible.

        Raises:
            Whatever ``commit`` raises; the levels are then unchanged.
        """
        async with self._lock:
            now = self._clock.monotonic()
            state = advance(self.model, self._state, dt_s=now - self._mark, events=events)
            if commit is not None:
                await commit(state)
            self._state, self._mark = state, now
            return state

    async def restore(self, state: HormoneState) -> None:
        """Replace the levels by an earlier record (undo), aged to now."""
        async with self._lock:
            wall = self._clock.time()
            now = wall + utc_offset_s(wall)
            aged = advance(self.model, state, dt_s=now - state.at_s)
            self._state = aged.model_copy(update={"at_s": now})
            self._mark = self._clock.monotonic()

    def under(self, model: HormoneModel) -> StateEngine:
        """The levels of now, going on by another model. No time passes: this is one process."""
        wall = self._clock.time()
        state = self.peek().model_copy(update={"at_s": wall + utc_offset_s(wall)})
        return StateEngine(model, clock=self._clock, restored=state)

    def _elapsed(self) -> float:
        return self._clock.monotonic() - self._mark
