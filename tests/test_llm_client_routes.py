"""The optional routes: prefill never fails a turn, and token counts are exact or safe."""

from __future__ import annotations

import asyncio

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain.llm import Prefill
from brain.schema import Message
from brain.token_count import MAX_CACHED, MAX_OBSERVED, TokenCache, TokenEstimate
from tests.fakes.llm_server import FakeLLM, Hold, Script, raw, refuse, reply
from tests.fakes.rig import MESSAGES, Rig, collect, llm_rig, loop_never_blocks

__all__ = ["loop_never_blocks"]

JSON = "application/json"


async def prefill(rig: Rig, deadline_ms: int = 1_000) -> Prefill | None:
    return await rig.client.prefill(MESSAGES, turn_id="t", deadline_ms=deadline_ms)


async def test_prefill_sends_the_messages_and_tells_what_it_did() -> None:
    async with FakeLLM() as server, llm_rig(server.url) as rig:
        assert await prefill(rig) == Prefill(tokens=3, cached=0)
        (request,) = server.others
    assert request.body == {
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Hello?"},
        ]
    }
    assert request.headers["X-Limbic-Turn"] == "t"


async def test_a_server_without_prefill_is_asked_once_until_its_address_changes() -> None:
    async with FakeLLM(managed=False) as foreign, FakeLLM() as own, llm_rig(foreign.url) as rig:
        assert [await prefill(rig) for _ in range(3)] == [None] * 3
        assert rig.emitted.named("llm_route_missing") == [{"route": "/prefill"}]
        assert rig.emitted.named("llm_prefill_failed") == []
        rig.source.url = own.url
        assert await prefill(rig) is not None


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_prefill_on_asks_every_time(status: int) -> None:
    async with FakeLLM() as server, llm_rig(server.url, prefill="on") as rig:
        server.prefill_script = refuse(status)
        assert [await prefill(rig), await prefill(rig)] == [None, None]
        assert len(server.others) == 2
        server.prefill_script = None
        assert await prefill(rig) is not None


async def test_prefill_off_never_asks() -> None:
    async with FakeLLM() as server, llm_rig(server.url, prefill="off") as rig:
        assert await prefill(rig) is None
        assert server.others == []


@pytest.mark.parametrize(
    "script",
    [
        refuse(500),
        refuse(429),
        refuse(400),
        raw(b"{", content_type=JSON),
        raw(b'{"tokens": -1, "cached": 0}', content_type=JSON),
        raw(b'{"tokens": 1.5, "cached": 0}', content_type=JSON),
        raw(b'{"tokens": null, "cached": 0}', content_type=JSON),
        raw(b"[]", content_type=JSON),
        raw(Hold()),
        Script(drop=True),
    ],
)
async def test_a_prefill_that_fails_is_emitted_not_raised_and_blames_nobody(
    script: Script,
) -> None:
    async with FakeLLM() as server, llm_rig(server.url, failures=1) as rig:
        server.prefill_script = script
        assert await prefill(rig, deadline_ms=60) is None
        (failure,) = rig.emitted.named("llm_prefill_failed")
        assert failure["turn_id"] == "t"
        assert rig.breaker.state == "closed"


async def test_a_server_considered_down_is_not_asked_to_prefill_or_count() -> None:
    async with FakeLLM() as server, llm_rig(server.url, failures=1) as rig:
        rig.breaker.failure()
        assert await prefill(rig) is None
        assert await rig.client.count_tokens(["a b c"]) == [TokenEstimate().count("a b c")]
        assert server.others == []


async def test_cancelling_a_prefill_closes_its_connection() -> None:
    async with FakeLLM() as server, llm_rig(server.url) as rig:
        server.prefill_script = raw(Hold())
        task = asyncio.create_task(prefill(rig, 10_000))
        while not server.others:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await server.until(left=1)


