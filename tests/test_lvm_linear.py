"""The small network for articles: its fit, its runtime, and what its scores depend on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("safetensors")

from brain.errors import ArtifactCorrupt, ConfigError, InputError
from sidecars.lvm_linear import LinearNetwork, density, rank_features, references, unit
from sidecars.lvm_network import load_network
from tests.fakes.lvm_worlds import DIM, drifting_store
from trainers.lvm import linear, recipes
from trainers.lvm.baselines import CopyLast, fit_scalars, mean_cosine
from trainers.lvm.errors import TooFewWindows
from trainers.lvm.fivecat import measure

RECIPE = recipes.Linear("small", groups=[0, 3, DIM], vector_penalty=1e-4, iterations=60)
FEATURES = 19


def network(tensors: dict[str, np.ndarray]) -> LinearNetwork:
    shape = {"dim": DIM, "groups": RECIPE.groups, "neighbours": RECIPE.neighbours}
    return LinearNetwork({"network": shape}, tensors)


@pytest.fixture(scope="module")
def fitted() -> LinearNetwork:
    return network(linear.fit(drifting_store(), RECIPE))


def vectors(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return unit(rng.standard_normal((count, DIM)).astype(np.float32))


def test_the_vector_head_has_a_better_cosine_than_the_scalars(fitted: LinearNetwork) -> None:
    store = drifting_store()
    scalars = fit_scalars(store, store.windows("train"))
    valid = store.windows("valid")
    assert mean_cosine(fitted, store, valid) > mean_cosine(scalars, store, valid) + 0.005


def test_the_rank_head_finds_the_next_sentence_more_often_than_copying(
    fitted: LinearNetwork,
) -> None:
    store = drifting_store()
    valid = store.windows("valid")
    ours, last = measure(fitted, store, valid), measure(CopyLast(), store, valid)
    assert ours.mrr_rank.mean() > last.mrr_rank.mean() + 0.01


def test_scores_follow_the_candidates_whatever_their_order(fitted: LinearNetwork) -> None:
    context, candidates = vectors(10).reshape(2, 5, DIM), vectors(30, seed=1)
    order = np.random.default_rng(2).permutation(30)
    scores = fitted.rank(context, candidates)
    assert np.allclose(fitted.rank(context, candidates[order]), scores[:, order], atol=1e-4)
    alone = fitted.rank(context, candidates[:1])
    assert alone.shape == (2, 1) and np.isfinite(alone).all()


def test_density_is_that_of_the_others_and_not_of_the_candidate_itself() -> None:
    found = density(np.eye(DIM, dtype=np.float32)[[0, 0, 0, 1]], neighbours=2)
    assert found[:, 0] == pytest.approx([1, 1, 1, 0], abs=1e-6)
    assert found[:, 1] == pytest.approx([2 / 3, 2 / 3, 2 / 3, 0], abs=1e-6)
    assert density(vectors(1), 9).tolist() == [[0, 0, 0]]


def test_many_candidates_are_compared_with_some_of_them(monkeypatch) -> None:
    monkeypatch.setattr("sidecars.lvm_linear.REFERENCES", 50)
    every = vectors(120)
    found = density(every, 5)
    chosen = references(every)
    assert len(chosen) == len(np.unique(chosen)) == 50
    far = int(np.setdiff1d(np.arange(120), chosen)[0])
    nearest = np.sort(every[far] @ every[chosen].T)[-5:]
    assert found[far, 0] == pytest.approx(nearest.mean(), abs=1e-5)
    order = np.random.default_rng(5).permutation(120)
    assert density(every[order], 5) == pytest.approx(found[order], abs=1e-5)


def test_a_candidate_among_its_like_scores_lower_when_density_weighs_against_it() -> None:
    tensors = linear.fit(drifting_store(documents=20), RECIPE)
    tensors["rank.weights"] = np.zeros(FEATURES, np.float32)
    tensors["rank.weights"][[4, 14]] = 1.0, -1.0  # likeness to the last; density
    axes = np.eye(DIM, dtype=np.float32)
    last = unit(axes[0] + axes[1])
    crowd = unit(axes[1] + 0.1 * vectors(10))
    candidates = np.concatenate([axes[:1], axes[1:2], crowd])
    context = np.tile(last, (1, 5, 1))
    scores = network(tensors).rank(context, candidates)[0]
    assert last @ candidates[0] == pytest.approx(last @ candidates[1])
    assert scores[0] > scores[1] + 0.5


def test_features_are_as_many_as_the_weights_and_all_finite() -> None:
    features = rank_features(vectors(15).reshape(3, 5, DIM), vectors(7, seed=4), 9)
    assert features.shape == (3, 7, FEATURES)
    assert np.isfinite(features).all()


def test_a_run_writes_a_model_that_is_what_was_measured(tmp_path: Path) -> None:
    store = drifting_store()
    recipe = dataclasses.replace(RECIPE, dev_share=0.3)
    metrics = linear.train(recipe, store, store, tmp_path, splits=("train", "valid"))
    assert metrics == json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["documents"] < store.splits["train"]
    assert metrics["held_out"]["mrr"]["mean"] > 0
    model = load_network(tmp_path / "model")
    assert isinstance(model, LinearNetwork)
    cosine = mean_cosine(model, store, store.windows("valid"))
    assert cosine == pytest.approx(metrics["valid"]["cosine"]["mean"], abs=1e-4)
    assert model.manifest["measured"] == metrics["valid"]
    again = linear.train(recipe, store, store, tmp_path / "again", splits=("train", "valid"))
    first, second = (
        (tmp_path / part / "model.safetensors").read_bytes() for part in ("model", "again/model")
    )
    assert again["valid"] == metrics["valid"] and first == second


def test_wrong_shapes_are_refused(fitted: LinearNetwork) -> None:
    with pytest.raises(InputError, match="context must have shape"):
        fitted.predict(np.zeros((1, 4, DIM)))
    with pytest.raises(InputError, match="candidates must have shape"):
        fitted.rank(np.zeros((1, 5, DIM)), np.zeros((3, DIM + 1)))


@pytest.mark.parametrize("change", [{"groups": [0, 3]}, {"groups": [0, 2, 8, DIM]}, {"dim": 8}])
def test_a_manifest_that_does_not_fit_its_weights_is_refused(fitted, change) -> None:
    shape = fitted.manifest["network"] | change
    with pytest.raises(ArtifactCorrupt, match="does not fit"):
        LinearNetwork({"network": shape}, fitted.tensors)


def test_groups_that_do_not_rise_and_a_fit_without_documents_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('kind = "linear"\ngroups = [0, 8, 8]\n')
    with pytest.raises(ConfigError, match="rise"):
        recipes.load(path)
    with pytest.raises(TooFewWindows, match="held out"):
        linear.fit(drifting_store(documents=20), dataclasses.replace(RECIPE, dev_share=1.0))
