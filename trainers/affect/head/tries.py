"""``python -m trainers.affect.head.tries``: what a correction of the axes would gain, on dev.

    python -m trainers.affect.head.tries --data FILE.npz --cache FOLDER

Corrections that could be folded into the last layer of the exported axes head: a gain, a scale and
shift of each axis, a 3 × 3 mixing fitted to the scores or to isolate pairs, each judged out of fold
(five folds of whole groups); and a blend of valence with ridge on frozen vectors. Gold, pairs and
test rows are not read. Pairs here are all pairs of dev rows that differ by ≥ .35 in one axis and
≤ .2 in the others, the axes counting the same. Figures: docs/affect-head.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.linear_model import Ridge

from trainers.affect.head import measure
from trainers.affect.head.arrays import Prepared
from trainers.affect.head.baselines import PENALTIES, frozen_vectors
from trainers.affect.head.measure import MOVED, STILL
from trainers.affect.head.report import WEIGHTS
from trainers.affect.head.served import answers, opened

FOLDS, FIT_ROWS, SOFT = 5, 260, 0.06
Array = NDArray[np.floating[Any]]
Pairs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def pairs_of(y: Array) -> Pairs:
    """(first, second, axis) of all pairs of rows [n, 3] that differ in one axis alone."""
    i, j = np.triu_indices(len(y), 1)
    gap = np.abs(y[j] - y[i])
    found = []
    for number in range(3):
        alone = (gap[:, number] >= MOVED) & (np.delete(gap, number, 1).max(1) <= STILL)
        found.append((i[alone], j[alone], np.full(int(alone.sum()), number)))
    first, second, axis = (np.concatenate(part) for part in zip(*found, strict=True))
    return first, second, axis


def isolated(p: Array, y: Array, pairs: Pairs) -> float:
    """Share of pairs that predictions move the right way and alone, each axis counting the same."""
    target, others, wanted = _moves(p, y, pairs)
    good = (target * wanted > 0) & (np.abs(target) >= MOVED) & (others <= STILL)
    return float(np.mean([good[pairs[2] == i].mean() for i in range(3) if (pairs[2] == i).any()]))


def _moves(p: Array, y: Array, pairs: Pairs) -> tuple[Array, Array, Array]:
    first, second, axis = pairs
    target, others = measure.axis_moves(p[second] - p[first], axis)
    return target, others, measure.axis_moves(y[second] - y[first], axis)[0]


def affine(z: Array, y: Array, *, mixed: bool) -> Array:
    """[4, 3]: least squares from ``z`` before tanh to scores, of each axis alone or of all."""
    wanted, ones = np.arctanh(np.clip(y, -0.95, 0.95)), np.ones((len(z), 1))
    found = np.zeros((4, 3))
    for i in range(3):
        columns = [0, 1, 2] if mixed else [i]
        weights = np.linalg.lstsq(np.hstack([z[:, columns], ones]), wanted[:, i], rcond=None)[0]
        found[[*columns, 3], i] = weights
    return found


def isolating(z: Array, y: Array, seed: int, *, penalty: float) -> Array:
    """[4, 3]: a mixing that isolates as many pairs as it can, ``penalty`` times the mean error."""
    some = np.sort(np.random.default_rng(seed).permutation(len(z))[:FIT_ROWS])
    z, y = z[some], y[some]
    pairs = pairs_of(y)
    share = 1 / np.maximum(1, np.bincount(pairs[2], minlength=3))[pairs[2]] / 3

    def soft(x: Array) -> Array:
        return 1 / (1 + np.exp(-np.clip(x / SOFT, -30, 30)))

    def loss(flat: Array) -> float:
        p = corrected(z, flat.reshape(4, 3))
        target, others, wanted = _moves(p, y, pairs)
        good = soft(target * np.sign(wanted) - MOVED) * soft(STILL - others)
        return float(-(good * share).sum() + penalty * np.abs(p - y).mean())

    start = np.vstack([np.eye(3), np.zeros(3)])
    best = minimize(loss, start.ravel(), method="L-BFGS-B", options={"maxiter": 40})
    return np.asarray(best.x.reshape(4, 3))


def corrected(z: Array, mixing: Array) -> Array:
    """Axes from ``z`` [n, 3] before tanh."""
    return np.tanh(z @ mixing[:3] + mixing[3])


def main(argv: list[str] | None = None) -> int:
    """Print a line a try. Exit codes: 0, 2 usage, 78 bad model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="what prepare wrote")
    parser.add_argument("--model", type=Path, default=WEIGHTS, help="an exported folder")
    parser.add_argument("--cache", type=Path, help="folder that keeps what the models said")
    args = parser.parse_args(argv)
    data, model = opened(parser, args.data, args.model)
    rows = [data.rows("dev", source) for source in ("llm_label", "emobank")]
    axes = answers(model, data, np.concatenate(rows), args.cache)["axes"]
    dev = rows[0]
    y, z = data.axes[dev], np.arctanh(np.clip(axes[dev], -0.9999, 0.9999))
    fold, pairs = measure.folds_of(data.groups[dev], FOLDS), pairs_of(data.axes[dev])

    def show(name: str, fit: Callable[[Array, Array, int], Array]) -> None:
        p = np.zeros_like(y)
        for i in range(FOLDS):
            p[fold == i] = corrected(z[fold == i], fit(z[fold != i], y[fold != i], i))
        r = " ".join(f"{measure.pearson(p[:, i], y[:, i]):.3f}" for i in range(3))
        tied = abs(measure.pearson(p[:, 0], p[:, 2]))
        error, share = np.abs(p - y).mean(), isolated(p, y, pairs)
        line = f"{name:28} r {r}  mean error {error:.4f}  isolated {share:.3f}"
        print(f"{line}  |r| V-T {tied:.2f}", flush=True)

    def gain(size: float) -> Any:
        return lambda *_: np.vstack([size * np.eye(3), np.zeros(3)])

    show("served", gain(1.0))
    show("gain .7", gain(0.7))
    show("scale and shift each", lambda a, b, _: affine(a, b, mixed=False))
    show("mixing, for scores", lambda a, b, _: affine(a, b, mixed=True))
    for penalty in (0.5, 2.0):
        show(f"mixing, for pairs, {penalty}", partial(isolating, penalty=penalty))
    for source, dev in zip(("llm_label", "emobank"), rows, strict=True):
        blend(data, axes, source, dev, args.cache)
    return 0


def blend(
    data: Prepared, axes: Array, source: str, dev: NDArray[np.int64], folder: Path | None
) -> None:
    """Print valence r on dev by the share of ridge on frozen vectors."""
    train = data.rows("train", source)
    x, y = frozen_vectors(data, np.union1d(train, dev), folder), data.axes[:, 0]
    guesses = [Ridge(alpha=a).fit(x[train], y[train]).predict(x[dev]) for a in PENALTIES]
    ridge = max(guesses, key=lambda guess: measure.pearson(guess, y[dev]))
    own = axes[dev, 0] / axes[dev, 0].std()
    for share in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0):
        mixed = (1 - share) * own + share * ridge / ridge.std()
        r = measure.pearson(mixed, y[dev])
        print(f"{source} valence, share of frozen ridge {share:.1f}: r {r:.3f}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
