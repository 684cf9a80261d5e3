"""A scripted OpenAI-compatible server: it answers exactly what a test (or benchmark) tells it to.

    async with FakeLLM() as server:
        server.enqueue(reply("Hel", "lo"), refuse(503), broken("Hel"))

Each completion request takes the next script; when none is left, ``server.default``. A script is a
status, headers, and steps: bytes to send, ``Pause``, ``Hold`` (until the client leaves or
``server.release()``), ``Reset`` (TCP RST) or ``Endless``. Requests and early departures of clients
are recorded. Also a program: ``python -m tests.fakes.llm_server --help``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import struct
import sys
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self

import orjson
from aiohttp import web

SSE = "text/event-stream"


@dataclass(frozen=True)
class Pause:
    """Wait for ``seconds``."""

    seconds: float


@dataclass(frozen=True)
class Hold:
    """Send nothing until the client leaves or the test calls ``release()``."""


@dataclass(frozen=True)
class Reset:
    """Abort the connection: the client sees ECONNRESET, not an orderly end."""


@dataclass(frozen=True)
class Endless:
    """Send ``data`` again and again until the client leaves."""

    data: bytes


Step = bytes | Pause | Hold | Reset | Endless


@dataclass(frozen=True)
class Script:
    """One answer. ``slice_bytes`` sends every bytes step in slices of that size."""

    steps: tuple[Step, ...] = ()
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = SSE
    slice_bytes: int | None = None
    drop: bool = False  # close the connection instead of answering


def chunk(text: str | None = None, *, finish: str | None = None, **more: Any) -> bytes:
    """One ``chat.completion.chunk`` event."""
    delta = {} if text is None else {"content": text}
    return event(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "scripted",
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
            **more,
        }
    )


def event(value: object) -> bytes:
    """One event holding ``value`` as JSON."""
    return b"data: " + orjson.dumps(value) + b"\n\n"


DONE = b"data: [DONE]\n\n"
ROLE = event({"choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}]})


def usage(prompt: int, completion: int, cached: int | None = None) -> bytes:
    """The event with token counts that follows the finish reason."""
    counts: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": completion}
    if cached is not None:
        counts["prompt_tokens_details"] = {"cached_tokens": cached}
    return event({"model": "scripted", "choices": [], "usage": counts})


def reply(
    *texts: str,
    ttft_s: float = 0.0,
    token_s: float = 0.0,
    counts: tuple[int, int, int | None] | None = None,
    finish: str | None = "stop",
    done: bool = True,
) -> Script:
    """A good reply, one event a text, paced."""
    steps: list[Step] = [ROLE]
    for index, text in enumerate(texts):
        pause_s = token_s if index else ttft_s
        if pause_s:
            steps.append(Pause(pause_s))
        steps.append(chunk(text))
    if finish:
        steps.append(chunk(finish=finish))
    if counts:
        steps.append(usage(*counts))
    if done:
        steps.append(DONE)
    return Script(tuple(steps))


def refuse(
    status: int, message: str = "no", *, retry_after: str | None = None, kind: str = "error"
) -> Script:
    """An HTTP error with an OpenAI error body."""
    return Script(
        (orjson.dumps({"error": {"message": message, "type": kind, "code": None}}),),
        status=status,
        headers={"Retry-After": retry_after} if retry_after is not None else {},
        content_type="application/json",
    )


def broken(*texts: str) -> Script:
    """A stream that is reset after some text."""
    return Script((ROLE, *map(chunk, texts), Reset()))


def stalled(*texts: str) -> Script:
    """A stream that stops sending, and stays open, after some text."""
    return Script((*map(chunk, texts), Hold()))


def raw(*steps: Step, content_type: str = SSE) -> Script:
    """Exactly these bytes."""
    return Script(steps, content_type=content_type)


def sliced(script: Script, slice_bytes: int = 1) -> Script:
    """The same answer in slices of so many bytes."""
    return replace(script, slice_bytes=slice_bytes)


DROP = Script(drop=True)


@dataclass(frozen=True)
class Recorded:
    """One request as it arrived."""

    path: str
    headers: dict[str, str]
    body: Any
    peer: tuple[str, int]


class FakeLLM:
    """The server. ``url`` has no ``/v1``.

    ``managed=True`` adds ``/v1/prefill`` and ``/v1/tokenize`` as this project's own sidecar has
    them; tokens are then white-space separated words. ``requests`` holds completion requests,
    ``others`` the rest, ``left`` counts clients that went away before their answer was complete.
    """

    def __init__(self, *, managed: bool = True, port: int = 0) -> None:
        self.default = reply("Hello", " there", "!", counts=(12, 3, 8))
        self.requests: list[Recorded] = []
        self.others: list[Recorded] = []
        self.left = 0
        self.prefill_script: Script | None = None
        self.tokenize_script: Script | None = None
        self._managed = managed
        self._port = port
        self._scripts: deque[Script] = deque()
        self._released = asyncio.Event()
        self._changed = asyncio.Condition()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """Base address, without ``/v1``."""
        return f"http://127.0.0.1:{self._port}"

    def enqueue(self, *scripts: Script) -> None:
        """Answer the next completion requests with these."""
        self._scripts.extend(scripts)

    def release(self) -> None:
        """Let every ``Hold`` go on."""
        self._released.set()

    async def until(self, *, left: int = 0, requests: int = 0) -> None:
        """Wait until so many clients have left and so many requests have come."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: self.left >= left and len(self.requests) >= requests
            )

    async def start(self) -> Self:
        """Listen; the port stays the same over ``stop()`` and ``start()``."""
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        if self._managed:
            app.router.add_post("/v1/prefill", self._prefill)
            app.router.add_post("/v1/tokenize", self._tokenize)
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        self._port = self._runner.addresses[0][1]
        return self

    async def stop(self) -> None:
        """Close the listening socket and every connection."""
        self.release()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def drop_idle_connections(self) -> None:
        """Close kept-alive connections as a server does whose keep-alive time has passed."""
        assert self._runner is not None and self._runner.server is not None
        for connection in list(self._runner.server.connections):
            if connection.transport is not None:
                connection.transport.close()

    async def _record(self, request: web.Request, into: list[Recorded]) -> Any:
        body = orjson.loads(await request.read() or b"null")
        peer = request.transport.get_extra_info("peername") if request.transport else ("", 0)
        into.append(Recorded(request.path, dict(request.headers), body, tuple(peer[:2])))
        await self._notify()
        return body

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await self._record(request, self.requests)
        script = self._scripts.popleft() if self._scripts else self.default
        if script is self.default and body.get("stream") is False:
            return _whole_answer(script)
        return await self._play(request, script)

    async def _play(self, request: web.Request, script: Script) -> web.StreamResponse:
        if script.drop:
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        response = web.StreamResponse(
            status=script.status, headers={"Content-Type": script.content_type, **script.headers}
        )
        try:
            await response.prepare(request)
            for step in script.steps:
                if not await self._step(request, response, step, script.slice_bytes):
                    return response
            await response.write_eof()
        except (asyncio.CancelledError, ConnectionError):
            self.left += 1
            await asyncio.shield(self._notify())
            raise
        return response

    async def _step(
        self,
        request: web.Request,
        response: web.StreamResponse,
        step: Step,
        slice_bytes: int | None,
    ) -> bool:
        match step:
            case bytes():
                for piece in _slices(step, slice_bytes):
                    await response.write(piece)
                    if slice_bytes:
                        await asyncio.sleep(0)  # so that slices leave as separate packets
            case Pause(seconds):
                await asyncio.sleep(seconds)
            case Hold():
                await self._released.wait()
            case Endless(data):
                while True:
                    await response.write(data)
                    await asyncio.sleep(0)
            case Reset():
                await asyncio.sleep(0.01)  # RST discards what is still in the socket's buffers
                reset(request)
                return False
        return True

    async def _prefill(self, request: web.Request) -> web.StreamResponse:
        body = await self._record(request, self.others)
        if self.prefill_script is not None:
            return await self._play(request, self.prefill_script)
        tokens = sum(len(message["content"].split()) for message in body["messages"])
        return web.json_response({"tokens": tokens, "cached": 0})

    async def _tokenize(self, request: web.Request) -> web.StreamResponse:
        body = await self._record(request, self.others)
        if self.tokenize_script is not None:
            return await self._play(request, self.tokenize_script)
        return web.json_response({"counts": [len(text.split()) for text in body["texts"]]})

    async def _models(self, request: web.Request) -> web.StreamResponse:
        await self._record(request, self.others)
        return web.json_response({"object": "list", "data": [{"id": "scripted"}]})

    async def _health(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"status": "ok"})


