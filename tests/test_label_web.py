"""The page's server: who may ask, and that answers cannot be doubled or lost."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp.test_utils import TestClient, TestServer

from tests.label_kit import a_label, add_rows, ticking
from trainers.affect.label.log import DecisionLog, LabelError
from trainers.affect.label.session import LabelSession
from trainers.affect.label.web import LabelServer, serve

TOKEN = "secret"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def log(tmp_path):
    with DecisionLog(tmp_path / "labels.log", ticking()) as opened:
        add_rows(opened, ["one", "two"])
        yield opened


@pytest.fixture
async def client(log):
    session = LabelSession(log, "ana", guideline="1.0", repeat_share=0)
    server = TestServer(LabelServer(session, "be fair", TOKEN).app(), host="127.0.0.1")
    async with TestClient(server) as opened:
        yield opened


@pytest.mark.parametrize("path", ["/api/state", "/api/guidelines"])
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}])
async def test_without_the_token_nothing_is_read(client, path, headers):
    assert (await client.get(path, headers=headers)).status == 403


async def test_without_the_token_nothing_is_written(client, log):
    before = len(log.decisions)
    answer = await client.post("/api/skip", json={"at": before})
    assert answer.status == 403
    assert len(log.decisions) == before


@pytest.mark.parametrize("path", ["/", "/api/state"])
@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost:1"])
async def test_another_host_name_is_refused_even_with_the_token(client, path, host):
    answer = await client.get(path, headers={**BEARER, "Host": host})
    assert answer.status == 403


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1"])
async def test_another_origin_is_refused_even_with_the_token(client, log, origin):
    before = len(log.decisions)
    answer = await client.post(
        "/api/skip", json={"at": before}, headers={**BEARER, "Origin": origin}
    )
    assert answer.status == 403
    assert len(log.decisions) == before


async def test_the_own_origin_may(client, log):
    origin = f"http://127.0.0.1:{client.port}"
    at = len(log.decisions)
    answer = await client.post("/api/skip", json={"at": at}, headers={**BEARER, "Origin": origin})
    assert answer.status == 200


@pytest.mark.parametrize("path", ["/", "/page.js", "/page.css"])
async def test_the_page_is_whole_and_closed_to_other_sources(client, path):
    answer = await client.get(path)
    assert answer.status == 200
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    body = await answer.text()
    assert "innerHTML" not in body and "http://" not in body and "https://" not in body


async def test_an_answer_sent_twice_counts_once(client, log):
    at = (await (await client.get("/api/state", headers=BEARER)).json())["task"]["at"]
    body = {"at": at, "label": a_label(valence=0.5).record()}
    both = await asyncio.gather(
        *(client.post("/api/save", json=body, headers=BEARER) for _ in range(2))
    )
    assert sorted(answer.status for answer in both) == [200, 409]
    assert [d.what for d in log.decisions].count("label") == 1


@pytest.mark.parametrize(
    ("action", "body", "said"),
    [
        ("save", b"{", "JSON"),
        ("save", b'{"at": 3}', "missing column 'label'"),
        (
            "save",
            b'{"at": 3, "label": {"valence": 7, "intimacy": 0, "tension": 0, "confidence": 1}}',
            "label.valence",
        ),
        ("save", b'{"at": 3, "who": "ben"}', "unknown column 'who'"),
        ("undo", b'{"at": 3}', "nothing to undo"),
        ("drop", b'{"at": 3}', "only a disputed row"),
    ],
)
async def test_a_bad_answer_is_told_why_and_records_nothing(client, log, action, body, said):
    before = len(log.decisions)
    assert before == 3
    answer = await client.post(f"/api/{action}", data=body, headers=BEARER)
    assert answer.status == 400
    assert said in (await answer.json())["error"]
    assert len(log.decisions) == before


async def test_a_huge_body_is_refused(client):
    answer = await client.post("/api/save", data=b"x" * 100_000, headers=BEARER)
    assert answer.status == 413


async def test_a_taken_port_is_one_clear_line(client, log):
    server = LabelServer(LabelSession(log, "ana", guideline="1.0"), "")
    with pytest.raises(LabelError, match=f"port {client.port}: .*choose another with --port"):
        await serve(server, client.port, lambda link: None, asyncio.Event())
