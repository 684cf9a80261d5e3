"""Recall by vector, ahead of the message where it was foreseen, and never across encoders."""

from __future__ import annotations

from pathlib import Path

from brain.app import Limbic
from brain.foresight import ForesightClient
from brain.foresight_state import ForesightState
from brain.memory import Memory, Recalled, pack
from brain.settings import MemorySettings
from brain.store import Store
from tests.conftest import OpenLimbic, idle, log_lines
from tests.fakes.llm_server import FakeLLM
from tests.fakes.side_server import Answer, FakeSide, embedding

DOG = "My dog Rex died last winter and I still miss him"
EMBEDDED = "scripted-encoder"
PATIENT = {"BLEND__SOFT_DEADLINE_MS": 5_000}  # a busy machine must not make an answer late


def encoded(text: str, dim: int = 8, encoder: str = EMBEDDED) -> Answer:
    return Answer(body={"embeddings": [embedding(text, dim)], "shape": [1, dim],
                        "encoder": encoder, "encoder_name": "fake"})  # fmt: skip


async def talk_then_forget_the_prompt(limbic: Limbic) -> None:
    """One memory, and a prompt that no longer holds its turn."""
    await limbic.session().say(DOG)
    await idle(limbic)
    (session,) = limbic.parts.sessions.open_sessions()
    session.history_start = 2
    session.history = []


