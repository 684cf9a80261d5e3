"""Fit the small network for articles (``sidecars.lvm_linear``): closed form and L-BFGS, no torch.

The vector head maximises the mean cosine itself. A window's cosine needs only the inner products of
the parts it adds up and of these with the target, so the fit never sees a vector twice. The rank
head is a conditional logit over the sentences of the document but for the context's.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from sidecars.lvm_linear import (
    ARCHITECTURE,
    CONTEXT,
    GATES,
    LinearNetwork,
    gates,
    rank_features,
    vector_parts,
)
from sidecars.lvm_network import LvmNetwork
from trainers.lvm.bootstrap import cluster_interval
from trainers.lvm.corpora import is_dev
from trainers.lvm.errors import TooFewWindows
from trainers.lvm.fivecat import measure
from trainers.lvm.recipes import Linear
from trainers.lvm.store import Document, VectorStore

CHUNK = 512


def training_documents(store: VectorStore, recipe: Linear, split: str) -> list[Document]:
    """Documents of the split with a window, but for those held out. Raises TooFewWindows."""
    store.windows(split)
    return [
        d
        for d in store.documents
        if d.split == split and d.stop - d.start > CONTEXT and not is_dev(d.id, recipe.dev_share)
    ]


def windows_of(documents: list[Document], most: int, seed: int) -> list[np.ndarray]:
    """Each document's target rows, at most ``most`` of each, drawn evenly."""
    rng = np.random.default_rng(seed)
    chosen = []
    for d in documents:
        rows = np.arange(d.start + CONTEXT, d.stop)
        chosen.append(np.sort(rng.choice(rows, most, replace=False)) if len(rows) > most else rows)
    return chosen


def axes(store: VectorStore, documents: list[Document]) -> tuple[np.ndarray, np.ndarray]:
    """Principal axes ``[D, D]`` of the uncentred vectors, strongest first, and the mean ``[D]``
    along them. Every document counts alike, so that a long one does not rule."""
    second, mean = np.zeros((store.dim, store.dim)), np.zeros(store.dim)
    for d in documents:
        rows = store.rows(np.arange(d.start, d.stop))
        second += rows.T @ rows / len(rows)
        mean += rows.mean(axis=0)
    basis = np.linalg.eigh(second)[1][:, ::-1].astype(np.float16).astype(np.float32)
    return basis, (mean / len(documents)).astype(np.float32) @ basis


def fit_vector(
    store: VectorStore, targets: np.ndarray, basis: np.ndarray, mean: np.ndarray, recipe: Linear
) -> tuple[np.ndarray, float]:
    """Weights ``[5 G, 11]`` and constant of the highest mean cosine less the penalty."""
    from scipy.optimize import minimize

    inner, toward, seen = [], [], []
    for at in range(0, len(targets), CHUNK):
        rows = targets[at : at + CHUNK]
        turned = store.contexts(rows) @ basis
        parts = vector_parts(turned, mean, recipe.groups)
        inner.append(parts @ parts.transpose(0, 2, 1))
        toward.append(np.einsum("bkd,bd->bk", parts, store.rows(rows) @ basis))
        seen.append(gates(turned))
    gram, cross, gate = (np.concatenate(p) for p in (inner, toward, seen))
    count, width = cross.shape[1] - 1, len(targets)
    # A penalty on what departs from one weight a slot: gates, and groups that differ from another.
    groups = count // CONTEXT

    def split(flat: np.ndarray) -> tuple[np.ndarray, float]:
        return flat[:-1].reshape(count, GATES), float(flat[-1])

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights, constant = split(flat)
        w = np.concatenate([gate @ weights.T, np.full((width, 1), constant)], axis=1)
        pulled = np.einsum("bkl,bl->bk", gram, w)
        norm = np.sqrt(np.maximum(np.einsum("bk,bk->b", w, pulled), 1e-12))
        cosine = np.einsum("bk,bk->b", w, cross) / norm
        slope = (cross - pulled * (cosine / norm)[:, None]) / norm[:, None] / width
        plain = weights[:, 0].reshape(groups, CONTEXT)
        apart = plain - plain.mean(axis=0)
        gated = weights[:, 1:]
        cost = float(np.square(apart).sum() + np.square(gated).sum()) * recipe.vector_penalty
        into = -slope[:, :count].T @ gate
        into[:, 0] += 2 * recipe.vector_penalty * apart.reshape(-1)
        into[:, 1:] += 2 * recipe.vector_penalty * gated
        total = -float(cosine.mean()) + cost
        return total, np.concatenate([into.reshape(-1), [-float(slope[:, count].sum())]])

    start = np.zeros((count, GATES))
    start[:, 0] = 1 / CONTEXT
    found = minimize(
        loss,
        np.concatenate([start.reshape(-1), [0.0]]),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": recipe.iterations},
    )
    weights, constant = split(found.x)
    return weights.astype(np.float32), constant


