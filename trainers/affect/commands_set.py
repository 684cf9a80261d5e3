"""``limbic data`` commands on sets of rows: lint, merge, split, balance, correlate."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click
import polars as pl

from trainers.affect.cli import emit
from trainers.affect.config import load_sources
from trainers.affect.frame import write_frame
from trainers.affect.gold import GoldGuard
from trainers.affect.options import (
    IN,
    OUT,
    config_option,
    files_argument,
    json_option,
    licence_option,
    max_option,
    out_option,
    pool_folder,
    pool_option,
    read,
    rejects_option,
    report,
    seed_option,
    settings,
)


@click.command("lint")
@files_argument
@config_option
@max_option
@rejects_option
@click.option("--strict", is_flag=True, help="Warnings fail too.")
@json_option
def lint(
    files: tuple[Path, ...],
    config: Path | None,
    max_rejects: float | None,
    rejects_file: Path | None,
    strict: bool,
    as_json: bool,
) -> None:
    """Find labels that people get wrong. Exit code 1 when there are errors.

    \b
    Example:
      limbic data lint labels.jsonl --rejects bad-lines.jsonl
    """
    from trainers.affect.lint import lint as find

    build = settings(config, None, max_rejects)
    rows = read(files, build, rejects_file)
    findings = find(rows, frame_cap=build.merge.frame_cap)
    if as_json:
        emit([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            click.echo(f"{finding.level:<7} {finding.rule:<20} {finding.row}: {finding.message}")
    errors = sum(finding.level == "error" for finding in findings)
    click.echo(f"{rows.height} rows, {errors} errors, {len(findings) - errors} warnings", err=True)
    if errors or (strict and findings):
        raise SystemExit(1)


@click.command("merge")
@files_argument
@out_option
@config_option
@seed_option
@max_option
@rejects_option
@pool_option
@licence_option
@json_option
def merge(
    files: tuple[Path, ...],
    out: Path,
    config: Path | None,
    seed: int | None,
    max_rejects: float | None,
    rejects_file: Path | None,
    pool: Path | None,
    licence: str,
    as_json: bool,
) -> None:
    """Join FILES: no exact or near copies, no gold, capped frames and backfill, a weight each.

    \b
    Example:
      limbic data merge goemotions.jsonl emobank.jsonl labels.jsonl --out merged.jsonl
    """
    from trainers.affect.merge import merge as join

    build = settings(config, seed, max_rejects)
    rows = read(files, build, rejects_file)
    gold = GoldGuard.load(pool_folder(pool))
    merged, found = join(rows, gold, build, load_sources(), permissive_only=licence == "permissive")
    write_frame(out, merged)
    report(asdict(found), as_json)


@click.command("split")
@files_argument
@out_option
@config_option
@seed_option
@pool_option
@click.option("--check", is_flag=True, help="Only look for leaks in rows that are split already.")
@json_option
def split(
    files: tuple[Path, ...],
    out: Path,
    config: Path | None,
    seed: int | None,
    pool: Path | None,
    check: bool,
    as_json: bool,
) -> None:
    """Assign train, dev and test by whole groups, then search for leaks. Exit code 1 on a leak.

    \b
    Example:
      limbic data split merged.jsonl --out split.jsonl
      limbic data split split.jsonl --check --out /dev/null
    """
    from trainers.affect.split import check_leaks
    from trainers.affect.split import split as divide

    build = settings(config, seed)
    rows = read(files, build, None)
    if check:
        check_leaks(rows, build.merge)
        click.echo(f"no leaks in {rows.height} rows")
        return
    rows, found = divide(rows, build)
    gold = GoldGuard.load(pool_folder(pool))
    check_leaks(pl.concat([rows, gold.rows]) if gold.rows.height else rows, build.merge)
    write_frame(out, rows)
    report(asdict(found), as_json)


@click.command("balance")
@files_argument
@out_option
@config_option
@seed_option
@pool_option
@json_option
def balance(
    files: tuple[Path, ...],
    out: Path,
    config: Path | None,
    seed: int | None,
    pool: Path | None,
    as_json: bool,
) -> None:
    """Weight (and where that fails select) train rows until the axes are independent.

    \b
    Example:
      limbic data balance split.jsonl --out balanced.jsonl
    """
    from trainers.affect.balance import balance as weigh

    build = settings(config, seed)
    rows, found = weigh(read(files, build, None), build)
    train = rows.filter(pl.col("split") == "train")
    GoldGuard.load(pool_folder(pool)).refuse(train, str(out))
    write_frame(out, rows)
    report(asdict(found), as_json)


@click.command("correlate")
@files_argument
@config_option
@seed_option
@click.option("--split", "part", default="train", show_default=True, help="Split, or 'all'.")
@click.option("--ci", is_flag=True, help="Exit code 1 when the gate fails.")
@click.option("--picture", type=OUT, help="PNG of the joint distributions.")
@click.option("--before", type=IN, help="Rows for the upper half of the picture.")
@json_option
def correlate(
    files: tuple[Path, ...],
    config: Path | None,
    seed: int | None,
    part: str,
    ci: bool,
    picture: Path | None,
    before: Path | None,
    as_json: bool,
) -> None:
    """Correlations of the three pairs of axes, their intervals, distance correlation and cells.

    The gate is on the upper bound of |r| for every pair.

    \b
    Example:
      limbic data correlate balanced.jsonl --ci --before merged.jsonl --picture joint.png
    """
    from trainers.affect.correlate import correlate as measure
    from trainers.affect.correlate import render

    build = settings(config, seed)
    rows = read(files, build, None)
    if part != "all" and rows["split"].count():
        rows = rows.filter(pl.col("split") == part)
    found = measure(rows, build)
    if picture is not None:
        from trainers.affect.picture import draw_joint

        draw_joint(rows if before is None else read((before,), build, None), rows, picture)
    if as_json:
        emit(found)
    else:
        click.echo(render(found))
    if ci and not found["passed"]:
        raise SystemExit(1)
