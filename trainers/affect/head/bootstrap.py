"""A 95 % interval for every figure of an affect head, whatever the figure is.

The percentile bootstrap (Efron and Tibshirani 1993, chapter 13) over **groups**: rows of one
document, frame, thread or minimal pair are drawn together, since they are not independent. Each
draw computes the whole table again, so a worst cell, a ratio or a share of pairs has its interval
by the same code as its value. Groups are drawn within each part and source; thresholds that dev
chose stay as they are, and models measured with one seed are measured on the same draws.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainers.affect.head.arrays import PARTS, Prepared
from trainers.affect.head.measure import DRAWS, Outputs

LEVEL = 95.0
Interval = tuple[float, float]


class GroupSampler:
    """Draws rows by whole groups, part by part and source by source."""

    def __init__(self, data: Prepared, rows: NDArray[np.int64]) -> None:
        stratum = data.part[rows].astype(np.int64) * 256 + data.source[rows]
        # The two sides of a pair are two parts, and are drawn together.
        stratum[np.isin(data.part[rows], [PARTS.index("pair_a"), PARTS.index("pair_b")])] = -1
        self._strata = []
        for code in np.unique(stratum):
            inside = rows[stratum == code]
            _, member = np.unique(data.groups[inside], return_inverse=True)
            order = np.argsort(member, kind="stable")
            ends = np.cumsum(np.bincount(member))
            self._strata.append((inside[order], ends - np.bincount(member), ends))

    @property
    def groups(self) -> int:
        """How many there are to draw."""
        return sum(len(ends) for _, _, ends in self._strata)

    def draw(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """As many groups of each stratum as it has, with replacement: their rows."""
        found = []
        for rows, starts, ends in self._strata:
            drawn = rng.integers(0, len(ends), len(ends))
            sizes = ends[drawn] - starts[drawn]
            first = np.repeat(starts[drawn] - np.concatenate([[0], np.cumsum(sizes)[:-1]]), sizes)
            found.append(rows[first + np.arange(len(first))])
        return np.concatenate(found)


def flat(table: Any, name: str = "") -> dict[str, float]:
    """Every number of a nested table, by its path (``gold/valence/r``)."""
    if isinstance(table, (int, float)):
        return {name: float(table)}
    items: Any = ()
    if isinstance(table, dict):
        items = table.items()
    elif isinstance(table, (list, tuple)):
        items = enumerate(table)
    found = {}
    for key, value in items:
        found.update(flat(value, f"{name}/{key}" if name else str(key)))
    return found


def intervals(
    data: Prepared,
    rows: NDArray[np.int64],
    outputs: Outputs,
    figures: Callable[[Prepared, Outputs], dict[str, Any]],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Interval]:
    """(low, high) of every number of ``figures(data, outputs)``, over draws of ``rows``.

    Args:
        outputs: name → array over all N rows of ``data``; each draw sees those of its rows.
    """
    sampler = GroupSampler(data, rows)
    rng = np.random.default_rng(seed)
    found: dict[str, list[float]] = {}
    for _ in range(draws):
        drawn = sampler.draw(rng)
        table = figures(data.targets_of(drawn), {k: v[drawn] for k, v in outputs.items()})
        for name, value in flat(table).items():
            found.setdefault(name, []).append(value)
    edges = ((100.0 - LEVEL) / 2, (100.0 + LEVEL) / 2)
    intervals = {}
    for name, values in found.items():
        finite = [value for value in values if np.isfinite(value)]
        if finite:
            low, high = np.percentile(finite, edges)
            intervals[name] = (float(low), float(high))
    return intervals
