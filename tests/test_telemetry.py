"""The event log: what is written, what is hidden, and what a bad disk does."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain.clock import SystemClock
from brain.errors import RemoteRejected
from brain.logfiles import LogFile
from brain.redact import printable, scrub
from brain.schema import Affect
from brain.settings import TelemetrySettings
from brain.telemetry import Telemetry
from tests.conftest import OpenLimbic, log_lines
from tests.fakes.llm_server import FakeLLM, refuse
from tests.fakes.side_server import AFFECT as SCORES
from tests.fakes.side_server import Answer, FakeSide

AFFECT = Affect(valence=0.5, intimacy=0.1, tension=-0.2, confidence=0.9, reasoning="because")


async def opened(path: Path, **more: object) -> Telemetry:
    telemetry = Telemetry(TelemetrySettings.model_validate(more), path, clock=SystemClock())
    await telemetry.start()
    return telemetry


def lines(path: Path) -> list[dict]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


async def test_one_event_is_one_line_whatever_it_holds(tmp_path: Path) -> None:
    telemetry = await opened(tmp_path)
    telemetry.emit("odd", note="a\nb\r\x1b[31m\u2028", number=float("nan"), path=Path("/x"))
    await telemetry.close()
    assert [line["event"] for line in lines(tmp_path / "events.jsonl")] == ["start", "odd", "stop"]


@pytest.mark.parametrize("keep", [True, False])
async def test_users_words_are_logged_only_when_allowed(
    llm: FakeLLM, open_limbic: OpenLimbic, keep: bool
) -> None:
    async with open_limbic(llm, TELEMETRY__LOG_TEXT=str(keep).lower()) as limbic:
        await limbic.session("a").say("my secret garden")
        limbic.telemetry.affect("a", "t", "my secret garden", AFFECT, late=False)
    everything = b"".join(path.read_bytes() for path in limbic.telemetry.directory.iterdir())
    assert (b"secret garden" in everything) == keep
    if not keep:
        assert log_lines(limbic)[0]["text"]["chars"] == len("my secret garden")


@pytest.mark.parametrize("keep", [True, False])
async def test_a_reason_that_comes_with_its_scores_is_logged_only_with_the_users_words(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic, keep: bool
) -> None:
    reason = "“my secret garden” +0.20, token=abcdefgh12345678"
    side.enqueue("/v1/affect", Answer({**SCORES, "reasoning": reason}))
    more = {"TELEMETRY__LOG_TEXT": str(keep).lower(), "BLEND__SOFT_DEADLINE_MS": 5_000}
    async with open_limbic(llm, side, **more) as limbic:
        await limbic.session("a").say("hi")
        await limbic.telemetry.flush()
        shown = (await limbic.snapshot())["affect"]["last"]["reasoning"]
    assert shown == reason, "what is running says why; nothing of it is kept"
    for name in ("affect_head_raw.jsonl", "affect_head_readable.log"):
        text = (limbic.telemetry.directory / name).read_text()
        assert ("secret garden" in text) == keep and "abcdefgh" not in text


async def test_secrets_never_reach_the_log(tmp_path: Path) -> None:
    telemetry = await opened(tmp_path)
    telemetry.emit("x", header="Authorization: Bearer abcdefgh12345678", key="sk-abcdefgh1234")
    await telemetry.close()
    text = (tmp_path / "events.jsonl").read_text()
    assert "abcdefgh" not in text and "***" in text


async def test_secrets_in_what_a_field_holds_never_reach_the_log(tmp_path: Path) -> None:
    telemetry = await opened(tmp_path)
    error = {"code": "RemoteRejected", "message": "the llm refused: api_key=abcdefgh1234"}
    telemetry.emit("x", error=error, tried=[("hf_abcdefgh1234", 1.5)], cause=OSError("sk-abcdefgh"))
    await telemetry.close()
    (line,) = [one for one in lines(tmp_path / "events.jsonl") if one["event"] == "x"]
    assert line["error"] == {"code": "RemoteRejected", "message": "the llm refused: api_key=***"}
    assert line["tried"] == [["***", 1.5]] and line["cause"] == "***"
    assert error["message"].endswith("abcdefgh1234"), "who emits it keeps it as it is"


async def test_a_refusal_that_quotes_a_key_is_logged_without_it(
    llm: FakeLLM, open_limbic: OpenLimbic
) -> None:
    llm.enqueue(refuse(401, "Incorrect API key provided: sk-abcdefgh1234"))
    async with open_limbic(llm) as limbic:
        with pytest.raises(RemoteRejected):
            await limbic.session("a").say("hi")
    (line,) = log_lines(limbic)
    assert "provided: ***" in line["error"]["message"]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Bearer abcdefgh", "Bearer ***"),
        ("API-Key: abcdefgh", "API-Key: ***"),
        ("api_key='abcdefgh'", "api_key='***'"),
        ("TOKEN=abcdefgh", "TOKEN=***"),
        ("“password” password=abcdefgh", "“password” password=***"),
        ("to\u212aen=abcdefgh", "to\u212aen=***"),
        ("sk-abcdefgh", "***"),
        ("HF_abcdefgh", "***"),
    ],
)
def test_a_secret_of_any_kind_is_replaced(text: str, left: str) -> None:
    assert scrub(text) == left and scrub(f"before {text}, after") == f"before {left}, after"


async def test_a_log_that_is_moved_or_deleted_is_opened_again(tmp_path: Path) -> None:
    telemetry = await opened(tmp_path)
    await telemetry.flush()
    log = tmp_path / "events.jsonl"
    log.rename(tmp_path / "old")
    telemetry.emit("second")
    await telemetry.flush()
    log.unlink()
    telemetry.emit("third")
    await telemetry.close()
    assert [line["event"] for line in lines(log)] == ["third", "stop"]


async def test_a_symbolic_link_is_refused_and_chat_goes_on(
    llm: FakeLLM, open_limbic: OpenLimbic, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    logs = tmp_path / "data" / "logs"
    logs.mkdir(parents=True)
    (logs / "turns.jsonl").symlink_to(victim)
    async with open_limbic(llm) as limbic:
        assert await limbic.session("a").say("hi") == "Hello there!"
        await limbic.telemetry.flush()
        snap = await limbic.snapshot()
    assert victim.read_text() == "precious"
    assert snap["status"] == "degraded" and "turns.jsonl" in snap["problems"][0]


async def test_a_directory_that_cannot_be_made_degrades_and_nothing_else(
    llm: FakeLLM, open_limbic: OpenLimbic, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    async with open_limbic(llm, PATHS__LOGS=str(blocked / "logs")) as limbic:
        assert await limbic.session("a").say("hi") == "Hello there!"
        await limbic.telemetry.flush()
        assert (await limbic.snapshot())["status"] == "degraded"


async def test_events_beyond_the_queue_are_dropped_and_counted(tmp_path: Path) -> None:
    telemetry = await opened(tmp_path, queue_events=16)
    for number in range(100):
        telemetry.emit("many", number=number)
    assert telemetry.dropped > 0 and "dropped" in telemetry.problems()[0]
    await telemetry.close()
    assert len(lines(tmp_path / "events.jsonl")) == 16


async def test_a_value_that_no_line_can_hold_costs_its_own_line_alone(tmp_path: Path) -> None:
    telemetry = await opened(tmp_path)
    telemetry.emit("before")
    telemetry.emit("odd", note="\ud800")
    telemetry.emit("after")
    await telemetry.close()
    names = [line["event"] for line in lines(tmp_path / "events.jsonl")]
    assert names == ["start", "before", "after", "stop"]
    assert telemetry.dropped == 1 and "no line could hold" in telemetry.problems()[0]


def test_files_rotate_by_size_and_the_oldest_goes(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "x.jsonl", max_bytes=100, keep=2)
    for number in range(12):
        file.write([b"%02d" % number + b"-" * 37])
    file.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["x.jsonl", "x.jsonl.1", "x.jsonl.2"]
    kept = b"".join((tmp_path / n).read_bytes() for n in reversed(names)).splitlines()
    assert [line[:2] for line in kept] == [b"06", b"07", b"08", b"09", b"10", b"11"]
    assert all((tmp_path / n).stat().st_mode & 0o077 == 0 for n in names)


def test_a_line_torn_by_a_crash_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"torn": ')
    file = LogFile(path, max_bytes=10_000, keep=1)
    file.write([b'{"whole": 1}'])
    file.close()
    assert path.read_bytes() == b'{"torn": \n{"whole": 1}\n'


async def test_a_subscriber_sees_events_live_and_a_slow_one_loses_the_oldest(
    tmp_path: Path,
) -> None:
    telemetry = await opened(tmp_path)
    async with telemetry.subscribe() as queue:
        telemetry.emit("seen")
        await telemetry.flush()
        names = [orjson.loads(await queue.get())["event"] for _ in range(2)]
        assert names == ["start", "seen"]
        for number in range(600):
            telemetry.emit("n", number=number)
        await telemetry.flush()
        await asyncio.sleep(0)
        numbers = []
        while not queue.empty():
            numbers.append(orjson.loads(queue.get_nowait())["number"])
    await telemetry.close()
    assert numbers[-1] == 599 and 0 < len(numbers) <= 256


async def test_subscriptions_end_even_where_the_reader_is_behind(tmp_path: Path) -> None:
    telemetry = await opened(tmp_path)
    async with telemetry.subscribe() as queue:
        for number in range(600):
            telemetry.emit("n", number=number)
        await telemetry.flush()
        await asyncio.sleep(0)
        assert queue.full()
        telemetry.end_subscriptions()
        telemetry.emit("too late")
        await telemetry.flush()
        await asyncio.sleep(0)
        *seen, last = [queue.get_nowait() for _ in range(queue.qsize())]
        assert last is None and orjson.loads(seen[-1])["number"] == 599
    async with telemetry.subscribe() as queue:
        assert queue.get_nowait() is None
    await telemetry.close()


async def test_the_readable_log_is_one_line_an_answer(tmp_path: Path) -> None:
    telemetry = await opened(tmp_path)
    telemetry.affect("s", "turn-1", "two\nlines \x1b[2J", AFFECT, late=True)
    await telemetry.close()
    (line,) = (tmp_path / "affect_head_readable.log").read_text().splitlines()
    assert "LATE" in line and "V+0.50" in line and "\x1b" not in line


@given(st.text())
def test_printable_text_cannot_drive_a_terminal(text: str) -> None:
    shown = printable(text)
    assert not any(ord(c) < 32 and c not in "\n\t" for c in shown)
    assert "\x7f" not in shown and "\x9b" not in shown and "\u202e" not in shown


@given(st.text())
def test_scrubbing_twice_is_scrubbing_once(text: str) -> None:
    assert scrub(scrub(text)) == scrub(text)


def test_telemetry_leaves_the_logging_module_alone() -> None:
    assert not logging.getLogger("brain").handlers
