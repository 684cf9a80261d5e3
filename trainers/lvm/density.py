"""Fit how much the candidates' density counts against them in a two-heads model, and store it.

The rank head scores each candidate for itself. A message that is near everything is near the true
context too, so how near a candidate's neighbours and all candidates are is taken off its score
(local scaling, CSLS of Conneau et al. 2018). Two factors and a number of neighbours, chosen on
training windows by what they do to both retrievals, in the dialogue and in a pool of 1,000.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from brain.errors import ConfigError
from sidecars.lvm_linear import density
from sidecars.lvm_network import LvmNetwork, check_folder
from trainers.lvm.baselines import sample
from trainers.lvm.corpora import is_dev
from trainers.lvm.errors import TooFewWindows
from trainers.lvm.fivecat import HIT
from trainers.lvm.linear import summary
from trainers.lvm.retrieval import document_ranks, pool_ranks
from trainers.lvm.store import VectorStore

WINDOWS = 6_000
NEIGHBOURS = (5, 9, 15)
NEAR = (0.0, 2.0, 3.0, 4.0, 6.0, 8.0)  # logits for a cosine of one
ALL = (0.0, 3.0, 6.0, 9.0, 12.0)
_RANKS: tuple[Callable[..., Any], ...] = (document_ranks, pool_ranks)


@dataclass(frozen=True)
class _Call:
    """One call of the rank head: scores ``[B, N]``; density by number of neighbours ``[N, 2]``."""

    scores: np.ndarray
    crowd: dict[int, np.ndarray]


def fit(model: LvmNetwork, store: VectorStore, targets: np.ndarray) -> dict[str, Any]:
    """The manifest's ``density`` for this model: ``neighbours`` and ``factors`` (near, all).

    Chosen is what has the highest sum of two ratios, MRR in the document and hit@10 in 1,000, each
    over that without density; of equals the one with the smaller factors. ``targets`` are rows of
    training windows.
    """
    calls = [_calls(model, store, targets, ranks) for ranks in _RANKS]
    plain = _retrieval(store, targets, calls, NEIGHBOURS[0], np.zeros(2))

    def gain(neighbours: int, factors: tuple[float, float]) -> float:
        found = _retrieval(store, targets, calls, neighbours, np.array(factors))
        return round(sum(f / max(p, 1e-12) for f, p in zip(found, plain, strict=True)), 6)

    tried = [(k, (near, every)) for near, every, k in product(NEAR, ALL, NEIGHBOURS)]
    neighbours, factors = max(tried, key=lambda one: (gain(*one), -sum(one[1])))
    return {"neighbours": neighbours, "factors": list(factors)}


def training_windows(
    store: VectorStore, split: str, windows: int, seed: int, dev_share: float = 0.0
) -> np.ndarray:
    """Target rows to fit on: of the split's documents but for those that chose the epochs."""
    targets = store.windows(split)
    chosen = np.array([is_dev(d.id, dev_share) for d in store.documents])
    targets = targets[~chosen[store.document_of(targets)]]
    if not len(targets):
        raise TooFewWindows(f"every document of split '{split}' was held out to choose epochs by")
    return sample(targets, windows, seed)


def add(
    folder: Path,
    store: VectorStore,
    targets: np.ndarray,
    valid: VectorStore,
    split: str,
    *,
    version: int | None = None,
) -> dict[str, Any]:
    """Fit it for the model in ``folder``, measure the model on ``valid``, write both into its
    manifest, and the version where one is given; returns the manifest. The weights stay.

    Raises ConfigError where the model is no two-heads model or the stores are of another encoder.
    """
    manifest = check_folder(folder)
    if "rank" not in manifest["network"]:
        raise ConfigError(f"{folder}: only a two-heads model takes a density")
    for one in (store, valid):
        if one.encoder_sha256 != manifest["encoder_sha256"] or one.dim != manifest["dim"]:
            raise ConfigError(f"{folder} was made for other vectors than those of {one.folder}")
    model = LvmNetwork.load(folder)
    manifest["network"]["density"] = fit(model, store, targets)
    manifest["version"] = version or manifest["version"]
    path = folder / "manifest.json"
    part = path.with_name("part-manifest.json")
    scaled = LvmNetwork(manifest, model.tensors)
    manifest["measured"] = summary(scaled, valid, valid.windows(split))
    part.write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
    part.replace(path)
    return manifest


def _calls(model: LvmNetwork, store: VectorStore, targets: np.ndarray, ranks: Any) -> list[_Call]:
    """What ``ranks`` asks of the rank head, in its order."""
    calls: list[_Call] = []
    seen: dict[bytes, dict[int, np.ndarray]] = {}

    def score(at: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        key = candidates.tobytes()
        if key not in seen:
            seen.clear()  # the calls of one document, or one pool, come one after the other
            seen[key] = {k: density(candidates, k)[:, :2] for k in NEIGHBOURS}
        scores = model.rank_alone(store.contexts(targets[at]), candidates)
        calls.append(_Call(scores, seen[key]))
        return scores

    ranks(store, targets, score)
    return calls


def _retrieval(
    store: VectorStore,
    targets: np.ndarray,
    calls: list[list[_Call]],
    neighbours: int,
    factors: np.ndarray,
) -> tuple[float, float]:
    """MRR in the document and hit@10 in the pool."""

    def scorer(again: Iterator[_Call]) -> Any:
        def score(at: np.ndarray, candidates: np.ndarray) -> np.ndarray:
            call = next(again)
            return call.scores - (call.crowd[neighbours] @ factors)[None]

        return score

    within, pooled = (
        ranks(store, targets, scorer(iter(made)))[0]
        for ranks, made in zip(_RANKS, calls, strict=True)
    )
    return float((1.0 / within).mean()), float((pooled <= HIT).mean())
