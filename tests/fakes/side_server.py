"""A scripted CAHM and LVM in one HTTP server.

By default it answers well: a neutral affect, embeddings that are a fixed function of the text, and
the mean of the context as prediction. ``server.enqueue(path, Answer(...))`` scripts the next
answers of one route. Encoding what the agent said is a route of its own, ``REPLIES``.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import orjson
from aiohttp import web

from tests.fakes.llm_server import Recorded, reset

REASONING = "/v1/affect/reasoning"
REPLIES = "/encode, of replies"
AFFECT = {
    "valence": 0.2,
    "intimacy": 0.4,
    "tension": -0.1,
    "confidence": 0.8,
    "tags": ["playful_neutral"],
    "reasoning": "",
    "latency_ms": 3.0,
    "model": "scripted",
}


@dataclass(frozen=True)
class Answer:
    """One scripted answer.

    ``body`` is sent as JSON, or as it is when bytes. ``delay_s`` comes first; ``hold`` waits until
    the client leaves or ``release()``; ``drip_s`` sends one byte in so many seconds; ``reset``
    aborts the connection; ``drop`` closes it without an answer.
    """

    body: Any = None
    status: int = 200
    delay_s: float = 0.0
    hold: bool = False
    drip_s: float | None = None
    reset: bool = False
    drop: bool = False


class FakeSide:
    """The server. ``dim`` is the dimension of its vectors; ``left`` counts clients that gave up,
    and ``departed`` is set by the first. ``encoder`` is the hash that its vectors come with, where
    it is set, and ``embed(text, dim)`` makes them. ``replies`` are what the agent may say."""

    def __init__(self, *, dim: int = 8) -> None:
        self.dim = dim
        self.encoder = ""
        self.embed: Callable[[str, int], list[float]] = embedding
        self.replies = {"Hello there!"}
        self.requests: list[Recorded] = []
        self.left = 0
        self.departed = asyncio.Event()
        self._moved = asyncio.Event()
        self._port = 0
        self._answers: dict[str, deque[Answer]] = defaultdict(deque)
        self._released = asyncio.Event()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """Base address."""
        return f"http://127.0.0.1:{self._port}"

    def enqueue(self, path: str, *answers: Answer) -> None:
        """Answer the next requests for ``path`` with these."""
        self._answers[path].extend(answers)

    def release(self) -> None:
        """Let every held answer go."""
        self._released.set()

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait until ``true()``, which is asked whenever a request comes or a client leaves."""
        while not true():
            self._moved.clear()
            await self._moved.wait()

    def asked(self, path: str) -> list[Recorded]:
        """The requests that came for ``path``."""
        return [request for request in self.requests if request.path == path]

    async def __aenter__(self) -> Self:
        app = web.Application()
        for path in ("/v1/affect", "/v1/affect/batch", REASONING, "/encode", "/infer"):
            app.router.add_post(path, self._answer)
        for path in ("/health", "/ready"):
            app.router.add_get(path, self._answer)
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
        assert self._runner is not None
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = orjson.loads(await request.read() or b"null")
        peer = request.transport.get_extra_info("peername") if request.transport else ("", 0)
        path = request.path
        if path == "/encode" and self.replies.issuperset(body["texts"]):
            path = REPLIES
        self.requests.append(Recorded(path, dict(request.headers), body, tuple(peer[:2])))
        self._moved.set()
        queue = self._answers[path]
        answer = queue.popleft() if queue else Answer()
        try:
            return await self._play(request, answer, body)
        except (asyncio.CancelledError, ConnectionError):
            self.left += 1
            self.departed.set()
            self._moved.set()
            raise

    async def _play(self, request: web.Request, answer: Answer, body: Any) -> web.StreamResponse:
        if answer.delay_s:
            await asyncio.sleep(answer.delay_s)
        if answer.hold:
            await self._released.wait()
        if answer.reset:
            reset(request)
            return web.Response()
        if answer.drop:
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        value = self._good(request.path, body) if answer.body is None else answer.body
        data = value if isinstance(value, bytes) else orjson.dumps(value)
        response = web.StreamResponse(
            status=answer.status, headers={"Content-Type": "application/json"}
        )
        await response.prepare(request)
        if answer.drip_s is None:
            await response.write(data)
        else:
            for byte in data:
                await response.write(bytes((byte,)))
                await asyncio.sleep(answer.drip_s)
        await response.write_eof()
        return response

    def _good(self, path: str, body: Any) -> Any:
        if path == "/v1/affect":
            return AFFECT
        if path == "/v1/affect/batch":
            return {"items": [AFFECT] * len(body["items"])}
        if path == REASONING:
            return {"turn_id": body.get("turn_id", ""), "reasoning": "tension: “rough” +0.20"}
        if path == "/encode":
            rows = [self.embed(text, self.dim) for text in body["texts"]]
            name = {"encoder": self.encoder, "encoder_name": "fake"} if self.encoder else {}
            return {"embeddings": rows, "shape": [len(rows), self.dim], **name}
        if path == "/infer":
            rows = body["context_vectors"]
            mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
            return {"predicted_vector": mean, "latency_ms": 1.0, "model": "scripted"}
        return {"ready": True, "model": "scripted", "sha256": "", "version": "0"}


def embedding(text: str, dim: int) -> list[float]:
    """A unit vector that depends on nothing but ``text``."""
    values = [
        hashlib.blake2b(text.encode(), digest_size=2, key=str(i).encode()).digest()
        for i in range(dim)
    ]
    row = [int.from_bytes(value) / 32768 - 1 for value in values]
    norm = math.sqrt(sum(x * x for x in row))
    return [x / norm for x in row]