async def test_counts_are_the_servers_own_and_asked_once_a_text() -> None:
    async with FakeLLM() as server, llm_rig(server.url) as rig:
        assert await rig.client.count_tokens(["a b c", "d", "a b c", ""]) == [3, 1, 3, 0]
        assert await rig.client.count_tokens(["d", "e f", "a b c"]) == [1, 2, 3]
        assert [r.body["texts"] for r in server.others] == [["a b c", "d", ""], ["e f"]]
        assert await rig.client.count_tokens([]) == []


async def test_counts_of_another_server_are_asked_anew() -> None:
    async with FakeLLM() as one, FakeLLM() as two, llm_rig(one.url) as rig:
        await rig.client.count_tokens(["a b"])
        rig.source.url = two.url
        await collect(rig)
        two.tokenize_script = raw(b'{"counts": [9]}', content_type=JSON)
        assert await rig.client.count_tokens(["a b"]) == [9]


@pytest.mark.parametrize(
    "body", [b'{"counts": [1, 2]}', b'{"counts": [-1]}', b'{"counts": "x"}', b"nonsense"]
)
async def test_counts_that_cannot_be_are_replaced_by_an_estimate(body: bytes) -> None:
    async with FakeLLM() as server, llm_rig(server.url) as rig:
        server.tokenize_script = raw(body, content_type=JSON)
        assert await rig.client.count_tokens(["some words here"]) == [
            TokenEstimate().count("some words here")
        ]
        assert len(rig.emitted.named("llm_tokenize_failed")) == 1


async def test_without_the_route_counts_are_estimates_learned_from_reported_prompts() -> None:
    async with FakeLLM(managed=False) as server, llm_rig(server.url) as rig:
        text = "word " * 100
        (before,) = await rig.client.count_tokens([text])
        server.enqueue(reply("ok", counts=(40, 1, None)))
        await collect(rig)  # 14 characters of messages were 40 tokens
        (after,) = await rig.client.count_tokens([text])
        assert after > before
        assert len(rig.emitted.named("llm_route_missing")) == 1


@given(
    st.lists(st.text(min_size=1, max_size=60), min_size=1, max_size=MAX_OBSERVED),
    st.floats(0.1, 3.0),
    st.integers(0, 40),
)
def test_a_calibrated_estimate_is_never_below_what_was_reported(
    texts: list[str], ratio: float, template: int
) -> None:
    plain, learned = TokenEstimate(), TokenEstimate()
    reported = {text: round(plain.count(text) * ratio) + template for text in texts}
    for text in texts:
        learned.observe([text], reported[text])
    assert 0.4 <= learned.scale <= 4
    for text in texts:
        believed = min(reported[text], 4 * plain.count(text) - 4)
        assert learned.count(text) >= max(1, believed)


def test_scripts_other_than_latin_are_estimated_higher() -> None:
    estimate = TokenEstimate()
    assert estimate.count("") == 0
    assert estimate.count("word") < estimate.count("слов") < estimate.count("你好世界")
    assert estimate.count("你好世界") < estimate.count("👩🏽🚀🎉")


def test_nonsense_prompt_sizes_teach_nothing() -> None:
    estimate = TokenEstimate()
    estimate.observe([""], 5)
    estimate.observe(["text"], 0)
    assert estimate.scale == 1.0


def test_the_cache_keeps_what_was_used_last() -> None:
    cache = TokenCache()
    for n in range(MAX_CACHED):
        cache.put(str(n), n)
    assert cache.get("0") == 0
    cache.put("new", 1)
    assert cache.get("0") == 0
    assert cache.get("1") is None


async def test_a_prompt_of_many_messages_is_counted_in_one_request() -> None:
    async with FakeLLM() as server, llm_rig(server.url) as rig:
        history = [Message(role="user", content=f"message {n}") for n in range(200)]
        counts = await rig.client.count_tokens([m.content for m in history])
        assert counts == [2] * 200
        assert len(server.others) == 1
        assert orjson.dumps(server.others[0].body)
