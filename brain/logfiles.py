"""Append-only log files that survive rotation, deletion and a bad disk. Used from one thread.

A file is opened with ``O_NOFOLLOW`` and mode 0600, so a symbolic link put in its place is refused.
Before each batch the path is compared with the open descriptor: a file that was moved or deleted is
opened anew. A failure is reported once, retried with the next batch, and never raised.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


class LogFile:
    """One file with size rotation: ``name``, ``name.1`` … ``name.keep``."""

    def __init__(self, path: Path, *, max_bytes: int, keep: int) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._keep = keep
        self._fd: int | None = None
        self.problem: str | None = None
        self.lost_lines = 0

    def write(self, lines: Sequence[bytes]) -> None:
        """Append whole lines (without their newline) in one write; see ``problem`` for failures."""
        data = b"".join(line + b"\n" for line in lines)
        try:
            fd = self._current(len(data))
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
        except OSError as error:
            self.lost_lines += len(lines)
            self.problem = f"{self.path}: {error.strerror or error}"
            self.close()
        else:
            self.problem = None

    def close(self) -> None:
        """Close the descriptor; the next write opens the path again."""
        fd, self._fd = self._fd, None
        if fd is not None:
            with suppress(OSError):
                os.close(fd)

    def _current(self, incoming: int) -> int:
        if self._fd is not None:
            here = os.fstat(self._fd)
            try:
                there = os.lstat(self.path)
                moved = (here.st_ino, here.st_dev) != (there.st_ino, there.st_dev)
            except FileNotFoundError:
                moved = True
            if moved:
                self.close()
            elif here.st_size and here.st_size + incoming > self._max_bytes:
                self.close()
                self._rotate()
        if self._fd is None:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(self.path, flags, 0o600)
            size = os.fstat(self._fd).st_size
            if size and not self._ends_with_newline(size):
                os.write(self._fd, b"\n")  # a line torn by a crash must not spoil the next one
        return self._fd

    def _ends_with_newline(self, size: int) -> bool:
        with self.path.open("rb") as file:
            file.seek(size - 1)
            return file.read(1) == b"\n"

    def _rotate(self) -> None:
        for number in range(self._keep, 0, -1):
            older = self.path.with_name(f"{self.path.name}.{number}")
            newer = (
                self.path.with_name(f"{self.path.name}.{number - 1}") if number > 1 else self.path
            )
            with suppress(FileNotFoundError):
                newer.replace(older)
