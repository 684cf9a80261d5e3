"""What foresight remembers of one session: pure, immutable, bound to the encoder that made it.

Vectors of two encoders mean different things even where their dimensions agree, so a state never
mixes them: what another encoder made starts it anew. Every vector and distance is kept under the
``seq`` of its turn, so a message counts once, in its own place, however late its vector comes, and
one that is taken back leaves nothing.
"""

from __future__ import annotations

import math
import struct
import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import mul
from typing import TypeVar

from brain.schema import CONTEXT_VECTORS, MAX_VECTOR_DIM, Foresight, Vector

MAX_MESSAGES = 200
MIN_DISTANCES = 5
#: The encoder of records that do not say which one made them: equal to no encoder that answers.
UNKNOWN_ENCODER = "unknown"

# magic, version; then: has a prediction, vectors, messages, dimension, bytes of the two names
_MAGIC = struct.Struct("<2sB")
_HEADER = struct.Struct("<BBHHHH")
_FS, _VERSION, _NAMELESS_VERSION = b"FS", 2, 1
_NO_DISTANCE = -1.0
_SHORTEST = 1e-12  # squared length below which a vector has no direction

Numbers = TypeVar("Numbers", "array[int]", "array[float]")


@dataclass(frozen=True, slots=True)
class SeenMessage:
    """A message whose vector is or was known. ``vector`` is kept for the last five; ``distance``,
    in [0, 2], is 1 − cosine to what was expected, where something was."""

    seq: int
    vector: Vector | None = None
    distance: float | None = None


@dataclass(frozen=True, slots=True)
class ForesightState:
    """What foresight remembers of one session.

    ``encoder``: identity of what made every vector in it; empty while there is none.
    ``predictor``: what made the predictions behind the distances.
    ``messages``: by ``seq``, at most 200; vectors belong to the last of them, at most five.
    ``predicted``: the vector expected for the next message.
    Values are kept in single precision, as the encoder makes them.

    Raises:
        ValueError: too many entries, unequal or unusable dimensions, messages out of order,
            values that are not finite, vectors of length zero.
    """

    encoder: str = ""
    predictor: str = ""
    messages: tuple[SeenMessage, ...] = ()
    predicted: Vector | None = None

    def __post_init__(self) -> None:
        expected = () if self.predicted is None else (self.predicted,)
        everything = (*self.vectors, *expected)
        if len(self.messages) > MAX_MESSAGES or len(self.vectors) > CONTEXT_VECTORS:
            raise ValueError("foresight state holds too many messages or vectors")
        seqs = [message.seq for message in self.messages]
        if seqs != sorted(set(seqs)):
            raise ValueError("foresight state has messages out of order")
        if any(m.vector is not None for m in self.messages[: len(seqs) - len(self.vectors)]):
            raise ValueError("foresight state has vectors of other messages than the last ones")
        if len({len(vector) for vector in everything}) > 1:
            raise ValueError("foresight state mixes dimensions")
        if everything and not 1 <= len(everything[0]) <= MAX_VECTOR_DIM:
            raise ValueError("foresight state has vectors of an unusable dimension")
        if not all(0.0 <= distance <= 2.0 for distance in self.distances):
            raise ValueError("foresight state has a distance outside [0, 2]")
        if not all(usable(vector) for vector in everything):
            raise ValueError("foresight state has a vector that is zero or not finite")

    @property
    def vectors(self) -> tuple[Vector, ...]:
        """Embeddings of the last messages, oldest first, at most five."""
        return tuple(m.vector for m in self.messages if m.vector is not None)

    @property
    def distances(self) -> tuple[float, ...]:
        """Distances of the predictions so far, oldest first."""
        return tuple(m.distance for m in self.messages if m.distance is not None)

    @property
    def newest(self) -> int | None:
        """``seq`` of the last message whose vector is here."""
        return self.messages[-1].seq if self.vectors else None

    @property
    def last_surprise(self) -> float | None:
        """Surprise of the newest message, where it was measured."""
        if not self.messages or self.messages[-1].distance is None:
            return None
        return percentile(self.distances[-1], self.distances[:-1])

    @property
    def dim(self) -> int | None:
        """Dimension of the vectors; ``None`` while there are none."""
        some = (*self.vectors, self.predicted)[0]
        return len(some) if some else None

    def measure(self, vector: Vector, encoder: str) -> tuple[float | None, float | None]:
        """Distance of a message to the one expected, and its surprise; ``None`` where nothing was
        expected, or another encoder expected it."""
        if self.predicted is None or encoder != self.encoder:
            return None, None
        distance = single(cosine_distance(self.predicted, vector))
        return distance, percentile(distance, self.distances)

    def after(self, seq: int, seen: Foresight) -> ForesightState:
        """With the message of turn ``seq``, in its place; what was expected is used up.

        A message that is known already changes nothing. Another encoder's starts a new state,
        unless it is older than what is here: then it comes too late to be of use.
        """
        if seen.vector is None:
            return self.passed()
        newest = self.messages[-1].seq if self.messages else 0
        if seen.encoder != self.encoder:
            fresh = SeenMessage(seq, seen.vector)
            return self if seq < newest else ForesightState(seen.encoder, messages=(fresh,))
        if any(message.seq == seq for message in self.messages):
            return self
        message = SeenMessage(seq, seen.vector, seen.distance)
        ordered = sorted((*self.messages, message), key=lambda m: m.seq)
        return replace(self, messages=_trimmed(ordered), predicted=None)

    def passed(self) -> ForesightState:
        """After a message whose vector is not there: what was expected was expected of it."""
        return self if self.predicted is None else replace(self, predicted=None)

    def without(self, seq: int) -> ForesightState:
        """As if the message of turn ``seq`` had not been said."""
        left = tuple(message for message in self.messages if message.seq != seq)
        return replace(self, messages=left, predicted=None)

    def expecting(self, vector: Vector, predictor: str) -> ForesightState:
        """With the vector expected next. The distances of another predictor are another measure:
        they are dropped."""
        messages = self.messages
        if self.predictor not in ("", predictor):
            messages = tuple(replace(message, distance=None) for message in messages)
        return replace(self, predictor=predictor, messages=messages, predicted=vector)

    def to_bytes(self) -> bytes:
        """A compact record for the store: header, names, then little-endian numbers."""
        names = self.encoder.encode(), self.predictor.encode()
        seqs = array("q", (message.seq for message in self.messages))
        values = array("f")
        for message in self.messages:
            values.append(_NO_DISTANCE if message.distance is None else message.distance)
        for vector in (*self.vectors, self.predicted or ()):
            values.extend(vector)
        header = _HEADER.pack(
            self.predicted is not None, len(self.vectors), len(seqs), self.dim or 0,
            *map(len, names),
        )  # fmt: skip
        numbers = _little(seqs).tobytes() + _little(values).tobytes()
        return _MAGIC.pack(_FS, _VERSION) + header + b"".join(names) + numbers

    @classmethod
    def from_bytes(cls, data: bytes) -> ForesightState:
        """Read what ``to_bytes`` wrote. A record of version 1, which does not say which encoder
        made it, gives an empty state of an unknown encoder.

        Raises:
            ValueError: another format or version, truncated, or values that cannot be.
        """
        if len(data) < _MAGIC.size + _HEADER.size:
            raise ValueError("foresight record is truncated")
        magic, version = _MAGIC.unpack_from(data)
        if (magic, version) == (_FS, _NAMELESS_VERSION):
            return cls(encoder=UNKNOWN_ENCODER)
        if (magic, version) != (_FS, _VERSION):
            raise ValueError("not a foresight record of a known version")
        predicted, vectors, count, dim, *names = _HEADER.unpack_from(data, _MAGIC.size)
        at = _MAGIC.size + _HEADER.size
        floats = count + (vectors + predicted) * dim
        if (
            predicted > 1
            or vectors > count
            or len(data) != at + sum(names) + 8 * count + 4 * floats
        ):
            raise ValueError("foresight record has the wrong size")
        encoder = data[at : at + names[0]].decode()
        predictor = data[at + names[0] : at + sum(names)].decode()
        at += sum(names)
        seqs, values = array("q"), array("f")
        seqs.frombytes(data[at : at + 8 * count])
        values.frombytes(data[at + 8 * count :])
        _little(seqs), _little(values)
        flat = tuple(values)
        rows = [flat[count + i * dim : count + (i + 1) * dim] for i in range(vectors + predicted)]
        held = [None] * (count - vectors) + rows[:vectors]
        return cls(
            encoder,
            predictor,
            tuple(
                SeenMessage(seq, vector, None if distance == _NO_DISTANCE else distance)
                for seq, distance, vector in zip(seqs, flat[:count], held, strict=True)
            ),
            predicted=rows[vectors] if predicted else None,
        )


