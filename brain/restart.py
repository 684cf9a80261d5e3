"""When a sidecar that ended is started again: at once, after a while, or slowly. Pure.

The rules, after Erlang's supervisors (maximum restart intensity) and with a backoff in front:

- the first end restarts at once; each further one waits twice as long, with jitter, up to
  ``backoff_max_ms``, until one life stays ready for a whole ``intensity_window_s``;
- more than ``intensity_restarts`` ends within ``intensity_window_s``, or that many lives in a row
  that never became ready, is *degraded*: one try every ``slow_retry_s``;
- degraded is left only by a life that stays ready for a whole window.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass

from brain.settings import SupervisorSettings

MAX_DOUBLINGS = 32


@dataclass(frozen=True, slots=True)
class Restart:
    """Start again after ``delay_s``; ``degraded`` when the intensity limit is exceeded."""

    delay_s: float
    degraded: bool


class RestartPolicy:
    """Counts the ends of one sidecar's lives."""

    def __init__(self, settings: SupervisorSettings, rng: random.Random) -> None:
        self._settings = settings
        self._rng = rng
        self._ends: deque[float] = deque(maxlen=settings.intensity_restarts + 1)
        self._streak = 0
        self._unready_streak = 0
        self._degraded = False

    def reset(self) -> None:
        """Forget everything: a person asked for a restart."""
        self._ends.clear()
        self._streak = self._unready_streak = 0
        self._degraded = False

    def ended(self, now: float, ready_s: float | None) -> Restart:
        """A life ended at ``now`` (monotonic seconds) after being ready for ``ready_s``
        (``None``: it never was)."""
        settings = self._settings
        if ready_s is not None and ready_s >= settings.intensity_window_s:
            self.reset()
        self._ends.append(now)
        self._streak += 1
        self._unready_streak = 0 if ready_s is not None else self._unready_streak + 1
        full = len(self._ends) > settings.intensity_restarts
        crowded = full and now - self._ends[0] <= settings.intensity_window_s
        if self._degraded or crowded or self._unready_streak > settings.intensity_restarts:
            self._degraded = True
            return Restart(settings.slow_retry_s, degraded=True)
        return Restart(self._backoff_s(), degraded=False)

    def _backoff_s(self) -> float:
        if self._streak == 1:
            return 0.0
        doublings = min(self._streak - 2, MAX_DOUBLINGS)
        wanted_ms = self._settings.backoff_base_ms * (1 << doublings)
        return min(wanted_ms, self._settings.backoff_max_ms) / 1000 * self._rng.uniform(0.5, 1.0)