def reset(request: web.BaseRequest) -> None:
    """Abort the connection of ``request`` with a TCP RST."""
    transport = request.transport
    if transport is None:
        return
    sock = transport.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def _slices(data: bytes, size: int | None) -> Iterable[bytes]:
    if not size:
        return (data,)
    return (data[i : i + size] for i in range(0, len(data), size))


def _whole_answer(script: Script) -> web.Response:
    texts = []
    for step in script.steps:
        if isinstance(step, bytes) and step.startswith(b"data: {"):
            for choice in orjson.loads(step[6:])["choices"]:
                texts.append(choice["delta"].get("content", ""))
    message = {"role": "assistant", "content": "".join(texts)}
    return web.json_response(
        {
            "object": "chat.completion",
            "model": "scripted",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        }
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Serve one paced reply for ever; prints ``port N`` once listening."""
    parser = argparse.ArgumentParser(description="Scripted OpenAI-compatible server")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=32, help="events a reply")
    parser.add_argument("--ttft-ms", type=float, default=0.0)
    parser.add_argument("--token-ms", type=float, default=0.0)
    parser.add_argument("--plain", action="store_true", help="no prefill, no tokenize route")
    args = parser.parse_args(argv)

    async def serve() -> None:
        server = FakeLLM(port=args.port, managed=not args.plain)
        server.default = reply(
            *[f" word{i}" for i in range(args.tokens)],
            ttft_s=args.ttft_ms / 1000,
            token_s=args.token_ms / 1000,
            counts=(100, args.tokens, 90),
        )
        async with server:
            print(f"port {server.url.rsplit(':', 1)[1]}", flush=True)
            while await asyncio.to_thread(sys.stdin.readline):  # ends with its parent
                pass

    asyncio.run(serve())


if __name__ == "__main__":
    main()
