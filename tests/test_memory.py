"""Memory: what is kept, how it is found, and what is never recalled."""

from __future__ import annotations

import sqlite3
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain import memory as memories
from brain.memory import Memory, cosine_distance, load_vec, pack, salience, to_keep
from brain.schema import Affect, Foresight
from brain.settings import MemorySettings
from brain.store import Store
from tests.test_store import commit

STRONG = Affect(valence=-0.9, intimacy=0.8, tension=0.7, confidence=0.9)


async def filled(tmp_path: Path, texts: list[str], vectors: list[tuple[float, ...]] | None = None):
    store = await Store.open(tmp_path)
    await store.load_session("s", persona="companion", at=0)
    for number, text in enumerate(texts):
        begun = await store.begin_turn("s", f"t{number}", text, at=float(number))
        vector = vectors[number] if vectors else None
        seen = Foresight(vector=vector, model="enc") if vector else None
        kept = to_keep(text, STRONG, seen)
        await store.finish_turn(commit(begun.seq, memory=kept, reply="agent talk about dogs"))
    return store, Memory(MemorySettings(), store)


TEXTS = [
    "My dog Rex died last winter and I still miss him",
    "I started a new job at the bakery on Monday",
    "My sister is getting married in June",
]


async def test_words_of_the_message_find_the_memory_they_share(tmp_path: Path) -> None:
    store, memory = await filled(tmp_path, TEXTS)
    found = await memory.recall("s", "I saw a dog like Rex today", before_seq=4, at=5.0)
    await store.close()
    assert [item.seq for item in found] == [1] and found[0].by == "words"


async def test_vectors_find_what_shares_no_word(tmp_path: Path) -> None:
    store, memory = await filled(tmp_path, TEXTS, [(1.0, 0.0), (0.0, 1.0), (0.6, 0.8)])
    found = await memory.recall("s", "puppies?", before_seq=4, at=5.0, vector=(0.9, 0.1))
    await store.close()
    assert found[0].seq == 1 and found[0].by == "vector"


async def test_what_is_still_in_the_prompt_is_not_recalled(tmp_path: Path) -> None:
    store, memory = await filled(tmp_path, TEXTS)
    assert await memory.recall("s", "Rex the dog", before_seq=1, at=5.0) == []
    await store.close()


async def test_replies_of_the_agent_are_never_recalled(tmp_path: Path) -> None:
    store, memory = await filled(tmp_path, TEXTS[1:])
    assert await memory.recall("s", "talk about dogs, agent", before_seq=9, at=5.0) == []
    await store.close()


async def test_other_sessions_are_out_of_reach(tmp_path: Path) -> None:
    store, memory = await filled(tmp_path, TEXTS)
    assert await memory.recall("other", "my dog Rex", before_seq=9, at=5.0) == []
    await store.close()


async def test_a_forgotten_memory_is_gone(tmp_path: Path) -> None:
    store, memory = await filled(tmp_path, TEXTS)
    assert await memory.forget("s", 1) and not await memory.forget("s", 1)
    assert await memory.recall("s", "my dog Rex", before_seq=9, at=5.0) == []
    assert [seq for seq, _, _ in await memory.listing("s")] == [3, 2]
    await store.close()


@pytest.mark.parametrize("text", ['"', "' OR 1=1 --", "NEAR(a b) AND *", "a:b^c", "(((", "é😀"])
async def test_hostile_text_is_a_harmless_query(tmp_path: Path, text: str) -> None:
    store, memory = await filled(tmp_path, TEXTS)
    assert await memory.recall("s", text, before_seq=9, at=5.0) == []
    await store.close()


def test_small_talk_is_not_kept_and_strong_words_are() -> None:
    assert to_keep("ok", None, None) is None
    assert to_keep("what is the capital of France?", None, None) is None
    assert to_keep("I lost my job and I feel awful", None, None) is not None
    mild = Affect(valence=0.1, intimacy=0, tension=0, confidence=0.9)
    text = "the weather is grey again today"
    assert salience(text, mild) < salience(text, STRONG)


