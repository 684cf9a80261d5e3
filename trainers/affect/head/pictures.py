"""The four pictures of the affect report, from predictions and the table of figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from trainers.affect.head import measure
from trainers.affect.head.arrays import AXES, TAGS, Prepared
from trainers.affect.head.measure import Outputs

SCATTERS = (
    ("test", "emobank", 0, "EmoBank valence"),
    ("test", "intimacy", 1, "question intimacy"),
    ("gold", None, 0, "gold valence"),
    ("gold", None, 1, "gold intimacy"),
    ("gold", None, 2, "gold tension"),
)
PICTURES = ("scatter", "joint", "calibration", "archetypes")


def draw(data: Prepared, out: Outputs, table: dict[str, Any], folder: Path) -> None:
    """Four PNGs in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, panel in zip(PICTURES, (_scatter, _joint, _calibration, _archetypes), strict=True):
        panel(data, out, table, folder / f"affect-{name}.png")


def _figure(width: float, height: float) -> Any:
    # Imported here: the figures alone do not need it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _scatter(data: Prepared, out: Outputs, table: dict[str, Any], path: Path) -> None:
    figure = _figure(15, 3.4)
    for panel, (part, source, axis, title) in zip(
        figure.subplots(1, len(SCATTERS)), SCATTERS, strict=True
    ):
        rows = data.rows(part, source)
        rows = rows[~np.isnan(data.axes[rows, axis])]
        x, y = data.axes[rows, axis], out["axes"][rows, axis]
        panel.plot([-1, 1], [-1, 1], color="grey", linewidth=0.8)
        panel.scatter(x, y, s=5, alpha=0.35, linewidths=0)
        panel.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal", xlabel="label")
        panel.set_title(f"{title}: r = {measure.pearson(x, y):.2f}, n = {len(rows)}", fontsize=9)
    figure.axes[0].set_ylabel("prediction")
    figure.savefig(path, dpi=80, metadata={"Software": None})


def _joint(data: Prepared, out: Outputs, table: dict[str, Any], path: Path) -> None:
    figure = _figure(10, 6.6)
    panels = figure.subplots(2, 3)
    rows = data.rows("gold")
    for line, (what, axes) in enumerate((("labels", data.axes), ("predictions", out["axes"]))):
        for column, (i, j) in enumerate(((0, 1), (0, 2), (1, 2))):
            panel = panels[line][column]
            panel.hexbin(
                axes[rows, i], axes[rows, j], gridsize=16, extent=(-1, 1, -1, 1), mincnt=1,
                cmap="viridis",
            )  # fmt: skip
            r = measure.pearson(axes[rows, i], axes[rows, j])
            panel.set_title(f"{what}: r = {r:+.2f}", fontsize=9)
            panel.set(xlabel=AXES[i], ylabel=AXES[j], xlim=(-1, 1), ylim=(-1, 1), aspect="equal")
    figure.savefig(path, dpi=75, metadata={"Software": None})


def _calibration(data: Prepared, out: Outputs, table: dict[str, Any], path: Path) -> None:
    figure = _figure(4.6, 4.2)
    panel = figure.subplots()
    said, seen = zip(*table["calibration"]["bins"], strict=True)
    panel.plot([0, 1], [0, 1], color="grey", linewidth=0.8, label="perfect")
    panel.plot(said, seen, marker="o", label="fifths of the rows")
    panel.set(xlim=(0.3, 1), ylim=(0.3, 1), xlabel="confidence said")
    panel.set_ylabel("share with mean error ≤ .25")
    panel.legend()
    figure.savefig(path, dpi=80, metadata={"Software": None})


def _archetypes(data: Prepared, out: Outputs, table: dict[str, Any], path: Path) -> None:
    figure = _figure(13, 5)
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    found = table["archetypes"]
    counts = np.array(found["counts"], float)
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    left.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i, j in np.ndindex(*shares.shape):
        if counts[i, j]:
            left.text(
                j, i, f"{int(counts[i, j])}", ha="center", va="center", fontsize=8,
                color="white" if shares[i, j] > 0.6 else "black",
            )  # fmt: skip
    left.set_xticks(range(len(TAGS)), TAGS, rotation=40, ha="right", fontsize=8)
    left.set_yticks(range(len(found["labelled"])), found["labelled"], fontsize=8)
    left.set(xlabel="most probable tag", ylabel="labelled")
    cells = table["gold cells"]
    names = [TAGS[int(tag)] for tag in cells]
    places = np.arange(len(names))
    right.barh(places - 0.2, [c["sign"] for c in cells.values()], 0.4, label="all axes")
    right.barh(places + 0.2, [c["worst_axis_sign"] for c in cells.values()], 0.4,
               label="worst axis")  # fmt: skip
    right.axvline(0.75, color="black", linewidth=0.8, linestyle=":")
    right.set_yticks(places, names, fontsize=8)
    right.set(xlim=(0, 1), xlabel="share of signs that are right")
    right.legend(fontsize=8, loc="lower left")
    figure.savefig(path, dpi=75, metadata={"Software": None})
