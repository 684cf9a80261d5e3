"""Is a store worth training on? Order, coherence, and what a predictor can reach at best.

``s`` is E cos(last, next); ``r`` the best attainable cosine, for which ridge regression gives a
lower estimate. The cosine-optimal predictor has margin_last ≈ r − s/r; cosine ≥ c together with
margin ≥ m takes r ≥ √(s² + q²), q = (c − s(c−m)) / √(1 − (c−m)²).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from trainers.lvm.baselines import fit_ridge, fit_scalars, mean_cosine, sample
from trainers.lvm.errors import LvmError, TooFewWindows
from trainers.lvm.store import CONTEXT, VectorStore

BATCH = 4096
# Just above the bad article set of the record (+.015); its good sets have +.117 to +.12.
TEMPORAL_AT_LEAST = 0.02
MONOTONIC_AT_LEAST = 0.75
# The gain over the constant mean: less says that the context tells nothing.
GAIN_AT_LEAST = 0.02


class BadData(LvmError):
    """A store with no order to learn from."""


def r_min(s: float, cosine: float, margin: float) -> float:
    """The attainable cosine needed for a cosine and a margin_last together."""
    with_last = cosine - margin
    if not -1 < with_last < 1:
        return float("inf")
    q = (cosine - s * with_last) / np.sqrt(1 - with_last**2)
    return float(np.hypot(s, q))


def optimal_margin(r: float, s: float) -> float:
    """margin_last of the predictor with the best cosine r."""
    return r - s / r if r > 0 else float("-inf")


def diagnose(
    store: VectorStore,
    *,
    split: str = "train",
    wish: tuple[float, float] = (0.56, 0.10),
    windows: int = 20_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Look at a split and say whether it is worth training on.

    Args:
        wish: cosine and margin_last hoped for; the report says which r they need.

    Raises:
        TooFewWindows: the split has too few. VectorError: NaN in the store.
    """
    store.check_finite()
    targets = sample(store.windows(split), windows, seed)
    owner = store.document_of(targets)
    names = np.unique(owner)
    if len(names) < 5:
        raise TooFewWindows(f"{len(names)} documents of '{split}' have windows; 5 are needed")
    to_target, coherence, mean = _similarities(store, targets)
    s = float(to_target[-1])
    temporal = float(to_target[-1] - to_target[0])
    monotonic = float((np.diff(to_target) > 0).mean())
    # Every fifth document is kept for measuring the ridges.
    held = np.isin(owner, names[::5])
    forward = fit_ridge(store, targets[~held])
    backward = fit_ridge(store, targets[~held], backwards=True)
    ridge = mean_cosine(forward, store, targets[held])
    # The reversed text's ridge on reversed text: as good as forward where order has no direction.
    mirrored = mean_cosine(backward, store, targets[held] - CONTEXT, backwards=True)
    misread = mean_cosine(backward, store, targets[held])
    # With few windows five weights are the better estimate of r: both are lower ones.
    scalars = mean_cosine(fit_scalars(store, targets[~held]), store, targets[held])
    reach = max(ridge, scalars)
    constant = float(np.linalg.norm(mean))
    need = r_min(s, *wish)
    reasons = [
        text
        for bad, text in (
            (temporal < TEMPORAL_AT_LEAST, f"temporal signal {temporal:+.3f} is too weak"),
            (monotonic < MONOTONIC_AT_LEAST, "similarity does not rise towards the target"),
            (reach - constant < GAIN_AT_LEAST, "the context tells next to nothing of the target"),
        )
        if bad
    ]
    return {
        "windows": len(targets),
        "documents": len(names),
        "coherence": round(coherence, 4),
        "similarity_to_target": [round(float(v), 4) for v in to_target],
        "temporal_signal": round(temporal, 4),
        "monotonic_order": round(monotonic, 4),
        "s": round(s, 4),
        "constant": round(constant, 4),
        "r_ridge": round(ridge, 4),
        "r_scalars": round(scalars, 4),
        "r": round(reach, 4),
        "margin_at_r": round(optimal_margin(reach, s), 4),
        "wish": {"cosine": wish[0], "margin": wish[1], "r_min": round(need, 4)},
        "wish_in_reach": bool(reach >= need),
        "time_reversal": {
            "forward": round(ridge, 4),
            "reversed_text": round(mirrored, 4),
            "reversed_model_on_forward_text": round(misread, 4),
        },
        "good": not reasons,
        "reasons": reasons,
    }


