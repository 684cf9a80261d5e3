"""Client of the LVM: how far a message was from what the conversation led one to expect.

Per session there is one small immutable ``ForesightState``. ``observe`` embeds a new message and
compares it with the vector predicted for it; ``anticipate`` predicts the next one from the last
five. Neither changes the state it is given: the caller commits the returned one with the turn, so
a turn that fails leaves no trace.

Contract: ``POST /encode {texts}`` → ``{embeddings, shape}``; ``POST /infer {context_vectors}`` of
shape [5][D] → ``{predicted_vector}`` of shape [D].
"""

from __future__ import annotations

import math
import struct
import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import mul

import aiohttp

from brain.breaker import CircuitBreaker
from brain.clock import Clock
from brain.errors import ProtocolError
from brain.events import Emit, EndpointSource
from brain.remote import post_json
from brain.schema import (
    CONTEXT_VECTORS,
    MAX_VECTOR_DIM,
    Embeddings,
    Foresight,
    Prediction,
    Vector,
    parse_wire,
)

REMOTE = "lvm"
MAX_DISTANCES = 200
MIN_DISTANCES = 5

# magic, version, vectors, has a prediction, distances, dimension
_HEADER = struct.Struct("<2sBBBHH")
_MAGIC, _VERSION = b"FS", 1


@dataclass(frozen=True, slots=True)
class ForesightState:
    """What foresight remembers of one session.

    ``vectors``: embeddings of the last five messages, oldest first. ``predicted``: the vector
    expected for the next message. ``distances``: 1 − cosine of the last 200 predictions, in [0, 2].
    Values are kept in single precision, as the encoder makes them.

    Raises:
        ValueError: too many entries, unequal or unusable dimensions, non-finite values.
    """

    vectors: tuple[Vector, ...] = ()
    predicted: Vector | None = None
    distances: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        expected = () if self.predicted is None else (self.predicted,)
        everything = (*self.vectors, *expected)
        if len(self.vectors) > CONTEXT_VECTORS or len(self.distances) > MAX_DISTANCES:
            raise ValueError("foresight state holds too many vectors or distances")
        if len({len(vector) for vector in everything}) > 1:
            raise ValueError("foresight state mixes dimensions")
        if everything and not 1 <= len(everything[0]) <= MAX_VECTOR_DIM:
            raise ValueError("foresight state has vectors of an unusable dimension")
        if not all(0.0 <= distance <= 2.0 for distance in self.distances):
            raise ValueError("foresight state has a distance outside [0, 2]")
        if not all(math.isfinite(x) for vector in everything for x in vector):
            raise ValueError("foresight state has a value that is not finite")

    @property
    def dim(self) -> int | None:
        """Dimension of the vectors; ``None`` while there are none."""
        some = self.vectors[0] if self.vectors else self.predicted
        return len(some) if some else None

    def to_bytes(self) -> bytes:
        """A compact record for the store: a header, then little-endian 32-bit floats."""
        values = array("f")
        for vector in (*self.vectors, self.predicted or (), self.distances):
            values.extend(vector)
        header = _HEADER.pack(
            _MAGIC,
            _VERSION,
            len(self.vectors),
            self.predicted is not None,
            len(self.distances),
            self.dim or 0,
        )
        return header + _little(values).tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> ForesightState:
        """Read what ``to_bytes`` wrote.

        Raises:
            ValueError: another format or version, truncated, or values that cannot be.
        """
        if len(data) < _HEADER.size:
            raise ValueError("foresight record is truncated")
        magic, version, vectors, predicted, distances, dim = _HEADER.unpack_from(data)
        if (magic, version) != (_MAGIC, _VERSION) or predicted > 1:
            raise ValueError("not a foresight record of a known version")
        expected = 4 * ((vectors + predicted) * dim + distances)
        if len(data) - _HEADER.size != expected:
            raise ValueError("foresight record has the wrong size")
        values = array("f")
        values.frombytes(data[_HEADER.size :])
        flat = tuple(_little(values))
        rows = [flat[i * dim : (i + 1) * dim] for i in range(vectors + predicted)]
        return cls(
            vectors=tuple(rows[:vectors]),
            predicted=rows[vectors] if predicted else None,
            distances=flat[(vectors + predicted) * dim :],
        )