def felt(confidence: float = 1.0, **axes: float) -> Affect:
    return Affect.model_validate(
        {"valence": 0, "intimacy": 0, "tension": 0, "confidence": confidence, **axes}
    )


def test_a_message_weighs_what_is_felt_in_it_as_surely_as_it_is_felt() -> None:
    text = "the weather is grey again today"
    for axis in ("valence", "intimacy", "tension"):
        for sign in (-1, 1):
            assert salience(text, felt(**{axis: sign * 0.9})) == pytest.approx(0.9)
    assert salience(text, felt(0.5, valence=-0.9)) == pytest.approx(0.45)
    assert to_keep(text, felt(0.2, valence=-0.9), None) is None


def test_a_question_weighs_less_than_a_statement() -> None:
    assert to_keep("I look like my mother", None, None) is not None
    assert to_keep("do I look like my mother? ", None, None) is None


async def test_only_what_has_left_the_prompt_is_recalled_and_no_more_than_asked(
    tmp_path: Path,
) -> None:
    same = [f"my dog Rex and the {thing}" for thing in ("garden", "river", "winter")]
    store, memory = await filled(tmp_path, same, [(1.0, 0.0)] * 3)
    for vector in ((1.0, 0.0), None):
        found = await memory.recall("s", "Rex", before_seq=2, at=5.0, vector=vector)
        assert [one.seq for one in found] == [1]
    more = Memory(MemorySettings(max_recalled=2, min_score=0.0), store)
    assert len(await more.recall("s", "Rex", before_seq=4, at=5.0)) == 2
    both = await more.recall("s", "Rex", before_seq=4, at=5.0, vector=(1.0, 0.0))
    assert [one.by for one in both] == ["vector"] * 2, "its vector says more than its words"
    await store.close()


async def test_of_two_like_memories_the_newer_comes_first(tmp_path: Path) -> None:
    store, _ = await filled(tmp_path, ["my dog Rex and the garden", "my dog Rex and the river"])
    memory = Memory(MemorySettings(max_recalled=2, recency_half_life_days=30), store)
    month = 30 * memories.DAY_S
    await store.run(
        lambda c: c.execute("UPDATE memories SET created_at = ? WHERE seq = 2", (month,))
    )
    found = await memory.recall("s", "Rex", before_seq=9, at=month)
    assert [one.seq for one in found] == [2, 1]
    share = memories.RECENCY_SHARE / 2
    assert found[0].score - found[1].score == pytest.approx(share, abs=1e-4)
    await store.close()


@given(
    st.lists(st.floats(-10, 10, width=32), min_size=3, max_size=3),
    st.lists(st.floats(-10, 10, width=32), min_size=3, max_size=3),
)
def test_our_distance_agrees_with_its_definition(a: list[float], b: list[float]) -> None:
    distance = cosine_distance(*(struct.pack("<3f", *row) for row in (a, b)))
    norm = (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5
    wanted = 1 - sum(x * y for x, y in zip(a, b, strict=True)) / norm if norm else 1.0
    assert distance == pytest.approx(wanted, abs=1e-4)


def test_a_connection_can_measure_distance_with_or_without_the_extension() -> None:
    connection = sqlite3.connect(":memory:")
    assert load_vec(connection) in ("sqlite-vec", "python")
    sql = "SELECT vec_distance_cosine(?, ?)"
    (distance,) = connection.execute(sql, (pack((1.0, 0.0)), pack((0.0, 2.0)))).fetchone()
    connection.close()
    assert distance == pytest.approx(1.0)


def test_the_words_asked_for_are_content_words() -> None:
    assert memories.query_words("I think that the dog is at the veterinarian") == [
        "veterinarian", "dog",
    ]  # fmt: skip
