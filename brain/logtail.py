"""Follow a log by name: through rotations, truncation, deletion, and before it exists.

A log is ``name`` and its rotated files ``name.1`` (the newest), ``name.2`` …; the number is the
file's *slot*, 0 that of ``name`` itself. A file keeps its inode when it is renamed. Those that were
there at the last look are held open, so that the system cannot give their inode numbers to new
files: what is in a newer slot than the last file read, under another inode, came since.
"""

from __future__ import annotations

import os
import re
import stat as modes
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MAX_READ = 1 << 20
MAX_LINE = 256 * 1024
TOO_LONG = "… (a line of more than 256 KiB was left out)"
MAX_HELD = 16
MAX_SCANS = 20
FINGERPRINT = 256
# Without O_NONBLOCK, opening a pipe would wait for its writer.
FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK

Inode = tuple[int, int]  # device, number


class Mark(str):
    """Not a line of the log: it stands where something of the log could not be given."""

    __slots__ = ()


class LogTail:
    """New whole lines of a log, each call. Starts at most ``backlog`` bytes before its end; a log
    that is not there at the first call is read from its beginning.

    Every line is given at most once, in order, and none is left out while its file is there under
    its own or a rotated name. Rotated files that were deleted or compressed unread are counted in a
    ``Mark``. Not given: what was truncated away or deleted, a line without its end when its file is
    replaced, and (as a ``Mark``) a line of more than ``MAX_LINE`` bytes. Links are not followed.
    """

    def __init__(self, path: Path, *, backlog: int = 4096) -> None:
        self._path = path
        self._backlog = backlog
        self._slot_name = re.compile(re.escape(path.name) + r"(?:\.([1-9][0-9]{0,5})(\..+)?)?")
        self._held: dict[Inode, _File] = {}
        self._newest: _File | None = None  # the last file that was read
        self._begun = False

    def read(self) -> list[str]:
        """Lines completed since the last call, oldest first; bad UTF-8 is replaced."""
        lines = list(self._drain())
        newest = self._newest
        if newest is None or newest.slot or _inode(self._path) != newest.inode:
            slots = self._scan()
            if slots is None:  # rotated at this very moment; the next call sees where it went
                return lines
            lines += self._drain()  # what was written between the drain above and the rotation
            lines += self._read_on(slots) if self._begun else self._begin(slots)
            self._begun = True
        return lines

    def close(self) -> None:
        """Let go of every file."""
        for file in self._held.values():
            file.close()
        self._held, self._newest, self._begun = {}, None, False

    def _drain(self) -> Iterator[str]:
        """What the files gained; a rotated one too, where its writer has not noticed yet."""
        for file in sorted(self._held.values(), key=lambda file: -file.slot):
            if file.plain:
                yield from file.drain()

    def _scan(self) -> Slots | None:
        """What is there, or ``None`` while it is changing."""
        last = self._list()
        for _ in range(MAX_SCANS):
            now = self._list()
            if now == last:
                return now
            last = now
        return None

    def _list(self) -> Slots:
        found: Slots = {}
        with suppress(OSError):
            for name in os.listdir(self._path.parent):  # noqa: PTH208 - names alone are wanted
                match = self._slot_name.fullmatch(name)
                inode = _inode(self._path.with_name(name)) if match else None
                if match and inode:
                    slot, plain = int(match[1] or 0), not match[2]
                    if plain or slot not in found:  # rather the file than its archive
                        found[slot] = _Slot(inode, name, plain)
        return found

    def _begin(self, slots: Slots) -> Iterator[str]:
        """Hold what is there; give the end of the newest file."""
        self._hold(slots)
        self._newest = min(self._held.values(), key=lambda file: file.slot, default=None)
        yield from self._drain()

    def _read_on(self, slots: Slots) -> Iterator[str]:
        """Read every file that is newer than the last one read, the oldest of them first."""
        ceiling, lost = self._unread_below(slots)
        counted = self._newest is not None and not lost
        before = ceiling
        for number in sorted(
            (n for n, s in slots.items() if s.plain and n < ceiling), reverse=True
        ):
            try:
                known = self._held.get(slots[number].inode)  # renamed back by hand
                file = known or self._open(number, slots[number])
            except PermissionError:
                continue
            if file is None:  # renamed a moment ago: the next call finds it, and what is newer
                break
            if counted and before - number > 1:
                lost = self._gone(before - number - 1)
            if lost:
                yield Mark(lost)
                lost = ""
            self._held[file.inode] = self._newest = file
            before = number
            yield from file.drain()
        for number, found in slots.items():
            if found.inode in self._held:
                self._held[found.inode].slot = number
        if 0 in slots:  # else the folder may be away for a moment
            self._let_go({found.inode for n, found in slots.items() if n <= MAX_HELD})
            self._hold({n: found for n, found in slots.items() if n > before})

    def _unread_below(self, slots: Slots) -> tuple[int, str]:
        """The slot below which files are unread; and what is lost, where empty slots do not tell.
        Files keep their order: one that is known shows how far all have moved."""
        every = max(slots, default=0) + 1
        if self._newest is None:
            return every, ""
        at = {found.inode: n for n, found in slots.items() if found.inode in self._held}
        if self._newest.inode in at:
            return at[self._newest.inode], ""
        if at:  # deleted or compressed, while an older one is left
            older = min(at, key=lambda inode: self._held[inode].slot)
            number = self._newest.slot + at[older] - self._held[older].slot
            taken = slots.get(number)
            new = taken is not None and taken.plain and taken.inode not in self._held
            return max(1, number + 1 if new else number), ""
        compressed = [n for n, found in slots.items() if not found.plain]
        if len(compressed) > 1:  # one of them is the file that was read last
            return every, self._gone(len(compressed) - 1)
        if every == 1:  # not rotated: deleted, and begun anew
            return every, ""
        if compressed == [every - 1]:  # this one
            return every - 1, ""
        return every, f"… ({self._path.name} was rotated often: some rotated files may be gone)"

    def _hold(self, slots: Slots) -> None:
        """Hold what was there before, to know it again."""
        for number, found in slots.items():
            if number <= MAX_HELD and found.inode not in self._held:
                with suppress(PermissionError):
                    file = self._open(number, found)
                    if file is not None:
                        file.start_near_end(0 if number or self._begun else self._backlog)
                        self._held[file.inode] = file

    def _let_go(self, there: set[Inode]) -> None:
        for inode in [i for i, f in self._held.items() if i not in there and f is not self._newest]:
            self._held.pop(inode).close()

    def _open(self, number: int, found: _Slot) -> _File | None:
        """The file of a slot, or ``None`` when it is not under that name any more.

        Raises:
            PermissionError: it must not be read.
        """
        try:
            fd = os.open(self._path.with_name(found.name), FLAGS)
        except PermissionError:
            raise
        except OSError:
            return None
        file = _File(fd, number, plain=found.plain)
        if file.inode == found.inode:
            return file
        file.close()
        return None

    def _gone(self, count: int) -> str:
        return f"… ({count} rotated file{'' if count == 1 else 's'} of {self._path.name} gone)"


