"""The affect row: one message, up to three scores, and where it all comes from.

A file of rows is JSON lines in UTF-8. An axis nobody measured is ``null`` (the key is still there),
so that a misspelt key can never pass for "not measured". Reading never drops a line silently: each
bad one is named with file and line in a :class:`Rejects`, which ends up in a rejects file.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trainers.affect.errors import BadRow, TooManyRejects

Axis = Literal["valence", "intimacy", "tension"]
AXES: tuple[Axis, ...] = get_args(Axis)

Quality = Literal["gold", "exemplar", "clean", "auto", "backfill"]
QUALITIES: tuple[Quality, ...] = get_args(Quality)

Split = Literal["train", "dev", "test", "gold"]

#: Regions of the affect space that get a target count of their own.
ARCHETYPES: tuple[str, ...] = (
    "hostile_intimacy",
    "aggressive_distance",
    "neutral_but_close",
    "flat_numb",
    "fearful_urgent",
    "playful_neutral",
    "safety_edge",
    "everyday_neutral",
    "everyday_warm",
)
#: How a message says it, whatever it feels like; lint trusts these over its own patterns.
FLAGS: tuple[str, ...] = ("sarcasm", "quoted_speech", "creep", "boundary")
TAGS: frozenset[str] = frozenset(ARCHETYPES + FLAGS)

#: Sources whose scores come from our own guidelines, so the version must be on the row.
GUIDED_SOURCES: frozenset[str] = frozenset({"llm_label", "human"})

MAX_TEXT_CHARS = 4000
MAX_CONTEXT_TURNS = 2
_REJECT_EXCERPT_CHARS = 200
_SCORE_DECIMALS = 4

Score = Annotated[float, Field(ge=-1.0, le=1.0, allow_inf_nan=False, strict=True)]
Unit = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False, strict=True)]
Weight = Annotated[float, Field(ge=0.0, allow_inf_nan=False, strict=True)]
Key = Annotated[str, Field(min_length=1, max_length=200)]
Message = Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARS)]


class AffectRow(BaseModel):
    """One labelled message. Frozen; unknown keys, wrong types and non-finite numbers are refused.

    Axes are in [-1, 1], ``confidence`` and the values of ``share`` in [0, 1]. Without an ``id`` the
    row gets :func:`stable_id` of its source, text and context.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Key
    text: Message
    #: Earlier turns, oldest first.
    context: tuple[Message, ...] = Field(default=(), max_length=MAX_CONTEXT_TURNS)
    valence: Score | None
    intimacy: Score | None
    tension: Score | None
    confidence: Unit | None = None
    tags: tuple[str, ...] = ()
    quality: Quality
    #: Who gave the scores: ``llm_label``, ``human``, ``goemotions``, ``emobank``…
    source: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$", max_length=60)]
    #: SPDX identifier of the text and its labels.
    licence: Key
    #: Where the text was taken from when that is not ``source`` (a chat corpus, a scenario).
    origin: Key | None = None
    #: The split the publisher put the row in; "train" on a row of the labelled pool: made for
    #: training alone (``split``).
    origin_split: Key | None = None
    #: Version of the labelling guidelines, for sources that follow them.
    guideline: Key | None = None
    #: Sentence construction or template the text was written from.
    frame: Key | None = None
    session_id: Key | None = None
    #: Document or conversation the text belongs to.
    thread: Key | None = None
    #: Name shared by the rows of one minimal pair, and the axis that differs between them.
    pair: Key | None = None
    pair_axis: Axis | None = None
    #: Other measurements of the same text (emotion intensities, dominance), for auxiliary heads.
    aux: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = Field(default_factory=dict)
    #: How much of an axis this source really measures; an absent axis counts fully.
    share: dict[Axis, Unit] = Field(default_factory=dict)
    note: Annotated[str, Field(max_length=2000)] | None = None
    #: Set by the pipeline: ASCII form, leak group, split and training weight.
    text_ascii: str | None = None
    group: Key | None = None
    split: Split | None = None
    weight: Weight | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_id(cls, data: Any) -> Any:
        return with_id(data)

    @model_validator(mode="after")
    def _check_whole(self) -> AffectRow:
        if not self.text.strip():
            raise ValueError("text is blank")
        unknown = [tag for tag in self.tags if tag not in TAGS]
        if unknown:
            raise ValueError(f"unknown tag {unknown[0]!r}, use one of {', '.join(sorted(TAGS))}")
        if len(set(self.tags)) != len(self.tags):
            raise ValueError("a tag is listed twice")
        if self.source in GUIDED_SOURCES and self.guideline is None:
            raise ValueError(f"source {self.source!r} needs the guideline version in 'guideline'")
        if (self.pair is None) != (self.pair_axis is None):
            raise ValueError("'pair' and 'pair_axis' go together")
        return self


def stable_id(source: str, text: str, context: Iterable[str] = ()) -> str:
    """16 hex digits that depend on the source, the exact text and the context, on nothing else."""
    digest = hashlib.blake2b(digest_size=8)
    for part in (source, text, *context):
        digest.update(part.encode("utf-8", "surrogatepass"))
        digest.update(b"\x1f")
    return digest.hexdigest()


def with_id(data: Any) -> Any:
    """A line's columns with an ``id``, where they have none and text to make one from.

    Whatever is not as it should be is left for the validation to name, so the id goes by the turns
    of the context that are text.
    """
    if not isinstance(data, dict) or "id" in data or not isinstance(data.get("text"), str):
        return data
    context = data.get("context")
    turns = [t for t in context if isinstance(t, str)] if isinstance(context, list | tuple) else ()
    return {**data, "id": stable_id(str(data.get("source", "")), data["text"], turns)}


