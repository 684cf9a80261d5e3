"""Text on its way to a terminal or a pipe: made harmless, and never in the way of a turn."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TextIO

from brain.redact import printable

BOLD, DIM, PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[0m"


def wants_colour(stream: TextIO) -> bool:
    """Whether to style: a terminal that can, and nobody set ``NO_COLOR``."""
    dumb = os.environ.get("TERM", "dumb") == "dumb"
    return stream.isatty() and not dumb and not os.environ.get("NO_COLOR")


class ReplyText:
    """A streamed reply, token by token, as text that is safe to print.

    White space before the first word is dropped, a CRLF becomes a newline even when its halves come
    in two tokens, and every other control character is shown instead of acting.
    """

    def __init__(self) -> None:
        self._begun = False
        self._held = ""

    def feed(self, token: str) -> str:
        """What to print for one more token."""
        text = self._held + token
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        self._held = "\r" if text.endswith("\r") else ""
        return printable(text[: len(text) - len(self._held)].replace("\r\n", "\n"))

    def end(self) -> str:
        """What is left at the end of the reply."""
        held, self._held = self._held, ""
        return printable(held)


class Screen:
    """Writes to a terminal. One that went away is remembered in ``gone``, and never raised."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._colour = wants_colour(stream)
        self.gone = False
        self._inside_line = False
        self._note = ""

    def styled(self, text: str, style: str) -> str:
        """``text``, harmless, in ``style`` where colours are wanted."""
        safe = printable(text)
        return f"{style}{safe}{PLAIN}" if self._colour else safe

    def write(self, text: str) -> None:
        """Print text that is safe already; visible at once."""
        if not text:
            return
        self._inside_line = not text.endswith("\n")
        try:
            self._stream.write(self._encodable(text))
            self._stream.flush()
        except OSError:
            self._leave()

    def line(self, text: str, style: str = "") -> None:
        """One line of its own; ``text`` may hold anything."""
        self.end_line()
        self.write((self.styled(text, style) if style else printable(text)) + "\n")

    def end_line(self) -> None:
        """Begin a new line unless the cursor is at the start of one."""
        if self._inside_line:
            self.write("\n")

    def note(self, text: str) -> None:
        """A passing remark that the next one, or an empty one, overwrites."""
        shown = printable(text)
        blank = " " * len(self._note)
        self._note = shown
        self.write(f"\r{blank}\r{self.styled(shown, DIM)}")
        self._inside_line = bool(shown)

    def _leave(self) -> None:
        """Nobody is there: what is buffered, and what follows, goes nowhere. Left as it is, the
        buffer would fail once more when Python ends, and change the exit code."""
        self.gone = True
        with suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            try:
                os.dup2(nowhere, self._stream.fileno())
            finally:
                os.close(nowhere)

    def _encodable(self, text: str) -> str:
        """What the stream cannot encode is shown as an escape (``\\udc80``, or a bar in ASCII)."""
        encoding = self._stream.encoding or "utf-8"
        with suppress(UnicodeEncodeError):
            text.encode(encoding)
            return text
        return text.encode(encoding, "backslashreplace").decode(encoding)
