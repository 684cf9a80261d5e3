"""What several commands share: the ``--config`` option and settings with overrides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from brain.settings import Settings, find_config, load_settings


def config_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--config FILE``: default ``$LIMBIC_CONFIG``, ``./config/limbic.toml``, or built in."""
    return click.option(
        "--config",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Settings file. Default: $LIMBIC_CONFIG, ./config/limbic.toml, or the built-in ones.",
    )(command)


def settings_for(
    config: Path | None, *, model: str | None = None, log_text: bool | None = None
) -> Settings:
    """Settings of a command, with what its options override.

    Raises:
        ConfigError: every mistake, one line each.
    """
    settings = load_settings(find_config(config))
    if model is not None:
        # A model named on the command line is served here, whatever server the file names.
        llm = settings.llm.model_copy(update={"model": model, "base_url": None})
        settings = settings.model_copy(update={"llm": llm})
    if log_text is not None and settings.telemetry.log_text is None:
        telemetry = settings.telemetry.model_copy(update={"log_text": log_text})
        settings = settings.model_copy(update={"telemetry": telemetry})
    return settings
