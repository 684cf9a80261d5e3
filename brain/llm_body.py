"""The body of one streamed completion: bytes → text, under three limits.

One loop timer serves the limits on first token, idle and total. It is moved forward lazily, when it
fires, so a token costs no timer and no task. When a limit passes, the timer closes the connection,
which wakes the reader; the reader then raises the typed error.

A read returns all the text that has arrived, so tokens that come together stay together.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import aiohttp

from brain.errors import (
    ProtocolError,
    RemoteError,
    RemoteTimeout,
    RemoteUnavailable,
    StreamBroken,
)
from brain.llm_events import CompletionEvents, is_whole
from brain.remote_errors import FOREIGN, Phase, translate
from brain.schema import MAX_TEXT_CHARS
from brain.sse import SSEParser

MAX_STREAM_BYTES = 16 * 1024 * 1024
MAX_REPLY_CHARS = 4 * MAX_TEXT_CHARS
# A server may send usage and [DONE] after the finish reason; the reply does not wait longer.
TAIL_S = 1.0
# Time for the end of the body to arrive after [DONE], so that the connection can be reused.
LINGER_S = 0.1

_TOO_LATE: dict[Phase, str] = {
    "first_token": "did not begin to answer in time (first_token limit)",
    "idle": "stopped in the middle of its answer (idle limit)",
    "total": "took too long to answer (total limit)",
}


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """Seconds: from now until the first token is due, between tokens, from now until the end."""

    first_token_s: float
    idle_s: float
    total_s: float


class CompletionBody:
    """Reads one 200 answer of ``/v1/chat/completions``, streamed or not, into ``events``."""

    __slots__ = (
        "_bytes",
        "_chars",
        "_complete",
        "_due",
        "_error",
        "_expired",
        "_idle_s",
        "_json",
        "_loop",
        "_parser",
        "_phase",
        "_remote",
        "_response",
        "_timer",
        "_total_at",
        "_waiting",
        "events",
    )

    def __init__(
        self, response: aiohttp.ClientResponse, *, limits: StreamLimits, remote: str
    ) -> None:
        self.events = CompletionEvents(remote=remote)
        self._response = response
        self._remote = remote
        self._parser = SSEParser()
        # A server that does not stream answers one JSON object: the reply is one piece.
        self._json = bytearray() if response.content_type == "application/json" else None
        self._bytes = 0
        self._chars = 0
        self._complete = False
        self._error: RemoteError | None = None
        self._expired: Phase | None = None
        self._phase: Phase = "first_token"
        self._idle_s = limits.idle_s
        self._waiting = True
        loop = self._loop = asyncio.get_running_loop()
        now = loop.time()
        self._due = now + limits.first_token_s
        self._total_at = now + limits.total_s
        self._timer = loop.call_at(min(self._due, self._total_at), self._tick)
        if response.content_type == "text/html":
            self._fail(self._bad("answered with a web page; check its address"))

    async def read(self) -> str:
        """The text that came since the last read; empty once the reply is complete.

        Raises:
            RemoteError: the stream failed. Text that came before the failure is returned first,
                and the failure raised by the next read. The connection is closed by then.
        """
        if self._phase == "idle":
            self._due = self._loop.time() + self._idle_s
        text = ""
        content = self._response.content
        while not (text or self._complete or self._error):
            self._waiting = True
            try:
                chunk = await content.readany()
            except asyncio.CancelledError:
                self.close()
                raise
            except (*FOREIGN, RuntimeError) as error:
                text = self._take(_unread(content))
                self._lost(error)
                break
            finally:
                self._waiting = False
            text = self._take(chunk) if chunk else self._end()
        if self._error is not None and not text:
            raise self._error
        return text

    def close(self) -> None:
        """Stop now; the server sees the connection close, unless it had sent everything."""
        if self._complete:
            if not self._response.content.is_eof():
                self._response.close()
        elif not self._error:
            self._fail(StreamBroken("the stream was closed here", remote=self._remote))

    async def settle(self) -> None:
        """After a complete reply: let the end of the body arrive, or close the connection.

        At its end the connection goes back to the pool by itself. It usually comes with [DONE] or
        a moment after it; ``LINGER_S`` is the longest that this waits.
        """
        if self._response.content.is_eof():
            return
        try:
            async with asyncio.timeout(LINGER_S):
                await self._response.content.wait_eof()
        except (*FOREIGN, RuntimeError):
            pass  # the reply is whole; only its connection is lost
        finally:
            self.close()

    def _take(self, chunk: bytes) -> str:
        """Parse one piece of the body into text, marking completion or failure."""
        self._bytes += len(chunk)
        if self._bytes > MAX_STREAM_BYTES:
            self._fail(self._bad("sends without end"))
            return ""
        if self._json is not None:
            self._json += chunk
            return ""
        text = self._texts(self._parser.feed(chunk))
        if self._parser.overflowed:
            self._fail(self._bad("sent an oversize event"))
        return text

    def _texts(self, datas: list[bytes]) -> str:
        events = self.events
        parts: list[str] = []
        for data in datas:
            try:
                piece = events.take(data)
            except RemoteError as error:
                self._fail(error)
                break
            if piece:
                parts.append(piece)
                self._chars += len(piece)
            elif events.done:
                self._finish()
                break
        if self._chars > MAX_REPLY_CHARS:
            self._fail(self._bad("sends without end"))
        if not (self._complete or self._error):
            if events.finish_reason is not None:
                if self._idle_s != TAIL_S:
                    self._next_phase(TAIL_S)
            elif parts and self._phase == "first_token":
                self._next_phase(self._idle_s)
        return parts[0] if len(parts) == 1 else "".join(parts)

    def _end(self) -> str:
        """The body ended by itself: complete if the reply said so, else broken."""
        if self._json is not None:
            begun = True
            text = self._texts([bytes(self._json)])
            if text and not self._error:
                self._finish()
        else:
            # An unfinished last event counts only if it is whole: a cut one is not bad JSON.
            rest = self._parser.finish()
            text = self._texts([data for data in rest if is_whole(data)])
            begun = bool(rest)
        if self._bytes and not (begun or self.events.seen):
            self._fail(self._bad("sent no chat completion"))
        self._lost(None)  # which completes a reply that had told its finish reason
        return text

    def _lost(self, error: BaseException | None) -> None:
        """The connection is gone, by itself or because a limit passed."""
        if self._complete or self._error:
            return
        if self._expired is not None:
            found: RemoteError = RemoteTimeout(
                f"the {self._remote} {_TOO_LATE[self._expired]}",
                remote=self._remote,
                phase=self._expired,
            )
        elif error is not None and isinstance(error, FOREIGN):
            found = translate(error, remote=self._remote, url=str(self._response.url))
        else:
            found = RemoteUnavailable(
                f"the {self._remote} closed the connection before its answer was complete",
                remote=self._remote,
            )
        found.__cause__ = error
        self._fail(found)

    def _fail(self, error: RemoteError) -> None:
        """Close, and remember the error; after the first token it is a broken stream."""
        if self._complete or self._error:
            return
        if self.events.finish_reason is not None:
            self._finish()  # the reply is whole; only what follows it went wrong
            self._response.close()
            return
        self._timer.cancel()
        if self._chars and not isinstance(error, RemoteTimeout | StreamBroken):
            broken = StreamBroken(
                f"the answer of the {self._remote} broke off: {error}", remote=self._remote
            )
            broken.__cause__ = error
            error = broken
        self._error = error
        self._response.close()

    def _finish(self) -> None:
        self._timer.cancel()
        self._complete = True

    def _next_phase(self, seconds: float) -> None:
        self._phase = "idle"
        self._idle_s = seconds
        self._due = self._loop.time() + seconds
        self._timer.cancel()
        self._timer = self._loop.call_at(min(self._due, self._total_at), self._tick)

    def _tick(self) -> None:
        """A limit may have passed; if it has moved meanwhile, look again then.

        Time the consumer spends between reads counts towards the total only.
        """
        now = self._loop.time()
        if now >= self._total_at:
            self._expired = "total"
        elif self._waiting and now >= self._due:
            self._expired = self._phase
        if self._expired is not None:
            self._response.close()
            return
        due = self._due if self._waiting else now + self._idle_s
        self._timer = self._loop.call_at(min(due, self._total_at), self._tick)

    def _bad(self, what: str) -> ProtocolError:
        return ProtocolError(f"the {self._remote} {what}", remote=self._remote)


def _unread(content: aiohttp.StreamReader) -> bytes:
    """What had arrived before the connection broke but was not read yet.

    The reader refuses to give it once an exception is set, and has no public way around that.
    """
    pieces = getattr(content, "_buffer", ())
    offset = getattr(content, "_buffer_offset", 0)
    return b"".join(pieces)[offset:]
