"""What every sidecar does with requests: who may ask, limits, readiness, drain, disconnects."""

from __future__ import annotations

import asyncio
import gzip
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, Self

import aiohttp
import pytest
from aiohttp import web

from brain.errors import ArtifactCorrupt, ConfigError, InputError
from sidecars.guard import Timed, context_of, json_response, read_body
from sidecars.serve import ServeOptions, SidecarServer
from sidecars.service import ModelInfo, Progress, Service

PATIENCE_S = 20.0


class Echo(Timed):
    text: str


class EchoService(Service):
    """Echoes; ``/wait`` answers when the test says so."""

    name = "echo"
    default_port = 9999
    description = "Echo."

    def __init__(self) -> None:
        self.may_load = threading.Event()
        self.may_load.set()
        self.failure: Exception | None = None
        self.go = asyncio.Event()
        self.entered = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.closed = False

    @classmethod
    def from_args(cls, args: object) -> Self:
        return cls()

    def load(self, progress: Progress, stopping: Callable[[], bool]) -> ModelInfo:
        assert self.may_load.wait(PATIENCE_S)
        if self.failure:
            raise self.failure
        return ModelInfo("echo-1", "ab" * 32)

    async def close(self) -> None:
        self.closed = True

    def routes(self) -> Iterable[web.RouteDef]:
        return [
            web.post("/echo", self._echo),
            web.post("/wait", self._wait),
            web.post("/fail", self._fail),
            web.post("/refuse", self._refuse),
        ]

    async def _echo(self, request: web.Request) -> web.Response:
        body = await read_body(request, Echo)
        context = context_of(request, body)
        late = context.deadline is not None
        return json_response({"text": body.text, "turn": context.turn_id, "deadline": late})

    async def _wait(self, _: web.Request) -> web.Response:
        self.entered.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return json_response({"done": True})

    async def _fail(self, _: web.Request) -> web.Response:
        raise ZeroDivisionError("a secret detail")

    async def _refuse(self, _: web.Request) -> web.Response:
        raise InputError("that cannot be")


@asynccontextmanager
async def serving(
    service: EchoService | None = None, **options: Any
) -> AsyncIterator[tuple[EchoService, SidecarServer, aiohttp.ClientSession]]:
    service = service or EchoService()
    async with (
        SidecarServer(service, ServeOptions(**options)) as server,
        aiohttp.ClientSession(server.url) as http,
    ):
        yield service, server, http


async def error_of(answer: aiohttp.ClientResponse) -> tuple[int, str]:
    body = await answer.json()
    assert set(body["error"]) == {"message", "type", "code"}
    return answer.status, body["error"]["code"]


async def test_a_ready_sidecar_says_what_it_serves() -> None:
    async with serving() as (_, _, http):
        ready = await (await http.get("/ready")).json()
        assert (ready["ready"], ready["model"], ready["sha256"]) == (True, "echo-1", "ab" * 32)
        health = await (await http.get("/health")).json()
        assert health["status"] == "ok" and health["rss_mb"] > 1
        answer = await http.get("/metrics")
        text = await answer.text()
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert 'limbic_sidecar_requests_total{route="/ready",status="200"} 1.0' in text
        assert "process_resident_memory_bytes" in text


async def test_health_answers_while_the_model_loads_and_work_is_refused() -> None:
    service = EchoService()
    service.may_load.clear()
    server = SidecarServer(service, ServeOptions())
    await server.listen()
    loading = asyncio.create_task(server.load())
    async with aiohttp.ClientSession(server.url) as http:
        assert (await http.get("/health")).status == 200
        answer = await http.get("/ready")
        assert (answer.status, (await answer.json())["reason"]) == (503, "loading")
        assert await error_of(await http.post("/echo", json={"text": "x"})) == (503, "loading")
        service.may_load.set()
        await loading
        assert (await http.get("/ready")).status == 200
    await server.stop()
    assert service.closed


