"""The ``limbic lvm`` command. Runs as ``python -m trainers.lvm.cli``.

Results go to files or standard output, progress and errors to standard error. Exit codes: 0 ok,
1 failed check, 2 usage, 78 configuration.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from brain.errors import ConfigError, LimbicError

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)


def _data_folder() -> Path:
    given = os.environ.get("LIMBIC_DATA")
    if not given:
        raise ConfigError("no data folder: give --data FOLDER or set LIMBIC_DATA")
    return Path(given)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: limbic lvm vectors --corpus chitchat_byu --out stores/chitchat",
)
def cli() -> None:
    """Predicting the next message's vector: data, baselines and proof."""


@cli.command(epilog="Example: limbic lvm vectors --corpus chitchat_byu --out stores/chitchat")
@click.option("--corpus", "name", required=True, help="A name in config/data/corpora.toml.")
@click.option("--data", type=FOLDER, help="Data folder (default LIMBIC_DATA).")
@click.option("--out", type=FOLDER, required=True, help="Folder of the store to make.")
@click.option("--encoder", "folder", type=FOLDER, help="Encoder folder (default: MiniLM, shipped).")
@click.option("--config", type=FILE, help="Another corpora.toml.")
@click.option("--documents", type=click.IntRange(1), help="Read only so many documents.")
@click.option("--split", type=click.Choice(["train", "valid", "dev", "test"]), help="Only this.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
def vectors(
    name: str,
    data: Path | None,
    out: Path,
    folder: Path | None,
    config: Path | None,
    documents: int | None,
    split: str | None,
    threads: int,
) -> None:
    """Encode a corpus into a store; run again after an interruption to go on."""
    from trainers.lvm.corpora import load_corpora
    from trainers.lvm.vectors import TextModelEncoder, build_store

    corpora = load_corpora(config)
    if name not in corpora:
        raise click.UsageError(f"unknown corpus '{name}' (known: {', '.join(corpora)})")
    started = time.monotonic()

    def show(done: int, texts: int) -> None:
        rate = texts / max(time.monotonic() - started, 1e-9)
        click.echo(f"{done} documents, {texts} texts, {rate:.0f} texts/s", err=True)

    store = build_store(
        name,
        corpora[name],
        data or _data_folder(),
        out,
        TextModelEncoder(folder, threads=threads),
        limit=documents,
        split=split,
        progress=show,
    )
    splits = ", ".join(f"{split} {count}" for split, count in store.splits.items())
    copies = store.manifest["near_copies"]
    click.echo(f"{out}: {len(store.vectors)} vectors, {copies} near-copies left out ({splits})")


@cli.command(epilog="Example: limbic lvm diagnose stores/chitchat --picture chitchat.png")
@click.argument("store", type=FOLDER)
@click.option("--split", default="train", show_default=True)
@click.option("--cosine", type=float, default=0.56, show_default=True, help="Wished cosine.")
@click.option("--margin", type=float, default=0.10, show_default=True, help="Wished margin_last.")
@click.option("--windows", type=click.IntRange(1), default=20_000, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--picture", type=FILE, help="PNG to write.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--out", type=FILE, help="File for the JSON report.")
def diagnose(
    store: Path,
    split: str,
    cosine: float,
    margin: float,
    windows: int,
    seed: int,
    picture: Path | None,
    as_json: bool,
    out: Path | None,
) -> None:
    """Is there anything to learn in this store, and how much? Exit code 1: no."""
    from trainers.lvm.diagnose import diagnose as look
    from trainers.lvm.diagnose import draw, render
    from trainers.lvm.store import VectorStore

    report = look(
        VectorStore.open(store), split=split, wish=(cosine, margin), windows=windows, seed=seed
    )
    if picture is not None:
        draw(report, picture)
    emit(report, render(report), as_json, out)
    if not report["good"]:
        sys.exit(1)


def _evaluation(command: Any) -> Any:
    """Options that ``baselines`` and ``validate`` share."""
    for option in reversed(
        [
            click.option("--store", type=FOLDER, required=True, help="Store to evaluate on."),
            click.option("--ood-store", "ood", type=FOLDER, help="Store of another domain."),
            click.option("--fit-store", type=FOLDER, help="Fit the baselines there, not in STORE."),
            click.option("--fit-windows", type=click.IntRange(1), help="How many to fit them on."),
            click.option("--local-scaling", is_flag=True, help="Also show references with it."),
            click.option("--kind", type=click.Choice(["articles", "dialogue"])),
            click.option("--split", default="valid", show_default=True),
            click.option("--windows", type=click.IntRange(1), default=10_000, show_default=True),
            click.option("--margin-target", type=float, help="Wanted margin_last."),
            click.option("--seed", type=int, default=0, show_default=True),
            click.option("--legacy", is_flag=True, help="Also print the older gate values."),
            click.option("--json", "as_json", is_flag=True, help="Print JSON."),
            click.option("--out", type=FILE, help="File for the JSON report."),
            click.option("--picture", type=FILE, help="PNG of C(k) to write."),
        ]
    ):
        command = option(command)
    return command


@cli.command(epilog="Example: limbic lvm baselines --store stores/chitchat")
@_evaluation
def baselines(**options: Any) -> None:
    """All baselines in one table; the ridge goes through the gates, and must not pass."""
    options["expect_pass"] = False
    _validate(model="ridge", **options)


@cli.command(
    epilog="Example: limbic lvm validate --store stores/a --ood-store stores/b --model FOLDER"
)
@_evaluation
@click.option("--model", required=True, help="Folder of a model, or the name of a baseline.")
def validate(**options: Any) -> None:
    """5CAT: five gates with intervals. Exit code 1 when one of them does not pass."""
    _validate(expect_pass=True, **options)


@cli.command(epilog="Example: limbic lvm frontier --store stores/a --picture frontier.png")
@click.option("--store", type=FOLDER, required=True, help="Store to look at.")
@click.option("--model", type=FOLDER, help="Folder of a model to draw beside the ridge.")
@click.option("--fit-store", type=FOLDER, help="Fit baselines and ranker there, not in STORE.")
@click.option("--fit-windows", type=click.IntRange(1), help="How many to fit baselines on.")
@click.option("--ranker-windows", type=click.IntRange(1), help="How many to fit the ranker on.")
@click.option("--split", default="valid", show_default=True)
@click.option("--windows", type=click.IntRange(1), default=5_000, show_default=True)
@click.option("--cosine", type=float, help="Wished cosine (default: the best baseline's + .03).")
@click.option("--margin", type=float, default=0.05, show_default=True, help="Wished margin_last.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--picture", type=FILE, help="PNG to write.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--out", type=FILE, help="File for the JSON report.")
def frontier(
    store: Path,
    model: Path | None,
    fit_store: Path | None,
    fit_windows: int | None,
    ranker_windows: int | None,
    split: str,
    windows: int,
    cosine: float | None,
    margin: float,
    seed: int,
    picture: Path | None,
    as_json: bool,
    out: Path | None,
) -> None:
    """How cosine, margin and retrieval trade off here, and what a ranker could reach."""
    from trainers.lvm.baselines import FIT_WINDOWS
    from trainers.lvm.frontier import RANKER_WINDOWS, draw, render
    from trainers.lvm.frontier import frontier as look
    from trainers.lvm.store import VectorStore

    opened = VectorStore.open(store)
    report = look(
        opened,
        **_beside(model, opened),
        split=split,
        windows=windows,
        wish=(cosine, margin),
        fit_store=VectorStore.open(fit_store) if fit_store is not None else None,
        fit_windows=fit_windows or FIT_WINDOWS,
        ranker_windows=ranker_windows or RANKER_WINDOWS,
        seed=seed,
    )
    if picture is not None:
        draw(report, picture)
    emit(report, render(report), as_json, out)


@cli.command(epilog="Example: limbic lvm rollout --store stores/a --model FOLDER")
@click.option("--store", type=FOLDER, required=True, help="Store to look at.")
@click.option("--model", type=FOLDER, help="Folder of a model to put beside the references.")
@click.option("--split", default="valid", show_default=True)
@click.option("--windows", type=click.IntRange(1), default=10_000, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--out", type=FILE, help="File for the JSON report.")
def rollout(
    store: Path,
    model: Path | None,
    split: str,
    windows: int,
    seed: int,
    as_json: bool,
    out: Path | None,
) -> None:
    """What gate 4 asks of a rollout, and what references get."""
    from trainers.lvm.rollout import render
    from trainers.lvm.rollout import rollout as look
    from trainers.lvm.store import VectorStore

    opened = VectorStore.open(store)
    report = look(
        opened,
        **_beside(model, opened),
        split=split,
        windows=windows,
        seed=seed,
    )
    emit(report, render(report), as_json, out)


@cli.command(
    epilog="Example: limbic lvm density --model FOLDER --store stores/a --valid-store stores/b"
)
@click.option("--model", type=FOLDER, required=True, help="Folder of a two-heads model.")
@click.option("--store", type=FOLDER, required=True, help="Store to fit on: training dialogues.")
@click.option("--valid-store", "valid", type=FOLDER, help="Measure there (default: STORE).")
@click.option("--split", default="train", show_default=True)
@click.option("--valid-split", default="valid", show_default=True)
@click.option("--windows", type=click.IntRange(1), help="How many to fit on.")
@click.option("--version", type=click.IntRange(1), help="Version to write (default: unchanged).")
@click.option("--seed", type=int, default=0, show_default=True)
def density(
    model: Path,
    store: Path,
    valid: Path | None,
    split: str,
    valid_split: str,
    windows: int | None,
    version: int | None,
    seed: int,
) -> None:
    """Fit how much the candidates' density counts against them; write it into the model."""
    from trainers.lvm.density import WINDOWS, add, training_windows
    from trainers.lvm.store import VectorStore

    source = VectorStore.open(store)
    targets = training_windows(source, split, windows or WINDOWS, seed)
    elsewhere = VectorStore.open(valid) if valid is not None else source
    manifest = add(model, source, targets, elsewhere, valid_split, version=version)
    fitted = manifest["network"]["density"]
    near, every = fitted["factors"]
    click.echo(f"{near:g} × the nearest {fitted['neighbours']}, {every:g} × all")
    for metric, found in manifest["measured"].items():
        low, high = found["interval"]
        click.echo(f"{metric:7} {found['mean']:.4f} [{low:.4f}, {high:.4f}]")


@cli.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def compare(arguments: tuple[str, ...]) -> None:
    """One recipe over all architectures and several seeds (needs the train extra)."""
    try:
        module = import_module("trainers.lvm.compare")
    except ModuleNotFoundError as error:
        raise ConfigError(f"compare needs {error.name}: install limbic-runtime[train]") from error
    module.main(list(arguments))


def _beside(folder: Path | None, store: Any) -> dict[str, Any]:
    """The model to put beside a store's baselines, if one is wanted, and what to call it."""
    from trainers.lvm.validate import load_model

    if folder is None:
        return {"model": None, "name": "ours"}
    return {"model": load_model(folder, store), "name": folder.name}


def _validate(
    *,
    model: str,
    store: Path,
    ood: Path | None,
    fit_store: Path | None,
    fit_windows: int | None,
    kind: str | None,
    as_json: bool,
    out: Path | None,
    picture: Path | None,
    expect_pass: bool,
    **rest: Any,
) -> None:
    from trainers.lvm.baselines import FIT_WINDOWS
    from trainers.lvm.store import VectorStore
    from trainers.lvm.validate import draw_curve, load_model, render
    from trainers.lvm.validate import validate as run

    opened = VectorStore.open(store)
    other = VectorStore.open(ood) if ood is not None else None
    folder = Path(model)
    predictor = load_model(folder, opened) if folder.is_dir() else None
    report = run(
        folder.name if predictor is not None else model,
        predictor,
        opened,
        ood=other,
        fit_store=VectorStore.open(fit_store) if fit_store is not None else None,
        fit_windows=fit_windows or FIT_WINDOWS,
        kind=kind or str(opened.manifest.get("kind", "dialogue")),
        **rest,
    )
    if picture is not None:
        draw_curve(report, picture)
    emit(report, render(report), as_json, out)
    if expect_pass and not report["passed"]:
        sys.exit(1)


def emit(report: dict[str, Any], table: str, as_json: bool, out: Path | None) -> None:
    """Print the table, or the report as JSON; write the JSON to ``out`` when given."""
    text = json.dumps(report, indent=1)
    if out is not None:
        out.write_text(text + "\n")
    click.echo(text if as_json else table)


def main(argv: list[str] | None = None) -> None:
    """Entry point: errors become one line each on stderr and an exit code."""
    try:
        cli.main(args=argv, prog_name="limbic lvm", standalone_mode=True)
    except LimbicError as error:
        for line in str(error).splitlines():
            click.echo(f"limbic: {line}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
