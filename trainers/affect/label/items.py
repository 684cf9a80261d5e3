"""What is labelled, and what a label is.

An `Item` is read from a file of affect rows or from a pool of unlabelled messages (``id``,
``text``, ``context``, ``intended``, ``frame``). Scores that a row already carries are its *prior*
label: the queue compares them with a model; a rater never sees them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from trainers.affect.label.log import LabelError
from trainers.affect.rows import (
    ARCHETYPES,
    AXES,
    FLAGS,
    MAX_CONTEXT_TURNS,
    TAGS,
    Axis,
    Key,
    Message,
    Quality,
    Rejects,
    Score,
    Unit,
    with_id,
)

MAX_NOTE_CHARS = 2000


def _checked_tags(tags: tuple[str, ...]) -> tuple[str, ...]:
    for tag in tags:
        if tag not in TAGS:
            known = ", ".join((*ARCHETYPES, *FLAGS))
            raise ValueError(f"unknown tag {tag!r}, use one of {known}")
    return tuple(tag for tag in (*ARCHETYPES, *FLAGS) if tag in tags)  # canonical order, once each


class Label(BaseModel):
    """Three scores in [-1, 1], confidence in [0, 1], tags, a note. Frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    valence: Score
    intimacy: Score
    tension: Score
    confidence: Unit
    tags: tuple[str, ...] = ()
    note: Annotated[str, Field(max_length=MAX_NOTE_CHARS)] = ""

    @field_validator("valence", "intimacy", "tension", "confidence", mode="before")
    @classmethod
    def _plain_number(cls, value: Any) -> Any:
        # JSON has one number type: 1 is as good as 1.0, but true and "1" are not.
        return round(float(value), 4) + 0.0 if type(value) in (int, float) else value

    @field_validator("tags")
    @classmethod
    def _known_tags(cls, tags: tuple[str, ...]) -> tuple[str, ...]:
        return _checked_tags(tags)

    @property
    def scores(self) -> tuple[float, float, float]:
        """(valence, intimacy, tension)."""
        return (self.valence, self.intimacy, self.tension)

    def record(self) -> dict[str, Any]:
        """The form that goes into the log."""
        record: dict[str, Any] = {axis: getattr(self, axis) for axis in (*AXES, "confidence")}
        record["tags"] = list(self.tags)
        if self.note:
            record["note"] = self.note
        return record


class Item(BaseModel):
    """One message to label, with its provenance. Frozen; unknown columns are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Key
    text: Message
    context: tuple[Message, ...] = Field(default=(), max_length=MAX_CONTEXT_TURNS)
    intended: str | None = None
    frame: Key | None = None
    source: str | None = None
    origin: Key | None = None
    origin_split: Key | None = None
    licence: Key | None = None
    session_id: Key | None = None
    thread: Key | None = None
    pair: Key | None = None
    pair_axis: Axis | None = None
    quality: Quality | None = None
    valence: Score | None = None
    intimacy: Score | None = None
    tension: Score | None = None
    confidence: Unit | None = None
    tags: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _fill_id(cls, data: Any) -> Any:
        return with_id(data)

    @field_validator("text")
    @classmethod
    def _says_something(cls, text: str) -> str:
        if not text.strip():
            raise ValueError("text is blank")
        return text

    @field_validator("intended")
    @classmethod
    def _known_intention(cls, intended: str | None) -> str | None:
        if intended is not None and intended not in ARCHETYPES:
            raise ValueError(f"unknown archetype {intended!r}, use one of {', '.join(ARCHETYPES)}")
        return intended

    @field_validator("tags")
    @classmethod
    def _known_tags(cls, tags: tuple[str, ...]) -> tuple[str, ...]:
        return _checked_tags(tags)

    @model_validator(mode="after")
    def _whole_pair(self) -> Item:
        # A row wants both: better a rejected line of the import than an error when it resolves.
        if (self.pair is None) != (self.pair_axis is None):
            raise ValueError("'pair' and 'pair_axis' go together")
        return self

    @property
    def prior(self) -> dict[Axis, float]:
        """The scores the row came with, axes that were measured only."""
        found = {axis: getattr(self, axis) for axis in AXES}
        return {axis: value for axis, value in found.items() if value is not None}

    def record(self) -> dict[str, Any]:
        """The form that goes into the log: no empty columns."""
        data = self.model_dump(mode="json", exclude_none=True)
        return {key: value for key, value in data.items() if value not in ([], ())}


#: Columns that pipeline steps add to a row and that labelling has no use for.
_PASSING = frozenset(
    {"aux", "share", "guideline", "note", "text_ascii", "group", "split", "weight"}
    | {"model", "rank", "reason", "expect"}
)


def explain(error: ValidationError) -> str:
    """All mistakes of one line as one sentence."""
    parts = []
    for item in error.errors(include_url=False, include_context=False):
        where = ".".join(str(piece) for piece in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "missing":
            parts.append(f"missing column {where!r}")
        elif item["type"] == "extra_forbidden":
            parts.append(f"unknown column {where!r}")
        else:
            parts.append(f"{where}: {message[:1].lower()}{message[1:]}" if where else message)
    return "; ".join(parts)


def json_lines(path: Path, rejects: Rejects) -> Iterator[tuple[int, bytes, dict[str, Any]]]:
    """Numbered objects of a JSONL file; what is not one goes to `rejects`, named by line."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LabelError(f"{path}: cannot read it: {error.strerror or error}") from error
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        rejects.seen += 1
        rejects.add(path, 0, "is UTF-16; save it as UTF-8")
        return
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not raw.strip():
            continue
        rejects.seen += 1
        try:
            record = orjson.loads(raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            rejects.add(path, number, f"not UTF-8 at byte {error.start}", raw)
            continue
        except orjson.JSONDecodeError as error:
            rejects.add(path, number, f"broken JSON: {error}", raw)
            continue
        if not isinstance(record, dict):
            rejects.add(path, number, "not an object", raw)
            continue
        yield number, raw, record


def read_items(paths: Iterable[Path], rejects: Rejects) -> Iterator[Item]:
    """Items of JSONL files in order, ids unique over all of them; bad lines go to `rejects`."""
    first_seen: dict[str, str] = {}
    for path in paths:
        for number, raw, record in json_lines(path, rejects):
            known = {key: value for key, value in record.items() if key not in _PASSING}
            try:
                item = Item.model_validate(known)
            except ValidationError as error:
                rejects.add(path, number, explain(error), raw)
                continue
            if item.id in first_seen:
                rejects.add(
                    path, number, f"duplicate id {item.id!r}, first at {first_seen[item.id]}"
                )
                continue
            first_seen[item.id] = f"{path}:{number}"
            yield item


def read_labels(path: Path, known: Mapping[str, Item], rejects: Rejects) -> dict[str, Label | None]:
    """A rater's file: ``{"id", scores, "confidence", "tags"}``, or ``{"id", "drop": true}`` (None).

    Ids that are not in `known`, a second line for an id, and bad values go to `rejects`.
    """
    labels: dict[str, Label | None] = {}
    for number, raw, record in json_lines(path, rejects):
        row = record.pop("id", None)
        if not isinstance(row, str):
            rejects.add(path, number, "missing column 'id'", raw)
        elif row not in known:
            rejects.add(path, number, f"id {row!r} is not among the rows; pass its file", raw)
        elif row in labels:
            rejects.add(path, number, f"duplicate id {row!r}", raw)
        elif record == {"drop": True}:
            labels[row] = None
        else:
            try:
                labels[row] = Label.model_validate(record)
            except ValidationError as error:
                rejects.add(path, number, explain(error), raw)
    return labels
