"""SQLite: sessions, turns, state, memories. WAL mode, one connection, one thread.

The promise, tested by killing the process at every write: *a user message is durable before any
model sees it; a reply that was shown complete, its affect and the state after it are one
transaction; nothing else is promised.* ``synchronous=FULL`` makes every commit an fsync.

After an input/output error the connection is not trusted again: it is closed, and the next call
reopens the file and checks it before anything is acknowledged (a failed fsync may have dropped
pages that a second fsync would report as written).
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

from brain import store_sql as sql
from brain.errors import DataDirectoryInUse, DiskFull, StoreError
from brain.events import Emit, discard
from brain.schema import Affect
from brain.store_sql import SessionRecord, StoredTurn, TurnCommit

BUSY_TIMEOUT_S = 5.0
P = ParamSpec("P")
T = TypeVar("T")


class Store:
    """One directory's database. Open with ``await Store.open(path)``, close with ``close()``."""

    def __init__(self, directory: Path, emit: Emit) -> None:
        self.directory = directory
        self.path = directory / "limbic.db"
        self._emit = emit
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="limbic-store")
        self._connection: sqlite3.Connection | None = None
        self._lock_fd: int | None = None
        self._closed = False
        self._statement_hook: Callable[[str], object] | None = None

    @classmethod
    async def open(cls, directory: Path, *, emit: Emit = discard) -> Store:
        """Create or open the database in ``directory`` and own it.

        Raises:
            DataDirectoryInUse: another brain has it; the message names its pid.
            StoreError: the directory cannot be created, or the file is damaged or too new.
        """
        store = cls(directory, emit)
        try:
            await store.run(lambda connection: None)
        except BaseException:
            await store.close()
            raise
        return store

    async def close(self) -> None:
        """Finish what is queued, checkpoint, release the directory. Idempotent."""
        if self._closed:
            return
        self._closed = True
        loop = asyncio.get_running_loop()
        await asyncio.shield(loop.run_in_executor(self._thread, self._close_in_thread))
        self._thread.shutdown(wait=False)

    async def run(
        self, work: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kw: P.kwargs
    ) -> T:
        """Run ``work(connection, …)`` in the database thread, as one transaction if it writes.

        Raises:
            DiskFull, StoreError: nothing of ``work`` was kept.
        """
        if self._closed and self._lock_fd is None:
            raise StoreError("the store is closed")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: self._guarded(work, *args, **kw))

    async def load_session(self, session_id: str, *, persona: str, at: float) -> SessionRecord:
        """The session as it was left; a new one with ``persona`` when there is none."""
        return await self.run(sql.load_session, session_id, persona, at)

    async def begin_turn(
        self, session_id: str, turn_id: str, text: str, *, at: float
    ) -> StoredTurn:
        """Make the user's words durable. A finished turn of the same id comes back as stored.

        Raises:
            TurnConflict: the id was used for other words.
        """
        return await self.run(sql.begin_turn, session_id, turn_id, text, at)

    async def finish_turn(self, commit: TurnCommit) -> None:
        """Reply, affect, state, foresight and memory in one transaction."""
        await self.run(sql.finish_turn, commit)

    async def abandon_turn(
        self,
        session_id: str,
        seq: int,
        *,
        status: Literal["cancelled", "failed"],
        reply: str,
        record: dict[str, Any],
        error: str | None,
        at: float,
    ) -> None:
        """Record a turn that did not commit; it is not part of history, the state is untouched."""
        await self.run(sql.abandon_turn, session_id, seq, status, reply, record, error, at)

    async def add_late_affect(self, session_id: str, seq: int, affect: Affect) -> None:
        """Attribute affect that came late to its own turn (unless that turn has some)."""
        await self.run(sql.add_late_affect, session_id, seq, affect)

    async def set_tokens(self, session_id: str, seq: int, tokens: int) -> None:
        """Real token count of a turn, once the model has counted it."""
        await self.run(
            sql.execute,
            "UPDATE turns SET tokens=? WHERE session_id=? AND seq=?",
            (tokens, session_id, seq),
        )

    async def set_history_start(self, session_id: str, start: int) -> None:
        """Remember where the prompt's history begins."""
        await self.run(
            sql.execute,
            "UPDATE sessions SET history_start=? WHERE session_id=?",
            (start, session_id),
        )

    async def set_persona(self, session_id: str, persona: str) -> None:
        """Change who the agent is in a session."""
        await self.run(
            sql.execute, "UPDATE sessions SET persona=? WHERE session_id=?", (persona, session_id)
        )

    async def undo(self, session_id: str) -> StoredTurn | None:
        """Take the last committed turn back, with its memory; returns it, or ``None``."""
        return await self.run(sql.undo, session_id)

    async def sessions(self) -> list[tuple[str, str, int, float]]:
        """(session id, persona, committed turns, last time) of every session, newest first."""
        return await self.run(sql.sessions)

    async def check(self) -> str:
        """``ok``, or what SQLite's quick check found."""
        return await self.run(lambda c: str(c.execute("PRAGMA quick_check").fetchone()[0]))

    def _guarded(self, work: Callable[..., T], *args: Any, **kw: Any) -> T:
        try:
            connection = self._connect()
            with connection:
                return work(connection, *args, **kw)
        except sqlite3.Error as error:
            raise self._translate(error) from error

    def _connect(self) -> sqlite3.Connection:
        if self._connection is not None:
            return self._connection
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._own_directory()
        except OSError as error:
            raise StoreError(
                f"cannot use the data directory {self.directory}: {error.strerror}; "
                "set paths.data to a writable one"
            ) from error
        existed = self.path.exists()
        connection = sqlite3.connect(
            self.path, timeout=BUSY_TIMEOUT_S, check_same_thread=False, isolation_level="IMMEDIATE"
        )
        try:
            if not existed:
                self.path.chmod(0o600)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA foreign_keys=ON")
            if existed:
                found = connection.execute("PRAGMA quick_check").fetchone()[0]
                if found != "ok":
                    raise StoreError(
                        f"{self.path} is damaged ({found}); restore a copy, or move it away to "
                        "start anew"
                    )
            sql.migrate(connection, self.path)
        except BaseException:
            connection.close()
            raise
        if self._statement_hook is not None:
            connection.set_trace_callback(self._statement_hook)
        self._connection = connection
        return connection

    def _own_directory(self) -> None:
        if self._lock_fd is not None:
            return
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(self.directory / "limbic.lock", flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            os.close(fd)
            pid = int(text) if text.isdigit() else None
            raise DataDirectoryInUse(
                f"{self.directory} is in use by another limbic (pid {pid or 'unknown'}); "
                "stop it, or set another paths.data",
                pid=pid,
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._lock_fd = fd

    def _translate(self, error: sqlite3.Error) -> StoreError:
        name = getattr(error, "sqlite_errorname", "") or type(error).__name__
        if name.startswith(("SQLITE_IOERR", "SQLITE_CORRUPT", "SQLITE_NOTADB")):
            self._drop_connection()
        self._emit("store_error", error=name, detail=str(error))
        if name.startswith("SQLITE_FULL") or name.startswith("SQLITE_IOERR"):
            return DiskFull(
                f"the disk under {self.directory} refused a write ({name}); the message was not "
                "accepted, earlier turns are safe. Free some space and send it again"
            )
        return StoreError(f"the database {self.path} refused ({name}): {error}")

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except sqlite3.Error:
                self._emit("store_close_failed")

    def _close_in_thread(self) -> None:
        self._drop_connection()
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    @property
    def thread_alive(self) -> bool:
        """Whether the database thread exists (diagnostics)."""
        return any(t.name.startswith("limbic-store") for t in threading.enumerate())
