"""``python -m trainers.lvm.record RUN …``: the recipes' runs side by side, a table and curves.

Reads the ``metrics.json`` of each run that ``limbic train lvm`` finished; writes ``record.md`` and
``record.png`` into ``--out``. Runs must have been measured on the same windows.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from brain.errors import ConfigError, LimbicError

PANELS = (("cosine", "cosine"), ("margin", "margin_last"), ("mrr", "MRR in the document"))


def read(folder: Path) -> dict[str, Any]:
    """A run's metrics. Raises ConfigError where there are none with a history."""
    path = folder / "metrics.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if not found["history"]:
            raise ValueError("no epoch")
        found["recipe"]["name"], found["table"]["copy-last"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: not the metrics of a finished recipe run ({error!r})"
        ) from error
    return found


def render(runs: list[dict[str, Any]]) -> str:
    """Markdown: baselines, then each run at its best epoch and at its last."""
    lines = [
        "| run | cosine, 95 % | margin | MRR, 95 % | at its end: cosine, margin | epochs | s |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = [(n, r, "", "", "") for n, r in runs[0]["table"].items() if not n.startswith("ours")]
    for run in runs:
        last = run["history"][-1]
        end = f"{last['cosine']:.3f}, {last['margin']:+.3f}"
        rows.append((run["recipe"]["name"], run["table"]["ours"], end, str(len(run["history"])),
                     f"{run['seconds']:.0f}"))  # fmt: skip
    for name, row, end, epochs, seconds in rows:
        cosine, mrr = (
            f"{row[key]['mean']:.3f} [{row[key]['interval'][0]:.3f}, {row[key]['interval'][1]:.3f}]"
            for key in ("cosine", "mrr")
        )
        margin = f"{row['margin']['mean']:+.3f}"
        lines.append(f"| {name} | {cosine} | {margin} | {mrr} | {end} | {epochs} | {seconds} |")
    return "\n".join(lines) + "\n"


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """A PNG: each metric over epochs, one line a run, copy-last and ridge as levels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for panel, (key, label) in zip(figure.subplots(1, 3), PANELS, strict=True):
        for run in runs:
            history = run["history"]
            panel.plot([h["epoch"] for h in history], [h[key] for h in history], marker=".",
                       label=run["recipe"]["name"])  # fmt: skip
        for name, style in (("copy-last", ":"), ("ridge", "--")):
            level = runs[0]["table"][name][key]["mean"]
            panel.axhline(level, color="grey", linestyle=style, linewidth=0.9, label=name)
        panel.set(xlabel="epoch", ylabel=label)
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=75, metadata={"Software": None})


def main(argv: list[str] | None = None) -> int:
    """Read, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of limbic train lvm")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    try:
        runs = [read(folder) for folder in args.runs]
    except LimbicError as error:
        print(f"limbic: {error}", file=sys.stderr)
        return error.exit_code
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "record.md").write_text(render(runs), "utf-8")
    draw(runs, args.out / "record.png")
    print(render(runs))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
