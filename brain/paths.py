"""Paths in a settings file: folders, data files and models, relative to the file itself.

What comes of it is absolute, so that a brain started from another folder finds the same files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILES = ("paths.data", "paths.logs", "state.hormones")
MODELS = ("llm.model", "sidecars.cahm.model", "sidecars.lvm.model")
#: What the ``lvm`` sidecar knows by name; the brain must not import it to ask.
SHIPPED_MODELS = frozenset({"lvm_articles", "lvm_dialogue"})


def absolute(path: str, base: Path) -> Path:
    """``path`` with ``~`` expanded, below ``base`` where it is relative.

    Raises:
        ValueError: it can be no path: the home of a user who is not there, a null character,
            links in a circle.
    """
    try:
        return (base / Path(path).expanduser()).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"not a path: {error}") from error


def absolute_model(reference: str, base: Path) -> str:
    """A model reference whose path, if it is one, is absolute; its ``#sha256=`` stays.

    Raises:
        ValueError: as ``absolute``.
    """
    if reference in SHIPPED_MODELS or reference.startswith(("pkg:", "hf:")):
        return reference
    body, mark, sha256 = reference.partition("#sha256=")
    path = body.removeprefix("file:")
    return f"{absolute(path, base)}{mark}{sha256}" if path.strip() else reference


def settle(raw: dict[str, Any], origin: Mapping[str, str], source: Path | None) -> list[str]:
    """Make the paths in ``raw`` absolute, in place; one line for each that can be none.

    A model of a file is relative to that file. One that the environment or a command line names is
    relative to the folder that the command runs in, as everything else that is typed there.

    Args:
        origin: where the value of each dotted key came from.
    """
    base = Path.cwd() if source is None else source.parent.resolve()
    problems = []
    for key in (*FILES, *MODELS):
        *outer, last = key.split(".")
        table: Any = raw
        for part in outer:
            table = table.get(part) if isinstance(table, dict) else None
        value = table.get(last) if isinstance(table, dict) else None
        if not isinstance(value, str) or (key in MODELS and not _is_file(key, table)):
            continue
        place = base if key in FILES or origin.get(key) == str(source) else Path.cwd()
        try:
            table[last] = (
                str(absolute(value, place)) if key in FILES else absolute_model(value, place)
            )
        except ValueError as error:
            where = origin.get(key, source or "defaults")
            problems.append(f"{where}: {key}: {error} (got {value!r:.80})")
    return problems


def _is_file(key: str, table: Mapping[str, Any]) -> bool:
    """Whether a model is a file here, rather than a name on somebody else's server."""
    return table.get("base_url") is None if key == "llm.model" else table.get("mode") != "remote"
