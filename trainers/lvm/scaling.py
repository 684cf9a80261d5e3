"""Copy-last and the scalars with local scaling: what the candidates alone give a ranker.

A sentence that is near everything is near the last one too. Taking each candidate's density off its
similarity (CSLS, Conneau et al. 2018) needs no training but for one factor. A rank head that sees
the candidates together must also be ahead of this.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sidecars.lvm_linear import density
from trainers.lvm.baselines import CopyLast, Predictor, fit_scalars, sample
from trainers.lvm.retrieval import document_ranks
from trainers.lvm.store import VectorStore

NEIGHBOURS = 9
FACTORS = (0.5, 1.0, 1.5, 2.0)
FIT_WINDOWS = 2_000


@dataclass(frozen=True)
class LocallyScaled:
    """Ranks by the predictor's vector · candidate − factor × density of the candidate."""

    base: Predictor
    factor: float

    def predict(self, context: np.ndarray) -> np.ndarray:
        """``[B, D]``."""
        return self.base.predict(context)

    def rank(self, context: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """``[B, N]``."""
        crowd = density(np.asarray(candidates, np.float32), NEIGHBOURS)[:, 0]
        return self.base.predict(context) @ candidates.T - self.factor * crowd


def fit_scaled(
    store: VectorStore, *, split: str = "train", windows: int, seed: int = 0
) -> dict[str, Predictor]:
    """Both references by name, each with the factor of the best MRR on training windows."""
    targets = sample(store.windows(split), windows, seed)
    few = sample(targets, FIT_WINDOWS, seed)
    bases: dict[str, Predictor] = {
        "copy-last, scaled": CopyLast(),
        "scalars, scaled": fit_scalars(store, targets),
    }
    found: dict[str, Predictor] = {}
    for name, base in bases.items():
        tried = [LocallyScaled(base, factor) for factor in FACTORS]
        found[name] = max(tried, key=lambda one: _mrr(one, store, few))
    return found


def _mrr(predictor: LocallyScaled, store: VectorStore, targets: np.ndarray) -> float:
    ranks, _ = document_ranks(
        store, targets, lambda at, c: predictor.rank(store.contexts(targets[at]), c)
    )
    return float((1.0 / ranks).mean())
