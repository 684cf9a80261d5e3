"""What the `limbic label` commands share: options, printing, rows into the log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import orjson

from trainers.affect.label.items import read_items
from trainers.affect.label.log import DecisionLog, Draft, LabelError
from trainers.affect.label.state import LabelState
from trainers.affect.rows import Rejects

FILE = click.Path(path_type=Path, dir_okay=False)
LOG = click.option(
    "--log",
    "log_path",
    type=FILE,
    required=True,
    envvar="LIMBIC_LABEL_LOG",
    help="The decision log (or LIMBIC_LABEL_LOG). Made when it does not exist.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
GUIDELINES = click.option(
    "--guidelines", "guidelines_path", type=FILE, help="Guidelines file, the newest by default."
)


def with_options(options: list[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def say(as_json: bool, record: Mapping[str, Any], text: str) -> None:
    click.echo(orjson.dumps(record).decode() if as_json else text)


def item_drafts(
    log: DecisionLog,
    paths: tuple[Path, ...],
    licence: str | None,
    version: str,
    rejects: Rejects,
) -> list[Draft]:
    """Decisions that bring rows into the log which it does not hold yet."""
    known = LabelState(log.decisions).items
    drafts = []
    for item in read_items(paths, rejects):
        record = item.record()
        if licence is not None:
            record.setdefault("licence", licence)
        if item.id not in known:
            drafts.append(Draft("", "add", item.id, "item", None, record, version))
        elif (known[item.id].text, known[item.id].context) != (item.text, item.context):
            raise LabelError(
                f"row {item.id!r} is in {log.path} with another text; give the new one its own id"
            )
    return drafts


def record(log: DecisionLog, drafts: list[Draft]) -> None:
    if drafts:
        log.append(drafts)


def tell_recovery(log: DecisionLog) -> None:
    if log.recovered_bytes:
        click.echo(
            f"note: the last write was cut off; {log.recovered_bytes} bytes of it are in "
            f"{log.path}.torn, all earlier decisions are here",
            err=True,
        )
