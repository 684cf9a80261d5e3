"""From the public files and the shipped pool to a training set, in one go.

Reads top to bottom: sources, pool, lint, merge, split, leak check, balance, gold check, shards,
independence report, picture, card. Everything written depends on the inputs, the configuration and
the seed only; no clock, no host.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from trainers.affect.balance import balance
from trainers.affect.card import CORRELATION_FILE, REPORT_FILE, card, render_card
from trainers.affect.config import Build, Mapping, Sources
from trainers.affect.correlate import correlate, render
from trainers.affect.fetch import verify, wanted
from trainers.affect.frame import complete, read_frame, unmeasured, write_frame
from trainers.affect.gold import GoldGuard, pool_files
from trainers.affect.lint import lint
from trainers.affect.merge import merge
from trainers.affect.picture import draw_joint
from trainers.affect.readers import READERS
from trainers.affect.rows import Rejects
from trainers.affect.shards import write_shards
from trainers.affect.split import check_leaks, split

#: The labelled rows that ship with the package.
POOL = Path(__file__).with_name("pool")


@dataclass(frozen=True)
class Built:
    """Result of a build: the gate's verdict, the report, and the rejects that were written."""

    passed: bool
    report: dict[str, Any]
    correlation: dict[str, Any]
    rejects: Rejects


def build_set(
    data: Path,
    out: Path,
    config: Build,
    mapping: Mapping,
    sources: Sources,
    *,
    pool: Path = POOL,
    names: Sequence[str] = (),
    permissive_only: bool = False,
    picture: bool = True,
    command: str = "limbic data build",
    say: Callable[[str], None] = lambda step: None,
) -> Built:
    """Build the whole set below ``out`` and return what happened.

    ``names`` restricts the public sources. Raises the errors of every step; a failing gate is not
    an error but ``passed = False``, so that the report is there to look at.
    """
    chosen = list(names or READERS)
    if permissive_only:
        chosen = [
            name for name in chosen
            if sources.licence_class(sources.sources[name].licence) == "permissive"
        ]  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    collected: list[Rejects] = []
    parts = []
    for name in chosen:
        say(f"read {name}")
        for file in wanted(sources, [name]):
            verify(data, file)
        bad = Rejects()
        rows = READERS[name](data, mapping, config, bad)
        collected.append(bad)
        write_frame(out / "sources" / f"{name}.jsonl", rows)
        parts.append(rows)
    say("read pool")
    row_files, _ = pool_files(pool)
    collected.append(Rejects())
    pooled = read_frame(row_files, collected[-1])
    parts.append(pooled)
    rejects = Rejects(
        [item for bad in collected for item in bad.items], sum(bad.seen for bad in collected)
    )
    rejects.write(out / "rejects.jsonl")
    for bad in collected:  # each on its own: a small broken pool must not hide behind large sets
        bad.check(config.max_rejects)
    gold = GoldGuard.load(pool)

    say("lint")
    findings = lint(pooled, frame_cap=config.merge.frame_cap)
    _dump(out / "lint.json", [asdict(finding) for finding in findings])

    say("merge")
    merged, merge_report = merge(
        complete(pl.concat(parts)), gold, config, sources, permissive_only=permissive_only
    )
    _dump(out / "conflicts.json", merge_report.conflicts)

    say("split")
    rows, split_report = split(merged, config)
    say("look for leaks")
    with_gold = pl.concat([rows, complete(gold.rows)]) if gold.rows.height else rows
    check_leaks(with_gold, config.merge)

    say("balance")
    rows, balance_report = balance(rows, config)
    train = rows.filter(pl.col("split") == "train")
    gold.refuse(train)

    say("write")
    labelled_gold = gold.rows.filter(~unmeasured())
    write_shards(out, pl.concat([rows, complete(labelled_gold)]), sources)
    say("correlate")
    correlation = correlate(train, config)
    _dump(out / CORRELATION_FILE, correlation)
    (out / "correlation.txt").write_text(render(correlation) + "\n", "utf-8")
    if picture:
        draw_joint(merged.filter(~unmeasured()), train, out / "joint.png")
    report = {
        "command": command,
        "seed": config.seed,
        "licence": "permissive" if permissive_only else "all",
        "sources": chosen,
        "pool": {path.name: read for path, read in _pool_counts(row_files)},
        "rejects": {"lines": rejects.seen, "rejected": len(rejects.items)},
        "lint": dict(sorted(Counter(f"{f.level}: {f.rule}" for f in findings).items())),
        "merge": asdict(merge_report) | {"conflicts": len(merge_report.conflicts)},
        "split": asdict(split_report),
        "balance": _rounded(asdict(balance_report)),
        "gold": gold.rows.height,
        "passed": correlation["passed"],
    }
    _dump(out / REPORT_FILE, report)
    say("card")
    text = render_card(card(out, sources), command)
    (out / "README.md").write_text(text, "utf-8")
    return Built(correlation["passed"], report, correlation, rejects)


def _pool_counts(files: Sequence[Path]) -> list[tuple[Path, int]]:
    return [(path, sum(1 for line in path.open("rb") if line.strip())) for path in files]


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, float):
        return round(value, 4) if value == value else None
    return value


def _dump(path: Path, data: Any) -> None:
    path.write_bytes(orjson.dumps(data, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
