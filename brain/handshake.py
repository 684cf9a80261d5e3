"""The start-up protocol on a sidecar's standard output, one JSON object a line. Pure.

``{"event": "progress", "detail": …}`` any number of times, then one ``{"event": "hello", "name",
"port", "pid", "model", "sha256", "version"}``. Anything else is junk: counted and otherwise
ignored, because libraries print; but a hello that is malformed or that names another sidecar or
process is an error, because waiting would not mend it.
"""

from __future__ import annotations

from typing import Literal

import orjson

from brain.errors import ProtocolError
from brain.schema import Hello, Progress, parse_wire

MAX_LINE_BYTES = 64 * 1024


class LineSplitter:
    """Byte chunks → lines without their ends, never holding more than ``limit`` bytes.

    An oversized line is dropped whole, or cut to ``limit`` with ``keep_prefix``; ``oversized``
    counts them either way.
    """

    def __init__(self, limit: int = MAX_LINE_BYTES, *, keep_prefix: bool = False) -> None:
        self.oversized = 0
        self._limit = limit
        self._keep_prefix = keep_prefix
        self._buffer = bytearray()
        self._over = False

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that ``data`` completes."""
        *complete, rest = data.split(b"\n")
        lines = []
        for piece in complete:
            self._add(piece)
            lines += self._take()
        self._add(rest)
        return lines

    def close(self) -> list[bytes]:
        """The last line, if it had no end."""
        return self._take() if self._buffer or self._over else []

    def _add(self, piece: bytes) -> None:
        room = self._limit - len(self._buffer)
        self._buffer += piece[:room]
        self._over = self._over or len(piece) > room

    def _take(self) -> list[bytes]:
        line, over = bytes(self._buffer), self._over
        self._buffer.clear()
        self._over = False
        self.oversized += over
        return [line.removesuffix(b"\r")] if not over or self._keep_prefix else []


class Handshake:
    """What one child has said so far."""

    def __init__(self, name: str) -> None:
        self.hello: Hello | None = None
        self.detail = ""
        self.junk = 0
        self._name = name

    def feed(self, line: bytes, pid: int) -> Literal["hello", "progress", "junk"]:
        """Take one line from process ``pid``.

        Raises:
            ProtocolError: a hello that can never become right.
        """
        event = _event(line)
        if event == "hello":
            self.hello = self._checked(line, pid)
            return "hello"
        if event == "progress":
            try:
                self.detail = parse_wire(Progress, line, remote=self._name).detail
            except ProtocolError:
                event = None
            else:
                return "progress"
        self.junk += 1
        return "junk"

    def _checked(self, line: bytes, pid: int) -> Hello:
        name = self._name
        try:
            hello = parse_wire(Hello, line, remote=name)
        except ProtocolError as error:
            raise ProtocolError(f"its handshake is wrong: {error}", remote=name) from error
        if hello.name != name:
            raise ProtocolError(
                f"its handshake says it is {hello.name[:64]!r}, not {name!r}; check the command",
                remote=name,
            )
        if hello.pid != pid:
            raise ProtocolError(
                f"its handshake says pid {hello.pid}, but {pid} was started; "
                "the command must exec the sidecar, not start it beside itself",
                remote=name,
            )
        return hello


def _event(line: bytes) -> str | None:
    if not line.startswith(b"{"):
        return None
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    event = value.get("event")
    return event if isinstance(event, str) else None
