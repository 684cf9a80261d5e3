"""Incremental parser of server-sent events, on bytes.

Takes the body in any pieces and gives the ``data`` of every complete event. Follows the WHATWG
HTML standard, section 9.2 "Server-sent events": LF, CRLF or CR line ends, a leading byte order
mark, comments, one optional space after the colon, several ``data`` lines joined by LF. Event
names, ids and retry times are read over: chat completions do not use them.

Decoding is left to the JSON parser, so a character split between two pieces is never damaged.
"""

from __future__ import annotations

_BOM = b"\xef\xbb\xbf"


class SSEParser:
    """Bytes in, event data out; holds at most one unfinished event of ``max_event_bytes``.

    ``overflowed`` turns true when one event is larger than that. Nothing is parsed afterwards; what
    came before it is still returned, the same whatever the chunking.
    """

    __slots__ = ("_after_cr", "_max", "_start", "_tail", "overflowed")

    def __init__(self, *, max_event_bytes: int = 1024 * 1024) -> None:
        self._max = max_event_bytes
        self._tail = bytearray()
        self._start = True
        self._after_cr = False
        self.overflowed = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take the next piece of the body; return the data of each event it completes."""
        if self.overflowed:
            return []
        # The usual piece is whole events with LF line ends and nothing left over from before.
        if self._tail or self._start or self._after_cr or b"\r" in chunk or chunk[-2:] != b"\n\n":
            complete = self._complete_part(chunk)
        else:
            complete = chunk
        events: list[bytes] = []
        for block in complete.split(b"\n\n"):
            if len(block) > self._max and len(block.strip(b"\n")) > self._max:
                self._overflow()
                return events
            if block[:6] == b"data: " and b"\n" not in block:
                events.append(block[6:])
            elif block:
                _read_block(block, events)
        if len(self._tail) > self._max and len(self._tail.rstrip(b"\n")) > self._max:
            self._overflow()
        return events

    def finish(self) -> list[bytes]:
        """The stream ended: data of a last event that lacks its blank line.

        The standard drops it; servers that close right after ``data: [DONE]`` exist.
        """
        events: list[bytes] = []
        if self._tail and not self.overflowed:
            _read_block(bytes(self._tail), events)
        self._tail.clear()
        return events

    def _complete_part(self, chunk: bytes) -> bytes:
        """Add ``chunk`` to the tail; cut off and return what ends with a blank line."""
        tail = self._tail
        if self._after_cr and chunk:
            # The CR already ended its line; an LF right after it belongs to it.
            chunk = chunk.removeprefix(b"\n")
            self._after_cr = False
        if b"\r" in chunk:
            self._after_cr = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        searched = max(0, len(tail) - 1)
        tail += chunk
        if self._start:
            if len(tail) < len(_BOM) and _BOM.startswith(tail):
                return b""
            if tail.startswith(_BOM):
                del tail[: len(_BOM)]
            self._start = False
            searched = 0
        cut = tail.rfind(b"\n\n", searched)
        complete = b""
        if cut >= 0:
            complete = bytes(tail[:cut])
            del tail[: cut + 2]
        if tail.startswith(b"\n"):  # a blank line with no event before it ends nothing
            del tail[: len(tail) - len(tail.lstrip(b"\n"))]
        return complete

    def _overflow(self) -> None:
        self.overflowed = True
        self._tail.clear()


def _read_block(block: bytes, events: list[bytes]) -> None:
    """Append the data of one event, given its lines without the blank one; comments give none."""
    data: list[bytes] = []
    for line in block.split(b"\n"):
        name, _, value = line.partition(b":")
        if name == b"data":
            data.append(value[1:] if value[:1] == b" " else value)
    if data:
        events.append(b"\n".join(data))
