"""``limbic lvm compare``: one recipe over the architectures and several seeds, in one table.

The recipe is one of kind ``guarded``. Every tenth training document is held out: on these a run
chooses its epoch. The table is measured on ``--valid-split``, which no run has seen; its intervals
resample documents and belong to the mean over the seeds. All runs take the same steps;
``--parameters`` also gives all architectures one size. Stop it and run it again: finished epochs
and what was measured are kept. ``--model`` adds a shipped model, measured on the same windows;
``--with`` the metrics.json of runs measured elsewhere. Writes compare.json, compare.md and a PNG.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np

from brain.errors import ConfigError, LimbicError

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.lvm.batches import Corpus
    from trainers.lvm.measure import Judge, Measured
    from trainers.lvm.recipes import Guarded

COLUMNS = {"cosine": "cosine", "margin": "margin", "mrr": "rr", "hit10": "hit"}
HELD = 10  # every so many-th training document chooses the epoch
RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser("limbic lvm compare", description=__doc__.split("\n\n")[0])
    p.add_argument("--recipe", type=Path, required=True, help="of kind 'guarded'")
    p.add_argument("--store", type=Path, action="append", required=True)
    p.add_argument("--valid-store", type=Path, action="append", help="default: the first --store")
    p.add_argument("--valid-split", default="valid", help="what the table is measured on")
    p.add_argument("--documents", type=int, help="train on the first so many documents only")
    p.add_argument("--architecture", action="append", help="default: all four; repeatable")
    p.add_argument("--parameters", type=int, help="size of each network (default: its own)")
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--epochs", type=int)
    p.add_argument("--device", default="cpu")
    p.add_argument("--model", dest="models", type=Path, action="append", default=[])
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


def summarise(
    name: str, seeds: list[Measured], *, parameters: int | None = None, **more: Any
) -> dict[str, Any]:
    """One row from the same architecture's seeds: ``interval`` over documents, of the seeds' mean;
    ``spread``, the standard deviation over seeds; ``each``, the seeds' own means."""
    from trainers.lvm.measure import interval

    row: dict[str, Any] = {"name": name, "seeds": len(seeds), "parameters": parameters, **more}
    for column, attribute in COLUMNS.items():
        values = np.mean([getattr(found, attribute) for found in seeds], axis=0)
        each = [float(getattr(found, attribute).mean()) for found in seeds]
        row[column] = {
            "mean": mean(each),
            "interval": interval(values, seeds[0].document),
            "spread": stdev(each) if len(each) > 1 else None,
            "each": each,
        }
    return row


