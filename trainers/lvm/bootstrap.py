"""Cluster bootstrap over documents: windows of one document are not independent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over windows with its 95 % interval."""

    mean: float
    low: float
    high: float

    def as_list(self) -> list[float]:
        """``[mean, low, high]`` rounded for a report."""
        return [round(v, 5) for v in (self.mean, self.low, self.high)]


def cluster_interval(
    values: np.ndarray, documents: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """Interval of the mean of ``values`` ``[W]``, resampling whole documents (``[W]`` their ids).

    For a paired comparison give the differences. NaN values (a window without that value) do not
    count. The percentile interval of the ratio of sums; the same seed draws the same documents.
    """
    known = np.isfinite(values)
    _, cluster = np.unique(documents, return_inverse=True)
    groups = int(cluster.max()) + 1 if len(cluster) else 0
    sums = np.bincount(cluster[known], values[known].astype(np.float64), groups)
    counts = np.bincount(cluster[known], minlength=groups).astype(np.float64)
    if not counts.sum():
        return Interval(float("nan"), float("nan"), float("nan"))
    draws = np.random.default_rng(seed).multinomial(
        groups, np.full(groups, 1 / groups), size=resamples
    )
    weight = draws @ counts
    means = (draws @ sums)[weight > 0] / weight[weight > 0]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(sums.sum() / counts.sum()), float(low), float(high))
