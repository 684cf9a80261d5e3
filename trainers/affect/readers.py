"""Public data sets as affect rows.

Each reader is a pure function of the files in a data folder. It scores only what the set measures;
every other axis stays null. What a set measures besides (emotion labels, dominance) is kept in
``aux`` for auxiliary heads. Lines that cannot be read go to the rejects.

Emotion sets do not measure the axes. A capped, label-balanced sample of their rows gets the weak
scores of ``config/data/archetypes.toml`` and is marked ``backfill``; the others keep null axes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from trainers.affect.config import Build, Mapping
from trainers.affect.frame import complete
from trainers.affect.rows import Rejects, stable_id
from trainers.affect.tables import LINE, drop_blank, numeric, read_table
from trainers.affect.weak import backfilled, licence_of, mean_meaning, weakly_scored

Reader = Callable[[Path, Mapping, Build, Rejects], pl.DataFrame]

XED_LABELS = (
    "neutral", "anger", "anticipation", "disgust", "fear", "joy", "sadness", "surprise", "trust",
)  # fmt: skip
SEMEVAL_LABELS = ("anger", "fear", "joy", "sadness", "surprise")
_INTENSITY_MAX = 3.0
#: Ratings on EmoBank's 1..5 scale are centred on 3; 2 scale points are one unit of an axis.
_RATING_MIDDLE, _RATING_UNIT = 3.0, 2.0


def read_goemotions(root: Path, mapping: Mapping, build: Build, rejects: Rejects) -> pl.DataFrame:
    """GoEmotions comments with their emotion labels; a capped part gets weak scores."""
    folder = root / "affect" / "goemotions"
    names = _names(folder / "emotions.txt")
    parts = []
    for split in ("train", "dev"):
        path = folder / f"{split}.tsv"
        table = read_table(path, ("text", "labels", "comment"), rejects)
        table = _label_lists(drop_blank(table, "text", path, rejects), names, path, rejects)
        parts.append(
            table.with_columns(
                pl.lit(split).alias("origin_split"),
                pl.format("goemotions/{}", "comment").alias("id"),
            )
        )
    rows = _unique_ids(pl.concat(parts), folder, rejects)
    return backfilled(rows, "goemotions", mapping, build.seed, build.goemotions_cap_per_label)


def read_xed(root: Path, mapping: Mapping, build: Build, rejects: Rejects) -> pl.DataFrame:
    """XED film subtitles with Plutchik's emotions, and its neutral lines."""
    folder = root / "affect" / "xed_en"
    path = folder / "en-annotated.tsv"
    table = read_table(path, ("text", "labels"), rejects)
    emotional = _label_lists(drop_blank(table, "text", path, rejects), XED_LABELS, path, rejects)
    path = folder / "neu_en.txt"
    table = read_table(path, ("code", "text"), rejects)
    neutral = drop_blank(table, "text", path, rejects).select(
        LINE, "text", pl.lit(["neutral"]).alias("names")
    )
    rows = pl.concat([emotional.select(LINE, "text", "names"), neutral])
    rows = rows.with_columns(
        _ids("xed", rows["text"]), pl.lit(None, pl.String).alias("origin_split")
    )
    return backfilled(rows, "xed", mapping, build.seed, build.xed_cap_per_label)


def read_semeval(root: Path, mapping: Mapping, build: Build, rejects: Rejects) -> pl.DataFrame:
    """SemEval-2025 task 11 (track B, English): rated intensities, scaled to 0..1 in ``aux``.

    The weak scores of a row are what its emotions mean at full intensity, scaled by the strongest
    one; a row in which nothing reaches 2 of 3 keeps null axes.
    """
    folder = root / "affect" / "semeval2025_task11_en"
    parts = []
    for split in ("train", "dev"):
        path = folder / f"track_b_{split}.csv"
        columns = ("id", "text", *SEMEVAL_LABELS)
        table = read_table(path, columns, rejects, delimiter=",", header=True, quoted=True)
        table = drop_blank(table, "text", path, rejects)
        for label in SEMEVAL_LABELS:
            table = numeric(table, label, 0.0, _INTENSITY_MAX, path, rejects)
        parts.append(
            table.with_columns(
                pl.format("semeval/{}", "id").alias("id"),
                pl.lit(split).alias("origin_split"),
                *(pl.col(label) / _INTENSITY_MAX for label in SEMEVAL_LABELS),
            )
        )
    rows = _unique_ids(pl.concat(parts), folder, rejects)
    strengths = rows.select(SEMEVAL_LABELS).to_numpy()
    scores, tags = mean_meaning(strengths, SEMEVAL_LABELS, "semeval", mapping)
    peak = strengths.max(axis=1, initial=0.0)
    scores = np.where(peak[:, None] * _INTENSITY_MAX >= 2, scores * peak[:, None], np.nan)
    rows = rows.with_columns(_aux([pl.col(label) for label in SEMEVAL_LABELS]))
    return weakly_scored(rows, "semeval", scores, tags, mapping)


