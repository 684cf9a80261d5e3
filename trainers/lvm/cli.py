"""The ``limbic lvm`` command. Runs as ``python -m trainers.lvm.cli``.

Results go to files or standard output, progress and errors to standard error. Exit codes: 0 ok,
1 failed check, 2 usage, 78 configuration.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from brain.errors import LimbicError

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
#: Commands defined in modules of their own; listed only where the module is there.
_ELSEWHERE = {"compare": "trainers.lvm.compare"}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.commands, *(n for n, m in _ELSEWHERE.items() if find_spec(m))]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in _ELSEWHERE and find_spec(_ELSEWHERE[name]):
            found: click.Command = getattr(import_module(_ELSEWHERE[name]), name)
            return found
        return super().get_command(ctx, name)


def _data_folder() -> Path:
    given = os.environ.get("LIMBIC_DATA")
    return Path(given) if given else Path("../shared/data")


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: limbic lvm vectors --corpus chitchat_byu --out stores/chitchat",
)
def cli() -> None:
    """Predicting the next message's vector: data, baselines and proof."""


@cli.command(epilog="Example: limbic lvm vectors --corpus chitchat_byu --out stores/chitchat")
@click.option("--corpus", "name", required=True, help="A name in config/data/corpora.toml.")
@click.option("--data", type=FOLDER, help="Data folder (default LIMBIC_DATA).")
@click.option("--out", type=FOLDER, required=True, help="Folder of the store to make.")
@click.option("--encoder", "folder", type=FOLDER, help="Encoder folder (default: MiniLM, shipped).")
@click.option("--config", type=FILE, help="Another corpora.toml.")
@click.option("--documents", type=click.IntRange(1), help="Read only so many documents.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
def vectors(
    name: str,
    data: Path | None,
    out: Path,
    folder: Path | None,
    config: Path | None,
    documents: int | None,
    threads: int,
) -> None:
    """Encode a corpus into a store; run again after an interruption to go on."""
    from trainers.lvm.corpora import load_corpora
    from trainers.lvm.vectors import TextModelEncoder, build_store

    corpora = load_corpora(config)
    if name not in corpora:
        raise click.UsageError(f"unknown corpus '{name}' (known: {', '.join(corpora)})")
    started = time.monotonic()

    def show(done: int, texts: int) -> None:
        rate = texts / max(time.monotonic() - started, 1e-9)
        click.echo(f"{done} documents, {texts} texts, {rate:.0f} texts/s", err=True)

    store = build_store(
        name,
        corpora[name],
        data or _data_folder(),
        out,
        TextModelEncoder(folder, threads=threads),
        limit=documents,
        progress=show,
    )
    splits = ", ".join(f"{split} {count}" for split, count in store.splits.items())
    copies = store.manifest["near_copies"]
    click.echo(f"{out}: {len(store.vectors)} vectors, {copies} near-copies left out ({splits})")


def emit(report: dict[str, Any], table: str, as_json: bool, out: Path | None) -> None:
    """Print the table, or the report as JSON; write the JSON to ``out`` when given."""
    text = json.dumps(report, indent=1)
    if out is not None:
        out.write_text(text + "\n")
    click.echo(text if as_json else table)


def main(argv: list[str] | None = None) -> None:
    """Entry point: errors become one line each on stderr and an exit code."""
    try:
        cli.main(args=argv, prog_name="limbic lvm", standalone_mode=True)
    except LimbicError as error:
        for line in str(error).splitlines():
            click.echo(f"limbic: {line}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
