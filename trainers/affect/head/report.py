"""``limbic export affect-report``: the served head's figures as a page with pictures.

    limbic export affect-report --data data/affect.npz --lexicon vader_lexicon.txt

Runs the exported file (ONNX, int8, as it is served) and the baselines over the prepared test, gold
and pair rows, and writes ``affect-report.json``, ``affect-report.md`` and four PNGs: predictions
against labels, joint distributions, calibration, and the confusion of archetypes with the signs of
each cell. Every figure has a 95 % interval. Needs no PyTorch.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from trainers.affect.head import baselines, measure
from trainers.affect.head.arrays import Prepared
from trainers.affect.head.bootstrap import Interval, intervals
from trainers.affect.head.card import write_figures
from trainers.affect.head.measure import Outputs
from trainers.affect.head.pictures import PICTURES, draw
from trainers.affect.head.served import answers, opened
from trainers.affect.head.vader import read_lexicon

WEIGHTS = Path(__file__).parents[3] / "sidecars" / "weights" / "cahm"
SERVED = "the served head"
PLACES = ("emobank test", "emobank dev", "question intimacy test", "pool test", "gold")


def report(
    data: Prepared, out: Outputs, manifest: dict[str, Any], *, draws: int = measure.DRAWS
) -> dict[str, Any]:
    """All figures of one model with their intervals; JSON-able.

    ``out`` holds ``axes`` and whatever else the model says, over all N rows.
    """
    outputs = dict(out)
    if "spread" in outputs:
        outputs["confidence"] = measure.confidence_of(outputs.pop("spread"), manifest["confidence"])
    thresholds = None
    if "emotions" in outputs:
        thresholds = measure.emotion_thresholds(data, outputs["emotions"])

    def figures(part: Prepared, found: Outputs) -> dict[str, Any]:
        return measure.everything(part, thresholds=thresholds, **found)

    def drawn(part: Prepared, found: Outputs) -> dict[str, Any]:
        table = figures(part, found)
        for unneeded in ("counts", "n"):
            table.get("archetypes", {}).pop(unneeded, None)
        return {**table, "summary": {name: value for name, value, _ in measure.summary(table)}}

    table = figures(data, outputs)
    rows = measure.rows_measured(data, emotions=thresholds is not None)
    if thresholds is not None:
        rows = np.setdiff1d(rows, data.rows("dev", "goemotions"))
    table["summary"] = {name: value for name, value, _ in measure.summary(table)}
    table["targets"] = {name: target for name, _, target in measure.summary(table) if target}
    table["intervals"] = intervals(data, rows, outputs, drawn, draws=draws)
    return table


def _range(found: Interval | None, digits: int = 3) -> str:
    return "" if found is None else f"{found[0]:.{digits}f} to {found[1]:.{digits}f}"


def comparison(tables: dict[str, dict[str, Any]]) -> list[str]:
    """Markdown: a line a figure, a column a model, the served head last; values with intervals."""
    targets = tables[SERVED]["targets"]
    lines = ["| figure | target | " + " | ".join(tables) + " |", "|" + "---|" * (len(tables) + 2)]
    for name, own in tables[SERVED]["summary"].items():
        cells = []
        for model, table in tables.items():
            value = table["summary"].get(name)
            if value is None or value != value:
                cells.append("–")
                continue
            mark = ""
            if model == SERVED and name in targets:
                mark = " (met)" if own >= targets[name] else " (**missed**)"
            spread = _range(table["intervals"].get(f"summary/{name}"), 2)
            cells.append(f"{value:.3f}{mark}" + (f"<br>{spread}" if spread else ""))
        wanted = f"{targets[name]:.2f}" if name in targets else ""
        cell = name.replace("|", r"\|")  # |r| would end the cell
        lines.append(f"| {cell} | {wanted} | " + " | ".join(cells) + " |")
    return lines


def page(tables: dict[str, dict[str, Any]], folder: str) -> str:
    """The Markdown page of all models; pictures of the served one are below ``folder``."""
    table = tables[SERVED]
    spread = table["intervals"]
    lines = [
        "# The served affect head, measured",
        "",
        "Written by `limbic export affect-report`; do not edit. The file that is served ran on the",
        f"rows: {table['model']['name']} {table['model']['version']}, SHA-256",
        f"`{table['model']['sha256']}`.",
        "",
        "Below each value is its 95 % interval: a percentile bootstrap over whole groups",
        "(document, frame, thread or minimal pair), each draw computing the figure again.",
        "Baselines are fitted on the train rows of one source and axis at a time, with penalties",
        "chosen on dev; the head serves all with one scale. Thresholds of GoEmotions labels are",
        "from dev.",
        "",
        *comparison(tables),
    ]  # fmt: skip
    lines += ["", "| rows | axis | n | r | 95 % | mean error | 95 % | SD ratio | 95 % |",
              "|" + "---|" * 9]  # fmt: skip
    for place in PLACES:
        for axis, row in table[place].items():
            path = f"{place}/{axis}"
            lines.append(
                f"| {place} | {axis} | {row['n']} | {row['r']:.3f} |"
                f" {_range(spread.get(f'{path}/r'))} | {row['mae']:.3f} |"
                f" {_range(spread.get(f'{path}/mae'))} | {row['sd_ratio']:.2f} |"
                f" {_range(spread.get(f'{path}/sd_ratio'), 2)} |"
            )
    lines += ["", *_independence(table), *_confidence(table)]
    titles = (
        "Predictions against labels", "Joint distributions on gold: labels, predictions",
        "Confidence said against seen", "Archetypes: confusion, and signs in each cell",
    )  # fmt: skip
    for name, title in zip(PICTURES, titles, strict=True):
        lines += ["", f"## {title}", "", f"![{title}]({folder}/affect-{name}.png)"]
    return "\n".join(lines) + "\n"


def _independence(table: dict[str, Any]) -> list[str]:
    free, spread = table["balanced independence"], table["intervals"]
    parts = [
        f"|r| {pair} {free[pair]:.2f} ({_range(spread.get(f'balanced independence/{pair}'), 2)}),"
        f" of the labels {free[pair + ' labels']:.2f}"
        for pair in ("V-I", "V-T", "I-T")
    ]
    return [
        f"Independence on {free['n']:.0f} gold and test rows, each of {free['cells']:.0f} cells",
        "weighing the same (limit .30): " + "; ".join(parts) + ".",
        "",
        "Partial correlations on gold, 0 where a prediction holds nothing of another axis but what",
        "its own label accounts for: "
        + "; ".join(
            f"{pair} {r:.2f} ({_range(spread.get(f'partial correlations/{pair}'), 2)})"
            for pair, r in table["partial correlations"].items()
        )
        + ".",
    ]


def _confidence(table: dict[str, Any]) -> list[str]:
    if "calibration" not in table:
        return []
    found, spread = table["calibration"], table["intervals"]
    lines = [
        "",
        f"Confidence is the probability of a mean error of at most {measure.CLOSE:.2f}; in fifths",
        f"of {found['n']} rows:",
        "",
        "| said | seen | 95 % |",
        "|---|---|---|",
    ]  # fmt: skip
    for i, (said, seen) in enumerate(found["bins"]):
        around = _range(spread.get(f"calibration/bins/{i}/1"), 2)
        lines.append(f"| {said:.2f} | {seen:.2f} | {around} |")
    return lines


def main(argv: list[str] | None = None) -> int:
    """Run everything, write everything, print the table. Exit codes: 0, 2 usage, 78 bad model."""
    parser = argparse.ArgumentParser(
        prog="limbic export affect-report", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--data", type=Path, required=True, help="what prepare wrote")
    parser.add_argument("--model", type=Path, default=WEIGHTS, help="an exported folder")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the page")
    parser.add_argument("--lexicon", type=Path, help="vader_lexicon.txt, for that baseline")
    parser.add_argument("--cache", type=Path, help="folder that keeps what the models said")
    parser.add_argument("--no-baselines", action="store_true", help="the served head alone")
    parser.add_argument("--emotions", action="store_true",
                        help="baselines of GoEmotions, too: 48,000 rows more")  # fmt: skip
    parser.add_argument("--card", type=Path, help="model card whose table of figures to renew")
    parser.add_argument("--draws", type=int, default=measure.DRAWS, help="of the bootstrap")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    for path, hint in ((args.data, "; trainers.affect.head.prepare makes it"), (args.lexicon, ""),
                       (args.card, "")):  # fmt: skip
        if path is not None and not path.is_file():
            parser.error(f"{path}: no such file{hint}")
    try:
        if args.lexicon is not None:
            read_lexicon(args.lexicon)
    except ValueError as error:
        parser.error(str(error))
    data, model = opened(parser, args.data, args.model, threads=args.threads)
    models: dict[str, Outputs] = {}
    if not args.no_baselines:
        print("baselines", flush=True)
        models = baselines.predictions(
            data, lexicon=args.lexicon, folder=args.cache, emotions=args.emotions
        )
    rows = measure.rows_measured(data)
    print(f"{len(rows)} rows through {args.model}", flush=True)
    out = models[SERVED] = answers(model, data, rows, args.cache)
    tables = {
        name: report(data, found, model.manifest, draws=args.draws)
        for name, found in models.items()
    }
    tables[SERVED]["model"] = {
        "name": model.manifest["name"], "version": model.manifest["version"],
        "sha256": model.sha256,
    }  # fmt: skip
    tables[SERVED]["data"] = data.digest
    args.out.mkdir(parents=True, exist_ok=True)
    draw(data, out, tables[SERVED], args.out / "pictures")
    (args.out / "affect-report.json").write_text(json.dumps(tables, indent=1) + "\n")
    (args.out / "affect-report.md").write_text(page(tables, "pictures"), "utf-8")
    if args.card:
        write_figures(args.card, tables[SERVED])
    print(baselines.render({name: table["summary"] for name, table in tables.items()}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
