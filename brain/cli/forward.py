"""Commands that live outside the brain: run as a module of their own, in place of this process.

The brain never imports model or training code; ``exec`` keeps it that way, and signals, terminal
and exit code pass through untouched.
"""

from __future__ import annotations

import importlib.util
import os
import sys

import click

from brain.errors import ConfigError

PASS = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
SIDECARS = ("llm", "cahm", "lvm")


def run_module(module: str, arguments: list[str]) -> None:
    """Replace this process by ``python -m module arguments…``."""
    from brain.processes import module_argv, module_path

    sys.stdout.flush()
    environ = {**os.environ, **module_path(os.environ)}
    os.execve(sys.executable, [*module_argv(module), *arguments], environ)


def need_training() -> None:
    """Raises ConfigError where the ``train`` extra is not installed; imports nothing of it."""
    if importlib.util.find_spec("sklearn") is None:
        raise ConfigError(
            "training and export need libraries that are not installed; `make develop`, or install "
            "limbic-runtime[train]"
        )


@click.command(context_settings=PASS, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def data(arguments: tuple[str, ...]) -> None:
    """``limbic data …``: see ``trainers.affect.cli``."""
    run_module("trainers.affect.cli", list(arguments))


@click.command(context_settings=PASS, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def label(arguments: tuple[str, ...]) -> None:
    """``limbic label …``: see ``trainers.affect.label``."""
    run_module("trainers.affect.label", list(arguments))


@click.command(context_settings=PASS, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def lvm(arguments: tuple[str, ...]) -> None:
    """``limbic lvm …``: see ``trainers.lvm.cli``."""
    run_module("trainers.lvm.cli", list(arguments))


@click.command(context_settings=PASS, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def diagnostics(arguments: tuple[str, ...]) -> None:
    """``limbic diagnostics …``: see ``probes.diagnostics``."""
    run_module("probes.diagnostics", list(arguments))


@click.group(epilog="Example: limbic sidecar run llm --port 8081")
def sidecar() -> None:
    """Model servers, each a process of its own."""


@sidecar.command(context_settings=PASS, add_help_option=False)
@click.argument("name", type=click.Choice(SIDECARS))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(name: str, arguments: tuple[str, ...]) -> None:
    """Run one sidecar in the foreground; ``limbic sidecar run NAME --help`` lists its options."""
    module = f"sidecars.{name}"
    if importlib.util.find_spec(module) is None:
        raise click.UsageError(f"this version of limbic has no {name} sidecar yet")
    run_module(module, list(arguments))


@click.group(epilog="Example: limbic train lvm --recipe config/lvm/ours_dialogue.toml --help")
def train() -> None:
    """Train a model; needs the ``train`` extra."""
    need_training()


@train.command("lvm", context_settings=PASS, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def train_lvm(arguments: tuple[str, ...]) -> None:
    """Next-vector models: see ``trainers.lvm.train_cli``."""
    run_module("trainers.lvm.train_cli", list(arguments))


@train.command("affect", context_settings=PASS, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def train_affect(arguments: tuple[str, ...]) -> None:
    """Affect models: see ``trainers.affect.head.train``."""
    run_module("trainers.affect.head.train", list(arguments))


@train.command("affect-distil", context_settings=PASS, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def train_affect_distil(arguments: tuple[str, ...]) -> None:
    """An affect head, taught by a larger encoder: see ``trainers.affect.head.distil``."""
    run_module("trainers.affect.head.distil", list(arguments))


@train.command("affect-generative", context_settings=PASS, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def train_affect_generative(arguments: tuple[str, ...]) -> None:
    """A chat model that writes affect: see ``trainers.affect.generative.train``."""
    run_module("trainers.affect.generative.train", list(arguments))


@click.group(epilog="Example: limbic export affect --help")
def export() -> None:
    """Trained weights to what the sidecars serve; needs the ``train`` extra."""
    need_training()


@export.command("affect", context_settings=PASS, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def export_affect(arguments: tuple[str, ...]) -> None:
    """The affect head: see ``trainers.affect.head.export``."""
    run_module("trainers.affect.head.export", list(arguments))


@export.command("affect-report", context_settings=PASS, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def export_affect_report(arguments: tuple[str, ...]) -> None:
    """The served affect head's figures and pictures: see ``trainers.affect.head.report``."""
    run_module("trainers.affect.head.report", list(arguments))


@export.command("affect-generative", context_settings=PASS, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def export_affect_generative(arguments: tuple[str, ...]) -> None:
    """The generative affect head to GGUF: see ``trainers.affect.generative.export``."""
    run_module("trainers.affect.generative.export", list(arguments))
