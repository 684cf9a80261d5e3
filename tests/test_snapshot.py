"""What the snapshot keeps of single turns: scores whenever they came, and what went wrong."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from brain.errors import RemoteRejected
from brain.schema import Affect
from brain.sidecar import SidecarStatus, State
from brain.snapshot import Latencies, Side, Snapshot
from brain.turn import Turn
from tests.conftest import OpenLimbic, idle
from tests.fakes.clock import ManualClock
from tests.fakes.llm_server import DONE, ROLE, FakeLLM, Hold, Script, chunk, refuse
from tests.fakes.side_server import Answer, FakeSide

HELD = Script((ROLE, chunk("It"), Hold(), chunk(" holds."), chunk(finish="stop"), DONE))


async def test_a_failed_and_a_left_turn_are_kept_with_their_reason(
    llm: FakeLLM, open_limbic: OpenLimbic
) -> None:
    llm.enqueue(refuse(400, "token=abcdefgh12345678 is bad"), HELD)
    async with open_limbic(llm) as limbic:
        with pytest.raises(RemoteRejected):
            await limbic.session("a").say("hello")
        async with aclosing(aiter(limbic.session("a").say("hello?"))) as tokens:
            assert await anext(tokens) == "It"
        snap = await limbic.snapshot()
    failed, left = snap["recent"]
    assert failed["status"] == "failed" and failed["error"]["code"] == "RemoteRejected"
    assert "400" in failed["error"]["message"] and "abcdefgh" not in failed["error"]["message"]
    assert left["status"] == "cancelled" and left["error"] is None
    assert left["timings"]["total_ms"] > 0


async def test_scores_that_come_before_their_turn_ends_are_kept_though_late(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    side.enqueue("/v1/affect", Answer(hold=True))
    llm.enqueue(HELD)
    async with open_limbic(llm, side, BLEND__SOFT_DEADLINE_MS=60) as limbic:
        async for token in limbic.session("a").say("hello"):
            if token == "It":
                side.release()
                await limbic.parts.blend.settle()
                llm.release()
        await idle(limbic)
        (turn,) = (await limbic.snapshot())["recent"]
    assert turn["affect"]["valence"] == 0.2 and turn["affect"]["late"] is True
    assert turn["affect"]["latency_ms"] == 3.0
    assert turn["sides"]["affect"]["outcome"] == "late"


async def test_what_is_missed_after_its_turn_is_told_of_that_turn(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    side.enqueue("/v1/affect", Answer(hold=True))
    async with open_limbic(llm, side, BLEND__SOFT_DEADLINE_MS=40, BLEND__HARD_DEADLINE_MS=90) as (
        limbic
    ):
        await limbic.session("a").say("hello")
        await limbic.parts.blend.settle()
        (turn,) = (await limbic.snapshot())["recent"]
    assert turn["sides"]["affect"]["outcome"] == "missed"


async def test_what_is_missed_while_its_turn_is_stored_is_told_of_that_turn(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic, monkeypatch: pytest.MonkeyPatch
) -> None:
    side.enqueue("/v1/affect", Answer(hold=True))
    async with open_limbic(llm, side, BLEND__SOFT_DEADLINE_MS=40, BLEND__HARD_DEADLINE_MS=90) as (
        limbic
    ):
        finish = limbic.parts.store.finish_turn

        async def slow(*args: Any, **fields: Any) -> None:
            await limbic.parts.blend.settle()
            await finish(*args, **fields)

        monkeypatch.setattr(limbic.parts.store, "finish_turn", slow)
        await limbic.session("a").say("hello")
        (turn,) = (await limbic.snapshot())["recent"]
    assert turn["sides"]["affect"]["outcome"] == "missed"


async def test_a_side_model_that_is_down_is_told_of_its_turn(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    side.enqueue("/v1/affect", Answer(status=500))
    async with open_limbic(llm, side) as limbic:
        await limbic.session("a").say("hello")
        (turn,) = (await limbic.snapshot())["recent"]
    assert turn["sides"]["affect"]["outcome"] == "down" and turn["sides"]["affect"]["reason"]


@pytest.mark.parametrize(("required", "word"), [("false", "degraded"), ("true", "unready")])
async def test_a_side_model_elsewhere_that_does_not_answer_is_told(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic, required: str, word: str
) -> None:
    side.enqueue("/ready", *[Answer(status=500)] * 99)
    async with open_limbic(llm, side, SIDECARS__CAHM__REQUIRED=required) as limbic:
        watched = limbic.supervisor.status
        assert set(watched()) == {"cahm", "lvm"}, "not the chat model: it is anybody's server"
        while any(status.state == "remote" for status in watched().values()):  # noqa: ASYNC110
            await asyncio.sleep(0)
        snap = await limbic.snapshot()
    assert snap["status"] == word
    assert [problem.partition(":")[0] for problem in snap["problems"]] == ["cahm", "lvm"]
    assert "500" in snap["sidecars"]["cahm"]["reason"]


@pytest.mark.parametrize(
    ("needed", "optional", "word"),
    [("ready", "ready", "ok"), ("ready", "off", "ok"), ("ready", "failed", "degraded"),
     ("remote", "ready", "ok"), ("starting", "ready", "unready"), ("failed", "ready", "unready")],
)  # fmt: skip
async def test_only_a_required_part_makes_the_whole_unready(
    llm: FakeLLM, open_limbic: OpenLimbic, needed: State, optional: State, word: str
) -> None:
    async with open_limbic(llm) as limbic:
        snap = limbic.telemetry.snapshot(
            sidecars={
                "cahm": SidecarStatus(needed, required=True, reason="altered"),
                "lvm": SidecarStatus(optional),
            },
            hormones={}, breaker="closed",
        )  # fmt: skip
        broken = limbic.telemetry.snapshot(sidecars={}, hormones={}, breaker="open")
    assert broken["status"] == "unready" and "failed repeatedly" in broken["problems"][0]
    assert snap["status"] == word
    assert snap["problems"] == [
        f"{name}: {state} {reason}".rstrip()
        for name, state, reason in (("cahm", needed, "altered"), ("lvm", optional, ""))
        if state in ("starting", "failed")
    ]


def noted(snapshot: Snapshot, turn_id: str = "t", **more: Any) -> None:
    """A finished turn of 30 tokens, the first after 500 ms and the last after 2 s."""
    record = {"status": "done", "behaviour": None, "surprise": None, "error": None,
              "timings": {}, "sides": {}, "llm": None, **more}  # fmt: skip
    turn = Turn("s", turn_id, "hello", runner=lambda turn: pytest.fail("is not run"))
    turn.timings.update(first_token_ms=500.0, total_ms=2_000.0)
    snapshot.note_turn(record, turn)


def rendered(snapshot: Snapshot) -> dict[str, Any]:
    return snapshot.render(sidecars={}, hormones={}, breaker="closed", problems=[])


@pytest.mark.parametrize(
    ("values", "p50", "p95"),
    [([], 0.0, 0.0), ([7], 7.0, 7.0), ([1, 2], 1.0, 2.0), (range(1, 21), 10.0, 19.0),
     (range(1, 201), 100.0, 190.0), (range(1, 401), 300.0, 390.0)],
)  # fmt: skip
def test_percentiles_are_nearest_ranks_of_the_last_200(values: Any, p50: float, p95: float) -> None:
    latencies = Latencies()
    for value in values:
        latencies.add(float(value))
    assert latencies.summary() == {"p50": p50, "p95": p95, "n": min(200, len(values))}


def test_only_answers_that_came_have_a_latency() -> None:
    side = Side()
    for outcome, ms in (("on_time", 10.0), ("late", 900.0), ("missed", 5_000.0), ("down", 0.1)):
        side.note(outcome, ms)
    assert side.summary() == {
        "latency_ms": {"p50": 10.0, "p95": 900.0, "n": 2},
        "on_time": 1, "late": 1, "missed": 1, "down": 1,
    }  # fmt: skip


def test_what_a_turn_does_not_know_stays_as_it_was_known() -> None:
    snapshot = Snapshot(ManualClock())
    llm = {"model": "m", "retries": 2, "ttft_ms": 500.0, "completion_tokens": 30}
    noted(snapshot, llm=llm, behaviour={"directive": "gentle"}, surprise=0.7)
    nothing = {"model": "", "retries": 1, "ttft_ms": None, "completion_tokens": None}
    noted(snapshot, llm=nothing, status="failed")
    noted(snapshot, status="failed")
    found = rendered(snapshot)
    assert found["llm"]["model"] == "m" and found["llm"]["retries"] == 3
    assert found["llm"]["tokens_per_s"] == 20.0 and found["llm"]["ttft_ms"]["n"] == 1
    assert found["behaviour"] == {"directive": "gentle"}
    assert found["foresight"]["surprise"] == 0.7
    assert found["turns"] == {"done": 1, "failed": 2}


def test_a_reason_reaches_its_turn_whenever_it_comes() -> None:
    snapshot = Snapshot(ManualClock())
    affect = Affect(valence=0.1, intimacy=0, tension=0, confidence=1)
    for turn_id in ("before", "after"):
        snapshot.note_affect("s", turn_id, affect, late=False)
    snapshot.note_reasoning("s", "before", "early")
    noted(snapshot, "before")
    noted(snapshot, "after")
    snapshot.note_reasoning("s", "after", "later")
    snapshot.note_reasoning("s", "nobody", "lost")
    assert [turn["reasoning"] for turn in rendered(snapshot)["recent"]] == ["early", "later"]
    noted(snapshot, "last")
    told = affect.model_copy(update={"reasoning": "with its scores"})
    snapshot.note_affect("s", "last", told, late=True)
    last = rendered(snapshot)["recent"][-1]
    assert last["reasoning"] == "with its scores" and last["affect"]["late"] is True


def test_an_event_of_a_side_model_that_answered_in_time_changes_nothing() -> None:
    snapshot = Snapshot(ManualClock())
    snapshot.note_event("side_down", {"side": "affect", "turn_id": "t", "reason": "x"})
    noted(snapshot, sides={"affect": {"outcome": "on_time", "ms": 9.0}})
    assert rendered(snapshot)["recent"][0]["sides"] == {"affect": {"outcome": "on_time", "ms": 9.0}}


def test_what_is_kept_of_turns_that_never_end_is_bounded() -> None:
    snapshot = Snapshot(ManualClock())
    affect = Affect(valence=0.1, intimacy=0, tension=0, confidence=1)
    for number in range(500):
        snapshot.note_affect("s", f"t{number}", affect, late=False)
        snapshot.note_event("late_affect", {"turn_id": f"t{number}", "age_ms": 1.0})
    assert len(snapshot._heard) == len(snapshot._settled) == 200
    noted(snapshot, "t499", sides={"affect": {"outcome": "late", "ms": 600.0}})
    (turn,) = rendered(snapshot)["recent"]
    assert turn["affect"]["valence"] == 0.1 and turn["sides"]["affect"]["ms"] == 1.0
