"""What the runtime wrote about its turns: logs and store, joined by turn."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from trainers.affect.errors import DataError
from trainers.affect.label.items import json_lines
from trainers.affect.rows import (
    AXES,
    MAX_CONTEXT_TURNS,
    TAGS,
    Axis,
    Rejects,
)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One model's affect for one turn."""

    scores: Mapping[Axis, float]
    confidence: float | None
    tags: tuple[str, ...]


@dataclass(slots=True)
class Heard:
    """What is known of one user turn, from all places."""

    session: str
    turn: str
    order: tuple[float, str]
    text: str | None = None
    context: tuple[str, ...] | None = None
    measurements: list[Measurement] = field(default_factory=list)

    def disagreement(self) -> tuple[float, Axis | None]:
        """The largest difference between two measurements, and its axis."""
        worst: tuple[float, Axis | None] = (0.0, None)
        for axis in AXES:
            values = [m.scores[axis] for m in self.measurements if axis in m.scores]
            if values and (gap := max(values) - min(values)) > worst[0]:
                worst = (round(gap, 4), axis)
        return worst

    def mean(self) -> Measurement:
        """Scores averaged over measurements, the lowest confidence, every tag."""
        scores: dict[Axis, float] = {}
        for axis in AXES:
            values = [m.scores[axis] for m in self.measurements if axis in m.scores]
            if values:
                scores[axis] = round(sum(values) / len(values), 4)
        sure = [m.confidence for m in self.measurements if m.confidence is not None]
        tags = sorted({tag for m in self.measurements for tag in m.tags})
        return Measurement(scores, min(sure, default=None), tuple(tags))


def _number(value: Any, low: float, high: float) -> float | None:
    return float(value) if type(value) in (int, float) and low <= value <= high else None


def _place(seq: Any) -> float:
    """A turn's place in its session; 0 where the record names none."""
    return float(seq) if type(seq) in (int, float) and math.isfinite(seq) else 0.0


def measurement_of(record: Mapping[str, Any] | None) -> Measurement | None:
    """An affect record of any of our logs; None when it holds no usable score."""
    if not isinstance(record, Mapping):
        return None
    found = {axis: _number(record.get(axis), -1, 1) for axis in AXES}
    scores: dict[Axis, float] = {axis: v for axis, v in found.items() if v is not None}
    tags = record.get("tags")
    kept = tuple(tag for tag in tags if tag in TAGS) if isinstance(tags, list) else ()
    if not scores:
        return None
    return Measurement(scores, _number(record.get("confidence"), 0, 1), kept)


def store_turns(path: Path) -> Iterator[dict[str, Any]]:
    """The user turns of a runtime store, in order. The one place that knows the store's schema."""
    query = (
        "SELECT session_id, turn_id, seq, user_text, affect_json FROM turns "
        "WHERE user_text IS NOT NULL ORDER BY session_id, seq"
    )
    if not path.is_file():
        raise DataError(f"{path}: no such store; pass the runtime's SQLite file with --store")
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            for session, turn, seq, text, affect in connection.execute(query):
                yield {
                    "session_id": session,
                    "turn_id": turn,
                    "seq": seq,
                    "text": text,
                    "affect": orjson.loads(affect) if affect else None,
                }
        finally:
            connection.close()
    except (sqlite3.Error, orjson.JSONDecodeError) as error:
        raise DataError(f"{path}: not a store this version can read: {error}") from error


def _log_files(folder: Path, name: str) -> list[Path]:
    """A log and its rotated parts (``name.1``, ``name.2``…), oldest first."""
    rotated = [path for path in folder.glob(f"{name}.*") if path.suffix[1:].isdigit()]
    parts = sorted(rotated, key=lambda path: int(path.suffix[1:]), reverse=True)
    return [*parts, folder / name] if (folder / name).is_file() else parts


def log_records(folder: Path, rejects: Rejects) -> Iterator[dict[str, Any]]:
    names = ("turns.jsonl", "affect_head_raw.jsonl")
    files = [path for name in names for path in _log_files(folder, name)]
    if not files:
        raise DataError(f"{folder}: neither {names[0]} nor {names[1]} is here; pass --logs FOLDER")
    for path in files:
        for number, raw, record in json_lines(path, rejects):
            if isinstance(record.get("turn_id"), str):
                yield record
            else:
                rejects.add(path, number, "missing column 'turn_id'", raw)


def collect(records: Iterable[Mapping[str, Any]]) -> list[Heard]:
    """Join records by session and turn. Text and context are taken from the first record that has
    them. A record without a session is of the first turn with its id."""
    turns: dict[tuple[str, str], Heard] = {}
    by_turn: dict[str, list[Heard]] = {}
    for position, record in enumerate(records):
        turn = str(record["turn_id"])
        session = str(record.get("session_id") or record.get("session") or "")
        known = by_turn.setdefault(turn, [])
        heard = turns.get((session, turn)) or next(
            (one for one in known if not session or not one.session), None
        )
        if heard is None:
            heard = Heard(session, turn, (_place(record.get("seq")), f"{position:09}"))
            known.append(heard)
        heard.session = heard.session or session
        turns[heard.session, turn] = heard
        text = record.get("text") or record.get("user_text")
        if heard.text is None and isinstance(text, str) and text.strip():
            heard.text = text
        context = record.get("context")
        if heard.context is None and isinstance(context, list):
            kept = [part for part in context if isinstance(part, str) and part.strip()]
            heard.context = tuple(kept[-MAX_CONTEXT_TURNS:])
        affect = record.get("affect") if isinstance(record.get("affect"), dict) else record
        measured = measurement_of(affect)
        if measured is not None and measured not in heard.measurements:
            heard.measurements.append(measured)
    return [heard for known in by_turn.values() for heard in known]
