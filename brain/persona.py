"""Personas and the hormone model, read from ``config/``.

A persona is a TOML file: ``name``, ``description``, ``system`` (the prompt's first words),
``[style]`` (sampling range) and optional ``[hormones]`` overrides of ``config/hormones.toml``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, ValidationError

from brain.errors import ConfigError
from brain.schema import Frame
from brain.settings import Settings, config_dir, explain, read_toml
from brain.state import HormoneModel


class Style(Frame):
    """Range of sampling parameters that behaviour moves within."""

    temperature_min: Annotated[float, Field(ge=0, le=2)] = 0.5
    temperature_max: Annotated[float, Field(ge=0, le=2)] = 0.9
    top_p_min: Annotated[float, Field(gt=0, le=1)] = 0.8
    top_p_max: Annotated[float, Field(gt=0, le=1)] = 0.95
    reply_tokens_min: Annotated[int, Field(ge=8, le=8192)] = 60
    reply_tokens_max: Annotated[int, Field(ge=8, le=8192)] = 200


class Persona(Frame):
    """Who the agent is in a session."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    description: Annotated[str, StringConstraints(max_length=400)] = ""
    system: Annotated[str, StringConstraints(min_length=1, max_length=8_000)]
    style: Style = Style()
    hormones: HormoneModel


def load_hormones(settings: Settings) -> HormoneModel:
    """The hormone model of the settings, or the shipped one.

    Raises:
        ConfigError: every mistake in the file, one line each.
    """
    path = settings.state.hormones or config_dir() / "hormones.toml"
    try:
        return HormoneModel.model_validate(read_toml(path))
    except ValidationError as error:
        raise ConfigError(*explain(error, {}, str(path))) from error


def persona_dirs(settings: Settings) -> list[Path]:
    """Where personas are looked for: beside the settings file first, then the shipped ones."""
    own = [settings.source.parent / "personas"] if settings.source else []
    return [*own, config_dir() / "personas"]


def list_personas(settings: Settings) -> list[str]:
    """Names of all personas that can be loaded by name."""
    return sorted(
        {
            p.stem
            for folder in persona_dirs(settings)
            if folder.is_dir()
            for p in folder.glob("*.toml")
        }
    )


def load_persona(name: str, settings: Settings) -> Persona:
    """Read persona ``name`` and merge its hormone overrides.

    Raises:
        ConfigError: no such persona (the message lists those that exist), or mistakes in its file.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        raise ConfigError(f"persona {name!r:.80}: a name has only letters, digits, '_' and '-'")
    for folder in persona_dirs(settings):
        path = folder / f"{name}.toml"
        if path.is_file():
            break
    else:
        known = ", ".join(list_personas(settings)) or "none"
        raise ConfigError(f"persona {name!r} not found; there are: {known}")
    raw = read_toml(path)
    try:
        override = raw.pop("hormones", {})
        if not isinstance(override, dict):
            raise ConfigError(
                f"{path}: hormones: must be a table, such as [hormones.levels.dopamine] "
                f"(got {override!r:.80})"
            )
        raw["hormones"] = load_hormones(settings).merged(override)
        return Persona.model_validate({"name": name, **raw})
    except ValidationError as error:
        raise ConfigError(*explain(error, {}, str(path))) from error
