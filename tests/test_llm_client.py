"""Streaming: what a good reply looks like, however its bytes come, and what the server is asked."""

from __future__ import annotations

import asyncio
import json

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brain.clock import SystemClock
from brain.errors import InputError, LimbicError
from brain.llm_events import CompletionEvents
from brain.schema import Message
from tests.fakes.llm_server import (
    DONE,
    ROLE,
    FakeLLM,
    Hold,
    Pause,
    Script,
    chunk,
    event,
    raw,
    reply,
    sliced,
    stalled,
    usage,
)
from tests.fakes.rig import BEHAVIOUR, MESSAGES, collect, llm_rig, loop_never_blocks
from tests.fakes.tcp_proxy import Fault, TcpProxy

__all__ = ["loop_never_blocks"]


async def test_a_reply_streams_with_its_facts() -> None:
    async with FakeLLM() as server, llm_rig(server.url, clock=SystemClock()) as rig:
        server.enqueue(reply("Hel", "lo", ttft_s=0.001, token_s=0.001, counts=(12, 2, 8)))
        async with rig.client.stream(MESSAGES, behaviour=BEHAVIOUR, turn_id="t1") as stream:
            pieces = [piece async for piece in stream]
    assert "".join(pieces) == stream.text == "Hello"
    assert (stream.finish_reason, stream.model, stream.retries) == ("stop", "scripted", 0)
    assert (stream.prompt_tokens, stream.completion_tokens, stream.cached_tokens) == (12, 2, 8)
    assert stream.ttft_ms is not None and stream.ttft_ms > 0


async def test_facts_that_the_server_does_not_tell_are_none() -> None:
    async with FakeLLM() as server, llm_rig(server.url) as rig:
        server.enqueue(raw(event({"choices": [{"delta": {"content": "hi"}}]}), DONE))
        stream = await collect(rig)
    assert stream.text == "hi"
    assert stream.finish_reason is stream.model is stream.prompt_tokens is None
    assert stream.completion_tokens is stream.cached_tokens is None


async def test_the_request_holds_messages_sampling_and_marks() -> None:
    async with FakeLLM() as server, llm_rig(server.url, token="key", model="m1") as rig:
        await collect(rig, turn_id="turn-7")
        (request,) = server.requests
    assert request.body == {
        "model": "m1",
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Hello?"},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 64,
        "frequency_penalty": 0.6,
    }
    assert request.headers["Authorization"] == "Bearer key"
    assert request.headers["X-Limbic-Turn"] == "turn-7"
    assert 0 < int(request.headers["X-Limbic-Deadline-Ms"]) <= 180_000


async def test_a_managed_server_is_not_told_which_file_it_serves() -> None:
    async with FakeLLM() as server, llm_rig(server.url, base_url=None) as rig:
        await collect(rig)
        assert server.requests[0].body["model"] == "default"


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
async def test_the_base_address_may_or_may_not_end_in_its_version(suffix: str) -> None:
    async with FakeLLM() as server, llm_rig(server.url + suffix) as rig:
        assert (await collect(rig)).text == "Hello there!"
        assert await rig.client.prefill(MESSAGES, turn_id="t", deadline_ms=1_000) is not None
        assert [r.path for r in server.requests + server.others] == [
            "/v1/chat/completions",
            "/v1/prefill",
        ]


HARD = ("Grüße ", "你好", "👩\u200d👧", "\u0000", "é\r\n", "\u2028", "𝄞")


@pytest.mark.parametrize("size", [1, 2, 3, 7])
async def test_characters_split_between_packets_arrive_whole(size: int) -> None:
    async with FakeLLM() as server, llm_rig(server.url) as rig:
        server.enqueue(sliced(reply(*HARD), size))
        assert (await collect(rig)).text == "".join(HARD)


async def test_a_proxy_that_passes_single_bytes_changes_nothing() -> None:
    async with (
        FakeLLM() as server,
        TcpProxy(int(server.url.rsplit(":", 1)[1]), Fault(slice_bytes=1)) as proxy,
        llm_rig(proxy.url) as rig,
    ):
        server.enqueue(reply(*HARD))
        assert (await collect(rig)).text == "".join(HARD)


