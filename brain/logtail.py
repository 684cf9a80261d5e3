"""Follow a log file by name: through rotation, truncation, deletion, and before it exists."""

from __future__ import annotations

import os
import stat as modes
from pathlib import Path

MAX_READ = 1 << 20
MAX_LINE = 256 * 1024
TOO_LONG = "… (a line of more than 256 KiB was left out)"
# Without O_NONBLOCK, opening a pipe would wait for its writer.
FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class LogTail:
    """New whole lines of a file, each call. Starts at most ``backlog`` bytes before its end.

    Every line is given once, in order; a rotated file is read to its end before the new one begins.
    Not given: what a file held that came and went between two calls, and a line without its end
    when the file is replaced. A line of more than ``MAX_LINE`` bytes is given as a mark.
    """

    def __init__(self, path: Path, *, backlog: int = 4096) -> None:
        self._path = path
        self._backlog = backlog
        self._file: int | None = None
        self._inode = 0
        self._offset = 0
        self._partial = b""
        self._skipping = False

    def read(self) -> list[str]:
        """Lines completed since the last call, oldest first; bad UTF-8 is replaced."""
        lines = self._drain()
        try:
            now = os.stat(self._path)  # noqa: PTH116 - the inode of the name, not of the handle
        except OSError:
            return lines
        if self._file is None or now.st_ino != self._inode:
            self._open(first=self._file is None and self._inode == 0)
            lines += self._drain()
        elif now.st_size < self._offset:  # truncated in place
            self._offset, self._partial, self._skipping = 0, b"", False
            lines += self._drain()
        return lines

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open(self, *, first: bool) -> None:
        self.close()
        try:
            self._file = os.open(self._path, FLAGS)
        except OSError:
            return
        stat = os.fstat(self._file)
        if not modes.S_ISREG(stat.st_mode):
            self.close()
            return
        self._inode, self._partial, self._skipping = stat.st_ino, b"", False
        self._offset = max(0, stat.st_size - self._backlog) if first else 0
        if self._offset:  # begin at a line, not inside one
            head = os.pread(self._file, self._backlog, self._offset)
            self._offset += head.find(b"\n") + 1

    def _drain(self) -> list[str]:
        """Everything up to the end of the file, in pieces of ``MAX_READ``."""
        lines: list[str] = []
        while self._file is not None and (data := os.pread(self._file, MAX_READ, self._offset)):
            self._offset += len(data)
            *whole, self._partial = (self._partial + data).split(b"\n")
            if whole and self._skipping:
                whole, self._skipping = whole[1:], False
            for line in whole:
                if len(line) > MAX_LINE:
                    lines.append(TOO_LONG)
                elif line:
                    lines.append(line.decode("utf-8", "replace"))
            if len(self._partial) > MAX_LINE:  # its end may never come
                if not self._skipping:
                    lines.append(TOO_LONG)
                self._partial, self._skipping = b"", True
        return lines
