"""Why a message was scored as it was: fetched after the turn, lost to nothing, in nobody's way."""

from __future__ import annotations

import pytest

from brain.app import Limbic
from brain.sessions import MAX_KEPT
from tests.conftest import OpenLimbic, idle, log_lines
from tests.fakes.llm_server import FakeLLM
from tests.fakes.side_server import REASONING, Answer, FakeSide


def reasons(limbic: Limbic) -> list[str]:
    snapshot = limbic.telemetry.snapshot(sidecars={}, hormones={}, breaker="closed")
    return [row["reasoning"] for row in snapshot["recent"]]


async def test_the_reason_of_a_turn_reaches_telemetry_after_it(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    async with open_limbic(llm, side) as limbic:
        await limbic.session().say("a rough day", turn_id="t1")
        await idle(limbic)
        assert reasons(limbic) == ["tension: “rough” +0.20"]
    (asked,) = side.asked(REASONING)
    (scored,) = side.asked("/v1/affect")
    assert asked.body["turn_id"] == scored.body["turn_id"]


async def test_no_session_gets_the_reasons_of_another_that_chose_the_same_turn_id(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    side.enqueue(REASONING, Answer(body={"reasoning": "“secret”"}), Answer(body={"reasoning": "b"}))
    async with open_limbic(llm, side) as limbic:
        for name in ("a", "b"):
            await limbic.session(name).say(f"of {name}", turn_id="1")
            await idle(limbic)
        assert reasons(limbic) == ["“secret”", "b"]
    ids = [request.body["turn_id"] for request in side.asked(REASONING)]
    assert len(set(ids)) == 2 and ids == [r.body["turn_id"] for r in side.asked("/v1/affect")]


async def test_a_quick_next_message_does_not_lose_the_last_ones_reason(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    side.enqueue(REASONING, Answer(hold=True))
    async with open_limbic(llm, side) as limbic:
        await limbic.session().say("a rough day", turn_id="t1")
        await limbic.session().say("and another", turn_id="t2")
        side.release()
        await idle(limbic)
        assert len(side.asked(REASONING)) == 2
        assert reasons(limbic) == ["tension: “rough” +0.20"] * 2


@pytest.mark.parametrize(
    "answer", [Answer(status=500), Answer(status=404), Answer(body=b"{"), Answer(reset=True)]
)
async def test_a_reason_that_fails_costs_nothing_but_itself(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic, answer: Answer
) -> None:
    side.enqueue(REASONING, answer, answer, answer)
    async with open_limbic(llm, side) as limbic:
        turn = limbic.session().say("a rough day")
        assert await turn == "Hello there!"
        await idle(limbic)
        assert turn.affect is not None and reasons(limbic) == [""]
    assert any(line["event"] == "reason_missing" for line in log_lines(limbic, "events.jsonl"))


async def test_reasons_that_never_come_are_bounded_and_end_with_the_brain(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    side.enqueue(REASONING, *[Answer(hold=True)] * 40)
    async with open_limbic(llm, side) as limbic:
        for number in range(20):
            await limbic.session().say(f"message {number}")
        (session,) = limbic.parts.sessions.open_sessions()
        assert len(session.kept) <= MAX_KEPT
    assert not session.kept or all(task.done() for task in session.kept)