def elsewhere(path: Path) -> dict[str, Any]:
    """The row of a run that was measured where it was trained. Raises ConfigError."""
    try:
        found = json.loads(path.read_text("utf-8"))
        ours = found["table"]["ours"]
        row = {
            "name": found["recipe"]["name"],
            "seeds": 1,
            "parameters": found["parameters"],
            "seconds": found["seconds"],
        }
        for column in COLUMNS:
            low, high = ours[column]["interval"]
            value = float(ours[column]["mean"])
            row[column] = {"mean": value, "interval": [low, high], "spread": None, "each": [value]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is not the metrics.json of a run: {error}") from error
    return row


def render(rows: list[dict[str, Any]]) -> str:
    """The table in Markdown, in the order of the rows."""
    head = ["mean [95 %] ± over seeds", *COLUMNS, "parameters", "train s", "latency ms"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = []
        for column in COLUMNS:
            low, high = row[column]["interval"]
            spread = row[column]["spread"]
            cells.append(
                f"{row[column]['mean']:.4f} [{low:.3f}, {high:.3f}]"
                + ("" if spread is None else f" ± {spread:.4f}")
            )
        for key, form in (("parameters", ",d"), ("seconds", ".0f"), ("latency_ms", ".2f")):
            cells.append("" if row.get(key) is None else format(row[key], form))
        lines.append("| " + " | ".join([row["name"], *cells]) + " |")
    return "\n".join(lines) + "\n"


def draw(rows: list[dict[str, Any]], path: Path) -> bool:
    """A PNG: a panel for each metric, a line for each row: its interval, and a dot for each seed.

    False (and no picture) without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(13, 0.6 + 0.35 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    names = [row["name"] for row in rows]
    for panel, column in zip(figure.subplots(1, len(COLUMNS), sharey=True), COLUMNS, strict=True):
        for place, row in enumerate(rows):
            colour = "grey" if row["baseline"] else "tab:blue"
            panel.plot(row[column]["interval"], [place, place], color=colour, linewidth=1.5)
            each = row[column]["each"]
            panel.plot(each, [place] * len(each), ".", color=colour)
        panel.set_yticks(range(len(names)), names)
        panel.set_title(column)
        panel.grid(axis="x", linewidth=0.3)
    figure.axes[0].invert_yaxis()
    figure.savefig(path, dpi=75, metadata={"Software": None})
    return True


def split(corpus: Corpus, documents: int | None) -> tuple[Corpus, Corpus]:
    """Documents to train on, and every ``HELD``-th, on which a run chooses its epoch.

    Raises ConfigError where one side would be empty.
    """
    from trainers.lvm.batches import subset

    numbers = np.arange(len(corpus.starts))[:documents]
    held = numbers % HELD == HELD - 1
    if not held.any():
        raise ConfigError(f"{len(numbers)} training documents: at least {HELD} are needed")
    return subset(corpus, numbers[~held]), subset(corpus, numbers[held])


def best_ridge(corpus: Corpus, held: Corpus) -> Tensor:
    """The ridge whose penalty has the best cosine on the documents that choose the epochs too."""
    from trainers.lvm.measure import linear_vector, ridges

    context, there = held.context(held.targets), held.vectors[held.targets].float()

    def cosine(linear: Tensor) -> float:
        return float((linear_vector(linear)(context) * there).sum(-1).mean())

    return max(ridges(corpus, RIDGES), key=cosine)


def kept(path: Path, weights: Path, judge: Judge, measure: Callable[[], Measured]) -> Measured:
    """What ``measure`` finds, kept in ``path`` for next time with the same weights and windows."""
    from trainers.lvm.measure import Measured

    digest = hashlib.sha256(weights.read_bytes())
    digest.update(judge.corpus.vectors.cpu().numpy().tobytes())
    digest.update(judge.pools.cpu().numpy().tobytes())
    names = [field.name for field in dataclasses.fields(Measured)]
    if path.is_file():
        with np.load(path, allow_pickle=False) as old:
            if str(old["key"]) == digest.hexdigest():
                return Measured(**{name: old[name] for name in names})
    found = measure()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name("part-" + path.name)
    np.savez(part, key=digest.hexdigest(), **{name: getattr(found, name) for name in names})
    part.replace(path)
    return found


def shipped(folder: Path, corpus: Corpus, judge: Judge, out: Path) -> list[dict[str, Any]]:
    """Rows of a model folder: with its rank head, and its vector head alone.

    The rank head scores each candidate for itself here: one bank serves document and pool.
    """
    import torch

    from sidecars.lvm_network import LvmNetwork

    net = LvmNetwork.load(folder)
    if net.manifest.get("encoder_sha256") != corpus.encoder or net.dim != corpus.vectors.shape[1]:
        raise ConfigError(f"{folder} was made for other vectors than those of the stores")

    def vector(context: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(net.predict(context.numpy()))

    def rank(context: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(net.rank_alone(context.numpy(), bank.numpy()))

    size = sum(tensor.size for tensor in net.tensors.values())
    name, weights = str(net.manifest["name"]), folder / "model.safetensors"
    ranked = kept(out / f"{name}.npz", weights, judge, lambda: judge.score(rank, vector))
    return [
        summarise(name, [ranked], parameters=size),
        summarise(f"{name}, vector head alone", [judge.vector(vector)]),
    ]


def run(argv: list[str] | None = None) -> None:
    """Train what has not been trained yet, measure everything, write the table."""
    options = parser().parse_args(argv)
    try:
        from trainers.lvm import measure
        from trainers.lvm.batches import load_corpus
        from trainers.lvm.predictors import ARCHITECTURES
        from trainers.lvm.recipes import Guarded, load
    except ImportError as error:
        raise ConfigError(f"training needs the 'train' extra: {error}") from error
    recipe = load(options.recipe)
    if not isinstance(recipe, Guarded):
        raise ConfigError(f"{options.recipe}: compare needs a recipe of kind 'guarded'")
    if options.seeds < 1:
        raise ConfigError("--seeds must be at least 1")
    recipe.epochs = options.epochs or recipe.epochs
    recipe.parameters = options.parameters or recipe.parameters
    corpus, held = split(load_corpus(options.store, "train", options.device), options.documents)
    valid = load_corpus(
        options.valid_store or options.store[:1], options.valid_split, options.device
    )
    if valid.encoder != corpus.encoder:
        raise ConfigError("training and validation vectors come from different encoders")
    sizes = {
        part: {"windows": len(c.targets), "documents": len(c.starts)}
        for part, c in (("train", corpus), ("held", held), ("measured", valid))
    }
    settings = {"recipe": dataclasses.asdict(recipe), "encoder": corpus.encoder, "sizes": sizes}
    _keep_apart(options.out, settings)
    judge = measure.Judge(valid)
    fitted = measure.baselines(measure.fit_scalars(corpus), best_ridge(corpus, held))
    rows = [summarise(name, [judge.vector(rival)]) for name, rival in fitted.items()]
    levels = [row["name"] for row in rows]
    found = [row for folder in options.models for row in shipped(folder, valid, judge, options.out)]
    names = options.architecture or list(ARCHITECTURES)
    print(
        f"{len(corpus.targets)} windows of {len(corpus.starts)} documents to train on, "
        f"{len(held.targets)} of {len(held.starts)} choose the epoch, {len(valid.targets)} of "
        f"{len(valid.starts)} are measured on; {len(names)} × {options.seeds} runs",
        flush=True,
    )
    for place, name in enumerate(names):
        done = place * options.seeds
        found.append(_runs(name, done, len(names), recipe, corpus, held, judge, options))
    found += [elsewhere(path) for path in options.others]
    rows += sorted(found, key=lambda row: -row["mrr"]["mean"])
    for row in rows:
        row["baseline"] = row["name"] in levels
    table = render(rows)
    steps = recipe.epochs * -(-len(corpus.targets) // recipe.batch)
    report = {**settings, "steps": steps, "rows": rows}
    (options.out / "compare.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    (options.out / "compare.md").write_text(table, "utf-8")
    draw(rows, options.out / "compare.png")
    print(f"\n{table}\nfirst by MRR: {rows[len(levels)]['name']}", flush=True)


def _keep_apart(out: Path, settings: dict[str, Any]) -> None:
    """Write down what the runs in ``out`` share. Raises ConfigError where they were made with
    something else: a run that goes on must be the run that began."""
    note = out / "settings.json"
    flat = {**settings["recipe"], "encoder": settings["encoder"], **settings["sizes"]}
    flat = json.loads(json.dumps(flat))
    if note.is_file():
        old = json.loads(note.read_text("utf-8"))
        changed = sorted(key for key in flat if old.get(key) != flat[key])
        if changed:
            raise ConfigError(
                f"{out} holds runs with another {', '.join(changed)}: choose another --out"
            )
    out.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(flat, indent=1) + "\n", "utf-8")


def _runs(
    name: str,
    done: int,
    kinds: int,
    recipe: Guarded,
    corpus: Corpus,
    held: Corpus,
    judge: Judge,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """The row of one architecture: every seed trained (or found trained), then measured."""
    from safetensors.torch import load_file

    from trainers.lvm import guarded
    from trainers.lvm.predictors import build

    measured, runs = [], []
    dim = corpus.vectors.shape[1]
    for seed in range(options.seeds):
        out = options.out / f"{name}-{seed}"
        print(f"run {done + seed + 1} of {kinds * options.seeds}: {name}, seed {seed}", flush=True)
        this = dataclasses.replace(recipe, architecture=name, seed=seed)
        runs.append(guarded.train(this, corpus, held, out, resume=True))
        net = build(
            name,
            dim,
            temporal=recipe.temporal,
            causal=recipe.causal,
            residual=recipe.residual,
            parameters=recipe.parameters,
        )
        net.load_state_dict(load_file(out / "model.safetensors"))
        net.to(options.device).eval()
        measured.append(
            kept(out / "measured.npz", out / "model.safetensors", judge, partial(judge.vector, net))
        )
    return summarise(
        name,
        measured,
        parameters=runs[0]["parameters"],
        seconds=mean(run["seconds"] for run in runs),
        latency_ms=latency_ms(net, dim),
        epochs=[run["epochs"]["vector"] for run in runs],
    )


def main(argv: list[str] | None = None) -> None:
    """Entry point; Limbic's errors are one line on stderr and an exit code."""
    try:
        run(argv)
    except LimbicError as error:
        print(f"limbic: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
