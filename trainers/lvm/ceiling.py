"""How much of hit@10 in 1,000 is in five frozen vectors: a strong feature ranker, and its curve.

Gradient-boosted trees see, for every context and candidate, all similarities there are: with the
five messages, with what the baselines and a model predict, with what followed the most similar
training contexts, of the candidate's usual predecessors with the last message; the candidate's
density and genericness; and for the strongest of these its place in the pool. Trained on more and
more dialogues, they show whether data are what is missing; given features of the words, they show
what is missing from the vectors. It needs scikit-learn (the train extra).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from brain.errors import ConfigError, LimbicError
from sidecars.lvm_linear import density
from trainers.lvm.baselines import Predictor, fit_ridge, fit_scalars, sample
from trainers.lvm.bootstrap import cluster_interval
from trainers.lvm.fivecat import HIT
from trainers.lvm.retrieval import POOL, ROWS, is_context, pessimistic_ranks, pools
from trainers.lvm.store import CONTEXT, VectorStore, unit
from trainers.lvm.words import WORD_FEATURES, Words

NEAREST = 16
SHARP = 10.0  # weight of a neighbour: exp(SHARP × similarity)
MEMORY = 20_000  # training windows that are looked up
HARD, EASY, SURELY = 20, 20, 50  # negatives of a window: some of the best 50, some of the rest
ROUNDS = 150  # trees
SHARES = (0.25, 0.5, 1.0)
#: Features whose place in the pool is one too.
PLACED = ("scalars", "ridge", "followed", "rank head")


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

    ``model`` adds its rank head's scores, with and without the candidates' density, and the cosine
    with its vector.
    """

    def __init__(
        self,
        store: VectorStore,
        targets: np.ndarray,
        model: Any = None,
        seed: int = 0,
    ) -> None:
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


def fit_trees(
    features: Features,
    store: VectorStore,
    targets: np.ndarray,
    *,
    pool: int = POOL,
    seed: int = 0,
    rounds: int = ROUNDS,
) -> Any:
    """Boosted trees that tell the true next message from others of its pool.

    The others are some of the pool's best and some of the rest, weighted by how many each stands
    for. Raises ConfigError without scikit-learn.
    """
    try:
        from sklearn.ensemble import HistGradientBoostingClassifier
    except ImportError as error:
        raise ConfigError(f"the ceiling needs the 'train' extra: {error}") from error
    rng = np.random.default_rng(seed)
    kept, labels, weights = [], [], []
    strongest = features.names.index("rank head" if features.model else "scalars")
    for fresh, members in pools(len(targets), pool, seed):
        rows = targets[members]
        for at, matrix in features.matrix(store, targets[fresh], rows):
            excluded = is_context(rows, targets[fresh[at]])
            for line, own in enumerate(at):
                others = np.flatnonzero(~excluded[line])
                others = others[others != own]
                order = others[np.argsort(-matrix[line, others, strongest], kind="stable")]
                columns, stands = [np.array([own])], [np.ones(1)]
                for part, count in ((order[:SURELY], HARD), (order[SURELY:], EASY)):
                    drawn = rng.permutation(part)[:count]
                    columns.append(drawn)
                    stands.append(np.full(len(drawn), len(part) / max(len(drawn), 1)))
                chosen = np.concatenate(columns)
                kept.append(matrix[line, chosen])
                labels.append(chosen == own)
                weights.append(np.concatenate(stands))
    trees = HistGradientBoostingClassifier(
        max_iter=rounds,
        learning_rate=0.08,
        max_leaf_nodes=31,
        min_samples_leaf=40,
        l2_regularization=1.0,
        early_stopping=False,
        random_state=seed,
    )
    trees.fit(np.concatenate(kept), np.concatenate(labels), np.concatenate(weights))
    return trees


