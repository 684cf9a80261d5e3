"""One boundary translates every foreign exception; a JSON request is bounded in time and size."""

from __future__ import annotations

import asyncio
import builtins
import errno
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import format_datetime

import aiohttp
import aiohttp.client_exceptions
import aiohttp.http_exceptions
import pytest

from brain.clock import SystemClock
from brain.errors import (
    InputError,
    ProtocolError,
    RateLimited,
    RemoteError,
    RemoteRejected,
    RemoteTimeout,
    RemoteUnavailable,
    SidecarDown,
)
from brain.remote import open_http, post_json
from brain.remote_errors import FOREIGN, body_error, parse_retry_after, status_error, translate
from tests.fakes.rig import Source, loop_never_blocks
from tests.fakes.side_server import Answer, FakeSide
from tests.fakes.tcp_proxy import Fault, TcpProxy

__all__ = ["loop_never_blocks"]


def family(root: type[BaseException]) -> Iterator[type[BaseException]]:
    yield root
    for child in root.__subclasses__():
        yield from family(child)


LIBRARY = {
    kind
    for root in (aiohttp.ClientError, aiohttp.http_exceptions.HttpProcessingError)
    for kind in family(root)
    if kind.__module__.startswith("aiohttp.")
}
SYSTEM = {
    kind
    for kind in (*vars(builtins).values(), *vars(socket).values(), *vars(ssl).values())
    if isinstance(kind, type) and issubclass(kind, OSError | TimeoutError | EOFError)
}


def test_every_exception_of_the_library_and_the_system_is_in_the_boundary() -> None:
    exported = {
        kind
        for kind in vars(aiohttp.client_exceptions).values()
        if isinstance(kind, type) and issubclass(kind, aiohttp.ClientError)
    }
    assert exported <= LIBRARY
    assert len(LIBRARY) >= 35
    assert len(SYSTEM) >= 25
    assert all(issubclass(kind, FOREIGN) for kind in LIBRARY | SYSTEM)


@pytest.mark.parametrize("kind", sorted(LIBRARY | SYSTEM, key=lambda k: k.__name__))
def test_no_foreign_exception_is_left_to_the_catch_all(kind: type[BaseException]) -> None:
    if kind is aiohttp.ClientError:
        pytest.skip("the bare base class is never raised; the catch-all is for it")
    error = translate(kind.__new__(kind), remote="llm", url="http://user:pw@127.0.0.1:1/v1?key=s")
    assert isinstance(error, RemoteError)
    assert error.remote == "llm"
    assert kind.__name__ not in str(error).split("failed: ")[1:]
    assert "pw" not in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), RemoteUnavailable),
        (aiohttp.ServerDisconnectedError(), RemoteUnavailable),
        (aiohttp.ClientOSError(errno.ECONNRESET, "reset"), RemoteUnavailable),
        (aiohttp.ClientPayloadError("cut"), RemoteUnavailable),
        (socket.gaierror(-2, "unknown name"), RemoteUnavailable),
        (aiohttp.ConnectionTimeoutError(), RemoteTimeout),
        (TimeoutError(), RemoteTimeout),
        (aiohttp.InvalidUrlClientError("http://["), RemoteRejected),
        (aiohttp.http_exceptions.BadStatusLine("x"), ProtocolError),
        (aiohttp.http_exceptions.TransferEncodingError("x"), ProtocolError),
    ],
)
def test_foreign_exceptions_become_the_right_kind(
    error: BaseException, kind: type[RemoteError]
) -> None:
    assert type(translate(error, remote="llm")) is kind


def test_a_timeout_names_the_limit_that_passed() -> None:
    connect = translate(aiohttp.ConnectionTimeoutError(), remote="llm", phase="total")
    total = translate(TimeoutError(), remote="llm", phase="first_token")
    assert isinstance(connect, RemoteTimeout) and connect.phase == "connect"
    assert isinstance(total, RemoteTimeout) and total.phase == "first_token"