async def test_a_model_that_cannot_be_used_ends_the_start() -> None:
    service = EchoService()
    service.failure = ArtifactCorrupt("model x: altered")
    with pytest.raises(ArtifactCorrupt, match="altered"):
        async with SidecarServer(service, ServeOptions()):
            pytest.fail("it must not start")
    assert not service.closed


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (None, 401),
        ("Bearer wrong", 401),
        ("Basic s3cret", 401),
        ("s3cret", 401),
        ("Bearer sécret", 401),
        ("Bearer s3cret", 200),
        ("bearer s3cret", 200),
    ],
)
async def test_only_the_right_token_opens_the_routes(given: str | None, status: int) -> None:
    headers = {} if given is None else {"Authorization": given}
    async with serving(token="s3cret") as (_, _, http):
        for path in ("/ready", "/metrics"):
            assert (await http.get(path, headers=headers)).status == status
        answer = await http.post("/echo", json={"text": "x"}, headers=headers)
        assert answer.status == status
        assert (await http.get("/health")).status == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:80", 200),
        ("127.0.0.1", 200),
        ("[::1]:8081", 200),
        ("model.internal", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example:1", 403),
        ("[", 403),
    ],
)
async def test_a_host_header_of_another_name_is_refused(host: str, status: int) -> None:
    async with serving(allow_hosts=frozenset({"model.internal"})) as (_, _, http):
        assert (await http.get("/health", headers={"Host": host})).status == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:3000", 200),
        ("https://evil.example", 403),
        ("null", 403),
        ("http://[", 403),
    ],
)
async def test_a_request_from_another_web_page_is_refused(origin: str, status: int) -> None:
    async with serving() as (_, _, http):
        answer = await http.post("/echo", json={"text": "x"}, headers={"Origin": origin})
        assert answer.status == status


async def test_a_body_over_the_limit_is_413_and_one_below_it_passes() -> None:
    async with serving(max_body_bytes=1000) as (_, _, http):
        answer = await http.post("/echo", json={"text": "x" * 1000})
        assert await error_of(answer) == (413, "too_large")
        assert (await http.post("/echo", json={"text": "x" * 900})).status == 200


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"\xff\xfe", "invalid_json"),
        (b'{"text": NaN}', "invalid_json"),
        (b"[]", "invalid_request"),
        (b"{}", "invalid_request"),
        (b'{"text": "x", "deadline_ms": -1}', "invalid_request"),
        (b'{"text": "x", "deadline_ms": 1e300}', "invalid_request"),
    ],
)
async def test_a_bad_body_is_400_with_the_reason(body: bytes, code: str) -> None:
    async with serving() as (_, _, http):
        assert await error_of(await http.post("/echo", data=body)) == (400, code)


async def test_turn_and_deadline_come_from_the_body_or_from_headers() -> None:
    async with serving() as (_, _, http):

        async def ask(body: dict[str, Any], headers: dict[str, str]) -> Any:
            return await (
                await http.post("/echo", json={"text": "x", **body}, headers=headers)
            ).json()

        both = {"X-Limbic-Turn": "t2", "X-Limbic-Deadline-Ms": "500"}
        assert await ask({}, {}) == {"text": "x", "turn": None, "deadline": False}
        assert await ask({"turn_id": "t1", "deadline_ms": 5}, {}) == {
            "text": "x", "turn": "t1", "deadline": True,
        }  # fmt: skip
        assert await ask({}, both) == {"text": "x", "turn": "t2", "deadline": True}
        assert (await ask({"turn_id": "t1"}, both))["turn"] == "t1"
        for wrong in ("soon", "-1", "nan"):
            answer = await http.post(
                "/echo", json={"text": "x"}, headers={"X-Limbic-Deadline-Ms": wrong}
            )
            assert await error_of(answer) == (400, "invalid_request")


async def test_errors_have_one_shape_and_tell_no_secrets() -> None:
    async with serving() as (_, _, http):
        assert await error_of(await http.post("/refuse")) == (400, "InputError")
        assert await error_of(await http.get("/nothing")) == (404, "not_found")
        assert await error_of(await http.get("/echo")) == (405, "method_not_allowed")
        answer = await http.post("/fail")
        assert "secret" not in await answer.text()
        assert await error_of(answer) == (500, "internal")


