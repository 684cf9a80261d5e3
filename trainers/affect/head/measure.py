"""Every figure of an affect head, from predictions alone (NumPy): the same for all models.

Correlations are Pearson's r. Intervals of all of them: ``trainers.affect.head.bootstrap``.
"""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from trainers.affect.head.arrays import AXES, TAGS, Prepared

Array = NDArray[np.floating[Any]]
Outputs = dict[str, Array]  # by name: [N, ...], NaN where not run
# Confidence is the probability that the mean error of the three axes is at most this.
CLOSE = 0.25
DRAWS = 1_000
# A minimal pair is isolated when its axis moves by so much and the others by no more than that.
MOVED, STILL = 0.35, 0.2


def pearson(a: Array, b: Array) -> float:
    """r of two vectors; 0 where one does not vary."""
    if len(a) < 3 or np.std(a) < 1e-6 or np.std(b) < 1e-6:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def scored(data: Prepared, axes: Array, part: str, source: str | None = None) -> dict[str, Any]:
    """r, mean absolute error and spread ratio of each measured axis of a part."""
    rows = data.rows(part, source)
    found: dict[str, Any] = {}
    for i, name in enumerate(AXES):
        known = rows[~np.isnan(data.axes[rows, i])]
        if len(known) >= 20:
            p, y = axes[known, i], data.axes[known, i]
            found[name] = {
                "n": len(known), "r": pearson(p, y), "mae": float(np.abs(p - y).mean()),
                "sd_ratio": float(p.std() / y.std()),
            }  # fmt: skip
    return found


def cells(data: Prepared, axes: Array, part: str = "gold") -> dict[int, Any]:
    """Per archetype: mean error, and how often the sign is right on axes with |score| ≥ .1."""
    rows = data.rows(part)
    found: dict[int, Any] = {}
    for tag in range(data.tags.shape[1]):
        inside = rows[data.tags[rows, tag] == 1.0]
        if len(inside) >= 10:
            p, y = axes[inside], data.axes[inside]
            clear = np.abs(y) >= 0.1
            right = (np.sign(p) == np.sign(y)) & clear
            # An axis on which the cell is near zero has no sign to get right.
            single = [
                float(right[:, i].sum() / clear[:, i].sum())
                for i in range(3)
                if clear[:, i].mean() >= 0.5
            ]
            found[tag] = {
                "n": len(inside), "mae": float(np.abs(p - y).mean()),
                "sign": float(right.sum() / max(1, clear.sum())),
                "worst_axis_sign": min(single, default=float("nan")),
            }  # fmt: skip
    return found


def minimal_pairs(data: Prepared, axes: Array, *, clean_only: bool) -> dict[str, Any]:
    """Right direction; and target moved ≥ .35 with the other two ≤ .2, as shares of all pairs."""
    a, b = data.rows("pair_a"), data.rows("pair_b")
    if clean_only:
        keep = data.clean_pair[a]
        a, b = a[keep], b[keep]
    axis = data.pair_axis[a]
    moved, wanted = axes[b] - axes[a], data.axes[b] - data.axes[a]
    (target, others), (truth, _) = axis_moves(moved, axis), axis_moves(wanted, axis)
    right = np.sign(target) == np.sign(truth)
    far = right & (np.abs(target) >= MOVED) & (others <= STILL)
    return {"n": len(a), "right_direction": float(right.mean()), "isolated": float(far.mean())}


def axis_moves(moved: Array, axis: NDArray[np.signedinteger[Any]]) -> tuple[Array, Array]:
    """Of differences [N, 3]: how far the axis ``axis`` [N] moved, signed, and the most that another
    one did."""
    each, others = np.arange(len(axis)), np.abs(moved)
    others[each, axis] = 0.0
    return moved[each, axis], others.max(1)


def folds_of(groups: NDArray[np.int32], folds: int) -> NDArray[np.int64]:
    """A fold for each row, whole groups together."""
    names, member = np.unique(groups, return_inverse=True)
    return np.random.default_rng(0).integers(0, folds, len(names))[member]


def independence(data: Prepared, axes: Array, part: str = "gold") -> dict[str, float]:
    """Pairwise |r| of the predictions on a cell-balanced part, the labels' own beside it."""
    rows = data.rows(part)
    found = {}
    for i, j in ((0, 1), (0, 2), (1, 2)):
        key = f"{AXES[i][0].upper()}-{AXES[j][0].upper()}"
        found[key] = abs(pearson(axes[rows, i], axes[rows, j]))
        found[f"{key} labels"] = abs(pearson(data.axes[rows, i], data.axes[rows, j]))
    return found


def partial_correlations(data: Prepared, axes: Array, part: str = "gold") -> dict[str, float]:
    """r of each predicted axis with the label of another, given its own label: what of the other
    axis is in the prediction that its own label does not account for. 0 is what is wanted."""
    rows = data.rows(part)
    rows = rows[~np.isnan(data.axes[rows]).any(1)]
    found = {}
    for i, j in permutations(range(3), 2):
        own = np.column_stack([data.axes[rows, i], np.ones(len(rows))])
        pair = np.column_stack([axes[rows, i], data.axes[rows, j]])
        rest = pair - own @ np.linalg.lstsq(own, pair, rcond=None)[0]
        a, b = (AXES[k][0].upper() for k in (i, j))
        found[f"predicted {a}, {b} given {a}"] = pearson(rest[:, 0], rest[:, 1])
    return found


