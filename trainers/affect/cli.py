"""The ``limbic data`` command: every step of the pipeline on files, and all of them in one.

Runs as ``python -m trainers.affect.cli``. Results go to files or standard output, progress and
errors to standard error. Exit codes: 0 ok, 1 failed check, 2 usage, 78 configuration.
"""

from __future__ import annotations

import os
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import click
import orjson

from trainers.affect.errors import DataConfigError, DataError

_HERE = "trainers.affect"
#: Command name -> module that defines a click command of the same name. Imported when asked for, so
#: that `--help` is quick and a command works without the libraries of the others.
_COMMANDS = {
    "fetch": "commands_sources",
    "goemotions": "commands_sources",
    "xed": "commands_sources",
    "emobank": "commands_sources",
    "intimacy": "commands_sources",
    "semeval": "commands_sources",
    "harvest": "harvest",
    "synth": "synth",
    "sample": "sample",
    "lint": "commands_set",
    "merge": "commands_set",
    "split": "commands_set",
    "balance": "commands_set",
    "correlate": "commands_set",
    "card": "commands_build",
    "gold": "commands_build",
    "build": "commands_build",
}
_SUMMARIES = {
    "fetch": "Get the public sets: download, or take them from a folder.",
    "goemotions": "GoEmotions to affect rows.",
    "xed": "XED (English) to affect rows.",
    "emobank": "EmoBank to affect rows.",
    "intimacy": "Question intimacy to affect rows.",
    "semeval": "SemEval-2025 task 11 (English) to affect rows.",
    "harvest": "Candidates for labelling from the runtime's own logs.",
    "synth": "Utterances of probe scenarios for cells that lack rows.",
    "sample": "Real turns of chat corpora, to be labelled.",
    "lint": "Find labels that people get wrong.",
    "merge": "Join sources: no copies, no gold, a weight on every row.",
    "split": "Train, dev and test by whole groups; refuses leaks.",
    "balance": "Weights that make the axes independent.",
    "correlate": "The independence report and its gate.",
    "card": "The dataset card of a finished set.",
    "gold": "Check or freeze the gold set.",
    "build": "Everything, from the public files to a training set.",
}


class DataGroup(click.Group):
    """Loads commands on demand and turns pipeline errors into one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        module = f"{_HERE}.{_COMMANDS[name]}"
        try:
            found = getattr(import_module(module), name, None)
        except ModuleNotFoundError as error:
            fail(_missing(name, module, error))
        if not isinstance(found, click.Command):
            fail(DataError(f"{module} defines no command {name!r}"))
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _SUMMARIES[name]) for name in _COMMANDS])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except DataError as error:
            fail(error)


def _missing(name: str, module: str, error: ModuleNotFoundError) -> DataError:
    if error.name == module:
        return DataError(f"`limbic data {name}` is not part of this installation")
    return DataConfigError(
        f"`limbic data {name}` needs the library {error.name!r}; install limbic-runtime[train]"
    )


def fail(error: DataError) -> NoReturn:
    """Print one line and leave with the error's exit code."""
    click.echo(f"error: {error}", err=True)
    raise SystemExit(error.exit_code)


def data_folder(given: Path | None) -> Path:
    """``--data``, else ``LIMBIC_DATA``."""
    if given is not None:
        return given
    if named := os.environ.get("LIMBIC_DATA"):
        return Path(named)
    raise DataConfigError("no data folder: give --data FOLDER or set LIMBIC_DATA")


def emit(data: Any) -> None:
    """One JSON document on standard output."""
    click.echo(orjson.dumps(data, option=orjson.OPT_INDENT_2).decode())


class Steps:
    """Says on a terminal which step runs and how long each took; silent elsewhere."""

    def __init__(self, quiet: bool = False) -> None:
        self._shown = not quiet and sys.stderr.isatty()
        self._name: str | None = None
        self._since = time.monotonic()

    def __call__(self, name: str) -> None:
        now = time.monotonic()
        if self._shown and self._name is not None:
            click.echo(f"  {self._name:<18} {now - self._since:6.1f} s", err=True)
        self._name, self._since = name, now

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, *exc: object) -> None:
        self("")  # closes the last step


@click.group(cls=DataGroup, context_settings={"help_option_names": ["-h", "--help"]})
def data() -> None:
    """Affect data: from logs and public sets to a balanced, honest training set.

    \b
    Example:
      limbic data fetch --to data/public
      limbic data build --data data/public --out data/affect
    """


def main() -> None:
    """Entry point of ``python -m trainers.affect.cli``."""
    data(prog_name="limbic data")


if __name__ == "__main__":
    main()
