"""``limbic export affect``: a trained head → the folder that the ``cahm`` sidecar serves.

    python -m trainers.affect.head.export --data FILE.npz --head RUN/head.safetensors --out FOLDER

Confidence is fitted here, on held-out rows: a linear map of the message's vector learns the
expected absolute error (``spread``) on dev, and a logistic curve turns it into the probability that
the mean error of the three axes is at most ``CLOSE``. The gate: no |r| loses more than .01.
"""

from __future__ import annotations

import argparse
import json
from math import inf, isnan
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from sklearn.linear_model import LogisticRegression, Ridge

from sidecars.affect_manifest import Word
from sidecars.onnx_text import MODEL_FILE, TextModel
from trainers.affect.head import measure, runs
from trainers.affect.head.arrays import AXES, TAGS, Prepared
from trainers.affect.head.measure import CLOSE, error_of
from trainers.affect.head.network import AffectNet, Served, rebuild
from trainers.affect.head.served import answers as served_answers
from trainers.affect.head.vectors import has_vectors, pooled_vectors
from trainers.encoder.export import copy_tokenizer, export_onnx
from trainers.encoder.float_graph import write_float_graph
from trainers.encoder.manifest import write_manifest

GATE = 0.01
FOLDS = 5  # of the dev rows that confidence is fitted on
Array = NDArray[np.float32]


@torch.inference_mode()
def run_torch(
    net: AffectNet, data: Prepared, rows: NDArray[np.int64], folder: Path | None = None
) -> dict[str, Array]:
    """Served outputs over all N rows, NaN where not run.

    Where ``folder`` has vectors of this very encoder (a frozen run), the heads alone are run.
    """
    served, found = Served(net).eval(), dict[str, Array]()
    vectors = None
    if folder is not None and has_vectors(net, data, folder):
        vectors = pooled_vectors(net, data, rows, folder)
    ordered = rows[np.argsort(data.starts[rows + 1] - data.starts[rows], kind="stable")]
    for start in range(0, len(ordered), 128):
        part = ordered[start : start + 128]
        if vectors is None:
            answers = served(*(torch.as_tensor(a) for a in data.batch(part)))
        else:
            answers = served.of(torch.as_tensor(vectors[part]))
        for name, value in zip(Served.outputs, answers, strict=True):
            array = value.numpy()
            whole = found.setdefault(
                name, np.full((len(data.part), *array.shape[1:]), np.nan, np.float32)
            )
            whole[part] = array
    return found


def fit_confidence(net: AffectNet, data: Prepared, out: dict[str, Array]) -> dict[str, float]:
    """Set the spread head, and ``out["spread"]``, from dev rows; returns the logistic curve
    ``{"a", "b"}``."""
    rows = data.rows("dev", "llm_label")
    error = error_of(data, out["axes"], rows)
    vectors, raw = out["embedding"][rows], np.log(np.expm1(np.maximum(error, 1e-3)))
    # The served spread reads the pooled vector; its length is near constant, so one scale serves.
    with torch.inference_mode():
        ids, mask, kinds = (torch.as_tensor(a) for a in data.batch(rows[:64]))
        length = float(net(ids, mask, kinds).embedding.norm(dim=1).mean())
    ridge = Ridge(alpha=3.0).fit(vectors, raw)
    with torch.no_grad():
        net.spread.weight.copy_(torch.as_tensor(ridge.coef_ / length, dtype=torch.float32)[None])
        net.spread.bias.fill_(float(ridge.intercept_))
    out["spread"] = np.logaddexp(0.0, ridge.predict(np.nan_to_num(out["embedding"])))
    # Half the rows of dev would be too few for both fits: cross-fitting keeps the curve honest.
    spread = np.empty(len(rows), np.float32)
    folds = np.arange(len(rows)) % FOLDS
    for fold in range(FOLDS):
        inside = folds == fold
        part = Ridge(alpha=3.0).fit(vectors[~inside], raw[~inside])
        spread[inside] = np.log1p(np.exp(part.predict(vectors[inside])))
    return curve_of(spread, error <= CLOSE)


def curve_of(spread: Array, close: NDArray[np.bool_]) -> dict[str, float]:
    """The logistic curve ``{"a", "b"}`` that says from ``spread`` [N] how often answers are
    ``close`` [N]. Where it tells nothing of that (one outcome alone, or surer where the head errs
    more) the curve is level, at the share of close answers (Laplace's rule)."""
    if close.any() and not close.all():
        curve = LogisticRegression(C=10.0).fit(spread[:, None], close)
        if curve.coef_[0, 0] <= 0.0:
            return {"a": float(curve.intercept_[0]), "b": float(-curve.coef_[0, 0])}
    share = (close.sum() + 1) / (len(close) + 2)
    return {"a": float(np.log(share / (1 - share))), "b": 0.0}


