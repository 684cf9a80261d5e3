"""A conversation from a script: one user message a line on standard input, replies on standard
output and nothing else there."""

from __future__ import annotations

import asyncio
import codecs
import errno
import os
import re
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, cast

import orjson

from brain.app import Limbic, SessionHandle
from brain.cli.screen import ReplyText
from brain.cli.status import until_loaded, until_sides_answer
from brain.cli.stopping import Stopped, drain, unless_stopped
from brain.errors import (
    EXIT_FAILED_CHECK,
    EXIT_OK,
    ConfigError,
    InputError,
    LimbicError,
    SidecarFailed,
)
from brain.turn import Turn

READ_BYTES = 65_536
# Characters that JSON may hold raw, but that act on a terminal when somebody looks at the lines.
_ACTIVE = re.compile("[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


END = b"\n"  # no line holds one


class OutputGone(Exception):
    """Nobody reads standard output any more."""


class Output:
    """Writes to a descriptor at once and in full."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, data: bytes) -> None:
        """Raises ``OutputGone``, or ``LimbicError`` when the disk behind it refuses."""
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.EIO, errno.ECONNRESET):
                raise OutputGone from error
            raise LimbicError(f"cannot write standard output: {error.strerror}") from error


class Lines:
    """Lines of a descriptor, of at most ``limit`` bytes; longer ones come as ``None``.

    A thread that never keeps the process alive reads, since a regular file cannot be polled and a
    terminal may stay silent for ever.
    """

    def __init__(self, fd: int, *, limit: int) -> None:
        self._fd = fd
        self._limit = limit

    async def __aiter__(self) -> AsyncIterator[bytes | None]:
        buffer, too_long = b"", False
        while chunk := await self._read():
            *whole, buffer = (buffer + chunk).split(b"\n")
            for line in whole:
                yield None if too_long or len(line) > self._limit else line
                too_long = False
            if len(buffer) > self._limit:
                buffer, too_long = b"", True
        if too_long or buffer:
            yield None if too_long else buffer

    async def _read(self) -> bytes:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bytes] = loop.create_future()

        def settle(data: bytes, error: OSError | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(data)
            else:
                future.set_exception(InputError(f"cannot read standard input: {error.strerror}"))

        def read() -> None:
            data, problem = b"", None
            try:
                data = os.read(self._fd, READ_BYTES)
            except OSError as error:
                problem = error
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(settle, data, problem)

        threading.Thread(target=read, name="limbic-stdin", daemon=True).start()
        return await future


@dataclass(slots=True)
class Script:
    """One script run. ``report`` gets one line for each problem; ``failed`` counts them."""

    limbic: Limbic
    handle: SessionHandle
    output: Output
    report: Callable[[str], None]
    as_json: bool
    stop: asyncio.Event
    progress: Callable[[str], None] = lambda text: None
    failed: int = 0

    async def run(self, fd: int) -> int:
        """Answer every line of ``fd``; the exit code: 1 when a line or a turn failed.

        Raises:
            ConfigError: the chat model can never start as configured.
            LimbicError: it did not start, or input or output cannot be used.
        """
        lines = aiter(Lines(fd, limit=4 * self.limbic.settings.chat.max_text_chars))
        number = 0
        try:
            await unless_stopped(self._load(), self.stop)
            while not self.stop.is_set():
                line = await unless_stopped(_following(lines), self.stop)
                if line == END:
                    break
                number += 1
                text = self._decoded(number, line)
                if text is not None:
                    await self._turn(number, text)
        except Stopped:
            pass
        except OutputGone:
            return EXIT_FAILED_CHECK
        return EXIT_FAILED_CHECK if self.failed else EXIT_OK

    async def _load(self) -> None:
        try:
            await until_loaded(self.limbic, self.progress)
        except SidecarFailed as error:
            if self.limbic.supervisor.status()["llm"].state == "failed":  # permanent
                raise ConfigError(str(error)) from error
            raise
        # Nobody waits at a prompt: the first line is read by the side models like any other.
        await until_sides_answer(self.limbic)

    def _decoded(self, number: int, line: bytes | None) -> str | None:
        """The message of a line; ``None`` for a blank one, or one that was reported."""
        if line is None:
            limit = self.limbic.settings.chat.max_text_chars
            self._fail(number, f"the line is far over the limit of {limit} characters")
            return None
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        try:
            return line.decode("utf-8", "strict").strip() or None
        except UnicodeDecodeError as error:
            self._fail(number, f"not UTF-8 at byte {error.start + 1}; send the line as UTF-8")
            return None

    def _fail(self, number: int, problem: str) -> None:
        self.failed += 1
        self.report(f"line {number}: {problem}")

    async def _turn(self, number: int, text: str) -> None:
        turn = self.handle.say(text)
        answer = asyncio.create_task(self._json(turn, number) if self.as_json else self._text(turn))
        await drain(answer, self.stop, clock=self.limbic.clock)
        try:
            answer.result()
        except asyncio.CancelledError:
            self._fail(number, "the reply took too long to finish after the request to stop")
        except LimbicError as error:
            self._fail(number, str(error))

    async def _text(self, turn: Turn) -> None:
        reply = ReplyText()
        try:
            async with aclosing(cast("AsyncGenerator[str, None]", aiter(turn))) as tokens:
                async for token in tokens:
                    self._put(reply.feed(token))
        finally:
            if turn.reply:
                self._put(reply.end() + "\n")

    def _put(self, text: str) -> None:
        self.output.write(text.encode("utf-8", "backslashreplace"))

    async def _json(self, turn: Turn, number: int) -> None:
        problem: LimbicError | None = None
        try:
            await turn
        except LimbicError as error:
            problem = error
            raise
        finally:
            self.output.write(turn_json(turn, problem or turn.error, line=number) + b"\n")


def turn_json(turn: Turn, error: LimbicError | None, *, line: int) -> bytes:
    """A turn as one line of JSON, harmless on a terminal; ``hormones`` are the levels after it."""
    status = "failed" if turn.status == "running" else turn.status
    record: dict[str, Any] = {
        "line": line,
        "turn_id": turn.turn_id,
        "session_id": turn.session_id,
        "reply": turn.reply,
        "status": status,
        "affect": turn.affect.model_dump(mode="json") if turn.affect else None,
        "hormones": (
            {name: round(level, 4) for name, level in turn.state.levels.items()}
            if turn.state
            else None
        ),
        "behaviour": turn.behaviour.model_dump(mode="json") if turn.behaviour else None,
        "timings": {name: round(ms, 2) for name, ms in turn.timings.items()},
        "sides": turn.sides,
        "error": {"code": error.code, "message": str(error)} if error else None,
    }
    text = orjson.dumps(record).decode()
    return _ACTIVE.sub(lambda m: f"\\u{ord(m.group()):04x}", text).encode()


async def _following(lines: AsyncIterator[bytes | None]) -> bytes | None:
    return await anext(lines, END)