def read_emobank(root: Path, mapping: Mapping, build: Build, rejects: Rejects) -> pl.DataFrame:
    """EmoBank: valence, and arousal as a share of tension, from 1..5 to -1..1 around 3.

    ``share`` says how much of tension arousal is taken to be. ``confidence`` is one minus the mean
    standard deviation of the single valence ratings, in axis units: readers who agree are trusted.
    The thread is the document that a sentence is from.
    """
    folder = root / "affect" / "emobank"
    path = folder / "emobank_train_dev.csv"
    columns = ("id", "split", "V", "A", "D", "text")
    table = read_table(path, columns, rejects, delimiter=",", header=True, quoted=True)
    table = drop_blank(table, "text", path, rejects)
    for axis in ("V", "A", "D"):
        table = numeric(table, axis, 1.0, 5.0, path, rejects)
    table = _unique_ids(table, folder, rejects)
    spread = pl.concat(
        _rating_spread(folder / f"individual_{who}_ratings.csv", rejects)
        for who in ("reader", "writer")
    )
    spread = spread.group_by("id", maintain_order=True).agg(pl.col("spread").mean())
    table = table.join(spread, on="id", how="left", maintain_order="left")
    scaled = {
        letter: (pl.col(letter) - _RATING_MIDDLE) / _RATING_UNIT for letter in ("V", "A", "D")
    }
    return complete(
        table.select(
            pl.format("emobank/{}", "id").alias("id"),
            "text",
            scaled["V"].alias("valence"),
            scaled["A"].alias("tension"),
            (1.0 - pl.col("spread")).clip(0.0, 1.0).alias("confidence"),
            pl.lit("auto").alias("quality"),
            pl.lit("emobank").alias("source"),
            pl.lit(licence_of("emobank")).alias("licence"),
            pl.col("split").alias("origin_split"),
            pl.format("emobank/{}", pl.col("id").str.replace(r"_\d+_\d+$", "")).alias("thread"),
            _aux([scaled["A"].alias("arousal"), scaled["D"].alias("dominance")]),
            pl.lit([{"name": "tension", "value": build.emobank_tension_share}]).alias("share"),
        )
    )


def read_intimacy(root: Path, mapping: Mapping, build: Build, rejects: Rejects) -> pl.DataFrame:
    """Question intimacy: the published score is the axis; nothing else is known of a question."""
    folder = root / "affect" / "question_intimacy"
    parts = []
    for split in ("train", "val"):
        path = folder / f"final_{split}.txt"
        table = drop_blank(read_table(path, ("text", "intimacy"), rejects), "text", path, rejects)
        table = numeric(table, "intimacy", -1.0, 1.0, path, rejects)
        parts.append(
            table.with_columns(pl.lit("dev" if split == "val" else split).alias("origin_split"))
        )
    rows = pl.concat(parts)
    return complete(
        rows.select(
            _ids("intimacy", rows["text"]),
            "text",
            "intimacy",
            pl.lit("auto").alias("quality"),
            pl.lit("intimacy").alias("source"),
            pl.lit(licence_of("intimacy")).alias("licence"),
            "origin_split",
        )
    )


READERS: dict[str, Reader] = {
    "goemotions": read_goemotions,
    "xed": read_xed,
    "emobank": read_emobank,
    "intimacy": read_intimacy,
    "semeval": read_semeval,
}

# ---------------------------------------------------------------------------------- shared parts


def _names(path: Path) -> tuple[str, ...]:
    table = read_table(path, ("name",), Rejects())
    return tuple(table["name"].str.strip_chars().to_list())


def _ids(source: str, texts: pl.Series) -> pl.Series:
    """Ids from the texts; the second time a text occurs its id ends in ``-2``, and so on."""
    seen: Counter[str] = Counter()
    ids = []
    for text in texts:
        name = stable_id(source, text)
        seen[name] += 1
        ids.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return pl.Series("id", ids, dtype=pl.String)


def _unique_ids(rows: pl.DataFrame, folder: Path, rejects: Rejects) -> pl.DataFrame:
    first = rows["id"].is_first_distinct()
    for line, name in rows.filter(~first).select(LINE, "id").iter_rows():
        rejects.add(folder, line, f"duplicate id {name!r}")
    return rows.filter(first)


def _label_lists(
    table: pl.DataFrame, names: Sequence[str], path: Path, rejects: Rejects
) -> pl.DataFrame:
    """Turn "3, 7" into names; a number that has no name rejects the row."""
    numbers = (
        pl.col("labels")
        .str.split(",")
        .list.eval(pl.element().str.strip_chars().cast(pl.Int64, strict=False))
    )
    table = table.with_columns(numbers.alias("_numbers"))
    known = pl.col("_numbers").list.eval(
        pl.element().is_between(0, len(names) - 1).fill_null(False)
    )
    good = known.list.all()
    for line, given in table.filter(~good).select(LINE, "labels").iter_rows():
        rejects.add(path, line, f"unknown label in {given!r}, there are 0 to {len(names) - 1}")
    lookup = dict(enumerate(names))
    return table.filter(good).with_columns(
        pl.col("_numbers")
        .list.eval(pl.element().replace_strict(lookup, return_dtype=pl.String))
        .list.unique(maintain_order=True)
        .alias("names")
    ).drop("_numbers")  # fmt: skip


def _aux(values: Sequence[pl.Expr]) -> pl.Expr:
    """Non-zero measurements as the ``aux`` list; what is not listed was looked for and absent."""
    items = [
        pl.struct(pl.lit(value.meta.output_name()).alias("name"), value.alias("value"))
        for value in values
    ]
    listed = pl.concat_list(items)
    return listed.list.eval(
        pl.element().filter(pl.element().struct.field("value") != 0.0)
    ).alias("aux")  # fmt: skip


def _rating_spread(path: Path, rejects: Rejects) -> pl.DataFrame:
    """Standard deviation of the single valence ratings of each text, in axis units."""
    table = read_table(path, ("id", "V"), rejects, delimiter=",", header=True, quoted=True)
    table = numeric(table, "V", 1.0, 5.0, path, rejects)
    return (
        table.group_by("id", maintain_order=True)
        .agg((pl.col("V").std(ddof=0) / _RATING_UNIT).alias("spread"))
        .sort("id")
    )
