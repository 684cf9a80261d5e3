"""Every record and wire frame, frozen and checked where it enters.

Models refuse non-finite, out-of-range and oversize values; nothing is clamped in silence. JSON is
read with orjson first (strict UTF-8, no NaN) and then validated. Field names are the contract
(``docs/contracts.md``): levels and confidences lie in [0, 1], affect axes in [-1, 1]; durations end
in ``_ms`` or ``_s``.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from brain.errors import InputError, ProtocolError, TextTooLong

MAX_TEXT_CHARS = 32_000
MAX_TAGS = 16
MAX_REASONING_CHARS = 4_000
MAX_VECTOR_DIM = 4_096
CONTEXT_VECTORS = 5

Axis = Annotated[float, Field(ge=-1.0, le=1.0, allow_inf_nan=False)]
Unit = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Millis = Annotated[float, Field(ge=0.0, le=86_400_000.0, allow_inf_nan=False)]
Tag = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[a-z0-9_]+$")]
Vector = Annotated[
    tuple[Annotated[float, Field(allow_inf_nan=False, ge=-1e6, le=1e6)], ...],
    Field(min_length=1, max_length=MAX_VECTOR_DIM),
]

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# Control characters but tab and newline, and surrogates: a search in C, for long texts.
_NOT_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class Frame(BaseModel):
    """Base of all records: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class WireFrame(BaseModel):
    """Base of what others send: frozen, unknown keys ignored so that they may add freely."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Message(Frame):
    """One chat message in the OpenAI form."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, StringConstraints(max_length=4 * MAX_TEXT_CHARS)]


class Affect(WireFrame):
    """CAHM's answer for one message (``POST /v1/affect``)."""

    valence: Axis
    intimacy: Axis
    tension: Axis
    confidence: Unit
    tags: Annotated[tuple[Tag, ...], Field(max_length=MAX_TAGS)] = ()
    reasoning: Annotated[str, StringConstraints(max_length=MAX_REASONING_CHARS)] = ""
    latency_ms: Millis = 0.0
    model: Annotated[str, StringConstraints(max_length=256)] = ""


class Reasoning(WireFrame):
    """Why the affect head scored a message as it did (``POST /v1/affect/reasoning``)."""

    reasoning: Annotated[str, StringConstraints(max_length=MAX_REASONING_CHARS)]


class Prediction(WireFrame):
    """LVM's answer (``POST /infer``): the vector it expects for the next message."""

    predicted_vector: Vector
    latency_ms: Millis = 0.0
    model: Annotated[str, StringConstraints(max_length=256)] = ""


class Embeddings(WireFrame):
    """The encoder's answer (``POST /encode``): ``embeddings`` of ``shape`` [N, D]; ``encoder_name``
    and ``encoder``, its SHA-256, say which one made them, where it tells."""

    embeddings: Annotated[tuple[Vector, ...], Field(max_length=4096)]
    shape: tuple[int, int]
    encoder: Annotated[str, Field(max_length=200)] = ""
    encoder_name: Annotated[str, Field(max_length=200)] = ""

    @property
    def dim(self) -> int:
        """Length of the vectors; 0 when there are none."""
        return len(self.embeddings[0]) if self.embeddings else 0

    @property
    def identity(self) -> str:
        """Name, hash and dimension in one word: vectors are compared where these are equal. An
        encoder that tells neither name nor hash is known by its dimension alone."""
        return f"{self.encoder_name or '?'}:{self.encoder or '?'}:{self.dim}"


class Foresight(Frame):
    """What foresight says of one user message.

    ``surprise`` is the percentile, in [0, 1], of the distance between the message and its
    prediction within the session's own history; ``None`` until there is a prediction.
    ``vector`` is the message's own embedding, kept for memory, and ``encoder`` the identity of
    what made it.
    """

    surprise: Unit | None = None
    distance: Annotated[float, Field(ge=0.0, le=2.0, allow_inf_nan=False)] | None = None
    vector: Vector | None = None
    latency_ms: Millis = 0.0
    model: str = ""
    encoder: str = ""