def balanced_independence(data: Prepared, axes: Array) -> dict[str, float]:
    """|r| of each pair on gold and test rows weighted so that every cell counts the same.

    A cell is low, middle or high (cut at ±.1) on each axis, 27 in all; a row weighs the inverse of
    its cell's count, at most the 95th percentile. The labels' own |r| are beside: what is left of
    the set's dependence after weighting.
    """
    rows = np.concatenate([data.rows("gold"), data.rows("test", "llm_label")])
    rows = rows[~np.isnan(data.axes[rows]).any(1)]
    level = (np.sign(data.axes[rows]) * (np.abs(data.axes[rows]) >= 0.1)).astype(int) + 1
    cell = level @ np.array([9, 3, 1])
    weight = 1.0 / np.bincount(cell, minlength=27)[cell]
    weight = np.minimum(weight, np.quantile(weight, 0.95))
    found = {"n": float(len(rows)), "cells": float(len(np.unique(cell)))}
    for what, values in (("", axes[rows]), (" labels", data.axes[rows])):
        spread = np.cov(values.T, aweights=weight)
        for i, j in ((0, 1), (0, 2), (1, 2)):
            key = f"{AXES[i][0].upper()}-{AXES[j][0].upper()}{what}"
            scale = np.sqrt(spread[i, i] * spread[j, j])
            # An axis that a model does not predict at all depends on nothing, and is no merit.
            found[key] = float(abs(spread[i, j]) / scale) if scale else float("nan")
    return found


def best_thresholds(probabilities: Array, truth: Array) -> Array:
    """Per label the threshold in .05 … .70 with the best F1."""
    grid = np.arange(0.05, 0.71, 0.025)
    scores = np.stack([_f1(probabilities >= t, truth) for t in grid])
    return grid[scores.argmax(0)].astype(np.float32)


def macro_f1(probabilities: Array, truth: Array, thresholds: Array) -> float:
    """Mean over labels of F1."""
    return float(_f1(probabilities >= thresholds, truth).mean())


def _f1(predicted: NDArray[np.bool_], truth: Array) -> Array:
    hit = (predicted & (truth > 0.5)).sum(0)
    return 2 * hit / np.maximum(1, predicted.sum(0) + (truth > 0.5).sum(0))


def error_of(data: Prepared, axes: Array, rows: NDArray[np.int64]) -> Array:
    """Mean absolute error over the three axes, of rows that measure all of them."""
    gap: Array = np.abs(axes[rows] - data.axes[rows]).mean(1)
    return gap


def confidence_of(spread: Array, curve: dict[str, float]) -> Array:
    """Confidence as it is served, from the spread output and the manifest's logistic curve."""
    found: Array = 1 / (1 + np.exp(-(curve["a"] - curve["b"] * spread)))
    return found


def calibration(data: Prepared, axes: Array, confidence: Array) -> dict[str, Any]:
    """On test and gold: confidence said against how often the error really was small.

    In five bins of equal size: ``bins`` (said, seen), ``ece`` their mean gap; ``auc``: how often a
    close answer got the higher confidence than one that is not (Hanley and McNeil 1982).
    """
    rows = np.concatenate([data.rows("test", "llm_label"), data.rows("gold")])
    said, close = confidence[rows], error_of(data, axes, rows) <= CLOSE
    bins = np.array_split(np.argsort(said, kind="stable"), 5)
    table = [(float(said[b].mean()), float(close[b].mean())) for b in bins]
    places = rankdata(said)
    good, bad = int(close.sum()), int((~close).sum())
    auc = (places[close].sum() - good * (good + 1) / 2) / max(1, good * bad)
    return {"bins": table, "ece": float(np.mean([abs(c - o) for c, o in table])),
            "auc": float(auc), "n": len(rows)}  # fmt: skip


def confusion(data: Prepared, tags: Array) -> dict[str, Any]:
    """Gold rows with one archetype: labelled (rows) against the most probable tag (columns)."""
    rows = data.rows("gold")
    single = rows[data.tags[rows].sum(1) == 1.0]
    labelled, predicted = data.tags[single].argmax(1), tags[single].argmax(1)
    table = np.zeros((len(TAGS), len(TAGS)), np.int64)
    np.add.at(table, (labelled, predicted), 1)
    used = np.flatnonzero(table.sum(1))
    return {
        "labelled": [TAGS[i] for i in used], "predicted": list(TAGS),
        "counts": table[used].tolist(), "right": float((labelled == predicted).mean()),
        "n": len(single),
    }  # fmt: skip


