"""Predictors that know little: what a model must beat, and controls that must pass or fail.

A predictor turns contexts ``[B, 5, D]`` into unit vectors ``[B, D]``. The controls (oracle, random)
look at the store itself and so are given the target rows as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from trainers.lvm.errors import TooFewWindows
from trainers.lvm.store import CONTEXT, VectorStore, unit

FIT_WINDOWS = 60_000
CHUNK = 4096
NAMES = (
    "constant mean",
    "copy-last",
    "mean-5",
    "scalars",
    "ridge",
    "tilted ridge",
    "ridge + last",
    "reversed",
    "random",
    "random same document",
)
RIDGE_GRID = (1e-4, 1e-3, 1e-2, 1e-1)  # times the windows: the penalty of a mean square
TILT = 0.4
BLEND = 0.5


class Predictor(Protocol):
    """What the harness evaluates; one with ``rank`` also brings a rank head."""

    def predict(self, context: np.ndarray) -> np.ndarray:
        """Unit float32 ``[B, D]`` from unit float32 ``[B, 5, D]``."""


@dataclass(frozen=True)
class Constant:
    """The training targets' mean direction, whatever the context."""

    mean: np.ndarray

    def predict(self, context: np.ndarray) -> np.ndarray:
        """``[B, D]``."""
        return np.broadcast_to(self.mean, (len(context), len(self.mean))).copy()


class CopyLast:
    """The last context vector again."""

    def predict(self, context: np.ndarray) -> np.ndarray:
        """``[B, D]``."""
        return unit(context[:, -1])


class MeanFive:
    """The mean of the five."""

    def predict(self, context: np.ndarray) -> np.ndarray:
        """``[B, D]``."""
        return unit(context.mean(axis=1))


@dataclass(frozen=True)
class Scalars:
    """One weight for each of the five slots, by least squares."""

    weights: np.ndarray

    def predict(self, context: np.ndarray) -> np.ndarray:
        """``[B, D]``."""
        return unit(np.einsum("s,bsd->bd", self.weights, context))


@dataclass(frozen=True)
class Ridge:
    """Linear regression of the target on all five vectors and a constant, minus ``tilt`` × last."""

    weights: np.ndarray  # [5D + 1, D]
    tilt: float = 0.0

    def predict(self, context: np.ndarray) -> np.ndarray:
        """``[B, D]``."""
        flat = context.reshape(len(context), -1)
        guess = unit(flat @ self.weights[:-1] + self.weights[-1])
        return unit(guess - self.tilt * context[:, -1]) if self.tilt else guess


@dataclass(frozen=True)
class Blend:
    """A model's vector plus ``share`` × last."""

    model: Predictor
    share: float = BLEND

    def predict(self, context: np.ndarray) -> np.ndarray:
        """``[B, D]``."""
        return unit(self.model.predict(context) + self.share * context[:, -1])


@dataclass(frozen=True)
class Control:
    """Looks at the store: ``oracle``, ``random`` or ``random_same_document``."""

    kind: str
    seed: int = 0

    def at(self, store: VectorStore, targets: np.ndarray) -> np.ndarray:
        """Vectors for these target rows, ``[B, D]``; the same for the same rows and seed."""
        if self.kind == "oracle":
            return store.rows(targets)
        rng = np.random.default_rng([self.seed, len(targets), int(targets[0])])
        if self.kind == "random":
            return unit(rng.standard_normal((len(targets), store.dim)).astype(np.float32))
        starts = np.array([d.start for d in store.documents])
        stops = np.array([d.stop for d in store.documents])
        owner = store.document_of(targets)
        # Any sentence of the document but the context's and the target; where there is none, the
        # first of the context.
        free = stops[owner] - starts[owner] - CONTEXT - 1
        pick = starts[owner] + rng.integers(0, np.maximum(free, 1))
        pick = np.where(pick >= targets - CONTEXT, pick + CONTEXT + 1, pick)
        return store.rows(np.where(free > 0, pick, targets - CONTEXT))

    def predict(self, context: np.ndarray) -> np.ndarray:
        """A control has nothing to say about a context alone."""
        raise TypeError(f"the control '{self.kind}' needs the store")


