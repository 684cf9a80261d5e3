"""Model weights that install with the project, a folder each, with its card and manifest."""

from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).parent


def shipped(model: Path) -> Path:
    """The folder that ``--model`` means: the path itself where there is one, else a shipped
    model's of that name; the path unchanged where there is neither."""
    folder = WEIGHTS / model.name
    bare = model == Path(model.name) and model.name != ""
    return folder if bare and not model.exists() and folder.is_dir() else model
