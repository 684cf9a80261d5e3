"""Run 5CAT on a model or a baseline and report it: JSON, a table, a picture of C(k)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trainers.lvm.baselines import (
    FIT_WINDOWS,
    NAMES,
    Blend,
    Control,
    Predictor,
    fit_baselines,
    sample,
)
from trainers.lvm.errors import UnknownPredictor, VectorStoreError
from trainers.lvm.fivecat import (
    MRR_RATIO,
    OFFSETS,
    Measures,
    best_baseline,
    gate_ablations,
    gate_generalisation,
    gate_rollout,
    gates_offset_and_retrieval,
    measure,
    retrieval_gain,
)
from trainers.lvm.scaling import fit_scaled
from trainers.lvm.store import VectorStore

WINDOWS = 10_000
ENOUGH_WINDOWS, ENOUGH_DOCUMENTS = 5_000, 100
MARGIN_TARGET = {"articles": 0.05, "dialogue": 0.0}
COLUMNS = ("cosine", "margin_last", "margin_future", "mrr", "mrr_vector", "hit10")


def load_model(folder: Path, store: VectorStore) -> Predictor:
    """A trained model. Raises VectorStoreError when its encoder or dimension is another."""
    from sidecars.lvm_network import load_network

    model = load_network(folder)
    wanted = str(getattr(model, "manifest", {}).get("encoder_sha256", ""))
    if wanted and store.encoder_sha256 and wanted != store.encoder_sha256:
        raise VectorStoreError(
            f"{folder} was trained for encoder {wanted[:12]}, the store holds vectors "
            f"of {store.encoder_sha256[:12]}"
        )
    if model.dim != store.dim:
        raise VectorStoreError(
            f"{folder} takes vectors of dimension {model.dim}, the store has {store.dim}"
        )
    found: Predictor = model
    return found


def validate(
    name: str,
    predictor: Predictor | None,
    store: VectorStore,
    *,
    ood: VectorStore | None = None,
    kind: str = "dialogue",
    split: str = "valid",
    windows: int = WINDOWS,
    margin_target: float | None = None,
    seed: int = 0,
    legacy: bool = False,
    baselines: Mapping[str, Predictor] | None = None,
    fit_store: VectorStore | None = None,
    fit_windows: int = FIT_WINDOWS,
    local_scaling: bool = False,
    least: tuple[int, int] = (ENOUGH_WINDOWS, ENOUGH_DOCUMENTS),
) -> dict[str, Any]:
    """The whole report.

    Args:
        name: how the report calls the predictor; with ``predictor`` None, a baseline's name or
            ``oracle``.
        ood: a store of another domain, for gate 5; the baselines stay those of ``store``.
        kind: ``articles`` or ``dialogue``: the wanted gain in MRR and in margin.
        baselines: fitted ones; None fits them on the train split of ``fit_store`` (of ``store``
            where it is None), on at most ``fit_windows`` windows.
        local_scaling: also show copy-last and the scalars with local scaling, fitted like the
            baselines; references beside them, which no gate counts.
        least: windows and documents below which nothing passes overall.

    Raises:
        TooFewWindows: a split without a window. UnknownPredictor: no such baseline.
        VectorError: NaN in a store. VectorStoreError: stores of different encoders.
    """
    if predictor is None and name not in (*NAMES, "oracle"):
        raise UnknownPredictor(
            f"'{name}' is neither a model folder nor a baseline ({', '.join(NAMES)}, oracle)"
        )
    for other in (ood, fit_store):
        _check_pair(store, other)
    if baselines is None:
        baselines = fit_baselines(fit_store or store, windows=fit_windows, seed=seed)
    fitted = dict(baselines)
    if predictor is None:
        predictor = Control("oracle") if name == "oracle" else fitted[name]
    goal = MARGIN_TARGET[kind] if margin_target is None else margin_target
    targets = sample(store.windows(split), windows, seed)
    documents = store.document_of(targets)
    rows = {n: measure(b, store, targets, seed=seed) for n, b in fitted.items()}
    own = measure(predictor, store, targets, seed=seed)
    offset, retrieval = gates_offset_and_retrieval(
        own, rows, documents, ratio=MRR_RATIO[kind], margin_target=goal, seed=seed
    )
    here = skill(own, rows)
    elsewhere = None
    if ood is not None:
        elsewhere = _skill_elsewhere(predictor, fitted, ood, split, windows, seed)
    gates = [
        offset,
        retrieval,
        gate_ablations(predictor, own, store, targets, documents, seed),
        gate_rollout(predictor, store, targets, documents),
        gate_generalisation(here, elsewhere),
    ]
    table = {n: m.summary() for n, m in rows.items()}
    if local_scaling:
        scaled = {
            n: measure(p, store, targets, seed=seed)
            for n, p in fit_scaled(fit_store or store, windows=fit_windows, seed=seed).items()
        }
        table |= {n: m.summary() for n, m in scaled.items()}
        reference, best = best_baseline(scaled, "mrr_rank")
        _, ahead = retrieval_gain(own.mrr_rank, best, documents, 1.0, seed)
        retrieval.details["over_local_scaling"] = {"reference": reference, **ahead}
    if not isinstance(predictor, Control):
        table[f"{name} + last"] = measure(Blend(predictor), store, targets, seed=seed).summary()
    table["oracle"] = measure(Control("oracle"), store, targets, seed=seed).summary()
    table[f"► {name}"] = own.summary()
    enough = len(targets) >= least[0] and len(np.unique(documents)) >= least[1]
    report: dict[str, Any] = {
        "model": name,
        "kind": kind,
        "windows": len(targets),
        "documents": len(np.unique(documents)),
        "enough": enough,
        "s": round(float(rows["copy-last"].offset(0)), 4) if "copy-last" in rows else None,
        "passed": enough and all(gate.passed is True for gate in gates),
        "gates": {
            g.name: {"passed": None if g.passed is None else bool(g.passed), **g.details}
            for g in gates
        },
        "table": table,
        "curves": {
            n: [_rounded(m.offset(k)) for k in OFFSETS] for n, m in {**rows, name: own}.items()
        },
    }
    if legacy:
        report["legacy"] = legacy_gates(own)
    return report


def skill(own: Measures, baselines: Mapping[str, Measures]) -> float:
    """Mean cosine above the best baseline's."""
    _, best = best_baseline(baselines, "cosine")
    return float(own.cosine.mean() - best.mean())


