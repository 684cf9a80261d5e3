"""The cosine–margin–MRR frontier of a store, and how far a ranker could get with similarities.

One vector trades cosine against retrieval: subtracting ``λ`` × last from a prediction raises
margin_last and, past a point, retrieves worse. The frontier is that curve for the ridge and for a
model, with the baselines as points. Beside it: r against r_min (see ``diagnose``), and the MRR of a
conditional logit over the similarities with the context (five slots, their best, their mean, each
also squared): about what similarities alone can rank on this store.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from trainers.lvm.baselines import FIT_WINDOWS, MeanFive, Predictor, fit_baselines, sample
from trainers.lvm.bootstrap import cluster_interval
from trainers.lvm.diagnose import optimal_margin, r_min
from trainers.lvm.errors import TooFewWindows
from trainers.lvm.fivecat import OFFSETS, offset_curve, predict
from trainers.lvm.retrieval import document_ranks, is_context, pessimistic_ranks
from trainers.lvm.store import VectorStore, unit

TILTS = (-0.5, -0.25, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
POINTS = ("constant mean", "copy-last", "mean-5", "scalars", "ridge")
TARGET, LAST = OFFSETS.index(0), OFFSETS.index(-1)
RANKER_WINDOWS = 3_000
RANKER_PENALTY = 1e-6  # weights of cosines are in the tens


def point(vectors: np.ndarray, store: VectorStore, targets: np.ndarray) -> dict[str, float]:
    """Cosine, margin_last and MRR in the document of given unit vectors ``[W, D]``."""
    curve = offset_curve(vectors, store, targets)
    ranks, _ = document_ranks(store, targets, lambda at, candidates: vectors[at] @ candidates.T)
    cosine = float(np.nanmean(curve[:, TARGET]))
    return {
        "cosine": round(cosine, 4),
        "margin_last": round(cosine - float(np.nanmean(curve[:, LAST])), 4),
        "mrr": round(float((1.0 / ranks).mean()), 4),
    }


def tilted(vectors: np.ndarray, last: np.ndarray, tilt: float) -> np.ndarray:
    """unit(vector − tilt × last), ``[W, D]``."""
    return unit(vectors - tilt * last)


class Ranker:
    """A conditional logit over similarities: P(candidate) ∝ exp(w · features), per window."""

    def __init__(self, store: VectorStore, helpers: list[Predictor]) -> None:
        self._store, self._helpers = store, helpers
        self.weights = np.zeros(0)

    def features(self, targets: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """``[B, N, F]``: slots, their best and mean, helpers' vectors, and each squared."""
        context = self._store.contexts(targets)
        slots = (context @ candidates.T).transpose(0, 2, 1)
        others = [MeanFive().predict(context), *(h.predict(context) for h in self._helpers)]
        more = np.stack([vector @ candidates.T for vector in others], axis=-1)
        linear = np.concatenate([slots, slots.max(axis=2, keepdims=True), more], axis=2)
        return np.concatenate([linear, linear**2], axis=2).astype(np.float32)

    def fit(self, targets: np.ndarray) -> None:
        """Maximum likelihood with a small penalty, over the candidates of each window's document.

        Raises:
            TooFewWindows: none of the targets has a window.
        """
        from scipy.optimize import minimize

        if not len(targets):
            raise TooFewWindows("there is no training window to fit a ranker on")
        groups = [self._group(rows) for rows in self._by_document(targets)]
        count = sum(len(own) for _, _, own in groups)

        def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
            total, slope = 0.0, np.zeros_like(weights)
            for features, excluded, own in groups:
                scores = features @ weights
                scores[excluded] = -np.inf
                scores -= scores.max(axis=1, keepdims=True)
                weight = np.exp(scores)
                weight /= weight.sum(axis=1, keepdims=True)
                row = np.arange(len(own))
                total -= float(np.log(np.maximum(weight[row, own], 1e-30)).sum())
                mean = np.einsum("bn,bnf->f", weight, features)
                slope += mean - features[row, own].sum(axis=0)
            penalty = RANKER_PENALTY * float(weights @ weights)
            return total / count + penalty, slope / count + 2 * RANKER_PENALTY * weights

        start = np.zeros(groups[0][0].shape[2])
        found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200})
        self.weights = found.x

    def reciprocal_ranks(self, targets: np.ndarray) -> np.ndarray:
        """1 / rank of each target in its document, pessimistic, in the order of ``targets``."""
        out = np.zeros(len(targets))
        place = {int(row): i for i, row in enumerate(targets)}
        for rows in self._by_document(targets):
            features, excluded, own = self._group(rows)
            ranks = pessimistic_ranks(features @ self.weights, own, excluded)
            out[[place[int(row)] for row in rows]] = 1.0 / ranks
        return out

    def _by_document(self, targets: np.ndarray) -> list[np.ndarray]:
        owner = self._store.document_of(targets)
        return [targets[owner == number] for number in np.unique(owner)]

    def _group(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        document = self._store.documents[int(self._store.document_of(rows[:1])[0])]
        every = np.arange(document.start, document.stop)
        features = self.features(rows, self._store.rows(every))
        return features, is_context(every, rows), rows - document.start


def frontier(
    store: VectorStore,
    *,
    model: Predictor | None = None,
    name: str = "ours",
    split: str = "valid",
    windows: int = 5_000,
    wish: tuple[float | None, float] = (None, 0.05),
    fit_store: VectorStore | None = None,
    fit_windows: int = FIT_WINDOWS,
    ranker_windows: int = RANKER_WINDOWS,
    seed: int = 0,
) -> dict[str, Any]:
    """Curves, points, r against r_min, and the ranker.

    Args:
        model: a predictor to draw beside the ridge.
        wish: cosine and margin_last hoped for; a cosine of None is the best baseline's + .03.
        fit_store: whose train split the baselines and the ranker are fitted on; None: ``store``'s.

    Raises:
        TooFewWindows: a split without a window. VectorError: NaN in the store.
    """
    store.check_finite()
    targets = sample(store.windows(split), windows, seed)
    if not len(targets):
        raise TooFewWindows(f"there is no window in the split '{split}'")
    documents = store.document_of(targets)
    source = fit_store or store
    fitted = fit_baselines(source, windows=fit_windows, seed=seed)
    known = {n: predict(fitted[n], store, targets) for n in POINTS}
    last, bases = known["copy-last"], {"ridge": known["ridge"]}
    if model is not None:
        bases[name] = predict(model, store, targets)
    points = {n: point(vectors, store, targets) for n, vectors in known.items()}
    curves = {
        n: [{"tilt": t, **point(tilted(v, last, t), store, targets)} for t in TILTS]
        for n, v in bases.items()
    }
    # Nothing that was fitted on the train split may be a feature: it knows those targets already.
    trained = Ranker(source, [])
    trained.fit(sample(source.windows("train"), ranker_windows, seed))
    ranker = Ranker(store, [])
    ranker.weights = trained.weights
    ranked = ranker.reciprocal_ranks(targets)
    best_name = max(points, key=lambda n: points[n]["mrr"])
    best = known[best_name]
    ranks, _ = document_ranks(store, targets, lambda at, c: best[at] @ c.T)
    gain = cluster_interval(ranked - 1.0 / ranks, documents, seed=seed)
    top = max(found["cosine"] for found in points.values())
    reach = max([top, *(rows[TILTS.index(0.0)]["cosine"] for rows in curves.values())])
    wished = (round(top + 0.03, 4) if wish[0] is None else wish[0], wish[1])
    s = points["copy-last"]["cosine"]
    return {
        "windows": len(targets),
        "documents": len(np.unique(documents)),
        "s": s,
        "r": reach,
        "margin_at_r": round(optimal_margin(reach, s), 4),
        "wish": {
            "cosine": wished[0],
            "margin_last": wished[1],
            "r_min": round(r_min(s, *wished), 4),
        },
        "wish_in_reach": reach >= r_min(s, *wished),
        "points": points,
        "curves": curves,
        "ranker": {
            "mrr": round(float(ranked.mean()), 4),
            "best_baseline": best_name,
            "times": round(float(ranked.mean() * len(ranks) / (1.0 / ranks).sum()), 4),
            "gain": gain.as_list(),
        },
    }


def render(report: dict[str, Any]) -> str:
    """The report for a terminal."""
    wish, ranker = report["wish"], report["ranker"]
    lines = [
        f"{report['windows']} windows of {report['documents']} documents; s {report['s']:.3f}",
        f"{'':<22}{'cosine':>9}{'margin':>9}{'mrr':>9}",
    ]
    rows = list(report["points"].items()) + [
        (f"{name} − {row['tilt']:g} last", row)
        for name, curve in report["curves"].items()
        for row in curve
    ]
    lines += [
        f"{n:<22}{r['cosine']:>9.4f}{r['margin_last']:>+9.4f}{r['mrr']:>9.4f}" for n, r in rows
    ]
    verdict = "within reach" if report["wish_in_reach"] else "out of reach"
    lines += [
        f"r {report['r']:.3f} (margin {report['margin_at_r']:+.3f} there); cosine"
        f" {wish['cosine']:.3f} with margin {wish['margin_last']:+.3f} takes r ≥"
        f" {wish['r_min']:.3f}: {verdict}",
        f"ranker over all similarities: mrr {ranker['mrr']:.4f}, {ranker['times']:.3f} ×"
        f" {ranker['best_baseline']}, gain {ranker['gain']}",
    ]
    return "\n".join(lines)


def draw(report: dict[str, Any], path: Path) -> None:
    """A PNG: margin against cosine, and MRR against cosine; curves of the tilt, baselines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2)
    for axes, key, label in zip(
        panels, ("margin_last", "mrr"), ("margin_last", "MRR in the document"), strict=True
    ):
        for name, curve in report["curves"].items():
            axes.plot([r["cosine"] for r in curve], [r[key] for r in curve], marker="o", label=name)
            for row in curve:
                if row["tilt"] in (-0.5, 0.0, 0.4, 0.8):
                    axes.annotate(
                        f"λ={row['tilt']:g}", (row["cosine"], row[key]), fontsize=7,
                        xytext=(3, 3), textcoords="offset points",
                    )  # fmt: skip
        for name, found in report["points"].items():
            axes.scatter(found["cosine"], found[key], marker="x", color="black")
            axes.annotate(
                name, (found["cosine"], found[key]), fontsize=7, xytext=(4, -8),
                textcoords="offset points",
            )  # fmt: skip
        axes.set_xlabel("cosine with the next vector")
        axes.set_ylabel(label)
    panels[0].axhline(0, color="grey", linewidth=0.5)
    panels[1].axhline(
        report["ranker"]["mrr"], color="tab:green", linestyle=":", label="ranker, all similarities"
    )
    panels[1].legend(fontsize=8)
    panels[0].legend(fontsize=8)
    canvas.print_figure(path, dpi=100, metadata={"Software": None})
