"""The independence report: is a training set free of shortcuts between the axes?

The gate is on the upper end of the interval of |r|, for all three pairs: a gate on the estimate
alone passes small sets by luck, and a gate on valence and intimacy alone passes while tension is
minus valence. It must hold over all rows that measure a pair and over the rows that measure all
three axes. A pair that nothing measures fails.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl

from trainers.affect.balance import MIN_ROWS, cells, pair_weights
from trainers.affect.config import Build
from trainers.affect.dependence import PAIR_NAMES, PAIRS, dependence
from trainers.affect.frame import matrix, shares, unmeasured
from trainers.affect.rows import ARCHETYPES, AXES

_LEVELS = ("low", "mid", "high", "null")


def correlate(rows: pl.DataFrame, build: Build) -> dict[str, Any]:
    """Report on the scored rows of a set, weighted by ``weight`` (1 where null).

    Keys: ``rows`` (scored), ``limit``, ``passed``, ``pairs`` (all rows), ``complete`` (rows that
    measure all three axes), ``by_source``, ``by_tag`` and ``cells``. Numbers are rounded to 4
    decimals, unknown ones are null.
    """
    rows = rows.filter(~unmeasured())
    pairs = _pairs(rows, build)
    limit = build.balance.limit
    measured_all = rows.filter(pl.all_horizontal(pl.col(axis).is_not_null() for axis in AXES))
    complete = _pairs(measured_all, build)
    bounds = [found[name]["bound"] for found in (pairs, complete) for name in PAIR_NAMES]
    return {
        "rows": rows.height,
        "limit": limit,
        "level": build.balance.level,
        "passed": all(bound is not None and bound <= limit for bound in bounds),
        "pairs": pairs,
        "complete": complete,
        "by_source": {name: _pairs(part, build) for name, part in _by_source(rows)},
        "by_tag": {name: _pairs(part, build) for name, part in _by_tag(rows)},
        "cells": _cell_table(rows, build),
    }


def _by_source(rows: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    for name in sorted(rows["source"].unique()):
        yield name, rows.filter(pl.col("source") == name)


def _by_tag(rows: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    for tag in ARCHETYPES:
        part = rows.filter(pl.col("tags").list.contains(tag))
        if part.height:
            yield tag, part


def _pairs(rows: pl.DataFrame, build: Build) -> dict[str, dict[str, Any]]:
    config = build.balance
    scores, share = matrix(rows), shares(rows)
    weight = rows["weight"].fill_null(1.0).to_numpy()
    groups = rows["group"].fill_null(rows["id"]).rank("dense").to_numpy().astype(np.int64)
    result: dict[str, dict[str, Any]] = {}
    for name, pair in zip(PAIR_NAMES, PAIRS, strict=True):
        both = ~np.isnan(scores[:, pair[0]]) & ~np.isnan(scores[:, pair[1]])
        if both.sum() < MIN_ROWS:
            result[name] = {"rows": int(both.sum()), "bound": None}
            continue
        found = dependence(
            scores[:, pair[0]],
            scores[:, pair[1]],
            pair_weights(weight, share, pair),
            groups,
            draws=config.bootstrap,
            level=config.level,
            sample=config.distance_sample,
            seed=build.seed,
        )
        result[name] = {
            "rows": found.rows,
            "groups": found.groups,
            "effective": _number(found.effective),
            "r": _number(found.r),
            "low": _number(found.low),
            "high": _number(found.high),
            "bound": _number(found.bound),
            "distance": _number(found.distance),
            "distance_shuffled": _number(found.distance_shuffled),
        }
    return result


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)


def _cell_table(rows: pl.DataFrame, build: Build) -> list[dict[str, Any]]:
    """Rows and weight of every cell of the fully measured rows, empty cells included."""
    scores = matrix(rows)
    weight = rows["weight"].fill_null(1.0).to_numpy()
    codes = cells(scores, build.balance.neutral_band)
    counts = np.bincount(codes, minlength=64)
    mass = np.bincount(codes, weight, minlength=64)
    table = []
    for code in range(64):
        digits = (code // 16, code // 4 % 4, code % 4)
        if 3 in digits:
            continue
        row: dict[str, Any] = {axis: _LEVELS[d] for axis, d in zip(AXES, digits, strict=True)}
        table.append(row | {"rows": int(counts[code]), "weight": round(float(mass[code]), 1)})
    return table


def render(report: dict[str, Any]) -> str:
    """The report as plain text tables for a terminal or a card."""
    lines = [f"{report['rows']} scored rows; gate: upper bound of |r| <= {report['limit']}"]
    lines += ["", *_pair_lines("all", report["pairs"], report["limit"])]
    lines += _pair_lines("complete", report["complete"], report["limit"])
    for title, key in (("source", "by_source"), ("tag", "by_tag")):
        for name, pairs in report[key].items():
            lines += _pair_lines(f"{title} {name}", pairs, None)
    lines += ["", "cells (valence, intimacy, tension): rows, training weight"]
    for cell in report["cells"]:
        place = " ".join(f"{cell[axis]:<5}" for axis in AXES)
        lines.append(f"  {place} {cell['rows']:>6} {cell['weight']:>10.1f}")
    lines += ["", "gate passed" if report["passed"] else "gate FAILED"]
    return "\n".join(lines)


def _pair_lines(title: str, pairs: dict[str, dict[str, Any]], limit: float | None) -> list[str]:
    lines = []
    for name, found in pairs.items():
        if found["bound"] is None:
            if limit is None and not found["rows"]:
                continue
            text = f"{found['rows']} rows measure both: too few, or an axis does not vary"
            verdict = "" if limit is None else "  FAIL"
        else:
            text = (
                f"r {found['r']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]  |r| <= "
                f"{found['bound']:.3f}  dcor {_shown(found['distance'])} (shuffled "
                f"{_shown(found['distance_shuffled'])})  {found['rows']} rows, effective "
                f"{found['effective']:.0f}"
            )
            verdict = "" if limit is None else ("  ok" if found["bound"] <= limit else "  FAIL")
        lines.append(f"{title:<28} {name}  {text}{verdict}")
    return lines


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
