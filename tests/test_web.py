"""The HTTP surface of ``limbic serve``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import ClientSession, web

from brain.app import Limbic
from brain.errors import ConfigError
from brain.web import make_app
from tests.conftest import OpenLimbic
from tests.fakes.llm_server import FakeLLM
from tests.fakes.side_server import FakeSide

TOKEN = "0123456789abcdef"


@asynccontextmanager
async def served(
    limbic: Limbic, host: str = "127.0.0.1", token: str | None = None, drain_s: float = 0.1
) -> AsyncIterator[str]:
    runner = web.AppRunner(make_app(limbic, host=host, token=token), shutdown_timeout=drain_s)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_health_ready_and_snapshot_answer(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    async with open_limbic(llm, side) as limbic, served(limbic) as url, ClientSession() as http:
        await limbic.session("a").say("hi")
        async with http.get(f"{url}/health") as answer:
            assert answer.status == 200
        async with http.get(f"{url}/ready") as answer:
            assert answer.status == 200 and (await answer.json())["ready"] is True
        async with http.get(f"{url}/telemetry/snapshot") as answer:
            snap = await answer.json()
    assert snap["status"] == "ok" and snap["affect"]["on_time"] == 1
    wanted = {"time", "uptime_s", "status", "affect", "foresight", "hormones", "behaviour", "llm",
              "sidecars", "recent"}  # fmt: skip
    assert wanted <= set(snap)
    assert set(snap["llm"]) >= {"model", "ttft_ms", "tokens_per_s", "retries", "breaker"}
    assert snap["recent"][0]["affect"]["valence"] == 0.2


async def test_other_hosts_and_origins_are_refused(llm: FakeLLM, open_limbic: OpenLimbic) -> None:
    async with open_limbic(llm) as limbic, served(limbic) as url, ClientSession() as http:
        for headers, status in (
            ({"Host": "evil.example"}, 400),
            ({"Origin": "http://evil.example"}, 403),
            ({"Origin": url}, 200),
        ):
            async with http.get(f"{url}/telemetry/snapshot", headers=headers) as answer:
                assert answer.status == status
                if status != 200:
                    assert (await answer.json())["error"]["message"]


async def test_an_unknown_route_is_a_json_404(llm: FakeLLM, open_limbic: OpenLimbic) -> None:
    async with (
        open_limbic(llm) as limbic,
        served(limbic) as url,
        ClientSession() as http,
        http.get(f"{url}/nowhere") as answer,
    ):
        assert answer.status == 404 and (await answer.json())["error"]["code"]


async def test_a_bind_beyond_loopback_needs_a_token(llm: FakeLLM, open_limbic: OpenLimbic) -> None:
    async with open_limbic(llm) as limbic:
        with pytest.raises(ConfigError, match=r"web\.token_env"):
            make_app(limbic, host="0.0.0.0", token=None)
        async with served(limbic, "0.0.0.0", TOKEN) as url, ClientSession() as http:
            async with http.get(f"{url}/health") as answer:
                assert answer.status == 200
            for headers, status in (
                ({}, 401), ({"Authorization": "Bearer wrong"}, 401),
                ({"Authorization": f"Bearer {TOKEN}"}, 200),
            ):  # fmt: skip
                async with http.get(f"{url}/ready", headers=headers) as answer:
                    assert answer.status == status


async def test_the_event_stream_carries_a_turn(llm: FakeLLM, open_limbic: OpenLimbic) -> None:
    async with (
        open_limbic(llm) as limbic,
        served(limbic) as url,
        ClientSession() as http,
        http.get(f"{url}/telemetry/stream") as answer,
    ):
        await limbic.session("a").say("hi")
        async for line in answer.content:
            if b'"event":"turn"' in line:
                break
        assert line.startswith(b"data: {")


async def test_stopping_ends_the_event_streams_in_order_and_at_once(
    llm: FakeLLM, open_limbic: OpenLimbic
) -> None:
    async with open_limbic(llm) as limbic, ClientSession() as http:
        async with asyncio.timeout(30), served(limbic, drain_s=60) as url:
            answer = await http.get(f"{url}/telemetry/stream")
            await answer.content.readline()
        await answer.content.read()  # raises where the stream was cut off
        assert answer.content.at_eof()


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (b"Authorization: Bearer \xff\xfe", 401),
        (b"Authorization: Bearer " + TOKEN.encode(), 200),
        (b"Origin: http://[", 403),
        (b"Origin: null", 403),
        (b"Host: evil\xff", 400),
        (b"Host: [", 400),
    ],
)
async def test_a_header_of_any_bytes_is_answered_with_what_is_wrong(
    llm: FakeLLM, open_limbic: OpenLimbic, header: bytes, status: int
) -> None:
    async with open_limbic(llm) as limbic, served(limbic, token=TOKEN) as url:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        more = b"" if header.startswith(b"Host") else b"Host: 127.0.0.1\r\n"
        writer.write(b"GET /ready HTTP/1.1\r\n" + more + header + b"\r\n\r\n")
        assert (await reader.readline()).split()[1] == b"%d" % status
        writer.close()
