"""Reading other people's text tables so that no bad line is lost: each is named in the rejects."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from trainers.affect.errors import SourceMissing
from trainers.affect.rows import Rejects

#: Column that carries the 1-based line number through a reader.
LINE = "_line"


def read_table(
    path: Path,
    columns: Sequence[str],
    rejects: Rejects,
    *,
    delimiter: str = "\t",
    header: bool = False,
    quoted: bool = False,
) -> pl.DataFrame:
    """A delimited text file as string columns plus :data:`LINE`.

    With ``header`` the first line must name at least ``columns``, in any order; otherwise every
    line must have exactly that many fields. Lines that are not UTF-8 or have another number of
    fields go to ``rejects``. Raises :class:`SourceMissing` when the file or a header column is not
    there.
    """
    lines = _decoded(path, rejects)
    width, picks = len(columns), list(range(len(columns)))
    if quoted:
        fields = _csv_records(lines, delimiter)
    else:
        fields = ((number, line.split(delimiter)) for number, line in lines)
    if header:
        _, names = next(fields, (0, []))
        rejects.seen -= 1
        missing = [name for name in columns if name not in names]
        if missing:
            raise SourceMissing(f"{path}:1: missing column {missing[0]!r}, found {names}")
        width, picks = len(names), [names.index(name) for name in columns]
    kept: list[list[str]] = [[] for _ in columns]
    numbers: list[int] = []
    for number, values in fields:
        if len(values) != width:
            reason = f"{len(values)} fields instead of {width}"
            rejects.add(path, number, reason, delimiter.join(values))
            continue
        numbers.append(number)
        for column, pick in zip(kept, picks, strict=True):
            column.append(values[pick])
    data = {LINE: pl.Series(numbers, dtype=pl.Int64)}
    data |= {name: pl.Series(v, dtype=pl.String) for name, v in zip(columns, kept, strict=True)}
    return pl.DataFrame(data)


def _decoded(path: Path, rejects: Rejects) -> Iterator[tuple[int, str]]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise SourceMissing(
            f"{path}: cannot read it ({error.strerror}); run `limbic data fetch`, or give the "
            "folder with --data or LIMBIC_DATA"
        ) from error
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        line = line.removesuffix(b"\r")
        if not line.strip():
            continue
        rejects.seen += 1
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            rejects.add(path, number, f"not UTF-8 at byte {error.start}", line)


def _csv_records(
    lines: Iterator[tuple[int, str]], delimiter: str
) -> Iterator[tuple[int, list[str]]]:
    """CSV records with the line number each starts on (quoted fields hold no line breaks here)."""
    for number, line in lines:
        yield number, next(csv.reader([line], delimiter=delimiter))


def numeric(
    frame: pl.DataFrame, column: str, low: float, high: float, path: Path, rejects: Rejects
) -> pl.DataFrame:
    """Cast a column to float; rows whose value is no number or outside [low, high] are rejected."""
    parsed = frame.with_columns(pl.col(column).cast(pl.Float64, strict=False).alias("_value"))
    good = pl.col("_value").is_between(low, high).fill_null(False)
    for line, given in parsed.filter(~good).select(LINE, column).iter_rows():
        rejects.add(path, line, f"{column}: needs a number from {low:g} to {high:g}, got {given!r}")
    return parsed.filter(good).with_columns(pl.col("_value").alias(column)).drop("_value")


def drop_blank(frame: pl.DataFrame, column: str, path: Path, rejects: Rejects) -> pl.DataFrame:
    """Reject rows whose text is empty."""
    blank = pl.col(column).str.strip_chars() == ""
    for (line,) in frame.filter(blank).select(LINE).iter_rows():
        rejects.add(path, line, f"{column} is blank")
    return frame.filter(~blank)