async def test_a_body_that_drips_is_cut_off() -> None:
    async with serving(body_timeout_s=0.05) as (_, server, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        async with asyncio.timeout(PATIENCE_S):
            assert b" 408 " in await reader.readline()
        writer.close()


async def test_a_token_of_any_bytes_is_refused_as_a_wrong_one() -> None:
    async with serving(token="s3cret") as (_, server, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        token = b"Authorization: Bearer \xff\xfe"
        writer.write(b"GET /ready HTTP/1.1\r\nHost: localhost\r\n" + token + b"\r\n\r\n")
        async with asyncio.timeout(PATIENCE_S):
            assert b" 401 " in await reader.readline()
        writer.close()


async def test_a_turn_header_of_any_bytes_is_refused_where_json_cannot_carry_it() -> None:
    async with serving() as (_, server, _):
        assert b" 400 " in await first_line(server, b"X-Limbic-Turn: \xff\xfe", b'{"text": "x"}')
        assert b" 200 " in await first_line(server, b"X-Limbic-Turn: \xc3\xa9", b'{"text": "x"}')


async def test_a_body_that_is_not_encoded_as_its_header_says_is_400_without_a_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving() as (_, server, _):
        for body in (b'{"text": "x"}', gzip.compress(b'{"text": "x"}')[:-9] + b"12345678"):
            assert b" 400 " in await first_line(server, b"Content-Encoding: gzip", body)
        whole = gzip.compress(b'{"text": "x"}')
        assert b" 200 " in await first_line(server, b"Content-Encoding: gzip", whole)
    assert not caplog.records


async def first_line(server: SidecarServer, header: bytes, body: bytes) -> bytes:
    """The first line of the answer to ``POST /echo``, after which the connection must end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    length = b"Content-Length: %d\r\nConnection: close\r\n" % len(body)
    writer.write(
        b"POST /echo HTTP/1.1\r\nHost: localhost\r\n" + length + header + b"\r\n\r\n" + body
    )
    async with asyncio.timeout(PATIENCE_S):
        line = await reader.readline()
        await reader.read()
    writer.close()
    return line


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nHost: loc"])
async def test_a_connection_without_complete_headers_is_closed(sent: bytes) -> None:
    async with serving(header_timeout_s=0.05) as (_, server, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(sent)
        async with asyncio.timeout(PATIENCE_S):
            assert await reader.read() == b""
        writer.close()


async def test_connections_over_the_cap_are_closed_at_once() -> None:
    async with serving(max_connections=1) as (_, server, http):
        assert (await http.get("/health")).status == 200  # kept alive: the one connection
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        async with asyncio.timeout(PATIENCE_S):
            assert await reader.read() == b""
        writer.close()
        assert (await http.get("/health")).status == 200


async def test_a_client_that_disconnects_cancels_its_handler() -> None:
    async with serving() as (service, server, _):
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"POST /wait HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
        async with asyncio.timeout(PATIENCE_S):
            await service.entered.wait()
            writer.close()
            await service.cancelled.wait()


async def test_stopping_lets_what_runs_finish_and_refuses_what_comes() -> None:
    service = EchoService()
    server = SidecarServer(service, ServeOptions(drain_s=PATIENCE_S))
    await server.listen()
    await server.load()
    async with aiohttp.ClientSession(server.url) as http:
        await asyncio.gather(http.get("/health"), http.get("/health"))  # two kept connections
        running = asyncio.create_task(http.post("/wait"))
        await service.entered.wait()
        stopping = asyncio.create_task(server.stop())
        await asyncio.sleep(0)
        with pytest.raises(aiohttp.ClientConnectorError):
            async with aiohttp.ClientSession(server.url) as late:
                await late.get("/health")
        assert await error_of(await http.post("/echo", json={"text": "x"})) == (503, "draining")
        service.go.set()
        assert (await (await running).json()) == {"done": True}
        await stopping
    assert service.closed


async def test_what_does_not_finish_in_the_drain_time_is_cancelled() -> None:
    service = EchoService()
    server = SidecarServer(service, ServeOptions(drain_s=0.01))
    await server.listen()
    await server.load()
    async with aiohttp.ClientSession(server.url) as http:
        running = asyncio.create_task(http.post("/wait"))
        await service.entered.wait()
        await server.stop()
        assert service.cancelled.is_set() and service.closed
        with pytest.raises(aiohttp.ClientError):
            await running


async def test_a_taken_port_is_one_clear_configuration_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} .* is in use") as caught:
            async with serving(port=port):
                pytest.fail("it must not start")
    assert caught.value.exit_code == 78


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_listening_beyond_this_machine_needs_a_token(host: str) -> None:
    with pytest.raises(ConfigError, match="needs a token"):
        ServeOptions(host=host)
    assert ServeOptions(host=host, token="t").host == host