def require_good(report: dict[str, Any], *, override: bool = False) -> None:
    """Stop a training run on bad data. Raises BadData unless overridden."""
    if not report["good"] and not override:
        raise BadData(f"this store is not worth training on: {'; '.join(report['reasons'])}")


def render(report: dict[str, Any]) -> str:
    """The report for a terminal."""
    wish, reversal = report["wish"], report["time_reversal"]
    slots = " ".join(f"{v:.3f}" for v in report["similarity_to_target"])
    reach = "within" if report["wish_in_reach"] else "beyond"
    return "\n".join(
        [
            f"windows            {report['windows']} of {report['documents']} documents",
            f"coherence          {report['coherence']:.3f} (neighbours in the context)",
            f"cos to the target  {slots} (slots 0 to 4)",
            f"temporal signal    {report['temporal_signal']:+.3f}",
            f"monotonic order    {report['monotonic_order']:.2f} of the steps rise",
            f"s                  {report['s']:.3f} (last to next)",
            f"r, estimated       {report['r']:.3f} (ridge {report['r_ridge']:.3f}, scalars "
            f"{report['r_scalars']:.3f}, constant mean {report['constant']:.3f})",
            f"margin at that r   {report['margin_at_r']:+.3f}",
            f"r_min              {wish['r_min']:.3f} for cosine {wish['cosine']} and margin "
            f"{wish['margin']}: {reach} the estimated r",
            f"time reversal      forward {reversal['forward']:.3f}, reversed text "
            f"{reversal['reversed_text']:.3f}, reversed model "
            f"{reversal['reversed_model_on_forward_text']:.3f}",
            "verdict            " + ("good" if report["good"] else "; ".join(report["reasons"])),
        ]
    )


def draw(report: dict[str, Any], path: Path) -> None:
    """A PNG: similarity of each slot to the target, and the margins that each r allows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.plot(range(CONTEXT), report["similarity_to_target"], marker="o")
    left.set_xlabel("slot of the context (4 is the last)")
    left.set_ylabel("mean cosine with the target")
    left.set_xticks(range(CONTEXT))
    reach = np.linspace(max(0.05, report["s"]), 0.95, 100)
    right.plot(reach, [optimal_margin(r, report["s"]) for r in reach])
    right.axvline(report["r"], linestyle="--", label="r, estimated")
    right.axvline(report["wish"]["r_min"], linestyle=":", label="r_min of the wish")
    right.axhline(0, color="grey", linewidth=0.5)
    right.set_xlabel("attainable cosine r")
    right.set_ylabel("margin_last of the cosine-optimal predictor")
    right.legend()
    canvas.print_figure(path, dpi=110, metadata={"Software": None})


def _similarities(store: VectorStore, targets: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    """Mean cosine of each slot with the target ``[5]``, of neighbours, and the mean target."""
    slots = np.zeros(CONTEXT)
    neighbours = 0.0
    mean = np.zeros(store.dim)
    for at in range(0, len(targets), BATCH):
        rows = targets[at : at + BATCH]
        context, target = store.contexts(rows), store.rows(rows)
        slots += np.einsum("bsd,bd->s", context, target)
        neighbours += float(np.einsum("bsd,bsd->", context[:, :-1], context[:, 1:]))
        mean += target.sum(axis=0)
    count = len(targets)
    return slots / count, neighbours / (count * (CONTEXT - 1)), mean / count