def tag_thresholds(data: Prepared, out: dict[str, Array]) -> list[float]:
    """Best F1 on dev; for safety_edge the highest threshold that still finds three of four."""
    rows = data.rows("dev", "llm_label")
    found = measure.best_thresholds(out["tags"][rows], data.tags[rows])
    edge = TAGS.index("safety_edge")
    positive = out["tags"][rows, edge][data.tags[rows, edge] == 1]
    if len(positive):
        found[edge] = min(found[edge], float(np.quantile(positive, 0.25)))
    return [round(float(t), 4) for t in found]


def main(argv: list[str] | None = None) -> int:
    """Export, compare, measure; exit 1 when the gate fails."""
    parser = argparse.ArgumentParser(prog="limbic export affect", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--head", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--version", default="1", help="of the model, in its manifest")
    parser.add_argument("--cache", type=Path, help="folder that keeps what the exported file said")
    args = parser.parse_args(argv)
    for path in (args.data, args.data.with_suffix(".json"), args.head):
        if not path.is_file():
            parser.error(f"{path}: no such file")
    try:
        TypeAdapter(Word).validate_python(args.version)
    except ValidationError:
        parser.error(f"--version {args.version!r}: letters, digits, '.', '_', '+' and '-' alone")
    try:
        data = Prepared.load(args.data)
        if problem := runs.another_set(args.head, data.digest):
            parser.error(problem)
        net = rebuild(args.head, data)
    except ValueError as error:
        parser.error(str(error))
    if len(data.rows("dev", "llm_label")) < FOLDS:
        parser.error(f"{args.data}: too few dev rows of the pool to fit confidence on")
    rows = measure.rows_measured(data)
    out = run_torch(net, data, np.union1d(rows, data.rows("dev", "llm_label")), args.head.parent)
    curve = fit_confidence(net, data, out)
    args.out.mkdir(parents=True, exist_ok=True)
    copy_tokenizer(args.out)
    export_onnx(Served(net), list(Served.outputs), args.out / MODEL_FILE)
    write_float_graph(args.out)
    names = json.loads(args.data.with_suffix(".json").read_text())
    fields = {
        "name": "limbic-affect", "version": args.version, "kind": "affect-encoder",
        "max_tokens": 128, "axes": list(AXES), "tags": list(TAGS),
        "tag_thresholds": tag_thresholds(data, out),
        "emotions": names["emotions"], "confidence": curve, "data": data.digest,
    }  # fmt: skip
    write_manifest(args.out, **fields)
    exported = served_answers(TextModel.load(args.out, threads=2), data, rows, args.cache)
    full, table = (figures(data, found, curve) for found in (out, exported))
    (args.out / "metrics.txt").write_text(_lines(full, table))
    print(_lines(full, table))
    return 0 if max(lost(full, table).values(), default=inf) <= GATE else 1


def figures(data: Prepared, out: dict[str, Array], curve: dict[str, float]) -> dict[str, Any]:
    """The table of what a model says on the rows measured."""
    return measure.everything(
        data, out["axes"], arousal=out["arousal"], emotions=out["emotions"], tags=out["tags"],
        confidence=measure.confidence_of(out["spread"], curve),
    )  # fmt: skip


def lost(before: dict[str, Any], after: dict[str, Any]) -> dict[str, float]:
    """How much of each correlation with labels went from one table to the other: the gate's. What
    the set does not measure is not among them; what only the second does not know is all lost."""
    pairs = zip(measure.summary(before), measure.summary(after), strict=True)
    return {
        k: inf if isnan(b) else a - b
        for (k, a, _), (_, b, _) in pairs
        if k.partition(",")[0].endswith(" r") and not isnan(a)
    }


def _lines(full: dict[str, Any], table: dict[str, Any]) -> str:
    rows = zip(measure.summary(full), measure.summary(table), strict=True)
    lines = ["figure                               PyTorch  exported  target"]
    lines += [
        f"{k:36} {a:7.3f} {b:9.3f}  {'' if t is None else t}" for (k, a, t), (_, b, _) in rows
    ]
    c = table["calibration"]
    bins = ", ".join(f"{said:.2f}/{seen:.2f}" for said, seen in c["bins"])
    lines.append(f"confidence said/seen in fifths of {c['n']} rows: {bins}; ECE {c['ece']:.3f}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
