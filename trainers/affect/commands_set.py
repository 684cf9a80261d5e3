"""``limbic data`` commands that work on sets of rows: lint, merge, split, balance, and the rest."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import polars as pl

from trainers.affect.cli import Steps, data_folder, emit
from trainers.affect.config import Build, load_build, load_mapping, load_sources
from trainers.affect.errors import DataError
from trainers.affect.frame import read_frame, write_frame
from trainers.affect.gold import GOLD_FILE, GoldGuard, check_frozen, freeze
from trainers.affect.rows import Rejects

_IN = click.Path(path_type=Path, dir_okay=False, exists=True)
_OUT = click.Path(path_type=Path, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)

_files = click.argument("files", nargs=-1, required=True, type=_IN)
_out = click.option("--out", type=_OUT, required=True, help="JSONL file to write.")
_config = click.option("--config", type=_IN, help="Another build.toml.")
_seed = click.option("--seed", type=int, help="Another seed than build.toml's.")
_json = click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
_max = click.option(
    "--max-rejects", type=click.FloatRange(0, 1), help="Allowed share of bad lines."
)
_rejects = click.option("--rejects", "rejects_file", type=_OUT, help="Where bad lines are written.")
_pool = click.option("--pool", type=_FOLDER, help="Folder of labelled rows and gold.")
_licence = click.option(
    "--licence",
    type=click.Choice(["all", "permissive"]),
    default="all",
    show_default=True,
    help="permissive leaves share-alike and restricted rows out.",
)


def _build(config: Path | None, seed: int | None, max_rejects: float | None = None) -> Build:
    changes: dict[str, Any] = {}
    if seed is not None:
        changes["seed"] = seed
    if max_rejects is not None:
        changes["max_rejects"] = max_rejects
    return load_build(config).model_copy(update=changes)


def _read(files: tuple[Path, ...], build: Build, rejects_file: Path | None) -> pl.DataFrame:
    """Rows of all files; bad lines are shown, written when asked, and counted against the limit."""
    rejects = Rejects()
    rows = read_frame(files, rejects)
    if rejects_file is not None:
        rejects.write(rejects_file)
    for item in rejects.items[:10]:
        click.echo(f"rejected {item}", err=True)
    if len(rejects.items) > 10:
        click.echo(f"rejected {len(rejects.items) - 10} more lines", err=True)
    rejects.check(build.max_rejects)
    return rows


def _pool_folder(pool: Path | None) -> Path:
    from trainers.affect.build import POOL

    return POOL if pool is None else pool


@click.command("lint")
@_files
@_config
@_max
@_rejects
@click.option("--strict", is_flag=True, help="Warnings fail too.")
@_json
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

    build = _build(config, None, max_rejects)
    rows = _read(files, build, rejects_file)
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
@_files
@_out
@_config
@_seed
@_max
@_rejects
@_pool
@_licence
@_json
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

    build = _build(config, seed, max_rejects)
    rows = _read(files, build, rejects_file)
    gold = GoldGuard.load(_pool_folder(pool))
    merged, report = join(
        rows, gold, build, load_sources(), permissive_only=licence == "permissive"
    )
    write_frame(out, merged)
    _report(asdict(report), as_json)


@click.command("split")
@_files
@_out
@_config
@_seed
@_pool
@click.option("--check", is_flag=True, help="Only look for leaks in rows that are split already.")
@_json
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

    build = _build(config, seed)
    rows = _read(files, build, None)
    if check:
        check_leaks(rows, build.merge)
        click.echo(f"no leaks in {rows.height} rows")
        return
    rows, report = divide(rows, build)
    gold = GoldGuard.load(_pool_folder(pool))
    check_leaks(pl.concat([rows, gold.rows]) if gold.rows.height else rows, build.merge)
    write_frame(out, rows)
    _report(asdict(report), as_json)


@click.command("balance")
@_files
@_out
@_config
@_seed
@_pool
@_json
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

    build = _build(config, seed)
    rows, report = weigh(_read(files, build, None), build)
    train = rows.filter(pl.col("split") == "train")
    GoldGuard.load(_pool_folder(pool)).refuse(train, str(out))
    write_frame(out, rows)
    _report(asdict(report), as_json)


@click.command("correlate")
@_files
@_config
@_seed
@click.option("--split", "part", default="train", show_default=True, help="Split, or 'all'.")
@click.option("--ci", is_flag=True, help="Exit code 1 when the gate fails.")
@click.option("--picture", type=_OUT, help="PNG of the joint distributions.")
@click.option("--before", type=_IN, help="Rows for the upper half of the picture.")
@_json
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

    build = _build(config, seed)
    rows = _read(files, build, None)
    if part != "all" and rows["split"].count():
        rows = rows.filter(pl.col("split") == part)
    report = measure(rows, build)
    if picture is not None:
        from trainers.affect.picture import draw_joint

        draw_joint(rows if before is None else _read((before,), build, None), rows, picture)
    if as_json:
        emit(report)
    else:
        click.echo(render(report))
    if ci and not report["passed"]:
        raise SystemExit(1)


@click.command("card")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False, exists=True))
@_licence
@click.option("--out", type=_OUT, help="Default: standard output.")
@_json
def card(folder: Path, licence: str, out: Path | None, as_json: bool) -> None:
    """The dataset card of a set that `limbic data build` wrote.

    \b
    Example:
      limbic data card data/affect --licence permissive --out CARD.md
    """
    from trainers.affect.card import card as describe
    from trainers.affect.card import render_card

    found = describe(folder, load_sources(), permissive_only=licence == "permissive")
    if as_json:
        emit(found)
        return
    suffix = " --licence permissive" if licence == "permissive" else ""
    text = render_card(found, f"limbic data build --out {folder}{suffix}")
    if out is None:
        click.echo(text)
    else:
        out.write_text(text, "utf-8")


@click.command("gold")
@_pool
@click.option("--freeze", "write", is_flag=True, help="Write the hash file beside the gold set.")
@click.option("--refuse", type=_IN, help="Fail if this file of rows holds gold.")
def gold(pool: Path | None, write: bool, refuse: Path | None) -> None:
    """Check that the gold set is the frozen one, freeze a new one, or refuse gold in a file.

    \b
    Example:
      limbic data gold --refuse data/affect/train.jsonl
    """
    folder = _pool_folder(pool)
    path = folder / GOLD_FILE
    if not path.exists():
        raise DataError(f"{path}: there is no gold set; give its folder with --pool")
    if write:
        click.echo(f"{freeze(path)}  {path}")
    check_frozen(path)
    guard = GoldGuard.load(folder)
    if refuse is not None:
        guard.refuse(read_frame(refuse), str(refuse))
    click.echo(f"{path}: {len(guard.ids)} guarded rows, frozen")


@click.command("build")
@click.option("--data", "folder", type=_FOLDER, help="Data folder (or LIMBIC_DATA).")
@click.option(
    "--out", type=_FOLDER, default=Path("data/affect"), show_default=True, help="Folder to write."
)
@click.option("--source", "names", multiple=True, help="Only these public sources.")
@_pool
@_config
@_seed
@_max
@_licence
@click.option("--picture/--no-picture", default=True, help="Draw joint.png.")
@click.option("--ci", is_flag=True, help="Exit code 1 when the gate fails.")
@_json
def build(
    folder: Path | None,
    out: Path,
    names: tuple[str, ...],
    pool: Path | None,
    config: Path | None,
    seed: int | None,
    max_rejects: float | None,
    licence: str,
    picture: bool,
    ci: bool,
    as_json: bool,
) -> None:
    """Everything, from the public files and the shipped pool to a training set with its card.

    \b
    Example:
      limbic data build --data data/public --out data/affect --ci
    """
    from trainers.affect.build import build_set
    from trainers.affect.readers import READERS

    unknown = [name for name in names if name not in READERS]
    if unknown:
        raise click.BadParameter(
            f"{unknown[0]!r} is none of {', '.join(READERS)}", param_hint="--source"
        )
    settings = _build(config, seed, max_rejects)
    options = "".join(f" --source {name}" for name in names)
    options += " --licence permissive" if licence == "permissive" else ""
    options += f" --seed {seed}" if seed is not None else ""
    with Steps(quiet=as_json) as steps:
        result = build_set(
            data_folder(folder),
            out,
            settings,
            load_mapping(),
            load_sources(),
            pool=_pool_folder(pool),
            names=names,
            permissive_only=licence == "permissive",
            picture=picture,
            command=f"limbic data build --data FOLDER --out FOLDER{options}",
            say=steps,
        )
    if as_json:
        emit(result.report)
    else:
        counts = ", ".join(f"{name} {n}" for name, n in result.report["split"]["counts"].items())
        click.echo(f"{out}: {counts}; gate {'passed' if result.passed else 'FAILED'}")
    if ci and not result.passed:
        raise SystemExit(1)


def _report(data: dict[str, Any], as_json: bool) -> None:
    if as_json:
        emit(data)
        return
    for key, value in data.items():
        if isinstance(value, list):
            value = len(value)
        elif isinstance(value, dict):
            value = ", ".join(
                f"{name} {item:.3f}" if isinstance(item, float) else f"{name} {item}"
                for name, item in value.items()
            )
        click.echo(f"{key.replace('_', ' ')}: {value}")
