"""Weights that make the three axes independent in training, and selection where weights fail.

Each axis is cut into low, middle and high; the cells are the combinations (27 when all three axes
are measured, 9 when two are). A row's weight is multiplied by (mean cell mass / its cell's mass),
clipped, so that "close and angry" weighs as much as "close and happy". Rows with one axis carry no
joint information and keep their weight.

If the upper bound of |r| still fails, rows are selected out for the pair that fails worst: rows
that push the correlation most, worst labels first. They keep their emotion labels and lose their
scores.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import polars as pl

from trainers.affect.config import Balance, Build
from trainers.affect.dependence import PAIR_NAMES, PAIRS, bootstrap_r, weighted_r
from trainers.affect.errors import DataError
from trainers.affect.frame import complete, matrix, shares, unmeasured
from trainers.affect.merge import unscored
from trainers.affect.rows import QUALITIES

#: Fewer rows than this give no usable interval.
MIN_ROWS = 20
#: What the gate looks at: each pair over all rows that measure both axes, and again over the rows
#: that measure all three. Without the second, sources that each measure one pair could hide a
#: dependence inside the fully labelled rows.
COMPLETE = "complete "
GATED: tuple[str, ...] = (*PAIR_NAMES, *(COMPLETE + name for name in PAIR_NAMES))

_STEP_SHARE = 0.01  # of the rows that measure the pair, taken out in one selection step


@dataclass
class BalanceReport:
    """Upper bounds of |r| before, after weights and after selection; rows selected out."""

    before: dict[str, float] = field(default_factory=dict)
    weighted: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    selected_out: int = 0
    scored: int = 0


def cells(scores: np.ndarray, band: float) -> np.ndarray:
    """Cell of each row of [rows, 3] scores, in base 4: low 0, middle 1, high 2, null 3."""
    digits = np.where(scores < -band, 0, np.where(scores > band, 2, 1))
    digits = np.where(np.isnan(scores), 3, digits)
    return np.asarray(digits @ np.array([16, 4, 1]))


def cell_weights(scores: np.ndarray, base: np.ndarray, config: Balance) -> np.ndarray:
    """Base weights times clipped inverse cell masses; the total of each pattern is unchanged.

    A pattern is the set of measured axes. Patterns with fewer than two axes are left alone.
    """
    cell = cells(scores, config.neutral_band)
    measured = ~np.isnan(scores)
    pattern = measured @ np.array([4, 2, 1])
    weights = base.copy()
    for code in np.unique(pattern):
        rows = pattern == code
        if int(code).bit_count() < 2 or base[rows].sum() <= 0:
            continue
        mass = np.bincount(cell[rows], base[rows], minlength=64)
        target = mass.sum() / np.count_nonzero(mass)
        factor = np.clip(target / np.maximum(mass[cell[rows]], 1e-12), 1 / config.clip, config.clip)
        scaled = base[rows] * factor
        weights[rows] = scaled * (base[rows].sum() / scaled.sum())
    return np.round(weights, 4)


def pair_weights(weights: np.ndarray, share: np.ndarray, pair: tuple[int, int]) -> np.ndarray:
    """What a row counts for one pair: its weight times how much it measures of both axes."""
    return np.asarray(weights * share[:, pair[0]] * share[:, pair[1]])


def balance(rows: pl.DataFrame, build: Build) -> tuple[pl.DataFrame, BalanceReport]:
    """Set ``weight`` so that the gate holds; only rows of the train split are touched.

    Raises :class:`DataError` when it cannot hold within ``max_selected_out``.
    """
    config = build.balance
    trains = rows["split"].fill_null("").eq("train") if rows["split"].null_count() < rows.height \
        else pl.Series([True] * rows.height, dtype=pl.Boolean)  # fmt: skip
    train = rows.filter(trains)
    report = BalanceReport(scored=int(train.select((~unmeasured()).sum()).item()))
    base = train["weight"].fill_null(1.0).to_numpy()
    scores, share = matrix(train), shares(train)
    groups = train["group"].fill_null(train["id"]).rank("dense").to_numpy().astype(np.int64)
    rank = train["quality"].replace_strict(
        {name: place for place, name in enumerate(QUALITIES)}, return_dtype=pl.Int64
    ).to_numpy()  # fmt: skip
    report.before = _bounds(scores, base, share, groups, build)
    weights = cell_weights(scores, base, config)
    report.weighted = report.after = _bounds(scores, weights, share, groups, build)
    out = np.zeros(train.height, dtype=bool)
    while (
        worst := _worst(report.after, config.limit if not out.any() else config.aim)
    ) is not None:
        taken = _select(scores, weights, share, rank, worst)
        if not len(taken) or out.sum() + len(taken) > config.max_selected_out * report.scored:
            raise DataError(
                f"balance: {worst} stays at {report.after[worst]:.3f} "
                f"(limit {config.limit}) with {int(out.sum())} of {report.scored} rows selected "
                "out; add rows to its empty cells, or raise max_selected_out"
            )
        out[taken] = True
        scores[taken] = np.nan
        weights = cell_weights(scores, base, config)
        report.after = _bounds(scores, weights, share, groups, build)
    report.selected_out = int(out.sum())
    weights = np.where(out, build.merge.weights["auto"], weights)
    train = train.with_columns(pl.Series("weight", weights))
    train = unscored(train, pl.Series(out))
    joined = pl.concat([complete(rows.filter(~trains)), complete(train)])
    place = rows.select("id").with_row_index("_row")
    return complete(joined.join(place, on="id", how="left").sort("_row")), report


def _bounds(
    scores: np.ndarray, weights: np.ndarray, share: np.ndarray, groups: np.ndarray, build: Build
) -> dict[str, float]:
    """Upper bound of |r| for each of :data:`GATED`, NaN where too few rows measure both axes."""
    config = build.balance
    bounds = {}
    for name in GATED:
        a, b = _pair(name)
        weight = pair_weights(weights, share, (a, b))
        use = _measured(scores, name) & (weight > 0)
        x, y, w = scores[use, a], scores[use, b], weight[use]
        if len(x) < MIN_ROWS or np.isnan(weighted_r(x, y, w)):
            bounds[name] = float("nan")
            continue
        low, high = bootstrap_r(
            x, y, w, groups[use], draws=config.bootstrap, level=config.level, seed=build.seed
        )
        bounds[name] = max(abs(low), abs(high))
    return bounds


def _pair(name: str) -> tuple[int, int]:
    return PAIRS[PAIR_NAMES.index(name.removeprefix(COMPLETE))]


def _measured(scores: np.ndarray, name: str) -> np.ndarray:
    """Rows that count for a gated name: both axes measured, or all three."""
    present = ~np.isnan(scores)
    if name.startswith(COMPLETE):
        return np.asarray(present.all(axis=1))
    return np.asarray(present[:, list(_pair(name))].all(axis=1))


def _worst(bounds: dict[str, float], limit: float) -> str | None:
    values = {name: bound for name, bound in bounds.items() if bound == bound}
    worst = max(values, key=lambda name: values[name], default=None)
    return worst if worst is not None and values[worst] > limit else None


def _select(
    scores: np.ndarray,
    weights: np.ndarray,
    share: np.ndarray,
    rank: np.ndarray,
    name: str,
) -> np.ndarray:
    """Rows to take out next: worst quality first, then the largest push in r's direction."""
    a, b = _pair(name)
    weight = pair_weights(weights, share, (a, b))
    use = np.flatnonzero(_measured(scores, name) & (weight > 0))
    x, y, w = scores[use, a], scores[use, b], weight[use]
    mean_x, mean_y = np.average(x, weights=w), np.average(y, weights=w)
    push = w * (x - mean_x) * (y - mean_y) * np.sign(weighted_r(x, y, w))
    able = push > 0
    order = np.lexsort((use[able], -push[able], -rank[use[able]]))
    step = max(1, int(_STEP_SHARE * len(use)))
    return np.asarray(use[able][order][:step])
