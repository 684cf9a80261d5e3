"""Follow a log file by name: through rotation, truncation, deletion, and before it exists."""

from __future__ import annotations

import os
import stat as modes
from pathlib import Path

MAX_READ = 1 << 20
# Without O_NONBLOCK, opening a pipe would wait for its writer.
FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class LogTail:
    """New whole lines of a file, each call. Starts at most ``backlog`` bytes before its end."""

    def __init__(self, path: Path, *, backlog: int = 4096) -> None:
        self._path = path
        self._backlog = backlog
        self._file: int | None = None
        self._inode = 0
        self._offset = 0
        self._partial = b""

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
            self._offset, self._partial = 0, b""
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
        self._inode, self._partial = stat.st_ino, b""
        self._offset = max(0, stat.st_size - self._backlog) if first else 0
        if self._offset:  # begin at a line, not inside one
            head = os.pread(self._file, self._backlog, self._offset)
            self._offset += head.find(b"\n") + 1

    def _drain(self) -> list[str]:
        if self._file is None:
            return []
        data = os.pread(self._file, MAX_READ, self._offset)
        self._offset += len(data)
        *whole, self._partial = (self._partial + data).split(b"\n")
        return [line.decode("utf-8", "replace") for line in whole if line]