def fit_rank(
    store: VectorStore,
    documents: list[Document],
    windows: list[np.ndarray],
    recipe: Linear,
) -> np.ndarray:
    """Weights ``[F]`` of maximum likelihood with a penalty on standardised features."""
    from scipy.optimize import minimize

    groups = []
    for d, targets in zip(documents, windows, strict=True):
        every = np.arange(d.start, d.stop)
        features = rank_features(store.contexts(targets), store.rows(every), recipe.neighbours)
        distance = targets[:, None] - every
        groups.append((features, (distance >= 1) & (distance <= CONTEXT), targets - d.start))
    middle = np.mean([f.mean(axis=(0, 1)) for f, _, _ in groups], axis=0)
    spread = np.sqrt(np.mean([f.var(axis=(0, 1)) for f, _, _ in groups], axis=0)) + 1e-6
    groups = [((f - middle) / spread, barred, own) for f, barred, own in groups]
    count = sum(len(own) for _, _, own in groups)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        total, slope = 0.0, np.zeros_like(weights)
        for features, barred, own in groups:
            scores = features @ weights.astype(np.float32)
            scores[barred] = -np.inf
            scores -= scores.max(axis=1, keepdims=True)
            share = np.exp(scores)
            share /= share.sum(axis=1, keepdims=True)
            row = np.arange(len(own))
            total -= float(np.log(np.maximum(share[row, own], 1e-30)).sum())
            slope += share.reshape(-1) @ features.reshape(-1, features.shape[2])
            slope -= features[row, own].sum(axis=0)
        cost = recipe.rank_penalty * float(weights @ weights)
        return total / count + cost, slope / count + 2 * recipe.rank_penalty * weights

    start = np.zeros(groups[0][0].shape[2])
    found = minimize(
        loss, start, jac=True, method="L-BFGS-B", options={"maxiter": recipe.iterations}
    )
    # Means are the same for every candidate and drop out; spreads go into the weights.
    return (found.x / spread).astype(np.float32)


def fit(store: VectorStore, recipe: Linear, split: str = "train") -> dict[str, np.ndarray]:
    """The network's tensors. Raises TooFewWindows where the split has no window left."""
    documents = training_documents(store, recipe, split)
    if not documents:
        raise TooFewWindows(f"every document of split '{split}' with a window is held out")
    windows = windows_of(documents, recipe.windows, recipe.seed)
    basis, mean = axes(store, documents)
    weights, constant = fit_vector(store, np.concatenate(windows), basis, mean, recipe)
    rank = fit_rank(store, documents, windows, recipe)
    return {
        "basis": basis,
        "mean": mean,
        "vector.weights": weights,
        "vector.constant": np.array([constant], np.float32),
        "rank.weights": rank,
    }


def train(
    recipe: Linear, store: VectorStore, valid: VectorStore, out: Path, *, splits: tuple[str, str]
) -> dict[str, Any]:
    """Fit, measure on the valid split, and on the held-out training documents where there are
    some; write model/ and metrics.json."""
    from trainers.lvm.model_folder import write_model

    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    tensors = fit(store, recipe, splits[0])
    network = {"dim": store.dim, "groups": recipe.groups, "neighbours": recipe.neighbours}
    model = LinearNetwork({"network": network}, tensors)
    measured = summary(model, valid, valid.windows(splits[1]))
    held = [
        np.arange(d.start + CONTEXT, d.stop)
        for d in store.documents
        if d.split == splits[0] and is_dev(d.id, recipe.dev_share)
    ]
    rows = np.concatenate(held) if held else np.zeros(0, np.int64)
    metrics: dict[str, Any] = {
        "recipe": asdict(recipe),
        "documents": len(training_documents(store, recipe, splits[0])),
        "valid": measured,
        "held_out": summary(model, store, rows) if len(rows) else None,
        "parameters": int(sum(t.size for t in tensors.values())),
    }
    metrics["bytes"] = write_model(
        out / "model",
        tensors | {"basis": tensors["basis"].astype(np.float16)},
        {"architecture": ARCHITECTURE, **network},
        name=recipe.name,
        encoder_sha256=store.encoder_sha256,
        measured=measured,
    )
    metrics["seconds"] = round(time.monotonic() - began, 1)
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", "utf-8")
    return metrics


def summary(
    model: LinearNetwork | LvmNetwork, store: VectorStore, targets: np.ndarray
) -> dict[str, Any]:
    """Means with 95 % intervals over documents, as a manifest holds them."""
    own, documents = measure(model, store, targets), store.document_of(targets)
    last = np.einsum("bd,bd->b", model.predict(store.contexts(targets)), store.rows(targets - 1))
    values = {
        "cosine": own.cosine,
        "margin": own.cosine - last,
        "mrr": own.mrr_rank,
        "hit10": own.hit_rank,
    }
    found = {name: cluster_interval(array, documents) for name, array in values.items()}
    return {n: {"mean": i.mean, "interval": [i.low, i.high]} for n, i in found.items()}
