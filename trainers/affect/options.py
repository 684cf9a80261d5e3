"""Options and small helpers that the ``limbic data`` commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import polars as pl

from trainers.affect.cli import emit
from trainers.affect.config import Build, load_build
from trainers.affect.frame import read_frame
from trainers.affect.rows import Rejects

IN = click.Path(path_type=Path, dir_okay=False, exists=True)
OUT = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)

files_argument = click.argument("files", nargs=-1, required=True, type=IN)
out_option = click.option("--out", type=OUT, required=True, help="JSONL file to write.")
config_option = click.option("--config", type=IN, help="Another build.toml.")
seed_option = click.option("--seed", type=int, help="Another seed than build.toml's.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
max_option = click.option(
    "--max-rejects", type=click.FloatRange(0, 1), help="Allowed share of bad lines."
)
rejects_option = click.option(
    "--rejects", "rejects_file", type=OUT, help="Where bad lines are written."
)
pool_option = click.option("--pool", type=FOLDER, help="Folder of labelled rows and gold.")
licence_option = click.option(
    "--licence",
    type=click.Choice(["all", "permissive"]),
    default="all",
    show_default=True,
    help="permissive leaves share-alike and restricted rows out.",
)


def settings(config: Path | None, seed: int | None, max_rejects: float | None = None) -> Build:
    """``build.toml`` (or another file) with what was given on the command line."""
    changes: dict[str, Any] = {}
    if seed is not None:
        changes["seed"] = seed
    if max_rejects is not None:
        changes["max_rejects"] = max_rejects
    return load_build(config).model_copy(update=changes)


def read(files: tuple[Path, ...], build: Build, rejects_file: Path | None) -> pl.DataFrame:
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


def pool_folder(pool: Path | None) -> Path:
    """The folder that was given, else the pool that ships with the package."""
    from trainers.affect.build import POOL

    return POOL if pool is None else pool


def report(data: dict[str, Any], as_json: bool) -> None:
    """Print a step's report: JSON, or a line an entry (of a list, its length)."""
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
