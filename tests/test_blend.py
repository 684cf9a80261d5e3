"""The soft-deadline window, with scripted side models and no model at all."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from brain.blend import Blend
from brain.clock import SystemClock
from brain.errors import BreakerOpen, RemoteTimeout
from brain.settings import BlendSettings

SOFT, HARD = 30, 60_000


class Log:
    def __init__(self) -> None:
        self.late: list[tuple[str, Any]] = []
        self.ages_ms: list[float] = []
        self.events: list[str] = []
        self.settled: list[tuple[str, str]] = []

    def emit(self, event: str, /, **fields: object) -> None:
        self.events.append(event)

    def on_late(self, name: str, value: Any, age_ms: float) -> None:
        self.late.append((name, value))
        self.ages_ms.append(age_ms)

    def on_settled(self, name: str, outcome: str, latency_ms: float) -> None:
        self.settled.append((name, outcome))


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def blend(log: Log) -> Blend:
    limits = BlendSettings(soft_deadline_ms=SOFT, hard_deadline_ms=HARD)
    return Blend(limits, clock=SystemClock(), emit=log.emit, on_settled=log.on_settled)


async def answer(value: Any) -> Any:
    return value


async def never() -> Any:
    await asyncio.Event().wait()


async def fail(error: Exception) -> Any:
    raise error


async def test_the_window_closes_as_soon_as_all_have_answered(blend: Blend, log: Log) -> None:
    wide = BlendSettings(soft_deadline_ms=10_000, hard_deadline_ms=20_000)
    patient = Blend(wide, clock=SystemClock(), emit=log.emit)
    window = await patient.open(
        {"affect": answer(1), "foresight": answer(2)}, turn_id="t", on_late=log.on_late
    )
    assert (window.value("affect"), window.value("foresight")) == (1, 2)
    assert not window.pending and log.late == []


async def test_a_late_answer_is_handed_over_once(blend: Blend, log: Log) -> None:
    gate = asyncio.Event()

    async def slow() -> str:
        await gate.wait()
        return "late"

    window = await blend.open({"affect": slow()}, turn_id="t", on_late=log.on_late)
    assert window.value("affect") is None
    assert window.results["affect"].outcome == "late" and log.late == []
    gate.set()
    await blend.settle()
    assert log.late == [("affect", "late")] and log.events == ["late_affect"]
    assert log.settled == [("affect", "late")]
    assert log.ages_ms[0] > window.open_ms > 0, "its age is that of the message, not of the window"


async def test_each_answer_has_the_latency_of_its_own(blend: Blend, log: Log) -> None:
    answered = asyncio.Event()

    async def slow() -> int:
        await answered.wait()
        return 1

    async def fast() -> int:
        answered.set()
        return 2

    window = await blend.open({"affect": slow(), "foresight": fast()}, turn_id="t",
                              on_late=log.on_late)  # fmt: skip
    assert window.results["foresight"].latency_ms < window.results["affect"].latency_ms


async def test_a_remote_that_took_too_long_is_missed_and_not_down(blend: Blend, log: Log) -> None:
    slow = RemoteTimeout("the cahm did not answer in 5 s", remote="cahm")
    window = await blend.open({"affect": fail(slow)}, turn_id="t", on_late=log.on_late)
    assert window.results["affect"].outcome == "missed"
    assert "did not answer" in window.results["affect"].reason


async def test_past_the_hard_deadline_it_is_cancelled_and_missed(log: Log) -> None:
    limits = BlendSettings(soft_deadline_ms=SOFT, hard_deadline_ms=120)
    blend = Blend(limits, clock=SystemClock(), emit=log.emit, on_settled=log.on_settled)
    cancelled = asyncio.Event()

    async def stuck() -> None:
        try:
            await never()
        finally:
            cancelled.set()

    window = await blend.open({"affect": stuck()}, turn_id="t", on_late=log.on_late)
    await blend.settle()
    assert cancelled.is_set() and log.late == []
    assert window.results["affect"].outcome == "missed"
    assert log.events == ["side_missed"] and log.settled == [("affect", "missed")]


async def test_a_side_model_that_is_down_does_not_delay_the_others(blend: Blend, log: Log) -> None:
    down = BreakerOpen("cahm failed five times", remote="cahm")
    window = await blend.open(
        {"affect": fail(down), "foresight": answer(3)}, turn_id="t", on_late=log.on_late
    )
    assert window.results["affect"].outcome == "down"
    assert "BreakerOpen" in window.results["affect"].reason
    assert window.value("foresight") == 3


async def test_a_defect_in_a_side_model_costs_no_turn_but_is_named(blend: Blend, log: Log) -> None:
    window = await blend.open({"affect": fail(KeyError("oops"))}, turn_id="t", on_late=log.on_late)
    assert window.results["affect"].outcome == "down"
    assert "unexpected KeyError" in window.results["affect"].reason


async def test_cancelling_the_turn_cancels_every_side_model(blend: Blend, log: Log) -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def watch() -> None:
        started.set()
        try:
            await never()
        finally:
            ended.set()

    wide = Blend(BlendSettings(), clock=SystemClock(), emit=log.emit)
    turn = asyncio.create_task(wide.open({"affect": watch()}, turn_id="t", on_late=log.on_late))
    await started.wait()
    turn.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turn
    assert ended.is_set() and log.late == []


@pytest.mark.parametrize("passes", [0, 3])
async def test_closing_stops_what_is_still_running(blend: Blend, log: Log, passes: int) -> None:
    ended = asyncio.Event()

    async def stuck() -> None:
        try:
            await never()
        finally:
            ended.set()

    await blend.open({"affect": stuck()}, turn_id="t", on_late=log.on_late)
    for _ in range(passes):  # of the loop; without any, nothing waits for the late answer yet
        await asyncio.sleep(0)
    await blend.close()
    assert ended.is_set() and log.late == []


async def test_no_side_models_means_no_window(blend: Blend, log: Log) -> None:
    window = await blend.open({}, turn_id="t", on_late=log.on_late)
    assert window.open_ms == 0.0 and window.results == {}


def test_the_adaptive_deadline_follows_p95_within_its_range(log: Log) -> None:
    limits = BlendSettings(adaptive=True, adaptive_min_ms=500, adaptive_max_ms=700)
    blend = Blend(limits, clock=SystemClock(), emit=log.emit)
    assert blend.soft_deadline_ms == 600
    for latency, wanted in ((20.0, 500.0), (620.0, 620.0), (3_000.0, 700.0)):
        for _ in range(200):
            blend._latencies.append(latency)
        assert blend.soft_deadline_ms == wanted


def test_a_few_slow_answers_do_not_move_the_adaptive_deadline_and_many_do(log: Log) -> None:
    limits = BlendSettings(adaptive=True, adaptive_min_ms=500, adaptive_max_ms=700)
    for slow, wanted in ((4, 510.0), (20, 690.0)):
        blend = Blend(limits, clock=SystemClock(), emit=log.emit)
        blend._latencies.extend([510.0] * (200 - slow) + [690.0] * slow)
        assert blend.soft_deadline_ms == wanted
    blend = Blend(limits, clock=SystemClock(), emit=log.emit)
    blend._latencies.extend([510.0] * 19)
    assert blend.soft_deadline_ms == 600.0, "too few to know"


async def test_the_adaptive_deadline_learns_from_the_missed_and_not_from_the_failed(
    log: Log,
) -> None:
    limits = BlendSettings(soft_deadline_ms=10, hard_deadline_ms=12, adaptive=True,
                           adaptive_min_ms=1, adaptive_max_ms=1_000)  # fmt: skip
    blend = Blend(limits, clock=SystemClock(), emit=log.emit)
    down = BreakerOpen("cahm failed five times", remote="cahm")
    await blend.open({f"s{n}": fail(down) for n in range(20)}, turn_id="t", on_late=log.on_late)
    assert blend.soft_deadline_ms == 10.0
    await blend.open({f"s{n}": never() for n in range(20)}, turn_id="t", on_late=log.on_late)
    await blend.settle()
    assert blend.soft_deadline_ms == 12.0
