"""Gate 4's references: the true text passes, frozen and flat guesses fail, noise is no help."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from tests.fakes.lvm_worlds import CycleRule, cycling_store, drifting_store
from trainers.lvm.errors import TooFewWindows
from trainers.lvm.fivecat import HORIZON, gate_rollout, rolled
from trainers.lvm.rollout import EachStep, render, rollout, turned
from trainers.lvm.store import store_in_memory


@cache
def report() -> dict[str, Any]:
    return rollout(drifting_store(600), model=CycleRule(), name="rule")


def test_the_true_text_passes_and_a_frozen_guess_is_flat() -> None:
    rows = report()["rows"]
    assert rows["the true text"]["passed"]
    assert rows["the true text"]["cosine"] == pytest.approx([1.0] * HORIZON, abs=1e-3)
    assert rows["copy-last"]["flatness"] == pytest.approx(1.0, abs=1e-3)
    assert not rows["copy-last"]["passed"]


def test_a_regression_for_each_step_is_the_best_guess_of_the_linear_world() -> None:
    rows = report()["rows"]
    best = rows["a regression for each step"]["cosine"]
    for name in ("mean-5", "scalars", "ridge", "after the most similar window"):
        assert all(b >= c - 0.02 for b, c in zip(best, rows[name]["cosine"], strict=True)), name


def test_what_followed_a_similar_window_is_no_flatter_than_the_text() -> None:
    rows = report()["rows"]
    real, copied = rows["the true text"], rows["after the most similar window"]
    assert copied["flatness"] == pytest.approx(real["flatness"], abs=0.05)


def test_a_model_that_knows_the_rule_passes_where_the_rule_holds() -> None:
    store = cycling_store()
    assert rollout(store, model=CycleRule(), name="rule")["rows"]["rule"]["passed"]


def test_turning_keeps_unit_length_and_turns_by_the_angle() -> None:
    store = drifting_store(20)
    targets = store.windows("valid")[:30]
    path = rolled(CycleRule(), store, targets)
    moved = turned(path, targets, (0.0, 30.0, -30.0, 90.0, 0.0))
    cosines = (path * moved).sum(axis=-1)
    wanted = np.cos(np.radians([0, 30, 30, 90, 0]))
    assert np.allclose(cosines, wanted, atol=1e-5)
    assert np.allclose(np.linalg.norm(moved, axis=-1), 1, atol=1e-5)
    assert np.array_equal(moved, turned(path, targets, (0.0, 30.0, -30.0, 90.0, 0.0)))


def test_steps_past_the_end_of_a_document_do_not_count() -> None:
    store = drifting_store(40)
    targets = store.windows("valid")
    stops = np.array([d.stop for d in store.documents])[store.document_of(targets)]
    early = targets[targets + HORIZON <= stops]
    gates = [gate_rollout(CycleRule(), store, t, store.document_of(t)) for t in (targets, early)]
    assert len(early) < len(targets)
    assert gates[0].details["cosine"][4] == pytest.approx(gates[1].details["cosine"][4], abs=1e-4)


def test_documents_too_short_for_five_steps_are_one_clear_error() -> None:
    rng = np.random.default_rng(0)
    short = store_in_memory([rng.normal(size=(7, 8)) for _ in range(8)], ["train", "valid"] * 4)
    with pytest.raises(TooFewWindows, match="10 sentences"):
        rollout(short)
    with pytest.raises(TooFewWindows):
        EachStep(short, short.windows("train")[:0])


def test_the_table_names_every_row() -> None:
    table = render(report())
    assert all(name in table for name in [*report()["rows"], "frozen last", "frozen mean"])
