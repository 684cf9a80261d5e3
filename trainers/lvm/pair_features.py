"""Every similarity of contexts and candidates there is, as features of a ranker.

With the five messages, with what the baselines and a model predict, with what followed the most
similar training contexts, of the candidate's usual predecessors with the last message; the
candidate's density and genericness; and for the strongest of these its place in the pool.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from sidecars.lvm_linear import density
from trainers.lvm.baselines import Predictor, fit_ridge, fit_scalars, sample
from trainers.lvm.retrieval import ROWS
from trainers.lvm.store import CONTEXT, VectorStore, unit
from trainers.lvm.words import WORD_FEATURES, Words

NEAREST = 16
SHARP = 10.0  # weight of a neighbour: exp(SHARP × similarity)
MEMORY = 20_000  # training windows that are looked up
#: Features whose place in the pool is one too.
PLACED = ("scalars", "ridge", "followed", "rank head")
#: What a model adds.
MODELS = ("rank head", "rank head, density", "vector head", "place: rank head")


@dataclass(frozen=True)
class Memory:
    """Training windows to look up: ``keys`` [M, 2 D], ``next`` and ``last`` [M, D], ``owner``."""

    store: VectorStore
    keys: np.ndarray
    next: np.ndarray
    last: np.ndarray
    owner: np.ndarray

    @classmethod
    def of(cls, store: VectorStore, targets: np.ndarray) -> Memory:
        """Of these windows."""
        contexts = store.contexts(targets)
        owner = store.document_of(targets)
        return cls(store, _keys(contexts), store.rows(targets), contexts[:, -1], owner)

    def followed(
        self, context: np.ndarray, owner: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """What followed the nearest contexts of other documents: ``[B, 16, D]``, weights ``[B,
        16]``. ``owner`` says which document each is of, where it is of this store."""
        return self._nearest(_keys(context) @ self.keys.T, owner, self.next)

    def preceded(self, candidates: np.ndarray, owner: np.ndarray | None) -> np.ndarray:
        """What came before the nearest messages of other documents, on average: ``[N, D]``."""
        found, weights = self._nearest(candidates @ self.next.T, owner, self.last)
        return unit(np.einsum("nk,nkd->nd", weights, found))

    def _nearest(
        self, near: np.ndarray, owner: np.ndarray | None, values: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        if owner is not None:
            near = np.where(owner[:, None] == self.owner[None], -2.0, near)
        most = min(NEAREST, near.shape[1])
        chosen = np.argpartition(near, near.shape[1] - most, axis=1)[:, -most:]
        weights = np.exp(SHARP * np.take_along_axis(near, chosen, axis=1))
        return values[chosen], weights / weights.sum(axis=1, keepdims=True)


def _keys(contexts: np.ndarray) -> np.ndarray:
    """The last message and the mean of all five, ``[B, 2 D]``, unit."""
    return unit(np.concatenate([contexts[:, -1], unit(contexts.mean(axis=1))], axis=1))


class Features:
    """All features of windows and candidates; what is fitted is fitted on ``targets`` of ``store``.

    On those windows they know the answer: ridge over noise finds most of them again and none of any
    others. A ranker is taught on other documents (``knows``), or it trusts what will not hold.

    ``model`` adds its rank head's scores, with and without the candidates' density, and the cosine
    with its vector. These know the answer wherever the model was trained, and no model folder says
    on which dialogues that was. So rankers do not see them (``columns``) unless the caller says
    that what it teaches them on is ``unseen`` by the model.
    """

    def __init__(
        self,
        store: VectorStore,
        targets: np.ndarray,
        model: Any = None,
        seed: int = 0,
        *,
        unseen: bool = False,
    ) -> None:
        self.store = store
        self.documents = np.unique(store.document_of(targets))
        self.unseen = unseen
        self.predictors: dict[str, Predictor] = {
            "scalars": fit_scalars(store, targets),
            "ridge": fit_ridge(store, targets),
        }
        self.model = model
        self.words: Words | None = None
        self.memory = Memory.of(store, sample(targets, MEMORY, seed))
        self.mean = unit(store.rows(targets).mean(axis=0))
        self.backwards = _backwards(store, targets)
        self.names = [
            *(f"slot {n}" for n in range(CONTEXT)),
            "best slot",
            "worst slot",
            "mean slot",
        ]
        self.names += ["scalars", "ridge", "followed", "nearest followed", "preceded", "backwards"]
        self.names += ["nearest 5", "all", "spread", "genericness", "last's genericness", "moved"]
        self.names += ["rank head", "rank head, density", "vector head"] if model else []
        self.names += [f"place: {name}" for name in PLACED if name in self.names]

    @property
    def columns(self) -> np.ndarray:
        """Which features a ranker sees, int64."""
        left_out = () if self.unseen else MODELS
        return np.array([i for i, name in enumerate(self.names) if name not in left_out])

    def knows(self, store: VectorStore, targets: np.ndarray) -> bool:
        """Whether what is fitted was fitted on a document of these windows."""
        if store is not self.store:
            return False
        return bool(np.isin(store.document_of(targets), self.documents).any())

    def read(self, words: Words) -> None:
        """Also take what the texts say."""
        self.words = words
        self.names += WORD_FEATURES

    def matrix(
        self, store: VectorStore, targets: np.ndarray, rows: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For windows in chunks: which ``[b]``, and their features ``[b, N, F]`` with ``rows``."""
        candidates = store.rows(rows)
        own = store is self.memory.store
        crowd = density(candidates, 5)
        before = self.memory.preceded(candidates, store.document_of(rows) if own else None)
        said = candidates @ self.backwards
        crowding = self.model.crowding(candidates) if self.model else 0.0
        alone = np.concatenate([crowd, (candidates @ self.mean)[:, None]], axis=1)
        for start in range(0, len(targets), ROWS):
            at = np.arange(start, min(start + ROWS, len(targets)))
            context = store.contexts(targets[at])
            last = context[:, -1]
            slots = context @ candidates.T
            guesses = {n: p.predict(context) for n, p in self.predictors.items()}
            owner = store.document_of(targets[at]) if own else None
            after, weights = self.memory.followed(context, owner)
            guesses["followed"] = unit(np.einsum("bk,bkd->bd", weights, after))
            found = {name: guess @ candidates.T for name, guess in guesses.items()}
            parts = [*slots.transpose(1, 0, 2), slots.max(1), slots.min(1), slots.mean(1)]
            parts += [found["scalars"], found["ridge"], found["followed"]]
            parts += [(after @ candidates.T).max(1), last @ before.T, last @ said.T]
            parts += [np.broadcast_to(column, slots[:, 0].shape) for column in alone.T]
            moved = np.einsum("bd,bd->b", last, context[:, -2])
            parts += [
                np.broadcast_to(value[:, None], slots[:, 0].shape)
                for value in (last @ self.mean, moved)
            ]
            if self.model:
                found["rank head"] = self.model.rank_alone(context, candidates)
                parts += [found["rank head"], found["rank head"] - crowding]
                parts += [self.model.predict(context) @ candidates.T]
            parts += [_places(found[name]) for name in PLACED if name in found]
            if self.words:
                parts += self.words.features(store, targets[at], rows)
            yield at, np.stack(parts, axis=2).astype(np.float32)


def _places(scores: np.ndarray) -> np.ndarray:
    """0 for the best candidate of each row, and so on."""
    return np.argsort(np.argsort(-scores, axis=1), axis=1)


def _backwards(store: VectorStore, targets: np.ndarray) -> np.ndarray:
    """Ridge from a message to the one before it, ``[D, D]``."""
    after, before = store.rows(targets), store.rows(targets - 1)
    gram = after.T @ after + 1e-3 * len(after) * np.eye(store.dim)
    return np.asarray(np.linalg.solve(gram, after.T @ before), dtype=np.float32)
