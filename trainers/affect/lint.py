"""What people get wrong when they label: found by rule, named by row, never changed silently.

Errors are labels that would teach the wrong thing; warnings are worth a second look. The patterns
and limits are in ``config/data/lint.toml``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

import polars as pl

from trainers.affect.config import config_dir
from trainers.affect.copies import ascii_form, bare_form
from trainers.affect.errors import DataConfigError
from trainers.affect.frame import matrix
from trainers.affect.rows import AXES, GUIDED_SOURCES

Level = Literal["error", "warning"]
_PATTERNS = ("creep", "quoted", "sarcasm", "personal")

#: Signs that a tag implies: axis -> +1 (must not be clearly negative) or -1.
_TAG_SIGNS: dict[str, dict[str, int]] = {
    "hostile_intimacy": {"valence": -1, "intimacy": 1, "tension": 1},
    "aggressive_distance": {"valence": -1, "intimacy": -1, "tension": 1},
    "neutral_but_close": {"intimacy": 1, "tension": -1},
    "flat_numb": {"valence": -1, "tension": -1},
    "fearful_urgent": {"tension": 1},
    "everyday_warm": {"valence": 1},
}


@dataclass(frozen=True)
class Finding:
    """One problem: which rule, which row (or set), and what to do about it."""

    rule: str
    level: Level
    row: str
    message: str


@dataclass(frozen=True)
class LintRules:
    """Compiled ``lint.toml``: one joined pattern a topic, and the limits."""

    patterns: dict[str, str]
    limits: dict[str, float]


def load_rules(path: Path | None = None) -> LintRules:
    """Read the rules; a pattern that does not compile names its topic and place in the list."""
    path = path or config_dir() / "lint.toml"
    try:
        raw = tomllib.loads(path.read_text("utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise DataConfigError(f"{path}: {error}") from error
    patterns = {}
    for topic in _PATTERNS:
        for place, pattern in enumerate(raw.get(topic, []), start=1):
            try:
                pl.Series(["probe"]).str.contains(pattern)
            except pl.exceptions.ComputeError as error:
                raise DataConfigError(
                    f"{path}: {topic}, pattern {place}: not a regular expression: {pattern}"
                ) from error
        # A topic without patterns is found nowhere: an empty pattern would be found everywhere.
        wanted = raw.get(topic) or ["$^"]
        patterns[topic] = "(?i)" + "|".join(f"(?:{pattern})" for pattern in wanted)
    limits = raw.get("limits", {})
    for name, value in limits.items():
        if not isinstance(value, (int, float)):
            raise DataConfigError(f"{path}: limits.{name}: needs a number, got {value!r}")
    return LintRules(patterns, {name: float(value) for name, value in limits.items()})


def lint(rows: pl.DataFrame, rules: LintRules | None = None, frame_cap: int = 6) -> list[Finding]:
    """All findings on a set of rows, errors first, then by rule and row."""
    rules = rules or load_rules()
    rows = rows.with_columns(ascii_form(rows["text"]).alias("text_ascii"))
    found: list[Finding] = []
    for check in (_texts, _tags, _people, _frames, _axis_copies, _confidence, _twins):
        found += check(rows, rules, frame_cap)
    return sorted(found, key=lambda f: (f.level != "error", f.rule, f.row))


Check = Callable[[pl.DataFrame, LintRules, int], list[Finding]]


def _each(
    rows: pl.DataFrame, where: pl.Expr, rule: str, level: Level, message: str
) -> list[Finding]:
    hits = rows.filter(where.fill_null(False))
    return [Finding(rule, level, name, message) for name in hits["id"]]


def _has(tag: str) -> pl.Expr:
    return pl.col("tags").list.contains(tag)


def _texts(rows: pl.DataFrame, rules: LintRules, frame_cap: int) -> list[Finding]:
    limit = rules.limits
    text, warm = pl.col("text_ascii"), pl.col("valence") > limit["warm_valence"]
    close = pl.col("intimacy") > limit["warm_intimacy"]
    edge = _has("safety_edge") | _has("creep")
    strong = pl.max_horizontal(pl.col(axis).abs() for axis in AXES) >= limit["strong"]
    return [
        *_each(
            rows,
            (text.str.contains(rules.patterns["creep"]) & warm & close & ~edge)
            | (_has("creep") & (warm | close)),
            "creep_as_warm",
            "error",
            "a boundary-crossing line is labelled as warm intimacy; score the pressure, tag it "
            "safety_edge, or review that it is wanted",
        ),
        *_each(
            rows,
            text.str.contains(rules.patterns["quoted"]) & strong & ~_has("quoted_speech"),
            "quoted_speech",
            "warning",
            "holds somebody else's words; check that the writer was scored, flag quoted_speech",
        ),
        *_each(
            rows,
            text.str.contains(rules.patterns["sarcasm"]) & warm & ~_has("sarcasm"),
            "sarcasm",
            "warning",
            "reads like sarcasm and is scored as pleasant; score what is meant, flag sarcasm",
        ),
        *_each(
            rows,
            _has("sarcasm") & (pl.col("valence") > limit["strong"]),
            "sarcasm_pleasant",
            "warning",
            "flagged sarcasm but clearly pleasant; was the literal wording scored?",
        ),
    ]


def _tags(rows: pl.DataFrame, rules: LintRules, frame_cap: int) -> list[Finding]:
    found = _each(
        rows,
        _has("safety_edge") & (pl.col("valence") > rules.limits["strong"]),
        "safety_edge_pleasant",
        "error",
        "tagged safety_edge but clearly pleasant; one of the two is wrong",
    )
    for tag, signs in _TAG_SIGNS.items():
        for axis, sign in signs.items():
            wrong = _has(tag) & (pl.col(axis) * sign < -rules.limits["slack"])
            side = "high" if sign < 0 else "low"
            found += _each(
                rows, wrong, "tag_contradiction", "warning", f"tagged {tag} but {axis} is {side}"
            )
    for axis in AXES:
        outside = (pl.col(axis).abs() > 1.0) | pl.col(axis).is_nan()
        found += _each(rows, outside, "out_of_range", "error", f"{axis} is outside -1..1")
    unguided = pl.col("source").is_in(sorted(GUIDED_SOURCES)) & pl.col("guideline").is_null()
    found += _each(rows, unguided, "no_guideline", "error", "no guideline version on the row")
    return found


def _people(rows: pl.DataFrame, rules: LintRules, frame_cap: int) -> list[Finding]:
    return _each(
        rows,
        pl.col("text_ascii").str.contains(rules.patterns["personal"]),
        "personal_data",
        "warning",
        "holds an address, number or link; redact it before sharing the row",
    )


def _frames(rows: pl.DataFrame, rules: LintRules, frame_cap: int) -> list[Finding]:
    full = (
        rows.filter(pl.col("frame").is_not_null() & pl.col("pair").is_null())
        .group_by("frame").len().filter(pl.col("len") > frame_cap).sort("frame")
    )  # fmt: skip
    return [
        Finding(
            "frame_cap", "warning", f"frame {frame}", f"{count} rows, the cap is {frame_cap}; "
            "merge keeps the most confident ones",
        )
        for frame, count in full.iter_rows()
    ]  # fmt: skip


def _axis_copies(rows: pl.DataFrame, rules: LintRules, frame_cap: int) -> list[Finding]:
    """Axes that copy or mirror each other on too many rows of one source or tag."""
    limit, need = rules.limits["copied_share"], rules.limits["min_rows"]
    sets = {f"source {name}": rows.filter(pl.col("source") == name)
            for name in sorted(rows["source"].unique())}  # fmt: skip
    found = []
    for name, part in sets.items():
        scores = matrix(part)
        for a, b in combinations(range(len(AXES)), 2):
            x, y = scores[:, a], scores[:, b]
            both = (x == x) & (y == y) & ((x != 0) | (y != 0))
            if both.sum() < need:
                continue
            for word, other in (("equals", y), ("mirrors", -y)):
                share = float((abs(x - other) < 1e-6)[both].mean())
                if share > limit:
                    found.append(
                        Finding(
                            "axis_copy", "error", name,
                            f"{AXES[a]} {word} {AXES[b]} on {share:.0%} of {int(both.sum())} rows; "
                            "were the axes scored independently?",
                        )
                    )  # fmt: skip
    return found


def _confidence(rows: pl.DataFrame, rules: LintRules, frame_cap: int) -> list[Finding]:
    found = []
    guided = rows.filter(pl.col("source").is_in(sorted(GUIDED_SOURCES)))
    for name in sorted(guided["source"].unique()):
        values = guided.filter(pl.col("source") == name)["confidence"].drop_nulls()
        if len(values) < rules.limits["min_rows"]:
            continue
        top = values.value_counts(sort=True).sort("count", "confidence", descending=True).row(0)
        if top[1] / len(values) > rules.limits["same_confidence_share"]:
            found.append(
                Finding(
                    "flat_confidence", "warning", f"source {name}",
                    f"confidence is {top[0]:g} on {top[1]} of {len(values)} rows; it says nothing",
                )
            )  # fmt: skip
    return found


def _twins(rows: pl.DataFrame, rules: LintRules, frame_cap: int) -> list[Finding]:
    """The same bare text and context labelled twice with different scores."""
    keyed = rows.with_columns(
        bare_form(rows["text_ascii"]).alias("bare"), pl.col("context").list.join("\n")
    )
    spread = pl.max_horizontal(pl.col(axis).max() - pl.col(axis).min() for axis in AXES)
    twins = (
        keyed.group_by("bare", "context", maintain_order=True)
        .agg(pl.len(), spread.alias("spread"), pl.col("id").sort().alias("ids"))
        .filter((pl.col("len") > 1) & (pl.col("spread") > rules.limits["strong"]))
    )
    return [
        Finding(
            "twins_disagree", "warning", ids[0],
            f"same words as {ids[1]}, scores differ by {spread:.2f}; resolve them",
        )
        for ids, spread in twins.select("ids", "spread").iter_rows()
    ]  # fmt: skip
