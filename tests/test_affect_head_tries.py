"""Ceilings and corrections of the affect head: known answers on made data."""

from __future__ import annotations

import numpy as np
import pytest

from trainers.affect.head import ceiling, measure, tries


def test_reliability_is_what_the_noise_leaves() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=3000)
    ratings = [value + rng.normal(0, 2.0, 6) for value in truth]
    # Var(truth) 1 against 4 / 6 of noise in the mean of six ratings: 1 / (1 + 4 / 6) = .6.
    assert ceiling.reliability(ratings) == pytest.approx(0.6, abs=0.03)
    assert ceiling.reliability([np.full(4, value) for value in truth]) == pytest.approx(1.0)


def test_isolation_needs_the_target_far_and_the_others_near() -> None:
    moved = np.array([[0.35, 0.2, -0.2], [0.3, 0.0, 0.0], [0.9, 0.0, 0.25], [0.0, -0.5, 0.1]])
    assert ceiling.isolated(moved, np.array([0, 0, 0, 1])).tolist() == [True, False, False, True]


def test_perfect_scores_isolate_every_pair_and_copies_of_one_axis_none() -> None:
    y = np.random.default_rng(1).uniform(-0.9, 0.9, (120, 3)).astype(np.float32)
    pairs = tries.pairs_of(y)
    assert len(pairs[0]) > 20
    assert tries.isolated(y, y, pairs) == 1.0
    assert tries.isolated(np.repeat(y[:, :1], 3, 1), y, pairs) == 0.0


def test_a_mixing_undoes_the_mixing_that_was_done() -> None:
    rng = np.random.default_rng(2)
    y = rng.uniform(-0.9, 0.9, (200, 3))
    mixed = np.arctanh(y) @ np.array([[1, 0.3, 0], [0, 0.8, 0], [-0.4, 0, 1.2]]) + 0.1
    assert np.allclose(tries.corrected(mixed, tries.affine(mixed, y, mixed=True)), y, atol=1e-5)
    alone = tries.corrected(mixed, tries.affine(mixed, y, mixed=False))
    assert np.abs(alone - y).mean() > 0.05


def test_folds_never_part_a_group() -> None:
    groups = np.repeat(np.arange(40), 3).astype(np.int32)
    fold = measure.folds_of(groups, tries.FOLDS)
    assert all(len(set(fold[groups == g])) == 1 for g in range(40)) and len(set(fold)) > 1