async def test_a_surrogate_pair_split_between_two_events_is_joined() -> None:
    first = rb'data: {"choices":[{"delta":{"content":"a\ud83d"}}]}' + b"\n\n"
    second = rb'data: {"choices":[{"delta":{"content":"\uDE00b"}}]}' + b"\n\n"
    async with FakeLLM() as server, llm_rig(server.url) as rig:
        server.enqueue(raw(first, second, DONE))
        assert (await collect(rig)).text == "a😀b"


@given(st.lists(st.sampled_from(["\ud83d", "\ude00", "a", "é", "😀", "x\ud83d"]), max_size=8))
def test_text_never_holds_a_surrogate_and_loses_nothing_else(pieces: list[str]) -> None:
    events = CompletionEvents(remote="llm")
    body = '{"choices":[{"delta":{"content":%s}}]}'
    text = "".join(events.take((body % json.dumps(piece)).encode()) for piece in pieces)
    text.encode()
    whole = "".join(pieces).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    assert text == whole or text == whole[:-1]


def test_facts_that_no_log_or_database_can_hold_are_made_whole_or_left_out() -> None:
    events = CompletionEvents(remote="llm")
    events.take(
        rb'{"model":"m\ud800\ud83d\ude00","choices":[{"finish_reason":"sto\udfffp"}],'
        b'"usage":{"prompt_tokens":9223372036854775808,"completion_tokens":2147483648,'
        b'"prompt_tokens_details":{"cached_tokens":2147483647}}}'
    )
    assert (events.model, events.finish_reason) == ("m\ufffd😀", "sto\ufffdp")
    assert (events.prompt_tokens, events.completion_tokens) == (None, None)
    assert events.cached_tokens == 2**31 - 1


@given(
    st.binary(max_size=80)
    | st.recursive(
        st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "choices",
                        "delta",
                        "content",
                        "error",
                        "usage",
                        "model",
                        "finish_reason",
                        "message",
                        "prompt_tokens",
                        "prompt_tokens_details",
                    ]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    ).map(orjson.dumps)
)
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_an_event_of_any_shape_is_taken_or_refused_with_a_typed_error(data: bytes) -> None:
    events = CompletionEvents(remote="llm")
    try:
        assert isinstance(events.take(data), str)
    except LimbicError as error:
        assert str(error).startswith("the llm ")


async def test_crlf_comments_and_events_in_one_packet_are_understood() -> None:
    body = b": hi\r\n\r\n" + (chunk("a") + chunk("b") + chunk(finish="stop") + DONE).replace(
        b"\n", b"\r\n"
    )
    async with FakeLLM() as server, llm_rig(server.url) as rig:
        server.enqueue(raw(body))
        assert (await collect(rig)).text == "ab"


