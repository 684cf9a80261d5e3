"""Foresight: pure state, calibrated surprise, and a client that refuses wrong vectors."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain.breaker import CircuitBreaker
from brain.clock import SystemClock
from brain.errors import BreakerOpen, LimbicError, ProtocolError, RemoteTimeout, RemoteUnavailable
from brain.foresight import ForesightClient, ForesightState, cosine_distance, percentile
from brain.remote import open_http
from brain.settings import BreakerSettings
from tests.fakes.rig import Emitted, Source, loop_never_blocks
from tests.fakes.side_server import Answer, FakeSide, embedding

__all__ = ["loop_never_blocks"]

single = st.floats(-1e6, 1e6, width=32)
vectors = st.integers(1, 8).flatmap(
    lambda dim: st.tuples(
        st.lists(st.lists(single, min_size=dim, max_size=dim).map(tuple), max_size=5).map(tuple),
        st.none() | st.lists(single, min_size=dim, max_size=dim).map(tuple),
    )
)
states = st.builds(
    lambda pair, distances: ForesightState(*pair, tuple(distances)),
    vectors,
    st.lists(st.floats(0, 2, width=32), max_size=200),
)


@given(states)
def test_a_state_survives_its_record_exactly(state: ForesightState) -> None:
    assert ForesightState.from_bytes(state.to_bytes()) == state


@given(states, st.integers(0, 10_000))
def test_a_truncated_record_is_refused(state: ForesightState, cut: int) -> None:
    data = state.to_bytes()
    with pytest.raises(ValueError):
        ForesightState.from_bytes(data[: cut % len(data)])


@given(st.binary(max_size=64))
def test_any_bytes_are_a_state_or_refused(data: bytes) -> None:
    for record in (data, b"FS\x01" + data):
        try:
            state = ForesightState.from_bytes(record)
        except ValueError:
            continue
        assert state.to_bytes() == record or state.dim is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"vectors": ((1.0,), (1.0, 2.0))},
        {"vectors": ((1.0,),), "predicted": (1.0, 2.0)},
        {"vectors": ((1.0,),) * 6},
        {"vectors": ((),)},
        {"predicted": ()},
        {"predicted": (1.0,) * 5_000},
        {"predicted": (float("nan"),)},
        {"distances": (2.5,)},
        {"distances": (float("nan"),)},
        {"distances": (0.1,) * 201},
    ],
)
def test_a_state_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="foresight state"):
        ForesightState(**wrong)


def test_surprise_is_the_mid_rank_percentile_of_the_sessions_own_history() -> None:
    history = [0.1, 0.2, 0.2, 0.3, 0.4]
    assert percentile(0.0, history) == 0.0
    assert percentile(0.2, history) == pytest.approx((1 + 3) / 2 / 5)
    assert percentile(0.25, history) == pytest.approx(3 / 5)
    assert percentile(9.0, history) == 1.0
    assert percentile(0.2, history[:4]) is None


@given(st.lists(st.floats(0, 2), min_size=5, max_size=200), st.floats(0, 2), st.floats(0, 2))
def test_a_larger_distance_is_never_less_surprising(
    history: list[float], a: float, b: float
) -> None:
    low, high = sorted((a, b))
    less, more = percentile(low, history), percentile(high, history)
    assert less is not None and more is not None
    assert 0 <= less <= more <= 1


def test_cosine_distance_has_its_known_values() -> None:
    assert cosine_distance((1, 0), (2, 0)) == pytest.approx(0)
    assert cosine_distance((1, 0), (0, 3)) == pytest.approx(1)
    assert cosine_distance((1, 0), (-1, 0)) == pytest.approx(2)


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
        client = ForesightClient(
            endpoint=source, http=http, breaker=breaker, clock=clock, emit=emitted
        )
        yield SideRig(client, side, source, breaker, emitted)


def marks(deadline_ms: int = 2_000) -> dict[str, Any]:
    return {"turn_id": "t1", "deadline_ms": deadline_ms}


async def test_the_first_message_has_a_vector_and_no_surprise() -> None:
    async with rig() as r:
        before = ForesightState()
        foresight, after = await r.client.observe(before, "hello", **marks())
    assert foresight.vector == pytest.approx(embedding("hello", 8), abs=1e-6)
    assert (foresight.surprise, foresight.distance) == (None, None)
    assert after.vectors == (foresight.vector,)
    assert before == ForesightState()
    (request,) = r.side.requests
    assert request.body["texts"] == ["hello"]
    assert request.body["turn_id"] == "t1"


async def test_a_conversation_calibrates_surprise_on_itself() -> None:
    async with rig() as r:
        state = ForesightState()
        surprises, distances = [], []
        for n in range(8):
            foresight, state = await r.client.observe(state, f"message {n}", **marks())
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
        state = ForesightState(predicted=predicted, distances=(0.5,) * 5)
        foresight, _ = await r.client.observe(state, "hello", **marks())
    assert foresight.distance == pytest.approx(0, abs=1e-6)
    assert foresight.surprise == 0


async def test_fewer_than_five_messages_are_padded_with_the_oldest() -> None:
    async with rig() as r:
        state = ForesightState(vectors=((1.0,) * 8, (2.0,) * 8))
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
            await r.client.anticipate(ForesightState(vectors=((1.0,) * 8,)), **marks())


async def test_an_encoder_that_changes_its_dimension_is_refused_once_then_believed() -> None:
    async with rig() as r:
        _, state = await r.client.observe(ForesightState(), "a", **marks())
        r.side.dim = 4
        with pytest.raises(ProtocolError, match="4 dimensions where it had 8"):
            await r.client.observe(state, "b", **marks())
        foresight, state = await r.client.observe(state, "b", **marks())
        assert state.vectors == (foresight.vector,)
        assert state.dim == 4
        (reset,) = r.emitted.named("foresight_reset")
        assert (reset["before"], reset["now"]) == (8, 4)


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
        state = ForesightState(vectors=((1.0,) * 8,), predicted=(1.0,) * 8)
        r.side.enqueue("/encode", answer)
        r.side.enqueue("/infer", answer)
        with pytest.raises(kind):
            await r.client.observe(state, "x", **marks(80))
        with pytest.raises(kind):
            await r.client.anticipate(state, **marks(80))
        assert state == ForesightState(vectors=((1.0,) * 8,), predicted=(1.0,) * 8)


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
        foresight, state = await r.client.observe(ForesightState(), "x", **marks(10_000))
        assert foresight.vector is not None and len(foresight.vector) == 4_096
        assert (await r.client.anticipate(state, **marks(10_000))).dim == 4_096
