"""Small helpers that the labelling tests share."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson

from trainers.affect.label.items import Label
from trainers.affect.label.log import DecisionLog, Draft


def ticking():
    """A clock that moves one second a look."""
    seconds = itertools.count()
    start = datetime(2030, 1, 1, tzinfo=UTC)
    return lambda: start + timedelta(seconds=next(seconds))


def a_label(valence=0.0, intimacy=0.0, tension=0.0, confidence=0.8, tags=(), note="") -> Label:
    return Label(
        valence=valence,
        intimacy=intimacy,
        tension=tension,
        confidence=confidence,
        tags=tags,
        note=note,
    )


def add_rows(log: DecisionLog, texts: Iterable[str], **columns: Any) -> list[str]:
    drafts = [
        Draft(
            "", "add", f"r{n:03}", "item", None, {"id": f"r{n:03}", "text": text, **columns}, "1.0"
        )
        for n, text in enumerate(texts)
    ]
    log.append(drafts)
    return [draft.row for draft in drafts]


def write_jsonl(path: Path, records: Iterable[Any]) -> Path:
    path.write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in records))
    return path
