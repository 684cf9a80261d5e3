"""A chat without foresight is the same chat, whatever the reason: same replies, same prompts."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from brain import state_engine
from brain.app import Limbic
from brain.clock import SystemClock
from brain.state import advance
from tests.conftest import OpenLimbic, idle
from tests.fakes.llm_server import FakeLLM, Script, reply
from tests.fakes.side_server import Answer, FakeSide

MESSAGES = (
    "My dog Rex died last winter and I still miss him",
    "I started a new job at the bakery on Monday",
    "my sister is getting married in June and I am happy",
    "what shall I wear?",
    "today I saw a dog that looked like Rex",
    "the bakery smells of cinnamon",
)
TRIM: dict[str, Any] = {
    "CHAT__HISTORY_TOKENS": 200, "CHAT__TRIM_FRACTION": 0.4,
    "BLEND__SOFT_DEADLINE_MS": 5_000, "BLEND__HARD_DEADLINE_MS": 30_000,
}  # fmt: skip
CRASHING = [sys.executable, "-c", "raise SystemExit(1)"]
WITHOUT: dict[str, dict[str, Any]] = {
    "disabled": {"SIDECARS__LVM__MODE": "off"},
    "absent": {"SIDECARS__LVM__MODE": "remote", "SIDECARS__LVM__URL": "http://127.0.0.1:9"},
    "crash-looping": {
        "SIDECARS__LVM__MODE": "managed",
        "SIDECARS__LVM__COMMAND": orjson.dumps(CRASHING).decode(),
    },
}


@pytest.fixture(autouse=True)
def time_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the mood: when a test runs and how long must not show in a prompt."""

    def at_once(model: Any, state: Any, *, dt_s: float = 0.0, events: Any = ()) -> Any:
        return advance(model, state, events=events)

    monkeypatch.setattr(state_engine, "advance", at_once)
    monkeypatch.setattr(SystemClock, "time", lambda self: 1_800_000_000.0)
    monkeypatch.setattr(SystemClock, "uptime", lambda self: 0.0)


async def chat(
    llm: FakeLLM, open_limbic: OpenLimbic, messages: tuple[str, ...] = MESSAGES, **more: Any
) -> list[tuple[str, str | None, bytes]]:
    """(reply, memory recalled, request) of each message; every request in its exact bytes."""
    llm.default = Script(reply("Well, ", *(["indeed "] * 25)).steps)
    turns = []
    start = len(llm.requests)
    async with open_limbic(llm, None, **TRIM, **more) as limbic:
        if "SIDECARS__LVM__COMMAND" in more:
            while limbic.supervisor.status()["lvm"].restarts == 0:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        await limbic.session().open()
        await idle(limbic)
        for text in messages:
            turn = limbic.session().say(text)
            turns.append((await turn, turn.recalled))
            await idle(limbic)
        await check(limbic, **more)
    bodies = [orjson.dumps(request.body) for request in llm.requests[start:]]
    return [(*turn, body) for turn, body in zip(turns, bodies, strict=True)]


async def check(limbic: Limbic, **more: Any) -> None:
    """That the case is what it says."""
    foresight = (await limbic.snapshot())["foresight"]
    assert foresight["on_time"] == foresight["late"] == 0
    assert foresight["down"] == (0 if more["SIDECARS__LVM__MODE"] == "off" else len(MESSAGES))


@pytest.fixture
async def lived_in(llm: FakeLLM, open_limbic: OpenLimbic, tmp_path: Path) -> AsyncIterator[Path]:
    """A data directory of a brain whose LVM worked, and foresees the next message."""
    data = tmp_path / "lived in"
    async with FakeSide() as side:
        side.encoder, side.embed = "aa", lambda text, dim: [1.0] * dim
        side.enqueue("/v1/affect", *[Answer(status=500)] * 99)
        async with open_limbic(llm, side, **TRIM, PATHS__DATA=data) as limbic:
            llm.default = Script(reply("Well, ", *(["indeed "] * 25)).steps)
            for text in MESSAGES:
                await limbic.session().say(text)
                await idle(limbic)
            (session,) = limbic.parts.sessions.open_sessions()
            assert session.foresight.predicted is not None and session.history_start > 1
    yield data


@pytest.mark.parametrize("case", ["absent", "crash-looping"])
async def test_a_new_chat_is_the_same_whether_the_lvm_is_off_or_down(
    llm: FakeLLM, open_limbic: OpenLimbic, tmp_path: Path, case: str
) -> None:
    off = await chat(llm, open_limbic, **WITHOUT["disabled"], PATHS__DATA=tmp_path / "off")
    assert any(recalled for _, recalled, _ in off), "memory works by words"
    down = await chat(llm, open_limbic, **WITHOUT[case], PATHS__DATA=tmp_path / "down")
    assert down == off


@pytest.mark.parametrize("case", ["absent", "crash-looping"])
async def test_an_old_chat_goes_on_the_same_whether_the_lvm_is_off_or_down(
    llm: FakeLLM, open_limbic: OpenLimbic, tmp_path: Path, lived_in: Path, case: str
) -> None:
    """What the LVM foresaw when it last worked must not shape a chat in which it does not."""
    for name in ("off", "down"):
        shutil.copytree(lived_in, tmp_path / name)
    asked = tuple(reversed(MESSAGES))
    off = await chat(llm, open_limbic, asked, **WITHOUT["disabled"], PATHS__DATA=tmp_path / "off")
    down = await chat(llm, open_limbic, asked, **WITHOUT[case], PATHS__DATA=tmp_path / "down")
    assert down == off