class Behaviour(Frame):
    """How the next reply should sound: a directive in plain words, and sampling parameters."""

    directive: Annotated[str, StringConstraints(max_length=400)]
    temperature: Annotated[float, Field(ge=0.0, le=2.0, allow_inf_nan=False)]
    top_p: Annotated[float, Field(gt=0.0, le=1.0, allow_inf_nan=False)]
    max_tokens: Annotated[int, Field(ge=1, le=8192)]


class Hello(WireFrame):
    """A sidecar's handshake, one JSON line on its standard output once it listens."""

    event: Literal["hello"]
    name: str
    port: Annotated[int, Field(ge=1, le=65535)]
    pid: Annotated[int, Field(ge=1)]
    model: str = ""
    sha256: str = ""
    version: str = ""


class Progress(WireFrame):
    """A sign of life while a sidecar loads: one JSON line, extends its start-up deadline."""

    event: Literal["progress"]
    detail: Annotated[str, StringConstraints(max_length=400)] = ""


class Ready(WireFrame):
    """A sidecar's ``GET /ready``."""

    ready: bool
    model: str = ""
    sha256: str = ""
    version: str = ""


WireT = TypeVar("WireT", bound=BaseModel)


def parse_wire(model: type[WireT], body: bytes, *, remote: str) -> WireT:
    """Bytes from another process → a checked record.

    Raises:
        ProtocolError: not JSON, or any field missing, non-finite, out of range or too large.
    """
    try:
        return model.model_validate(orjson.loads(body))
    except orjson.JSONDecodeError as error:
        raise ProtocolError(
            f"{remote} answered something that is not JSON", remote=remote
        ) from error
    except ValidationError as error:
        raise ProtocolError(
            f"{remote} answered outside its contract: {describe(error)}", remote=remote
        ) from error


def describe(error: ValidationError) -> str:
    """The first two mistakes of a validation error in one line, without the offending text."""
    parts = [
        f"{'.'.join(str(p) for p in item['loc']) or 'body'}: {item['msg']}"
        for item in error.errors(include_input=False, include_url=False)
    ]
    return "; ".join(parts[:2]) + (f" (+{len(parts) - 2} more)" if len(parts) > 2 else "")


def check_id(value: str, *, what: str) -> str:
    """Return ``value`` if it is a usable session or turn id.

    Raises:
        InputError: anything but 1-64 of ``A-Z a-z 0-9 . _ -`` starting with a letter or digit.
    """
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise InputError(
            f"{what} must be 1-64 letters, digits, '.', '_' or '-', starting with a letter or digit"
        )
    return value


def check_text(text: str, *, max_chars: int = MAX_TEXT_CHARS) -> str:
    """Return the user's text with line ends made ``\\n`` and outer white space removed.

    Raises:
        TextTooLong: over ``max_chars`` characters.
        InputError: empty, lone surrogates, or control characters other than tab and newline.
    """
    if not isinstance(text, str):
        raise InputError("the message must be text")
    if len(text) > max_chars:
        raise TextTooLong(f"the message has {len(text)} characters; the limit is {max_chars}")
    cleaned = text.replace("\r\n", "\n").replace("\r", "\n").strip()
    if not cleaned:
        raise InputError("the message is empty")
    if found := _NOT_TEXT.search(cleaned):
        if unicodedata.category(found[0]) == "Cs":
            raise InputError("the message holds a lone surrogate; send valid Unicode text")
        raise InputError(
            f"the message holds the control character U+{ord(found[0]):04X}; send plain text"
        )
    return cleaned


def dumps(value: Mapping[str, Any] | BaseModel) -> bytes:
    """One JSON line without its newline; records are written by field name."""
    if isinstance(value, BaseModel):
        return orjson.dumps(value.model_dump(mode="json"))
    return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)
