"""The frontier: what tilting trades, what a ranker finds, and the verdict on a wish."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.fakes.lvm_worlds import CycleRule, cycling_store, drifting_store
from trainers.lvm.errors import TooFewWindows
from trainers.lvm.frontier import RANKER_PENALTY, Ranker, draw, frontier, render
from trainers.lvm.retrieval import is_context
from trainers.lvm.store import store_in_memory


def test_tilting_away_from_last_raises_the_margin_and_costs_cosine() -> None:
    curve = frontier(drifting_store())["curves"]["ridge"]
    margins = [row["margin_last"] for row in curve]
    assert margins == sorted(margins)
    plain = next(row for row in curve if row["tilt"] == 0.0)
    assert all(row["cosine"] <= plain["cosine"] for row in curve if row["tilt"] > 0)


def test_the_ranker_is_at_least_about_as_good_as_the_best_single_similarity() -> None:
    report = frontier(drifting_store())
    assert report["ranker"]["times"] > 0.97


def test_a_ranker_that_is_given_a_vector_that_knows_the_rule_uses_it() -> None:
    store = cycling_store()
    train, valid = store.windows("train")[:400], store.windows("valid")[:400]
    alone, helped = Ranker(store, []), Ranker(store, [CycleRule()])
    for ranker in (alone, helped):
        ranker.fit(train)
    assert helped.reciprocal_ranks(valid).mean() > alone.reciprocal_ranks(valid).mean() + 0.1


def test_the_rankers_gradient_is_that_of_its_likelihood() -> None:
    store = drifting_store(20)
    targets = store.windows("train")[:40]
    ranker = Ranker(store, [])
    ranker.fit(targets)

    def likelihood(weights: np.ndarray) -> float:
        total = 0.0
        for row in targets:
            document = store.documents[int(store.document_of(np.array([row]))[0])]
            every = np.arange(document.start, document.stop)
            scores = (ranker.features(np.array([row]), store.rows(every)) @ weights)[0]
            scores = scores[~is_context(every, np.array([row]))[0]]
            own = (ranker.features(np.array([row]), store.rows(np.array([row]))) @ weights)[0, 0]
            total += own - np.log(np.exp(scores).sum())
        return total / len(targets) - RANKER_PENALTY * float(weights @ weights)

    best = likelihood(ranker.weights)
    rng = np.random.default_rng(0)
    for _ in range(5):  # a maximum: no small step is better
        step = 0.05 * rng.standard_normal(len(ranker.weights))
        assert likelihood(ranker.weights + step) <= best + 1e-6


def test_a_wish_that_no_predictor_can_have_is_out_of_reach() -> None:
    report = frontier(drifting_store(), wish=(0.95, 0.5))
    assert report["wish_in_reach"] is False
    assert "out of reach" in render(report)


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    draw(frontier(drifting_store(20)), tmp_path / "f.png")
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")


def test_a_split_without_windows_is_said() -> None:
    with pytest.raises(TooFewWindows, match="other"):
        frontier(drifting_store(20), split="other")


def test_baselines_and_ranker_can_be_fitted_on_another_store() -> None:
    full = drifting_store()
    rows = [full.vectors[d.start : d.stop] for d in full.documents if d.split == "valid"]
    alone = store_in_memory(rows, "valid")
    report, same = frontier(alone, fit_store=full), frontier(full)
    assert report["windows"] == same["windows"]
    for name, found in same["points"].items():
        assert report["points"][name] == pytest.approx(found, abs=2e-3)
    assert report["ranker"]["mrr"] == pytest.approx(same["ranker"]["mrr"], abs=5e-3)
