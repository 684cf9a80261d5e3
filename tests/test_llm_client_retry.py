"""Retries: which errors, how long between them, and when to stop."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from brain.breaker import CircuitBreaker
from brain.errors import (
    LimbicError,
    RateLimited,
    RemoteRejected,
    RemoteUnavailable,
    SidecarDown,
    SidecarFailed,
)
from tests.fakes.clock import ManualClock
from tests.fakes.llm_server import DROP, FakeLLM, Hold, Script, raw, refuse, reply
from tests.fakes.rig import Rig, collect, llm_rig, loop_never_blocks

__all__ = ["loop_never_blocks"]


def slept(rig: Rig) -> list[float]:
    assert isinstance(rig.clock, ManualClock)
    return rig.clock.slept


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_a_passing_refusal_is_retried_until_it_works(status: int) -> None:
    async with FakeLLM() as server, llm_rig(server.url) as rig:
        server.enqueue(refuse(status), refuse(status), reply("fine"))
        stream = await collect(rig)
        assert (stream.text, stream.retries, len(server.requests)) == ("fine", 2, 3)
        assert [e["attempt"] for e in rig.emitted.named("llm_retry")] == [1, 2]
        assert len({request.body["messages"][1]["content"] for request in server.requests}) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 413, 422])
async def test_a_4xx_is_never_retried(status: int) -> None:
    async with FakeLLM() as server, llm_rig(server.url) as rig:
        server.enqueue(refuse(status, "because"))
        with pytest.raises(RemoteRejected, match="because") as caught:
            await collect(rig)
        assert caught.value.status == status
        assert len(server.requests) == 1
        assert slept(rig) == []


async def test_the_last_error_is_raised_after_the_allowed_attempts() -> None:
    async with FakeLLM() as server, llm_rig(server.url, max_attempts=3) as rig:
        server.enqueue(*[refuse(503, f"try {n}") for n in range(9)])
        with pytest.raises(RemoteUnavailable, match="try 2"):
            await collect(rig)
        assert len(server.requests) == 3
        assert len(slept(rig)) == 2


async def test_backoff_doubles_to_its_ceiling_with_full_jitter() -> None:
    seed = 7
    ceilings = [0.2, 0.4, 0.8, 1.0, 1.0]
    rng = random.Random(seed)
    async with (
        FakeLLM() as server,
        llm_rig(
            server.url,
            clock=ManualClock(jump=True, seed=seed),
            max_attempts=6,
            backoff_base_ms=200,
            backoff_max_ms=1_000,
        ) as rig,
    ):
        server.enqueue(*[refuse(500)] * 6)
        with pytest.raises(RemoteUnavailable):
            await collect(rig)
        assert slept(rig) == [rng.uniform(0, ceiling) for ceiling in ceilings]


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_is_honoured(status: int) -> None:
    async with FakeLLM() as server, llm_rig(server.url, backoff_base_ms=100) as rig:
        server.enqueue(refuse(status, retry_after="7"), reply("fine"))
        assert (await collect(rig)).text == "fine"
        (wait_s,) = slept(rig)
        assert 7 <= wait_s <= 7.1


async def test_a_retry_after_beyond_the_total_limit_is_not_waited_for() -> None:
    async with FakeLLM() as server, llm_rig(server.url, total_timeout_ms=10_000) as rig:
        server.enqueue(refuse(429, retry_after="30"))
        with pytest.raises(RateLimited, match="try again in 30 s") as caught:
            await collect(rig)
        assert caught.value.retry_after_s == 30
        assert slept(rig) == []


async def test_waits_between_tries_use_up_the_total_limit() -> None:
    async with (
        FakeLLM() as server,
        llm_rig(server.url, total_timeout_ms=10_000, max_attempts=10) as rig,
    ):
        server.enqueue(*[refuse(429, retry_after="4")] * 10)
        with pytest.raises(RateLimited):
            await collect(rig)
        assert len(server.requests) == 3
        left = [int(r.headers["X-Limbic-Deadline-Ms"]) for r in server.requests]
        assert left == sorted(left, reverse=True)
        assert left[2] < 2_100


async def test_retrying_stops_when_the_breaker_opens() -> None:
    async with FakeLLM() as server, llm_rig(server.url, failures=2, max_attempts=9) as rig:
        server.enqueue(*[refuse(500, "sick")] * 9)
        with pytest.raises(RemoteUnavailable, match="sick"):
            await collect(rig)
        assert len(server.requests) == 2
        assert rig.breaker.state == "open"


async def test_a_refused_connection_is_retried_and_found_again() -> None:
    server = await FakeLLM().start()
    await server.stop()
    async with llm_rig(server.url) as rig:
        clock = rig.clock
        assert isinstance(clock, ManualClock)
        sleep = clock.sleep

        async def restart_meanwhile(seconds: float) -> None:
            await sleep(seconds)
            if len(clock.slept) == 2:
                await server.start()

        clock.sleep = restart_meanwhile  # type: ignore[method-assign]
        stream = await collect(rig)
        assert (stream.text, stream.retries) == ("Hello there!", 2)
        await server.stop()


async def test_a_sidecar_that_restarts_is_waited_for_and_counts_against_nobody() -> None:
    async with FakeLLM() as server, llm_rig(server.url, failures=1) as rig:
        rig.source.error = SidecarDown("restarting", name="llm")
        clock = rig.clock
        assert isinstance(clock, ManualClock)
        sleep = clock.sleep

        async def comes_back(seconds: float) -> None:
            await sleep(seconds)
            rig.source.error = None

        clock.sleep = comes_back  # type: ignore[method-assign]
        stream = await collect(rig)
        assert (stream.text, stream.retries) == ("Hello there!", 1)
        assert rig.breaker.state == "closed"


async def test_a_sidecar_that_failed_for_good_is_not_retried() -> None:
    async with llm_rig("http://127.0.0.1:9") as rig:
        rig.source.error = SidecarFailed("exit 78: the model file is altered", name="llm")
        with pytest.raises(SidecarFailed):
            await collect(rig)
        assert rig.source.asked == 1


async def test_cancelling_during_a_backoff_ends_the_turn() -> None:
    clock = ManualClock()
    async with FakeLLM() as server, llm_rig(server.url, clock=clock) as rig:
        server.enqueue(refuse(500))
        task = asyncio.create_task(collect(rig))
        await server.until(requests=1)
        while not clock.sleeping:  # noqa: ASYNC110
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(server.requests) == 1


async def test_an_undisturbed_turn_never_enters_the_retry_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("entered")

    monkeypatch.setattr("brain.llm.AsyncRetrying", forbidden)
    async with FakeLLM() as server, llm_rig(server.url) as rig:
        assert (await collect(rig)).text == "Hello there!"


async def test_a_pooled_connection_closed_between_turns_is_no_error() -> None:
    async with FakeLLM() as server, llm_rig(server.url, max_attempts=1, failures=1) as rig:
        for _ in range(3):
            assert (await collect(rig)).text == "Hello there!"
            await server.drop_idle_connections()  # noticed or not before the next request
        assert rig.breaker.state == "closed"


async def test_a_connection_closed_under_a_request_is_replaced_once_without_a_retry() -> None:
    async with FakeLLM() as server, llm_rig(server.url, max_attempts=1, failures=1) as rig:
        await collect(rig)
        server.enqueue(DROP)
        stream = await collect(rig)
        assert (stream.text, stream.retries, rig.breaker.state) == ("Hello there!", 0, "closed")
        assert len(rig.emitted.named("llm_reconnect")) == 1
        server.enqueue(DROP, DROP)
        with pytest.raises(RemoteUnavailable):
            await collect(rig)


async def test_a_connection_pooled_by_a_failed_answer_may_be_stale_too() -> None:
    async with FakeLLM() as server, llm_rig(server.url, max_attempts=1) as rig:
        server.enqueue(refuse(400), DROP)
        with pytest.raises(RemoteRejected):
            await collect(rig)
        assert (await collect(rig)).text == "Hello there!"


async def test_a_server_that_drops_every_request_gets_one_request_more_than_the_attempts() -> None:
    async with FakeLLM() as server, llm_rig(server.url, max_attempts=3) as rig:
        server.enqueue(*[DROP] * 9)
        with pytest.raises(RemoteUnavailable):
            await collect(rig)
        assert len(server.requests) == 4


@pytest.mark.parametrize("script", [refuse(500), Script(drop=True)])
async def test_nothing_stays_open_after_a_failure(script: Script) -> None:
    async with FakeLLM() as server, llm_rig(server.url, max_attempts=2) as rig:
        server.enqueue(*[script] * 3)
        with pytest.raises(LimbicError):
            await collect(rig)
        assert rig.http.connector is not None
        assert not rig.http.connector._acquired  # type: ignore[attr-defined]


async def test_a_cancelled_probe_leaves_the_breaker_free_for_the_next() -> None:
    async with FakeLLM() as server, llm_rig(server.url, failures=1, max_attempts=1) as rig:
        server.enqueue(refuse(500), raw(Hold()))
        with pytest.raises(RemoteUnavailable):
            await collect(rig)
        await rig.clock.sleep(5)
        task = asyncio.create_task(collect(rig))
        await server.until(requests=2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert isinstance(rig.breaker, CircuitBreaker)
        assert (await collect(rig)).text == "Hello there!"
