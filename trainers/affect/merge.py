"""Join the sources: no copies, no gold, capped frames and backfill, a weight on every row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from trainers.affect.config import Build, Merge, Sources
from trainers.affect.copies import ascii_form, bare_form, components, group_names, near_pairs
from trainers.affect.errors import BadRow
from trainers.affect.frame import complete, matrix, seeded_order, unmeasured
from trainers.affect.gold import GoldGuard
from trainers.affect.rows import AXES, QUALITIES

#: Better labels win over worse ones when two rows have the same text; unscored rows lose to all.
_RANK = {quality: rank for rank, quality in enumerate(QUALITIES)}
_LABELLED = ("gold", "exemplar", "clean")


@dataclass
class MergeReport:
    """What merging did, in numbers; conflicts are pairs of copies with different scores."""

    read: int = 0
    kept: int = 0
    licence_left_out: int = 0
    exact_copies: int = 0
    near_copies: int = 0
    gold_copies: int = 0
    frame_over_cap: int = 0
    backfill_unscored: int = 0
    conflicts: list[dict[str, Any]] = field(default_factory=list)


def merge(
    rows: pl.DataFrame,
    gold: GoldGuard,
    build: Build,
    sources: Sources,
    *,
    permissive_only: bool = False,
) -> tuple[pl.DataFrame, MergeReport]:
    """Merge rows of all sources into one set without copies, sorted by source and id.

    Adds ``text_ascii``, ``group`` (the near-copy cluster) and ``weight``. A row that is itself gold
    raises :class:`GoldRefused`; a row that merely copies a gold text is left out and counted.
    """
    config = build.merge
    report = MergeReport(read=rows.height)
    rows = complete(rows).sort("source", "id")
    _unique(rows)
    # A copy of gold found in a public set is no mistake, but a gold row handed in as data is.
    GoldGuard(ids=gold.ids).refuse(rows, "merge")
    if permissive_only:
        classes = {name: sources.licence_class(name) for name in rows["licence"].unique()}
        allowed = pl.Series(
            [classes[name] == "permissive" for name in rows["licence"]], dtype=pl.Boolean
        )
        report.licence_left_out = rows.height - int(allowed.sum())
        rows = rows.filter(allowed)
    rows = rows.with_columns(ascii_form(rows["text"]).alias("text_ascii"))
    rows = _without_copies(rows, gold, config, report)
    rows = _cap_frames(rows, config, build.seed, report)
    rows = _cap_backfill(rows, config, build.seed, report)
    weights = {**config.weights, "gold": 0.0}
    rows = rows.with_columns(
        pl.when(unmeasured())
        .then(config.weights["auto"])
        .otherwise(pl.col("quality").replace_strict(weights, return_dtype=pl.Float64))
        .alias("weight")
    )
    report.kept = rows.height
    return complete(rows), report


def _unique(rows: pl.DataFrame) -> None:
    repeated = rows.filter(rows["id"].is_duplicated())
    if repeated.height:
        places = repeated.filter(pl.col("id") == repeated["id"][0])["source"].to_list()
        raise BadRow(f"duplicate id {repeated['id'][0]!r} in sources {', '.join(places)}")


def _without_copies(
    rows: pl.DataFrame, gold: GoldGuard, config: Merge, report: MergeReport
) -> pl.DataFrame:
    """Drop copies of better rows, keep contrasts, and name the near-copy cluster of each row."""
    both = pl.concat([complete(gold.rows), rows]) if gold.rows.height else rows
    gold_count = both.height - rows.height
    ascii_texts = ascii_form(both["text"])
    bare = bare_form(ascii_texts)
    context = both["context"].list.join("\n")
    forms = bare.unique(maintain_order=True)
    place = bare.replace_strict(dict(zip(forms, range(len(forms)), strict=True))).to_numpy()
    pairs = near_pairs(forms.to_list(), config.near_duplicate_jaccard, config.near_duplicate_ratio)
    cluster = components(len(forms), pairs)[place]

    near: dict[int, list[int]] = {}
    for a, b in pairs.tolist():
        near.setdefault(a, []).append(b)
        near.setdefault(b, []).append(a)
    # Gold comes first, also the sides of minimal pairs, which have no scores: what copies it goes.
    order = both.select(
        (pl.int_range(pl.len()) >= gold_count).alias("after_gold"),
        pl.when(unmeasured()).then(len(_RANK)).otherwise(
            pl.col("quality").replace_strict(_RANK, return_dtype=pl.Int64)
        ).alias("rank"),
        pl.sum_horizontal(pl.col(axis).is_null() for axis in AXES).alias("missing"),
        pl.col("id"),
    ).with_row_index("row").sort("after_gold", "rank", "missing", "id")  # fmt: skip

    scores = matrix(both)
    labelled = both["quality"].is_in(_LABELLED).to_list()
    in_pair = both["pair"].to_list()
    ids, texts, contexts = both["id"].to_list(), ascii_texts.to_list(), context.to_list()
    kept_by_form: dict[int, list[int]] = {}
    keep = np.zeros(both.height, dtype=bool)
    for row in order["row"].to_list():
        verdict = None
        form = int(place[row])
        for other_form in (form, *near.get(form, ())):
            for other in kept_by_form.get(other_form, ()):
                # The gold guard goes by the text alone; other messages are what they answer, too.
                if other >= gold_count and contexts[other] != contexts[row]:
                    continue
                exact = texts[other] == texts[row]
                gap = _gap(scores[row], scores[other])
                if gap > config.conflict:
                    report.conflicts.append(
                        {
                            "kept": ids[other],
                            "other": ids[row],
                            "gap": round(gap, 4),
                            "exact": exact,
                        }
                    )
                if other < gold_count:
                    verdict = "gold_copies"
                elif exact:
                    verdict = verdict or "exact_copies"
                elif in_pair[row] and in_pair[row] == in_pair[other]:
                    continue  # the two sides of a minimal pair are near copies on purpose
                elif labelled[row] and labelled[other] and gap > config.conflict:
                    continue  # a contrast somebody labelled: close words, another feeling
                else:
                    verdict = verdict or "near_copies"
        if verdict and row >= gold_count:
            setattr(report, verdict, getattr(report, verdict) + 1)
            continue
        keep[row] = True
        kept_by_form.setdefault(form, []).append(row)
    sizes = np.bincount(cluster[keep], minlength=cluster.max(initial=-1) + 1)
    named = both.with_columns(
        pl.when(pl.Series(sizes[cluster] > 1)).then(group_names(both["id"], cluster)).alias("group")
    )
    return named.filter(pl.Series(keep))[gold_count:]


def _gap(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference on an axis that both rows measure, 0 when there is none."""
    return float(np.nanmax(np.append(np.abs(a - b), 0.0)))


