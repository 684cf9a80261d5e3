"""The dataset card: what is in the set, whose it is, what it is good for, how to build it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import polars as pl

from trainers.affect.config import Sources
from trainers.affect.correlate import render
from trainers.affect.errors import DataError
from trainers.affect.frame import primary_tag, read_frame
from trainers.affect.gold import digest
from trainers.affect.rows import AXES
from trainers.affect.shards import shard_files

REPORT_FILE, CORRELATION_FILE = "report.json", "correlation.json"


def card(folder: Path, sources: Sources, *, permissive_only: bool = False) -> dict[str, Any]:
    """Everything the card says, from the shards and reports in ``folder``.

    With ``permissive_only`` files with rows under other licences are left out, and named so.

    Raises:
        DataError: there is no file to describe.
    """
    files: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    frames = []
    for path in shard_files(folder):
        rows = read_frame(path)
        counts = dict(_counts(rows, pl.col("licence")))
        file = {"file": path.name, "rows": rows.height, "licences": counts, "sha256": digest(path)}
        if permissive_only and any(sources.licence_class(x) != "permissive" for x in counts):
            left_out.append(file)
            continue
        frames.append(rows.with_columns(pl.lit(path.name.split(".", 1)[0]).alias("part")))
        files.append(file)
    if not frames:
        raise DataError(
            f"{folder}: every file has rows that are not permissive; describe it with --licence all"
            if left_out
            else f"{folder}: holds no data set; make one with `limbic data build`"
        )
    rows = pl.concat(frames)
    used = [name for name in sorted(rows["source"].unique()) if name in sources.sources]
    return {
        "files": files,
        "left_out": left_out,
        "rows": rows.height,
        "by_part": dict(_counts(rows, pl.col("part"))),
        "by_source": _table(rows, "source"),
        "by_quality": _table(rows, "quality"),
        "by_archetype": _table(rows.with_columns(primary_tag().alias("archetype")), "archetype"),
        "measured": {axis: rows[axis].count() for axis in AXES},
        "guidelines": sorted(rows["guideline"].drop_nulls().unique()),
        "sources": {
            name: sources.sources[name].model_dump(include={"title", "licence", "homepage", "cite"})
            for name in used
        },
        "report": _json(folder / REPORT_FILE),
        "correlation": _json(folder / CORRELATION_FILE),
    }


def _counts(rows: pl.DataFrame, what: pl.Expr) -> list[tuple[str, int]]:
    table = rows.select(what.alias("key")).group_by("key").len().drop_nulls("key").sort("key")
    return list(table.iter_rows())


def _table(rows: pl.DataFrame, key: str) -> dict[str, dict[str, int]]:
    """Counts of ``key`` by part."""
    table = rows.group_by(key, "part").len().drop_nulls(key).sort(key, "part")
    result: dict[str, dict[str, int]] = {}
    for name, part, count in table.iter_rows():
        result.setdefault(name, {})[part] = count
    return result


def _json(path: Path) -> Any:
    return orjson.loads(path.read_bytes()) if path.exists() else None


def command_of(report: dict[str, Any] | None, folder: Path) -> str:
    """The command that built the set, as its report tells it.

    Raises:
        DataError: there is no report.
    """
    if report is None:
        raise DataError(f"{folder / REPORT_FILE}: not found; `limbic data build` writes it")
    if "command" in report:
        return str(report["command"])
    # Reports of earlier versions say what was chosen, not how.
    chosen = "".join(f" --source {name}" for name in report["sources"])
    chosen += " --licence permissive" if report["licence"] == "permissive" else ""
    return f"limbic data build --data FOLDER --out FOLDER{chosen} --seed {report['seed']}"


def render_card(data: dict[str, Any], command: str) -> str:
    """The card as Markdown."""
    parts = list(data["by_part"])
    lines = [
        "# Affect data set",
        "",
        "Messages with valence, intimacy and tension in -1..1; an axis nobody measured is `null`. "
        "Gold rows are for measuring only. Scores marked `backfill` are guesses from emotion "
        "labels: they appear in train alone, with a low weight.",
        "",
        "Built from scratch by",
        "",
        f"    {command}",
        "",
        "The same inputs and seed give the same bytes.",
        "",
        "## Files",
        "",
        "| file | rows | licences | sha256 |",
        "|---|---:|---|---|",
    ]
    for file in data["files"]:
        licences = ", ".join(f"{name} ({count})" for name, count in file["licences"].items())
        lines.append(f"| `{file['file']}` | {file['rows']} | {licences} | `{file['sha256']}` |")
    if data["left_out"]:
        names = ", ".join(f"`{file['file']}` ({file['rows']} rows)" for file in data["left_out"])
        lines += [
            "",
            "The build also wrote files with rows under other licences, which are left out of this "
            f"card: {names}. What it says of the build and of the independence of the axes is said "
            "of all rows.",
        ]
    for title, key in (
        ("Sources", "by_source"),
        ("Quality", "by_quality"),
        ("Archetypes", "by_archetype"),
    ):
        lines += [
            "",
            f"## {title}",
            "",
            f"| | {' | '.join(parts)} |",
            "|---" * (len(parts) + 1) + "|",
        ]
        for name, counts in data[key].items():
            cells = " | ".join(str(counts.get(part, 0)) for part in parts)
            lines.append(f"| {name} | {cells} |")
    measured = ", ".join(f"{axis} on {count} rows" for axis, count in data["measured"].items())
    lines += ["", f"Measured: {measured}."]
    if data["guidelines"]:
        lines.append(f"Labelled by guidelines version {', '.join(data['guidelines'])}.")
    lines += ["", "## Where the rows come from", ""]
    for name, source in data["sources"].items():
        lines.append(
            f"- **{source['title']}** (`{name}`, {source['licence']}): {source['cite']} "
            f"<{source['homepage']}>"
        )
    lines.append("- All other rows are this project's own, or keep the licence written on the row.")
    if data["report"]:
        lines += ["", "## What the build did", "", "```json"]
        lines += [orjson.dumps(data["report"], option=orjson.OPT_INDENT_2).decode(), "```"]
    if data["correlation"]:
        lines += ["", "## Independence of the axes in train", "", "```"]
        lines += [render(data["correlation"]), "```"]
    return "\n".join(lines) + "\n"
