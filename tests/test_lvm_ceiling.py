"""The strong feature ranker: that it learns, leaks nothing, and measures as 5CAT does."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")

from brain.errors import ConfigError
from tests.fakes.lvm_worlds import DIM, cycling_store, drifting_store
from trainers.lvm import ceiling, pair_features, words
from trainers.lvm.baselines import CopyLast
from trainers.lvm.corpora import Corpus
from trainers.lvm.errors import TooFewWindows
from trainers.lvm.fivecat import HIT
from trainers.lvm.retrieval import is_context, pessimistic_ranks, pool_ranks
from trainers.lvm.store import VectorStore, store_in_memory


class Copying:
    """A model's two heads, both the last vector again."""

    def predict(self, context: np.ndarray) -> np.ndarray:
        return CopyLast().predict(context)

    def rank_alone(self, context: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        return self.predict(context) @ candidates.T

    def crowding(self, candidates: np.ndarray) -> np.ndarray:
        return np.zeros(len(candidates), np.float32)


def apart(store: VectorStore) -> tuple[np.ndarray, np.ndarray]:
    """Training windows of every other document, and of the rest."""
    windows = store.windows("train")
    other = np.isin(store.document_of(windows), np.unique(store.document_of(windows))[1::2])
    return windows[~other], windows[other]


def hits(
    features: pair_features.Features, store: VectorStore, targets: np.ndarray, name: str
) -> float:
    """hit@10 of one feature among all the targets."""
    ranks = np.zeros(len(targets), np.int64)
    for at, matrix in features.matrix(store, targets, targets):
        scores = matrix[:, :, features.names.index(name)]
        ranks[at] = pessimistic_ranks(scores, at, is_context(targets, targets[at]))
    return float((ranks <= HIT).mean())


def test_on_noise_the_features_that_rankers_are_taught_on_are_at_chance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng, count = np.random.default_rng(0), 40
    splits = ["valid" if i % 5 == 0 else "train" for i in range(count)]
    noise = [rng.standard_normal((15, DIM)) for _ in range(count)]
    store, taught = store_in_memory(noise, splits), []
    train = ceiling.fit_rankers

    def spy(features: pair_features.Features, *rest: Any, **more: Any) -> dict[str, Any]:
        taught.append((features, rest[1]))
        return train(features, *rest, **more)

    monkeypatch.setattr(ceiling, "fit_rankers", spy)
    rows = ceiling.ceiling(store, store, fit_windows=150, shares=(1.0,), pool=80, rounds=5)
    (features, targets), *_ = taught
    chance = HIT / len(targets)
    for name in ("ridge", "scalars", "backwards", "followed", "preceded"):
        assert hits(features, store, targets, name) < 2.5 * chance, name
    fitted = store.windows("train")
    fitted = fitted[np.isin(store.document_of(fitted), features.documents)]
    assert hits(features, store, fitted, "ridge") > 5 * chance  # what they would have been taught
    # So the rankers know nothing, rather than something wrong.
    assert all(row["hit10"][0] < 2.5 * HIT / 80 for row in rows)


def test_rankers_are_not_taught_on_documents_whose_answers_the_features_know() -> None:
    store = drifting_store(documents=20)
    features = pair_features.Features(store, store.windows("train"))
    with pytest.raises(ValueError, match="not fitted on"):
        ceiling.fit_rankers(features, store, store.windows("train")[:9], pool=9, rounds=1)


def test_rankers_see_a_models_scores_only_where_it_was_trained_on_none_of_the_dialogues() -> None:
    store = drifting_store(documents=20)
    fitted, taught = apart(store)
    for unseen in (False, True):
        features = pair_features.Features(store, fitted, Copying(), unseen=unseen)
        seen = {features.names[column] for column in features.columns}
        assert seen >= {"ridge", "place: ridge"} and ("vector head" in seen) is unseen
        assert ("rank head" in seen) is unseen and ("place: rank head" in seen) is unseen
        found = ceiling.fit_rankers(features, store, taught, pool=40, rounds=2)
        assert found["trees"].n_features_in_ == len(features.columns)
        assert len(features.names) - len(features.columns) == (0 if unseen else 4)


def test_one_training_document_is_too_few() -> None:
    rows = np.random.default_rng(0).standard_normal((9, DIM))
    store = store_in_memory([rows, rows], ["train", "valid"])
    with pytest.raises(TooFewWindows, match="two training documents"):
        ceiling.ceiling(store, store)


def test_trees_find_what_similarities_with_the_context_alone_do_not() -> None:
    store = cycling_store(documents=120)
    rows = ceiling.ceiling(
        store, store, windows=200, fit_windows=200, shares=(1.0,), pool=100, rounds=40
    )
    found = {row["ranker"]: row for row in rows}
    assert set(found) == {"scalars", "logit", "trees"}
    assert found["trees"]["hit10"][0] > found["scalars"]["hit10"][0] + 0.1
    assert found["trees"]["times"] > 1.1 and found["scalars"]["times"] == 1.0


def test_what_ranks_by_itself_has_the_ranks_of_5cat() -> None:
    store = drifting_store(documents=40)
    targets = store.windows("valid")
    fitted, taught = apart(store)
    features = pair_features.Features(store, fitted, Copying(), unseen=True)
    rankers = ceiling.fit_rankers(features, store, taught[:60], pool=60, rounds=5)
    ranks = ceiling.judge(features, store, targets, rankers, pool=60)
    vectors = CopyLast().predict(store.contexts(targets))
    wanted, _ = pool_ranks(store, targets, lambda at, c: vectors[at] @ c.T, pool=60)
    assert np.array_equal(ranks["rank head"], wanted)
    assert (ranks["trees"] <= HIT).mean() > 0.2


def test_every_feature_has_a_name_and_a_finite_value() -> None:
    store = drifting_store(documents=20)
    features = pair_features.Features(store, store.windows("train"), Copying())
    targets = store.windows("valid")[:30]
    for at, matrix in features.matrix(store, targets, targets):
        assert matrix.shape == (len(at), 30, len(features.names))
        assert np.isfinite(matrix).all()


def test_a_windows_own_document_is_never_looked_up() -> None:
    store = drifting_store(documents=20)
    targets = store.windows("train")
    memory = pair_features.Memory.of(store, targets)
    mine = targets[:9]  # of the first document
    owner = store.document_of(mine)
    after, weights = memory.followed(store.contexts(mine), owner)
    rows = [set(map(bytes, part)) for part in after]
    own = {bytes(row) for row in store.rows(targets[store.document_of(targets) == owner[0]])}
    assert all(not found & own for found in rows)
    assert weights.sum(axis=1) == pytest.approx(1)
    seen, _ = memory.followed(store.contexts(mine), None)
    assert any(bytes(store.rows(mine)[0]) == bytes(row) for row in seen[0])


def test_more_documents_are_more_windows_and_the_same_ones_are_measured() -> None:
    store = drifting_store(documents=40)
    rows = ceiling.ceiling(
        store, store, Copying(), windows=60, fit_windows=60, shares=(0.5, 1.0), pool=40, rounds=3
    )
    assert [(row["ranker"], row["documents"]) for row in rows] == [
        ("scalars", None), ("rank head", None), ("rank head, density", None), ("logit", 10),
        ("trees", 10), ("logit", 20), ("trees", 20),
    ]  # fmt: skip
    assert rows[2]["gain"] == [0, 0, 0] and rows[0]["times"] == 1


def corpus_of(folder: Path, texts: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """A corpus named x below the folder."""
    one = Corpus(path="x.jsonl.gz", field="turns", kind="dialogue", licence="-")
    monkeypatch.setattr(words, "load_corpora", lambda: {"x": one})
    with gzip.open(folder / one.path, "wt", encoding="utf-8") as file:
        for name, turns in texts.items():
            file.write(json.dumps({"doc": name, "split": "train", "turns": turns}) + "\n")


def test_words_are_compared_and_a_document_of_another_length_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = ["I like tea.", "tea is good", "Do you like it?", "yes", "Why?", "no idea", "tea again"]
    rng = np.random.default_rng(0)
    store = store_in_memory([rng.standard_normal((n, DIM)) for n in (7, 6)], "train", corpus="x")
    corpus_of(tmp_path, {"0": turns, "1": turns}, monkeypatch)
    found = words.Words.read(tmp_path, np.arange(7), store)
    parts = found.features(store, np.array([5, 6]), np.array([0, 6, 8]))
    by_name = dict(zip(words.WORD_FEATURES, parts, strict=True))
    shared = by_name["words shared with all five"]
    assert shared[0, 0] > 0 and np.isnan(shared[:, 2]).all()
    assert by_name["capital of the candidate"][0, :2].tolist() == [1, 0]
    assert by_name["question of the last"][0, :2].tolist() == [1, 1]
    assert by_name["length of the writer's last"][1, 0] == 1
    with pytest.raises(ConfigError, match="no known corpus"):
        words.Words.read(tmp_path, np.arange(7), store_in_memory([np.ones((7, DIM))], "train"))


def test_words_help_where_the_vectors_say_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, vocabulary = np.random.default_rng(0), [f"word{n}" for n in range(12)]
    count = 40
    splits = ["train" if i % 2 else "valid" for i in range(count)]
    noise = [rng.standard_normal((12, DIM)) for _ in range(count)]
    store = store_in_memory(noise, splits, corpus="x")
    topics = [rng.choice(vocabulary, 3, replace=False) for _ in range(count)]
    texts = {str(i): [" ".join(rng.permutation(t)) + f" {n}" for n in range(12)]
             for i, t in enumerate(topics)}  # fmt: skip
    corpus_of(tmp_path, texts, monkeypatch)
    rows = ceiling.ceiling(
        store, store, data=tmp_path, windows=100, fit_windows=100, shares=(1.0,), pool=100,
        rounds=10,
    )  # fmt: skip
    found = {row["ranker"]: row["hit10"][0] for row in rows}
    assert found["trees and words"] > found["trees"] + 0.3
    assert found["logit and words"] > found["logit"] + 0.3


def test_a_missing_store_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        ceiling.main(["--store", str(tmp_path / "no"), "--fit-store", str(tmp_path / "no")])
    assert left.value.code and capsys.readouterr().err.count("\n") == 1
