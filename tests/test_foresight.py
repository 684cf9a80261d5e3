"""Foresight: surprise measured live, and a client that refuses wrong vectors."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from brain.breaker import CircuitBreaker
from brain.clock import SystemClock
from brain.errors import BreakerOpen, LimbicError, ProtocolError, RemoteTimeout, RemoteUnavailable
from brain.foresight import ForesightClient
from brain.foresight_state import ForesightState, SeenMessage, percentile
from brain.remote import open_http
from brain.settings import BreakerSettings
from tests.fakes.rig import Emitted, Source, loop_never_blocks
from tests.fakes.side_server import Answer, FakeSide, embedding

__all__ = ["loop_never_blocks"]


@dataclass
class SideRig:
    client: ForesightClient
    side: FakeSide
    source: Source
    breaker: CircuitBreaker
    emitted: Emitted


@asynccontextmanager
async def rig(failures: int = 100, dim: int = 8) -> AsyncIterator[SideRig]:
    emitted, clock = Emitted(), SystemClock()
    breaker = CircuitBreaker(
        BreakerSettings(failures=failures), remote="lvm", clock=clock, emit=emitted
    )
    async with FakeSide(dim=dim) as side, open_http() as http:
        source = Source(side.url)
        client = ForesightClient(endpoint=source, http=http, breaker=breaker, clock=clock)
        yield SideRig(client, side, source, breaker, emitted)


OTHERS = "?:?:8"  # how an encoder of eight dimensions is known that does not say its name


def seen(*vectors: tuple[float, ...], **more: Any) -> ForesightState:
    """A state that has seen messages of these vectors."""
    messages = tuple(SeenMessage(n + 1, vector) for n, vector in enumerate(vectors))
    return ForesightState(encoder=OTHERS, messages=messages, **more)


def marks(deadline_ms: int = 2_000) -> dict[str, Any]:
    return {"turn_id": "t1", "deadline_ms": deadline_ms}


async def test_the_first_message_has_a_vector_and_no_surprise() -> None:
    async with rig() as r:
        foresight = await r.client.observe(ForesightState(), "hello", **marks())
    assert foresight.vector == pytest.approx(embedding("hello", 8), abs=1e-6)
    assert (foresight.surprise, foresight.distance) == (None, None)
    assert foresight.encoder == r.client.encoder == OTHERS
    (request,) = r.side.requests
    assert request.body["texts"] == ["hello"]
    assert request.body["turn_id"] == "t1"


async def test_a_conversation_calibrates_surprise_on_itself() -> None:
    async with rig() as r:
        state = ForesightState()
        surprises, distances = [], []
        for n in range(8):
            foresight = await r.client.observe(state, f"message {n}", **marks())
            state = state.after(n + 1, foresight)
            surprises.append(foresight.surprise)
            distances.append(foresight.distance)
            assert state.predicted is None
            state = await r.client.anticipate(state, **marks())
            assert state.predicted is not None
    assert distances[0] is None and all(d is not None for d in distances[1:])
    assert surprises[:6] == [None] * 6
    assert all(s is not None and 0 <= s <= 1 for s in surprises[6:])
    assert surprises[7] == percentile(distances[7], distances[1:7])
    assert len(state.vectors) == 5
    assert state.distances == tuple(distances[1:])
    assert ForesightState.from_bytes(state.to_bytes()) == state


async def test_a_message_just_as_predicted_is_no_distance_away() -> None:
    async with rig() as r:
        predicted = tuple(embedding("hello", 8))
        before = tuple(SeenMessage(n, distance=0.5) for n in range(5))
        state = ForesightState(encoder=OTHERS, messages=before, predicted=predicted)
        foresight = await r.client.observe(state, "hello", **marks())
    assert foresight.distance == pytest.approx(0, abs=1e-6)
    assert foresight.surprise == 0


async def test_fewer_than_five_messages_are_padded_with_the_oldest() -> None:
    async with rig() as r:
        state = seen((1.0,) * 8, (2.0,) * 8)
        await r.client.anticipate(state, **marks())
        (request,) = r.side.asked("/infer")
    assert [row[0] for row in request.body["context_vectors"]] == [1, 1, 1, 1, 2]


async def test_nothing_to_predict_from_asks_nothing() -> None:
    async with rig() as r:
        assert await r.client.anticipate(ForesightState(), **marks()) == ForesightState()
        assert r.side.requests == []


ROW = [0.5] * 8


@pytest.mark.parametrize(
    "body",
    [
        {"embeddings": [ROW], "shape": [1, 9]},
        {"embeddings": [ROW, ROW], "shape": [2, 8]},
        {"embeddings": [], "shape": [0, 8]},
        {"embeddings": [[0.0] * 8], "shape": [1, 8]},
        {"embeddings": [[None] * 8], "shape": [1, 8]},
        {"embeddings": [[1e30] * 8], "shape": [1, 8]},
        {"embeddings": [[0.5] * 5_000], "shape": [1, 5_000]},
        {"embeddings": ROW, "shape": [8]},
        b'{"embeddings": [[NaN]], "shape": [1, 1]}',
        b"garbage",
    ],
)
async def test_an_embedding_outside_the_contract_is_refused(body: Any) -> None:
    async with rig() as r:
        r.side.enqueue("/encode", Answer(body=body))
        with pytest.raises(ProtocolError):
            await r.client.observe(ForesightState(), "x", **marks())


@pytest.mark.parametrize("vector", [[0.5] * 7, [0.0] * 8, [], [None] * 8])
async def test_a_prediction_outside_the_contract_is_refused(vector: list[Any]) -> None:
    async with rig() as r:
        r.side.enqueue("/infer", Answer(body={"predicted_vector": vector}))
        with pytest.raises(ProtocolError):
            await r.client.anticipate(seen((1.0,) * 8), **marks())


def named(text: str, dim: int = 8, name: str = "mini", sha: str = "aa") -> Answer:
    return Answer(body={"embeddings": [embedding(text, dim)], "shape": [1, dim], "encoder": sha,
                        "encoder_name": name})  # fmt: skip


async def test_an_encoder_that_changes_its_dimension_is_refused_once_then_believed() -> None:
    async with rig() as r:
        await r.client.observe(ForesightState(), "a", **marks())
        r.side.dim = 4
        with pytest.raises(ProtocolError, match="4 dimensions where it had 8"):
            await r.client.observe(ForesightState(), "b", **marks())
        foresight = await r.client.observe(ForesightState(), "b", **marks())
        assert foresight.vector is not None and len(foresight.vector) == 4


async def test_another_encoder_may_have_another_dimension_at_once() -> None:
    async with rig() as r:
        r.side.enqueue("/encode", named("a"), named("b", dim=4, sha="bb"))
        await r.client.observe(ForesightState(), "a", **marks())
        foresight = await r.client.observe(ForesightState(), "b", **marks())
    assert foresight.encoder == "mini:bb:4"


@pytest.mark.parametrize("change", [{"name": "maxi"}, {"sha": "bb"}])
async def test_what_another_encoder_expected_is_no_measure_though_the_dimension_is_the_same(
    change: dict[str, str],
) -> None:
    async with rig() as r:
        state = ForesightState()
        for n in range(7):
            r.side.enqueue("/encode", named(f"message {n}"))
            state = state.after(n, await r.client.observe(state, f"message {n}", **marks()))
            state = await r.client.anticipate(state, **marks())
        r.side.enqueue("/encode", named("message 7"), named("message 7", **change))
        same = await r.client.observe(state, "message 7", **marks())
        other = await r.client.observe(state, "message 7", **marks())
    assert same.surprise is not None
    assert (other.surprise, other.distance) == (None, None)
    assert state.after(7, other).messages == (SeenMessage(7, other.vector),)


async def test_several_texts_are_encoded_in_their_order() -> None:
    async with rig() as r:
        encoded = await r.client.encode(["a", "b", "c"], **marks())
    assert encoded.encoder == OTHERS
    assert encoded.vectors[1] == pytest.approx(embedding("b", 8), abs=1e-6)


@pytest.mark.parametrize(
    "body",
    [
        {"embeddings": [[0.5] * 8], "shape": [1, 8]},
        {"embeddings": [[0.5] * 8, [0.5] * 7], "shape": [2, 8]},
        {"embeddings": [[0.5] * 8, [0.0] * 8], "shape": [2, 8]},
    ],
)
async def test_fewer_vectors_than_texts_or_unlike_ones_are_refused(body: Any) -> None:
    async with rig() as r:
        r.side.enqueue("/encode", Answer(body=body))
        with pytest.raises(ProtocolError):
            await r.client.encode(["a", "b"], **marks())


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Answer(hold=True), RemoteTimeout),
        (Answer(drip_s=0.01), RemoteTimeout),
        (Answer(status=500), RemoteUnavailable),
    ],
)
async def test_a_failing_lvm_is_typed_and_leaves_the_state(
    answer: Answer, kind: type[LimbicError]
) -> None:
    async with rig() as r:
        state = seen((1.0,) * 8, predicted=(1.0,) * 8)
        r.side.enqueue("/encode", answer)
        r.side.enqueue("/infer", answer)
        with pytest.raises(kind):
            await r.client.observe(state, "x", **marks(80))
        with pytest.raises(kind):
            await r.client.anticipate(state, **marks(80))
        assert state == seen((1.0,) * 8, predicted=(1.0,) * 8)


async def test_an_lvm_that_failed_repeatedly_is_not_asked() -> None:
    async with rig(failures=2) as r:
        r.side.enqueue("/encode", Answer(status=500), Answer(body=b"{"))
        for _ in range(2):
            with pytest.raises(LimbicError):
                await r.client.observe(ForesightState(), "x", **marks())
        with pytest.raises(BreakerOpen):
            await r.client.observe(ForesightState(), "x", **marks())
        assert len(r.side.requests) == 2


async def test_vectors_as_large_as_the_contract_allows_fit() -> None:
    async with rig(dim=4_096) as r:
        r.side.enqueue(
            "/encode",
            Answer(body={"embeddings": [[-0.012345678901234567] * 4_096], "shape": [1, 4_096]}),
        )
        foresight = await r.client.observe(ForesightState(), "x", **marks(10_000))
        assert foresight.vector is not None and len(foresight.vector) == 4_096
        state = ForesightState().after(1, foresight)
        assert (await r.client.anticipate(state, **marks(10_000))).dim == 4_096
