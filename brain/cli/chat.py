"""``limbic chat``: a live conversation at a terminal, or from a script."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import click

from brain.cli.common import config_option, settings_for
from brain.errors import EXIT_OK, EXIT_USAGE, InputError
from brain.schema import check_id
from brain.settings import Settings

EXAMPLES = """\b
Examples:
  limbic chat --session alice
  printf 'hello\\nhow are you?\\n' | limbic chat --json"""


@click.command(epilog=EXAMPLES)
@click.option("--session", default="default", metavar="NAME", help="Conversation to go on with.")
@click.option(
    "--model", metavar="REF", help="pkg:package/file, file:/path.gguf or hf:org/repo/file."
)
@click.option("--persona", metavar="NAME", help="Who talks to you, from now on in this session.")
@config_option
@click.option("--json", "as_json", is_flag=True, help="One line of JSON for each turn.")
def chat(
    session: str, model: str | None, persona: str | None, config: Path | None, as_json: bool
) -> None:
    """Live chat in the terminal: streaming, history, /commands.

    When standard input or output is not a terminal, or with --json, each line of standard input is
    one message (UTF-8; blank lines are skipped) and standard output has the replies and nothing
    else; the exit code is then 1 if any line or turn failed.
    """
    try:
        check_id(session, what="--session")
        if sys.stdin is None or sys.stdout is None:
            raise InputError("standard input and output must be open")
    except InputError as error:
        click.echo(f"limbic: {error}", err=True)
        sys.exit(EXIT_USAGE)
    settings = settings_for(config, model=model, log_text=True)
    at_terminal = not as_json and os.isatty(sys.stdin.fileno()) and os.isatty(sys.stdout.fileno())
    sys.exit(asyncio.run(_chat(settings, session, persona, at_terminal, as_json)))


async def _chat(
    settings: Settings, name: str, persona: str | None, at_terminal: bool, as_json: bool
) -> int:
    from brain.app import Limbic
    from brain.cli.stopping import stop_on_signals

    with stop_on_signals() as stop:
        async with Limbic.open(settings) as limbic:
            handle = limbic.session(name)
            if persona is not None:  # without opening it first: its own may be gone
                await handle.set_persona(persona)
            if at_terminal:
                from brain.cli.slash import Commands
                from brain.cli.terminal import Conversation

                await Conversation(limbic, Commands(limbic, handle), stop).run()
                return EXIT_OK
            from brain.cli.screen import Screen
            from brain.cli.script import Output, Script

            errors = Screen(sys.stderr)
            script = Script(
                limbic, handle, Output(sys.stdout.fileno()), lambda p: errors.line(f"limbic: {p}"),
                as_json, stop, errors.note if sys.stderr.isatty() else lambda text: None,
            )  # fmt: skip
            return await script.run(sys.stdin.fileno())
