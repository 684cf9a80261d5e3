"""How much of hit@10 in 1,000 is in five frozen vectors: feature rankers, and their curve.

A conditional logit and gradient-boosted trees see every similarity there is (``pair_features``).
Half of the dialogues fit what the features need, the other half teaches the rankers: features know
the answers of what they were fitted on. Trained on more and more dialogues, they show whether data
are what is missing; given features of the words too, what is missing from the vectors. It needs
scikit-learn (the train extra).
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from brain.errors import ConfigError, LimbicError
from trainers.lvm.baselines import sample
from trainers.lvm.bootstrap import cluster_interval
from trainers.lvm.errors import TooFewWindows
from trainers.lvm.fivecat import HIT
from trainers.lvm.pair_features import Features
from trainers.lvm.retrieval import POOL, is_context, pessimistic_ranks, pools
from trainers.lvm.store import VectorStore
from trainers.lvm.words import Words

HARD, EASY, SURELY = 20, 20, 50  # negatives of a window: some of the best 50, some of the rest
ROUNDS = 150  # trees
SHARES = (0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Logit:
    """A conditional logit over standardised features and their squares; unknown ones count as
    average."""

    mean: np.ndarray
    spread: np.ndarray
    weights: np.ndarray

    def decision_function(self, matrix: np.ndarray) -> np.ndarray:
        """``[W, F] -> [W]``."""
        return np.asarray(_widened(matrix, self.mean, self.spread) @ self.weights)


def _widened(matrix: np.ndarray, mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    scaled = np.clip(np.nan_to_num((matrix - mean) / spread), -5, 5)
    return np.concatenate([scaled, np.square(scaled)], axis=-1)


def fit_logit(sets: list[np.ndarray], stands: list[np.ndarray], penalty: float = 1e-3) -> Logit:
    """By L-BFGS: the first of each set ``[n, F]`` is the true one; each other counts as often as it
    stands for others of its pool (``stands`` ``[n]``)."""
    from scipy.optimize import minimize

    rows = np.concatenate(sets)
    mean, spread = np.nanmean(rows, axis=0), np.maximum(np.nanstd(rows, axis=0), 1e-6)
    wide = _widened(rows, mean, spread)
    starts = np.concatenate([[0], np.cumsum([len(one) for one in sets])[:-1]])
    offset, owner = (
        np.log(np.concatenate(stands)),
        np.repeat(np.arange(len(sets)), [*map(len, sets)]),
    )

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logits = wide @ weights + offset
        logits = np.exp(logits - np.maximum.reduceat(logits, starts)[owner])
        share = logits / np.add.reduceat(logits, starts)[owner]
        value = -np.log(np.maximum(share[starts], 1e-30)).mean()
        slope = (share @ wide - wide[starts].sum(axis=0)) / len(sets)
        return value + penalty * weights @ weights, slope + 2 * penalty * weights

    start = np.zeros(wide.shape[1])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 150})
    return Logit(mean, spread, found.x)


def fit_rankers(
    features: Features,
    store: VectorStore,
    targets: np.ndarray,
    *,
    pool: int = POOL,
    seed: int = 0,
    rounds: int = ROUNDS,
) -> dict[str, Any]:
    """A conditional logit and boosted trees that tell the true message from others of its pool.

    The others are some of the pool's best and some of the rest, weighted by how many each stands
    for. Both see the features' ``columns``.

    Raises:
        ConfigError: there is no scikit-learn.
        ValueError: the features were fitted on a document of ``targets``, whose answers they know.
    """
    try:
        from sklearn.ensemble import HistGradientBoostingClassifier
    except ImportError as error:
        raise ConfigError(f"the ceiling needs the 'train' extra: {error}") from error
    if features.knows(store, targets):
        raise ValueError("rankers are taught on documents that the features were not fitted on")
    rng = np.random.default_rng(seed)
    columns = features.columns
    kept, labels, weights = [], [], []
    by_model = features.model is not None and features.unseen
    strongest = features.names.index("rank head" if by_model else "scalars")
    for fresh, inside in pools(len(targets), pool, seed):
        rows = targets[inside]
        for at, matrix in features.matrix(store, targets[fresh], rows):
            excluded = is_context(rows, targets[fresh[at]])
            for line, own in enumerate(at):
                others = np.flatnonzero(~excluded[line])
                others = others[others != own]
                order = others[np.argsort(-matrix[line, others, strongest], kind="stable")]
                members, stands = [np.array([own])], [np.ones(1)]
                for part, count in ((order[:SURELY], HARD), (order[SURELY:], EASY)):
                    drawn = rng.permutation(part)[:count]
                    members.append(drawn)
                    stands.append(np.full(len(drawn), len(part) / max(len(drawn), 1)))
                chosen = np.concatenate(members)
                kept.append(matrix[line, chosen][:, columns])
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
    return {"logit": fit_logit(kept, weights), "trees": trees}


def judge(
    features: Features,
    store: VectorStore,
    targets: np.ndarray,
    rankers: dict[str, Any],
    *,
    pool: int = POOL,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Rank of each target in its pool ``[W]``, pessimistic: of the rankers, and of the features
    that rank by themselves."""
    alone = [n for n in ("scalars", "rank head", "rank head, density") if n in features.names]
    ranks = {name: np.zeros(len(targets), np.int64) for name in (*alone, *rankers)}
    for fresh, members in pools(len(targets), pool, seed):
        rows = targets[members]
        for at, matrix in features.matrix(store, targets[fresh], rows):
            excluded = is_context(rows, targets[fresh[at]])
            flat = matrix.reshape(-1, matrix.shape[2])[:, features.columns]
            scores: dict[str, np.ndarray] = {
                name: matrix[:, :, features.names.index(name)] for name in alone
            }
            # The raw score has no ties that a probability rounded near 0 or 1 would have.
            for name, ranker in rankers.items():
                scores[name] = ranker.decision_function(flat).reshape(matrix.shape[:2])
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
    unseen: bool = False,
) -> list[dict[str, Any]]:
    """Rows of the table: hit@10 and MRR in the pool with 95 % intervals over documents, of what
    ranks by itself, of the logit and of the trees, for growing shares of the training documents;
    the last two also read the words, where ``data`` is given. ``times`` are to the five scalars'
    hit@10; ``gain`` is paired, over the model's with density (without a model, the scalars').

    Of each share, one half of the documents fits the features and the other teaches the rankers.
    They see the model's scores only where the model was trained on none of them (``unseen``).

    Raises:
        TooFewWindows: fewer than two training documents.
    """
    targets = sample(store.windows(split), windows, seed)
    documents = store.document_of(targets)
    every = fit_store.windows("train")
    owner = fit_store.document_of(every)
    order = np.random.default_rng(seed).permutation(np.unique(owner))
    if len(order) < 2:
        raise TooFewWindows("the ceiling needs two training documents: features and rankers do")
    found: list[tuple[str, int | None, np.ndarray]] = []

    def run(features: Features, some: np.ndarray) -> dict[str, np.ndarray]:
        # As many windows of each document whatever the share: more documents, more windows.
        most = max(1, round(fit_windows * len(some) / len(order)))
        few = sample(every[np.isin(owner, some[1::2])], most, seed)
        rankers = fit_rankers(features, fit_store, few, pool=pool, seed=seed, rounds=rounds)
        ranks = judge(features, store, targets, rankers, pool=pool, seed=seed)
        for name in rankers:
            label = f"{name} and words" if features.words else name
            found.append((label, len(some), ranks.pop(name)))
            hit = (found[-1][2] <= HIT).mean()
            print(f"{label}, {len(some)} documents: {hit:.4f}", file=sys.stderr, flush=True)
        return ranks

    for share in sorted(shares):
        some = order[: max(2, round(share * len(order)))]
        mine = every[np.isin(owner, some[::2])]
        features = Features(fit_store, mine, model, seed, unseen=unseen)
        alone = run(features, some)
    if data is not None:
        features.read(Words.read(data, mine, fit_store, store))
        run(features, some)
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
    p.add_argument(
        "--unseen",
        action="store_true",
        help="the model was trained on none of FIT_STORE: rankers may use its scores",
    )
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
            unseen=options.unseen,
            shares=tuple(options.share or SHARES),
        ):
            print(_line(row))
    except LimbicError as error:
        print(f"limbic: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
