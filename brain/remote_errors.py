"""Foreign failures → the error tree: exceptions, HTTP statuses, error bodies.

The only place that knows what aiohttp, the operating system and TLS raise. Every message is one
sentence that a person can act on and never holds a path, a query or credentials.
"""

from __future__ import annotations

import email.utils
import os
from collections.abc import Mapping
from typing import Literal

import aiohttp
import orjson
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from brain.errors import (
    ProtocolError,
    RateLimited,
    RemoteError,
    RemoteRejected,
    RemoteTimeout,
    RemoteUnavailable,
)

MAX_DETAIL_CHARS = 200

# What the HTTP library, sockets and TLS may raise; ``translate`` has a row for each family.
FOREIGN = (aiohttp.ClientError, HttpProcessingError, OSError, TimeoutError, EOFError)

Phase = Literal["connect", "first_token", "idle", "total"]


def translate(
    error: BaseException, *, remote: str, url: str = "", phase: Phase = "total"
) -> RemoteError:
    """Turn any of ``FOREIGN`` into the error tree; chain it with ``raise … from error``.

    ``phase`` names the limit that a bare ``TimeoutError`` stands for.
    """
    where = f"the {remote} at {origin(url)}" if url else f"the {remote}"
    match error:
        case aiohttp.ConnectionTimeoutError():
            return RemoteTimeout(
                f"{where} could not be reached in time; is it running?",
                remote=remote,
                phase="connect",
            )
        case TimeoutError():
            return RemoteTimeout(
                f"{where} did not answer in time ({phase} limit)", remote=remote, phase=phase
            )
        case (
            aiohttp.ClientConnectorCertificateError()
            | aiohttp.ClientSSLError()
            | aiohttp.ServerFingerprintMismatch()
        ):
            return ProtocolError(
                f"{where} has no valid TLS certificate; check the address and the certificate",
                remote=remote,
            )
        case aiohttp.ClientConnectorDNSError():
            return RemoteUnavailable(
                f"{where} has a host name that does not resolve; check the address", remote=remote
            )
        case aiohttp.ClientConnectorError():
            return RemoteUnavailable(
                f"{where} cannot be connected to ({_reason(error)}); is it running?", remote=remote
            )
        case aiohttp.InvalidURL() | aiohttp.NonHttpUrlClientError():
            return RemoteRejected(
                f"the address of the {remote} cannot be used; correct it in the configuration",
                remote=remote,
            )
        case aiohttp.RedirectClientError():
            return ProtocolError(f"{where} redirects; configure its final address", remote=remote)
        case aiohttp.ClientPayloadError() | aiohttp.ClientConnectionError() | EOFError():
            return RemoteUnavailable(
                f"{where} closed the connection before its answer was complete", remote=remote
            )
        case aiohttp.ClientResponseError() | HttpProcessingError() | aiohttp.UploadAbortedError():
            return ProtocolError(f"{where} does not speak HTTP correctly", remote=remote)
        case OSError():
            return RemoteUnavailable(f"{where} cannot be reached ({_reason(error)})", remote=remote)
        case _:
            return ProtocolError(f"{where} failed: {type(error).__name__}", remote=remote)


def dropped(error: RemoteError) -> bool:
    """Whether the connection closed under a request before any byte of an answer.

    On a pooled connection that is usually the server having closed it between two requests, which
    says nothing of its health: the same request on a fresh connection is due.
    """
    cause = error.__cause__
    if isinstance(cause, aiohttp.ClientConnectorError):
        return False
    return isinstance(
        cause, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError | ConnectionError
    )


def status_error(
    status: int, headers: Mapping[str, str], body: bytes, *, remote: str, url: str, now: float
) -> RemoteError:
    """The error for an HTTP answer other than 200.

    Args:
        now: seconds since the epoch, for a Retry-After given as a date.
    """
    where = f"the {remote} at {origin(url)}"
    detail = _detail(_error_of(body))
    retry_after_s = parse_retry_after(headers.get("Retry-After"), now=now)
    if status == 429 or (status == 503 and retry_after_s is not None):
        return RateLimited(
            f"{where} is busy (HTTP {status}); try again"
            + (f" in {retry_after_s:.0f} s" if retry_after_s else " shortly")
            + detail,
            remote=remote,
            retry_after_s=retry_after_s,
        )
    if status >= 500:
        return RemoteUnavailable(f"{where} failed (HTTP {status}){detail}", remote=remote)
    if status >= 400:
        hint = {
            401: "; check its API key",
            403: "; check its API key",
            404: "; check its address and model name",
            413: "; the request is too large for it",
        }.get(status, "")
        return RemoteRejected(
            f"{where} refused the request (HTTP {status}){hint}{detail}",
            remote=remote,
            status=status,
        )
    if 300 <= status < 400:
        return ProtocolError(
            f"{where} redirects (HTTP {status}); configure its final address", remote=remote
        )
    return ProtocolError(f"{where} answered HTTP {status} where 200 was expected", remote=remote)


def body_error(error: object, *, remote: str) -> RemoteError:
    """The error for an ``error`` member found inside a 200 answer or a stream event."""
    detail = _detail(error)
    code = error.get("code") if isinstance(error, dict) else None
    kind = f"{error.get('type')} {code}" if isinstance(error, dict) else ""
    status = code if isinstance(code, int) and not isinstance(code, bool) else 0
    if status == 429 or "rate_limit" in kind:
        return RateLimited(f"the {remote} is busy; try again shortly{detail}", remote=remote)
    if status >= 500 or "server_error" in kind or "overloaded" in kind:
        return RemoteUnavailable(f"the {remote} failed while answering{detail}", remote=remote)
    if 400 <= status < 500 or "invalid_request" in kind:
        return RemoteRejected(
            f"the {remote} refused the request{detail}", remote=remote, status=status or 400
        )
    return ProtocolError(f"the {remote} answered with an error{detail}", remote=remote)


def parse_retry_after(value: str | None, *, now: float) -> float | None:
    """Seconds to wait from a ``Retry-After`` header (RFC 9110, 10.2.3): a number or a date."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - now
        except (ValueError, OverflowError):
            return None
    return min(max(seconds, 0.0), 86_400.0) if seconds == seconds else None


def origin(url: str) -> str:
    """Scheme, host and port of ``url``, for messages; never its credentials or path."""
    try:
        return str(URL(url).origin())
    except ValueError:
        return "its address"


def _reason(error: OSError) -> str:
    number = error.errno
    return os.strerror(number) if isinstance(number, int) and number > 0 else type(error).__name__


def _error_of(body: bytes) -> object:
    """What an error body says: its ``error`` or ``detail`` member, or nothing."""
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(parsed, dict):
        return None
    return parsed.get("error") or parsed.get("detail") or parsed.get("message")


def _detail(error: object) -> str:
    """The remote's own words as a short, printable suffix; empty when it gave none."""
    said = error.get("message") if isinstance(error, dict) else error
    if not isinstance(said, str):
        return ""
    words = " ".join("".join(c if c.isprintable() else " " for c in said[:1000]).split())
    if not words:
        return ""
    return f": {words[:MAX_DETAIL_CHARS]}" + ("…" if len(words) > MAX_DETAIL_CHARS else "")