def fit_baselines(
    store: VectorStore, *, split: str = "train", windows: int = FIT_WINDOWS, seed: int = 0
) -> dict[str, Predictor]:
    """The honest baselines by name, fitted on one split of the store."""
    targets = sample(store.windows(split), windows, seed)
    ridge = fit_ridge(store, targets)
    fitted: tuple[Predictor, ...] = (
        Constant(_mean(store, targets)),
        CopyLast(),
        MeanFive(),
        fit_scalars(store, targets),
        ridge,
        Ridge(ridge.weights, TILT),
        Blend(ridge),
        fit_ridge(store, targets, backwards=True),
        Control("random", seed),
        Control("random_same_document", seed),
    )
    return dict(zip(NAMES, fitted, strict=True))


def sample(targets: np.ndarray, most: int, seed: int) -> np.ndarray:
    """At most so many of the targets, drawn evenly, in order."""
    if len(targets) <= most:
        return targets
    return np.sort(np.random.default_rng(seed).choice(targets, most, replace=False))


def fit_scalars(store: VectorStore, targets: np.ndarray) -> Scalars:
    """Five weights by least squares on the unit vectors."""
    gram, right = np.zeros((CONTEXT, CONTEXT)), np.zeros(CONTEXT)
    for context, target in _batches(store, targets):
        gram += np.einsum("bsd,btd->st", context, context)
        right += np.einsum("bsd,bd->s", context, target)
    gram += 1e-6 * np.trace(gram) / CONTEXT * np.eye(CONTEXT)
    return Scalars(np.linalg.solve(gram, right).astype(np.float32))


def fit_ridge(store: VectorStore, targets: np.ndarray, *, backwards: bool = False) -> Ridge:
    """Ridge with the penalty of ``RIDGE_GRID`` that has the best cosine on a held-out tenth.

    The tenth is whole documents. ``backwards`` learns from the documents read from their end.
    """
    if backwards:
        targets = targets - CONTEXT  # the window's first row is the target of the reversed text
    owner = store.document_of(targets)
    documents = np.unique(owner)
    held = np.isin(owner, documents[::10]) if len(documents) >= 10 else owner < 0
    gram, right, count = _normal_equations(store, targets[~held], backwards)
    if not count:
        raise TooFewWindows("there is no training window to fit a ridge on")
    best, best_cosine = None, -np.inf
    for strength in RIDGE_GRID:
        penalty = strength * count * np.eye(len(gram), dtype=gram.dtype)
        penalty[-1, -1] = 1e-6 * count  # the constant is hardly shrunk
        ridge = Ridge(np.linalg.solve(gram + penalty, right).astype(np.float32))
        if not held.any():
            if strength == RIDGE_GRID[1]:
                return ridge
            continue
        cosine = mean_cosine(ridge, store, targets[held], backwards=backwards)
        if cosine > best_cosine:
            best, best_cosine = ridge, cosine
    assert best is not None
    return best


def mean_cosine(
    predictor: Predictor, store: VectorStore, targets: np.ndarray, *, backwards: bool = False
) -> float:
    """Mean cosine of predictions with the targets."""
    total = sum(
        float(np.einsum("bd,bd->", predictor.predict(context), target, dtype=np.float64))
        for context, target in _batches(store, targets, backwards)
    )
    return total / len(targets)


def _normal_equations(
    store: VectorStore, targets: np.ndarray, backwards: bool
) -> tuple[np.ndarray, np.ndarray, int]:
    width = CONTEXT * store.dim + 1
    gram = np.zeros((width, width), dtype=np.float32)
    right = np.zeros((width, store.dim), dtype=np.float32)
    for context, target in _batches(store, targets, backwards):
        flat = np.ones((len(context), width), dtype=np.float32)
        flat[:, :-1] = context.reshape(len(context), -1)
        gram += flat.T @ flat
        right += flat.T @ target
    return gram.astype(np.float64), right.astype(np.float64), len(targets)


def _mean(store: VectorStore, targets: np.ndarray) -> np.ndarray:
    total = np.zeros(store.dim)
    for at in range(0, len(targets), CHUNK):
        total += store.rows(targets[at : at + CHUNK]).sum(axis=0, dtype=np.float64)
    return unit(total).astype(np.float32)


def _batches(
    store: VectorStore, targets: np.ndarray, backwards: bool = False
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    offsets = np.arange(CONTEXT, 0, -1) if backwards else np.arange(-CONTEXT, 0)
    for at in range(0, len(targets), CHUNK):
        rows = targets[at : at + CHUNK]
        yield store.rows(rows[:, None] + offsets), store.rows(rows)
