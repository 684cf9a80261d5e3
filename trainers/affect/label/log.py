"""The decision log: one JSON line a decision, appended and never rewritten.

Promise: when `append` returns, the decision is on disk (``fsync``). A process killed in the middle
of a write leaves at most one torn last line; opening the log for writing moves those bytes to
``<log>.torn`` and cuts them off, and every earlier decision is untouched. A broken line anywhere
else is damage, and is refused by name rather than skipped.

One process writes at a time (``flock``). Cost: one ``write`` and one ``fsync`` a call.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self, get_args

import orjson

from trainers.affect.errors import DataError

TOOL = "limbic-label/1"

What = Literal["add", "rater", "label", "skip", "resolve", "drop", "undo", "redo"]
WHATS: tuple[str, ...] = get_args(What)
Slot = Literal["item", "rater", "label", "repeat", "resolution"]
SLOTS: tuple[str, ...] = get_args(Slot)

MAX_LINE_BYTES = 256 * 1024


class LabelError(DataError):
    """A labelling command cannot go on; one line that says what to do."""


class LogDamaged(LabelError):
    """A line before the last is not a decision, or the numbering has a gap."""


class LogBusy(LabelError):
    """Another process has the log open for writing."""


class Clock(Protocol):
    """Returns the time now, UTC. Tests pass their own."""

    def __call__(self) -> datetime: ...


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Decision:
    """One line of the log.

    `before` and `after` are the value of the slot (a row's label by this rater, a resolution, an
    item); the state after a log is the last `after` of each slot. `of` is set on undo and redo: the
    `seq` of the decision that is taken back or made again.
    """

    seq: int
    at: str
    who: str
    what: What
    row: str
    slot: Slot
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None
    guideline: str
    tool: str = TOOL
    of: int | None = None

    def line(self) -> bytes:
        """The canonical form, with its newline: keys sorted, so equal decisions are equal bytes."""
        record: dict[str, Any] = {
            "seq": self.seq,
            "at": self.at,
            "who": self.who,
            "what": self.what,
            "row": self.row,
            "slot": self.slot,
            "before": self.before,
            "after": self.after,
            "guideline": self.guideline,
            "tool": self.tool,
        }
        if self.of is not None:
            record["of"] = self.of
        return orjson.dumps(record, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)


@dataclass(frozen=True, slots=True)
class Draft:
    """A decision before the log gives it a number and a time."""

    who: str
    what: What
    row: str
    slot: Slot
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None
    guideline: str
    of: int | None = None


def parse_decision(line: bytes) -> Decision:
    """One line to a decision. Raises `ValueError` saying what is wrong with it."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error})") from error
    if not isinstance(record, dict):
        raise ValueError("not an object")
    strings = ("at", "who", "what", "row", "slot", "guideline", "tool")
    for key in strings:
        if not isinstance(record.get(key), str):
            raise ValueError(f"{key!r} is missing or not text")
    seq, of = record.get("seq"), record.get("of")
    if type(seq) is not int or seq < 1 or (of is not None and type(of) is not int):
        raise ValueError("'seq' and 'of' must be whole numbers")
    if record["what"] not in WHATS:
        raise ValueError(f"unknown decision {record['what']!r}")
    if record["slot"] not in SLOTS:
        raise ValueError(f"unknown slot {record['slot']!r}")
    for key in ("before", "after"):
        if record.get(key) is not None and not isinstance(record[key], dict):
            raise ValueError(f"{key!r} must be an object or null")
    return Decision(
        seq=seq,
        of=of,
        before=record.get("before"),
        after=record.get("after"),
        **{key: record[key] for key in strings},
    )


def split_torn(data: bytes) -> tuple[bytes, bytes]:
    """The whole lines of a log, and what follows the last newline (empty unless cut short)."""
    end = data.rfind(b"\n") + 1
    return data[:end], data[end:]


