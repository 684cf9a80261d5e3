"""Routes and middleware of ``limbic serve``.

Loopback by default; another bind needs a token. The ``Host`` and ``Origin`` of every request are
checked (a page elsewhere cannot reach us through DNS rebinding), tokens are compared in constant
time, bodies are limited, and an error is one JSON object with a sentence in it.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import os
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import orjson
from aiohttp import web

from brain.app import Limbic
from brain.errors import ConfigError, InputError, LimbicError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
LIMBIC: web.AppKey[Limbic] = web.AppKey("limbic", Limbic)
KEEPALIVE_S = 15.0
OPEN_PATHS = frozenset({"/health"})


def make_app(limbic: Limbic, *, host: str, token: str | None) -> web.Application:
    """The application that serves one running brain.

    Raises:
        ConfigError: ``host`` is not loopback and there is no token.
    """
    if not is_loopback(host) and not token:
        raise ConfigError(
            f"web.host {host}: a bind other than loopback needs a token; set web.token_env to the "
            "name of an environment variable that holds one"
        )
    app = web.Application(middlewares=[_errors, _guard(host, token)])
    app[LIMBIC] = limbic
    app.on_shutdown.append(_end_streams)  # else stopping waits for as long as anyone reads
    app.router.add_get("/health", health)
    app.router.add_get("/ready", ready)
    app.router.add_get("/telemetry/snapshot", snapshot)
    app.router.add_get("/telemetry/stream", stream)
    return app


async def health(request: web.Request) -> web.Response:
    """The process lives."""
    return _json({"status": "ok"})


async def ready(request: web.Request) -> web.Response:
    """200 when a turn can be answered, else 503; either way a reason for each part."""
    limbic = request.app[LIMBIC]
    snap = await limbic.snapshot()
    parts = {
        name: {"state": part["state"], "reason": part["reason"]}
        for name, part in snap["sidecars"].items()
    }
    status = 503 if snap["status"] == "unready" else 200
    body = {"ready": status == 200, "status": snap["status"], "parts": parts}
    return _json({**body, "problems": snap["problems"]}, status=status)


async def snapshot(request: web.Request) -> web.Response:
    """See ``docs/contracts.md``."""
    return _json(await request.app[LIMBIC].snapshot())


async def stream(request: web.Request) -> web.StreamResponse:
    """The event log, live, as server-sent events, until the server stops; a slow reader loses the
    oldest events."""
    limbic = request.app[LIMBIC]
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
    )
    async with limbic.telemetry.subscribe() as queue:
        await response.prepare(request)
        while True:
            try:
                async with asyncio.timeout(KEEPALIVE_S):
                    line = await queue.get()
            except TimeoutError:
                line = b""
            if line is None:
                break
            await response.write(b"data: " + line + b"\n\n" if line else b": keep-alive\n\n")
    await response.write_eof()
    return response


async def _end_streams(app: web.Application) -> None:
    app[LIMBIC].telemetry.end_subscriptions()


def is_loopback(host: str) -> bool:
    """Whether a bind address is reachable from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def token_from(env_name: str | None) -> str | None:
    """The token that ``web.token_env`` names.

    Raises:
        ConfigError: the variable is not set, or too short to be a secret.
    """
    if env_name is None:
        return None
    value = os.environ.get(env_name, "")
    if len(value) < 16:
        raise ConfigError(f"environment variable {env_name}: set it to at least 16 characters")
    return value


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        return _problem(error.status, error.reason, type(error).__name__)
    except LimbicError as error:
        return _problem(error.http_status, str(error), error.code)


def _guard(host: str, token: str | None) -> Any:
    allowed = {"localhost", "127.0.0.1", "::1"} if is_loopback(host) else {host}

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        name = _hostname(request.headers.get("Host", ""))
        if is_loopback(host) and name not in allowed:
            shown = name.encode("ascii", "backslashreplace").decode() or "none"
            raise InputError(f"host {shown} is not served here; use http://127.0.0.1")
        origin = request.headers.get("Origin")
        if origin is not None and _netloc(origin) != request.headers.get("Host", ""):
            return _problem(403, "requests from other origins are refused", "Forbidden")
        if token is not None and request.path not in OPEN_PATHS:
            sent = request.headers.get("Authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(_bytes(sent), _bytes(token)):
                return _problem(401, "send Authorization: Bearer TOKEN", "Unauthorized")
        return await handler(request)

    return guard


def _hostname(header: str) -> str:
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc or None
    except ValueError:
        return None


def _bytes(text: str) -> bytes:
    """A header or a variable as it came: bytes that are no UTF-8 are surrogates in it."""
    return text.encode("utf-8", "surrogateescape")


def _json(body: Any, *, status: int = 200) -> web.Response:
    return web.Response(
        body=orjson.dumps(body, default=str),
        status=status,
        content_type="application/json",
        headers={"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"},
    )


def _problem(status: int, message: str, code: str) -> web.Response:
    return _json({"error": {"message": message, "code": code}}, status=status)
