"""SQLite: sessions, turns, state, memories. WAL mode, one connection, one thread.

The promise, tested by killing the process at every write: *a user message is durable before any
model sees it; a reply that was shown complete, its affect and the state after it are one
transaction; nothing else is promised.* ``synchronous=FULL`` makes every commit an fsync.

After an input/output error the connection is not trusted again: it is closed, and the next call
reopens the file and checks it before anything is acknowledged (a failed fsync may have dropped
pages that a second fsync would report as written).

Requests that wait together share one transaction, and so one fsync (group commit): each in a
savepoint of its own, acknowledged only after the common commit. When the shared transaction fails,
each is tried again alone, so that one request's trouble stays its own.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

from brain import store_sql as sql
from brain.errors import DiskFull, StoreError
from brain.events import Emit, discard
from brain.schema import Affect
from brain.store_file import open_database, own
from brain.store_sql import NewMemory, SessionRecord, StoredTurn, TurnCommit

LATER_S = 1.0
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Request:
    """Work for the database thread, and what became of it."""

    work: Callable[[sqlite3.Connection], Any]
    answer: asyncio.Future[Any]
    value: Any = None
    error: BaseException | None = None


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
        self._released = False
        self._waiting: deque[_Request] = deque()
        self._scheduled = False
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
        """Finish what is queued, checkpoint, release the directory; what comes later is refused.
        Idempotent."""
        if self._closed:
            return
        self._closed = True
        loop = asyncio.get_running_loop()
        self._submit(loop)
        released = loop.run_in_executor(self._thread, self._close_in_thread)
        self._thread.shutdown(wait=False)
        await asyncio.shield(released)

    async def run(
        self, work: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kw: P.kwargs
    ) -> T:
        """Run ``work(connection, …)`` in the database thread; all of it is kept, or nothing.

        ``work`` must not begin or end a transaction itself.

        Raises:
            DiskFull, StoreError: nothing of ``work`` was kept.
        """
        if self._closed:
            raise StoreError("the store is closed")
        loop = asyncio.get_running_loop()
        request = _Request(lambda connection: work(connection, *args, **kw), loop.create_future())
        self._waiting.append(request)
        if not self._scheduled:
            # One pass of the loop later, so that what is ready now joins the same transaction.
            self._scheduled = True
            loop.call_soon(self._submit, loop)
        value: T = await request.answer
        return value

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

    async def add_late_affect(
        self, session_id: str, seq: int, affect: Affect, *, memory: NewMemory | None = None
    ) -> bool:
        """Attribute affect that came late to its own turn, with the memory that it leaves.

        False, and nothing kept, when that turn has some already or is no part of history.
        """
        return await self.run(sql.add_late_affect, session_id, seq, affect, memory)

    async def add_late_vector(
        self, session_id: str, seq: int, *, encoder: str, vector: bytes, foresight: bytes
    ) -> bool:
        """Attribute a vector that came late to its own turn: its memory, unless that has one, and
        what foresight remembers with it.

        False, and nothing kept, when that turn is no part of history.
        """
        return await self.run(sql.add_late_vector, session_id, seq, encoder, vector, foresight)

    async def set_foresight(self, session_id: str, foresight: bytes) -> None:
        """What foresight remembers, with the vector it expects next.

        Not worth a commit of its own, like ``set_tokens``: if it is lost, one surprise is not
        measured.
        """
        self._later(
            sql.execute,
            "UPDATE sessions SET foresight=? WHERE session_id=?",
            (foresight, session_id),
        )

    async def set_tokens(self, session_id: str, seq: int, tokens: int) -> None:
        """Real token count of a turn, once the model has counted it.

        Not worth a commit of its own: it joins the next request's, or is written a second later.
        If it is lost, the estimate that came with the turn stays.
        """
        self._later(
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

    async def undo(
        self,
        session_id: str,
        *,
        rewound: Callable[[bytes | None, int], bytes | None] = lambda foresight, seq: None,
    ) -> StoredTurn | None:
        """Take the last committed turn back, with its memory; returns it, or ``None``.

        ``rewound(foresight, seq)`` is what foresight remembers without that turn.
        """
        return await self.run(sql.undo, session_id, rewound)

    async def sessions(self) -> list[tuple[str, str, int, float]]:
        """(session id, persona, committed turns, last time) of every session, newest first."""
        return await self.run(sql.sessions)

    async def check(self) -> str:
        """``ok``, or what SQLite's quick check found."""
        return await self.run(lambda c: str(c.execute("PRAGMA quick_check").fetchone()[0]))

    def _later(
        self, work: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kw: P.kwargs
    ) -> None:
        """Like ``run``, with the next request; nobody waits, and a failure is only emitted."""
        if self._closed:
            return
        loop = asyncio.get_running_loop()
        request = _Request(lambda connection: work(connection, *args, **kw), loop.create_future())
        request.answer.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._waiting.append(request)
        if not self._scheduled:
            loop.call_later(LATER_S, self._submit, loop)

    def _submit(self, loop: asyncio.AbstractEventLoop) -> None:
        self._scheduled = False
        if not self._waiting:
            return
        try:
            self._thread.submit(self._serve, loop)
        except RuntimeError:  # the thread takes no more work: the interpreter ends
            batch = [*self._waiting]
            self._waiting.clear()
            for request in batch:
                request.error = StoreError("the store is closed")
            _deliver(batch)

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        """In the database thread: everything that waits, in order."""
        batch: list[_Request] = []
        while self._waiting:
            request = self._waiting.popleft()
            if not request.answer.cancelled():
                batch.append(request)
        if not batch:
            return
        unserved = batch.copy()
        try:
            if len(batch) > 1 and self._together(batch):
                unserved.clear()
            while unserved:
                self._alone(unserved[0])
                del unserved[0]
        except BaseException as error:  # whatever it is, somebody waits for an answer
            for request in unserved:
                request.error = StoreError(f"the database thread failed: {error!r:.200}")
                request.error.__cause__ = error
        with suppress(RuntimeError):  # the loop has closed: nobody waits for an answer
            loop.call_soon_threadsafe(_deliver, batch)

    def _together(self, batch: list[_Request]) -> bool:
        """One transaction for all; false when it failed and nothing of it was kept."""
        try:
            connection = self._connect()
            connection.execute("BEGIN IMMEDIATE")
            try:
                for request in batch:
                    connection.execute("SAVEPOINT request")
                    try:
                        request.value = request.work(connection)
                    except sqlite3.Error:
                        raise
                    except Exception as error:
                        request.error = error
                        connection.execute("ROLLBACK TO request")
                    connection.execute("RELEASE request")
                connection.commit()
            except BaseException:
                connection.rollback()
                raise
        except Exception as error:
            if isinstance(error, sqlite3.Error):
                self._translate(error)  # a connection that lost a write is not used again
            for request in batch:
                request.value = request.error = None
            return False
        return True

    def _alone(self, request: _Request) -> None:
        """A transaction of its own."""
        try:
            connection = self._connect()
            with connection:
                request.value = request.work(connection)
        except sqlite3.Error as error:
            request.error = self._translate(error)
            request.error.__cause__ = error
        except Exception as error:
            request.error = error

    def _connect(self) -> sqlite3.Connection:
        if self._released:
            raise StoreError("the store is closed")
        if self._connection is None:
            try:
                self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                if self._lock_fd is None:
                    self._lock_fd = own(self.directory)
                self._connection = open_database(self.path)
            except OSError as error:
                raise StoreError(
                    f"cannot use the data directory {self.directory}: {error.strerror}; "
                    "set paths.data to a writable one"
                ) from error
            if self._statement_hook is not None:
                self._connection.set_trace_callback(self._statement_hook)
        return self._connection

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
        self._released = True  # who came too late must not take the directory again
        self._drop_connection()
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None


def _deliver(batch: list[_Request]) -> None:
    for request in batch:
        if request.answer.done():  # cancelled meanwhile
            continue
        if request.error is not None:
            request.answer.set_exception(request.error)
        else:
            request.answer.set_result(request.value)
