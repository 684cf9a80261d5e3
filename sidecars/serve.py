"""What every sidecar shares once it runs: listening, health, load, handshake, drain.

``SidecarServer`` binds the port first (so that a taken port is reported before a model loads),
answers ``/health`` while the service's ``load`` runs in a thread, announces itself in one JSON
line, serves, and drains when asked to stop. ``sidecars.launch`` makes a process of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from typing import Self, TypeVar

from aiohttp import web

from brain.errors import EXIT_OK, ConfigError
from sidecars.guard import BODY_TIMEOUT_S, Guard, Handler, Problem, as_response, json_response
from sidecars.metrics import Metrics, rss_mb
from sidecars.process import ParentLine
from sidecars.service import LoadCancelled, ModelInfo, Service

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """How to listen. Sizes in bytes, times in seconds."""

    host: str = "127.0.0.1"
    port: int = 0
    token: str | None = None
    managed: bool = False
    allow_hosts: frozenset[str] = frozenset()
    max_body_bytes: int = 4 * 1024 * 1024
    header_timeout_s: float = 30.0
    body_timeout_s: float = 30.0
    max_connections: int = 256
    drain_s: float = 3.0

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"--port must be 0 to 65535 (got {self.port})")
        if not self.token and not is_loopback(self.host):
            raise ConfigError(
                f"--host {self.host} can be reached from other machines and needs a token: "
                "give --token-env NAME, or listen on 127.0.0.1"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@cache
def version() -> str:
    """Limbic's version, ``0`` when it runs from a bare checkout."""
    try:
        return package_version("limbic-runtime")
    except PackageNotFoundError:
        return "0"


