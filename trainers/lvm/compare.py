"""``limbic lvm compare``: one recipe over the architectures and several seeds, in one table.

The recipe is one of kind ``guarded``; ``--with`` adds the metrics.json of runs made elsewhere
(ours, say). Writes compare.json and compare.md. What ranks first by MRR in the document is named.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from brain.errors import ConfigError, LimbicError

COLUMNS = ("cosine", "margin", "mrr", "hit10")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser("limbic lvm compare", description=__doc__.split("\n\n")[0])
    p.add_argument("--recipe", type=Path, required=True, help="of kind 'guarded'")
    p.add_argument("--store", type=Path, action="append", required=True)
    p.add_argument("--valid-store", type=Path, action="append", help="default: the first --store")
    p.add_argument("--architecture", action="append", help="default: all four; repeatable")
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--epochs", type=int)
    p.add_argument("--device", default="cpu")
    p.add_argument("--with", dest="others", type=Path, action="append", default=[])
    p.add_argument("--out", type=Path, required=True)
    return p


def latency_ms(net: Any, dim: int, repeats: int = 30) -> float:
    """Median time of one window on one core in torch, milliseconds."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    net = net.cpu().eval()
    context, times = torch.randn(1, 5, dim), []
    with torch.no_grad():
        for _ in range(repeats):
            began = time.perf_counter()
            net(context)
            times.append(time.perf_counter() - began)
    torch.set_num_threads(threads)
    return sorted(times)[repeats // 2] * 1e3


def summarise(name: str, runs: list[dict[str, Any]], latency: float | None) -> dict[str, Any]:
    """One row from the metrics of the same architecture's seeds; ``spread`` is over seeds."""
    row: dict[str, Any] = {"name": name, "seeds": len(runs), "latency_ms": latency}
    for column in COLUMNS:
        values = [run["table"]["ours"][column]["mean"] for run in runs]
        row[column] = {"mean": mean(values), "spread": stdev(values) if len(values) > 1 else None}
    row["parameters"] = runs[0]["parameters"]
    row["seconds"] = mean(run["seconds"] for run in runs)
    return row


def render(rows: list[dict[str, Any]], baselines: dict[str, Any]) -> str:
    """The table in Markdown, baselines first."""
    head = ["", *COLUMNS, "parameters", "train s", "latency ms"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, found in baselines.items():
        cells = [f"{found[c]['mean']:.4f}" for c in COLUMNS]
        lines.append("| " + " | ".join([name, *cells, "", "", ""]) + " |")
    for row in rows:
        cells = [
            f"{row[c]['mean']:.4f}" + (f" ± {row[c]['spread']:.4f}" if row[c]["spread"] else "")
            for c in COLUMNS
        ]
        latency = "" if row["latency_ms"] is None else f"{row['latency_ms']:.2f}"
        cells += [f"{row['parameters']:,}", f"{row['seconds']:.0f}", latency]
        lines.append("| " + " | ".join([row["name"], *cells]) + " |")
    return "\n".join(lines) + "\n"


def run(argv: list[str] | None = None) -> None:
    """Train every architecture and seed that has no result yet, then write the table."""
    options = parser().parse_args(argv)
    try:
        from trainers.lvm import guarded
        from trainers.lvm.batches import load_corpus
        from trainers.lvm.predictors import ARCHITECTURES, build
        from trainers.lvm.recipes import Guarded, load
    except ImportError as error:
        raise ConfigError(f"training needs the 'train' extra: {error}") from error
    recipe = load(options.recipe)
    if not isinstance(recipe, Guarded):
        raise ConfigError(f"{options.recipe}: compare needs a recipe of kind 'guarded'")
    if options.seeds < 1:
        raise ConfigError("--seeds must be at least 1")
    corpus = load_corpus(options.store, "train", options.device)
    valid = load_corpus(options.valid_store or options.store[:1], "valid", options.device)
    dim, rows, baselines = corpus.vectors.shape[1], [], {}
    for name in options.architecture or ARCHITECTURES:
        net = build(name, dim, temporal=recipe.temporal, causal=recipe.causal)
        runs = []
        for seed in range(options.seeds):
            out = options.out / f"{name}-{seed}"
            this = dataclasses.replace(recipe, architecture=name, seed=seed)
            this.epochs = options.epochs or recipe.epochs
            print(f"{name}, seed {seed}", flush=True)
            runs.append(guarded.train(this, corpus, valid, out, resume=True))
        rows.append(summarise(name, runs, latency_ms(net, dim)))
        baselines = {k: v for k, v in runs[0]["table"].items() if not k.startswith("ours")}
    for path in options.others:
        try:
            found = json.loads(path.read_text("utf-8"))
            rows.append(summarise(found["recipe"]["name"], [found], None))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} is not the metrics.json of a run: {error}") from error
    rows.sort(key=lambda row: -row["mrr"]["mean"])
    table = render(rows, baselines)
    (options.out / "compare.json").write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    (options.out / "compare.md").write_text(table, "utf-8")
    print(f"\n{table}\nfirst by MRR: {rows[0]['name']}", flush=True)


def main(argv: list[str] | None = None) -> None:
    """Entry point; Limbic's errors are one line on stderr and an exit code."""
    try:
        run(argv)
    except LimbicError as error:
        print(f"limbic: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
