"""Weak scores: what emotion labels let us guess about the axes, for a capped part of the rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from trainers.affect.config import Mapping, load_sources
from trainers.affect.errors import DataConfigError
from trainers.affect.frame import complete, seeded_order
from trainers.affect.rows import AXES, MAX_TEXT_CHARS


def licence_of(source: str) -> str:
    return load_sources().sources[source].licence


def backfilled(
    rows: pl.DataFrame, source: str, mapping: Mapping, seed: int, cap: int
) -> pl.DataFrame:
    """Weak scores for at most ``cap`` rows of each label, counting a row under its rarest label.

    Rare labels (grief, relief) would vanish in a plain sample; this keeps them.
    """
    names = sorted({name for labels in rows["names"].to_list() for name in labels})
    present = np.column_stack(
        [rows["names"].list.contains(name).to_numpy() for name in names]
    ).astype(float)
    frequency = present.sum(axis=0)
    rarest = np.where(present > 0, frequency, np.inf).argmin(axis=1)
    ranked = rows.select("id").with_columns(
        pl.Series("rarest", rarest), seeded_order(rows["id"], seed, f"{source} label cap")
    )
    chosen = (
        ranked.select(pl.col("order").rank("ordinal").over("rarest")).to_series().to_numpy() <= cap
    )
    scores, tags = mean_meaning(present, names, source, mapping)
    scores[~chosen] = np.nan
    tags = [tag if keep else [] for tag, keep in zip(tags, chosen, strict=True)]
    aux = pl.col("names").list.eval(
        pl.struct(pl.element().alias("name"), pl.lit(1.0).alias("value"))
    )
    return weakly_scored(rows.with_columns(aux.alias("aux")), source, scores, tags, mapping)


def mean_meaning(
    strengths: np.ndarray, names: Sequence[str], source: str, mapping: Mapping
) -> tuple[np.ndarray, list[list[str]]]:
    """Scores [rows, 3] (NaN: nothing said, or labels disagree) and archetype tags of label sets.

    ``strengths`` has shape [rows, labels], 0 where a label is absent.
    """
    table = mapping.labels.get(source, {})
    unknown = [name for name in names if name not in table]
    if unknown:
        raise DataConfigError(
            f"archetypes.toml: [{source}] has no line for {unknown[0]!r}; add one (it may be empty "
            "of axes but must name an archetype), or correct the label"
        )
    values = np.array(
        [[np.nan if (v := getattr(table[n], a)) is None else v for a in AXES] for n in names]
    )
    scores = np.full((len(strengths), len(AXES)), np.nan)
    for column in range(len(AXES)):
        speaks = ~np.isnan(values[:, column])
        weight = strengths[:, speaks]
        total = weight.sum(axis=1)
        said = values[speaks, column]
        top = np.where(weight > 0, said, -np.inf).max(axis=1, initial=-np.inf)
        low = np.where(weight > 0, said, np.inf).min(axis=1, initial=np.inf)
        agreed = (total > 0) & (top - low <= mapping.max_disagreement)
        scores[agreed, column] = (weight @ said)[agreed] / total[agreed]
    archetypes = [table[name].archetype for name in names]
    tags: list[list[str]] = []
    for row in strengths > 0:
        # One label, one archetype: a mixed row has no clear place.
        found = {archetypes[i] for i in np.flatnonzero(row)}
        only = found.pop() if len(found) == 1 else None
        tags.append([only] if only else [])
    return scores, tags


def weakly_scored(
    rows: pl.DataFrame, source: str, scores: np.ndarray, tags: list[list[str]], mapping: Mapping
) -> pl.DataFrame:
    scored = ~np.isnan(scores).all(axis=1)
    kept = [tag if keep else [] for tag, keep in zip(tags, scored, strict=True)]
    return complete(
        rows.select("id", pl.col("text").str.slice(0, MAX_TEXT_CHARS), "origin_split", "aux")
        .with_columns(
            *(
                pl.Series(axis, scores[:, column]).fill_nan(None)
                for column, axis in enumerate(AXES)
            ),
            pl.Series("tags", kept, dtype=pl.List(pl.String)),
            pl.Series("_scored", scored),
            pl.lit(source).alias("source"),
            pl.lit(licence_of(source)).alias("licence"),
        )
        .with_columns(
            pl.when("_scored").then(pl.lit("backfill")).otherwise(pl.lit("auto")).alias("quality"),
            pl.when("_scored").then(pl.lit(mapping.confidence)).alias("confidence"),
        )
    )
