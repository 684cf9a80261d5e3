"""``limbic chat`` with a script on standard input: what it prints where, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brain.cli.script import Lines
from brain.cli.stopping import Stopped, drain, unless_stopped
from tests.fakes import child as scripted_child
from tests.fakes.chat_rig import PATIENCE_S, ChatRig, LLMThread, end
from tests.fakes.clock import ManualClock
from tests.fakes.llm_server import DONE, ROLE, Hold, Script, broken, chunk, refuse, reply

HELD = Script((ROLE, chunk("It"), Hold(), chunk(" holds."), chunk(finish="stop"), DONE))
HOSTILE = ("\x1b]0;owned\x07", "\x9b2J", "\u202egnp", "\r", "\nend")


@pytest.fixture
def llm() -> Iterator[LLMThread]:
    server = LLMThread()
    yield server
    server.close()


@pytest.fixture
def rig(tmp_path: Path, llm: LLMThread) -> ChatRig:
    return ChatRig(tmp_path, llm)


def test_each_line_is_a_message_and_only_replies_are_on_stdout(
    rig: ChatRig, llm: LLMThread
) -> None:
    llm.server.enqueue(reply(" \n Hel", "lo"), reply("Fine", "."))
    # A byte order mark, a Windows line end, blank lines, and no newline at the end.
    done = rig.script(b"\xef\xbb\xbfhi\r\n\n   \nhow are you?", "--session", "alice")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"Hello\nFine.\n", b"")
    assert [turn[0] for turn in rig.turns()] == ["hi", "how are you?"]


def test_a_line_that_is_not_utf8_is_named_and_the_others_are_answered(rig: ChatRig) -> None:
    done = rig.script(b"hello\nbad \xff\xfe\nagain\n")
    assert done.returncode == 1
    assert done.stdout == b"Hello there!\n" * 2
    assert done.stderr == b"limbic: line 2: not UTF-8 at byte 5; send the line as UTF-8\n"


def test_a_line_far_over_the_limit_is_named_and_the_others_are_answered(rig: ChatRig) -> None:
    done = rig.script(b"x" * 200_000 + b"\nhello\n" + b"y" * 9_000)
    assert done.returncode == 1
    assert done.stdout == b"Hello there!\n"
    first, second = done.stderr.decode().splitlines()
    assert first.startswith("limbic: line 1: the line is far over the limit of 8000")
    assert second.startswith("limbic: line 3: the message has 9000 characters; the limit is 8000")


def test_the_first_line_waits_for_a_side_model_that_is_still_starting(
    tmp_path: Path, llm: LLMThread
) -> None:
    modes = "name=cahm,ready-progress=5,interval=100"
    command = json.dumps([sys.executable, scripted_child.__file__, modes])
    rig = ChatRig(tmp_path, llm, f'[sidecars.cahm]\nmode = "managed"\ncommand = {command}\n')
    (turn,) = map(json.loads, rig.script(b"hi\n", "--json").stdout.splitlines())
    # The scripted child is asked, and knows no affect; one that is starting is not asked at all.
    assert "cahm answered" in turn["sides"]["affect"]["reason"]


def test_a_side_model_that_never_comes_up_holds_no_script_up(
    tmp_path: Path, llm: LLMThread
) -> None:
    command = json.dumps([sys.executable, scripted_child.__file__, "name=cahm,config"])
    rig = ChatRig(tmp_path, llm, f'[sidecars.cahm]\nmode = "managed"\ncommand = {command}\n')
    done = rig.script(b"hi\n", "--json")
    (turn,) = map(json.loads, done.stdout.splitlines())
    assert (turn["reply"], turn["sides"]["affect"]["outcome"]) == ("Hello there!", "down")


def test_json_has_one_object_a_turn(rig: ChatRig, llm: LLMThread) -> None:
    llm.server.enqueue(reply("Hello", " you"), broken("Half"), refuse(400, "no"))
    done = rig.script(b"hi\nand?\nso\na\x1bb\n", "--json", "--session", "alice")
    assert done.returncode == 1
    good, cut, refused, control = map(json.loads, done.stdout.splitlines())
    assert set(good) == {
        "line", "turn_id", "session_id", "reply", "status", "affect", "hormones", "behaviour",
        "timings", "sides", "error",
    }  # fmt: skip
    assert (good["reply"], good["status"], good["session_id"]) == ("Hello you", "done", "alice")
    assert good["error"] is None and good["affect"] is None
    assert all(0 <= level <= 1 for level in good["hormones"].values())
    assert good["timings"]["first_token_ms"] <= good["timings"]["total_ms"]
    assert "directive" in good["behaviour"]
    assert (cut["reply"], cut["status"]) == ("Half", "partial")
    assert cut["error"]["code"] == "StreamBroken"
    assert (refused["reply"], refused["status"]) == ("", "failed")
    assert refused["error"]["code"] == "RemoteRejected" and refused["hormones"] is None
    assert (control["status"], control["error"]["code"]) == ("failed", "InputError")
    assert len({turn["turn_id"] for turn in (good, cut, refused, control)}) == 4
    assert [line.split(":")[1] for line in done.stderr.decode().splitlines()] == [
        " line 2", " line 3", " line 4",
    ]  # fmt: skip


def test_hostile_replies_act_on_no_terminal(rig: ChatRig, llm: LLMThread) -> None:
    llm.server.enqueue(reply(*HOSTILE), reply(*HOSTILE))
    plain = rig.script(b"hi\n")
    assert plain.stdout.decode() == "\\x1b]0;owned\\x07\\x9b2J\\x202egnp\nend\n"
    as_json = rig.script(b"hi\n", "--json")
    assert as_json.stdout.rstrip(b"\n").isascii()
    assert b"\x1b" not in as_json.stdout
    assert json.loads(as_json.stdout)["reply"] == "".join(HOSTILE)


def test_a_refusing_model_is_one_line_and_the_script_goes_on(rig: ChatRig, llm: LLMThread) -> None:
    llm.server.enqueue(refuse(503, "over\x1b[2Jloaded"), reply("Back"))
    done = rig.script(b"one\ntwo\n")
    assert (done.returncode, done.stdout) == (1, b"Back\n")
    (line,) = done.stderr.splitlines()
    assert line.startswith(b"limbic: line 1: the llm at http://127.0.0.1:")
    assert b"\x1b" not in line


def test_a_reader_who_leaves_ends_it_quietly(rig: ChatRig, llm: LLMThread) -> None:
    process = rig.start()
    try:
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write(b"one\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"Hello there!\n"
        process.stdout.close()
        process.stdin.write(b"two\n")
        process.stdin.flush()
        assert process.wait(PATIENCE_S) == 1
        assert process.stderr.read() == b""
    finally:
        end(process)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_stop_signal_lets_the_running_turn_finish_and_commits_it(
    rig: ChatRig, llm: LLMThread, number: signal.Signals
) -> None:
    llm.server.enqueue(HELD)
    process = rig.start()
    try:
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write(b"hello\n")  # and stays open: only the signal can end it
        process.stdin.flush()
        assert process.stdout.read(2) == b"It"
        process.send_signal(number)
        llm.release()
        assert process.wait(PATIENCE_S) == 0
        assert process.stdout.read() == b" holds.\n"
        assert process.stderr.read() == b""
    finally:
        end(process)
    assert rig.turns() == [("hello", "It holds.", "done")]


def test_a_stop_signal_while_it_waits_for_a_line_ends_it_at_once(rig: ChatRig) -> None:
    process = rig.start()
    try:
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write(b"hello\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"Hello there!\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    finally:
        end(process)


def test_wrong_usage_and_wrong_configuration_are_single_lines(rig: ChatRig) -> None:
    name = rig.script(b"", "--session", "../etc")
    assert name.returncode == 2 and name.stderr.startswith(b"limbic: --session must be")
    persona = rig.script(b"", "--persona", "nobody")
    assert persona.returncode == 78
    assert persona.stderr == (
        b"limbic: persona 'nobody' not found; there are: companion, maverick\n"
    )
    missing = rig.script(b"", "--config", "nowhere.toml")
    assert missing.returncode == 78 and missing.stderr.count(b"\n") == 1
    rig.configure('[llm]\nbase_url = "ftp://x"\n[blend]\nsoft_deadline_ms = 0\n')
    wrong = rig.script(b"")
    assert wrong.returncode == 78 and wrong.stderr.count(b"\n") == 2
    assert wrong.stdout == b""


def test_a_model_that_cannot_start_is_a_configuration_error(rig: ChatRig) -> None:
    command = json.dumps([sys.executable, scripted_child.__file__, "name=llm,config"])
    rig.configure(f"[sidecars.llm]\ncommand = {command}\n")
    done = rig.script(b"hello\n")
    assert done.returncode == 78 and done.stdout == b""
    (line,) = done.stderr.splitlines()
    assert b"model file is altered" in line
    assert rig.turns() == []


def test_a_session_whose_persona_was_removed_opens_with_another(rig: ChatRig) -> None:
    own = rig.folder / "personas" / "mine.toml"
    own.parent.mkdir()
    own.write_text('system = "You are mine."\n')
    assert rig.script(b"hi\n", "--persona", "mine").returncode == 0
    own.unlink()
    assert rig.script(b"hi\n", "--persona", "companion").returncode == 0
    assert [status for _, _, status in rig.turns()] == ["done", "done"]


def test_a_persona_is_kept_by_its_session(rig: ChatRig, llm: LLMThread) -> None:
    rig.script(b"hi\n", "--session", "a", "--persona", "maverick")
    rig.script(b"hi\n", "--session", "a")
    rig.script(b"hi\n", "--session", "b")
    systems = [request.body["messages"][0]["content"] for request in llm.server.requests]
    assert systems[0] == systems[1] != systems[2]


# -- lines


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(st.sampled_from([b"a", b"bc", b"\n", b"\n\n", b"\xff", b"def\ng"]), max_size=12),
    limit=st.integers(1, 6),
)
def test_lines_are_what_newlines_separate_however_they_arrive(
    parts: list[bytes], limit: int
) -> None:
    text = b"".join(parts)
    expected = text.split(b"\n")
    if expected[-1] == b"":
        expected.pop()

    async def read() -> list[bytes | None]:
        reader, writer = os.pipe()
        try:
            for part in parts:
                os.write(writer, part)
            os.close(writer)
            return [line async for line in Lines(reader, limit=limit)]
        finally:
            os.close(reader)

    assert asyncio.run(read()) == [x if len(x) <= limit else None for x in expected]


# -- stopping


async def test_a_turn_over_its_limit_is_cancelled_and_waited_for() -> None:
    clock, stop, order = ManualClock(), asyncio.Event(), []

    async def turn() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            order.append("recorded")

    task = asyncio.create_task(turn())
    draining = asyncio.create_task(drain(task, stop, clock=clock, limit_s=10))
    await clock.advance(100)
    assert not task.done()  # nobody asked it to stop
    stop.set()
    await clock.advance(9.9)
    assert not task.done()
    await clock.advance(0.2)
    await draining
    assert task.cancelled() and order == ["recorded"]


async def test_input_is_left_at_once_when_asked_to_stop() -> None:
    stop = asyncio.Event()
    waiting = asyncio.create_task(unless_stopped(asyncio.Event().wait(), stop))
    stop.set()
    with pytest.raises(Stopped):
        await waiting

    async def answer() -> str:
        return "typed"

    assert await unless_stopped(answer(), asyncio.Event()) == "typed"
