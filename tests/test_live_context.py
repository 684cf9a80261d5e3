"""The next message is foreseen from both speakers' messages, and from fewer where vectors lack."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from brain.app import Limbic
from brain.blend import Blend
from brain.errors import LimbicError
from brain.idle_work import IdleWork
from brain.schema import MAX_TEXT_CHARS
from brain.sessions import Session
from tests.conftest import OpenLimbic, idle, log_lines
from tests.fakes.llm_server import FakeLLM, broken, refuse, reply
from tests.fakes.side_server import REPLIES, Answer, FakeSide, embedding
from tests.test_foresight_state import record_of_version_2

PATIENT: dict[str, Any] = {
    "BLEND__SOFT_DEADLINE_MS": 5_000, "BLEND__HARD_DEADLINE_MS": 30_000,
}  # fmt: skip
U1, U2, U3, U4 = "my dog is ill", "he does not eat", "since Monday", "the vet is on holiday"
A1, A2, A3, A4 = "Oh no!", "How long?", "See a vet.", "Is there another?"
TALK = {U1: A1, U2: A2, U3: A3, U4: A4}


def agent_says(llm: FakeLLM, side: FakeSide, *texts: str) -> None:
    llm.enqueue(*[reply(text) for text in texts])
    side.replies.update(texts)


async def talk(limbic: Limbic, llm: FakeLLM, side: FakeSide, *messages: str) -> Session:
    """Each message with its reply, and the idle work after it."""
    for text in messages:
        agent_says(llm, side, TALK[text])
        await limbic.session().say(text)
        await idle(limbic)
    return await limbic.session().open()


async def but_one(session: Session) -> None:
    """Until of the idle work nothing is left but the one request that is held."""
    while len(session.background) != 1:
        await asyncio.wait(session.background, return_when=asyncio.FIRST_COMPLETED)


def context(side: FakeSide, *known: str) -> list[str]:
    """The texts of the last context that a prediction was asked for."""
    texts = {tuple(round(x, 4) for x in embedding(text, 8)): text for text in known}
    rows = side.asked("/infer")[-1].body["context_vectors"]
    return [texts.get(tuple(round(x, 4) for x in row), "?") for row in rows]


def heard(side: FakeSide) -> list[list[str]]:
    """The replies that each request asked for."""
    return [request.body["texts"] for request in side.asked(REPLIES)]


EVERYTHING = (*TALK.keys(), *TALK.values())


async def test_the_next_message_is_foreseen_from_what_both_said_in_order(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    async with open_limbic(llm, side, **PATIENT) as limbic:
        session = await talk(limbic, llm, side, U1)
        assert context(side, *EVERYTHING) == [U1, U1, U1, U1, A1]
        await talk(limbic, llm, side, U2, U3)
        assert context(side, *EVERYTHING) == [A1, U2, A2, U3, A3]
        assert len(side.asked("/infer")) == 3, "one prediction a turn"
        assert session.foresight.heard
        rows = await limbic.parts.store.run(memory_texts)
        assert not set(rows) & set(TALK.values()), "what the agent said is no memory"
    assert [row["heard"] for row in log_lines(limbic)] == [None, True, True]


def memory_texts(connection: sqlite3.Connection) -> list[str]:
    return [row[0] for row in connection.execute("SELECT text FROM memories")]


async def test_surprise_is_measured_on_the_persons_messages_alone(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    async with open_limbic(llm, side, **PATIENT) as limbic:
        session = await talk(limbic, llm, side, *TALK)
        assert len(session.foresight.messages) == 4
        assert len(session.foresight.distances) == 3


async def test_no_reply_is_encoded_before_its_turn_has_ended(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    async with open_limbic(llm, side, **PATIENT) as limbic:
        agent_says(llm, side, A1)
        turn = limbic.session().say(U1)
        async for _ in turn:
            assert heard(side) == []
        assert heard(side) == [] and turn.status == "done"
        await idle(limbic)
        assert heard(side) == [[A1]]


async def test_a_reply_whose_vector_fails_is_done_without_and_asked_for_again(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    async with open_limbic(llm, side, **PATIENT) as limbic:
        await talk(limbic, llm, side, U1)
        side.enqueue(REPLIES, Answer(status=500))
        session = await talk(limbic, llm, side, U2)
        assert context(side, *EVERYTHING) == [U1, U1, U1, A1, U2]
        assert session.foresight.predicted is not None and not session.foresight.heard
        await talk(limbic, llm, side, U3)
        assert heard(side) == [[A1], [A2], [A2, A3]]
        assert context(side, *EVERYTHING) == [A1, U2, A2, U3, A3]
    assert [row["heard"] for row in log_lines(limbic)] == [None, True, False]


async def test_a_reply_whose_vector_is_late_makes_the_prediction_once_more(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up = []

    async def recall(*args: Any, vector: Any, **more: Any) -> list[Any]:
        looked_up.append(vector)
        return []

    side.enqueue(REPLIES, Answer(hold=True))
    async with open_limbic(llm, side, **PATIENT) as limbic:
        monkeypatch.setattr(limbic.parts.memory, "recall", recall)
        agent_says(llm, side, A1)
        async for _ in limbic.session().say(U1):
            monkeypatch.setattr(Blend, "soft_deadline_ms", 1.0)
        session = await limbic.session().open()
        await but_one(session)
        early = session.foresight
        assert early.predicted is not None and not early.heard
        prefilled = [r for r in llm.others if r.path == "/v1/prefill"]
        assert prefilled[-1].body["messages"][-1]["content"] == A1, "nor does the LLM wait"
        side.release()
        await idle(limbic)
        assert context(side, *EVERYTHING) == [U1, U1, U1, U1, A1]
        assert session.foresight.heard and session.foresight.predicted != early.predicted
        assert looked_up == [early.predicted, session.foresight.predicted]
    async with open_limbic(llm, side, **PATIENT) as limbic:
        assert (await limbic.session().open()).foresight == session.foresight, "it is stored"


async def test_a_reply_that_hangs_gives_way_to_the_next_message_and_is_asked_for_after_it(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    async with open_limbic(llm, side, **PATIENT) as limbic:
        await talk(limbic, llm, side, U1)
        side.enqueue(REPLIES, Answer(hold=True))
        agent_says(llm, side, A2)
        await limbic.session().say(U2)
        await side.until(lambda: heard(side)[-1] == [A2])
        left = side.left
        session = await talk(limbic, llm, side, U3)
        await side.until(lambda: side.left > left)
        assert heard(side)[-1] == [A2, A3]
        assert context(side, *EVERYTHING) == [A1, U2, A2, U3, A3]
        assert len(session.foresight.distances) == 1, "nothing was expected of the third"


async def test_a_reply_whose_vector_comes_twice_counts_once(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    side.enqueue(REPLIES, Answer(status=500))
    async with open_limbic(llm, side, **PATIENT) as limbic:
        session = await talk(limbic, llm, side, U1)
        work = [IdleWork(limbic.parts, session).look_ahead() for _ in range(2)]
        await asyncio.gather(*work)
        await idle(limbic)
        assert heard(side)[1:] == [[A1], [A1]]
        assert len(session.foresight.context) == 2 and session.foresight.heard


async def test_a_reply_that_broke_off_counts_as_far_as_it_came(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    async with open_limbic(llm, side, **PATIENT) as limbic:
        llm.enqueue(broken(A1))
        side.replies.add(A1)
        with pytest.raises(LimbicError):
            await limbic.session().say(U1)
        await idle(limbic)
        assert context(side, *EVERYTHING) == [U1, U1, U1, U1, A1]


async def test_a_turn_that_fails_leaves_context_and_expectation_as_they_were(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    async with open_limbic(llm, side, **PATIENT) as limbic:
        session = await talk(limbic, llm, side, U1)
        before = session.foresight
        llm.enqueue(refuse(400))
        with pytest.raises(LimbicError):
            await limbic.session().say(U2)
        await idle(limbic)
        assert session.foresight is before and heard(side) == [[A1]]


async def test_another_reply_to_the_same_words_takes_the_place_of_the_one_taken_back(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    async with open_limbic(llm, side, **PATIENT) as limbic:
        session = await talk(limbic, llm, side, U1, U2, U3)
        await limbic.session().undo()
        await idle(limbic)
        assert context(side, *EVERYTHING) == [U1, U1, A1, U2, A2]
        assert session.foresight.heard, "the next message is foreseen again"
        agent_says(llm, side, A4)
        await limbic.session().say(U3)
        await idle(limbic)
        assert context(side, *EVERYTHING) == [A1, U2, A2, U3, A4]


async def test_a_message_taken_back_while_its_reply_is_encoded_leaves_nothing(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    async with open_limbic(llm, side, **PATIENT) as limbic:
        side.enqueue(REPLIES, Answer(hold=True))
        agent_says(llm, side, A1)
        await limbic.session().say(U1)
        await side.until(lambda: heard(side) == [[A1]])
        await limbic.session().undo()
        side.release()
        await idle(limbic)
        session = await limbic.session().open()
        assert session.foresight.messages == () and session.foresight.predicted is None


async def test_of_a_very_long_reply_no_more_is_sent_than_the_contract_allows(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    long = "word " * 8_000
    side.replies.add(long[:MAX_TEXT_CHARS])
    async with open_limbic(llm, side, **PATIENT) as limbic:
        llm.enqueue(reply(long))
        await limbic.session().say(U1)
        await idle(limbic)
        session = await limbic.session().open()
        assert [len(text) for (text,) in heard(side)] == [MAX_TEXT_CHARS]
        assert session.foresight.heard


async def test_an_older_reply_that_is_refused_does_not_hold_up_the_newest(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    def zero_for_one(text: str, dim: int) -> list[float]:
        return [0.0] * dim if text == A1 else embedding(text, dim)

    side.embed = zero_for_one
    async with open_limbic(llm, side, **PATIENT) as limbic:
        session = await talk(limbic, llm, side, U1, U2)
        assert heard(side) == [[A1], [A1, A2], [A2]]
        assert context(side, *EVERYTHING) == [U1, U1, U1, U2, A2]
        assert session.foresight.heard


async def test_coming_back_finds_the_context_as_it_was(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    async with open_limbic(llm, side, **PATIENT) as limbic:
        before = (await talk(limbic, llm, side, U1, U2)).foresight
    async with open_limbic(llm, side, **PATIENT) as limbic:
        session = await limbic.session().open()
        await idle(limbic)
        assert session.foresight == before and heard(side) == [[A1], [A2]], "nothing is asked"
        await talk(limbic, llm, side, U3)
        assert context(side, *EVERYTHING) == [A1, U2, A2, U3, A3]


async def test_a_reply_that_was_not_encoded_when_the_brain_ended_is_when_it_comes_back(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    side.enqueue(REPLIES, Answer(hold=True))
    async with open_limbic(llm, side, **PATIENT) as limbic:
        agent_says(llm, side, A1)
        await limbic.session().say(U1)
        await side.until(lambda: heard(side) == [[A1]])
    async with open_limbic(llm, side, **PATIENT) as limbic:
        session = await limbic.session().open()
        await idle(limbic)
        assert heard(side) == [[A1], [A1]] and session.foresight.heard


async def test_a_session_of_an_earlier_version_gets_the_vectors_of_its_replies(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic, tmp_path: Path
) -> None:
    data = tmp_path / "old"
    async with open_limbic(llm, side, **PATIENT, PATHS__DATA=data) as limbic:
        old = (await talk(limbic, llm, side, U1, U2, U3)).foresight
    with sqlite3.connect(data / "limbic.db") as connection:
        connection.execute("UPDATE sessions SET foresight=?", (record_of_version_2(old),))
    connection.close()
    async with open_limbic(llm, side, **PATIENT, PATHS__DATA=data) as limbic:
        session = await limbic.session().open()
        await idle(limbic)
        assert heard(side)[-1] == [A1, A2, A3]
        assert context(side, *EVERYTHING) == [A1, U2, A2, U3, A3]
        assert session.foresight.heard and session.foresight.distances == ()
    resets = [r for r in log_lines(limbic, "events.jsonl") if r["event"] == "surprise_reset"]
    assert [row["before"] for row in resets] == ["scripted from the person alone"]


async def test_a_reply_of_another_encoder_does_not_join(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    side.encoder = "aa"
    async with open_limbic(llm, side, **PATIENT) as limbic:
        await talk(limbic, llm, side, U1)
        agent_says(llm, side, A2)
        async for _ in limbic.session().say(U2):
            side.encoder = "bb"
        await idle(limbic)
        session = await limbic.session().open()
        assert context(side, *EVERYTHING) == [U1, U1, U1, A1, U2]
        assert session.foresight.encoder == "fake:aa:8"
        assert session.expected == [], "what is foreseen is of the encoder before"
        await talk(limbic, llm, side, U3)
        assert context(side, *EVERYTHING) == [U3, U3, U3, U3, A3]
        assert session.foresight.encoder == "fake:bb:8"


async def test_a_message_whose_vector_is_late_brings_its_reply_along(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    side.enqueue("/encode", Answer(hold=True))
    soon = {**PATIENT, "BLEND__SOFT_DEADLINE_MS": 60}
    async with open_limbic(llm, side, **soon) as limbic:
        agent_says(llm, side, A1)
        await limbic.session().say(U1)
        await idle(limbic)
        assert heard(side) == [], "a reply stands behind its message"
        side.release()
        await limbic.parts.blend.settle()
        await idle(limbic)
        assert context(side, *EVERYTHING) == [U1, U1, U1, U1, A1]


async def test_an_lvm_that_dies_after_the_message_costs_the_prediction_alone(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    async with open_limbic(llm, side, **PATIENT) as limbic:
        side.enqueue(REPLIES, Answer(reset=True), Answer(reset=True))
        side.enqueue("/infer", Answer(reset=True), Answer(reset=True))
        session = await talk(limbic, llm, side, U1)
        assert session.foresight.predicted is None
        assert [r.path for r in llm.others][-1] == "/v1/prefill"
        await talk(limbic, llm, side, U2)
        assert context(side, *EVERYTHING) == [U1, U1, A1, U2, A2]


async def test_two_sessions_at_once_keep_their_contexts_apart(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    async with open_limbic(llm, side, **PATIENT) as limbic:
        names = ("anna", "ben")
        for round_ in ("one", "two", "three"):
            await asyncio.gather(*[limbic.session(n).say(f"{n} {round_}") for n in names])
            await idle(limbic)
        hello = embedding("Hello there!", 8)
        for name in names:
            session = await limbic.session(name).open()
            said = [embedding(f"{name} {round_}", 8) for round_ in ("two", "three")]
            expected = [hello, said[0], hello, said[1], hello]
            for vector, row in zip(session.foresight.context, expected, strict=True):
                assert vector == pytest.approx(row, abs=1e-6)
