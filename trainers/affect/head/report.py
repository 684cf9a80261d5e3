"""``python -m trainers.affect.head.report``: the served head's figures as a page with pictures.

Runs the exported file (ONNX, as it is served) over the prepared test, gold and pair rows, and
writes ``affect-report.json``, ``affect-report.md`` and four PNGs: predictions against labels, joint
distributions, calibration, and the confusion of archetypes with the signs of each cell.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidecars.onnx_text import TextModel
from trainers.affect.head import measure
from trainers.affect.head.arrays import Prepared
from trainers.affect.head.export import calibration, run_onnx
from trainers.affect.head.network import AXES, TAGS

WEIGHTS = Path(__file__).parents[3] / "sidecars" / "weights" / "cahm"
Array = NDArray[np.float32]
SCATTERS = (
    ("test", "emobank", 0, "EmoBank valence"),
    ("test", "intimacy", 1, "question intimacy"),
    ("gold", None, 0, "gold valence"),
    ("gold", None, 1, "gold intimacy"),
    ("gold", None, 2, "gold tension"),
)
PICTURES = ("scatter", "joint", "calibration", "archetypes")


def rows_to_run(data: Prepared) -> NDArray[np.int64]:
    """Every row that a figure reads, once, in order."""
    parts = [
        data.rows("test", "emobank"), data.rows("test", "intimacy"), data.rows("test", "llm_label"),
        data.rows("dev", "goemotions"), data.rows("test", "goemotions"), data.rows("gold"),
        data.rows("pair_a"), data.rows("pair_b"),
    ]  # fmt: skip
    return np.unique(np.concatenate(parts))


def confusion(data: Prepared, tags: Array) -> tuple[NDArray[np.int64], list[str]]:
    """Gold rows with one archetype: labelled (rows) against the most probable tag (columns)."""
    rows = data.rows("gold")
    single = rows[data.tags[rows].sum(1) == 1.0]
    labelled, predicted = data.tags[single].argmax(1), tags[single].argmax(1)
    table = np.zeros((len(TAGS), len(TAGS)), np.int64)
    np.add.at(table, (labelled, predicted), 1)
    used = np.flatnonzero(table.sum(1))
    return table[used], [TAGS[i] for i in used]


def report(data: Prepared, out: dict[str, Array], manifest: dict[str, Any]) -> dict[str, Any]:
    """All figures; JSON-able."""
    table = measure.everything(data, out["axes"], emotions=out["emotions"])
    table["calibration"] = calibration(data, out, manifest["confidence"])
    counts, names = confusion(data, out["tags"])
    hits = sum(int(row[TAGS.index(name)]) for name, row in zip(names, counts, strict=True))
    table["archetypes"] = {
        "labelled": names, "predicted": list(TAGS), "counts": counts.tolist(),
        "most probable is right": hits / max(1, int(counts.sum())),
    }  # fmt: skip
    table["model"] = {"name": manifest.get("name"), "version": manifest.get("version")}
    table["data"] = data.digest
    return table


def page(table: dict[str, Any], folder: str) -> str:
    """The Markdown page; pictures are below ``folder``."""
    lines = [
        "# The served affect head, measured",
        "",
        "Written by `python -m trainers.affect.head.report --data data/affect.npz`; do not edit.",
        "The file that is served ran on the rows; intervals are 95 %, bootstrap over rows.",
        "",
        "| figure | value | target |",
        "|---|---|---|",
    ]  # fmt: skip
    for name, value, target in measure.summary(table):
        wanted = "" if target is None else f"{target:.2f}"
        met = "" if target is None else (" (met)" if value >= target else " (**missed**)")
        cell = name.replace("|", r"\|")  # |r| would end the cell
        lines.append(f"| {cell} | {value:.3f}{met} | {wanted} |")
    lines += ["", "| rows | axis | n | r | 95 % | mean error | SD ratio |", "|" + "---|" * 7]
    for place in ("emobank test", "question intimacy test", "pool test", "gold"):
        for axis, row in table[place].items():
            lines.append(
                f"| {place} | {axis} | {row['n']} | {row['r']:.3f} | {row['low']:.3f} to"
                f" {row['high']:.3f} | {row['mae']:.3f} | {row['sd_ratio']:.2f} |"
            )
    free = table["balanced independence"]
    lines += [
        "",
        f"Independence on {free['n']:.0f} gold and test rows, each of {free['cells']:.0f} cells",
        "weighing the same (limit .30): "
        + "; ".join(
            f"|r| {pair} {free[pair]:.2f}, of the labels {free[pair + ' labels']:.2f}"
            for pair in ("V-I", "V-T", "I-T")
        )
        + ".",
    ]
    found, right = table["calibration"], table["archetypes"]["most probable is right"]
    lines += [
        "",
        f"Confidence: mean gap {found['ece']:.3f} over {found['n']} rows. The most probable tag is",
        f"the labelled one in {right:.0%} of the gold rows with one archetype.",
    ]
    titles = (
        "Predictions against labels", "Joint distributions on gold: labels, predictions",
        "Confidence said against seen", "Archetypes: confusion, and signs in each cell",
    )  # fmt: skip
    for name, title in zip(PICTURES, titles, strict=True):
        lines += ["", f"## {title}", "", f"![{title}]({folder}/affect-{name}.png)"]
    return "\n".join(lines) + "\n"


def draw(data: Prepared, out: dict[str, Array], table: dict[str, Any], folder: Path) -> None:
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


def _scatter(data: Prepared, out: dict[str, Array], table: dict[str, Any], path: Path) -> None:
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


def _joint(data: Prepared, out: dict[str, Array], table: dict[str, Any], path: Path) -> None:
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


def _calibration(data: Prepared, out: dict[str, Array], table: dict[str, Any], path: Path) -> None:
    figure = _figure(4.6, 4.2)
    panel = figure.subplots()
    said, seen = zip(*table["calibration"]["bins"], strict=True)
    panel.plot([0, 1], [0, 1], color="grey", linewidth=0.8, label="perfect")
    panel.plot(said, seen, marker="o", label="fifths of the rows")
    panel.set(xlim=(0.3, 1), ylim=(0.3, 1), xlabel="confidence said")
    panel.set_ylabel("share with mean error ≤ .25")
    panel.legend()
    figure.savefig(path, dpi=80, metadata={"Software": None})


def _archetypes(data: Prepared, out: dict[str, Array], table: dict[str, Any], path: Path) -> None:
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


def main(argv: list[str] | None = None) -> int:
    """Run the model, write everything, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="what prepare wrote")
    parser.add_argument("--model", type=Path, default=WEIGHTS, help="an exported folder")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the page")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    if not args.data.is_file():
        parser.error(f"{args.data}: no such file; trainers.affect.head.prepare makes it")
    data, model = Prepared.load(args.data), TextModel.load(args.model, threads=args.threads)
    rows = rows_to_run(data)
    print(f"{len(rows)} rows through {args.model}", flush=True)
    out = run_onnx(model, data, rows)
    # The file gives probabilities of tags; axes within [-1, 1] up to int8 rounding, as served.
    out["axes"] = np.clip(out["axes"], -1.0, 1.0)
    table = report(data, out, model.manifest)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "affect-report.json").write_text(json.dumps(table, indent=1) + "\n")
    (args.out / "affect-report.md").write_text(page(table, "pictures"), "utf-8")
    draw(data, out, table, args.out / "pictures")
    for name, value, target in measure.summary(table):
        print(f"{name:40} {value:.3f}" + ("" if target is None else f"  (target {target:.2f})"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
