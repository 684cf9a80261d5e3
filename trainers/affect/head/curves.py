"""A run's curves, drawn from its log: loss of every model, and its r on dev."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainers.affect.head.arrays import AXES

LOG_FILE, PICTURE = "log.jsonl", "curves.png"


def read(run: Path) -> dict[str, list[dict[str, Any]]]:
    """Model → its log lines by step. A resumed run logs some steps again: the last word counts."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    path = run / LOG_FILE
    for text in path.read_text("utf-8").splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:  # a killed run may leave half a line
            continue
        found.setdefault(line["model"], {})[line["step"]] = line
    return {name: [steps[step] for step in sorted(steps)] for name, steps in found.items()}


def draw(run: Path) -> None:
    """Write ``RUN/curves.png``: training loss on the left, r with dev labels on the right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    models = read(run)
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for i, (name, lines) in enumerate(models.items()):
        colour = f"C{i % 10}"
        left.plot([x["step"] for x in lines], [x["loss"] for x in lines], color=colour, label=name)
        measured = [x for x in lines if "dev" in x]
        for axis, style in zip(AXES, ("-", "--", ":"), strict=True):
            if measured:
                right.plot([x["step"] for x in measured], [x["dev"][axis] for x in measured],
                           style, color=colour, label=f"{name}, {axis}")  # fmt: skip
    left.set(xlabel="step", ylabel="training loss")
    right.set(xlabel="step", ylabel="r with the pool's dev labels")
    for panel in (left, right):
        if panel.lines:
            panel.legend(fontsize=6, ncols=2)
    figure.savefig(run / PICTURE, dpi=90, metadata={"Software": None})
