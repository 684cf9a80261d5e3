"""5CAT: five checks of a next-vector predictor, each with intervals over documents.

The context is v[i-5..i-1], the target v[i]; offset k = 0 is the target. Gates: offset, retrieval,
ablations, rollout, generalisation. "Best baseline" is chosen for each metric by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trainers.lvm.baselines import Control, Predictor
from trainers.lvm.bootstrap import Interval, cluster_interval
from trainers.lvm.errors import VectorError
from trainers.lvm.retrieval import Scorer, chance_mrr, document_ranks, pool_ranks
from trainers.lvm.store import CONTEXT, VectorStore, unit

OFFSETS = tuple(range(-5, 4))
HORIZON = 5
BATCH = 1024
COSINE_GAIN = 0.01
ALIEN_DROP = -0.10
FLAT_SLACK = 0.15
SKILL_GAP = 0.03
HIT = 10
MRR_RATIO = {"articles": 1.05, "dialogue": 1.15}
SLOTS = tuple(f"mask slot {slot}" for slot in range(CONTEXT))
#: target rows ``[B]`` → what is expected 1 to 5 steps on, unit float32 ``[B, 5, D]``
Trajectories = Callable[[np.ndarray], np.ndarray]
ABLATIONS = ("other document", "shuffle", "mask last", "reverse", *SLOTS)


@dataclass(frozen=True)
class Measures:
    """What one predictor does on one set of windows; arrays are one value a window."""

    curve: np.ndarray  # [W, 9]: p·v[i+k] for k in OFFSETS, NaN past the document's end
    mrr_vector: np.ndarray
    mrr_rank: np.ndarray
    mrr_context: np.ndarray
    hit_vector: np.ndarray
    hit_rank: np.ndarray
    within_five: np.ndarray
    pool: int
    chance: float
    has_rank_head: bool

    @property
    def cosine(self) -> np.ndarray:
        """p·v[i] ``[W]``."""
        return self.curve[:, OFFSETS.index(0)]

    def offset(self, k: int) -> float:
        """C(k)."""
        values = self.curve[:, OFFSETS.index(k)]
        return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")

    @property
    def margin_last(self) -> float:
        """C(0) − C(−1)."""
        return self.offset(0) - self.offset(-1)

    @property
    def margin_future(self) -> float:
        """C(0) − max C(1..3)."""
        return self.offset(0) - float(np.nanmax([self.offset(k) for k in (1, 2, 3)]))

    def summary(self) -> dict[str, float]:
        """The means, rounded, for tables."""
        return {
            "cosine": round(self.offset(0), 4),
            "margin_last": round(self.margin_last, 4),
            "margin_future": round(self.margin_future, 4),
            "mrr": round(float(self.mrr_rank.mean()), 4),
            "mrr_vector": round(float(self.mrr_vector.mean()), 4),
            "mrr_context_included": round(float(self.mrr_context.mean()), 4),
            "hit10": round(float(self.hit_rank.mean()), 4),
            "hit10_vector": round(float(self.hit_vector.mean()), 4),
        }


@dataclass(frozen=True)
class Gate:
    """One gate's verdict; ``passed`` is None where it could not be run."""

    name: str
    passed: bool | None
    details: dict[str, Any] = field(default_factory=dict)


def predict(predictor: Predictor, store: VectorStore, targets: np.ndarray) -> np.ndarray:
    """Vectors for these windows, float32 ``[W, D]``."""
    parts = []
    for at in range(0, len(targets), BATCH):
        rows = targets[at : at + BATCH]
        if isinstance(predictor, Control):
            parts.append(predictor.at(store, rows))
        else:
            parts.append(predictor.predict(store.contexts(rows)))
    vectors = np.concatenate(parts).astype(np.float32, copy=False)
    if vectors.shape != (len(targets), store.dim):
        raise VectorError(
            f"the model gave vectors of shape {vectors.shape} for {len(targets)} windows "
            f"of dimension {store.dim}"
        )
    if not np.isfinite(vectors).all():
        raise VectorError("the model gave NaN or infinite values")
    # Unit norm is the harness's to make sure of: a longer vector would have a higher "cosine".
    return unit(vectors)


