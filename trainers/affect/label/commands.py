"""`limbic label`: label rows, measure agreement, resolve, rebuild the labelled set."""

from __future__ import annotations

import click

from trainers.affect.label.commands_files import (
    agreement_command,
    import_command,
    rebuild_command,
    resolve_command,
    status_command,
)
from trainers.affect.label.commands_session import queue_command, terminal_command, web_command


@click.group(epilog="Example: limbic label web --log labels.log --rater ana --rows pool.jsonl")
def label() -> None:
    """Label or review rows, in the terminal or the browser.

    Every decision is one line in an append-only log; the labelled set is rebuilt from it.
    """


for command in (
    terminal_command,
    web_command,
    queue_command,
    import_command,
    agreement_command,
    resolve_command,
    rebuild_command,
    status_command,
):
    label.add_command(command)
