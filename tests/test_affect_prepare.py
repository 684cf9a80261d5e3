"""What ``prepare`` brings besides labelled rows: variants, prose, chat, and every row's text."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.test_affect_head_training import prepared
from trainers.affect.head import prepare, texts
from trainers.affect.head.prepare import _chat, _prose
from trainers.affect.head.texts import Message
from trainers.affect.head.variants import Neighbours, variants


def near() -> Neighbours:
    words = ["love", "hate", "like", "warm", "cold", "##ing", "a", "[CLS]"]
    table = np.random.default_rng(0).normal(size=(len(words), 6)).astype(np.float32)
    return Neighbours({w: i for i, w in enumerate(words)}, table)


def record(text: str, **more: Any) -> dict[str, Any]:
    return {"text": text, "source": "llm_label", "part": "train", "group": "g1",
            "context": ["before"], **more}  # fmt: skip


def test_a_variant_changes_a_word_and_keeps_shape_and_group() -> None:
    found = variants([record('"Love is WARM!')], near(), 40, seed=0)
    assert len({v["text"] for v in found}) == len(found) > 5
    for v in found:
        assert v["part"] == "unlabelled" and v["source"] == "variant" and v["group"] == "g1"
        first, middle, last = v["text"].split()
        assert (first, middle, last) != ('"Love', "is", "WARM!") and middle == "is"
        assert first[0] == '"' and first[1].isupper() and first[2:].islower()
        assert last.isupper() and last.endswith("!")
    assert {bool(v["context"]) for v in found} == {True, False}
    assert variants([record('"Love is WARM!')], near(), 40, seed=0) == found


def test_the_variants_of_a_message_do_not_depend_on_its_neighbours() -> None:
    one, other = record("love is cold"), record("we like warm days")
    together = variants([other, one], near(), 3, seed=0)
    assert together == variants([other], near(), 3, seed=0) + variants([one], near(), 3, seed=0)


def test_only_training_messages_of_the_pool_have_variants() -> None:
    others = [record("love", part="dev"), record("love", part="gold"),
              record("love", source="emobank"), record("nothing known"),
              record(" ".join(["love"] * 61))]  # fmt: skip
    assert variants(others, near(), 5, seed=0) == []


def test_texts_come_back_and_another_sets_are_refused(tmp_path: Path) -> None:
    data, arrays = prepared(per_part=1), tmp_path / "set.npz"
    rows = [{"text": f"t{i}\n", "context": ["a", "b"][: i % 3]} for i in range(len(data.part))]
    texts.write_texts(arrays, data.digest, rows)
    first = texts.texts_file(arrays).read_bytes()
    found = texts.read_texts(arrays, data)
    assert found[2] == Message("t2\n", ("a", "b")) and found[0].context == ()
    texts.write_texts(arrays, data.digest, rows)
    assert texts.texts_file(arrays).read_bytes() == first
    with pytest.raises(ValueError, match="another set"):
        texts.read_texts(arrays, prepared(per_part=2))
    texts.texts_file(arrays).write_bytes(first[:40])
    with pytest.raises(ValueError, match="run prepare again"):
        texts.read_texts(arrays, data)


def test_prose_comes_in_equal_parts_from_training_documents_and_repeats_nothing_known(
    tmp_path: Path,
) -> None:
    files = []
    for name, count in (("books", 40), ("articles", 400)):
        path = tmp_path / f"{name}.jsonl.gz"
        sents = [f"{name} have sentence number {i} too" for i in range(count)]
        docs = [{"split": "train", "sents": [*sents, "too short", "word " * 46]},
                {"split": "valid", "sents": ["this is a valid document's sentence"]},
                {"split": "train", "turns": ["hello"]}]  # fmt: skip
        with gzip.open(path, "wt") as file:
            file.write("".join(json.dumps(doc) + "\n" for doc in docs))
        files.append(path)
    known = {f"books have sentence number {i} too" for i in range(5)}
    found = _prose(files, 60, 0, known)
    texts = [r["text"] for r in found]
    assert len(set(texts)) == len(texts) == 60 and not known & set(texts)
    assert sum(t.startswith("books have sentence") for t in texts) == 30
    assert sum(t.startswith("articles have sentence") for t in texts) == 30
    assert {(r["part"], r["source"], *r["context"]) for r in found} == {("unlabelled", "prose")}
    assert _prose(files, 60, 0, known) == found != _prose(files, 60, 1, known)
    assert len(_prose(files[:1], 60, 0, known)) == 35 and _prose([], 60, 0, known) == []


def test_chat_leaves_out_what_is_measured_on(tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl.gz"
    turns = ["I missed you!", "you did not call me", "sure, i will", "so you say"]
    docs = [{"split": "train", "turns": turns}, {"split": "valid", "turns": ["not for training"]}]
    with gzip.open(path, "wt") as file:
        file.write("".join(json.dumps(doc) + "\n" for doc in docs))
    assert {r["text"] for r in _chat([path], 9, 0, set())} == set(turns)
    found = _chat([path], 9, 0, {"i missed you", "so you say"})
    assert {r["text"] for r in found} == {"you did not call me", "sure, i will"}
    assert {(r["part"], r["source"]) for r in found} == {("unlabelled", "chat")}
    assert found[0]["context"] or found[1]["context"]  # what was said before may be anything
    assert _chat([], 9, 0, {"so you say"}) == []


@pytest.mark.parametrize("content", [b"plain text", gzip.compress(b"[1]"), gzip.compress(b"{")])
def test_a_file_that_holds_no_documents_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "docs.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"docs\.jsonl\.gz: not gzipped JSON lines of documents"):
        _prose([path], 4, 0, set())


def test_a_missing_file_is_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone.jsonl.gz"
    argv = ["--set", str(tmp_path), "--out", str(tmp_path / "a.npz"), "--prose", str(gone)]
    with pytest.raises(SystemExit) as end:
        prepare.main(argv)
    assert end.value.code == 2 and f"{gone}: not found" in capsys.readouterr().err


def test_gold_among_the_training_rows_and_a_folder_without_a_set_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--set", str(tmp_path), "--out", str(tmp_path / "a.npz")]
    assert prepare.main(argv) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}: no training rows; make the set")
    shutil.copy(prepare.POOL / "gold.jsonl", tmp_path / "train.jsonl")
    assert prepare.main(argv) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path}: training rows") and said.count("\n") == 1
    assert not (tmp_path / "a.npz").exists()