def judge(
    features: Features,
    store: VectorStore,
    targets: np.ndarray,
    trees: Any,
    *,
    pool: int = POOL,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Rank of each target in its pool ``[W]``, pessimistic: of the trees, and of the features that
    rank by themselves."""
    alone = [n for n in ("scalars", "rank head", "rank head, density") if n in features.names]
    ranks = {name: np.zeros(len(targets), np.int64) for name in (*alone, "trees")}
    for fresh, members in pools(len(targets), pool, seed):
        rows = targets[members]
        for at, matrix in features.matrix(store, targets[fresh], rows):
            excluded = is_context(rows, targets[fresh[at]])
            flat = matrix.reshape(-1, matrix.shape[2])
            scores = {name: matrix[:, :, features.names.index(name)] for name in alone}
            # The raw score has no ties that a probability rounded near 0 or 1 would have.
            scores["trees"] = trees.decision_function(flat).reshape(matrix.shape[:2])
            for name, found in scores.items():
                ranks[name][fresh[at]] = pessimistic_ranks(found, at, excluded)
    return ranks


def ceiling(
    store: VectorStore,
    fit_store: VectorStore,
    model: Any = None,
    *,
    data: Path | None = None,
    windows: int = 3_000,
    fit_windows: int = 4_000,
    split: str = "valid",
    seed: int = 0,
    shares: tuple[float, ...] = SHARES,
    pool: int = POOL,
    rounds: int = ROUNDS,
) -> list[dict[str, Any]]:
    """Rows of the table: hit@10 and MRR in the pool with 95 % intervals over documents, of what
    ranks by itself and of the trees, for growing shares of the training documents; the last row
    also reads the words, where ``data`` is given. ``times`` are to the five scalars' hit@10;
    ``gain`` is paired, over the model's with density (without a model, over the scalars')."""
    targets = sample(store.windows(split), windows, seed)
    documents = store.document_of(targets)
    every = fit_store.windows("train")
    owner = fit_store.document_of(every)
    order = np.random.default_rng(seed).permutation(np.unique(owner))
    found: list[tuple[str, int | None, np.ndarray]] = []

    def run(name: str, features: Features, some: np.ndarray) -> dict[str, np.ndarray]:
        # As many windows of each document whatever the share: more documents, more windows.
        most = max(1, round(fit_windows * len(some) / len(order)))
        few = sample(every[np.isin(owner, some)], most, seed)
        trees = fit_trees(features, fit_store, few, pool=pool, seed=seed, rounds=rounds)
        ranks = judge(features, store, targets, trees, pool=pool, seed=seed)
        found.append((name, len(some), ranks["trees"]))
        print(
            f"{name}, {len(some)} documents: {(ranks['trees'] <= HIT).mean():.4f}", file=sys.stderr
        )
        return ranks

    for share in sorted(shares):
        some = order[: max(1, round(share * len(order)))]
        mine = every[np.isin(owner, some)]
        features = Features(fit_store, mine, model, seed)
        ranks = run("trees", features, some)
    alone = {name: found for name, found in ranks.items() if name != "trees"}
    if data is not None:
        features.read(Words.read(data, mine, fit_store, store))
        run("trees and words", features, some)
    best = alone.get("rank head, density", alone["scalars"])
    rows = []
    for name, size, own in [*((n, None, r) for n, r in alone.items()), *found]:
        hits, rival = (own <= HIT).astype(float), (best <= HIT).astype(float)
        rows.append(
            {
                "ranker": name,
                "documents": size,
                "hit10": cluster_interval(hits, documents, seed=seed).as_list(),
                "mrr": cluster_interval(1.0 / own, documents, seed=seed).as_list(),
                "gain": cluster_interval(hits - rival, documents, seed=seed).as_list(),
                "times": round(
                    float(hits.mean() / max((alone["scalars"] <= HIT).mean(), 1e-12)), 3
                ),
            }
        )
    return rows


def _line(row: dict[str, Any]) -> str:
    hit, mrr, gain = row["hit10"], row["mrr"], row["gain"]
    return (
        f"{row['ranker']:18} {row['documents'] or '':>5}  hit@10 {hit[0]:.3f} "
        f"[{hit[1]:.3f}, {hit[2]:.3f}]  mrr {mrr[0]:.3f} [{mrr[1]:.3f}, {mrr[2]:.3f}]  "
        f"{row['times']:.3f} × scalars  gain {gain[0]:+.3f} [{gain[1]:+.3f}, {gain[2]:+.3f}]"
    )


def main(argv: list[str] | None = None) -> None:
    """``python -m trainers.lvm.ceiling``."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--store", type=Path, required=True, help="store to measure on")
    p.add_argument("--fit-store", type=Path, required=True, help="store whose train split teaches")
    p.add_argument("--model", type=Path, help="a two-heads model, whose scores are features too")
    p.add_argument("--data", type=Path, help="data folder: also read the words")
    p.add_argument("--windows", type=int, default=3_000)
    p.add_argument("--fit-windows", type=int, default=4_000)
    p.add_argument("--share", type=float, action="append", help="of the training documents")
    p.add_argument("--seed", type=int, default=0)
    options = p.parse_args(argv)
    try:
        store, fit_store = VectorStore.open(options.store), VectorStore.open(options.fit_store)
        model = None
        if options.model is not None:
            from trainers.lvm.validate import load_model

            model = load_model(options.model, store)
            if not hasattr(model, "rank_alone"):
                raise ConfigError(f"{options.model} is no two-heads model")
        for row in ceiling(
            store,
            fit_store,
            model,
            data=options.data,
            windows=options.windows,
            fit_windows=options.fit_windows,
            seed=options.seed,
            shares=tuple(options.share or SHARES),
        ):
            print(_line(row))
    except LimbicError as error:
        print(f"limbic: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
