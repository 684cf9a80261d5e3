"""What foresight remembers of one session: pure, immutable, bound to the encoder that made it.

Vectors of two encoders mean different things even where their dimensions agree, so a state never
mixes them: what another encoder made starts it anew. Every vector and distance is kept under the
``seq`` of its turn, so a message counts once, in its own place, however late its vector comes, and
one that is taken back leaves nothing. So does a reply: it stands behind its own message or nowhere.
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
from typing import TypeVar

from brain.schema import CONTEXT_VECTORS, MAX_VECTOR_DIM, Foresight, Vector

MAX_MESSAGES = 200
MIN_DISTANCES = 5
#: The encoder of records that do not say which one made them: equal to no encoder that answers.
UNKNOWN_ENCODER = "unknown"

#: Messages whose replies can be among the last five of a conversation that takes turns.
ANSWERED = (CONTEXT_VECTORS + 1) // 2

# magic, version; then: what is predicted, vectors, which of them have a reply's, messages,
# dimension, bytes of the two names. Version 2 knew of no replies.
_MAGIC = struct.Struct("<2sB")
_HEADER = struct.Struct("<BBBHHHH")
_HEADER_2 = struct.Struct("<BBHHHH")
_FS, _VERSION, _REPLYLESS_VERSION, _NAMELESS_VERSION = b"FS", 3, 2, 1
_NOTHING, _BEFORE_REPLY, _AFTER_REPLY = range(3)
# Predictions from the person's messages alone are further off: another measure.
_ALONE = " from the person alone"
_NO_DISTANCE = -1.0
_SHORTEST = 1e-6  # length below which a vector has no direction

Numbers = TypeVar("Numbers", "array[int]", "array[float]")


@dataclass(frozen=True, slots=True)
class SeenMessage:
    """A message whose vector is or was known. ``vector`` is kept for the last five, and so is that
    of the ``reply`` where it came; ``distance``, in [0, 2], is 1 − cosine to what was expected of
    the message, where something was."""

    seq: int
    vector: Vector | None = None
    distance: float | None = None
    reply: Vector | None = None


@dataclass(frozen=True, slots=True)
class ForesightState:
    """What foresight remembers of one session.

    ``encoder``: identity of what made every vector in it; empty while there is none.
    ``predictor``: what made the predictions behind the distances.
    ``messages``: by ``seq``, at most 200; vectors belong to the last of them, at most five.
    ``predicted``: the vector expected for the next message; ``heard``, whether what made it knew of
    the last reply.
    Values are kept in single precision, as the encoder makes them.

    Raises:
        ValueError: too many entries, unequal or unusable dimensions, messages out of order,
            values that are not finite, vectors of length zero.
    """

    encoder: str = ""
    predictor: str = ""
    messages: tuple[SeenMessage, ...] = ()
    predicted: Vector | None = None
    heard: bool = False

    def __post_init__(self) -> None:
        expected = () if self.predicted is None else (self.predicted,)
        replies = tuple(m.reply for m in self.messages if m.reply is not None)
        everything = (*self.vectors, *replies, *expected)
        if len(self.messages) > MAX_MESSAGES or len(self.vectors) > CONTEXT_VECTORS:
            raise ValueError("foresight state holds too many messages or vectors")
        seqs = [message.seq for message in self.messages]
        if seqs != sorted(set(seqs)):
            raise ValueError("foresight state has messages out of order")
        if any(m.vector is not None for m in self.messages[: len(seqs) - len(self.vectors)]):
            raise ValueError("foresight state has vectors of other messages than the last ones")
        if any(m.reply is not None and m.vector is None for m in self.messages):
            raise ValueError("foresight state has a reply's vector without its message's")
        if self.heard and not (expected and self._answered):
            raise ValueError("foresight state has heard a reply that is not there")
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
        """Embeddings of the person's last messages, oldest first, at most five."""
        return tuple(m.vector for m in self.messages if m.vector is not None)

    @property
    def context(self) -> tuple[Vector, ...]:
        """What the next message is predicted from: the last five of messages and replies, in the
        order they were said. A reply whose vector is missing is left out."""
        last = self.messages[-CONTEXT_VECTORS:]
        said = [v for m in last for v in (m.vector, m.reply) if v is not None]
        return tuple(said[-CONTEXT_VECTORS:])

    @property
    def unheard(self) -> tuple[int, ...]:
        """Turns whose reply could be in the context, if its vector were there; oldest first."""
        last = self.messages[-ANSWERED:]
        return tuple(m.seq for m in last if m.vector is not None and m.reply is None)

    @property
    def foreseen(self) -> bool:
        """Whether the next message is predicted, and from the last reply too where it is here."""
        return self.predicted is not None and (self.heard or not self._answered)

    @property
    def _answered(self) -> bool:
        return bool(self.messages) and self.messages[-1].reply is not None

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
        return replace(self, messages=_trimmed(ordered), predicted=None, heard=False)

    def with_replies(self, replies: Mapping[int, Vector], encoder: str) -> ForesightState:
        """With the vectors of some turns' replies, each behind its own message.

        A reply whose message is not here, or that is known already, changes nothing, nor does one
        that another encoder made. What is expected stays until it is predicted anew.
        """
        if encoder != self.encoder:
            return self
        wanting = {m.seq for m in self.messages if m.vector is not None and m.reply is None}
        if not wanting & replies.keys():
            return self
        messages = tuple(
            replace(m, reply=replies[m.seq]) if m.seq in wanting and m.seq in replies else m
            for m in self.messages
        )
        return replace(self, messages=messages)

    def passed(self) -> ForesightState:
        """After a message whose vector is not there: what was expected was expected of it."""
        return self if self.predicted is None else replace(self, predicted=None, heard=False)

    def without(self, seq: int) -> ForesightState:
        """As if the message of turn ``seq`` had not been said, nor its reply."""
        left = tuple(message for message in self.messages if message.seq != seq)
        return replace(self, messages=left, predicted=None, heard=False)

    def expecting(self, vector: Vector, predictor: str) -> ForesightState:
        """With the vector expected next. The distances of another predictor are another measure:
        they are dropped."""
        messages = self.messages
        if self.predictor not in ("", predictor):
            messages = tuple(replace(message, distance=None) for message in messages)
        return replace(
            self, predictor=predictor, messages=messages, predicted=vector, heard=self._answered
        )

    def to_bytes(self) -> bytes:
        """A compact record for the store: header, names, then little-endian numbers."""
        names = self.encoder.encode(), self.predictor.encode()
        seqs = array("q", (message.seq for message in self.messages))
        values = array("f")
        for message in self.messages:
            values.append(_NO_DISTANCE if message.distance is None else message.distance)
        held = [message for message in self.messages if message.vector is not None]
        replies = [message.reply or () for message in held]
        for vector in (*self.vectors, *replies, self.predicted or ()):
            values.extend(vector)
        predicted = _NOTHING if self.predicted is None else _BEFORE_REPLY + self.heard
        answered = sum(bool(reply) << place for place, reply in enumerate(replies))
        header = _HEADER.pack(
            predicted, len(held), answered, len(seqs), self.dim or 0, *map(len, names)
        )
        numbers = _little(seqs).tobytes() + _little(values).tobytes()
        return _MAGIC.pack(_FS, _VERSION) + header + b"".join(names) + numbers

    @classmethod
    def from_bytes(cls, data: bytes) -> ForesightState:
        """Read what ``to_bytes`` wrote. A record of version 2 has no replies, and its distances
        are those of another predictor. One of version 1, which does not say which encoder made it,
        gives an empty state of an unknown encoder.

        Raises:
            ValueError: another format or version, truncated, or values that cannot be.
        """
        if len(data) < _MAGIC.size + _HEADER_2.size:
            raise ValueError("foresight record is truncated")
        magic, version = _MAGIC.unpack_from(data)
        if (magic, version) == (_FS, _NAMELESS_VERSION):
            return cls(encoder=UNKNOWN_ENCODER)
        if (magic, version) == (_FS, _REPLYLESS_VERSION):
            fields = list(_HEADER_2.unpack_from(data, _MAGIC.size))
            return _read(data, _MAGIC.size + _HEADER_2.size, [*fields[:2], 0, *fields[2:]], _ALONE)
        if (magic, version) != (_FS, _VERSION) or len(data) < _MAGIC.size + _HEADER.size:
            raise ValueError("not a foresight record of a known version")
        fields = list(_HEADER.unpack_from(data, _MAGIC.size))
        return _read(data, _MAGIC.size + _HEADER.size, fields)


