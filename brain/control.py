"""What the supervisor asks of a sidecar over HTTP: is it ready, is it alive, how long is its queue.

Every request has one total deadline (a server that drips a byte a second cannot stretch it) and a
limit on the size of the answer; foreign exceptions become ``brain.errors``.
"""

from __future__ import annotations

import aiohttp
import orjson

from brain.errors import (
    LimbicError,
    ProtocolError,
    RemoteRejected,
    RemoteTimeout,
    RemoteUnavailable,
)
from brain.events import Endpoint
from brain.schema import Ready, parse_wire

MAX_BODY_BYTES = 64 * 1024


def control_session() -> aiohttp.ClientSession:
    """A session with connections of its own, so that no burst of chat requests delays a heartbeat
    until a healthy sidecar looks dead."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar()
    )


class ControlClient:
    """Asks one sidecar, named ``name`` in errors, at whatever endpoint it has now."""

    def __init__(self, http: aiohttp.ClientSession, name: str) -> None:
        self._http = http
        self._name = name

    async def ready(self, endpoint: Endpoint, *, timeout_s: float) -> Ready:
        """``GET /ready``; "not ready" may come with status 503.

        Raises:
            RemoteUnavailable, RemoteTimeout, RemoteRejected (4xx), ProtocolError.
        """
        status, body = await self._get(endpoint, "/ready", timeout_s)
        if status == 503:
            try:
                return parse_wire(Ready, body, remote=self._name).model_copy(
                    update={"ready": False}
                )
            except ProtocolError:
                raise self._bad_status("/ready", status) from None
        if status != 200:
            raise self._bad_status("/ready", status)
        return parse_wire(Ready, body, remote=self._name)

    async def health(self, endpoint: Endpoint, *, timeout_s: float) -> int | None:
        """``GET /health``: the length of the queue, if the sidecar says (``"queue"`` in its JSON).

        Raises:
            RemoteUnavailable, RemoteTimeout, RemoteRejected (4xx), ProtocolError.
        """
        status, body = await self._get(endpoint, "/health", timeout_s)
        if status != 200:
            raise self._bad_status("/health", status)
        try:
            value = orjson.loads(body)
        except orjson.JSONDecodeError:
            return None
        queue = value.get("queue") if isinstance(value, dict) else None
        return queue if type(queue) is int and 0 <= queue < 2**31 else None

    async def _get(self, endpoint: Endpoint, path: str, timeout_s: float) -> tuple[int, bytes]:
        url = endpoint.url.rstrip("/").removesuffix("/v1") + path
        name = self._name
        try:
            async with self._http.get(
                url,
                headers=endpoint.headers,
                timeout=aiohttp.ClientTimeout(total=timeout_s),
                allow_redirects=False,
            ) as response:
                body = bytearray()
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) > MAX_BODY_BYTES:
                        raise ProtocolError(
                            f"{name} answered {path} with over {MAX_BODY_BYTES} bytes", remote=name
                        )
                return response.status, bytes(body)
        except TimeoutError as error:
            raise RemoteTimeout(
                f"{name} did not answer {path} within {timeout_s:g} s", remote=name
            ) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise RemoteUnavailable(
                f"{name} cannot be reached at {url}: {str(error) or type(error).__name__}",
                remote=name,
            ) from error

    def _bad_status(self, path: str, status: int) -> LimbicError:
        text = f"{self._name} answered {path} with status {status}"
        if 400 <= status < 500:
            return RemoteRejected(text, remote=self._name, status=status)
        return RemoteUnavailable(text, remote=self._name)