def _cap_frames(rows: pl.DataFrame, config: Merge, seed: int, report: MergeReport) -> pl.DataFrame:
    """At most ``frame_cap`` rows of a frame, the most confident first; minimal pairs are exempt."""
    capped = pl.col("frame").is_not_null() & pl.col("pair").is_null()
    ranked = (
        rows.lazy().select("id", "frame", pl.col("confidence").fill_null(0.0))
        .filter(rows.select(capped).to_series())
        .with_columns(seeded_order(rows.filter(capped)["id"], seed, "frame cap"))
        .sort(pl.col("confidence") * -1.0, "order")
        .with_columns(pl.int_range(pl.len()).over("frame").alias("place"))
        .filter(pl.col("place") >= config.frame_cap)
        .collect()
    )  # fmt: skip
    report.frame_over_cap = ranked.height
    return rows.filter(~pl.col("id").is_in(ranked["id"].to_list()))


def _cap_backfill(
    rows: pl.DataFrame, config: Merge, seed: int, report: MergeReport
) -> pl.DataFrame:
    """Keep the scores of ``backfill_cap`` rows, spread evenly over sources and score signs.

    The others keep their emotion labels but lose their guessed scores.
    """
    weak = rows.filter((pl.col("quality") == "backfill") & ~unmeasured())
    signs = [pl.col(axis).sign().fill_null(9.0).alias(f"_{axis}") for axis in AXES]
    surplus = (
        weak.select("id", "source", *signs)
        .with_columns(seeded_order(weak["id"], seed, "backfill cap"))
        .sort("order")
        .with_columns(
            pl.int_range(pl.len()).over("source", *(f"_{axis}" for axis in AXES)).alias("turn")
        )
        .sort("turn", "order")[config.backfill_cap :]
    )
    report.backfill_unscored = surplus.height
    return unscored(rows, pl.col("id").is_in(surplus["id"].to_list()))


def unscored(rows: pl.DataFrame, which: pl.Expr | pl.Series) -> pl.DataFrame:
    """The same rows, those in ``which`` without scores, tags and confidence."""
    which = pl.lit(which) if isinstance(which, pl.Series) else which
    return rows.with_columns(
        *(pl.when(~which).then(pl.col(axis)).alias(axis) for axis in (*AXES, "confidence")),
        pl.when(which).then(pl.lit([], dtype=pl.List(pl.String))).otherwise("tags").alias("tags"),
    )
