"""Opening a data directory of an earlier version: nothing in it is lost."""

from __future__ import annotations

import asyncio
import sqlite3
import struct
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from brain.foresight_state import UNKNOWN_ENCODER, restored
from brain.memory import Memory, pack
from brain.settings import MemorySettings
from brain.store import Store
from brain.store_sql import SCHEMA_VERSION
from tests.conftest import OpenLimbic, idle, log_lines
from tests.fakes.llm_server import FakeLLM
from tests.fakes.side_server import FakeSide, embedding
from tests.test_store import MODEL, ROOT

# The schema of version 1, as it was.
SCHEMA_1 = """
CREATE TABLE IF NOT EXISTS sessions (
    session_id TEXT PRIMARY KEY, persona TEXT NOT NULL, created_at REAL NOT NULL,
    history_start INTEGER NOT NULL DEFAULT 1, state TEXT, foresight BLOB
) STRICT;
CREATE TABLE IF NOT EXISTS turns (
    session_id TEXT NOT NULL, seq INTEGER NOT NULL, turn_id TEXT NOT NULL,
    user_text TEXT NOT NULL, reply TEXT NOT NULL DEFAULT '', status TEXT NOT NULL,
    affect_json TEXT, affect_late INTEGER NOT NULL DEFAULT 0, state_json TEXT, record_json TEXT,
    tokens INTEGER NOT NULL DEFAULT 0, created_at REAL NOT NULL, finished_at REAL, error TEXT,
    PRIMARY KEY (session_id, seq), UNIQUE (session_id, turn_id)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS memories (
    id INTEGER PRIMARY KEY, session_id TEXT NOT NULL, seq INTEGER NOT NULL, text TEXT NOT NULL,
    weight REAL NOT NULL, created_at REAL NOT NULL, encoder TEXT, vector BLOB,
    UNIQUE (session_id, seq)
) STRICT;
CREATE VIRTUAL TABLE IF NOT EXISTS memories_fts USING fts5(
    text, content='memories', content_rowid='id', tokenize='porter unicode61');
CREATE TRIGGER IF NOT EXISTS memories_ai AFTER INSERT ON memories BEGIN
    INSERT INTO memories_fts(rowid, text) VALUES (new.id, new.text); END;
CREATE TRIGGER IF NOT EXISTS memories_ad AFTER DELETE ON memories BEGIN
    INSERT INTO memories_fts(memories_fts, rowid, text) VALUES ('delete', old.id, old.text); END;
PRAGMA user_version=1;
"""
DOG = "My dog Rex died last winter and I still miss him"
JOB = "I started a new job at the bakery on Monday"
TABLES = ("sessions", "turns", "memories")


def version_1(directory: Path, *, dim: int = 8) -> dict[str, list[tuple[object, ...]]]:
    """A data directory as version 1 left it; every row of it, by table."""
    directory.mkdir(parents=True)
    state = MODEL.initial(2.0).model_dump_json()
    floats = [*embedding(DOG, dim), *embedding(JOB, dim), *embedding("?", dim), 0.5, 0.7]
    foresight = struct.pack("<2sBBBHH", b"FS", 1, 2, 1, 2, dim)
    foresight += struct.pack(f"<{3 * dim + 2}f", *floats)
    with closing(sqlite3.connect(directory / "limbic.db")) as connection:
        connection.executescript(SCHEMA_1)
        connection.execute(
            "INSERT INTO sessions VALUES ('default', 'companion', 0.0, 3, ?, ?)", (state, foresight)
        )
        for seq, text in enumerate((DOG, JOB, "good night"), start=1):
            connection.execute(
                "INSERT INTO turns VALUES ('default', ?, ?, ?, 'yes', 'done', NULL, 0, ?, '{}', 7,"
                " ?, ?, NULL)",
                (seq, f"t{seq}", text, state, float(seq), float(seq)),
            )
        sha = "34e9" * 16
        for seq, text, encoder in ((1, DOG, sha), (2, JOB, None)):
            vector = pack(tuple(embedding(text, dim))) if encoder else None
            connection.execute(
                "INSERT INTO memories (session_id, seq, text, weight, created_at, encoder, vector)"
                " VALUES ('default', ?, ?, 0.9, ?, ?, ?)",
                (seq, text, float(seq), encoder, vector),
            )
        connection.commit()
        return rows(connection)


