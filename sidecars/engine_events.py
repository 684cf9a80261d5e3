"""From the engine's thread to the event loop: one job's events, and the totals for ``/metrics``."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sidecars.chat_engine import ChatEngine, Event, Failed, Finished, Prefilled


class EventStream:
    """A job's events, from the engine's thread to one handler on the event loop.

    Events that arrive before the handler gets to run come as one batch, so a slow client costs
    fewer writes, and none waits for a batch to fill.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: deque[Event] = deque()
        self._some = asyncio.Event()
        self._woken = False
        self.ended = False

    def put(self, event: Event) -> None:
        """Add one; from the engine's thread."""
        self._items.append(event)
        if not self._woken:
            self._woken = True
            try:
                self._loop.call_soon_threadsafe(self._wake)
            except RuntimeError:  # the loop has closed: nobody listens any more
                self._items.clear()

    async def batch(self) -> list[Event]:
        """Every event since the last call; waits for one. Sets ``ended`` with the last."""
        await self._some.wait()
        self._some.clear()
        events = []
        while self._items:
            events.append(self._items.popleft())
        if events and isinstance(events[-1], Finished | Failed | Prefilled):
            self.ended = True
        return events

    def _wake(self) -> None:
        self._woken = False  # before the items are read: what comes later wakes again
        self._some.set()


class EngineCollector(Collector):
    """The engine's totals for ``/metrics``, read when asked."""

    def __init__(self, engine: ChatEngine) -> None:
        self._engine = engine

    def collect(self) -> Iterable[Metric]:
        counts = self._engine.counts
        for name in counts.__slots__:
            text = f"Total of {name.replace('_', ' ')}"
            yield CounterMetricFamily(f"limbic_llm_{name}", text, value=getattr(counts, name))
        saved = self._engine.saved_bytes
        yield GaugeMetricFamily("limbic_llm_saved_state_bytes", "Saved states", value=saved)
        yield CounterMetricFamily(
            "limbic_llm_states_from_disk",
            "Prompts evaluated by an earlier process and used again",
            value=self._engine.from_disk,
        )
