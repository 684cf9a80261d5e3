"""What the affect commands share: errors as one line with an exit code, and the rejects options."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click

from trainers.affect.errors import DataError
from trainers.affect.rows import Rejects

P = ParamSpec("P")
R = TypeVar("R")


def reported(command: Callable[P, R]) -> Callable[P, R]:
    """A `DataError` out of `command` becomes its line on stderr and its exit code."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except DataError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(error.exit_code)

    return run


def reject_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--rejects FILE`` and ``--max-rejects SHARE``."""
    command = click.option(
        "--max-rejects",
        type=click.FloatRange(0, 1),
        default=0.01,
        show_default=True,
        help="Largest share of bad lines that is not a failure.",
    )(command)
    return click.option(
        "--rejects",
        "rejects_path",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Where bad lines are written, with file, line and reason.",
    )(command)


def settle_rejects(rejects: Rejects, path: Path | None, max_share: float) -> None:
    """Name every bad line, write the rejects file, and fail when there are too many."""
    for reject in rejects.items[:20]:
        click.echo(f"rejected: {reject}", err=True)
    if len(rejects.items) > 20:
        where = f"; all of them are in {path}" if path else "; --rejects FILE keeps them all"
        click.echo(f"rejected: {len(rejects.items) - 20} more{where}", err=True)
    if path is not None:
        rejects.write(path)
    rejects.check(max_share)