# ---------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Reject:
    """One line that could not become a row."""

    file: str
    line: int  #: 1-based; 0 when the whole file is unusable
    reason: str
    excerpt: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


@dataclass
class Rejects:
    """Collects bad lines, writes them down, and knows when there are too many."""

    items: list[Reject] = field(default_factory=list)
    seen: int = 0

    def add(self, file: str | Path, line: int, reason: str, raw: bytes | str = b"") -> None:
        text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw
        self.items.append(Reject(str(file), line, reason, text[:_REJECT_EXCERPT_CHARS]))

    @property
    def share(self) -> float:
        """Rejected part of everything read, 0..1."""
        return len(self.items) / self.seen if self.seen else 0.0

    def write(self, path: str | Path) -> None:
        """One JSON line a reject: ``file``, ``line``, ``reason``, ``excerpt``. Atomic."""
        _write_atomic(
            Path(path),
            (
                orjson.dumps(
                    {"file": r.file, "line": r.line, "reason": r.reason, "excerpt": r.excerpt}
                )
                for r in self.items
            ),
        )

    def check(self, max_share: float) -> None:
        """Raise :class:`TooManyRejects` when more than ``max_share`` of the lines were bad."""
        if self.items and self.share > max_share:
            raise TooManyRejects(
                f"{len(self.items)} of {self.seen} lines rejected ({self.share:.1%}, allowed "
                f"{max_share:.1%}); first: {self.items[0]}. Fix them or raise --max-rejects"
            )


def read_rows(
    paths: str | Path | Iterable[str | Path], rejects: Rejects | None = None
) -> Iterator[AffectRow]:
    """Yield the rows of JSONL files in order; ids must be unique over all of them.

    Without ``rejects`` the first bad line raises :class:`BadRow`; with it, bad lines are added
    there and reading goes on. Blank lines are skipped.
    """
    first_seen: dict[str, str] = {}
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        for number, raw in _lines(Path(path), rejects):
            if rejects is not None:
                rejects.seen += 1
            place = f"{path}:{number}"
            try:
                row = AffectRow.model_validate_json(raw.decode("utf-8"))
            except UnicodeDecodeError as error:
                _refuse(rejects, path, number, f"not UTF-8 at byte {error.start}", raw)
                continue
            except ValidationError as error:
                _refuse(rejects, path, number, _explain(error), raw)
                continue
            if row.id in first_seen:
                reason = f"duplicate id {row.id!r}, first at {first_seen[row.id]}"
                _refuse(rejects, path, number, reason, raw)
                continue
            first_seen[row.id] = place
            yield row


def _lines(path: Path, rejects: Rejects | None) -> Iterator[tuple[int, bytes]]:
    """Numbered, non-blank raw lines; a file that cannot be text at all is one reject."""
    try:
        handle = path.open("rb")
    except OSError as error:
        raise BadRow(f"{path}:0: cannot read it: {error.strerror or error}") from error
    with handle:
        head = handle.read(4)
        if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
            if rejects is not None:
                rejects.seen += 1
            _refuse(rejects, path, 0, "is UTF-16; save it as UTF-8")
            return
        handle.seek(3 if head[:3] == b"\xef\xbb\xbf" else 0)
        for number, raw in enumerate(handle, start=1):
            if stripped := raw.strip():
                yield number, stripped


def _refuse(
    rejects: Rejects | None, path: str | Path, line: int, reason: str, raw: bytes = b""
) -> None:
    if rejects is None:
        raise BadRow(f"{path}:{line}: {reason}")
    rejects.add(path, line, reason, raw)


def _explain(error: ValidationError) -> str:
    """All problems of one line as one sentence, in the row's own words."""
    parts = []
    for item in error.errors(include_url=False, include_context=False):
        where = ".".join(str(piece) for piece in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        match item["type"]:
            case "missing":
                parts.append(f"missing column {where!r}")
            case "extra_forbidden":
                parts.append(f"unknown column {where!r}")
            case "model_type" | "dict_type" | "model_attributes_type":
                parts.append("not an object; each line is one {...}")
            case "json_invalid":
                parts.append(f"broken JSON: {message.removeprefix('Invalid JSON: ')}")
            case _ if where:
                given = repr(item.get("input"))[:60]
                parts.append(f"{where}: {message[:1].lower()}{message[1:]}, got {given}")
            case _:
                parts.append(message)
    return "; ".join(parts)


# ---------------------------------------------------------------------------------- writing


def row_bytes(row: AffectRow) -> bytes:
    """The one JSON form of a row: fixed key order, scores to 4 decimals, no empty optionals."""
    data: dict[str, Any] = {}
    for name in AffectRow.model_fields:
        value = getattr(row, name)
        if isinstance(value, float):
            value = round(value, _SCORE_DECIMALS) + 0.0  # no "-0.0"
        elif isinstance(value, dict):
            value = {k: round(value[k], _SCORE_DECIMALS) + 0.0 for k in sorted(value)}
        if value in (None, {}) and name not in AXES:
            continue
        data[name] = value
    return orjson.dumps(data)


def write_rows(path: str | Path, rows: Iterable[AffectRow]) -> int:
    """Write rows as JSONL and return how many. Atomic (a reader sees the old file or the whole
    new one) and byte-stable (the same rows in the same order give the same bytes)."""
    return _write_atomic(Path(path), (row_bytes(row) for row in rows))


def _write_atomic(path: Path, lines: Iterable[bytes]) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as handle:
            for line in lines:
                handle.write(line + b"\n")
                count += 1
            handle.flush()
            os.fsync(handle.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return count
