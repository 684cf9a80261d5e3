"""From corpus to store: cleaning, near-copies, interruption, refusals."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from tests.fakes.lvm_worlds import HashEncoder
from trainers.lvm.cli import cli
from trainers.lvm.corpora import Corpus, load_corpora, read_documents, split_of
from trainers.lvm.errors import CorpusError, VectorError, VectorStoreError
from trainers.lvm.store import VectorStore, unit
from trainers.lvm.vectors import build_store, near_copies

WORDS = ["amber", "birch", "cedar", "delta", "ember", "flint", "grove", "haven"]


def corpus(**changes: Any) -> Corpus:
    entry = {"path": "docs.jsonl.gz", "field": "turns", "kind": "dialogue", "licence": "MIT"}
    return Corpus.model_validate(entry | changes)


def write(folder: Path, records: list[dict[str, Any]] | str) -> None:
    text = records if isinstance(records, str) else "\n".join(json.dumps(r) for r in records) + "\n"
    with gzip.open(folder / "docs.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(text)


def dialogues(count: int = 6) -> list[dict[str, Any]]:
    return [
        {
            "doc": f"d{i}",
            "split": "valid" if i % 3 == 0 else "train",
            "turns": [f"{word} number {i}" for word in WORDS],
        }
        for i in range(count)
    ]


def test_the_corpus_own_splits_are_kept(tmp_path: Path) -> None:
    write(tmp_path, dialogues())
    store = build_store("c", corpus(), tmp_path, tmp_path / "out", HashEncoder())
    assert store.splits == {"valid": 2, "train": 4}
    assert len(store.vectors) == 48
    assert store.vectors.dtype == np.float16
    assert store.encoder_sha256 == "f" * 64


def test_a_corpus_without_splits_is_split_by_document_the_same_every_time(tmp_path: Path) -> None:
    write(tmp_path, [{"doc": f"d{i}", "turns": ["hello there"]} for i in range(200)])
    splits = [d.split for d in read_documents(corpus(), tmp_path)]
    assert splits == [split_of(f"d{i}") for i in range(200)]
    assert 2 <= splits.count("valid") <= 25


def test_blemishes_are_left_out(tmp_path: Path) -> None:
    wiki = load_corpora()["wikipedia_en_2018"].model_copy(update={"path": "docs.jsonl.gz"})
    good = "The river runs through four towns."
    texts = [
        good,
        "Where formula_12 is the mass of it.",
        "The county has more than  roads in all.",
        "Too short.",
        "long " * 81,
        good.upper(),
        "It ends in a wide delta.",
    ]
    write(tmp_path, [{"doc": "1", "split": "train", "sents": texts}])
    (document,) = read_documents(wiki, tmp_path)
    assert document.texts == (good, "It ends in a wide delta.")


def test_people_may_say_yes_twice_but_not_in_a_row(tmp_path: Path) -> None:
    write(tmp_path, [{"doc": "1", "turns": ["yes", "Yes", " ", "really?", "yes"]}])
    (document,) = read_documents(corpus(), tmp_path)
    assert document.texts == ("yes", "really?", "yes")


def test_near_copies_of_a_kept_row_go_and_a_chain_does_not_take_all() -> None:
    angle = np.arange(0, 60, 15) * np.pi / 180  # neighbours at .966, every second one at .866
    rows = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    assert near_copies(rows, 0.95).tolist() == [True, False, True, False]


def test_a_repeat_in_a_document_is_left_out_of_the_store(tmp_path: Path) -> None:
    write(tmp_path, [{"doc": "1", "split": "train", "turns": ["yes", "really?", "yes"]}])
    store = build_store("c", corpus(), tmp_path, tmp_path / "out", HashEncoder())
    assert len(store.vectors) == 2
    assert store.manifest["near_copies"] == 1


def test_one_split_alone_holds_what_the_whole_store_holds_of_it(tmp_path: Path) -> None:
    records = [*dialogues(), {"doc": "x", "split": "valid", "turns": ["amber number 1", "novel"]}]
    write(tmp_path, records)
    once = corpus(unique="corpus")  # a text of an earlier training document counts as seen
    whole = build_store("c", once, tmp_path, tmp_path / "whole", HashEncoder())
    part = build_store("c", once, tmp_path, tmp_path / "part", HashEncoder(), split="valid")
    assert {d.id for d in part.documents} == {"d0", "d3", "x"}
    rows = [whole.vectors[d.start : d.stop] for d in whole.documents if d.split == "valid"]
    assert np.array_equal(part.vectors, np.concatenate(rows))
    assert len(part.vectors) == 17


def test_an_interrupted_build_leaves_no_store_and_goes_on_where_it_was(tmp_path: Path) -> None:
    write(tmp_path, dialogues())
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        build_store("c", corpus(), tmp_path, out, HashEncoder(fail_after=2), part_texts=16)
    assert not out.exists()
    with pytest.raises(VectorStoreError):
        VectorStore.open(out)
    again = HashEncoder()
    resumed = build_store("c", corpus(), tmp_path, out, again, part_texts=16)
    whole = build_store("c", corpus(), tmp_path, tmp_path / "b", HashEncoder(), part_texts=16)
    assert again.calls == 1
    assert np.array_equal(resumed.vectors, whole.vectors)
    assert resumed.documents == whole.documents
    assert sorted(p.name for p in out.iterdir()) == ["manifest.json", "vectors.npy"]
    assert not (tmp_path / "out.building").exists()


def test_an_unfinished_build_with_other_settings_is_not_mixed_in(tmp_path: Path) -> None:
    write(tmp_path, dialogues())
    with pytest.raises(KeyboardInterrupt):
        build_store(
            "c", corpus(), tmp_path, tmp_path / "out", HashEncoder(fail_after=1), part_texts=16
        )
    other = HashEncoder()
    other.sha256 = "0" * 64
    with pytest.raises(VectorStoreError, match="another encoder_sha256"):
        build_store("c", corpus(), tmp_path, tmp_path / "out", other, part_texts=16)


def test_an_existing_store_is_not_overwritten(tmp_path: Path) -> None:
    write(tmp_path, dialogues())
    build_store("c", corpus(), tmp_path, tmp_path / "out", HashEncoder())
    with pytest.raises(VectorStoreError, match="exists already"):
        build_store("c", corpus(), tmp_path, tmp_path / "out", HashEncoder())


def test_an_encoder_that_gives_nan_stops_the_build(tmp_path: Path) -> None:
    write(tmp_path, dialogues())
    with pytest.raises(VectorError, match="NaN"):
        build_store("c", corpus(), tmp_path, tmp_path / "out", HashEncoder(nan=True))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"doc": "1", "text": "a flat text"}\n', "no document boundaries"),
        ('["just", "texts"]\n', "no document boundaries"),
        ("not json\n", "not JSON"),
        ('{"doc": "1", "turns": ["a", 3]}\n', "not text"),
        ('{"doc": "1", "turns": ["a \\ud83d b"]}\n', ":1: 'turns' holds half a character"),
        ('{"doc": "1", "turns": ["a"], "split": "later"}\n', "unknown split"),
        ('{"doc": "1", "turns": ["a"]}\n{"doc": "1", "turns": ["b"]}\n', "twice"),
    ],
)
def test_a_bad_corpus_is_refused_by_line(tmp_path: Path, content: str, says: str) -> None:
    write(tmp_path, content)
    with pytest.raises(CorpusError, match=says):
        list(read_documents(corpus(), tmp_path))


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    write(tmp_path, dialogues(50))
    path = tmp_path / "docs.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CorpusError, match="cannot be read"):
        list(read_documents(corpus(), tmp_path))


def test_a_missing_data_folder_says_where_to_name_it(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="LIMBIC_DATA"):
        list(read_documents(corpus(), tmp_path))


def test_an_unknown_corpus_is_a_usage_error(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["vectors", "--corpus", "x", "--out", str(tmp_path / "o")])
    assert result.exit_code == 2
    assert "chitchat_byu" in result.output


def test_vectors_are_stored_at_unit_norm(tmp_path: Path) -> None:
    class Long(HashEncoder):
        def encode(self, texts: list[str]) -> np.ndarray:
            return 3 * super().encode(texts)

    write(tmp_path, dialogues())
    store = build_store("c", corpus(), tmp_path, tmp_path / "out", Long())
    raw = np.asarray(store.vectors, dtype=np.float32)
    assert np.allclose(raw, unit(raw), atol=1e-3)
