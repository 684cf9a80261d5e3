"""Every way a stream can fail: typed, cut off in time, nothing retried after the first token."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from brain.clock import SystemClock
from brain.errors import (
    BreakerOpen,
    LimbicError,
    ProtocolError,
    RateLimited,
    RemoteRejected,
    RemoteTimeout,
    RemoteUnavailable,
    StreamBroken,
)
from tests.fakes.llm_server import (
    DONE,
    ROLE,
    Endless,
    FakeLLM,
    Hold,
    Pause,
    Reset,
    Script,
    broken,
    chunk,
    event,
    raw,
    refuse,
    reply,
    sliced,
    stalled,
)
from tests.fakes.rig import BEHAVIOUR, MESSAGES, Rig, collect, llm_rig, loop_never_blocks
from tests.fakes.tcp_proxy import Fault, TcpProxy

__all__ = ["loop_never_blocks"]


async def fail(rig: Rig, kind: type[LimbicError]) -> tuple[Any, Any]:
    """Run a turn that must fail with ``kind``; what had arrived, and the error."""
    stream = rig.client.stream(MESSAGES, behaviour=BEHAVIOUR, turn_id="t")
    with pytest.raises(kind) as caught:
        async for _ in stream:
            pass
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert caught.value.remote == "llm"  # type: ignore[attr-defined]
    return stream, caught.value


BAD_BEFORE = {
    "invalid json": (raw(b"data: {oops\n\n"), ProtocolError),
    "not a stream": (raw(b"hello world, no events\n\n"), ProtocolError),
    "a number": (raw(event(7)), ProtocolError),
    "wrong shape": (raw(event({"choices": [7]})), ProtocolError),
    "text is no string": (raw(event({"choices": [{"delta": {"content": 7}}]})), ProtocolError),
    "invalid utf-8": (raw(b'data: {"choices":[{"delta":{"content":"\xff"}}]}\n\n'), ProtocolError),
    "web page": (raw(b"<html></html>", content_type="text/html"), ProtocolError),
    "oversize event": (raw(b"data: " + b"x" * 1_200_000), ProtocolError),
    "endless comments": (raw(Endless(b":" + b"x" * 60_000 + b"\n\n")), ProtocolError),
    "only done": (raw(DONE), ProtocolError),
    "finished without a word": (raw(ROLE, chunk(finish="stop"), DONE), ProtocolError),
    "error event": (raw(event({"error": {"message": "bad", "code": "odd"}})), ProtocolError),
    "refusal event": (raw(event({"error": {"message": "bad", "code": 400}})), RemoteRejected),
    "json error": (
        raw(orjson.dumps({"error": {"message": "too long"}}), content_type="application/json"),
        ProtocolError,
    ),
    "broken json answer": (raw(b'{"choices":', content_type="application/json"), ProtocolError),
    "empty json answer": (raw(b"", content_type="application/json"), ProtocolError),
}


@pytest.mark.parametrize("name", BAD_BEFORE)
async def test_a_bad_answer_before_the_first_token_is_typed_and_not_asked_again(name: str) -> None:
    script, kind = BAD_BEFORE[name]
    async with FakeLLM() as server, llm_rig(server.url) as rig:
        server.enqueue(script)
        stream, _ = await fail(rig, kind)
        assert len(server.requests) == 1
        assert stream.text == ""


RETRIED_BEFORE = {
    "empty stream": (raw(), RemoteUnavailable),
    "only a role": (raw(ROLE), RemoteUnavailable),
    "cut inside an event": (raw(b'data: {"choices":[{"del'), RemoteUnavailable),
    "reset after the headers": (raw(Reset()), RemoteUnavailable),
    "reset after the role": (raw(ROLE, Reset()), RemoteUnavailable),
    "busy inside the stream": (raw(event({"error": {"code": 429}})), RateLimited),
    "failed inside the stream": (raw(event({"error": {"code": 500}})), RemoteUnavailable),
}


@pytest.mark.parametrize("name", RETRIED_BEFORE)
async def test_what_may_pass_is_retried_before_the_first_token(name: str) -> None:
    script, kind = RETRIED_BEFORE[name]
    async with FakeLLM() as server, llm_rig(server.url, max_attempts=2) as rig:
        server.enqueue(script, reply("fine"))
        stream = await collect(rig)
        assert (stream.text, stream.retries) == ("fine", 1)
        server.enqueue(*[script] * 4)
        await fail(rig, kind)


BROKEN_AFTER = {
    "reset": broken("so ", "far"),
    "ended without finish": raw(chunk("so "), chunk("far")),
    "cut inside an event": raw(chunk("so "), chunk("far"), b'data: {"choi'),
    "invalid json": raw(chunk("so "), chunk("far"), b"data: }\n\n"),
    "error event": raw(chunk("so "), chunk("far"), event({"error": {"code": 500}})),
    "busy event": raw(chunk("so "), chunk("far"), event({"error": {"code": 429}})),
    "oversize event": raw(chunk("so "), chunk("far"), b"data: " + b"x" * 1_200_000),
}


@pytest.mark.parametrize("together", [False, True], ids=["spread", "one-read"])
@pytest.mark.parametrize("name", BROKEN_AFTER)
async def test_after_the_first_token_a_failure_keeps_the_text_and_is_never_retried(
    name: str, together: bool
) -> None:
    script = BROKEN_AFTER[name]
    if not together:
        spread = [part for step in script.steps for part in (step, Pause(0.002))]
        script = raw(*spread)
    async with FakeLLM() as server, llm_rig(server.url) as rig:
        server.enqueue(script)
        stream, error = await fail(rig, StreamBroken)
        assert stream.text == "so far"
        assert stream.retries == 0
        assert len(server.requests) == 1
        assert "broke off" in str(error)


async def test_text_that_waited_unread_when_the_connection_broke_is_kept() -> None:
    async with FakeLLM() as server, llm_rig(server.url) as rig:
        server.enqueue(raw(chunk("one "), Pause(0.005), chunk("two "), chunk("three"), Reset()))
        stream = rig.client.stream(MESSAGES, behaviour=BEHAVIOUR, turn_id="t")
        assert await anext(stream) == "one "
        await asyncio.sleep(0.05)  # a slow consumer: the rest and the reset arrive meanwhile
        assert await anext(stream) == "two three"
        with pytest.raises(StreamBroken):
            await anext(stream)


async def test_an_endless_reply_is_cut_off() -> None:
    async with FakeLLM() as server, llm_rig(server.url) as rig:
        server.enqueue(raw(Endless(chunk("x" * 8_000))))
        stream, _ = await fail(rig, StreamBroken)
        assert 128_000 < len(stream.text) < 128_000 + 200_000
        await server.until(left=1)


async def test_what_follows_a_finish_reason_cannot_spoil_the_reply() -> None:
    async with FakeLLM() as server, llm_rig(server.url) as rig:
        for after in (Reset(), b"data: {oops\n\n", Endless(b": x\n\n" * 20_000)):
            server.enqueue(raw(chunk("whole", finish="stop"), after))
            assert (await collect(rig)).text == "whole"


@pytest.mark.parametrize("wait", [Hold(), Pause(5)], ids=["held", "late"])
async def test_no_first_token_in_time_is_a_timeout_that_closes_the_connection(wait: Any) -> None:
    async with FakeLLM() as server, llm_rig(server.url, first_token_timeout_ms=40) as rig:
        for script in (raw(wait), raw(ROLE, wait, chunk("late"))):
            server.enqueue(script)
            _, error = await fail(rig, RemoteTimeout)
            assert error.phase == "first_token"
        await server.until(left=2)
        assert len(server.requests) == 2


async def test_no_headers_in_time_is_a_first_token_timeout() -> None:
    async with (
        FakeLLM() as server,
        TcpProxy(int(server.url.rsplit(":", 1)[1]), Fault(stall_after=0)) as proxy,
        llm_rig(proxy.url, first_token_timeout_ms=40) as rig,
    ):
        _, error = await fail(rig, RemoteTimeout)
        assert error.phase == "first_token"


async def test_a_server_that_cannot_be_connected_to_in_time_is_a_connect_timeout() -> None:
    async with llm_rig("http://127.0.0.1:9", connect_timeout_ms=30) as rig:

        async def never(*_: object, **__: object) -> None:
            await asyncio.Event().wait()

        assert rig.http.connector is not None
        rig.http.connector._create_connection = never  # type: ignore[assignment, method-assign]
        _, error = await fail(rig, RemoteTimeout)
        assert error.phase == "connect"


async def test_silence_between_tokens_is_an_idle_timeout() -> None:
    async with FakeLLM() as server, llm_rig(server.url, idle_timeout_ms=40) as rig:
        server.enqueue(stalled("so ", "far"))
        stream, error = await fail(rig, RemoteTimeout)
        assert (error.phase, stream.text) == ("idle", "so far")
        await server.until(left=1)


async def test_bytes_and_comments_without_a_token_do_not_put_off_the_idle_limit() -> None:
    drip = [step for _ in range(200) for step in (b": alive\n\n", Pause(0.005))]
    async with FakeLLM() as server, llm_rig(server.url, idle_timeout_ms=40) as rig:
        server.enqueue(raw(chunk("so far"), *drip, chunk("late")))
        stream, error = await fail(rig, RemoteTimeout)
        assert (error.phase, stream.text) == ("idle", "so far")


async def test_tokens_in_time_put_off_the_idle_limit() -> None:
    async with FakeLLM() as server, llm_rig(server.url, idle_timeout_ms=150) as rig:
        server.enqueue(reply(*["x"] * 12, token_s=0.02))
        assert (await collect(rig)).text == "x" * 12


async def test_time_the_consumer_takes_is_not_idle_time() -> None:
    async with FakeLLM() as server, llm_rig(server.url, idle_timeout_ms=40) as rig:
        server.enqueue(raw(chunk("a"), Pause(0.12), chunk("b"), Pause(0.01), chunk("c"), DONE))
        async with rig.client.stream(MESSAGES, behaviour=BEHAVIOUR, turn_id="t") as stream:
            async for _ in stream:
                await asyncio.sleep(0.13)
        assert stream.text == "abc"


async def test_a_reply_that_takes_too_long_in_all_is_cut_off() -> None:
    async with FakeLLM() as server, llm_rig(server.url, total_timeout_ms=300) as rig:
        server.enqueue(reply(*["x"] * 500, token_s=0.01))
        stream, error = await fail(rig, RemoteTimeout)
        assert error.phase == "total"
        assert stream.text.startswith("xx")
        await server.until(left=1)


async def test_the_total_limit_holds_before_the_first_token_too() -> None:
    async with FakeLLM() as server, llm_rig(server.url, total_timeout_ms=40) as rig:
        server.enqueue(raw(Hold()))
        _, error = await fail(rig, RemoteTimeout)
        assert error.phase == "total"


@pytest.mark.parametrize("script", [stalled("a"), raw(Hold()), sliced(stalled("a" * 99))])
async def test_a_cancelled_turn_closes_the_connection_at_once(script: Script) -> None:
    async with FakeLLM() as server, llm_rig(server.url) as rig:
        server.enqueue(script)
        task = asyncio.create_task(collect(rig))
        await server.until(requests=1)
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await server.until(left=1)
        assert rig.breaker.state == "closed"
        assert (await collect(rig)).text == "Hello there!"


async def test_leaving_the_block_early_closes_the_connection_at_once() -> None:
    async with FakeLLM() as server, llm_rig(server.url) as rig:
        server.enqueue(raw(chunk("first"), Hold()))
        async with rig.client.stream(MESSAGES, behaviour=BEHAVIOUR, turn_id="t") as stream:
            assert await anext(stream) == "first"
        await server.until(left=1)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_a_stream_never_iterated_asks_nothing() -> None:
    async with FakeLLM() as server, llm_rig(server.url) as rig:
        async with rig.client.stream(MESSAGES, behaviour=BEHAVIOUR, turn_id="t"):
            pass
        assert server.requests == []


async def test_no_task_or_timer_is_left_behind() -> None:
    async with FakeLLM() as server, llm_rig(server.url) as rig:
        for script in (reply("a"), broken("a"), raw(b"data: }\n\n"), refuse(400)):
            before = asyncio.all_tasks()
            server.enqueue(script)
            stream = rig.client.stream(MESSAGES, behaviour=BEHAVIOUR, turn_id="t")
            try:
                async for _ in stream:
                    assert asyncio.all_tasks() - before <= server_tasks()
            except LimbicError:
                pass
            timer = stream._body._timer if stream._body else None
            assert timer is None or timer.cancelled()


def server_tasks() -> set[asyncio.Task[Any]]:
    return {t for t in asyncio.all_tasks() if "RequestHandler" in repr(t.get_coro())}


async def test_repeated_failures_open_the_breaker_and_a_probe_closes_it() -> None:
    async with FakeLLM() as server, llm_rig(server.url, failures=5, max_attempts=1) as rig:
        server.enqueue(*[broken("a"), refuse(500), raw(b"data: }\n\n"), raw(), broken("b")])
        for _ in range(5):
            assert rig.breaker.state == "closed"
            with pytest.raises(LimbicError):
                await collect(rig)
        await fail(rig, BreakerOpen)
        assert len(server.requests) == 5
        await rig.clock.sleep(5)
        assert (await collect(rig)).text == "Hello there!"
        assert rig.breaker.state == "closed"


async def test_refusals_and_cancellations_do_not_open_the_breaker() -> None:
    async with FakeLLM() as server, llm_rig(server.url, failures=1) as rig:
        server.enqueue(refuse(400))
        await fail(rig, RemoteRejected)
        server.enqueue(stalled("a"))
        async with rig.client.stream(MESSAGES, behaviour=BEHAVIOUR, turn_id="t") as stream:
            await anext(stream)
        assert rig.breaker.state == "closed"


async def test_a_probe_that_begins_to_speak_lets_other_turns_in() -> None:
    async with FakeLLM() as server, llm_rig(server.url, failures=1, max_attempts=1) as rig:
        server.enqueue(refuse(500), stalled("slow probe"))
        await fail(rig, RemoteUnavailable)
        await rig.clock.sleep(5)
        async with rig.client.stream(MESSAGES, behaviour=BEHAVIOUR, turn_id="t") as probe:
            await anext(probe)
            assert (await collect(rig)).text == "Hello there!"


async def test_limits_run_on_the_real_clock_too() -> None:
    async with (
        FakeLLM() as server,
        llm_rig(server.url, clock=SystemClock(), first_token_timeout_ms=40) as rig,
    ):
        server.enqueue(raw(Hold()))
        await fail(rig, RemoteTimeout)
