"""Sampling real turns: the same files and seed give the same rows, one a dialogue."""

from __future__ import annotations

import gzip
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner

from trainers.affect.cli import data
from trainers.affect.sample import CORPORA


@pytest.fixture
def corpora(tmp_path: Path) -> Path:
    for corpus in CORPORA:
        folder = tmp_path / "corpora" / corpus.name
        folder.mkdir(parents=True)
        lines = [
            {"doc": f"d{n}", "split": "valid" if n == 0 else "train",
             "turns": ["hello there my friend", "hi", f"how was your day number {n} then"]}
            for n in range(12)
        ]  # fmt: skip
        with gzip.open(folder / "docs.jsonl.gz", "wb") as file:
            file.write(b"\n".join(orjson.dumps(line) for line in lines))
    return tmp_path


def run(corpora: Path, out: Path, *more: str) -> list[dict]:
    done = CliRunner().invoke(
        data, ["sample", "--data", str(corpora), "--count", "10", "--out", str(out), *more]
    )
    assert done.exit_code == 0, done.output
    return [orjson.loads(line) for line in out.read_bytes().splitlines()]


def test_one_turn_a_dialogue_never_from_held_out_dialogues(corpora: Path, tmp_path: Path) -> None:
    rows = run(corpora, tmp_path / "a.jsonl")
    assert len(rows) == 10 and len({row["session_id"] for row in rows}) == 10
    assert not any(row["session_id"].endswith(":d0") for row in rows)
    assert {row["licence"] for row in rows} == {"MIT", "BSD-3-Clause"}
    assert all(len(row["context"]) <= 2 and len(row["text"].split()) >= 3 for row in rows)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(
    corpora: Path, tmp_path: Path
) -> None:
    a, b, c = (tmp_path / name for name in ("a", "b", "c"))
    run(corpora, a)
    run(corpora, b)
    run(corpora, c, "--seed", "2")
    assert a.read_bytes() == b.read_bytes() != c.read_bytes()


def test_a_corpus_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        data, ["sample", "--data", str(tmp_path), "--out", str(tmp_path / "x")]
    )
    assert done.exit_code == 2 and "chitchat_byu" in done.output
