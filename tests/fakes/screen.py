"""A program on a pseudo-terminal, and what that terminal shows: for tests of full-screen output."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pexpect
import pyte

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60  # a busy machine takes long to start a program


class Terminal:
    """``columns`` by ``lines`` cells, filled by one program. ``seen`` is all that it wrote."""

    def __init__(self, child: pexpect.spawn, columns: int, lines: int) -> None:
        self.child = child
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.Stream(self.screen)
        self.seen = ""

    def shows(self, wanted: Callable[[list[str]], bool] | str) -> list[str]:
        """The screen's lines, as soon as they hold what is wanted.

        Raises:
            AssertionError: the program ended, or wrote nothing for ``PATIENCE_S``, before that.
        """
        while True:
            lines = [line.rstrip() for line in self.screen.display]
            text = "\n".join(lines)
            if wanted in text if isinstance(wanted, str) else wanted(lines):
                return lines
            try:
                more = self.child.read_nonblocking(1 << 16, timeout=PATIENCE_S)
            except (pexpect.EOF, pexpect.TIMEOUT) as error:
                raise AssertionError(f"{type(error).__name__}, {wanted!r} not in\n{text}") from None
            self.seen += more
            self._stream.feed(more)

    def resize(self, columns: int, lines: int) -> None:
        """As a person does by dragging the corner."""
        self.screen.resize(lines, columns)
        self.child.setwinsize(lines, columns)

    def ends(self) -> int:
        """Wait for the program's end; its exit code."""
        self.child.expect(pexpect.EOF)
        self.seen += self.child.before or ""
        self.child.close()
        return self.child.exitstatus if self.child.exitstatus is not None else -1


@contextmanager
def terminal(*args: str, columns: int = 80, lines: int = 24, **env: str) -> Iterator[Terminal]:
    """``limbic ARGS…`` on a terminal of its own, killed at the end if it still runs."""
    child = pexpect.spawn(
        sys.executable, ["-m", "brain", *args], dimensions=(lines, columns), timeout=PATIENCE_S,
        encoding="utf-8", echo=False,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8",
             "TERM": "xterm-256color", **env},
    )  # fmt: skip
    try:
        yield Terminal(child, columns, lines)
    finally:
        child.close(force=True)
