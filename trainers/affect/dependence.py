"""How much two axes depend on each other: weighted correlation, its interval, distance correlation.

The interval is a grouped bootstrap: whole groups (frames, documents, near-copy clusters) are drawn
with replacement, since rows of one group are not independent. Six weighted moments a group are
enough to recompute r for every draw, so a thousand draws are one matrix product.

Distance correlation (Székely, Rizzo, Bakirov 2007) also sees dependence that r misses, such as
"strong feeling in either direction is tense". It is computed exactly for the weighted empirical
distribution of a fixed-seed sample, because it needs all pairwise distances.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from trainers.affect.rows import AXES

#: Index pairs of the three axis pairs, and their short names.
PAIRS: tuple[tuple[int, int], ...] = tuple(combinations(range(len(AXES)), 2))
PAIR_NAMES: tuple[str, ...] = tuple(f"{AXES[a][0].upper()}-{AXES[b][0].upper()}" for a, b in PAIRS)
_CHUNK = 64


@dataclass(frozen=True)
class Dependence:
    """One pair of axes over one set of rows.

    ``r`` is the weighted Pearson correlation, ``low``/``high`` its bootstrap interval, ``bound``
    the larger end of the interval of |r|. ``distance`` is the distance correlation (0..1) and
    ``distance_shuffled`` what the same sample gives when one axis is shuffled: the floor that
    sampling alone produces. ``effective`` is Kish's effective number of rows. All NaN when fewer
    than three rows measure both axes or one axis is constant.
    """

    rows: int
    groups: int
    effective: float
    r: float
    low: float
    high: float
    distance: float
    distance_shuffled: float

    @property
    def bound(self) -> float:
        return max(abs(self.low), abs(self.high))


def weighted_r(x: np.ndarray, y: np.ndarray, w: np.ndarray) -> float:
    """Weighted Pearson correlation of vectors of equal length; NaN if either has no spread."""
    moments = _moments(x, y, w).sum(axis=0, keepdims=True)
    return float(_r_of(moments)[0])


def _moments(x: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
    return np.column_stack([w, w * x, w * y, w * x * x, w * y * y, w * x * y])


def _r_of(m: np.ndarray) -> np.ndarray:
    """Correlations from summed moments of shape [n, 6]."""
    total, sx, sy, sxx, syy, sxy = m.T
    with np.errstate(invalid="ignore", divide="ignore"):
        vx, vy = sxx / total - (sx / total) ** 2, syy / total - (sy / total) ** 2
        tiny = 1e-12
        r = (sxy / total - sx * sy / total**2) / np.sqrt(vx * vy)
        return np.where((vx > tiny) & (vy > tiny), np.clip(r, -1.0, 1.0), np.nan)


def bootstrap_r(
    x: np.ndarray,
    y: np.ndarray,
    w: np.ndarray,
    groups: np.ndarray,
    *,
    draws: int,
    level: float,
    seed: int,
) -> tuple[float, float]:
    """Percentile interval of the weighted correlation over draws of whole groups.

    ``groups`` holds a non-negative integer a row. Deterministic for a seed.
    """
    _, codes = np.unique(groups, return_inverse=True)
    count = int(codes.max(initial=-1)) + 1
    parts = _moments(x, y, w)
    summed = np.column_stack([np.bincount(codes, part, minlength=count) for part in parts.T])
    rng = np.random.default_rng(seed)
    values = []
    for start in range(0, draws, _CHUNK):
        size = min(_CHUNK, draws - start)
        picks = rng.integers(0, count, size=(size, count))
        picks += np.arange(size)[:, None] * count
        counts = np.bincount(picks.ravel(), minlength=size * count).reshape(size, count)
        values.append(_r_of(counts.astype(np.float64) @ summed))
    spread = np.concatenate(values)
    spread = spread[~np.isnan(spread)]
    if not len(spread):
        return float("nan"), float("nan")
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(spread, [tail, 1.0 - tail])
    return float(low), float(high)


def distance_correlation(x: np.ndarray, y: np.ndarray, w: np.ndarray) -> float:
    """Distance correlation of two vectors under weights, O(n²) in time and memory."""
    p = w / w.sum()

    def centred(v: np.ndarray) -> np.ndarray:
        distances = np.abs(v[:, None] - v[None, :])
        means = distances @ p
        return np.asarray(distances - means[:, None] - means[None, :] + p @ means)

    a, b = centred(x), centred(y)
    cross, own_a, own_b = (float(p @ (m * n) @ p) for m, n in ((a, b), (a, a), (b, b)))
    if own_a <= 1e-15 or own_b <= 1e-15:
        return float("nan")
    return float(np.sqrt(max(cross, 0.0) / np.sqrt(own_a * own_b)))


def dependence(
    x: np.ndarray,
    y: np.ndarray,
    w: np.ndarray,
    groups: np.ndarray,
    *,
    draws: int,
    level: float,
    sample: int,
    seed: int,
) -> Dependence:
    """Everything about one pair; rows where either axis is NaN or the weight 0 do not count."""
    use = ~np.isnan(x) & ~np.isnan(y) & (w > 0)
    x, y, w, groups = x[use], y[use], w[use], groups[use]
    nan = float("nan")
    count = len(np.unique(groups))
    if len(x) < 3 or np.isnan(r := weighted_r(x, y, w)):
        effective = float(w.sum() ** 2 / (w**2).sum()) if len(w) else 0.0
        return Dependence(len(x), count, effective, nan, nan, nan, nan, nan)
    low, high = bootstrap_r(x, y, w, groups, draws=draws, level=level, seed=seed)
    rng = np.random.default_rng(seed)
    picked = np.sort(rng.permutation(len(x))[:sample])
    shuffled = rng.permutation(len(picked))
    sx, sy, sw = x[picked], y[picked], w[picked]
    return Dependence(
        rows=len(x),
        groups=count,
        effective=float(w.sum() ** 2 / (w**2).sum()),
        r=r,
        low=low,
        high=high,
        distance=distance_correlation(sx, sy, sw),
        distance_shuffled=distance_correlation(sx, sy[shuffled], sw),
    )