def _read(data: bytes, at: int, fields: Sequence[int], mark: str = "") -> ForesightState:
    """What follows a header of these ``fields``, from byte ``at``; ``mark`` joins the name of the
    predictor."""
    predicted, vectors, answered, count, dim, *names = fields
    replies = [bool(answered >> place & 1) for place in range(vectors)]
    rows = vectors + sum(replies) + (predicted != _NOTHING)
    if (
        predicted > _AFTER_REPLY
        or vectors > min(count, CONTEXT_VECTORS)
        or answered >> vectors
        or len(data) != at + sum(names) + 8 * count + 4 * (count + rows * dim)
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
    left = iter([flat[count + i * dim : count + (i + 1) * dim] for i in range(rows)])
    older = [None] * (count - vectors)
    said = [*older, *(next(left) for _ in range(vectors))]
    answers = [*older, *(next(left) if there else None for there in replies)]
    return ForesightState(
        encoder,
        predictor + mark if count else predictor,
        tuple(
            SeenMessage(seq, vector, None if distance == _NO_DISTANCE else distance, reply)
            for seq, distance, vector, reply in zip(seqs, flat[:count], said, answers, strict=True)
        ),
        predicted=next(left) if predicted else None,
        heard=predicted == _AFTER_REPLY,
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
    return math.isfinite(length := math.hypot(*vector)) and length >= _SHORTEST


def singles(vector: Sequence[float]) -> Vector:
    """The vector in single precision."""
    return tuple(array("f", vector))


def single(value: float) -> float:
    """The number in single precision."""
    rounded: float = array("f", (value,))[0]
    return rounded


def _trimmed(messages: Sequence[SeenMessage]) -> tuple[SeenMessage, ...]:
    """The last 200, with the vectors of the last five and of their replies, as far as the
    messages' follow one another."""
    kept = list(messages[-MAX_MESSAGES:])
    held = 0
    while held < min(CONTEXT_VECTORS, len(kept)) and kept[-1 - held].vector is not None:
        held += 1
    older = len(kept) - held
    return (*(replace(m, vector=None, reply=None) for m in kept[:older]), *kept[older:])


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    product: float = sum(map(mul, a, b))
    return product


def _little(values: Numbers) -> Numbers:
    if sys.byteorder == "big":
        values.byteswap()
    return values
