"""The vector store: windows, documents, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.fakes.lvm_worlds import drifting_store, write_store
from trainers.lvm.errors import TooFewWindows, VectorError, VectorStoreError
from trainers.lvm.store import VectorStore, store_in_memory


def three_documents() -> VectorStore:
    rng = np.random.default_rng(1)
    return store_in_memory(
        [rng.standard_normal((n, 4)) for n in (7, 5, 6)], ["valid", "valid", "train"]
    )


def test_a_window_lies_within_one_document() -> None:
    store = three_documents()
    assert store.windows("valid").tolist() == [5, 6]
    assert store.windows("train").tolist() == [17]
    for target in (5, 6, 17):
        rows = np.arange(target - 5, target + 1)
        assert len(set(store.document_of(rows).tolist())) == 1


def test_the_context_is_the_five_rows_before_the_target_oldest_first() -> None:
    store = three_documents()
    context = store.contexts(np.array([6]))
    assert np.array_equal(context[0], store.rows(np.arange(1, 6)))


def test_a_split_without_a_long_enough_document_is_refused() -> None:
    store = store_in_memory([np.eye(5)], "valid")
    with pytest.raises(TooFewWindows, match="more than 5"):
        store.windows("valid")


def test_rows_are_unit_norm_in_float32() -> None:
    rows = three_documents().rows(np.arange(18))
    assert rows.dtype == np.float32
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


def test_a_store_on_disk_opens_as_it_was(tmp_path: Path) -> None:
    store = drifting_store(6)
    write_store(store, tmp_path / "s")
    opened = VectorStore.open(tmp_path / "s", encoder_sha256="f" * 64)
    assert np.array_equal(opened.vectors, store.vectors)
    assert opened.documents == store.documents


def test_a_store_from_another_encoder_is_refused(tmp_path: Path) -> None:
    write_store(drifting_store(6), tmp_path / "s")
    with pytest.raises(VectorStoreError, match="another encoder"):
        VectorStore.open(tmp_path / "s", encoder_sha256="0" * 64)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"documents": []}, "no document boundaries"),
        ({"dim": 5}, "dimensions"),
        ({"documents": [{"id": "a", "start": 0, "stop": 3, "split": "valid"}]}, "cover 3 rows"),
        ({"documents": [{"id": "a", "start": 2, "stop": 84, "split": "valid"}]}, "expected 0"),
        ({"documents": [{"id": "a"}]}, "malformed"),
    ],
)
def test_a_damaged_manifest_is_refused(
    tmp_path: Path, change: dict[str, object], says: str
) -> None:
    write_store(drifting_store(6), tmp_path / "s")
    path = tmp_path / "s" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(VectorStoreError, match=says):
        VectorStore.open(tmp_path / "s")


def test_an_absent_or_cut_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VectorStoreError, match="no such folder"):
        VectorStore.open(tmp_path / "none")
    (tmp_path / "half").mkdir()
    with pytest.raises(VectorStoreError, match="interrupted"):
        VectorStore.open(tmp_path / "half")
    write_store(drifting_store(6), tmp_path / "s")
    path = tmp_path / "s" / "vectors.npy"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(VectorStoreError, match="cannot be read"):
        VectorStore.open(tmp_path / "s")


def test_nan_is_named_by_its_row() -> None:
    store = three_documents()
    store.vectors[3, 1] = np.nan
    with pytest.raises(VectorError, match="row 3"):
        store.check_finite()
