"""Micro-batching: company when there is some, no waiting when there is none, shedding when late."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from sidecars.batching import MicroBatcher, Shed

PATIENCE_S = 20.0


class Held:
    """A compute function that waits for the test before each batch."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.running = threading.Event()
        self._go = threading.Semaphore(0)

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.running.set()
        assert self._go.acquire(timeout=PATIENCE_S)
        return [item * 10 for item in items]

    def allow(self, batches: int = 1) -> None:
        self.running.clear()
        self._go.release(batches)

    async def started(self) -> None:
        assert await asyncio.to_thread(self.running.wait, PATIENCE_S)


async def test_what_arrives_during_a_batch_forms_the_next_one_in_order() -> None:
    held = Held()
    batcher = MicroBatcher(held, name="t", max_batch=3)
    first = asyncio.create_task(batcher.submit(0))
    await held.started()
    rest = [asyncio.create_task(batcher.submit(n)) for n in range(1, 6)]
    await asyncio.sleep(0)
    assert batcher.queue_length == 5
    held.allow(3)
    assert await asyncio.gather(first, *rest) == [0, 10, 20, 30, 40, 50]
    assert held.batches == [[0], [1, 2, 3], [4, 5]]
    await batcher.close()


async def test_a_full_queue_refuses() -> None:
    held = Held()
    batcher = MicroBatcher(held, name="t", max_queue=2)
    tasks = [asyncio.create_task(batcher.submit(0))]
    await held.started()
    tasks += [asyncio.create_task(batcher.submit(n)) for n in (1, 2)]
    await asyncio.sleep(0)
    with pytest.raises(Shed) as refusal:
        await batcher.submit(3)
    assert refusal.value.status == 429 and refusal.value.retry_after_s == 1
    with pytest.raises(Shed):
        await batcher.submit_many([4, 5])
    held.allow(2)
    await asyncio.gather(*tasks)
    await batcher.close()


async def test_what_is_late_or_abandoned_is_not_computed() -> None:
    now = 0.0
    held = Held()
    batcher = MicroBatcher(held, name="t", now=lambda: now)
    first = asyncio.create_task(batcher.submit(0))
    await held.started()
    late = asyncio.create_task(batcher.submit(1, deadline=5.0))
    gone = asyncio.create_task(batcher.submit(2))
    kept = asyncio.create_task(batcher.submit(3, deadline=50.0))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    now = 6.0
    held.allow(2)
    assert await kept == 30
    await first
    with pytest.raises(Shed, match="deadline"):
        await late
    assert held.batches == [[0], [3]]
    await batcher.close()


async def test_one_bad_item_does_not_fail_its_neighbours() -> None:
    go = threading.Event()

    def invert(items: Sequence[int]) -> list[float]:
        assert go.wait(PATIENCE_S)
        return [1 / item for item in items]

    batcher = MicroBatcher(invert, name="t")
    tasks = [asyncio.create_task(batcher.submit(n)) for n in (1, 2, 0, 4)]
    await asyncio.sleep(0)
    go.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [results[0], results[1], results[3]] == [1.0, 0.5, 0.25]
    assert isinstance(results[2], ZeroDivisionError)
    await batcher.close()


async def test_a_wrong_number_of_results_is_an_error_and_not_a_mix_up() -> None:
    batcher: MicroBatcher[int, int] = MicroBatcher(lambda items: [1, 2], name="t")
    with pytest.raises(RuntimeError, match="1 items gave 2 results"):
        await batcher.submit(1)
    await batcher.close()


async def test_a_client_that_leaves_during_its_batch_costs_its_neighbours_nothing() -> None:
    held = Held()
    batcher = MicroBatcher(held, name="t")
    first = asyncio.create_task(batcher.submit(0))
    await held.started()
    leaves, stays = (asyncio.create_task(batcher.submit(n)) for n in (1, 2))
    await asyncio.sleep(0)
    held.allow()
    assert await first == 0
    await held.started()
    leaves.cancel()
    await asyncio.wait([leaves])
    held.allow(2)
    assert held.batches == [[0], [1, 2]]
    assert await asyncio.wait_for(stays, PATIENCE_S) == 20
    assert await asyncio.wait_for(batcher.submit(3), PATIENCE_S) == 30
    await batcher.close()


async def test_work_aside_comes_after_every_item_that_waits() -> None:
    held = Held()
    batcher = MicroBatcher(held, name="t", max_batch=1)
    items = [asyncio.create_task(batcher.submit(n)) for n in range(3)]
    await held.started()
    aside = asyncio.create_task(batcher.aside(lambda: [*held.batches]))
    await asyncio.sleep(0)
    held.allow(3)
    assert await aside == [[0], [1], [2]]
    assert await asyncio.gather(*items) == [0, 10, 20]
    await batcher.close()


async def test_closing_finishes_the_running_batch_and_refuses_the_rest() -> None:
    held = Held()
    batcher = MicroBatcher(held, name="t")
    running = asyncio.create_task(batcher.submit(1))
    await held.started()
    waiting = asyncio.create_task(batcher.submit(2))
    await asyncio.sleep(0)
    closing = asyncio.create_task(batcher.close())
    await asyncio.sleep(0)
    held.allow()
    await closing
    assert running.done() and await running == 10
    with pytest.raises(Shed, match="stopping"):
        await waiting
    with pytest.raises(Shed, match="stopping"):
        await batcher.submit(3)
    with pytest.raises(Shed, match="stopping"):
        await batcher.aside(lambda: 4)


async def test_many_items_of_one_request_come_back_in_order() -> None:
    batcher: MicroBatcher[int, int] = MicroBatcher(lambda xs: [x + 1 for x in xs], name="t")
    assert await batcher.submit_many([3, 1, 2]) == [4, 2, 3]
    assert await batcher.submit_many([]) == []
    await batcher.close()