class ForesightClient:
    """Embeds, compares and predicts; safe for many concurrent turns."""

    def __init__(
        self,
        *,
        endpoint: EndpointSource,
        http: aiohttp.ClientSession,
        breaker: CircuitBreaker,
        clock: Clock,
        emit: Emit,
    ) -> None:
        self._endpoint = endpoint
        self._http = http
        self._breaker = breaker
        self._clock = clock
        self._emit = emit
        self._dim: int | None = None
        #: What made the last vectors; empty while unknown. Vectors of others mean something else.
        self.encoder = ""

    async def observe(
        self, state: ForesightState, text: str, *, turn_id: str, deadline_ms: int
    ) -> tuple[Foresight, ForesightState]:
        """How surprising ``text`` is, and the state with it added and its prediction used up.

        A state made by an encoder of another dimension is started afresh (``foresight_reset``).

        Raises:
            RemoteError: any of its subclasses; ``ProtocolError`` for a wrong dimension.
            SidecarError: the LVM is not running. InputError: text that JSON cannot carry.
        """
        started = self._clock.monotonic()
        with self._breaker.guard():
            body = await self._post("/encode", {"texts": [text]}, turn_id, deadline_ms)
            answer = parse_wire(Embeddings, body, remote=REMOTE)
            vector = self._embedding(answer)
            self.encoder = answer.encoder
        if state.dim not in (None, len(vector)):
            self._emit("foresight_reset", turn_id=turn_id, before=state.dim, now=len(vector))
            state = ForesightState()
        distance = None
        distances = state.distances
        surprise = None
        if state.predicted is not None:
            distance = _single(cosine_distance(state.predicted, vector))
            surprise = percentile(distance, distances)
            distances = (*distances, distance)[-MAX_DISTANCES:]
        foresight = Foresight(
            surprise=surprise,
            distance=distance,
            vector=vector,
            encoder=self.encoder,
            latency_ms=(self._clock.monotonic() - started) * 1000,
        )
        vectors = (*state.vectors, vector)[-CONTEXT_VECTORS:]
        return foresight, ForesightState(vectors, None, distances)

    async def anticipate(
        self, state: ForesightState, *, turn_id: str, deadline_ms: int
    ) -> ForesightState:
        """The state with the vector predicted for the next message; unchanged while empty.

        With fewer than five messages the oldest is repeated in front.

        Raises:
            RemoteError, SidecarError: as ``observe``.
        """
        if not state.vectors:
            return state
        padding = (state.vectors[0],) * (CONTEXT_VECTORS - len(state.vectors))
        context = {"context_vectors": [*padding, *state.vectors]}
        with self._breaker.guard():
            body = await self._post("/infer", context, turn_id, deadline_ms)
            predicted = parse_wire(Prediction, body, remote=REMOTE).predicted_vector
            if len(predicted) != state.dim:
                raise ProtocolError(
                    f"the lvm predicted {len(predicted)} dimensions where {state.dim} were sent",
                    remote=REMOTE,
                )
            _refuse_zero(predicted)
        return replace(state, predicted=_singles(predicted))

    async def _post(
        self, path: str, body: Mapping[str, object], turn_id: str, deadline_ms: int
    ) -> bytes:
        return await post_json(
            self._http,
            self._endpoint,
            path,
            body,
            remote=REMOTE,
            clock=self._clock,
            turn_id=turn_id,
            deadline_ms=deadline_ms,
        )

    def _embedding(self, answer: Embeddings) -> Vector:
        """The one vector asked for, of the dimension this encoder has shown before."""
        rows = answer.embeddings
        if len(rows) != 1 or answer.shape != (1, len(rows[0])):
            raise ProtocolError(
                f"the lvm answered shape {list(answer.shape)} for one text", remote=REMOTE
            )
        expected, self._dim = self._dim, len(rows[0])
        if expected not in (None, self._dim):
            # Refused once; a second answer of this dimension means that the encoder was changed.
            raise ProtocolError(
                f"the lvm answered {self._dim} dimensions where it had {expected} before",
                remote=REMOTE,
            )
        _refuse_zero(rows[0])
        return _singles(rows[0])


def cosine_distance(a: Sequence[float], b: Sequence[float]) -> float:
    """1 − cos(a, b), in [0, 2]; both of one dimension and not zero."""
    return min(2.0, max(0.0, 1.0 - _dot(a, b) / math.sqrt(_dot(a, a) * _dot(b, b))))


def percentile(value: float, history: Sequence[float]) -> float | None:
    """Mid-rank percentile of ``value`` in ``history``, in [0, 1]; ``None`` below five values."""
    if len(history) < MIN_DISTANCES:
        return None
    ordered = sorted(history)
    return (bisect_left(ordered, value) + bisect_right(ordered, value)) / (2 * len(ordered))


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    product: float = sum(map(mul, a, b))
    return product


def _refuse_zero(vector: Vector) -> None:
    if _dot(vector, vector) < 1e-12:
        raise ProtocolError("the lvm answered a vector of length zero", remote=REMOTE)


def _singles(vector: Sequence[float]) -> Vector:
    return tuple(array("f", vector))


def _single(value: float) -> float:
    rounded: float = array("f", (value,))[0]
    return rounded


def _little(values: array[float]) -> array[float]:
    if sys.byteorder == "big":
        values.byteswap()
    return values
