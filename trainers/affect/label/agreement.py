"""Agreement between raters per axis: Krippendorff's alpha (interval) and ICC, with intervals.

Units are rows, and any may lack any rater (alpha) or are left out whole when one does (ICC).
Sources of the formulas: K. Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011);
P. Shrout and J. Fleiss, "Intraclass correlations: uses in assessing rater reliability" (1979), for
ICC(2,1) and ICC(2,k): two-way random effects, absolute agreement. The tests hold both to the worked
examples of those papers. (The kept libraries for these are under the GPL.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainers.affect.label.state import LabelState
from trainers.affect.rows import ARCHETYPES, AXES, FLAGS

Matrix = NDArray[np.float64]  # [units, raters], NaN where a rater gave nothing

_CHUNK = 200


def alpha_interval(scores: Matrix) -> float:
    """Krippendorff's alpha with the interval metric. `scores` [units, raters], NaN for missing.

    1 is perfect, 0 is chance. NaN when fewer than two values can be paired or all are equal.
    """
    return float(_alphas(scores, np.ones((1, len(scores))))[0])


def _alphas(scores: Matrix, weights: Matrix) -> Matrix:
    """Alpha under each row of unit `weights` [samples, units] (how often a unit was drawn)."""
    given = ~np.isnan(scores)
    count = given.sum(axis=1).astype(float)
    values = np.where(given, scores, 0.0)
    pairable = count >= 2
    count = np.where(pairable, count, 0.0)
    total = np.where(pairable, values.sum(axis=1), 0.0)
    square = np.where(pairable, (values**2).sum(axis=1), 0.0)
    # Sum over ordered pairs of (a-b)^2 within a unit is 2(m * sum x^2 - (sum x)^2).
    within = np.where(pairable, 2 * (count * square - total**2) / np.maximum(count - 1, 1), 0.0)
    n = weights @ count
    observed = weights @ within
    all_total, all_square = weights @ total, weights @ square
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = 2 * (n * all_square - all_total**2) / (n - 1)
        alpha = 1.0 - observed / expected
    return np.where((n >= 2) & (expected > 1e-12), alpha, np.nan)


def icc(scores: Matrix) -> tuple[float, float]:
    """(ICC(2,1), ICC(2,k)) over units with every rater present; NaN with fewer than two of them."""
    full = scores[~np.isnan(scores).any(axis=1)]
    single, mean = _iccs(full, np.ones((1, len(full))))
    return float(single[0]), float(mean[0])


def _iccs(full: Matrix, weights: Matrix) -> tuple[Matrix, Matrix]:
    """Both ICCs under unit `weights` [samples, units]; `full` [units, raters] has no gaps."""
    nothing = np.full(len(weights), np.nan)
    if full.shape[0] < 2 or full.shape[1] < 2:
        return nothing, nothing
    k = full.shape[1]
    n = weights.sum(axis=1)
    grand = (weights @ full.sum(axis=1)) / (n * k)
    row_mean = full.mean(axis=1)
    rows = k * (weights @ row_mean**2 - n * grand**2)
    column_mean = (weights @ full) / n[:, None]
    columns = n * ((column_mean - grand[:, None]) ** 2).sum(axis=1)
    everything = weights @ (full**2).sum(axis=1) - n * k * grand**2
    rest = everything - rows - columns
    with np.errstate(divide="ignore", invalid="ignore"):
        bms, jms, ems = rows / (n - 1), columns / (k - 1), rest / ((n - 1) * (k - 1))
        single = (bms - ems) / (bms + (k - 1) * ems + k * (jms - ems) / n)
        mean = (bms - ems) / (bms + (jms - ems) / n)
    return single, mean


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its percentile bootstrap interval over units."""

    value: float
    low: float
    high: float

    def record(self) -> dict[str, float | None]:
        def plain(number: float) -> float | None:
            return None if np.isnan(number) else round(number, 4)

        return {"value": plain(self.value), "low": plain(self.low), "high": plain(self.high)}


def _interval(value: float, draws: Matrix, level: float) -> Interval:
    draws = draws[~np.isnan(draws)]
    if np.isnan(value) or len(draws) == 0:
        return Interval(value, np.nan, np.nan)
    tail = 50 * (1 - level)
    low, high = np.percentile(draws, [tail, 100 - tail])
    return Interval(value, float(low), float(high))


