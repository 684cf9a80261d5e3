"""The statements of the database: records, schema, and pure functions of a connection."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import orjson

from brain.errors import StoreError, TurnConflict
from brain.schema import Affect, Frame
from brain.state import HormoneState

SCHEMA_VERSION = 2
Status = Literal["begun", "done", "partial", "cancelled", "failed", "undone"]

SCHEMA = """
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
"""
# What each version added to the one before. Version 2 finds the memories whose vectors are missing
# or another encoder's without reading them all. In version 1, ``encoder`` was a hash alone, equal
# to no identity of today: those memories are found by their words until they are renewed.
UPGRADES = {
    1: SCHEMA,
    2: "CREATE INDEX IF NOT EXISTS memories_encoder ON memories(encoder);",
}

_TURN = (
    "seq, turn_id, user_text, reply, status, affect_json, state_json, record_json, tokens,"
    " created_at, error"
)
_BEGIN = (
    "INSERT INTO turns (session_id, seq, turn_id, user_text, status, created_at) SELECT ?1,"
    " COALESCE((SELECT MAX(seq) FROM turns WHERE session_id=?1), 0) + 1, ?2, ?3, 'begun', ?4"
    " WHERE true ON CONFLICT (session_id, turn_id) DO NOTHING RETURNING seq"
)


class StoredTurn(Frame):
    """One turn as the database has it."""

    seq: int
    turn_id: str
    user_text: str
    reply: str
    status: Status
    affect: Affect | None
    state: HormoneState | None
    record: dict[str, Any] | None
    tokens: int
    created_at: float
    error: str | None


class SessionRecord(Frame):
    """A session as it was left: persona, state, and the turns that its prompt still holds.

    ``unanswered`` is the last message when the brain ended before its reply was committed.
    """

    session_id: str
    persona: str
    history_start: int
    state: HormoneState | None
    foresight: bytes | None
    turns: tuple[StoredTurn, ...]
    unanswered: str | None = None


class NewMemory(Frame):
    """A user's message worth keeping; ``vector`` is float32 little-endian, and ``encoder`` the
    identity of what made it: both, or neither."""

    text: str
    weight: float
    encoder: str | None = None
    vector: bytes | None = None


class TurnCommit(Frame):
    """Everything that becomes true with a reply; written in one transaction."""

    session_id: str
    seq: int
    status: Literal["done", "partial"]
    reply: str
    affect: Affect | None
    state: HormoneState
    record: dict[str, Any]
    tokens: int
    at: float
    error: str | None = None
    foresight: bytes | None = None
    memory: NewMemory | None = None


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Create the tables in an empty file, or bring an older file up to date, in one transaction;
    refuse a file of a newer version."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{path} was written by a newer limbic (schema {version}, this one knows "
            f"{SCHEMA_VERSION}); upgrade limbic"
        )
    if version < SCHEMA_VERSION:
        steps = "".join(UPGRADES[step] for step in range(version + 1, SCHEMA_VERSION + 1))
        connection.executescript(
            f"BEGIN IMMEDIATE;{steps}PRAGMA user_version={SCHEMA_VERSION};COMMIT;"
        )


def execute(connection: sqlite3.Connection, sql: str, values: tuple[Any, ...]) -> None:
    """One statement, nothing returned."""
    connection.execute(sql, values)


def _turn(row: tuple[Any, ...]) -> StoredTurn:
    seq, turn_id, text, reply, status, affect, state, record, tokens, at, error = row
    return StoredTurn(
        seq=seq, turn_id=turn_id, user_text=text, reply=reply, status=status,
        affect=Affect.model_validate(orjson.loads(affect)) if affect else None,
        state=HormoneState.model_validate(orjson.loads(state)) if state else None,
        record=orjson.loads(record) if record else None, tokens=tokens, created_at=at, error=error,
    )  # fmt: skip


def _json(value: Any) -> str:
    if isinstance(value, Frame | Affect):
        value = value.model_dump(mode="json")
    return orjson.dumps(value).decode()


def load_session(
    connection: sqlite3.Connection, session_id: str, persona: str, at: float
) -> SessionRecord:
    """See ``Store.load_session``."""
    query = "SELECT persona, history_start, state, foresight FROM sessions WHERE session_id=?"
    row = connection.execute(query, (session_id,)).fetchone()
    if row is None:
        connection.execute(
            "INSERT INTO sessions (session_id, persona, created_at) VALUES (?,?,?)",
            (session_id, persona, at),
        )
        row = (persona, 1, None, None)
    turns = connection.execute(
        f"SELECT {_TURN} FROM turns WHERE session_id=? AND seq>=? AND status IN ('done','partial')"
        " ORDER BY seq",
        (session_id, row[1]),
    ).fetchall()
    last = connection.execute(
        "SELECT status, user_text FROM turns WHERE session_id=? ORDER BY seq DESC LIMIT 1",
        (session_id,),
    ).fetchone()
    return SessionRecord(
        session_id=session_id, persona=row[0], history_start=row[1],
        state=HormoneState.model_validate(orjson.loads(row[2])) if row[2] else None,
        foresight=row[3], turns=tuple(_turn(turn) for turn in turns),
        unanswered=last[1] if last is not None and last[0] == "begun" else None,
    )  # fmt: skip


def begin_turn(
    connection: sqlite3.Connection, session_id: str, turn_id: str, text: str, at: float
) -> StoredTurn:
    """See ``Store.begin_turn``."""
    row = connection.execute(_BEGIN, (session_id, turn_id, text, at)).fetchone()
    if row is None:
        found = connection.execute(
            f"SELECT {_TURN} FROM turns WHERE session_id=? AND turn_id=?", (session_id, turn_id)
        ).fetchone()
        turn = _turn(found)
        if turn.user_text != text:
            raise TurnConflict(f"turn id {turn_id} was already used for another message")
        if turn.status in ("done", "partial", "undone"):
            return turn
        connection.execute("DELETE FROM turns WHERE session_id=? AND seq=?", (session_id, turn.seq))
        row = connection.execute(_BEGIN, (session_id, turn_id, text, at)).fetchone()
    seq = row[0]
    return StoredTurn(
        seq=seq, turn_id=turn_id, user_text=text, reply="", status="begun", affect=None, state=None,
        record=None, tokens=0, created_at=at, error=None,
    )  # fmt: skip


def finish_turn(connection: sqlite3.Connection, c: TurnCommit) -> None:
    """See ``Store.finish_turn``."""
    state = _json(c.state)
    connection.execute(
        "UPDATE turns SET reply=?, status=?, affect_json=?, state_json=?, record_json=?, tokens=?,"
        " finished_at=?, error=? WHERE session_id=? AND seq=?",
        (c.reply, c.status, _json(c.affect) if c.affect else None, state, _json(c.record),
         c.tokens, c.at, c.error, c.session_id, c.seq),
    )  # fmt: skip
    connection.execute(
        "UPDATE sessions SET state=?, foresight=COALESCE(?, foresight) WHERE session_id=?",
        (state, c.foresight, c.session_id),
    )
    if c.memory is not None:
        _keep(connection, c.session_id, c.seq, c.memory, c.at)


def _keep(
    connection: sqlite3.Connection, session_id: str, seq: int, memory: NewMemory, at: float
) -> None:
    """One memory a turn; what is learnt later can make it weigh more, never less."""
    connection.execute(
        "INSERT INTO memories (session_id, seq, text, weight, created_at, encoder, vector)"
        " VALUES (?,?,?,?,?,?,?)"
        " ON CONFLICT (session_id, seq) DO UPDATE SET weight=MAX(weight, excluded.weight)",
        (session_id, seq, memory.text, memory.weight, at, memory.encoder, memory.vector),
    )


def abandon_turn(
    connection: sqlite3.Connection, session_id: str, seq: int, status: str, reply: str,
    record: dict[str, Any], error: str | None, at: float,
) -> None:  # fmt: skip
    """See ``Store.abandon_turn``."""
    connection.execute(
        "UPDATE turns SET status=?, reply=?, record_json=?, error=?, finished_at=?"
        " WHERE session_id=? AND seq=? AND status='begun'",
        (status, reply, _json(record), error, at, session_id, seq),
    )


def add_late_affect(
    connection: sqlite3.Connection, session_id: str, seq: int, affect: Affect,
    memory: NewMemory | None,
) -> bool:  # fmt: skip
    """See ``Store.add_late_affect``."""
    row = connection.execute(
        "UPDATE turns SET affect_json=?, affect_late=1 WHERE session_id=? AND seq=?"
        " AND affect_json IS NULL AND status IN ('done','partial') RETURNING finished_at",
        (_json(affect), session_id, seq),
    ).fetchone()
    if row is not None and memory is not None:
        _keep(connection, session_id, seq, memory, row[0])
    return row is not None


def add_late_vector(
    connection: sqlite3.Connection, session_id: str, seq: int, encoder: str, vector: bytes,
    foresight: bytes,
) -> bool:  # fmt: skip
    """See ``Store.add_late_vector``."""
    found = connection.execute(
        "SELECT 1 FROM turns WHERE session_id=? AND seq=? AND status IN ('done','partial')",
        (session_id, seq),
    ).fetchone()
    if found is None:
        return False
    connection.execute(
        "UPDATE memories SET encoder=?, vector=? WHERE session_id=? AND seq=? AND vector IS NULL",
        (encoder, vector, session_id, seq),
    )
    execute(
        connection, "UPDATE sessions SET foresight=? WHERE session_id=?", (foresight, session_id)
    )
    return True


def undo(
    connection: sqlite3.Connection, session_id: str,
    rewound: Callable[[bytes | None, int], bytes | None],
) -> StoredTurn | None:  # fmt: skip
    """See ``Store.undo``."""
    row = connection.execute(
        f"SELECT {_TURN} FROM turns WHERE session_id=? AND status IN ('done','partial')"
        " ORDER BY seq DESC LIMIT 1",
        (session_id,),
    ).fetchone()
    if row is None:
        return None
    turn = _turn(row)
    connection.execute(
        "UPDATE turns SET status='undone' WHERE session_id=? AND seq=?", (session_id, turn.seq)
    )
    connection.execute("DELETE FROM memories WHERE session_id=? AND seq=?", (session_id, turn.seq))
    (foresight,) = connection.execute(
        "SELECT foresight FROM sessions WHERE session_id=?", (session_id,)
    ).fetchone()
    connection.execute(
        "UPDATE sessions SET foresight=?2, state=(SELECT state_json FROM turns"
        " WHERE session_id=?1 AND status IN ('done','partial') ORDER BY seq DESC LIMIT 1)"
        " WHERE session_id=?1",
        (session_id, rewound(foresight, turn.seq)),
    )
    return turn


def sessions(connection: sqlite3.Connection) -> list[tuple[str, str, int, float]]:
    """See ``Store.sessions``."""
    return connection.execute(
        "SELECT s.session_id, s.persona, COUNT(t.seq), COALESCE(MAX(t.finished_at), s.created_at)"
        " FROM sessions s LEFT JOIN turns t ON t.session_id = s.session_id"
        " AND t.status IN ('done','partial') GROUP BY s.session_id ORDER BY 4 DESC"
    ).fetchall()