def restored(data: bytes | None) -> ForesightState:
    """What the store has; a record that cannot be read is forgotten, not an error."""
    try:
        return ForesightState.from_bytes(data) if data else ForesightState()
    except ValueError:
        return ForesightState()


def rewound(data: bytes | None, seq: int) -> bytes | None:
    """A stored record as if the message of turn ``seq`` had not been said."""
    return None if data is None else restored(data).without(seq).to_bytes()


def cosine_distance(a: Sequence[float], b: Sequence[float]) -> float:
    """1 − cos(a, b), in [0, 2]; both of one dimension and not zero."""
    return min(2.0, max(0.0, 1.0 - _dot(a, b) / math.sqrt(_dot(a, a) * _dot(b, b))))


def percentile(value: float, history: Sequence[float]) -> float | None:
    """Mid-rank percentile of ``value`` in ``history``, in [0, 1]; ``None`` below five values."""
    if len(history) < MIN_DISTANCES:
        return None
    ordered = sorted(history)
    return (bisect_left(ordered, value) + bisect_right(ordered, value)) / (2 * len(ordered))


def usable(vector: Sequence[float]) -> bool:
    """Whether a vector has a direction: finite, and not of length zero."""
    return math.isfinite(square := _dot(vector, vector)) and square >= _SHORTEST


def singles(vector: Sequence[float]) -> Vector:
    """The vector in single precision."""
    return tuple(array("f", vector))


def single(value: float) -> float:
    """The number in single precision."""
    rounded: float = array("f", (value,))[0]
    return rounded


def _trimmed(messages: Sequence[SeenMessage]) -> tuple[SeenMessage, ...]:
    """The last 200, with the vectors of the last five as far as they follow one another."""
    kept = list(messages[-MAX_MESSAGES:])
    held = 0
    while held < min(CONTEXT_VECTORS, len(kept)) and kept[-1 - held].vector is not None:
        held += 1
    older = len(kept) - held
    return (*(replace(m, vector=None) for m in kept[:older]), *kept[older:])


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    product: float = sum(map(mul, a, b))
    return product


def _little(values: Numbers) -> Numbers:
    if sys.byteorder == "big":
        values.byteswap()
    return values
