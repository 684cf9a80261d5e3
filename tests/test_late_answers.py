"""Answers after the turn: kept for their own message once, and not at all for one taken back."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Any

import pytest

from brain.app import Limbic
from brain.errors import LimbicError, StoreError
from brain.foresight_state import ForesightState
from brain.memory import pack
from tests.conftest import OpenLimbic, idle, log_lines
from tests.fakes.llm_server import DONE, ROLE, FakeLLM, Hold, Script, chunk
from tests.fakes.side_server import AFFECT, Answer, FakeSide, embedding

DOG = "My dog Rex died last winter and I still miss him"
JOB = "I started a new job at the bakery on Monday"
WEATHER = "the weather is grey again today"
HARSH = {**AFFECT, "valence": -0.9, "intimacy": 0.7, "tension": 0.9, "confidence": 1.0}
SOON = {"BLEND__SOFT_DEADLINE_MS": 60, "BLEND__HARD_DEADLINE_MS": 30_000}


async def vectors(limbic: Limbic) -> dict[str, bytes | None]:
    def read(connection: sqlite3.Connection) -> list[tuple[str, bytes | None]]:
        return connection.execute("SELECT text, vector FROM memories").fetchall()

    return dict(await limbic.parts.store.run(read))


async def stored(limbic: Limbic) -> ForesightState:
    record = await limbic.parts.store.load_session("default", persona="companion", at=0.0)
    return ForesightState.from_bytes(record.foresight or b"")


async def let_late_answers_come(limbic: Limbic, side: FakeSide) -> None:
    side.release()
    await limbic.parts.blend.settle()
    await idle(limbic)


def dropped(limbic: Limbic) -> list[tuple[str, str]]:
    rows = log_lines(limbic, "events.jsonl")
    return [(row["side"], row["reason"]) for row in rows if row["event"] == "late_dropped"]


async def test_a_late_vector_is_stored_for_its_message_once_and_foresees_the_next(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    side.enqueue("/encode", Answer(hold=True))
    async with open_limbic(llm, side, **SOON) as limbic:
        turn = limbic.session().say(DOG)
        await turn
        await idle(limbic)
        assert turn.foresight is None and await vectors(limbic) == {DOG: None}
        await let_late_answers_come(limbic, side)
        (session,) = limbic.parts.sessions.open_sessions()
        assert await vectors(limbic) == {DOG: pack(tuple(embedding(DOG, 8)))}
        assert session.foresight.newest == turn.seq and session.foresight.predicted is not None
        assert await stored(limbic) == session.foresight
        again = await limbic.parts.store.add_late_vector(
            "default", turn.seq, encoder="e", vector=pack((1.0,)), foresight=b"x"
        )
        assert again and (await vectors(limbic))[DOG] == pack(tuple(embedding(DOG, 8)))


async def test_a_late_vector_joins_behind_no_other_message_than_its_own(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    side.enqueue("/encode", Answer(hold=True))
    async with open_limbic(llm, side, **SOON) as limbic:
        await limbic.session().say(DOG)
        second = limbic.session().say(JOB)
        await second
        await let_late_answers_come(limbic, side)
        (session,) = limbic.parts.sessions.open_sessions()
        assert [message.seq for message in session.foresight.messages] == [1, 2]
        assert session.foresight.vectors[0] == pytest.approx(embedding(DOG, 8), abs=1e-6)
        kept = {text: vector for text, vector in (await vectors(limbic)).items() if vector}
        assert kept == {text: pack(tuple(embedding(text, 8))) for text in kept} and DOG in kept
        assert await stored(limbic) == session.foresight


async def test_what_comes_late_for_a_message_taken_back_is_dropped(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    side.enqueue("/encode", Answer(hold=True))
    side.enqueue("/v1/affect", Answer(hold=True, body=HARSH))
    async with open_limbic(llm, side, **SOON) as limbic:
        await limbic.session().say(DOG)
        before = (await limbic.session().open()).engine.peek().levels["cortisol"]
        await limbic.session().undo()
        await let_late_answers_come(limbic, side)
        (session,) = limbic.parts.sessions.open_sessions()
        assert session.late == [] and session.foresight == ForesightState()
        assert session.last_affect is None and await vectors(limbic) == {}
        after = limbic.session().say("hello again")
        await after
        assert after.late_applied == []
        assert after.state is not None
        assert after.state.levels["cortisol"] < before + 0.05
    assert sorted(dropped(limbic)) == [("affect", "undone"), ("foresight", "undone")]


async def test_a_message_taken_back_while_its_vector_waits_to_be_stored_leaves_nothing(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    """The answer came in time to be queued, and the undo was queued before it."""
    side.enqueue("/encode", Answer(hold=True))
    async with open_limbic(llm, side, **SOON) as limbic:
        await limbic.session().say(DOG)
        await idle(limbic)
        (session,) = limbic.parts.sessions.open_sessions()
        async with limbic.parts.sessions.between_turns("default"):
            undoing = asyncio.create_task(limbic.session().undo())
            await asyncio.sleep(0)
            side.release()
            await limbic.parts.blend.settle()
        await undoing
        await idle(limbic)
        assert session.foresight == ForesightState() and await vectors(limbic) == {}
    assert ("foresight", "not in history") in dropped(limbic)


async def test_what_came_late_to_a_turn_that_then_failed_leaves_no_trace(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    side.enqueue("/encode", Answer(hold=True))
    side.enqueue("/v1/affect", Answer(hold=True, body=HARSH))
    llm.enqueue(Script((ROLE, Hold(), chunk("  "), DONE)))
    async with open_limbic(llm, side, **SOON) as limbic:
        failing = asyncio.create_task(limbic.session().say(DOG)._whole())
        await llm.until(requests=1)
        side.release()
        await limbic.parts.blend.settle()
        (session,) = limbic.parts.sessions.open_sessions()
        assert len(session.late) == 2, "both came while the reply was awaited"
        llm.release()
        with pytest.raises(LimbicError):
            await failing
        await idle(limbic)
        assert session.late == [] and session.foresight == ForesightState()
        assert await vectors(limbic) == {}
        after = limbic.session().say("hello again")
        await after
        assert after.late_applied == []


async def test_affect_that_comes_while_the_reply_streams_is_kept_with_the_turn(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    """The commit that follows must not write over it, and a strong message becomes a memory."""
    side.enqueue("/v1/affect", Answer(hold=True, body=HARSH))
    llm.enqueue(Script((ROLE, chunk("Oh"), Hold(), chunk(" no."), DONE)))
    async with open_limbic(llm, side, **SOON) as limbic:
        running = asyncio.create_task(limbic.session().say(WEATHER)._whole())
        await llm.until(requests=1)
        side.release()
        await limbic.parts.blend.settle()
        llm.release()
        assert await running == "Oh no."
        await idle(limbic)
        record = await limbic.parts.store.load_session("default", persona="companion", at=0.0)
        (turn,) = record.turns
        assert turn.affect is not None and turn.affect.valence == -0.9
        assert [(w, t) for _, w, t in await limbic.session().memories()] == [(0.9, WEATHER)]


async def test_late_affect_makes_a_memory_weigh_more_and_brings_none_back(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    side.enqueue("/v1/affect", *[Answer(hold=True, body=HARSH)] * 2)
    async with open_limbic(llm, side, **SOON) as limbic:
        for text in (DOG, JOB):
            await limbic.session().say(text)
        weights = {text: weight for _, weight, text in await limbic.session().memories()}
        assert weights == {DOG: 0.3, JOB: 0.3}
        assert await limbic.session().forget(2)
        await let_late_answers_come(limbic, side)
        weights = {text: weight for _, weight, text in await limbic.session().memories()}
        assert weights == {DOG: 0.9}


@pytest.mark.parametrize("refused", [False, True])
async def test_a_memory_that_could_not_be_forgotten_yet_still_gains_weight(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic,
    monkeypatch: pytest.MonkeyPatch, refused: bool,
) -> None:  # fmt: skip
    side.enqueue("/v1/affect", *[Answer(hold=True, body=HARSH)] * 2)
    async with open_limbic(llm, side, **SOON) as limbic:
        await limbic.session().say(DOG)
        if not refused:
            assert not await limbic.session().forget(2)  # the turn is still to come
        await limbic.session().say(JOB)
        if refused:

            async def fail(*_: object) -> bool:
                raise StoreError("the disk is full")

            with monkeypatch.context() as patch, pytest.raises(StoreError):
                patch.setattr(limbic.parts.memory, "forget", fail)
                await limbic.session().forget(2)
        await let_late_answers_come(limbic, side)
        weights = {text: weight for _, weight, text in await limbic.session().memories()}
        assert weights == {DOG: 0.9, JOB: 0.9}


async def test_a_message_without_its_vector_is_no_ground_to_foresee_from(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    async with open_limbic(llm, side, BLEND__SOFT_DEADLINE_MS=5_000) as limbic:
        await limbic.session().say(DOG)
        await idle(limbic)
        side.enqueue("/encode", Answer(status=500))
        await limbic.session().say(JOB)
        await idle(limbic)
        (session,) = limbic.parts.sessions.open_sessions()
        assert session.foresight.predicted is None
        third = limbic.session().say("hello again")
        await third
        assert third.foresight is not None and third.foresight.distance is None


async def test_taking_a_message_back_keeps_the_history_of_surprise(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    async with open_limbic(llm, side, BLEND__SOFT_DEADLINE_MS=5_000) as limbic:
        for number in range(8):
            await limbic.session().say(f"message {number}")
            await idle(limbic)
        (session,) = limbic.parts.sessions.open_sessions()
        before = session.foresight.distances
        await limbic.session().say("a slip of the tongue")
        await idle(limbic)
        await limbic.session().undo()
        await idle(limbic)
        assert session.foresight.distances == before
        assert session.foresight.predicted is not None, "the next message is foreseen again"
        turn = limbic.session().say("message 8")
        await turn
        assert turn.foresight is not None and turn.foresight.surprise is not None
    async with open_limbic(llm, side) as limbic:
        session = await limbic.session().open()
        assert session.foresight.distances[:-1] == before


async def surprises(limbic: Limbic, numbers: range) -> list[Any]:
    found = []
    for number in numbers:
        turn = limbic.session().say(f"message {number}")
        await turn
        await idle(limbic)
        assert turn.foresight is not None
        found.append(turn.foresight.surprise)
    return found


async def test_surprise_is_the_same_whether_the_brain_was_restarted_or_not(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic, tmp_path: Any
) -> None:
    patient = {"BLEND__SOFT_DEADLINE_MS": 5_000}
    async with open_limbic(llm, side, **patient, PATHS__DATA=tmp_path / "one") as limbic:
        in_one_go = await surprises(limbic, range(10))
    async with open_limbic(llm, side, **patient, PATHS__DATA=tmp_path / "two") as limbic:
        before = await surprises(limbic, range(7))
    async with open_limbic(llm, side, **patient, PATHS__DATA=tmp_path / "two") as limbic:
        after = await surprises(limbic, range(7, 10))
    assert None not in after
    assert before + after == in_one_go
