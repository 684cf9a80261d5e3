"""The files of a finished data set: one a split, share-alike rows in files of their own.

``train.jsonl`` holds the permissive rows of train and ``train.CC-BY-SA-4.0.jsonl`` those under that
licence; a reader of the whole split takes both. ``auxiliary`` holds rows without any score (emotion
labels only), whose ``split`` column says where they belong. ``held_out`` holds published dev rows
that neither train nor test.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from trainers.affect.config import Sources
from trainers.affect.errors import DataError
from trainers.affect.frame import empty, read_frame, unmeasured, write_frame

PARTS: tuple[str, ...] = ("train", "dev", "test", "held_out", "auxiliary", "gold")


def write_shards(folder: Path, rows: pl.DataFrame, sources: Sources) -> list[Path]:
    """Write a set below ``folder`` and return the files; stale shards there are removed."""
    part = (
        pl.when(pl.col("split") == "gold").then(pl.lit("gold"))
        .when(unmeasured()).then(pl.lit("auxiliary"))
        .otherwise(pl.col("split").fill_null("held_out"))
    )  # fmt: skip
    rows = rows.with_columns(part.alias("part")).sort("part", "source", "id")
    written = []
    for name in PARTS:
        of_part = rows.filter(pl.col("part") == name)
        for licence in sorted(of_part["licence"].unique()):
            if sources.licence_class(licence) != "permissive":
                path = folder / f"{name}.{licence}.jsonl"
                write_frame(path, of_part.filter(pl.col("licence") == licence))
                written.append(path)
        permissive = of_part.filter(
            pl.col("licence").is_in(
                [
                    name
                    for name in of_part["licence"].unique()
                    if sources.licence_class(name) == "permissive"
                ]
            )
        )
        if permissive.height or name in ("train", "dev", "test"):
            write_frame(folder / f"{name}.jsonl", permissive)
            written.append(folder / f"{name}.jsonl")
    for stale in shard_files(folder):
        if stale not in written:
            stale.unlink()
    return sorted(written)


def shard_files(folder: str | Path, part: str | None = None) -> list[Path]:
    """The shard files in a folder, of one part or of all, by name."""
    parts = PARTS if part is None else (part,)
    return sorted(
        path for path in Path(folder).glob("*.jsonl") if path.name.split(".", 1)[0] in parts
    )


def load_part(folder: str | Path, part: str) -> pl.DataFrame:
    """All rows of one part (``train``, ``dev``, ``test``, ``auxiliary``…), licences together."""
    if part not in PARTS:
        raise DataError(f"no part {part!r}; there are {', '.join(PARTS)}")
    files = shard_files(folder, part)
    return read_frame(files) if files else empty()
