"""What is recalled and what is not: the score, and that the agent never hears its own echo."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain.foresight_state import ForesightState
from brain.memory import (
    RECENCY_SHARE,
    SIMILARITY_SHARE,
    WEIGHT_SHARE,
    Memory,
    pack,
    says,
    score,
    to_keep,
)
from brain.settings import MemorySettings
from brain.store import Store
from brain.store_sql import NewMemory
from tests.conftest import OpenLimbic, idle
from tests.fakes.llm_server import FakeLLM, Script, reply
from tests.fakes.side_server import AFFECT, Answer, FakeSide
from tests.test_store import commit

DOG = "My dog Rex died last winter and I still miss him"
JOB = "I started a new job at the bakery on Monday"
KEY = "mini:aa:2"
units = st.floats(0, 1)
ages = st.floats(-1e6, 1e10)
half_lives = st.floats(1.0, 1e9)


@given(units, ages, units, half_lives)
def test_a_score_is_between_0_and_1(s: float, age: float, w: float, h: float) -> None:
    assert 0.0 <= score(s, age, w, half_life_s=h) <= 1.0


@given(units, units, ages, ages, units, units, half_lives)
def test_more_alike_newer_or_weightier_never_scores_less(
    s1: float, s2: float, a1: float, a2: float, w1: float, w2: float, h: float
) -> None:
    low = score(min(s1, s2), max(a1, a2), min(w1, w2), half_life_s=h)
    assert score(max(s1, s2), min(a1, a2), max(w1, w2), half_life_s=h) >= low - 1e-12


@given(units, units, st.floats(0, 1e7), half_lives)
def test_recency_halves_in_its_half_life_and_the_rest_stays(
    s: float, w: float, age: float, h: float
) -> None:
    rest = SIMILARITY_SHARE * s + WEIGHT_SHARE * w
    now = score(s, age, w, half_life_s=h) - rest
    later = score(s, age + h, w, half_life_s=h) - rest
    assert later == pytest.approx(now / 2, abs=1e-9)


def test_the_shares_are_whole_and_a_clock_set_back_counts_as_no_time() -> None:
    assert sum((SIMILARITY_SHARE, RECENCY_SHARE, WEIGHT_SHARE)) == pytest.approx(1.0)
    assert score(1, 0, 1, half_life_s=1) == score(1, -50, 1, half_life_s=1) == pytest.approx(1.0)


async def remembered(store: Store, *kept: NewMemory) -> None:
    await store.load_session("s", persona="companion", at=0)
    for number, memory in enumerate(kept):
        begun = await store.begin_turn("s", f"t{number}", memory.text, at=float(number))
        await store.finish_turn(commit(begun.seq, memory=memory, reply="I see."))


def memory_of(text: str, vector: tuple[float, ...] | None = None, weight: float = 0.5) -> NewMemory:
    packed = pack(vector) if vector else None
    return NewMemory(text=text, weight=weight, encoder=KEY if vector else None, vector=packed)


ASKED: dict[str, Any] = {"before_seq": 99, "at": 5.0}


async def test_among_equally_near_memories_the_stronger_feeling_comes_first(
    tmp_path: Path,
) -> None:
    store = await Store.open(tmp_path)
    await remembered(
        store, memory_of(JOB, (1.0, 0.0), 0.3), memory_of(DOG, (1.0, 0.0), 0.9)
    )  # fmt: skip
    memory = Memory(MemorySettings(max_recalled=2), store)
    found = await memory.recall("s", "?", **ASKED, vector=(1.0, 0.1), encoder=KEY)
    assert [one.text for one in found] == [DOG, JOB]
    assert found[0].score - found[1].score == pytest.approx(WEIGHT_SHARE * 0.6, abs=1e-6)
    await store.close()


@pytest.mark.parametrize(("asked", "found"), [((0.2, 1.0), []), ((0.5, 1.0), [DOG])])
async def test_however_strongly_felt_a_memory_of_another_subject_does_not_come_up(
    tmp_path: Path, asked: tuple[float, float], found: list[str]
) -> None:
    store = await Store.open(tmp_path)
    await remembered(store, memory_of(DOG, (1.0, 0.0), 1.0))
    memory = Memory(MemorySettings(), store)
    recalled = await memory.recall("s", "?", **ASKED, vector=asked, encoder=KEY)
    assert [one.text for one in recalled] == found
    await store.close()


async def test_one_memory_is_not_recalled_twice_in_other_letters(tmp_path: Path) -> None:
    store = await Store.open(tmp_path)
    await remembered(store, memory_of(DOG), memory_of(DOG.upper() + "!!"), memory_of(DOG))
    memory = Memory(MemorySettings(max_recalled=3, min_score=0.0), store)
    assert len(await memory.recall("s", "Rex the dog", **ASKED)) == 1
    await store.close()


@pytest.mark.parametrize("bad", [(0.0, 0.0), (math.nan, 1.0), (math.inf, 1.0)])
def test_a_vector_without_a_direction_is_refused(bad: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="finite and not zero"):
        pack(bad)
    with pytest.raises(ValueError):
        ForesightState(encoder=KEY, predicted=bad)


@pytest.mark.parametrize("bad", [(0.0, 0.0), (math.nan, 1.0)])
async def test_a_damaged_vector_in_the_store_spoils_no_recall(
    tmp_path: Path, bad: tuple[float, ...]
) -> None:
    store = await Store.open(tmp_path)
    await remembered(store, memory_of(JOB), memory_of(DOG, (0.6, 0.8)))
    await store.run(
        lambda c: c.execute(
            "UPDATE memories SET encoder=?, vector=? WHERE seq=1", (KEY, struct.pack("<2f", *bad))
        )
    )
    memory = Memory(MemorySettings(max_recalled=9, min_score=0.0), store)
    found = await memory.recall("s", "?", **ASKED, vector=(0.6, 0.8), encoder=KEY)
    assert found[0].text == DOG and all(math.isfinite(one.score) for one in found)
    (found_by_words,) = await memory.recall("s", "Rex", **ASKED, vector=bad, encoder=KEY)
    assert (found_by_words.text, found_by_words.by) == (DOG, "words")
    await store.close()


@pytest.mark.parametrize(
    ("text", "memory", "said"),
    [
        (DOG, DOG, True),
        (f'You once wrote: "{DOG}". How are you now?', DOG, True),
        ("So your dog Rex died last winter, and you still miss him.", DOG, True),
        ("Rex was a good dog.", DOG, False),
        ("When is my sister Anna getting married?", "My sister Anna gets married in June", False),
        ("the job, you mean?", "I like my job", False),
        ("You said: I like my job!", "I like my job", True),
        ("I LIKE MY JOB", "I like my job.", True),
    ],
)
def test_a_text_says_a_memory_when_nothing_in_it_would_be_new(
    text: str, memory: str, said: bool
) -> None:
    assert says(text, memory) is said


def test_of_a_long_memory_only_what_would_be_quoted_counts() -> None:
    long = "My grandmother taught me " + "to bake bread and cakes and pies " * 3 + "in Lisbon"
    quoted = long[:88] + "…"
    assert says(f"You told me: {quoted}", long)


async def test_what_the_prompt_says_already_is_not_recalled(tmp_path: Path) -> None:
    store = await Store.open(tmp_path)
    await remembered(store, memory_of(DOG), memory_of(JOB))
    memory = Memory(MemorySettings(min_score=0.0, max_recalled=5), store)
    asked = "Rex and the bakery"
    both = await memory.recall("s", asked, **ASKED)
    assert {one.text for one in both} == {DOG, JOB}
    quoting = f"You once wrote that your dog Rex died last winter, and that you still miss {'him'}."
    (left,) = await memory.recall("s", asked, **ASKED, spoken=[asked, quoting])
    assert left.text == JOB
    await store.close()


def test_the_agents_words_do_not_become_a_memory_when_they_are_sent_back() -> None:
    line = "I was born by the sea and I love the smell of salt"
    assert to_keep(line, None, None) is not None
    assert to_keep(f'"{line}"', None, None, [f"Well... {line}! And you?"]) is None
    assert to_keep(f"{line}, as you say", None, None, [line]) is not None


TRIM: dict[str, Any] = {
    "CHAT__HISTORY_TOKENS": 200, "CHAT__TRIM_FRACTION": 0.4, "BLEND__SOFT_DEADLINE_MS": 5_000,
}  # fmt: skip


async def test_neither_this_message_nor_the_prompt_nor_the_agents_quote_comes_back(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    llm.default = Script(reply(*(["word "] * 30)).steps)
    side.enqueue("/v1/affect", Answer(body={**AFFECT, "valence": -0.9, "confidence": 1.0}))
    side.embed = lambda text, dim: [1.0] * dim  # all is alike: what it feels like decides
    async with open_limbic(llm, side, **TRIM) as limbic:
        session = limbic.session()
        await session.say(DOG)
        for n in range(4):
            await session.say(f"something else number {n}")
            await idle(limbic)
        opened = await session.open()
        assert opened.history_start > 1, "the first turn has left the prompt"
        assert [one.text for one in opened.expected] == [DOG]
        same = session.say(DOG + "!")
        await same
        assert DOG not in same.recalled, "the message itself says it"
        await session.undo()
        llm.enqueue(reply("You told me that your dog Rex died last winter; you still miss him."))
        asked = session.say("today I saw a dog that looked like Rex")
        await asked
        await idle(limbic)
        assert asked.recalled == (DOG,)
        assert "Rex died" in opened.history[-1].reply, "the quote is in the prompt"
        assert DOG not in [one.text for one in opened.expected]
        again = session.say("a dog like Rex, only smaller")
        await again
        assert DOG not in again.recalled
