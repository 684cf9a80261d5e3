"""Vectors of another encoder: never compared, renewed in idle time, whatever interrupts it."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from brain.app import Limbic
from brain.memory import pack
from brain.renewal import BATCH, _stale
from brain.store import Store
from tests.conftest import OpenLimbic, idle, log_lines
from tests.fakes.llm_server import FakeLLM
from tests.fakes.side_server import Answer, FakeSide, embedding

PATIENT = {"BLEND__SOFT_DEADLINE_MS": 5_000}
MANY = 2 * BATCH + 3


def words(number: int) -> str:
    return f"My {number}. dog was called Rex the {number}. and I miss him"


def turned(text: str, dim: int) -> list[float]:
    """Another encoder of the same dimension: the same meanings, in other directions."""
    return embedding(text + " in other words", dim)


async def told(limbic: Limbic, number: int) -> None:
    """So many memories, as a brain with the encoder of now leaves them."""
    side_key = limbic.parts.foresight.encoder if limbic.parts.foresight else ""

    def write(connection: sqlite3.Connection) -> None:
        for seq in range(1000, 1000 + number):
            connection.execute(
                "INSERT INTO memories (session_id, seq, text, weight, created_at, encoder, vector)"
                " VALUES ('default', ?, ?, 0.9, 1.0, ?, ?)",
                (seq, words(seq), side_key, pack(tuple(embedding(words(seq), 8)))),
            )

    await limbic.parts.store.run(write)


async def memories(limbic: Limbic) -> list[tuple[str, str | None, bytes | None]]:
    def read(connection: sqlite3.Connection) -> list[Any]:
        return connection.execute(
            "SELECT text, encoder, vector FROM memories WHERE seq >= 1000 ORDER BY seq"
        ).fetchall()

    return await limbic.parts.store.run(read)


async def changed_encoder(llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic) -> None:
    """A data directory with memories and foresight of encoder ``aa``; the side now has ``bb``."""
    side.encoder = "aa"
    async with open_limbic(llm, side, **PATIENT) as limbic:
        for number in range(8):
            await limbic.session().say(f"message {number}")
            await idle(limbic)
        await told(limbic, MANY)
    side.encoder, side.embed = "bb", turned


def batches(side: FakeSide) -> list[int]:
    return [len(request.body["texts"]) for request in side.asked("/encode")]


async def test_after_a_change_of_encoder_foresight_starts_anew_and_says_so_once(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    await changed_encoder(llm, side, open_limbic)
    async with open_limbic(llm, side, **PATIENT) as limbic:
        (session,) = [await limbic.session().open()]
        assert session.foresight.predicted is not None, "of the encoder before"
        for number in range(3):
            turn = limbic.session().say(f"message {number}")
            await turn
            await idle(limbic)
            assert turn.foresight is not None and turn.foresight.surprise is None
        assert session.foresight.encoder == "fake:bb:8"
        assert len(session.foresight.messages) == 3 and len(session.foresight.distances) == 2
    resets = [r for r in log_lines(limbic, "events.jsonl") if r["event"] == "foresight_reset"]
    assert [(row["before"], row["now"]) for row in resets] == [("fake:aa:8", "fake:bb:8")]


async def test_old_memories_are_found_by_their_words_and_by_vector_once_renewed(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    await changed_encoder(llm, side, open_limbic)
    async with open_limbic(llm, side, **PATIENT) as limbic:
        memory = limbic.parts.memory
        asked: dict[str, Any] = {
            "before_seq": 5000, "at": 2.0, "encoder": "fake:bb:8",
            "vector": tuple(turned(words(1004), 8)),
        }  # fmt: skip
        (found,) = await memory.recall("default", "the 1004. dog", **asked)
        assert (found.seq, found.by) == (1004, "words")
        assert await memory.recall("default", "puppies?", **asked) == []
        await limbic.session().say("hello")
        await idle(limbic)
        rows = await memories(limbic)
        assert len(rows) == MANY
        for text, encoder, vector in rows:
            assert (encoder, vector) == ("fake:bb:8", pack(tuple(turned(text, 8))))
        (found,) = await memory.recall("default", "puppies?", **asked)
        assert (found.seq, found.by) == (1004, "vector")
        assert batches(side)[-3:] == [BATCH, BATCH, 3]
        before = len(side.asked("/encode"))
        await limbic.session().say("hello again")
        await idle(limbic)
        assert len(side.asked("/encode")) == before + 1, "nothing is left to renew"
    renewed = [r for r in log_lines(limbic, "events.jsonl") if r["event"] == "memories_renewed"]
    assert [row["memories"] for row in renewed] == [MANY]


async def test_renewal_stops_when_anybody_talks_and_goes_on_afterwards(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    await changed_encoder(llm, side, open_limbic)
    async with open_limbic(llm, side, **PATIENT) as limbic:
        side.enqueue("/encode", Answer(), Answer(), Answer(hold=True))
        await limbic.session().say("hello")
        await side.until(lambda: batches(side)[-2:] == [BATCH, BATCH])  # the second one is held
        before = side.left
        other = limbic.session("other").say("good morning")
        await other
        await side.until(lambda: side.left > before)
        rows = await memories(limbic)
        done = sum(encoder == "fake:bb:8" for _, encoder, _ in rows)
        assert done >= BATCH, "what was renewed stays"
        for text, encoder, vector in rows:
            whole = embedding(text, 8) if encoder == "fake:aa:8" else turned(text, 8)
            assert vector == pack(tuple(whole))
        await idle(limbic)
        assert {encoder for _, encoder, _ in await memories(limbic)} == {"fake:bb:8"}


async def test_renewal_does_not_begin_while_somebody_talks(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    await changed_encoder(llm, side, open_limbic)
    async with open_limbic(llm, side, **PATIENT) as limbic:
        async with limbic.parts.sessions.claim("other"):
            await limbic.session().say("hello")
            await idle(limbic)
        assert {encoder for _, encoder, _ in await memories(limbic)} == {"fake:aa:8"}


async def test_an_encoder_that_fails_between_two_batches_leaves_each_memory_whole(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    await changed_encoder(llm, side, open_limbic)
    async with open_limbic(llm, side, **PATIENT) as limbic:
        side.enqueue("/encode", Answer(), Answer(), Answer(status=500))
        await limbic.session().say("hello")
        await idle(limbic)
        rows = await memories(limbic)
        assert sum(encoder == "fake:bb:8" for _, encoder, _ in rows) == BATCH
        for text, encoder, vector in rows:
            whole = embedding(text, 8) if encoder == "fake:aa:8" else turned(text, 8)
            assert vector == pack(tuple(whole))
    async with open_limbic(llm, side, **PATIENT) as limbic:  # as after a crash
        assert await limbic.parts.store.check() == "ok"
        await limbic.session().say("hello again")
        await idle(limbic)
        assert {encoder for _, encoder, _ in await memories(limbic)} == {"fake:bb:8"}


async def test_one_text_that_the_encoder_refuses_does_not_hold_up_the_others(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    await changed_encoder(llm, side, open_limbic)

    def zero_for_one(text: str, dim: int) -> list[float]:
        return [0.0] * dim if text == words(1001) else turned(text, dim)

    side.embed = zero_for_one
    async with open_limbic(llm, side, **PATIENT) as limbic:
        await limbic.session().say("hello")
        await idle(limbic)
        rows = await memories(limbic)
        assert {text for text, encoder, _ in rows if encoder == "fake:aa:8"} == {words(1001)}
        before = len(side.asked("/encode"))
        await limbic.session().say("hello again")
        await idle(limbic)
        assert len(side.asked("/encode")) == before + 1, "it is not asked again and again"


async def test_a_memory_forgotten_while_it_is_encoded_does_not_come_back(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    await changed_encoder(llm, side, open_limbic)
    async with open_limbic(llm, side, **PATIENT) as limbic:
        side.enqueue("/encode", Answer(), Answer(hold=True))
        await limbic.session().say("hello")
        await side.until(lambda: batches(side)[-1] == BATCH)
        assert await limbic.session().forget(1000)
        side.release()
        await idle(limbic)
        rows = await memories(limbic)
        assert len(rows) == MANY - 1 and words(1000) not in {text for text, _, _ in rows}


async def test_a_message_whose_vector_never_came_gets_one_later(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    side.enqueue("/encode", Answer(status=500))
    async with open_limbic(llm, side, **PATIENT) as limbic:
        await limbic.session().say(words(1))
        await limbic.session().say("good night")
        await idle(limbic)
        (found,) = await limbic.parts.memory.recall(
            "default", "?", before_seq=9, at=2.0, encoder="?:?:8",
            vector=tuple(embedding(words(1), 8)),
        )  # fmt: skip
    assert found.by == "vector"


async def test_an_up_to_date_store_is_not_read_through(tmp_path: Path) -> None:
    store = await Store.open(tmp_path)
    plans: list[str] = []

    def explain(connection: sqlite3.Connection) -> None:
        statements: list[str] = []
        connection.set_trace_callback(statements.append)
        _stale(connection, "e", [])
        connection.set_trace_callback(None)
        (statement,) = statements
        plans.extend(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}"))

    await store.run(explain)
    await store.close()
    assert plans and not any(plan.startswith("SCAN") for plan in plans), plans