class SidecarServer:
    """A service that listens. ``async with`` in tests; ``run`` for a whole process."""

    def __init__(
        self, service: Service, options: ServeOptions, line: ParentLine | None = None
    ) -> None:
        self._service = service
        self._options = options
        self._line = line
        self._guard = Guard(options.token, options.allow_hosts)
        self._metrics = service.metrics = Metrics(service.name, service.queue_length)
        self._info: ModelInfo | None = None
        self._stopping = threading.Event()
        self._active: set[asyncio.Task[object]] = set()
        # Reading one's own vitals reads files; not on the loop, and not behind other work.
        self._vitals = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vitals")
        self._idle = asyncio.Event()
        self._idle.set()
        self._version = version()
        self.port = 0

    @property
    def url(self) -> str:
        """Base address, once listening."""
        host = self._options.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    async def __aenter__(self) -> Self:
        await self.listen()
        try:
            await self.load()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def listen(self) -> None:
        """Bind and answer ``/health``.

        Raises:
            ConfigError: the address cannot be used.
        """
        options = self._options
        # The size limit also bounds what a compressed body may unpack to.
        app = web.Application(client_max_size=options.max_body_bytes, middlewares=[self._around])
        app[BODY_TIMEOUT_S] = options.body_timeout_s
        app.router.add_get("/health", self._health)
        app.router.add_get("/ready", self._ready)
        app.router.add_get("/metrics", self._metrics_text)
        app.router.add_routes(list(self._service.routes()))
        # handler_cancellation: a client that disconnects cancels its handler, which stops the
        # model. The keep-alive timer runs from the start of a connection until a request's
        # headers are complete, so it is the header timeout as well.
        self._runner = web.AppRunner(
            app,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=options.header_timeout_s,
            lingering_time=1.0,
        )
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        try:
            self._listener = await loop.create_server(
                self._accept, sock=_bind(options.host, options.port)
            )
        except BaseException:
            await self._runner.cleanup()
            raise
        self.port = self._listener.sockets[0].getsockname()[1]

    async def load(self) -> None:
        """Load the model in a thread and announce the sidecar.

        Raises:
            LimbicError: from the service. LoadCancelled: asked to stop meanwhile.
        """
        progress = self._line.progress if self._line else lambda _: None
        info = await _in_daemon_thread(lambda: self._service.load(progress, self._stopping.is_set))
        await self._service.start()
        self._info = info
        if self._line:
            self._line.hello(
                port=self.port,
                url=self.url,
                model=info.model,
                sha256=info.sha256,
                version=self._version,
            )

    async def stop(self) -> None:
        """Accept nothing new, give requests in flight ``drain_s``, then cancel them."""
        self._stopping.set()
        self._listener.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._options.drain_s):
                await self._idle.wait()
        for task in list(self._active):
            task.cancel()
        if self._info is not None:
            await self._service.close()
        await self._runner.shutdown()
        await self._runner.cleanup()
        self._vitals.shutdown(wait=False)

    async def run(self) -> int:
        """Serve until a signal; returns the exit code."""
        loop = asyncio.get_running_loop()
        asked = asyncio.Event()

        def on_signal() -> None:
            if asked.is_set():
                os._exit(EXIT_OK)  # asked twice: now
            asked.set()
            self._stopping.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        await self.listen()
        load = asyncio.create_task(self.load())
        stop = asyncio.create_task(asked.wait())
        await asyncio.wait([load, stop], return_when=asyncio.FIRST_COMPLETED)
        try:
            if load.done():
                load.result()
                await stop
        except LoadCancelled:
            pass
        finally:
            load.cancel()
            stop.cancel()
            await self.stop()
        return EXIT_OK

    def _accept(self) -> asyncio.Protocol:
        server = self._runner.server
        assert server is not None
        if len(server.connections) >= self._options.max_connections:
            return _Refuse()
        return server()

    @web.middleware
    async def _around(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        route = request.match_info.route.resource
        label = route.canonical if route else "unknown"
        started = time.monotonic()
        task = asyncio.current_task()
        assert task is not None
        self._active.add(task)
        self._idle.clear()
        self._metrics.in_flight.inc()
        status = "cancelled"
        try:
            response = await as_response(self._checked(handler), request)
            status = str(response.status)
            if self._stopping.is_set() and not response.prepared:
                response.force_close()
            return response
        finally:
            self._active.discard(task)
            if not self._active:
                self._idle.set()
            self._metrics.in_flight.dec()
            self._metrics.requests.labels(label, status).inc()
            self._metrics.seconds.labels(label).observe(time.monotonic() - started)

    def _checked(self, handler: Handler) -> Handler:
        async def checked(request: web.Request) -> web.StreamResponse:
            self._guard.check(request)
            if request.path not in ("/health", "/ready", "/metrics"):
                if self._stopping.is_set():
                    raise Problem(503, "draining", "the sidecar is stopping", 1)
                if self._info is None:
                    raise Problem(503, "loading", "the model is still loading", 1)
            return await handler(request)

        return checked

    async def _health(self, _: web.Request) -> web.Response:
        service = self._service
        body = {"status": "ok", "busy": service.busy(), "queue": service.queue_length()}
        return json_response({**body, "rss_mb": await self._measured(rss_mb)})

    async def _ready(self, _: web.Request) -> web.Response:
        info = self._info
        ready = info is not None and not self._stopping.is_set()
        body = {
            "ready": ready,
            "model": info.model if info else "",
            "sha256": info.sha256 if info else "",
            "version": self._version,
            "queue": self._service.queue_length(),
            "rss_mb": await self._measured(rss_mb),
        }
        if info and info.products:
            body["products"] = info.products
        if not ready:
            body["reason"] = "stopping" if self._stopping.is_set() else "loading"
        return json_response(body, status=200 if ready else 503)

    async def _metrics_text(self, _: web.Request) -> web.Response:
        text = await self._measured(self._metrics.text)
        return web.Response(body=text, headers={"Content-Type": "text/plain; version=0.0.4"})

    async def _measured(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._vitals, function)


class _Refuse(asyncio.Protocol):
    """The protocol of a connection over the cap: closed at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


async def _in_daemon_thread(function: Callable[[], ModelInfo]) -> ModelInfo:
    """Like ``asyncio.to_thread`` but never joined, so that a stuck load cannot block exit."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[ModelInfo] = loop.create_future()

    def settle(value: ModelInfo | BaseException) -> None:
        if result.done():
            return
        if isinstance(value, BaseException):
            result.set_exception(value)
        else:
            result.set_result(value)

    def work() -> None:
        try:
            value: ModelInfo | BaseException = function()
        except BaseException as error:  # everything belongs to the waiter
            value = error
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits
            loop.call_soon_threadsafe(settle, value)

    threading.Thread(target=work, name="load", daemon=True).start()
    return await result


def _bind(host: str, port: int) -> socket.socket:
    """A listening-ready socket.

    Raises:
        ConfigError: the port is taken or the address is not one of this machine.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, proto)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} on {host} is in use; stop what uses it, or give --port 0"
            ) from error
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error.strerror or error}"
        ) from error
    return sock
