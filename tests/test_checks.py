"""Checks that need no running brain: the store is only read, and a model may be a folder."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from brain.errors import EXIT_CONFIG
from brain.settings import PathSettings, Settings
from probes.checks import check_store, check_telemetry
from sidecars.verify import main as verify
from sidecars.weights import WEIGHTS


def test_a_path_with_marks_of_an_address_in_it_is_read_and_nothing_is_created(
    tmp_path: Path,
) -> None:
    data = tmp_path / "a#b?c%41"
    data.mkdir()
    with closing(sqlite3.connect(data / "limbic.db")) as db:
        db.execute("CREATE TABLE turns (turn_id TEXT, status TEXT, finished_at REAL)")
        db.execute("INSERT INTO turns VALUES ('t1', 'done', 1)")
        db.commit()
    (data / "limbic.db").chmod(0o600)
    (data / "turns.jsonl").write_text('{"turn_id": "t1"}\n')
    settings = Settings(paths=PathSettings(data=data, logs=data))
    assert check_store(data / "limbic.db").seen == "1 turns, whole"
    assert check_telemetry(settings).seen == "turns.jsonl has the newest turn"
    assert [path.name for path in tmp_path.iterdir()] == [data.name]


@pytest.mark.parametrize(
    "model", ["lvm_articles", str(WEIGHTS / "cahm"), f"file:{WEIGHTS / 'lvm_dialogue'}"]
)
def test_a_model_folder_is_verified_by_its_manifest(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert verify([model]) == 0
    assert "files as its manifest says" in capsys.readouterr().out


@pytest.mark.parametrize("file", ["model.safetensors", "manifest.json"])
def test_an_altered_model_folder_is_named(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(WEIGHTS / "lvm_articles", folder)
    with (folder / file).open("ab") as altered:
        altered.write(b"x")
    assert verify([str(folder)]) == EXIT_CONFIG
    assert str(folder) in capsys.readouterr().err
