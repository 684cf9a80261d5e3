"""The ``limbic`` command. Heavy imports live inside commands, so that ``--help`` stays quick.

Exit codes: 0 ok · 1 failed check · 2 usage · 78 configuration. Errors are one line on stderr.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

# command → (module with a click command of that name, one line of help)
COMMANDS: dict[str, tuple[str, str]] = {
    "chat": ("brain.cli.chat", "Live chat in the terminal."),
    "serve": ("brain.cli.serve", "Telemetry and health over HTTP."),
    "monitor": ("brain.cli.monitor", "Watch scores, levels and reasons live."),
    "diagnostics": ("brain.cli.forward", "Check everything that must work."),
    "sidecar": ("brain.cli.forward", "Run one model server in the foreground."),
    "data": ("brain.cli.forward", "Affect data: from logs and public sets to a training set."),
    "train": ("brain.cli.forward", "Train a next-vector or affect model."),
    "export": ("brain.cli.forward", "Trained weights to the files that a sidecar serves."),
    "lvm": ("brain.cli.forward", "Next-message vectors: stores, baselines, validation."),
    "label": ("brain.cli.forward", "Label or review rows, in the terminal or the browser."),
}


class LazyGroup(click.Group):
    """A group that imports a command's module only when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, _ = COMMANDS[name]
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: limbic chat --session alice",
)
@click.version_option(package_name="limbic-runtime", prog_name="limbic")
def cli() -> None:
    """Limbic: an embedded chat agent that feels the conversation."""


def main(argv: list[str] | None = None) -> Any:
    """Entry point of ``limbic``."""
    return run_command(cli, "limbic", argv)


def run_command(command: click.Command, name: str, argv: list[str] | None = None) -> Any:
    """Run a command; Limbic's errors become one line each on stderr and an exit code."""
    try:
        return command.main(args=argv, prog_name=name, standalone_mode=True)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        from brain.errors import ConfigError, LimbicError

        if not isinstance(error, LimbicError):
            raise
        lines = error.problems if isinstance(error, ConfigError) else [str(error)]
        for line in lines:
            click.echo(f"limbic: {line}", err=True)
        sys.exit(error.exit_code)