@pytest.mark.parametrize(
    ("status", "headers", "kind", "retryable"),
    [
        (400, {}, RemoteRejected, False),
        (401, {}, RemoteRejected, False),
        (404, {}, RemoteRejected, False),
        (408, {}, RemoteRejected, False),
        (422, {}, RemoteRejected, False),
        (429, {}, RateLimited, True),
        (500, {}, RemoteUnavailable, True),
        (502, {}, RemoteUnavailable, True),
        (503, {}, RemoteUnavailable, True),
        (503, {"Retry-After": "2"}, RateLimited, True),
        (302, {}, ProtocolError, False),
        (204, {}, ProtocolError, False),
    ],
)
def test_each_status_has_its_error(
    status: int, headers: dict[str, str], kind: type[RemoteError], retryable: bool
) -> None:
    error = status_error(status, headers, b"", remote="llm", url="http://h/v1", now=0)
    assert type(error) is kind
    assert error.retryable is retryable


def test_a_remotes_own_words_are_short_printable_and_on_one_line() -> None:
    body = b'{"error": {"message": "bad\\n\\u001b[31m model' + b" x" * 500 + b'"}}'
    error = status_error(400, {}, body, remote="llm", url="http://h/v1", now=0)
    assert str(error).isprintable()
    assert "bad [31m model" in str(error)
    assert len(str(error)) < 320


@pytest.mark.parametrize("body", [b"<html>", b"\xff\xfe", b"[]", b"null", b'{"error": 7}', b""])
def test_an_error_body_of_any_shape_is_survived(body: bytes) -> None:
    error = status_error(500, {}, body, remote="llm", url="http://h/v1", now=0)
    assert str(error) == "the llm at http://h failed (HTTP 500)"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"message": "slow down", "code": 429}, RateLimited),
        ({"message": "slow down", "type": "rate_limit_exceeded"}, RateLimited),
        ({"message": "boom", "code": 500}, RemoteUnavailable),
        ({"message": "boom", "type": "server_error", "code": None}, RemoteUnavailable),
        ({"message": "too long", "type": "invalid_request_error"}, RemoteRejected),
        ({"message": "no", "code": 404}, RemoteRejected),
        ({"message": "what", "code": "odd"}, ProtocolError),
        ("plain words", ProtocolError),
        ([1], ProtocolError),
        ({"code": True}, ProtocolError),
    ],
)
def test_an_error_inside_a_good_answer_is_typed(error: object, kind: type[RemoteError]) -> None:
    assert type(body_error(error, remote="llm")) is kind


def test_retry_after_is_read_as_seconds_or_as_a_date() -> None:
    now = datetime(2030, 1, 1, tzinfo=UTC)
    later = format_datetime(datetime(2030, 1, 1, 0, 0, 30, tzinfo=UTC), usegmt=True)
    assert parse_retry_after("7", now=0) == 7
    assert parse_retry_after("0.5", now=0) == 0.5
    assert parse_retry_after(later, now=now.timestamp()) == 30
    assert parse_retry_after(later, now=now.timestamp() + 99) == 0
    assert parse_retry_after("-3", now=0) == 0
    assert parse_retry_after("1e99", now=0) == 86_400
    for nonsense in (None, "", "soon", "nan"):
        assert parse_retry_after(nonsense, now=0) is None


async def ask(source: Source, *, deadline_ms: float = 5_000, max_bytes: int = 1 << 20) -> bytes:
    async with open_http() as http:
        return await post_json(
            http,
            source,
            "/v1/affect",
            {"text": "hi"},
            remote="cahm",
            clock=SystemClock(),
            turn_id="t1",
            deadline_ms=deadline_ms,
            max_bytes=max_bytes,
        )


async def test_a_request_carries_token_turn_and_the_time_that_is_left() -> None:
    async with FakeSide() as side:
        await ask(Source(side.url + "/", token="secret"), deadline_ms=4_000)
        (request,) = side.requests
    assert request.headers["Authorization"] == "Bearer secret"
    assert request.body["turn_id"] == "t1"
    assert 0 < request.body["deadline_ms"] <= 4_000


@pytest.mark.parametrize(
    "answer", [Answer(hold=True), Answer(drip_s=0.02)], ids=["hung", "dripping"]
)
async def test_the_deadline_is_for_the_whole_answer_and_closes_the_connection(
    answer: Answer,
) -> None:
    async with FakeSide() as side:
        side.enqueue("/v1/affect", answer)
        with pytest.raises(RemoteTimeout, match="total limit"):
            await ask(Source(side.url), deadline_ms=60)
        await side.departed.wait()


