"""The CAHM client: what it sends, what it refuses, and how it fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brain.affect_classifier import AffectClassifier
from brain.breaker import CircuitBreaker
from brain.clock import SystemClock
from brain.errors import (
    BreakerOpen,
    LimbicError,
    ProtocolError,
    RemoteRejected,
    RemoteTimeout,
    RemoteUnavailable,
    SidecarDown,
)
from brain.remote import open_http
from brain.schema import Affect, parse_wire
from brain.settings import BreakerSettings
from tests.fakes.rig import Emitted, Source, loop_never_blocks
from tests.fakes.side_server import AFFECT, Answer, FakeSide

__all__ = ["loop_never_blocks"]


@dataclass
class SideRig:
    client: AffectClassifier
    side: FakeSide
    source: Source
    breaker: CircuitBreaker
    emitted: Emitted

    async def score(self, text: str = "hi", deadline_ms: int = 2_000, **more: Any) -> Affect:
        return await self.client.score(
            text, session_id="s", turn_id="t1", deadline_ms=deadline_ms, **more
        )


@asynccontextmanager
async def rig(failures: int = 100) -> AsyncIterator[SideRig]:
    emitted, clock = Emitted(), SystemClock()
    breaker = CircuitBreaker(
        BreakerSettings(failures=failures), remote="cahm", clock=clock, emit=emitted
    )
    async with FakeSide() as side, open_http() as http:
        source = Source(side.url, token="secret")
        client = AffectClassifier(
            endpoint=source, http=http, breaker=breaker, clock=clock, emit=emitted
        )
        yield SideRig(client, side, source, breaker, emitted)


async def test_a_message_is_scored_with_the_last_two_before_it() -> None:
    async with rig() as r:
        affect = await r.score("hello", context=["one", "two", "three"])
        (request,) = r.side.requests
    assert (affect.valence, affect.intimacy, affect.tension) == (0.2, 0.4, -0.1)
    assert affect.tags == ("playful_neutral",)
    assert request.path == "/v1/affect"
    assert request.headers["Authorization"] == "Bearer secret"
    assert 0 < request.body.pop("deadline_ms") <= 2_000
    assert request.body.pop("turn_id").startswith("t1-")
    assert request.body == {"text": "hello", "context": ["two", "three"]}


@pytest.mark.parametrize(
    "wrong",
    [
        {"valence": 1.5},
        {"valence": None},
        {"tension": "much"},
        {"confidence": -0.1},
        {"tags": ["Not A Tag"]},
        {"tags": ["t"] * 99},
        {"reasoning": "x" * 5_000},
        {"latency_ms": -1},
    ],
)
async def test_values_outside_the_contract_are_refused_not_clamped(wrong: dict[str, Any]) -> None:
    async with rig() as r:
        r.side.enqueue("/v1/affect", Answer(body=AFFECT | wrong))
        with pytest.raises(ProtocolError, match="outside its contract"):
            await r.score()


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b'{"valence": NaN}', b"[]", b"null", b'"ok"', b"\xff", b"{}" + b" " * 70_000],
)
async def test_garbage_is_refused(body: bytes) -> None:
    async with rig() as r:
        r.side.enqueue("/v1/affect", Answer(body=body))
        with pytest.raises(ProtocolError):
            await r.score()


@given(st.binary(max_size=200))
@settings(max_examples=200)
def test_any_bytes_are_read_or_refused_with_a_typed_error(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_wire(Affect, body, remote="cahm")


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Answer(hold=True), RemoteTimeout),
        (Answer(drip_s=0.01), RemoteTimeout),
        (Answer(status=500), RemoteUnavailable),
        (Answer(status=400), RemoteRejected),
        (Answer(reset=True), RemoteUnavailable),
    ],
    ids=["hung", "dripping", "500", "400", "reset"],
)
async def test_a_failing_classifier_is_typed_within_the_deadline(
    answer: Answer, kind: type[LimbicError]
) -> None:
    async with rig() as r:
        r.side.enqueue("/v1/affect", answer, answer)
        with pytest.raises(kind):
            await r.score(deadline_ms=80)
        (call,) = r.emitted.named("affect_call")
        assert (call["turn_id"], call["outcome"]) == ("t1", kind.__name__)


async def test_cancelling_closes_the_connection_and_blames_nobody() -> None:
    async with rig(failures=1) as r:
        r.side.enqueue("/v1/affect", Answer(hold=True))
        task = asyncio.create_task(r.score())
        while not r.side.requests:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await r.side.departed.wait()
        assert r.breaker.state == "closed"
        assert r.emitted.named("affect_call")[0]["outcome"] == "cancelled"


async def test_a_classifier_that_failed_repeatedly_is_not_asked() -> None:
    async with rig(failures=2) as r:
        r.side.enqueue("/v1/affect", Answer(status=500), Answer(body=b"{"))
        for _ in range(2):
            with pytest.raises(LimbicError):
                await r.score()
        with pytest.raises(BreakerOpen):
            await r.score()
        assert len(r.side.requests) == 2


async def test_a_sidecar_that_is_down_answers_at_once_and_is_not_a_failure() -> None:
    async with rig(failures=1) as r:
        r.source.error = SidecarDown("restarting", name="cahm")
        with pytest.raises(SidecarDown):
            await r.score()
        r.source.error = None
        assert (await r.score()).confidence == 0.8


async def test_a_reply_with_control_characters_does_not_cost_the_next_message_its_scores() -> None:
    async with rig() as r:
        said = ["x" * 5_000 + "hi\x00\r\n", "\x1b[31mred\x1b[0m \ud800 end\tof it"]
        await r.score(context=said)
        (request,) = r.side.requests
    first, second = request.body["context"]
    assert first.endswith("xhi  \n") and len(first) == 2_000
    assert second == " [31mred [0m   end\tof it"