@dataclass(frozen=True, slots=True)
class _Slot:
    """What a scan found in one slot; ``plain`` unless its name has an ending such as ``.gz``."""

    inode: Inode
    name: str
    plain: bool


Slots = dict[int, _Slot]


class _File:
    """One open file of a log, and how far it is read."""

    def __init__(self, fd: int, slot: int, *, plain: bool) -> None:
        stat = os.fstat(fd)
        self.fd, self.slot, self.plain = fd, slot, plain
        self.inode: Inode = (stat.st_dev, stat.st_ino)
        self.offset = 0
        self.partial = b""  # a line whose end has not come
        self._skipping = False
        self._read_last = b""

    def close(self) -> None:
        os.close(self.fd)

    def start_near_end(self, backlog: int) -> None:
        """Go to the first line that begins within ``backlog`` bytes of the end."""
        size = os.fstat(self.fd).st_size
        self.offset = max(0, size - backlog)
        if self.offset:
            before = max(0, self.offset - FINGERPRINT)
            self._read_last = self._read_at(before, self.offset - before)
            self._skipping = not self._read_last.endswith(b"\n")

    def drain(self) -> Iterator[str]:
        """Whole lines up to the end of the file, read in pieces of ``MAX_READ``."""
        if self._was_rewritten():
            self.offset, self.partial, self._skipping, self._read_last = 0, b"", False, b""
        while data := self._read_at(self.offset, MAX_READ):
            self.offset += len(data)
            self._read_last = (self._read_last + data)[-FINGERPRINT:]
            *whole, self.partial = (self.partial + data).split(b"\n")
            if whole and self._skipping:
                whole, self._skipping = whole[1:], False
            for line in whole:
                if len(line) > MAX_LINE:
                    yield Mark(TOO_LONG)
                elif line:
                    yield line.decode("utf-8", "replace")
            if self._skipping:
                self.partial = b""
            elif len(self.partial) > MAX_LINE:  # its end may never come
                yield Mark(TOO_LONG)
                self.partial, self._skipping = b"", True

    def _was_rewritten(self) -> bool:
        """Whether it was truncated in place, even where it has grown past the offset again."""
        if os.fstat(self.fd).st_size < self.offset:
            return True
        known = self._read_last
        return self._read_at(self.offset - len(known), len(known)) not in (known, b"")

    def _read_at(self, offset: int, size: int) -> bytes:
        """Nothing where the disk fails."""
        with suppress(OSError):
            return os.pread(self.fd, size, offset)
        return b""


def _inode(path: Path) -> Inode | None:
    """Which file a name stands for; ``None`` when there is none, or a link, pipe or folder."""
    try:
        stat = os.lstat(path)
    except OSError:
        return None
    return (stat.st_dev, stat.st_ino) if modes.S_ISREG(stat.st_mode) else None
