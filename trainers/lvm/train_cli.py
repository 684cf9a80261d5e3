"""``limbic train lvm``: train a recipe on vector stores.

Needs torch, numpy and safetensors only. Example::

    python -m trainers.lvm.train_cli --recipe config/lvm/ours_dialogue.toml \\
        --store vectors/chitchat --store vectors/topical --valid-store vectors/chitchat --out run
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain.errors import EXIT_USAGE, ConfigError, LimbicError

if TYPE_CHECKING:
    from trainers.lvm.recipes import Linear, Recipe


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser("limbic train lvm", description="Train a next-vector model.")
    p.add_argument("--recipe", type=Path, required=True, help="TOML file, see config/lvm")
    p.add_argument("--store", type=Path, action="append", required=True, help="vectors; repeatable")
    p.add_argument("--valid-store", type=Path, action="append", help="default: the first --store")
    p.add_argument("--valid-split", default="valid")
    p.add_argument("--train-split", default="train")
    p.add_argument("--device", default="cpu")
    p.add_argument("--minutes", type=float, help="end the schedule by the clock; cannot be resumed")
    p.add_argument("--epochs", type=int, help="instead of the recipe's")
    p.add_argument("--seed", type=int, help="instead of the recipe's")
    p.add_argument("--resume", action="store_true", help="go on from OUT/last.pt")
    p.add_argument("--out", type=Path, required=True, help="folder for logs and the model")
    return p


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options; one line on stderr and exit code 2 where they make no sense."""
    command = parser()
    options = command.parse_args(argv)
    problem = ""
    if options.epochs is not None and options.epochs < 1:
        problem = f"--epochs {options.epochs}: at least 1"
    elif options.minutes is not None and not 0 < options.minutes < math.inf:
        problem = f"--minutes {options.minutes:g}: more than 0"
    elif options.minutes is not None and options.resume:
        # Where the schedule ends depends on the time that is left, so no state is kept.
        problem = "--minutes keeps no state to --resume from; give one of the two"
    if problem:
        command.exit(EXIT_USAGE, f"{command.prog}: error: {problem}\n")
    return options


def run(argv: list[str] | None = None) -> None:
    """Parse, train, print the table."""
    options = parse(argv)
    from trainers.lvm.recipes import Guarded, Linear, load

    recipe = load(options.recipe)
    if options.epochs is not None:
        if isinstance(recipe, Linear):
            raise ConfigError("--epochs: a recipe of kind 'linear' has none")
        recipe.epochs = options.epochs
    if options.seed is not None:
        recipe.seed = options.seed
    if isinstance(recipe, Linear):
        _linear(recipe, options)
        return
    if recipe.epochs < 1:
        raise ConfigError(f"{options.recipe}: epochs must be at least 1 (got {recipe.epochs})")
    try:
        from trainers.lvm import guarded, train
        from trainers.lvm.batches import load_corpus, load_parts
        from trainers.lvm.report import print_report
    except ImportError as error:
        raise ConfigError(f"training needs the 'train' extra: {error}") from error
    share, held = (None, 0.0) if isinstance(recipe, Guarded) else (recipe.share, recipe.dev_share)
    corpus, dev = load_parts(options.store, options.train_split, options.device, share, held)
    valid = load_corpus(
        options.valid_store or options.store[:1], options.valid_split, options.device
    )
    if valid.encoder != corpus.encoder:
        raise ConfigError("training and validation vectors come from different encoders")
    if isinstance(recipe, Guarded):
        if options.minutes is not None:
            raise ConfigError("--minutes is for two-heads recipes; this one counts epochs")
        metrics = guarded.train(recipe, corpus, valid, options.out, resume=options.resume)
    else:
        metrics = train.train(
            recipe,
            corpus,
            valid,
            options.out,
            dev=dev,
            minutes=options.minutes,
            resume=options.resume,
        )
        if recipe.density:
            metrics["density"] = _density(recipe, options)
            text = json.dumps(metrics, indent=1) + "\n"
            (options.out / "metrics.json").write_text(text, "utf-8")
    print_report(metrics)
    if "density" in metrics:
        print(f"with the candidates' density: {json.dumps(metrics['density'])}", flush=True)


def _density(recipe: Recipe, options: argparse.Namespace) -> dict[str, Any]:
    """The last step of a two-heads run: on the first store, measured on the first valid store."""
    from trainers.lvm import density
    from trainers.lvm.store import VectorStore

    store = VectorStore.open(options.store[0])
    valid = VectorStore.open((options.valid_store or options.store)[0])
    targets = density.training_windows(
        store, options.train_split, recipe.density, recipe.seed, recipe.dev_share
    )
    manifest = density.add(options.out / "model", store, targets, valid, options.valid_split)
    fitted: dict[str, Any] = manifest["network"]["density"]
    return fitted | {"valid": {n: m["mean"] for n, m in manifest["measured"].items()}}


def _linear(recipe: Linear, options: argparse.Namespace) -> None:
    from trainers.lvm import linear
    from trainers.lvm.store import VectorStore

    stores = options.store + (options.valid_store or options.store[:1])
    if len(stores) != 2:
        raise ConfigError("a recipe of kind 'linear' takes one --store and one --valid-store")
    store, valid = (VectorStore.open(folder) for folder in stores)
    for one in (store, valid):
        one.check_finite()
    if store.encoder_sha256 != valid.encoder_sha256:
        raise ConfigError("training and validation vectors come from different encoders")
    metrics = linear.train(
        recipe, store, valid, options.out, splits=(options.train_split, options.valid_split)
    )
    for name in ("valid", "held_out"):
        for metric, found in (metrics[name] or {}).items():
            low, high = found["interval"]
            print(f"{name:9} {metric:7} {found['mean']:.4f} [{low:.4f}, {high:.4f}]")
    print(f"{metrics['parameters']} parameters, {metrics['bytes']} bytes", flush=True)


def main(argv: list[str] | None = None) -> None:
    """Entry point; Limbic's errors are one line on stderr and an exit code."""
    try:
        run(argv)
    except LimbicError as error:
        print(f"limbic: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
