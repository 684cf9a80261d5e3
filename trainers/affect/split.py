"""Train, dev and test: whole groups on one side, archetypes in proportion, no leaks.

Rows belong together when they share a frame, session, thread, minimal pair, near-copy cluster or
bare text; sharing is transitive. A group goes to one split as a whole, so that a frame or document
that is tested was never trained on.

Publishers' dev rows are respected: a group that is at least half published dev rows goes to dev; a
published dev row whose group has to train is **held out** (split null), so that figures on the
published dev set stay honest. Guessed scores (``backfill``) are removed outside train: dev and test
measure against measured scores only.

A row of the labelled pool that says ``origin_split`` "train" was made for training alone: a group
of such rows trains, and none of them counts in anybody's share. More of them may join later
without a row changing sides, so heads of before and after are measured on the same rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from trainers.affect.config import Build, Merge
from trainers.affect.copies import ascii_form, bare_form, components, group_names, near_pairs
from trainers.affect.errors import LeakFound
from trainers.affect.frame import complete, primary_tag, seeded_order
from trainers.affect.merge import unscored
from trainers.affect.rows import GUIDED_SOURCES

#: Columns whose shared value puts rows into one group.
GROUP_KEYS = ("group", "frame", "session_id", "thread", "pair")


@dataclass(frozen=True)
class SplitReport:
    """Rows a split, groups, the largest group, and published dev rows kept out of all splits."""

    counts: dict[str, int]
    groups: int
    largest_group: int
    held_out: int


def with_groups(rows: pl.DataFrame) -> pl.DataFrame:
    """Set ``group`` to the transitive group of each row, named after its smallest id."""
    keys = rows.select(
        *(pl.col(key) for key in GROUP_KEYS), bare_form(ascii_form(rows["text"])).alias("bare")
    )
    edges = []
    offset = rows.height
    for column in keys.columns:
        values = keys[column]
        present = values.is_not_null().to_numpy()
        codes = values.rank("dense").fill_null(1).to_numpy().astype(np.int64) - 1
        nodes = np.flatnonzero(present)
        edges.append(np.column_stack([nodes, codes[present] + offset]))
        offset += int(codes.max(initial=-1)) + 1
    component = components(offset, np.concatenate(edges))[: rows.height]
    return rows.with_columns(group_names(rows["id"], component))


def split(rows: pl.DataFrame, build: Build) -> tuple[pl.DataFrame, SplitReport]:
    """Assign ``split`` (train, dev, test, or null for held out) and ``group``; order is kept.

    Within each stratum (archetype, or source for untagged rows) groups are taken in seeded order
    until test and dev have their shares.
    """
    rows = with_groups(rows)
    stratum = primary_tag().fill_null(pl.format("source:{}", "source"))
    groups = (
        rows.lazy()
        .with_columns(
            stratum.alias("stratum"),
            (pl.col("origin_split") == "dev").fill_null(False).alias("published_dev"),
            _for_training().alias("for_training"),
        )
        .group_by("group", maintain_order=True)
        .agg(
            pl.col("stratum").sort().mode(maintain_order=True).first().alias("stratum"),
            (~pl.col("for_training")).sum().cast(pl.Int64).alias("size"),
            (pl.col("published_dev").mean() >= 0.5).alias("pinned"),
            pl.col("for_training").all().alias("for_training"),
        )
        .collect()
    )
    groups = groups.with_columns(seeded_order(groups["group"], build.seed, "split")).sort(
        "stratum", "order"
    )
    total = pl.col("size").sum().over("stratum")
    pinned = pl.when("pinned").then("size").otherwise(0).sum().over("stratum")
    # A group is placed by where its middle falls, so a large one does not always overshoot.
    free = pl.when("pinned").then(0).otherwise("size")
    middle = (free.cum_sum().over("stratum") - free / 2) / total
    groups = groups.with_columns(
        pl.when("for_training").then(pl.lit("train"))
        .when("pinned").then(pl.lit("dev"))
        .when(middle < build.split.test).then(pl.lit("test"))
        .when(middle < build.split.test + (build.split.dev - pinned / total).clip(0.0))
        .then(pl.lit("dev"))
        .otherwise(pl.lit("train"))
        .alias("split")
    )  # fmt: skip
    rows = rows.drop("split").join(
        groups.select("group", "split"), on="group", how="left", maintain_order="left"
    )
    held = (pl.col("split") == "train") & (pl.col("origin_split") == "dev").fill_null(False)
    rows = rows.with_columns(pl.when(~held).then("split").alias("split"))
    measured_only = (pl.col("quality") == "backfill") & (
        pl.col("split").is_null() | (pl.col("split") != "train")
    )
    rows = unscored(rows, measured_only)
    counts = {name or "held_out": count for name, count in rows["split"].value_counts().iter_rows()}
    return complete(rows), SplitReport(
        counts=dict(sorted(counts.items())),
        groups=groups.height,
        largest_group=max(groups["size"].to_list(), default=0),
        held_out=counts.get("held_out", 0),
    )


def _for_training() -> pl.Expr:
    guided = pl.col("source").is_in(sorted(GUIDED_SOURCES))
    return (guided & (pl.col("origin_split") == "train")).fill_null(False)


def check_leaks(rows: pl.DataFrame, config: Merge) -> None:
    """Raise :class:`LeakFound` if two splits share a text, a near copy or any group key.

    Held-out rows (split null) are part of no split. Near copies are searched again from the texts,
    not taken from the group column.
    """
    rows = rows.filter(pl.col("split").is_not_null())
    for key in GROUP_KEYS:
        crossed = (
            rows.lazy().filter(pl.col(key).is_not_null())
            .group_by(key).agg(pl.col("split").unique().sort(), pl.col("id").min())
            .filter(pl.col("split").list.len() > 1).sort(key).collect()
        )  # fmt: skip
        if crossed.height:
            places = " and ".join(crossed["split"][0])
            raise LeakFound(
                f"{crossed.height} values of {key!r} are in several splits, first "
                f"{crossed[key][0]!r} in {places} (row {crossed['id'][0]!r}); split again"
            )
    bare = bare_form(ascii_form(rows["text"]))
    forms = pl.DataFrame({"bare": bare, "split": rows["split"], "id": rows["id"]})
    forms = forms.group_by("bare", maintain_order=True).agg(
        pl.col("split").unique().sort(), pl.col("id").min()
    )
    same = forms.filter(pl.col("split").list.len() > 1)
    if same.height:
        raise LeakFound(
            f"{same.height} texts are in several splits, first {same['bare'][0][:60]!r} in "
            f"{' and '.join(same['split'][0])} (row {same['id'][0]!r}); merge and split again"
        )
    where = forms["split"].list.first().to_numpy()
    pairs = near_pairs(
        forms["bare"].to_list(), config.near_duplicate_jaccard, config.near_duplicate_ratio
    )
    crossed_pairs = pairs[where[pairs[:, 0]] != where[pairs[:, 1]]] if len(pairs) else pairs
    if len(crossed_pairs):
        a, b = crossed_pairs[0].tolist()
        raise LeakFound(
            f"{len(crossed_pairs)} near copies are in different splits, first rows "
            f"{forms['id'][a]!r} ({where[a]}) and {forms['id'][b]!r} ({where[b]}): "
            f"{forms['bare'][a][:60]!r}; merge and split again"
        )
