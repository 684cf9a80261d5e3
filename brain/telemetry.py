"""The event log and the live snapshot.

``emit`` costs an append to a list: lines are rendered and written by one thread, in batches, so no
turn ever waits for a disk. What does not fit the bounded queue, or no line can hold, is dropped and
counted; a log that cannot be written makes the snapshot ``degraded`` and nothing else. Users' words
are kept only when ``telemetry.log_text`` says so; otherwise they are replaced by their length and a
hash.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import structlog

from brain.clock import Clock
from brain.logfiles import LogFile
from brain.redact import scrub, scrub_all
from brain.schema import Affect, Foresight
from brain.settings import TelemetrySettings
from brain.snapshot import Snapshot
from brain.turn import Turn

FLUSH_S = 0.1
SUBSCRIBER_QUEUE = 256
FILES = ("events.jsonl", "turns.jsonl", "affect_head_raw.jsonl", "affect_head_readable.log")
TEXT_FIELDS = frozenset({"text", "reply", "user_text", "recalled_text"})

Line = tuple[str, dict[str, Any]]
Subscription = asyncio.Queue[bytes | None]


class Telemetry:
    """All sinks of one brain. ``emit`` is thread-safe and never raises."""

    def __init__(
        self,
        settings: TelemetrySettings,
        directory: Path,
        *,
        clock: Clock,
        log_text: bool | None = None,
    ) -> None:
        wanted = settings.log_text if settings.log_text is not None else log_text
        self.log_text = True if wanted is None else wanted
        self.directory = directory
        self.stats = Snapshot(clock)
        self.dropped = 0
        self._settings = settings
        self._clock = clock
        self._pending: deque[Line] = deque()
        self._flush_scheduled = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="limbic-log")
        self._subscribers: set[Subscription] = set()
        self._no_more_subscribers = False
        limit = settings.max_file_mb * 1024 * 1024
        self._files = {
            name: LogFile(directory / name, max_bytes=limit, keep=settings.keep_files)
            for name in FILES
        }
        self._render = structlog.wrap_logger(
            structlog.ReturnLogger(),
            processors=[self._redact, structlog.processors.JSONRenderer(serializer=_to_json)],
            wrapper_class=structlog.BoundLogger,
        )
        self._closed = False

    async def start(self) -> None:
        """Remember the loop; files are opened by the first write."""
        self._loop = asyncio.get_running_loop()
        self.emit("start")

    async def close(self) -> None:
        """Write everything that is pending and stop the thread. Idempotent."""
        if self._closed:
            return
        self.emit("stop")
        self._closed = True
        loop = asyncio.get_running_loop()
        await asyncio.shield(loop.run_in_executor(self._thread, self._write))
        self._thread.shutdown(wait=False)
        for file in self._files.values():
            file.close()

    async def flush(self) -> None:
        """Wait until everything emitted so far is written (tests, diagnostics)."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._write)

    def emit(self, event: str, /, **fields: object) -> None:
        """Record one event; ``brain.events.Emit``."""
        if event.startswith(("late_", "side_")):
            self.stats.note_event(event, fields)
        self._put("events.jsonl", {"event": event, **fields})

    def turn(self, record: Mapping[str, Any], turn: Turn) -> None:
        """The canonical line of a finished turn, and its part of the snapshot."""
        self.stats.note_turn(record, turn)
        words = {"text": turn.text, "reply": turn.reply}
        self._put("turns.jsonl", {"event": "turn", **record, **words})
        self._put(
            "events.jsonl",
            {
                "event": "turn",
                "session_id": turn.session_id,
                "turn_id": turn.turn_id,
                "status": record["status"],
                "first_token_ms": round(turn.timings.get("first_token_ms", 0.0), 1),
                "total_ms": round(turn.timings.get("total_ms", 0.0), 1),
            },
        )

    def affect(
        self, session_id: str, turn_id: str, text: str, affect: Affect, *, late: bool
    ) -> None:
        """One answer of the affect head, for machines and for people. A reason that came with it
        is logged where ``reasoning`` would log it."""
        self.stats.note_affect(session_id, turn_id, affect, late=late)
        if affect.reasoning and not self.log_text:
            affect = affect.model_copy(update={"reasoning": ""})
        self._put(
            "affect_head_raw.jsonl",
            {"event": "affect", "session_id": session_id, "turn_id": turn_id, "text": text,
             "late": late, **affect.model_dump(mode="json")},
        )  # fmt: skip
        self._put(
            "affect_head_readable.log",
            {"turn_id": turn_id, "text": text, "late": late, "affect": affect},
        )

    def surprise(self, turn_id: str, seen: Foresight) -> None:
        """How surprising a message was, where its vector came after its turn."""
        self.stats.note_surprise(seen.surprise)
        self.emit("late_surprise", turn_id=turn_id, surprise=seen.surprise, distance=seen.distance)

    def reasoning(self, session_id: str, turn_id: str, reasoning: str) -> None:
        """Why a message was scored as it was. The words it quotes are the user's, so the log keeps
        it only where it keeps their text."""
        self.stats.note_reasoning(session_id, turn_id, reasoning)
        if self.log_text:
            fields = {"session_id": session_id, "turn_id": turn_id, "reasoning": reasoning}
            self._put("affect_head_raw.jsonl", {"event": "affect_reasoning", **fields})
            self._put("affect_head_readable.log", fields)

    def snapshot(
        self, *, sidecars: Mapping[str, Any], hormones: Mapping[str, float], breaker: str
    ) -> dict[str, Any]:
        """The body of ``GET /telemetry/snapshot``; ``problems`` says what is degraded and why."""
        problems = self.problems()
        return self.stats.render(
            sidecars=sidecars, hormones=hormones, breaker=breaker, problems=problems
        )

    def problems(self) -> list[str]:
        """Why telemetry is degraded; empty when it is not."""
        found = [file.problem for file in self._files.values() if file.problem]
        if self.dropped:
            why = "too many at once, or no line could hold them"
            found.append(f"{self.dropped} events dropped: {why}")
        return found

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[Subscription]:
        """A bounded queue of JSON lines as they are written, ``None`` after the last; a slow reader
        loses the oldest."""
        queue: Subscription = asyncio.Queue(SUBSCRIBER_QUEUE)
        self._subscribers.add(queue)
        if self._no_more_subscribers:
            self.end_subscriptions()
        try:
            yield queue
        finally:
            self._subscribers.discard(queue)

    def end_subscriptions(self) -> None:
        """Nothing more comes for those who listen, nor for whoever subscribes after this."""
        self._no_more_subscribers = True
        for queue in self._subscribers:
            _put_newest(queue, None)
        self._subscribers.clear()  # so that no line takes the place of the end in a full queue

    def _put(self, file: str, fields: dict[str, Any]) -> None:
        if self._closed:
            return
        if len(self._pending) >= self._settings.queue_events:
            self.dropped += 1
            return
        fields["at"] = self._clock.time()
        self._pending.append((file, fields))
        if self._loop is not None and not self._flush_scheduled:
            self._flush_scheduled = True
            try:
                self._loop.call_soon_threadsafe(self._schedule)
            except RuntimeError:  # the loop is closing; close() writes what is left
                self._flush_scheduled = False

    def _schedule(self) -> None:
        assert self._loop is not None
        self._loop.call_later(FLUSH_S, self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        if not self._closed:
            self._thread.submit(self._write)

    def _write(self) -> None:
        batches: dict[str, list[bytes]] = {}
        while True:
            try:
                name, fields = self._pending.popleft()
            except IndexError:
                break
            try:
                line = self._line(name, fields)
            except Exception:  # a value from outside; the others of the batch are good
                self.dropped += 1
            else:
                batches.setdefault(name, []).append(line)
        for name, lines in batches.items():
            self._files[name].write(lines)
        if self._subscribers and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._publish, batches.get("events.jsonl", []))

    def _line(self, name: str, fields: dict[str, Any]) -> bytes:
        fields = {"time": _iso(fields.pop("at")), **fields}
        if name.endswith(".log"):
            return self._readable(fields)
        rendered: bytes = self._render.info(fields.pop("event"), **fields)
        return rendered

    def _readable(self, fields: dict[str, Any]) -> bytes:
        if "affect" not in fields:
            why = f"{fields['time']} {fields['turn_id'][:12]} why: {scrub(fields['reasoning'])!r}"
            return why.encode("utf-8", "replace")
        a: Affect = fields["affect"]
        words = fields["text"] if self.log_text else f"({len(fields['text'])} characters)"
        late = " LATE" if fields["late"] else ""
        line = (
            f"{fields['time']} {fields['turn_id'][:12]}{late}"
            f" V{a.valence:+.2f} I{a.intimacy:+.2f} T{a.tension:+.2f} c{a.confidence:.2f}"
            f" {a.latency_ms:.0f}ms [{' '.join(a.tags)}] {scrub(words)!r} {scrub(a.reasoning)!r}"
        )
        return line.encode("utf-8", "replace")

    def _redact(self, _: Any, __: str, event: Any) -> Any:
        """structlog processor: users' words by setting, secrets always."""
        for key, value in event.items():
            if key in TEXT_FIELDS and isinstance(value, str) and not self.log_text:
                digest = hashlib.sha256(value.encode("utf-8", "replace")).hexdigest()[:16]
                event[key] = {"chars": len(value), "sha256": digest}
            else:
                event[key] = scrub_all(value)
        return event

    def _publish(self, lines: list[bytes]) -> None:
        for queue in self._subscribers:
            for line in lines:
                _put_newest(queue, line)


def _put_newest(queue: Subscription, line: bytes | None) -> None:
    if queue.full():
        queue.get_nowait()
    queue.put_nowait(line)


def _to_json(event: Any, **_: Any) -> bytes:
    return orjson.dumps(event, default=_as_text, option=orjson.OPT_NON_STR_KEYS)


def _as_text(value: object) -> str:
    """What JSON does not know: paths, errors."""
    return scrub(str(value))


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
