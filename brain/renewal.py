"""Gives old memories vectors of the encoder in use, in idle time.

Memories outlive encoders. Those whose vector is missing, because the encoder was down or late, or
was made by another encoder are found by their words until this work has come to them. It goes in
small batches, each one transaction, and stops as soon as anybody talks: whatever is interrupted or
killed, every memory has one whole vector and the name of what made it, or waits its turn.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence

from brain.errors import ProtocolError, RemoteRejected
from brain.events import Emit
from brain.foresight import Encoded, ForesightClient
from brain.memory import pack
from brain.store import Store

BATCH = 8
DEADLINE_MS = 10_000

Old = tuple[int, str, int, str]  # row, session, turn, text


class Renewal:
    """The work for one brain; whose idle time it uses does not matter."""

    def __init__(
        self, store: Store, foresight: ForesightClient, *, emit: Emit, talking: Callable[[], bool]
    ) -> None:
        """``talking``: whether a turn runs or waits in any session."""
        self._store = store
        self._foresight = foresight
        self._emit = emit
        self._talking = talking
        self._task: asyncio.Task[object] | None = None
        self._refused: set[tuple[str, int]] = set()

    def interrupt(self) -> None:
        """Somebody talks: end ``run`` where it is. The next idle time goes on from there."""
        if self._task is not None:
            self._task.cancel()

    async def run(self) -> None:
        """Renew until nothing is left, somebody talks, or the encoder fails. One at a time.

        Raises:
            RemoteError, SidecarError, StoreError: what was renewed before stays.
        """
        if self._task is not None or not self._foresight.encoder:
            return
        self._task = asyncio.current_task()
        encoder, renewed = self._foresight.encoder, 0
        try:
            while not self._talking() and self._foresight.encoder == encoder:
                refused = [row for name, row in self._refused if name == encoder]
                batch = await self._store.run(_stale, encoder, refused)
                if not batch:
                    return
                renewed += await self._renew(batch)
        finally:
            self._task = None
            if renewed:
                self._emit("memories_renewed", memories=renewed, encoder=encoder)

    async def _renew(self, batch: Sequence[Old]) -> int:
        """How many were renewed. One text that the encoder refuses does not hold up the others."""
        try:
            return await self._encode(batch)
        except (ProtocolError, RemoteRejected) as error:
            problem = error
        renewed, refused = 0, []
        for one in batch if len(batch) > 1 else ():
            try:
                renewed += await self._encode([one])
            except (ProtocolError, RemoteRejected) as error:
                problem = error
                refused.append(one)
        if not renewed:
            raise problem  # it is not the texts
        for row, session_id, seq, _ in refused:
            self._refused.add((self._foresight.encoder, row))
            self._emit("memory_not_encoded", session_id=session_id, seq=seq, error=str(problem))
        return renewed

    async def _encode(self, batch: Sequence[Old]) -> int:
        texts = [text for *_, text in batch]
        encoded = await self._foresight.encode(texts, turn_id="", deadline_ms=DEADLINE_MS)
        return await self._store.run(_replace, batch, encoded)


def _stale(connection: sqlite3.Connection, encoder: str, refused: Sequence[int]) -> list[Old]:
    # Ranges instead of "is not": the index finds them, and an up-to-date store is not read.
    marks = ",".join("?" * len(refused))
    return connection.execute(
        "SELECT id, session_id, seq, text FROM memories"
        " WHERE (encoder IS NULL OR encoder < ? OR encoder > ?)"
        f" AND id NOT IN ({marks}) LIMIT ?",
        (encoder, encoder, *refused, BATCH),
    ).fetchall()


def _replace(connection: sqlite3.Connection, batch: Sequence[Old], encoded: Encoded) -> int:
    """Only what is still there: a memory may have been forgotten meanwhile, and its row reused."""
    changed = 0
    for (row, session_id, seq, text), vector in zip(batch, encoded.vectors, strict=True):
        changed += connection.execute(
            "UPDATE memories SET encoder=?, vector=?"
            " WHERE id=? AND session_id=? AND seq=? AND text=?",
            (encoded.encoder, pack(vector), row, session_id, seq, text),
        ).rowcount
    return changed