async def test_waiting_for_the_endpoint_counts_towards_the_deadline() -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RemoteTimeout):
        await ask(never, deadline_ms=20)  # type: ignore[arg-type]


async def test_no_time_left_is_a_timeout_without_a_request() -> None:
    source = Source("http://127.0.0.1:9")
    with pytest.raises(RemoteTimeout, match="no time was left"):
        await ask(source, deadline_ms=0)
    assert source.asked == 0


async def test_an_oversize_answer_is_cut_off() -> None:
    async with FakeSide() as side:
        side.enqueue("/v1/affect", Answer(body=b"x" * 5_000))
        with pytest.raises(ProtocolError, match="more than 1000 bytes"):
            await ask(Source(side.url), max_bytes=1_000)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault(refuse=True), RemoteUnavailable),
        (Fault(cut_after=20), RemoteUnavailable),
        (Fault(cut_after=180), RemoteUnavailable),
        (Fault(cut_after=180, reset=True), RemoteUnavailable),
        (Fault(stall_after=180), RemoteTimeout),
    ],
)
async def test_a_connection_that_fails_anywhere_is_typed(
    fault: Fault, kind: type[RemoteError]
) -> None:
    async with FakeSide() as side, TcpProxy(int(side.url.rsplit(":", 1)[1]), fault) as proxy:
        with pytest.raises(kind):
            await ask(Source(proxy.url), deadline_ms=300)


async def test_an_answer_in_single_bytes_is_whole() -> None:
    async with (
        FakeSide() as side,
        TcpProxy(int(side.url.rsplit(":", 1)[1]), Fault(slice_bytes=1)) as proxy,
    ):
        assert b'"valence":0.2' in await ask(Source(proxy.url))


async def test_refused_and_unresolvable_hosts_are_unavailable() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(RemoteUnavailable, match="is it running"):
            await ask(Source(f"http://127.0.0.1:{free.getsockname()[1]}"))


@pytest.mark.parametrize("url", ["http://", "http://[::1", "http://h:99999"])
async def test_an_unusable_address_says_so(url: str) -> None:
    with pytest.raises(RemoteRejected, match="address of the cahm cannot be used"):
        await ask(Source(url))


async def test_a_connection_closed_between_requests_is_replaced_without_notice() -> None:
    async with FakeSide() as side:
        side.enqueue("/v1/affect", Answer(drop=True))
        assert b"valence" in await ask(Source(side.url))
        assert len(side.requests) == 2


async def test_a_remote_that_drops_every_request_is_asked_twice_and_no_more() -> None:
    async with FakeSide() as side:
        side.enqueue("/v1/affect", *[Answer(drop=True)] * 3)
        with pytest.raises(RemoteUnavailable):
            await ask(Source(side.url))
        assert len(side.requests) == 2


async def test_a_closed_session_is_unavailable_not_a_foreign_error() -> None:
    http = open_http()
    await http.close()
    with pytest.raises(RemoteUnavailable, match="shutting down"):
        await post_json(
            http,
            Source("http://127.0.0.1:9"),
            "/x",
            {},
            remote="cahm",
            clock=SystemClock(),
            turn_id="t",
            deadline_ms=100,
        )


async def test_errors_of_the_endpoint_source_pass_unchanged() -> None:
    with pytest.raises(SidecarDown):
        await ask(Source("http://x", error=SidecarDown("restarting", name="cahm")))


async def test_a_token_with_a_line_break_is_refused_before_it_is_sent() -> None:
    with pytest.raises(RemoteRejected, match="line break") as caught:
        await ask(Source("http://127.0.0.1:9", token="secret\n"))
    assert "secret" not in str(caught.value)


async def test_text_that_json_cannot_carry_is_the_callers_mistake() -> None:
    async with FakeSide() as side, open_http() as http:
        with pytest.raises(InputError, match="cannot be written as JSON"):
            await post_json(
                http,
                Source(side.url),
                "/v1/affect",
                {"text": "\ud800"},
                remote="cahm",
                clock=SystemClock(),
                turn_id="t",
                deadline_ms=1_000,
            )
        assert side.requests == []
