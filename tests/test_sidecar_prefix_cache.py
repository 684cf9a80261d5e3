"""Whatever was asked before, the live sequence is right, and little is evaluated twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecars.prefix_cache import PrefixCache, common_prefix
from tests.fakes.scripted_model import ScriptedModel

PROMPT = st.lists(st.integers(0, 2), min_size=1, max_size=30)


def run(cache: PrefixCache, prompt: list[int], *, reply: tuple[int, ...] = ()) -> int:
    cached = cache.adopt(prompt, reusable=len(prompt) - 1)
    assert cache.extend(prompt[cached:], logits=True)
    for token in reply:
        assert cache.extend([token], logits=True, generated=True)
    return cached


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)))
def test_common_prefix_is_the_longest_one(a: list[int], b: list[int]) -> None:
    plain = 0
    while plain < min(len(a), len(b)) and a[plain] == b[plain]:
        plain += 1
    assert common_prefix(a, b) == plain


@given(st.lists(st.tuples(PROMPT, PROMPT), max_size=12), st.booleans(), st.integers(0, 400))
def test_after_any_history_the_model_holds_exactly_the_prompt_and_reply(
    turns: list[tuple[list[int], list[int]]], can_truncate: bool, budget: int
) -> None:
    model = ScriptedModel(can_truncate=can_truncate)
    cache = PrefixCache(model, budget_bytes=budget, worth_saving=3)
    for prompt, reply in turns:
        run(cache, prompt, reply=tuple(reply))
        assert model.live == prompt + reply
        assert cache.length == len(model.live)
        assert cache.saved_bytes <= budget


def test_the_next_turn_of_a_conversation_evaluates_only_what_is_new() -> None:
    model = ScriptedModel()
    cache = PrefixCache(model, budget_bytes=10_000, worth_saving=4)
    run(cache, [1] * 100, reply=(7,) * 20)
    assert run(cache, [1] * 100 + [8, 9]) == 100
    assert cache.saved_bytes == 0, "a reply that is not repeated is not worth a copy"


def test_two_alternating_conversations_do_not_evict_each_other() -> None:
    model = ScriptedModel()
    cache = PrefixCache(model, budget_bytes=100_000, worth_saving=10)
    a, b = [1] * 5 + [2] * 100, [1] * 5 + [3] * 100
    run(cache, a)
    run(cache, b)
    for turn in range(1, 4):
        a += [4, turn]
        b += [5, turn]
        assert run(cache, a) >= 100 + 2 * (turn - 1)
        assert run(cache, b) >= 100 + 2 * (turn - 1)
    assert model.restored == 6


def test_the_least_recently_used_state_goes_first() -> None:
    model = ScriptedModel()
    cache = PrefixCache(model, budget_bytes=2 * 10 * 50, worth_saving=10)
    prompts = [[n] * 50 for n in range(4)]
    for prompt in prompts:
        run(cache, prompt)
    assert cache.saved_bytes == 1000
    assert run(cache, prompts[0]) == 0, "the oldest of three copies had to go"
    assert run(cache, prompts[2]) == 49


def test_a_shared_beginning_is_reused_without_losing_its_owner() -> None:
    model = ScriptedModel()
    cache = PrefixCache(model, budget_bytes=100_000, worth_saving=10)
    persona = [9] * 40
    run(cache, persona + [1] * 60)
    run(cache, [3] * 50)
    assert run(cache, persona + [2] * 60) == 40
    assert run(cache, persona + [1] * 60) == 99


def test_a_model_failure_leaves_an_empty_sequence_that_works_again() -> None:
    model = ScriptedModel()
    cache = PrefixCache(model, budget_bytes=0)
    run(cache, [1, 2, 3])
    model.fail_on = 5
    with pytest.raises(Exception, match="fails on this token"):
        run(cache, [1, 2, 5])
    assert cache.length == 0
    assert run(cache, [1, 2, 3]) == 0
    assert model.live == [1, 2, 3]


def test_a_beginning_that_was_borrowed_counts_as_used() -> None:
    model = ScriptedModel()
    cache = PrefixCache(model, budget_bytes=2 * 10 * 50, worth_saving=10)
    persona = [9] * 30
    owner = persona + [1] * 20
    for prompt in (owner, [2] * 50, [3] * 50, persona + [5] * 20, [4] * 50):
        run(cache, prompt)
    assert run(cache, owner) == 49, "the copy of the owner is newer than that of [3]"


def test_what_was_cut_off_is_no_reason_to_keep_the_rest() -> None:
    model = ScriptedModel()
    cache = PrefixCache(model, budget_bytes=0, worth_saving=10)
    run(cache, [1] * 50)
    assert [(len(s.tokens), s.prompt_length) for s in cache.plan()] == [(50, 50)]
    assert cache.adopt([1] * 5 + [2] * 50, reusable=54) == 5
    assert cache.plan() == []


@pytest.mark.parametrize(("can_truncate", "left"), [(True, 3), (False, 0)])
def test_after_an_interruption_the_cache_knows_what_the_model_still_has(
    can_truncate: bool, left: int
) -> None:
    model = ScriptedModel(can_truncate=can_truncate)
    cache = PrefixCache(model, budget_bytes=0)
    run(cache, [1, 2, 3])
    model.interrupt()
    assert not cache.extend([4, 5], logits=True)
    assert cache.length == len(model.live) == left
    model.rearm()
    assert run(cache, [1, 2, 3, 4]) == left


def test_a_cache_holds_what_its_live_sequence_begins_with() -> None:
    cache = PrefixCache(ScriptedModel(), budget_bytes=0)
    run(cache, [1, 2, 3])
    assert cache.holds([1, 2, 3]) and cache.holds([1, 2]) and cache.holds([])
    assert not cache.holds([1, 2, 3, 4]) and not cache.holds([1, 3]) and not cache.holds([2])