async def test_a_message_is_recalled_by_its_vector_where_no_word_is_shared(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    side.encoder = EMBEDDED
    side.enqueue("/encode", encoded(DOG), encoded(DOG))
    async with open_limbic(llm, side, **PATIENT) as limbic:
        await talk_then_forget_the_prompt(limbic)
        turn = limbic.session().say("puppies?")
        await turn
        assert turn.recalled == (DOG,)
    assert log_lines(limbic)[-1]["recalled_by"] == "vector"


async def test_vectors_of_another_encoder_are_never_compared(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    side.enqueue("/encode", encoded(DOG), encoded(DOG, encoder="another"))
    async with open_limbic(llm, side, **PATIENT) as limbic:
        await talk_then_forget_the_prompt(limbic)
        turn = limbic.session().say("puppies?")
        await turn
        assert turn.recalled == ()


async def test_recall_for_the_foreseen_message_happens_before_it_comes(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    """The second turn's idle work looks up what the third will be about; when the third's own
    vector does not come, that is what is recalled."""
    side.encoder = EMBEDDED
    side.enqueue("/encode", encoded(DOG), encoded(DOG))
    vector = embedding(DOG, 8)
    answer = Answer(body={"predicted_vector": vector, "latency_ms": 1.0, "model": "scripted"})
    side.enqueue("/infer", answer, answer)
    async with open_limbic(llm, side, **PATIENT) as limbic:
        await talk_then_forget_the_prompt(limbic)
        await limbic.session().say("puppies?")
        await idle(limbic)
        (session,) = limbic.parts.sessions.open_sessions()
        assert [one.text for one in session.expected] == [DOG]
        snapshot = await limbic.snapshot()
        assert snapshot["foresight"]["expected"] == [1]
        side.enqueue("/encode", Answer(status=500))
        turn = limbic.session().say("zzz")
        await turn
        assert turn.recalled == (DOG,)
    line = log_lines(limbic)[-1]
    assert (line["recalled_by"], line["anticipated"], line["foreseen"]) == ("anticipation", 1, True)


async def test_a_vector_that_does_not_come_in_time_costs_only_the_window(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    side.encoder = EMBEDDED
    side.enqueue("/encode", encoded(DOG), Answer(hold=True))
    async with open_limbic(llm, side) as limbic:
        await talk_then_forget_the_prompt(limbic)
        (session,) = limbic.parts.sessions.open_sessions()
        session.expected = [Recalled(seq=1, text=DOG, score=1.0, by="vector")]
        turn = limbic.session().say("puppies?")
        assert await turn == "Hello there!"
        assert turn.recalled == (DOG,)
        side.release()


async def test_what_was_taken_back_or_forgotten_is_not_expected(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    async with open_limbic(llm, side, **PATIENT) as limbic:
        await limbic.session().say(DOG)
        await idle(limbic)
        (session,) = limbic.parts.sessions.open_sessions()
        session.expected = [Recalled(seq=1, text=DOG, score=1.0, by="vector")]
        await limbic.session().forget(1)
        assert session.expected == []
        session.expected = [Recalled(seq=1, text=DOG, score=1.0, by="vector")]
        await limbic.session().undo()
        assert session.expected == []


async def test_a_chat_whose_lvm_is_down_sends_the_same_prompts_as_one_without(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic, tmp_path: Path
) -> None:
    async def prompts(limbic: Limbic, start: int) -> list[object]:
        for text in (DOG, "and the cat is fine, I think", "good night"):
            await limbic.session().say(text)
            await idle(limbic)
        bodies = [request.body for request in llm.requests[start:]]
        return [body["messages"] for body in bodies if body.get("stream")]

    async with open_limbic(llm, None) as limbic:
        without = await prompts(limbic, 0)
    limbic.parts.store.path.unlink()
    seen = len(llm.requests)
    side.enqueue("/v1/affect", *[Answer(status=500)] * 9)
    side.enqueue("/encode", *[Answer(status=500)] * 9)
    async with open_limbic(llm, side, **PATIENT) as limbic:
        assert isinstance(limbic.parts.foresight, ForesightClient)
        assert await prompts(limbic, seen) == without


async def test_an_lvm_that_goes_down_stops_neither_trimming_nor_prefill(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    limits = {"CHAT__HISTORY_TOKENS": 200, "CHAT__TRIM_FRACTION": 0.2}
    async with open_limbic(llm, side, **limits) as limbic:
        for number in range(12):
            side.enqueue("/infer", Answer(status=500))
            await limbic.session().say(f"message {number} " + "word " * 15)
            await idle(limbic)
        (session,) = limbic.parts.sessions.open_sessions()
        assert session.history_start > 1
        prefilled = [r.body["messages"] for r in llm.others if r.path == "/v1/prefill"]
        # After the last turn, the history with it: a head that ends with its reply.
        assert prefilled[-1][-1]["role"] == "assistant"
    failed = [
        row for row in log_lines(limbic, "events.jsonl") if row["event"] == "idle_work_failed"
    ]
    assert failed


async def test_what_was_expected_serves_one_message_alone(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    side.enqueue("/encode", encoded(DOG), Answer(status=500), Answer(status=500))
    async with open_limbic(llm, side, **PATIENT) as limbic:
        await talk_then_forget_the_prompt(limbic)
        (session,) = limbic.parts.sessions.open_sessions()
        session.expected = [Recalled(seq=1, text=DOG, score=1.0, by="vector")]
        session.foresight = ForesightState()  # nothing to foresee the message after from
        first, second = limbic.session().say("zzz"), limbic.session().say("yyy")
        await first
        await idle(limbic)
        await second
        assert (first.recalled, second.recalled) == ((DOG,), ())


async def test_surprise_is_high_where_the_subject_changes(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    """Six messages of one subject, then another: the percentile goes to the top."""
    same = [[1.0, 0.1 * i, *[0.0] * 6] for i in range(7)]
    rows = [*same, [0.0, 0.0, 1.0, *[0.0] * 5]]
    side.enqueue("/encode", *[
        Answer(body={"embeddings": [row], "shape": [1, 8], "encoder": EMBEDDED}) for row in rows
    ])  # fmt: skip
    async with open_limbic(llm, side, **PATIENT) as limbic:
        surprises = []
        for number in range(len(rows)):
            turn = limbic.session().say(f"message {number}")
            await turn
            await idle(limbic)
            surprises.append(turn.foresight.surprise if turn.foresight else None)
    assert surprises[-1] == 1.0
    assert surprises[-1] > max(s for s in surprises[:-1] if s is not None) - 1e-9


async def test_old_memories_without_an_encoder_are_found_by_their_words(tmp_path: Path) -> None:
    store = await Store.open(tmp_path)
    memory = Memory(MemorySettings(min_score=0.0), store)
    await store.load_session("s", persona="companion", at=0.0)
    begun = await store.begin_turn("s", "t1", DOG, at=1.0)

    def insert(connection: object) -> None:
        connection.execute(  # type: ignore[attr-defined]
            "INSERT INTO memories (session_id, seq, text, weight, created_at, encoder, vector)"
            " VALUES ('s', ?, ?, 0.9, 1.0, NULL, ?)",
            (begun.seq, DOG, pack((1.0, 0.0))),
        )

    await store.run(insert)
    asked = {"before_seq": 9, "at": 2.0, "vector": (1.0, 0.0), "encoder": EMBEDDED}
    assert await memory.recall("s", "puppies?", **asked) == []  # type: ignore[arg-type]
    (found,) = await memory.recall("s", "my dog Rex", **asked)  # type: ignore[arg-type]
    assert found.by == "words"
    await store.close()