async def test_a_server_that_does_not_stream_is_one_piece() -> None:
    answer = {
        "model": "plain",
        "choices": [{"message": {"content": "whole"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1},
    }
    async with FakeLLM() as server, llm_rig(server.url) as rig:
        server.enqueue(raw(orjson.dumps(answer), content_type="application/json"))
        stream = await collect(rig)
    assert (stream.text, stream.finish_reason, stream.prompt_tokens) == ("whole", "stop", 3)


@pytest.mark.parametrize(
    "script",
    [
        reply("all", done=False),
        raw(chunk("all"), chunk(finish="stop").rstrip()),
        raw(chunk("all"), DONE.rstrip()),
        raw(chunk("all", finish="length")),
        raw(chunk("all"), DONE),
    ],
    ids=["no-done", "no-last-blank-line", "no-blank-after-done", "with-text", "no-finish"],
)
async def test_a_reply_is_complete_with_a_finish_reason_or_done(script: Script) -> None:
    async with FakeLLM() as server, llm_rig(server.url) as rig:
        server.enqueue(script)
        assert (await collect(rig)).text == "all"


async def test_usage_after_the_finish_reason_is_waited_for_but_not_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("brain.llm_body.TAIL_S", 0.03)
    async with FakeLLM() as server, llm_rig(server.url) as rig:
        server.enqueue(raw(chunk("all"), chunk(finish="stop"), usage(5, 1), DONE))
        assert (await collect(rig)).prompt_tokens == 5
        server.enqueue(stalled_after_finish())
        stream = await collect(rig)
        assert (stream.text, stream.finish_reason) == ("all", "stop")


def stalled_after_finish() -> Script:
    held = stalled("all")
    return raw(held.steps[0], chunk(finish="stop"), *held.steps[1:])


async def test_reasoning_and_empty_pieces_are_not_text() -> None:
    thinking = event({"choices": [{"delta": {"reasoning_content": "hm"}}]})
    async with FakeLLM() as server, llm_rig(server.url) as rig:
        server.enqueue(raw(ROLE, thinking, chunk(""), chunk("yes"), chunk(finish="stop"), DONE))
        async with rig.client.stream(MESSAGES, behaviour=BEHAVIOUR, turn_id="t") as stream:
            assert [piece async for piece in stream] == ["yes"]


async def test_turns_share_one_connection() -> None:
    async with FakeLLM() as server, llm_rig(server.url) as rig:
        for turn in range(5):
            await collect(rig, turn_id=f"t{turn}")
        assert len({request.peer for request in server.requests}) == 1


async def test_a_connection_whose_body_does_not_end_after_done_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("brain.llm_body.LINGER_S", 0.01)
    async with FakeLLM() as server, llm_rig(server.url) as rig:
        held = stalled("all")
        server.enqueue(raw(held.steps[0], DONE, *held.steps[1:]))
        assert (await collect(rig)).text == "all"
        await server.until(left=1)


async def test_the_end_of_the_body_may_come_a_moment_after_done() -> None:
    async with FakeLLM() as server, llm_rig(server.url) as rig:
        server.enqueue(raw(chunk("all", finish="stop"), DONE, Pause(0.02)), reply("next"))
        await collect(rig)
        await collect(rig)
        assert len({request.peer for request in server.requests}) == 1


async def test_leaving_after_the_last_text_leaves_nothing_open() -> None:
    async with FakeLLM() as server, llm_rig(server.url) as rig:
        server.enqueue(raw(chunk("all", finish="stop") + DONE, Hold()))
        async with rig.client.stream(MESSAGES, behaviour=BEHAVIOUR, turn_id="t") as stream:
            assert await anext(stream) == "all"
        await server.until(left=1)


async def test_iterating_again_after_the_end_gives_nothing() -> None:
    async with FakeLLM() as server, llm_rig(server.url) as rig:
        stream = await collect(rig)
        assert [piece async for piece in stream] == []
        assert len(server.requests) == 1


async def test_many_turns_at_once_do_not_mix() -> None:
    async with FakeLLM() as server, llm_rig(server.url) as rig:
        server.enqueue(*[reply(f"{n}-", "a", f"-{n}", token_s=0.001) for n in range(32)])
        streams = await asyncio.gather(*[collect(rig, turn_id=f"t{n}") for n in range(32)])
    assert sorted(s.text for s in streams) == sorted(f"{n}-a-{n}" for n in range(32))


async def test_text_that_json_cannot_carry_is_refused_before_anything_is_sent() -> None:
    async with FakeLLM() as server, llm_rig(server.url) as rig:
        with pytest.raises(InputError):
            rig.client.stream(
                [Message.model_construct(role="user", content="\ud800")],
                behaviour=BEHAVIOUR,
                turn_id="t",
            )
        assert server.requests == []


async def test_a_restarted_server_is_found_at_its_new_address() -> None:
    async with FakeLLM() as old, FakeLLM() as new, llm_rig(old.url) as rig:
        await collect(rig)
        rig.source.url = new.url
        await collect(rig)
        assert (len(old.requests), len(new.requests)) == (1, 1)