def parse_log(data: bytes, source: str) -> list[Decision]:
    """All decisions of `data`, ignoring a torn last line. Raises `LogDamaged` for anything else."""
    whole, _torn = split_torn(data)
    decisions: list[Decision] = []
    for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
        try:
            decision = parse_decision(line)
        except ValueError as error:
            raise LogDamaged(
                f"{source}:{number}: {error}; restore the log from a copy, it is never edited"
            ) from error
        if decision.seq != number:
            raise LogDamaged(
                f"{source}:{number}: decision {decision.seq} instead of {number}; lines are missing"
            )
        decisions.append(decision)
    return decisions


def read_log(path: Path) -> list[Decision]:
    """Decisions of a log file, without changing it; safe while another process appends."""
    try:
        return parse_log(path.read_bytes(), str(path))
    except FileNotFoundError as error:
        raise LabelError(
            f"{path}: no such log; 'limbic label import' or a session makes one"
        ) from error
    except OSError as error:
        raise LabelError(f"{path}: cannot read it: {error.strerror or error}") from error


class DecisionLog:
    """A log open for appending. Use as a context manager."""

    def __init__(self, path: Path, clock: Clock = utc_now) -> None:
        """Opens or creates `path`, locks it, and recovers from a torn write.

        Raises `LogBusy`, `LogDamaged` or `LabelError`. `recovered_bytes` is how much was torn off.
        """
        self.path = path
        self._clock = clock
        self.recovered_bytes = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            created = not path.exists()
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            if created:
                _sync_folder(path.parent)  # else a power cut could lose the whole new file
        except OSError as error:
            raise LabelError(f"{path}: cannot open it: {error.strerror or error}") from error
        try:
            self._lock()
            data = path.read_bytes()
            self.decisions: list[Decision] = parse_log(data, str(path))
            self._recover(data)
        except BaseException:
            os.close(self._fd)
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LogBusy(
                f"{self.path}: another labelling session has it open; close that one, or give this "
                "one its own --log"
            ) from error

    def _recover(self, data: bytes) -> None:
        whole, torn = split_torn(data)
        if not torn:
            return
        with Path(f"{self.path}.torn").open("ab") as aside:
            aside.write(torn + b"\n")
            aside.flush()
            os.fsync(aside.fileno())
        os.ftruncate(self._fd, len(whole))
        os.fsync(self._fd)
        self.recovered_bytes = len(torn)

    def append(self, drafts: Draft | Sequence[Draft]) -> list[Decision]:
        """Number, stamp, write and fsync. Returns the decisions once they are on disk.

        A failed write (disk full) is cut off again, so the log stays whole; raises `LabelError`.
        """
        batch = [drafts] if isinstance(drafts, Draft) else list(drafts)
        at = self._clock().astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        start = len(self.decisions) + 1
        decisions = [
            Decision(
                seq=start + offset,
                at=at,
                who=draft.who,
                what=draft.what,
                row=draft.row,
                slot=draft.slot,
                before=draft.before,
                after=draft.after,
                guideline=draft.guideline,
                of=draft.of,
            )
            for offset, draft in enumerate(batch)
        ]
        lines = [decision.line() for decision in decisions]
        for decision, line in zip(decisions, lines, strict=True):
            if len(line) > MAX_LINE_BYTES:
                raise LabelError(
                    f"{self.path}: row {decision.row}: {len(line)} bytes in one decision, at most "
                    f"{MAX_LINE_BYTES}; shorten the text or the note"
                )
        self._write(b"".join(lines))
        self.decisions.extend(decisions)
        return decisions

    def _write(self, data: bytes) -> None:
        size = os.fstat(self._fd).st_size
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
            os.fsync(self._fd)
        except OSError as error:
            os.ftruncate(self._fd, size)
            raise LabelError(
                f"{self.path}: decision not saved: {error.strerror or error}; free space and retry"
            ) from error

    def close(self) -> None:
        """Release the lock. Safe to call twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