def _unit_draws(units: int, samples: int, seed: int) -> list[Matrix]:
    """Bootstrap draws as counts per unit, in chunks that keep memory small."""
    rng = np.random.default_rng(seed)
    share = np.full(units, 1 / units)
    sizes = [min(_CHUNK, samples - start) for start in range(0, samples, _CHUNK)]
    return [rng.multinomial(units, share, size=size).astype(float) for size in sizes]


def with_intervals(
    scores: Matrix, *, samples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, Interval]:
    """``alpha``, ``icc_single`` and ``icc_mean`` of [units, raters], each with its interval."""
    scores = np.asarray(scores, dtype=float)
    scores = scores[(~np.isnan(scores)).sum(axis=1) >= 2]
    if len(scores) == 0:
        empty = Interval(np.nan, np.nan, np.nan)
        return {"alpha": empty, "icc_single": empty, "icc_mean": empty}
    full = scores[~np.isnan(scores).any(axis=1)]
    alphas = [_alphas(scores, draw) for draw in _unit_draws(len(scores), samples, seed)]
    single, mean = icc(scores)
    both = (
        [_iccs(full, draw) for draw in _unit_draws(len(full), samples, seed)] if len(full) else []
    )
    singles = np.concatenate([draw[0] for draw in both]) if both else np.empty(0)
    means = np.concatenate([draw[1] for draw in both]) if both else np.empty(0)
    return {
        "alpha": _interval(alpha_interval(scores), np.concatenate(alphas), level),
        "icc_single": _interval(single, singles, level),
        "icc_mean": _interval(mean, means, level),
    }


def report(state: LabelState, *, samples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Agreement of all raters in a log: per axis, per tag, and each rater against themselves."""
    raters = sorted(who for who in state.raters if state.labelled_by(who))
    by_row = {row: state.labels(row) for row in sorted(state.items)}
    shared = {row: labels for row, labels in by_row.items() if len(labels) >= 2}
    axes: dict[str, Any] = {}
    for axis in (*AXES, "confidence"):
        matrix = np.array(
            [
                [getattr(labels[who], axis) if who in labels else np.nan for who in raters]
                for labels in shared.values()
            ],
            dtype=float,
        ).reshape(len(shared), len(raters))
        found = with_intervals(matrix, samples=samples, seed=seed)
        spread = (
            np.nanmax(matrix, axis=1) - np.nanmin(matrix, axis=1) if len(shared) else np.empty(0)
        )
        axes[axis] = {
            **{name: interval.record() for name, interval in found.items()},
            "mean_gap": round(float(spread.mean()), 4) if len(spread) else None,
            "gap_over_half": int((spread > 0.5 + 1e-9).sum()),
        }
    tags: dict[str, Any] = {}
    for tag in (*ARCHETYPES, *FLAGS):
        matrix = np.array(
            [
                [float(tag in labels[who].tags) if who in labels else np.nan for who in raters]
                for labels in shared.values()
            ],
            dtype=float,
        ).reshape(len(shared), len(raters))
        value = alpha_interval(matrix) if len(shared) else np.nan
        given = int(np.nansum(matrix))
        tags[tag] = {"alpha": None if np.isnan(value) else round(value, 4), "given": given}
    return {
        "raters": {
            who: {"kind": state.raters[who], "rows": len(state.labelled_by(who))} for who in raters
        },
        "rows": len(state.items),
        "shared_rows": len(shared),
        "bootstrap": {"samples": samples, "seed": seed, "level": 0.95},
        "axes": axes,
        "tags": tags,
        "repeats": {who: _against_self(state, who, samples, seed) for who in raters},
    }


def _against_self(state: LabelState, who: str, samples: int, seed: int) -> dict[str, Any]:
    """Blind repeats: the rater's first and second answer to the same rows."""
    pairs = list(state.repeats(who).values())
    result: dict[str, Any] = {"rows": len(pairs)}
    if len(pairs) >= 2:
        for axis in AXES:
            matrix = np.array([[getattr(a, axis), getattr(b, axis)] for a, b in pairs])
            found = with_intervals(matrix, samples=samples, seed=seed)
            gap = float(np.abs(matrix[:, 0] - matrix[:, 1]).mean())
            result[axis] = {"alpha": found["alpha"].record(), "mean_gap": round(gap, 4)}
    return result
