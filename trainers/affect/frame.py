"""Rows as a polars frame: the columnar form that every pipeline step works on.

One column a field of :class:`~trainers.affect.rows.AffectRow`; ``aux`` and ``share`` become lists
of ``{name, value}`` so that any measurement fits one schema. Conversion keeps order and values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from trainers.affect.rows import ARCHETYPES, AXES, AffectRow, Rejects, read_rows, write_rows

_PAIRS = pl.List(pl.Struct({"name": pl.String, "value": pl.Float64}))
_TYPES: dict[str, pl.DataType | type[pl.DataType]] = {
    "context": pl.List(pl.String),
    "valence": pl.Float64,
    "intimacy": pl.Float64,
    "tension": pl.Float64,
    "confidence": pl.Float64,
    "tags": pl.List(pl.String),
    "aux": _PAIRS,
    "share": _PAIRS,
    "weight": pl.Float64,
}
#: Column order and types of every frame in the pipeline.
SCHEMA: dict[str, Any] = {name: _TYPES.get(name, pl.String) for name in AffectRow.model_fields}

_EMPTY: dict[str, Any] = {"context": [], "tags": [], "aux": [], "share": []}


def to_frame(rows: Iterable[AffectRow]) -> pl.DataFrame:
    """Columns of :data:`SCHEMA`, one row a row, same order."""
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA}
    for row in rows:
        for name, column in columns.items():
            value = getattr(row, name)
            if isinstance(value, tuple):
                value = list(value)
            elif isinstance(value, dict):
                value = [{"name": key, "value": value[key]} for key in sorted(value)]
            column.append(value)
    return pl.DataFrame(columns, schema=SCHEMA)


def to_rows(frame: pl.DataFrame) -> Iterator[AffectRow]:
    """The rows of a frame, validated again on the way out."""
    for data in frame.select(list(SCHEMA)).iter_rows(named=True):
        for name in ("aux", "share"):
            data[name] = {item["name"]: item["value"] for item in data[name] or ()}
        for name in ("context", "tags"):
            data[name] = tuple(data[name] or ())
        yield AffectRow.model_validate(data)


def complete(frame: pl.DataFrame) -> pl.DataFrame:
    """Add the columns a reader did not fill (null, or an empty list) and put all in order."""
    missing = [
        pl.lit(_EMPTY.get(name), dtype=dtype).alias(name)
        for name, dtype in SCHEMA.items()
        if name not in frame.columns
    ]
    return frame.with_columns(missing).select(
        pl.col(name).cast(dtype) for name, dtype in SCHEMA.items()
    )


def read_frame(
    paths: str | Path | Iterable[str | Path], rejects: Rejects | None = None
) -> pl.DataFrame:
    """Files of rows as one frame; bad lines go to ``rejects`` (see :func:`rows.read_rows`)."""
    return to_frame(read_rows(paths, rejects))


def write_frame(path: str | Path, frame: pl.DataFrame) -> int:
    """Write a frame as JSONL rows, atomically and byte-stable; returns the number of rows."""
    return write_rows(path, to_rows(frame))


def empty() -> pl.DataFrame:
    """A frame with every column and no row."""
    return pl.DataFrame(schema=SCHEMA)


def matrix(frame: pl.DataFrame) -> np.ndarray:
    """Scores as float64 of shape [rows, 3] in the order of ``AXES``; NaN where not measured."""
    return frame.select(pl.col(axis).fill_null(float("nan")) for axis in AXES).to_numpy()


def shares(frame: pl.DataFrame) -> np.ndarray:
    """How much of each axis a row measures, shape [rows, 3], 1 unless ``share`` says less."""
    parts = [
        frame["share"]
        .list.eval(pl.element().filter(pl.element().struct.field("name") == axis))
        .list.first()
        .struct.field("value")
        .fill_null(1.0)
        for axis in AXES
    ]
    return np.column_stack([part.to_numpy() for part in parts]) if frame.height else np.ones((0, 3))


def unmeasured() -> pl.Expr:
    """True for rows without any score: useful for auxiliary heads only."""
    return pl.all_horizontal(pl.col(axis).is_null() for axis in AXES)


def seeded_order(keys: Sequence[str] | pl.Series, seed: int, purpose: str) -> pl.Series:
    """A pseudo-random sort key for each string that depends on it, the seed and the purpose only.

    Sorting by this is the pipeline's only way to shuffle or sample: unlike a generator it gives a
    row the same place whatever other rows there are, on every platform and library version. Two
    steps that pick by the same key would pick the same rows (a sample, then all of it for test), so
    each names its own ``purpose``.
    """
    start = hashlib.blake2b(f"{seed}\x1f{purpose}\x1f".encode(), digest_size=8)

    def place(key: str) -> str:
        digest = start.copy()
        digest.update(key.encode())
        return digest.hexdigest()

    return pl.Series("order", [place(key) for key in keys], dtype=pl.String)


def primary_tag() -> pl.Expr:
    """The first archetype among a row's tags, else null."""
    return (
        pl.col("tags").list.eval(pl.element().filter(pl.element().is_in(ARCHETYPES))).list.first()
    )
