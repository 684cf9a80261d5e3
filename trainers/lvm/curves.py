"""Curves of a run, redrawn after every epoch where matplotlib is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SHOWN = ("cosine", "margin", "mrr", "hit10")


def draw(rows: list[dict[str, Any]], path: Path, title: str) -> bool:
    """One panel per metric over epochs; False (and no picture) without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    for panel, name in zip(figure.subplots(2, 2).flat, SHOWN, strict=True):
        panel.plot([r["epoch"] for r in rows], [r[name] for r in rows], marker=".")
        for row in rows:
            if row.get("events"):
                panel.axvline(row["epoch"], color="tab:red", linewidth=0.8)
        panel.set_title(name)
        panel.set_xlabel("epoch")
    figure.suptitle(title)
    figure.savefig(path, dpi=80)
    return True
