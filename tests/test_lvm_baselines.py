"""The baselines do what their names say."""

from __future__ import annotations

import numpy as np
import pytest

from tests.fakes.lvm_worlds import cycling_store, drifting_store
from trainers.lvm.baselines import (
    NAMES,
    Control,
    CopyLast,
    MeanFive,
    fit_baselines,
    fit_ridge,
    fit_scalars,
    mean_cosine,
    sample,
)
from trainers.lvm.errors import TooFewWindows
from trainers.lvm.fivecat import predict
from trainers.lvm.store import store_in_memory


def test_all_baselines_give_unit_vectors_and_the_same_ones_each_time() -> None:
    store = drifting_store(30)
    targets = store.windows("valid")
    first, second = fit_baselines(store), fit_baselines(store)
    assert tuple(first) == NAMES
    for name in NAMES:
        vectors = predict(first[name], store, targets)
        assert vectors.dtype == np.float32
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        assert np.array_equal(vectors, predict(second[name], store, targets)), name


def test_a_linear_world_is_learned_by_ridge_better_than_by_copying() -> None:
    store = drifting_store(200)
    train, valid = store.windows("train"), store.windows("valid")
    ridge = mean_cosine(fit_ridge(store, train), store, valid)
    scalars = mean_cosine(fit_scalars(store, train), store, valid)
    mean = mean_cosine(MeanFive(), store, valid)
    last = mean_cosine(CopyLast(), store, valid)
    assert ridge > scalars > max(mean, last)


def test_scalars_find_the_slot_that_matters() -> None:
    rng = np.random.default_rng(0)
    made = []
    for _ in range(40):
        rows = list(rng.standard_normal((2, 16)))
        for _ in range(10):
            rows.append(rows[-2] + 0.1 * rng.standard_normal(16))
        made.append(np.asarray(rows))
    store = store_in_memory(made, "train")
    weights = fit_scalars(store, store.windows("train")).weights
    assert int(weights.argmax()) == 3


def test_a_ridge_of_reversed_text_goes_the_wrong_way() -> None:
    store = cycling_store(200)
    train, valid = store.windows("train"), store.windows("valid")
    forward, backward = fit_ridge(store, train), fit_ridge(store, train, backwards=True)
    assert mean_cosine(forward, store, valid) > mean_cosine(backward, store, valid) + 0.1


def test_a_random_sentence_of_the_document_is_never_the_target_or_the_context() -> None:
    store = drifting_store(10)
    targets = store.windows("valid")
    vectors = Control("random_same_document").at(store, targets)
    for vector, target in zip(vectors, targets, strict=True):
        (row,) = np.flatnonzero(np.isclose(store.rows(np.arange(140)) @ vector, 1, atol=1e-4))
        assert store.document_of(np.array([row])) == store.document_of(np.array([target]))
        assert not target - 5 <= row <= target


def test_sampling_keeps_order_and_seed() -> None:
    targets = np.arange(1000)
    some = sample(targets, 50, seed=1)
    assert (np.diff(some) > 0).all()
    assert np.array_equal(some, sample(targets, 50, seed=1))
    assert sample(targets, 5000, seed=1) is targets


def test_a_store_without_a_train_split_cannot_fit_baselines() -> None:
    with pytest.raises(TooFewWindows, match="'train'"):
        fit_baselines(store_in_memory([np.eye(8)], "valid"))
