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


def epoch_s(local_s: float) -> float:
    """Epoch time of a local time of this machine, also where daylight saving began or ended since;
    of an hour that comes twice, the second."""
    nearly = local_s - utc_offset_s(local_s)
    return local_s - utc_offset_s(nearly)


class StateEngine:
    """Holds one session's hormone state and moves it in real time.

    Elapsed time inside the process is the machine's uptime, so a clock that is set back or forward
    moves no level; the new time is what a state is dated by, and what a circadian level follows.
    Across restarts only the wall clock exists: the time that passed is decayed once, and a clock
    that went backwards counts as no time.
    """

    def __init__(
        self,
        model: HormoneModel,
        *,
        clock: Clock,
        restored: HormoneState | None = None,
        passed_s: float | None = None,
    ) -> None:
        """``passed_s``: how old ``restored`` is, where that is known better than by its date."""
        self.model = model
        self._clock = clock
        self._lock = asyncio.Lock()
        self._mark = clock.uptime()
        if restored is None:
            self._state = model.initial(self._local_s())
        else:
            self._state = self._aged(restored, passed_s)

    @property
    def state(self) -> HormoneState:
        """Levels as of the last tick or event."""
        return self._state

    def peek(self, events: Sequence[Event] = ()) -> HormoneState:
        """Levels now, as they would be after ``events``; changes nothing."""
        return self._after(self._clock.uptime() - self._mark, events)

    async def tick(self) -> HormoneState:
        """Let the time since the last tick or event pass."""
        return await self.register_event()

    async def register_event(self, *events: Event, commit: Commit | None = None) -> HormoneState:
        """Advance to now, apply ``events``, persist through ``commit``, then make it visible.

        Raises:
            Whatever ``commit`` raises; the levels are then unchanged.
        """
        async with self._lock:
            now = self._clock.uptime()
            state = self._after(now - self._mark, events)
            if commit is not None:
                await commit(state)
            self._state, self._mark = state, now
            return state

    async def restore(self, state: HormoneState) -> None:
        """Replace the levels by an earlier record, aged to now."""
        async with self._lock:
            self._state = self._aged(state, None)
            self._mark = self._clock.uptime()

    def under(self, model: HormoneModel) -> StateEngine:
        """The levels of now, going on by another model. No time passes: this is one process."""
        return StateEngine(model, clock=self._clock, restored=self.peek())

    def _local_s(self) -> float:
        wall = self._clock.time()
        return wall + utc_offset_s(wall)

    def _aged(self, stored: HormoneState, passed_s: float | None) -> HormoneState:
        """A stored state, now; after a clock set back, its levels with the new date."""
        if passed_s is None:
            passed_s = self._clock.time() - epoch_s(stored.at_s)
        aged = advance(self.model, stored, dt_s=passed_s)
        return aged.model_copy(update={"at_s": self._local_s()})

    def _after(self, passed_s: float, events: Sequence[Event]) -> HormoneState:
        """``passed_s`` after the last tick or event, and dated by what the clock says now."""
        dated = self._state.model_copy(update={"at_s": self._local_s() - passed_s})
        return advance(self.model, dated, dt_s=passed_s, events=events)
