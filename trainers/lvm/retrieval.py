"""Where the true next sentence ranks among its document's sentences, and in a pool of 1,000.

Ties count against the model: a candidate that scores within ``TIE`` of the target stands before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from trainers.lvm.store import CONTEXT, VectorStore

TIE = 1e-6  # float32 products of the same two vectors differ by about 1e-7 between matrix shapes
POOL = 1000
ROWS = 128  # windows scored together: bounds memory to ROWS times the longest document
#: (windows' positions in the list of targets ``[B]``, candidate vectors ``[N, D]``) → ``[B, N]``
Scorer = Callable[[np.ndarray, np.ndarray], np.ndarray]


def pessimistic_ranks(scores: np.ndarray, target: np.ndarray, excluded: np.ndarray) -> np.ndarray:
    """Rank of each row's target, 1 the best, int64 ``[B]``.

    Args:
        scores: float ``[B, N]``; NaN counts as the best score there is, never in a model's favour.
        target: column of the target, int ``[B]``.
        excluded: bool ``[B, N]``, columns that are no candidates; never the target's.
    """
    own = scores[np.arange(len(scores)), target]
    before = ~(scores < (own - TIE)[:, None]) & ~excluded
    before[np.arange(len(scores)), target] = False
    return before.sum(axis=1) + 1


def document_ranks(
    store: VectorStore, targets: np.ndarray, score: Scorer, *, context_included: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks ``[W]`` within the document and the number of candidates ``[W]`` of each window.

    Candidates are the document's sentences but for the five of the context.
    """
    ranks = np.zeros(len(targets), dtype=np.int64)
    sizes = np.zeros(len(targets), dtype=np.int64)
    owner = store.document_of(targets)
    order = np.argsort(owner, kind="stable")
    edges = np.flatnonzero(np.diff(owner[order])) + 1
    for group in np.split(order, edges) if len(order) else []:
        document = store.documents[int(owner[group[0]])]
        rows = np.arange(document.start, document.stop)
        candidates = store.rows(rows)
        for at in range(0, len(group), ROWS):
            chunk = group[at : at + ROWS]
            own = targets[chunk]
            excluded = np.zeros((len(chunk), len(rows)), dtype=bool)
            if not context_included:
                excluded = is_context(rows, own)
            ranks[chunk] = pessimistic_ranks(
                score(chunk, candidates), own - document.start, excluded
            )
            sizes[chunk] = (~excluded).sum(axis=1)
    return ranks, sizes


def pool_ranks(
    store: VectorStore, targets: np.ndarray, score: Scorer, *, pool: int = POOL, seed: int = 0
) -> tuple[np.ndarray, int]:
    """Ranks ``[W]`` of each target among ``pool`` targets drawn from all documents, and the pool.

    The windows are shuffled and cut into pools of that size; each window ranks its own target among
    its pool's. The last pool is filled up with others. Context sentences are left out.
    """
    ranks = np.zeros(len(targets), dtype=np.int64)
    for fresh, members in pools(len(targets), pool, seed):
        rows = targets[members]
        candidates = store.rows(rows)
        for start in range(0, len(fresh), ROWS):
            column = np.arange(start, min(start + ROWS, len(fresh)))
            chunk = fresh[column]
            ranks[chunk] = pessimistic_ranks(
                score(chunk, candidates), column, is_context(rows, targets[chunk])
            )
    return ranks, min(pool, len(targets))


def pools(count: int, pool: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Windows ``0..count-1`` shuffled and cut: those of a pool ``[n]``, and its members ``[pool]``,
    which begin with them."""
    order = np.random.default_rng(seed).permutation(count)
    size = min(pool, count)
    for at in range(0, count, size):
        fresh = order[at : at + size]
        yield fresh, np.concatenate([fresh, order[: size - len(fresh)]])


def is_context(rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Which rows ``[N]`` are among the five before each target ``[B]``: bool ``[B, N]``."""
    distance = targets[:, None] - rows[None, :]
    return (distance >= 1) & (distance <= CONTEXT)


def chance_mrr(sizes: np.ndarray) -> float:
    """Mean reciprocal rank of a uniform guess among so many candidates: mean of H(n) / n."""
    if not len(sizes):
        return float("nan")
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, int(sizes.max()) + 1))])
    return float((harmonic[sizes] / np.maximum(sizes, 1)).mean())
