"""The labelling guidelines: versioned files that ship with the code."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from trainers.affect.errors import DataConfigError

FOLDER = Path(__file__).parent.parent / "guidelines"
_FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_VERSION = re.compile(r"^version:\s*([0-9]+(?:\.[0-9]+)*)\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Guidelines:
    """The page raters follow; `version` goes on every decision."""

    version: str
    text: str


def load_guidelines(path: Path | None = None) -> Guidelines:
    """A guidelines file, the newest shipped one by default. Raises `DataConfigError`."""
    if path is None:
        shipped = sorted(FOLDER.glob("v*.md"), key=lambda file: int(file.stem[1:]))
        path = shipped[-1]
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataConfigError(f"{path}: cannot read the guidelines: {error}") from error
    front = _FRONT.match(text)
    version = _VERSION.search(front[1]) if front else None
    if version is None:
        raise DataConfigError(f"{path}: no 'version: N.N' between '---' lines at the top")
    return Guidelines(version[1], text)
