"""The harness proves itself: it passes what is right and fails what only looks right."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from tests.fakes.lvm_worlds import CycleRule, cycling_store, drifting_store
from trainers.lvm.baselines import NAMES, fit_baselines
from trainers.lvm.bootstrap import cluster_interval
from trainers.lvm.errors import TooFewWindows, UnknownPredictor, VectorError
from trainers.lvm.fivecat import OFFSETS, offset_curve
from trainers.lvm.retrieval import chance_mrr, document_ranks, pessimistic_ranks, pool_ranks
from trainers.lvm.store import store_in_memory
from trainers.lvm.validate import render, validate


@cache
def fitted(world: str) -> dict[str, Any]:
    return fit_baselines(drifting_store() if world == "drift" else cycling_store())


def drift_report(name: str) -> dict[str, Any]:
    return validate(
        name,
        None,
        drifting_store(40),
        ood=drifting_store(40, seed=5),
        kind="articles",
        baselines=fitted("drift"),
        least=(1, 1),
    )


def test_the_oracle_passes_offset_retrieval_and_rollout() -> None:
    gates = drift_report("oracle")["gates"]
    assert [gates[n]["passed"] for n in ("offset", "retrieval", "rollout")] == [True] * 3


@pytest.mark.parametrize("name", NAMES)
def test_every_trivial_baseline_fails(name: str) -> None:
    assert drift_report(name)["passed"] is False


def test_the_tilted_ridge_has_the_margin_and_fails_all_the_same() -> None:
    report = validate("tilted ridge", None, cycling_store(80), baselines=fitted("cycle"))
    assert report["table"]["tilted ridge"]["margin_last"] > 0.1
    assert report["table"]["tilted ridge"]["margin_last"] > report["table"]["ridge"]["margin_last"]
    assert report["gates"]["offset"]["passed"] is False
    assert report["gates"]["retrieval"]["passed"] is False


def test_a_model_that_knows_the_rule_passes_all_five() -> None:
    report = validate(
        "rule",
        CycleRule(),
        cycling_store(200),
        ood=cycling_store(200, seed=3),
        kind="articles",
        baselines=fitted("cycle"),
        legacy=True,
        least=(1000, 100),
    )
    assert report["passed"], render(report)
    assert report["legacy"]["recall_at_1"] > 0.9


def test_too_small_a_set_passes_nothing_and_says_so() -> None:
    store = cycling_store(60)
    report = validate("rule", CycleRule(), store, ood=store, baselines=fitted("cycle"))
    assert all(gate["passed"] for gate in report["gates"].values())
    assert report["passed"] is False
    assert "too few for a verdict" in render(report)


def test_without_another_domain_nothing_passes_overall() -> None:
    report = validate("rule", CycleRule(), cycling_store(40), baselines=fitted("cycle"))
    assert report["gates"]["generalisation"]["passed"] is None
    assert report["passed"] is False


def test_offset_zero_is_the_target_itself() -> None:
    store = drifting_store(4)
    targets = store.windows("valid")
    curve = offset_curve(store.rows(targets), store, targets)
    assert np.allclose(curve[:, OFFSETS.index(0)], 1, atol=1e-5)
    last = offset_curve(store.contexts(targets)[:, -1], store, targets)
    assert np.allclose(last[:, OFFSETS.index(-1)], 1, atol=1e-5)
    # The last row of a document has no future: nothing is taken from the next document.
    assert np.isnan(curve[targets == store.documents[0].stop - 1, OFFSETS.index(1)]).all()


def test_ties_and_nan_stand_before_the_target() -> None:
    scores = np.array([[0.5, 0.5, 0.5 - 1e-8, np.nan, 0.1]])
    none = np.zeros_like(scores, dtype=bool)
    assert pessimistic_ranks(scores, np.array([0]), none).tolist() == [4]
    everything_equal = np.zeros((1, 5))
    assert pessimistic_ranks(everything_equal, np.array([2]), none).tolist() == [5]


def test_candidates_are_the_document_without_the_five_of_the_context() -> None:
    store = drifting_store(6)
    targets = store.windows("valid")
    last = store.contexts(targets)[:, -1]

    def score(at: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        return last[at] @ candidates.T

    _, sizes = document_ranks(store, targets, score)
    assert set(sizes.tolist()) == {14 - 5}
    with_context, _ = document_ranks(store, targets, score, context_included=True)
    assert (with_context >= 2).all()  # copy-last finds the sentence it copied


def test_the_pool_holds_so_many_targets_and_no_context() -> None:
    store = drifting_store(60)
    targets = store.windows("valid")
    truth = store.rows(targets)
    ranks, size = pool_ranks(store, targets, lambda at, c: truth[at] @ c.T, pool=100)
    assert size == 100
    assert (ranks == 1).all()


def test_chance_is_the_mean_reciprocal_of_a_uniform_rank() -> None:
    assert chance_mrr(np.array([1, 2])) == pytest.approx((1 + 0.75) / 2)


def test_the_interval_counts_documents_not_windows() -> None:
    documents = np.repeat(np.arange(10), 100)
    between = np.random.default_rng(0).standard_normal(10)[documents]
    wide = cluster_interval(between, documents)
    narrow = cluster_interval(between, np.arange(1000))
    assert wide.high - wide.low > 4 * (narrow.high - narrow.low)
    assert cluster_interval(between, documents) == wide


def test_a_model_of_the_wrong_dimension_or_with_nan_is_refused() -> None:
    class Wrong:
        def __init__(self, dim: int, value: float) -> None:
            self.dim, self.value = dim, value

        def predict(self, context: np.ndarray) -> np.ndarray:
            return np.full((len(context), self.dim), self.value)

    store, known = cycling_store(20), fitted("cycle")
    with pytest.raises(VectorError, match="shape"):
        validate("wrong", Wrong(3, 1.0), store, baselines=known)
    with pytest.raises(VectorError, match="NaN"):
        validate("nan", Wrong(16, np.nan), store, baselines=known)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UnknownPredictor, match="copy-last"):
        validate("copylast", None, store_in_memory([np.eye(8)]))


def test_the_baselines_can_be_fitted_on_a_store_of_their_own() -> None:
    full = cycling_store()
    alone = store_in_memory([full.vectors[d.start : d.stop] for d in full.documents], "valid")
    with pytest.raises(TooFewWindows, match="train"):
        validate("ridge", None, alone)
    report = validate("ridge", None, alone, fit_store=full)
    assert report["windows"] == len(alone.windows("valid"))
    assert report["table"]["ridge"]["cosine"] > report["table"]["copy-last"]["cosine"]


def test_references_with_local_scaling_are_shown_and_no_gate_counts_them() -> None:
    store = drifting_store()
    plain, shown = (validate("scalars", None, store, local_scaling=on) for on in (False, True))
    assert set(shown["table"]) - set(plain["table"]) == {"copy-last, scaled", "scalars, scaled"}
    over = shown["gates"]["retrieval"].pop("over_local_scaling")
    assert shown["gates"] == plain["gates"]
    best = max(shown["table"][n]["mrr"] for n in ("copy-last, scaled", "scalars, scaled"))
    assert shown["table"][over["reference"]]["mrr"] == best
    assert over["gain"][0] == pytest.approx(shown["table"]["► scalars"]["mrr"] - best, abs=2e-4)