def measure(
    predictor: Predictor, store: VectorStore, targets: np.ndarray, *, seed: int = 0
) -> Measures:
    """Everything that gates 1, 2 and 5 need of one predictor."""
    vectors = predict(predictor, store, targets)

    def by_vector(at: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        return vectors[at] @ candidates.T

    rank: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = getattr(predictor, "rank", None)
    by_rank: Scorer = by_vector
    if rank is not None:
        head = rank

        def by_rank(at: np.ndarray, candidates: np.ndarray) -> np.ndarray:
            return np.asarray(head(store.contexts(targets[at]), candidates))

    ranks, sizes = document_ranks(store, targets, by_vector)
    pooled, pool = pool_ranks(store, targets, by_vector, seed=seed)
    best, best_pooled = ranks, pooled
    if rank is not None:
        best, _ = document_ranks(store, targets, by_rank)
        best_pooled, _ = pool_ranks(store, targets, by_rank, seed=seed)
    included, _ = document_ranks(store, targets, by_rank, context_included=True)
    return Measures(
        curve=offset_curve(vectors, store, targets),
        mrr_vector=1.0 / ranks,
        mrr_rank=1.0 / best,
        mrr_context=1.0 / included,
        hit_vector=(pooled <= HIT).astype(np.float64),
        hit_rank=(best_pooled <= HIT).astype(np.float64),
        within_five=(best <= 5).astype(np.float64),
        pool=pool,
        chance=chance_mrr(sizes),
        has_rank_head=rank is not None,
    )


def offset_curve(vectors: np.ndarray, store: VectorStore, targets: np.ndarray) -> np.ndarray:
    """p·v[i+k] ``[W, 9]``, NaN where i+k is past the end of the document."""
    stops = np.array([d.stop for d in store.documents])[store.document_of(targets)]
    curve = np.full((len(targets), len(OFFSETS)), np.nan)
    for column, k in enumerate(OFFSETS):
        inside = np.flatnonzero(targets + k < stops)
        for at in range(0, len(inside), BATCH):
            rows = inside[at : at + BATCH]
            there = store.rows(targets[rows] + k)
            curve[rows, column] = np.einsum("bd,bd->b", vectors[rows], there)
    return curve


def best_baseline(baselines: Mapping[str, Measures], metric: str) -> tuple[str, np.ndarray]:
    """Name and per-window values of the baseline with the highest mean of an array of Measures."""
    name = max(baselines, key=lambda n: float(np.nanmean(getattr(baselines[n], metric))))
    return name, np.asarray(getattr(baselines[name], metric))


def retrieval_gain(
    values: np.ndarray, best: np.ndarray, documents: np.ndarray, ratio: float, seed: int
) -> tuple[bool, dict[str, Any]]:
    """Whether the MRR gain is above zero with its interval and large enough as a ratio."""
    gain: Interval = cluster_interval(values - best, documents, seed=seed)
    times = float(values.mean() / max(best.mean(), 1e-12))
    return gain.low > 0 and times >= ratio, {"gain": gain.as_list(), "times": round(times, 4)}


def gates_offset_and_retrieval(
    own: Measures,
    baselines: Mapping[str, Measures],
    documents: np.ndarray,
    *,
    ratio: float,
    margin_target: float,
    seed: int = 0,
) -> tuple[Gate, Gate]:
    """Gates 1 and 2. Gate 1 holds only where the same vector passes gate 2 by itself."""
    mrr_name, mrr_best = best_baseline(baselines, "mrr_rank")
    vector_ok, vector = retrieval_gain(own.mrr_vector, mrr_best, documents, ratio, seed)
    rank_ok, ranked = retrieval_gain(own.mrr_rank, mrr_best, documents, ratio, seed)
    cos_name, cos_best = best_baseline(baselines, "cosine")
    skill = cluster_interval(own.cosine - cos_best, documents, seed=seed)
    hit_name, hit_best = best_baseline(baselines, "hit_rank")
    offset = Gate(
        "offset",
        own.margin_future > 0
        and skill.mean >= COSINE_GAIN
        and own.margin_last >= margin_target
        and vector_ok,
        {
            "margin_last": round(own.margin_last, 4),
            "margin_last_target": margin_target,
            "margin_future": round(own.margin_future, 4),
            "cosine_over": {"baseline": cos_name, "gain": skill.as_list()},
            "same_vector_retrieves": vector_ok,
        },
    )
    details = {
        "baseline": mrr_name,
        "rank_head": own.has_rank_head,
        "wanted_times": ratio,
        "mrr": ranked,
        "mrr_of_vector": vector,
        "hit10": {
            "baseline": hit_name,
            "pool": own.pool,
            "value": round(float(own.hit_rank.mean()), 4),
            "times": round(float(own.hit_rank.mean() / max(hit_best.mean(), 1e-12)), 4),
            "gain": cluster_interval(own.hit_rank - hit_best, documents, seed=seed).as_list(),
        },
        "chance_mrr": round(own.chance, 4),
    }
    return offset, Gate("retrieval", rank_ok, details)


def gate_ablations(
    predictor: Predictor,
    own: Measures,
    store: VectorStore,
    targets: np.ndarray,
    documents: np.ndarray,
    seed: int = 0,
) -> Gate:
    """Gate 3: how the cosine changes when the context is spoilt."""
    if isinstance(predictor, Control):
        return Gate("ablations", None, {"why": "a control has no context to spoil"})
    rng = np.random.default_rng(seed)
    donor = _other_document(documents, rng)
    changes: dict[str, Interval] = {}
    for name in ABLATIONS:
        cosine = np.zeros(len(targets))
        for at in range(0, len(targets), BATCH):
            rows = slice(at, at + BATCH)
            context = store.contexts(targets[donor[rows] if name == "other document" else rows])
            guess = unit(predictor.predict(_spoil(context, name, rng)))
            cosine[rows] = np.einsum("bd,bd->b", guess, store.rows(targets[rows]))
        changes[name] = cluster_interval(cosine - own.cosine, documents, seed=seed)
    passed = (
        changes["other document"].mean <= ALIEN_DROP
        and changes["shuffle"].high < 0
        and changes["mask last"].high < 0
    )
    return Gate("ablations", passed, {name: c.as_list() for name, c in changes.items()})


def rolled(predictor: Predictor, store: VectorStore, targets: np.ndarray) -> np.ndarray:
    """Five steps on the predictor's own predictions, float32 ``[B, 5, D]``.

    A control looks up its vector for each step; past the document's end it repeats the first.
    """
    stops = np.array([d.stop for d in store.documents])[store.document_of(targets)]
    context = store.contexts(targets)
    steps = []
    for h in range(HORIZON):
        if isinstance(predictor, Control):
            guess = predictor.at(store, np.where(targets + h < stops, targets + h, targets))
        else:
            guess = unit(predictor.predict(context))
        steps.append(guess)
        context = np.concatenate([context[:, 1:], guess[:, None]], axis=1)
    return np.stack(steps, axis=1)


def gate_rollout(
    predictor: Predictor, store: VectorStore, targets: np.ndarray, documents: np.ndarray
) -> Gate:
    """Gate 4: five steps on its own predictions against the frozen last vector and mean."""
    return judge_rollout(lambda rows: rolled(predictor, store, rows), store, targets, documents)


def judge_rollout(
    make: Trajectories, store: VectorStore, targets: np.ndarray, documents: np.ndarray
) -> Gate:
    """Gate 4 of any trajectories, rolled out or not."""
    stops = np.array([d.stop for d in store.documents])[documents]
    steps = np.full((4, len(targets), HORIZON), np.nan)  # own, last, mean, flatness
    for at in range(0, len(targets), BATCH):
        rows = np.arange(at, min(at + BATCH, len(targets)))
        context = store.contexts(targets[rows])
        last, mean = context[:, -1], unit(context.mean(axis=1))
        path = make(targets[rows])
        for h in range(HORIZON):
            ahead = targets[rows] + h
            inside = ahead < stops[rows]
            there = store.rows(np.where(inside, ahead, targets[rows]))
            for kind, vector in enumerate((path[:, h], last, mean)):
                steps[kind, rows, h] = np.where(
                    inside, np.einsum("bd,bd->b", vector, there), np.nan
                )
            if h:
                flat = np.einsum("bd,bd->b", path[:, h - 1], path[:, h])
                steps[3, rows, h] = np.where(inside, flat, np.nan)
    own, last_, mean_ = (_column_means(steps[kind]) for kind in range(3))
    flatness = float(np.nanmean(steps[3])) if np.isfinite(steps[3]).any() else float("nan")
    limit = last_[0] + FLAT_SLACK
    beats = all(own[h] > max(last_[h], mean_[h]) for h in range(3) if np.isfinite(own[h]))
    return Gate(
        "rollout",
        bool(beats and flatness <= limit),
        {
            "cosine": [round(v, 4) for v in own],
            "frozen_last": [round(v, 4) for v in last_],
            "frozen_mean": [round(v, 4) for v in mean_],
            "flatness": round(flatness, 4),
            "flatness_limit": round(limit, 4),
        },
    )


def gate_generalisation(skill: float, skill_elsewhere: float | None) -> Gate:
    """Gate 5: the gain in cosine over the best baseline, here and on another domain."""
    if skill_elsewhere is None:
        return Gate("generalisation", None, {"why": "no store of another domain (--ood-store)"})
    gap = abs(skill - skill_elsewhere)
    passed = gap <= SKILL_GAP and skill > 0 and skill_elsewhere > 0
    return Gate(
        "generalisation",
        passed,
        {"skill": round(skill, 4), "skill_ood": round(skill_elsewhere, 4), "gap": round(gap, 4)},
    )


def _column_means(values: np.ndarray) -> list[float]:
    counts = np.isfinite(values).sum(axis=0)
    sums = np.nansum(values, axis=0)
    return [float(s / c) if c else float("nan") for s, c in zip(sums, counts, strict=True)]


def _other_document(documents: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each window the position of one of another document, int64 ``[W]``."""
    every = np.arange(len(documents))
    donor = rng.permutation(len(documents))
    for _ in range(64):
        same = documents[donor] == documents
        if not same.any():
            break
        donor[same] = rng.choice(every, int(same.sum()))
    return donor


def _spoil(context: np.ndarray, name: str, rng: np.random.Generator) -> np.ndarray:
    context = context.copy()
    if name == "shuffle":
        order = rng.permuted(np.tile(np.arange(CONTEXT), (len(context), 1)), axis=1)
        return np.take_along_axis(context, order[:, :, None], axis=1)
    if name == "reverse":
        return np.ascontiguousarray(context[:, ::-1])
    if name == "mask last":
        context[:, -1] = 0
    elif name.startswith("mask slot"):
        context[:, int(name.rsplit(" ", 1)[1])] = 0
    return context
