"""HTTP requests of the brain: the shared session, and a bounded JSON request with a deadline.

Whatever goes wrong leaves here as one of ``brain.errors`` (see ``brain.remote_errors``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Literal

import aiohttp
import orjson

from brain.clock import Clock
from brain.errors import (
    InputError,
    ProtocolError,
    RemoteRejected,
    RemoteTimeout,
    RemoteUnavailable,
)
from brain.events import Endpoint, EndpointSource
from brain.remote_errors import FOREIGN, dropped, status_error, translate

MAX_BODY_BYTES = 1024 * 1024
MAX_ERROR_BODY_BYTES = 64 * 1024


def open_http() -> aiohttp.ClientSession:
    """The HTTP session that all clients of a brain share; the caller closes it.

    No limit on connections: the brain bounds turns itself, and a request that waits for a pool
    slot would look like a remote that does not answer. No proxies, cookies or compression.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60.0),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Accept-Encoding": "identity", "User-Agent": "limbic"},
        timeout=aiohttp.ClientTimeout(total=None),
        trust_env=False,
    )


def encode_body(body: Mapping[str, Any]) -> bytes:
    """A request's JSON.

    Raises:
        InputError: text that no JSON can carry, such as a lone surrogate.
    """
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError as error:
        raise InputError(f"the request cannot be written as JSON: {error}") from error


async def read_bounded(response: aiohttp.ClientResponse, *, max_bytes: int, remote: str) -> bytes:
    """The whole body of ``response``, which is closed when it is larger than ``max_bytes``.

    Raises:
        ProtocolError: too large. And whatever the HTTP library raises.
    """
    body = bytearray()
    while chunk := await response.content.readany():
        body += chunk
        if len(body) > max_bytes:
            response.close()
            raise ProtocolError(
                f"the {remote} answered with more than {max_bytes} bytes", remote=remote
            )
    return bytes(body)


async def post_json(
    http: aiohttp.ClientSession,
    endpoint: EndpointSource | Endpoint,
    path: str,
    body: Mapping[str, Any],
    *,
    remote: str,
    clock: Clock,
    turn_id: str,
    deadline_ms: float,
    marks: Literal["fields", "headers"] = "fields",
    max_bytes: int = MAX_BODY_BYTES,
) -> bytes:
    """POST ``body`` to ``path`` and return the bytes of the 200 answer.

    ``deadline_ms`` bounds everything together: finding the endpoint, connecting, every byte of the
    answer. The request carries ``turn_id`` and the time left, as JSON fields or as headers. A
    pooled connection that the server had closed is replaced once, without the caller's notice.

    Raises:
        RemoteError: any of its subclasses. SidecarError: from the endpoint source.
        InputError: text that JSON cannot carry.
    """
    started = clock.monotonic()
    url = ""
    if deadline_ms <= 0:
        raise RemoteTimeout(f"no time was left to ask the {remote}", remote=remote)
    try:
        async with asyncio.timeout(deadline_ms / 1000):
            target = endpoint if isinstance(endpoint, Endpoint) else await endpoint()
            check_headers(target, remote=remote)
            url = target.url.rstrip("/") + path
            for fresh in (False, True):
                left_ms = max(1, round(deadline_ms - (clock.monotonic() - started) * 1000))
                headers = {"Content-Type": "application/json", **target.headers}
                if marks == "headers":
                    headers.update(mark_headers(turn_id, left_ms))
                    payload = encode_body(body)
                else:
                    payload = encode_body({**body, "turn_id": turn_id, "deadline_ms": left_ms})
                try:
                    return await _exchange(
                        http, url, payload, headers, remote=remote, clock=clock, max_bytes=max_bytes
                    )
                except RemoteUnavailable as error:
                    if fresh or not dropped(error):
                        raise
            raise AssertionError("unreachable: the second try returns or raises")
    except TimeoutError as error:
        raise translate(error, remote=remote, url=url) from error


def check_headers(endpoint: Endpoint, *, remote: str) -> None:
    """Refuse a token that cannot be sent, such as one read together with its line end.

    Raises:
        RemoteRejected: the token holds control characters.
    """
    if endpoint.token and not endpoint.token.isprintable():
        raise RemoteRejected(
            f"the API key of the {remote} holds a line break or control character; correct it",
            remote=remote,
        )


def mark_headers(turn_id: str, left_ms: int) -> dict[str, str]:
    """Turn id and time left as headers, for servers whose JSON is not ours to extend."""
    return {"X-Limbic-Turn": turn_id, "X-Limbic-Deadline-Ms": str(left_ms)}


async def _exchange(
    http: aiohttp.ClientSession,
    url: str,
    payload: bytes,
    headers: Mapping[str, str],
    *,
    remote: str,
    clock: Clock,
    max_bytes: int,
) -> bytes:
    if http.closed:
        raise RemoteUnavailable(f"the {remote} is not asked: shutting down", remote=remote)
    try:
        async with http.post(url, data=payload, headers=headers, allow_redirects=False) as response:
            if response.status == 200:
                return await read_bounded(response, max_bytes=max_bytes, remote=remote)
            body = await read_bounded(response, max_bytes=MAX_ERROR_BODY_BYTES, remote=remote)
            raise status_error(
                response.status,
                response.headers,
                body,
                remote=remote,
                url=url,
                now=clock.time(),
            )
    except FOREIGN as error:
        raise translate(error, remote=remote, url=url) from error
