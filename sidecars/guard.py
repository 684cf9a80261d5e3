"""What every request to a sidecar passes: Host and Origin, bearer token, limits, typed errors.

All refusals have one shape, which OpenAI clients understand:
``{"error": {"message", "type", "code"}}``.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

import orjson
from aiohttp import web
from pydantic import BaseModel, Field, ValidationError

from brain.errors import InputError, LimbicError
from brain.schema import WireFrame, describe
from sidecars.batching import Shed

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
BodyT = TypeVar("BodyT", bound=BaseModel)
MAX_DEADLINE_MS = 86_400_000
OPEN_PATHS = frozenset({"/health"})
BODY_TIMEOUT_S = web.AppKey("body_timeout_s", float)

log = logging.getLogger(__name__)


class Problem(Exception):
    """An answer that is an error: HTTP ``status``, stable ``code``, one sentence."""

    def __init__(self, status: int, code: str, message: str, retry_after_s: int | None = None):
        self.status = status
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s
        super().__init__(message)

    def response(self) -> web.Response:
        """The HTTP answer."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        body = {"error": {"message": self.message, "type": kind, "code": self.code}}
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        return json_response(body, status=self.status, headers=headers)


class Timed(WireFrame):
    """Fields that any request body may carry: whose turn it is, and the time left when sent."""

    turn_id: Annotated[str, Field(max_length=128)] | None = None
    deadline_ms: (
        Annotated[float, Field(strict=True, ge=0, le=MAX_DEADLINE_MS, allow_inf_nan=False)] | None
    ) = None


@dataclass(frozen=True, slots=True)
class RequestContext:
    """``deadline`` is on the monotonic clock, in seconds; ``None`` for no limit."""

    turn_id: str | None
    deadline: float | None


def json_response(
    body: object, *, status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    """A JSON answer. NaN would become null in silence: check results before they get here."""
    return web.Response(
        body=orjson.dumps(body), status=status, headers=headers, content_type="application/json"
    )


async def read_body(request: web.Request, model: type[BodyT]) -> BodyT:
    """Read and check a JSON body, within the size and time limits.

    Raises:
        Problem: 400 not JSON or outside the contract, 408 too slow. (Too large is aiohttp's 413.)
    """
    try:
        async with asyncio.timeout(request.app[BODY_TIMEOUT_S]):
            raw = await request.read()
    except TimeoutError:
        raise Problem(408, "body_timeout", "the request body did not arrive in time") from None
    try:
        return model.model_validate(orjson.loads(raw))
    except orjson.JSONDecodeError as error:
        raise Problem(400, "invalid_json", f"the body is not valid JSON: {error}") from error
    except ValidationError as error:
        raise Problem(400, "invalid_request", describe(error)) from error


def context_of(request: web.Request, body: Timed) -> RequestContext:
    """Turn id and deadline: the body's, else ``X-Limbic-Turn`` and ``X-Limbic-Deadline-Ms``."""
    left_ms = body.deadline_ms
    if left_ms is None and (header := request.headers.get("X-Limbic-Deadline-Ms")):
        try:
            left_ms = float(header)
        except ValueError:
            left_ms = -1.0
        if not 0 <= left_ms <= MAX_DEADLINE_MS:
            raise Problem(400, "invalid_request", "X-Limbic-Deadline-Ms must be milliseconds ≥ 0")
    turn = body.turn_id or request.headers.get("X-Limbic-Turn")
    if turn and not _is_unicode(turn):
        raise Problem(400, "invalid_request", "X-Limbic-Turn must be UTF-8 text")
    return RequestContext(
        turn_id=turn[:128] if turn else None,
        deadline=None if left_ms is None else time.monotonic() + left_ms / 1000,
    )


@dataclass(frozen=True, slots=True)
class Guard:
    """Host, Origin and token rules.

    DNS rebinding needs a name in ``Host``; so loopback names, literal addresses and the names in
    ``allow_hosts`` pass, and nothing else does. A browser always sends ``Origin`` across sites.
    """

    token: str | None
    allow_hosts: frozenset[str] = frozenset()

    def check(self, request: web.Request) -> None:
        """Raise ``Problem`` 403 or 401 unless the request may be answered."""
        if not self._known(request.headers.get("Host", "")):
            raise Problem(403, "bad_host", "the Host header names another server")
        origin = request.headers.get("Origin")
        if origin is not None and not self._known(_netloc(origin)):
            raise Problem(403, "bad_origin", "requests from other web pages are refused")
        if self.token is None or request.path in OPEN_PATHS:
            return
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        same = hmac.compare_digest(_bytes(given.strip()), _bytes(self.token))
        if scheme.lower() != "bearer" or not same:
            raise Problem(401, "unauthorized", "a bearer token is needed")

    def _known(self, netloc: str) -> bool:
        try:
            host = (urlsplit(f"//{netloc}").hostname or "").rstrip(".")
        except ValueError:
            return False
        if host == "localhost" or host in self.allow_hosts:
            return True
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return False
        return True


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _is_unicode(text: str) -> bool:
    """Whether JSON can carry it: a header's bytes that are no UTF-8 are surrogates in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _bytes(text: str) -> bytes:
    """A header or a variable as it came: bytes that are no UTF-8 are surrogates in it."""
    return text.encode("utf-8", "surrogateescape")


async def as_response(handler: Handler, request: web.Request) -> web.StreamResponse:
    """Run a handler and turn whatever it raises into an answer of the one error shape."""
    try:
        return await handler(request)
    except Problem as problem:
        return problem.response()
    except Shed as shed:
        return Problem(shed.status, shed.reason, str(shed), shed.retry_after_s).response()
    except InputError as error:
        return Problem(error.http_status, error.code, str(error)).response()
    except web.HTTPRequestEntityTooLarge:
        return Problem(413, "too_large", "the request body is over the limit").response()
    except web.RequestPayloadError:
        # The rest of the body cannot be told from what follows it: nothing more is read.
        request.content.feed_eof()
        answer = Problem(400, "invalid_body", "the body is not what its headers say").response()
        answer.force_close()
        return answer
    except web.HTTPException as error:
        code = (error.reason or "error").lower().replace(" ", "_")
        return Problem(error.status, code, error.reason or "error").response()
    except ConnectionError:
        raise  # the client left
    except LimbicError as error:
        log.error("%s %s: %s", request.method, request.path, error)
        return Problem(error.http_status, error.code, str(error)).response()
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return Problem(500, "internal", "the sidecar failed; its log says how").response()
