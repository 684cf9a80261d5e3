"""What gate 4 asks of a rollout, and what references get: is a flat rollout a fault of the model?

The references bracket a model. The true text is not flat; the continuation of the most similar
training window is real text too, and far from the truth. A regression for each step, straight from
the real context, is about the best single guess of each vector: as flat as its guesses are alike.
Last, the model's own rollout with noise: from the second step each vector is turned to and fro by
fixed angles along a random direction, which can only make it worse.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from trainers.lvm.baselines import (
    CHUNK,
    FIT_WINDOWS,
    RIDGE_GRID,
    Control,
    Predictor,
    fit_baselines,
    sample,
)
from trainers.lvm.errors import TooFewWindows
from trainers.lvm.fivecat import HORIZON, Trajectories, judge_rollout, rolled
from trainers.lvm.store import CONTEXT, VectorStore, unit

BASELINES = ("copy-last", "mean-5", "scalars", "ridge")
TURNS = (0.0, 33.0, -33.0, 45.0, -45.0)  # degrees, a step each
NEIGHBOURS = 20_000  # training windows to look for the most similar in


class EachStep:
    """Five ridge regressions from the real context, one for each step ahead."""

    def __init__(self, store: VectorStore, targets: np.ndarray) -> None:
        """Fit; the penalty is the one with the best mean cosine on a held-out tenth of documents.

        Raises TooFewWindows where there is no window of a document's five sentences and five more.
        """
        self._store = store
        owner = store.document_of(targets)
        held = np.isin(owner, np.unique(owner)[::10])
        if held.all() or not held.any():
            raise TooFewWindows("there are too few training documents to fit a rollout on")
        width = CONTEXT * store.dim + 1
        gram = np.zeros((width, width))
        right = np.zeros((width, HORIZON * store.dim))
        for at in range(0, len(targets[~held]), CHUNK):
            rows = targets[~held][at : at + CHUNK]
            flat = self._flat(rows)
            gram += flat.T @ flat
            right += flat.T @ store.rows(rows[:, None] + np.arange(HORIZON)).reshape(len(rows), -1)
        best = -np.inf
        for strength in RIDGE_GRID:
            penalty = strength * int((~held).sum()) * np.eye(width)
            penalty[-1, -1] = 1e-6 * int((~held).sum())
            weights = np.linalg.solve(gram + penalty, right).astype(np.float32)
            guess = self._guess(targets[held], weights)
            there = store.rows(targets[held][:, None] + np.arange(HORIZON))
            cosine = float((guess * there).sum(axis=-1).mean())
            if cosine > best:
                best, self.weights = cosine, weights

    def __call__(self, targets: np.ndarray) -> np.ndarray:
        """``[B, 5, D]``."""
        return self._guess(targets, self.weights)

    def _flat(self, rows: np.ndarray) -> np.ndarray:
        flat = np.ones((len(rows), CONTEXT * self._store.dim + 1), dtype=np.float32)
        flat[:, :-1] = self._store.contexts(rows).reshape(len(rows), -1)
        return flat

    def _guess(self, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return unit((self._flat(rows) @ weights).reshape(len(rows), HORIZON, -1))


class Continuation:
    """What really followed the most similar training window, by the scalars' vector."""

    def __init__(self, store: VectorStore, targets: np.ndarray, key: Predictor) -> None:
        self._store, self._targets, self._key = store, targets, key
        self._keys = self._of(targets)

    def __call__(self, targets: np.ndarray) -> np.ndarray:
        """``[B, 5, D]``."""
        near = self._targets[(self._of(targets) @ self._keys.T).argmax(axis=1)]
        return self._store.rows(near[:, None] + np.arange(HORIZON))

    def _of(self, targets: np.ndarray) -> np.ndarray:
        parts = [targets[at : at + CHUNK] for at in range(0, len(targets), CHUNK)]
        return np.concatenate([self._key.predict(self._store.contexts(rows)) for rows in parts])


def turned(path: np.ndarray, targets: np.ndarray, turns: tuple[float, ...] = TURNS) -> np.ndarray:
    """Each step of ``path`` ``[B, 5, D]`` turned by its angle along a window's random direction."""
    noise = np.stack([np.random.default_rng(int(row)).standard_normal(path.shape[2])
                      for row in targets])  # fmt: skip
    noise = np.repeat(noise[:, None], path.shape[1], axis=1)
    across = unit(noise - (noise * path).sum(axis=-1, keepdims=True) * path)
    angle = np.radians(turns)[None, :, None]
    return np.asarray(np.cos(angle) * path + np.sin(angle) * across, dtype=np.float32)


def rollout(
    store: VectorStore,
    *,
    model: Predictor | None = None,
    name: str = "ours",
    split: str = "valid",
    windows: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Gate 4 of the references and of a model: cosine a step, flatness, verdict.

    Raises:
        TooFewWindows: a split without a window. VectorError: NaN in the store.
    """
    store.check_finite()
    targets = sample(store.windows(split), windows, seed)
    fitted = fit_baselines(store, seed=seed)
    train = store.windows("train")
    stops = np.array([d.stop for d in store.documents])[store.document_of(train)]
    whole = train[train + HORIZON <= stops]
    if not len(whole):
        raise TooFewWindows(f"no training document has {CONTEXT + HORIZON} sentences")
    near = sample(whole, NEIGHBOURS, seed)
    each = EachStep(store, sample(whole, FIT_WINDOWS, seed))
    by_name: dict[str, Predictor] = {"the true text": Control("oracle")}
    by_name |= {n: fitted[n] for n in BASELINES} | ({} if model is None else {name: model})
    makers: dict[str, Trajectories] = {n: partial(rolled, p, store) for n, p in by_name.items()}
    makers["after the most similar window"] = Continuation(store, near, fitted["scalars"])
    makers["a regression for each step"] = each
    base = makers[name] if model is not None else each
    shown = name if model is not None else "regressions"
    makers[f"{shown}, with noise"] = lambda rows: turned(base(rows), rows)
    documents = store.document_of(targets)
    gates = {n: judge_rollout(make, store, targets, documents) for n, make in makers.items()}
    return {
        "windows": len(targets),
        "documents": len(np.unique(documents)),
        "rows": {n: {"passed": gate.passed, **gate.details} for n, gate in gates.items()},
    }


def render(report: dict[str, Any]) -> str:
    """The report for a terminal."""
    first = next(iter(report["rows"].values()))
    width = max(len(name) for name in report["rows"])
    lines = [
        f"{report['windows']} windows of {report['documents']} documents; flat is above"
        f" {first['flatness_limit']:.3f}",
        " " * width + "".join(f"{f'h={h + 1}':>8}" for h in range(HORIZON)) + "    flat",
    ]
    frozen = {f"frozen {kind}": first[f"frozen_{kind}"] for kind in ("last", "mean")}
    lines += [
        f"{name:<{width}}" + "".join(f"{v:>8.3f}" for v in values)
        for name, values in frozen.items()
    ]
    for name, row in report["rows"].items():
        cells = "".join(f"{v:>8.3f}" for v in [*row["cosine"], row["flatness"]])
        lines.append(f"{name:<{width}}{cells}  {'pass' if row['passed'] else 'FAIL'}")
    return "\n".join(lines)