def rows(connection: sqlite3.Connection) -> dict[str, list[tuple[object, ...]]]:
    return {
        table: connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()
        for table in TABLES
    }


async def test_every_row_of_version_1_is_there_after_the_upgrade(tmp_path: Path) -> None:
    before = version_1(tmp_path / "data")
    store = await Store.open(tmp_path / "data")
    assert await store.run(rows) == before
    version = await store.run(lambda c: c.execute("PRAGMA user_version").fetchone()[0])
    assert version == SCHEMA_VERSION == 2
    assert await store.check() == "ok"
    found = await Memory(MemorySettings(), store).recall("default", "Rex", before_seq=3, at=9.0)
    assert [(one.text, one.by) for one in found] == [(DOG, "words")]
    record = await store.load_session("default", persona="maverick", at=9.0)
    assert (record.persona, [turn.user_text for turn in record.turns]) == (
        "companion", ["good night"],
    )  # fmt: skip
    assert restored(record.foresight).encoder == UNKNOWN_ENCODER
    await store.close()
    again = await Store.open(tmp_path / "data")  # and it is not upgraded twice
    assert await again.run(rows) == before
    await again.close()


async def test_the_chat_goes_on_and_gives_the_old_memories_vectors(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic, tmp_path: Path
) -> None:
    version_1(tmp_path / "data")
    side.encoder = "34e9" * 16
    async with open_limbic(llm, side, BLEND__SOFT_DEADLINE_MS=5_000) as limbic:
        turn = limbic.session().say("I saw a dog like Rex")
        await turn
        await idle(limbic)
        assert turn.recalled == (DOG,), "by its words"
        assert turn.foresight is not None and turn.foresight.distance is None
        kept = (await limbic.parts.store.run(rows))["memories"]
        for _, _, _, text, _, _, encoder, vector in kept:
            assert encoder == f"fake:{side.encoder}:8"
            assert vector == pack(tuple(embedding(str(text), 8)))
        assert {str(row[3]) for row in kept} >= {DOG, JOB}
    events = log_lines(limbic, "events.jsonl")
    resets = [row["before"] for row in events if row["event"] == "foresight_reset"]
    assert resets == [UNKNOWN_ENCODER]


@pytest.mark.parametrize("kill_at", [1, 2, 3, 4, 5, 6])
def test_an_upgrade_that_is_killed_leaves_the_old_file_or_the_new_one(
    tmp_path: Path, kill_at: int
) -> None:
    before = version_1(tmp_path / "data")
    script = (
        "import os, signal, sqlite3, sys\n"
        "from pathlib import Path\n"
        "from brain.store_sql import migrate\n"
        "path, kill_at = Path(sys.argv[1]), int(sys.argv[2])\n"
        "connection = sqlite3.connect(path)\n"
        "connection.execute('PRAGMA journal_mode=WAL')\n"
        "seen = 0\n"
        "def trace(statement):\n"
        "    global seen\n"
        "    seen += 1\n"
        "    if seen == kill_at:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "connection.set_trace_callback(trace)\n"
        "migrate(connection, path)\n"
    )
    path = str(tmp_path / "data" / "limbic.db")
    subprocess.run([sys.executable, "-c", script, path, str(kill_at)], cwd=ROOT, check=False)

    async def look() -> None:
        store = await Store.open(tmp_path / "data")
        assert await store.run(rows) == before and await store.check() == "ok"
        await store.close()

    asyncio.run(look())