def rows_measured(data: Prepared, *, emotions: bool = True) -> NDArray[np.int64]:
    """Every row that a figure of ``everything`` reads, once, in order."""
    places = [("test", "emobank"), ("dev", "emobank"), ("test", "intimacy"),
              ("test", "llm_label"), ("gold", None), ("pair_a", None),
              ("pair_b", None)]  # fmt: skip
    if emotions:
        places += [("dev", "goemotions"), ("test", "goemotions")]
    return np.unique(np.concatenate([data.rows(*place) for place in places]))


def emotion_thresholds(data: Prepared, emotions: Array) -> Array:
    """Thresholds of the 28 labels, from GoEmotions dev rows."""
    # Weakly scored rows are in train alone, so every row here has its emotions.
    dev = data.rows("dev", "goemotions")
    return best_thresholds(emotions[dev], data.emotions[dev])


def everything(
    data: Prepared,
    axes: Array,
    *,
    arousal: Array | None = None,
    emotions: Array | None = None,
    thresholds: Array | None = None,
    tags: Array | None = None,
    confidence: Array | None = None,
) -> dict[str, Any]:
    """The whole table of one model: arrays over all N rows, NaN where it was not run.

    ``thresholds`` of the emotions are taken from dev where they are not given.
    """
    table: dict[str, Any] = {
        "emobank test": scored(data, axes, "test", "emobank"),
        "emobank dev": scored(data, axes, "dev", "emobank"),
        "question intimacy test": scored(data, axes, "test", "intimacy"),
        "pool test": scored(data, axes, "test", "llm_label"),
        "gold": scored(data, axes, "gold"),
        "gold cells": cells(data, axes),
        "pairs": minimal_pairs(data, axes, clean_only=False),
        "clean pairs": minimal_pairs(data, axes, clean_only=True),
        "independence": independence(data, axes),
        "balanced independence": balanced_independence(data, axes),
        "partial correlations": partial_correlations(data, axes),
    }
    if arousal is not None:
        for part in ("test", "dev"):
            rows = data.rows(part, "emobank")
            if len(rows):  # without any, r is not 0 but unknown
                table[f"emobank {part} arousal r"] = pearson(arousal[rows], data.axes[rows, 2])
    test = data.rows("test", "goemotions")
    if emotions is not None and len(test):
        if thresholds is None:
            thresholds = emotion_thresholds(data, emotions)
        table["goemotions macro-F1"] = macro_f1(emotions[test], data.emotions[test], thresholds)
    if tags is not None:
        table["archetypes"] = confusion(data, tags)
    if confidence is not None:
        table["calibration"] = calibration(data, axes, confidence)
    return table


def summary(table: dict[str, Any]) -> list[tuple[str, float, float | None]]:
    """(figure, value, target) in the order of the model card; a target of None is reported only.

    EmoBank's arousal is read from the arousal output where the model has one, else from tension.
    Test rows are of our split of what the publishers call train; their dev part is beside it, for
    it is the nearer to their test, which nothing here has seen.
    """
    nan = float("nan")
    gold = table["gold"]
    signs = [cell["sign"] for cell in table["gold cells"].values()]
    worst = [cell["worst_axis_sign"] for cell in table["gold cells"].values()]
    emobank: list[tuple[str, float, float | None]] = []
    for part, place in (("test", ""), ("dev", ", published dev")):
        scores = table[f"emobank {part}"]
        valence, tension = (scores.get(axis, {}).get("r", nan) for axis in ("valence", "tension"))
        arousal = table.get(f"emobank {part} arousal r", tension)
        emobank += [(f"EmoBank valence r{place}", valence, 0.72),
                    (f"EmoBank arousal r{place}", arousal, 0.50)]  # fmt: skip
    rows: list[tuple[str, float, float | None]] = [
        *emobank,
        ("question intimacy r", table["question intimacy test"].get("intimacy", {}).get("r", nan),
         0.82),
        ("GoEmotions macro-F1", table.get("goemotions macro-F1", nan), 0.46),
        *((f"gold {axis} r", gold[axis]["r"], 0.75) for axis in AXES),
        ("gold worst cell, signs of all axes", min(signs, default=nan), 0.75),
        ("gold worst cell, worst single axis", min(worst, default=nan), None),
        ("pairs right direction", table["pairs"]["right_direction"], 0.90),
        ("pairs isolated", table["pairs"]["isolated"], 0.50),
        ("clean pairs isolated", table["clean pairs"]["isolated"], None),
        ("smallest SD ratio on gold", min(gold[axis]["sd_ratio"] for axis in AXES), 0.5),
    ]  # fmt: skip
    for what, name in (("gold", "independence"), ("balanced", "balanced independence")):
        rows += [(f"{what} predicted |r| {k}", v, None)
                 for k, v in table[name].items() if "-" in k and "labels" not in k]  # fmt: skip
    if "calibration" in table:
        rows.append(("confidence, mean gap of said and seen", table["calibration"]["ece"], None))
        rows.append(("confidence, AUC of close answers", table["calibration"]["auc"], None))
    if "archetypes" in table:
        rows.append(("gold archetype is the most probable tag", table["archetypes"]["right"], None))
    return rows