def legacy_gates(own: Measures) -> dict[str, Any]:
    """The values that earlier runs were judged by, for comparison only."""
    return {
        "offset_margin": _rounded(own.margin_last),
        "offset_margin_at_least_0.12": own.margin_last >= 0.12,
        "offset_margin_at_least_0.10": own.margin_last >= 0.10,
        "recall_at_1": _rounded(float((own.mrr_rank >= 1.0).mean())),
        "recall_at_5": _rounded(float(own.within_five.mean())),
        "mrr": _rounded(float(own.mrr_rank.mean())),
    }


def render(report: dict[str, Any]) -> str:
    """The report as a table for a terminal."""
    width = max(len(name) for name in report["table"])
    lines = [
        f"{report['windows']} windows of {report['documents']} documents, {report['kind']}"
        + ("" if report["enough"] else " — too few for a verdict (5,000 of 100 wanted)"),
        " " * width + "".join(f"{c:>15}" for c in COLUMNS),
    ]
    lines += [
        f"{name:<{width}}" + "".join(f"{row[c]:>15.4f}" for c in COLUMNS)
        for name, row in report["table"].items()
    ]
    word = {True: "pass", False: "FAIL", None: "not run"}
    for number, (name, gate) in enumerate(report["gates"].items(), 1):
        facts = ", ".join(f"{k} {v}" for k, v in gate.items() if k != "passed")
        lines.append(f"{number} {name:<15}{word[gate['passed']]:<8} {facts}")
    for key, value in report.get("legacy", {}).items():
        lines.append(f"legacy {key} {value}")
    lines.append(f"overall: {word[report['passed']]}")
    return "\n".join(lines)


def draw_curve(report: dict[str, Any], path: Path) -> None:
    """A PNG of C(k): the model thick, the baselines thin."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, curve in report["curves"].items():
        own = name == report["model"]
        axes.plot(OFFSETS, curve, label=name, linewidth=2.5 if own else 1, marker="o", markersize=3)
    axes.axvline(0, color="grey", linewidth=0.5)
    axes.set_xlabel("offset k (0 is the target, −1 the last of the context)")
    axes.set_ylabel("C(k) = mean cosine of the prediction with v[i+k]")
    axes.legend(fontsize=7, ncols=2)
    canvas.print_figure(path, dpi=110, metadata={"Software": None})


def _skill_elsewhere(
    predictor: Predictor,
    fitted: Mapping[str, Predictor],
    ood: VectorStore,
    split: str,
    windows: int,
    seed: int,
) -> float:
    targets = sample(ood.windows(split), windows, seed)
    rows = {n: measure(b, ood, targets, seed=seed) for n, b in fitted.items()}
    return skill(measure(predictor, ood, targets, seed=seed), rows)


def _check_pair(store: VectorStore, ood: VectorStore | None) -> None:
    store.check_finite()
    if ood is None:
        return
    ood.check_finite()
    if store.dim != ood.dim or store.encoder_sha256 != ood.encoder_sha256:
        raise VectorStoreError("the two stores were made by different encoders")


def _rounded(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None
