"""``limbic chat`` at a real (pseudo-)terminal, as a person uses it."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import psutil
import pytest

from tests.fakes import child as scripted_child
from tests.fakes.chat_rig import PATIENCE_S, ChatRig, LLMThread
from tests.fakes.llm_server import DONE, ROLE, Hold, Script, broken, chunk, refuse, reply, stalled

HELD = Script((ROLE, chunk("It"), Hold(), chunk(" holds."), chunk(finish="stop"), DONE))
PROMPT = "you>"
STYLE = re.compile(r"\x1b\[([0-9;]*)m")


@pytest.fixture
def llm() -> Iterator[LLMThread]:
    server = LLMThread()
    yield server
    server.close()


@pytest.fixture
def rig(tmp_path: Path, llm: LLMThread) -> ChatRig:
    return ChatRig(tmp_path, llm)


def leaves(terminal: Any, code: int = 0) -> None:
    terminal.expect(pexpect.EOF)
    terminal.wait()
    assert (terminal.exitstatus, terminal.signalstatus) == (code, None)


def test_a_reply_streams_and_a_line_of_status_follows(rig: ChatRig, llm: LLMThread) -> None:
    llm.server.enqueue(HELD)
    with rig.terminal("--session", "alice") as terminal:
        terminal.expect(PROMPT)
        terminal.sendline("hello")
        terminal.expect("companion> .*It")  # the first token shows while the rest is held back
        llm.release()
        terminal.expect(r" holds\.\r?\n.*\[[a-z ,]+ · first token \d+ ms · total [\d.]+ m?s\]")
        terminal.expect(PROMPT)
        terminal.sendline("/quit")
        leaves(terminal)
    assert rig.turns() == [("hello", "It holds.", "done")]


def test_ctrl_c_stops_the_reply_and_at_an_empty_prompt_leaves(rig: ChatRig, llm: LLMThread) -> None:
    llm.server.enqueue(stalled("Long"), reply("Next"))
    with rig.terminal() as terminal:
        terminal.expect(PROMPT)
        terminal.sendline("tell me everything")
        terminal.expect("Long")
        terminal.sendintr()
        terminal.expect(r"\[stopped")
        llm.until(left=1)  # generation stopped at the server
        terminal.expect(PROMPT)
        terminal.sendline("again")
        terminal.expect("Next")
        terminal.expect("total")
        terminal.expect(PROMPT)
        terminal.send("half a thou")
        terminal.expect("thou")
        terminal.sendintr()  # clears the line, as in a shell
        terminal.sendline("/help")
        terminal.expect("/undo")
        terminal.expect(PROMPT)
        terminal.sendintr()
        leaves(terminal)
    assert [turn[2] for turn in rig.turns()] == ["cancelled", "done"]
    assert "^C" not in terminal.seen.getvalue()


def test_ctrl_d_leaves(rig: ChatRig) -> None:
    with rig.terminal() as terminal:
        terminal.expect(PROMPT)
        terminal.sendcontrol("d")
        leaves(terminal)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_stop_signal_lets_the_running_turn_finish(
    rig: ChatRig, llm: LLMThread, number: signal.Signals
) -> None:
    llm.server.enqueue(HELD)
    with rig.terminal() as terminal:
        terminal.expect(PROMPT)
        terminal.sendline("hello")
        terminal.expect("It")
        terminal.kill(number)
        llm.release()
        terminal.expect("holds")
        leaves(terminal)
    assert rig.turns() == [("hello", "It holds.", "done")]


def test_a_stop_signal_at_the_prompt_leaves_at_once(rig: ChatRig) -> None:
    with rig.terminal() as terminal:
        terminal.expect(PROMPT)
        terminal.kill(signal.SIGTERM)
        leaves(terminal)


def test_a_terminal_that_is_closed_mid_reply_loses_no_turn(rig: ChatRig, llm: LLMThread) -> None:
    llm.server.enqueue(HELD)
    with rig.terminal() as terminal:
        terminal.expect(PROMPT)
        terminal.sendline("hello")
        terminal.expect("It")
        terminal.ptyproc.fileobj.close()
        llm.release()
        _, status = os.waitpid(terminal.pid, 0)
        terminal.terminated = terminal.ptyproc.terminated = terminal.closed = True
        terminal.ptyproc.closed = True
    assert os.waitstatus_to_exitcode(status) == 0
    assert rig.turns() == [("hello", "It holds.", "done")]


def test_commands_work_and_errors_are_one_line(rig: ChatRig, llm: LLMThread) -> None:
    llm.server.enqueue(reply("Hi"), refuse(500, "out of\nmemory"), broken("Half an ans"))
    with rig.terminal() as terminal:
        terminal.expect(PROMPT)
        terminal.sendline("my name is Ann Lee")
        terminal.expect("total")
        for command, answer in (
            ("/state", "serotonin +█+░+ +0"),
            ("/affect", "sidecars.cahm is switched off"),
            ("/memory", "1  0.30  my name is Ann Lee"),
            ("/memory forget 1", "forgot 1"),
            ("/session", "session default · persona companion"),
            ("/persona switch maverick", "maverick: "),
            ("/undo", "took back: my name is Ann Lee"),
            ("/session switch bob", "session bob"),
            ("/session list", r"\* bob"),
            ("/nope", "limbic: there is no command /nope; /help lists them"),
        ):
            terminal.expect(PROMPT)
            terminal.sendline(command)
            terminal.expect(answer)
        terminal.expect(PROMPT)
        terminal.sendline("//literal")
        terminal.expect(r"companion> .*\nlimbic: the llm at [^\r\n]*HTTP 500[^\r\n]*\r?\n")
        terminal.expect(PROMPT)
        terminal.sendline("a second one")
        terminal.expect(r"Half an ans\r?\n.*broken off.*\nlimbic: the answer of the llm broke off")
        terminal.expect(PROMPT)
        terminal.sendline("and on")
        terminal.expect("Hello there!")
        terminal.expect(PROMPT)
        terminal.sendline("/quit")
        leaves(terminal)
    sent = [message["content"] for message in llm.server.requests[1].body["messages"]]
    assert any(content.startswith("/literal") for content in sent)


def test_hostile_text_is_shown_and_does_not_act(rig: ChatRig, llm: LLMThread) -> None:
    llm.server.enqueue(reply("\x1b]0;own", "ed\x07", "\x9b2J", "\u202egnp\r", "\nend"))
    with rig.terminal() as terminal:
        terminal.expect(PROMPT)
        terminal.sendline("turn \u202eme round")
        terminal.expect_exact("\\x1b]0;owned\\x07\\x9b2J\\x202egnp")
        terminal.expect("end")
        terminal.expect(PROMPT)
        terminal.sendline("/undo")
        terminal.expect_exact("took back: turn \\x202eme round")
        terminal.expect(PROMPT)
        terminal.sendcontrol("d")
        leaves(terminal)
    seen = terminal.seen.getvalue()
    assert "\x1b]0" not in seen and "\x07" not in seen and "\x9b" not in seen


def test_bytes_that_are_not_text_are_refused_and_the_chat_goes_on(
    rig: ChatRig, llm: LLMThread
) -> None:
    with rig.terminal() as terminal:
        terminal.expect(PROMPT)
        os.write(terminal.child_fd, b"caf\xe9\r")
        terminal.expect("limbic: the message holds a lone surrogate")
        terminal.expect(PROMPT)
        terminal.sendline("coffee")
        terminal.expect("Hello there!")


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {}], ids=["no-color", "colour"])
def test_styles_respect_no_color(rig: ChatRig, env: dict[str, str]) -> None:
    with rig.terminal(**env) as terminal:
        terminal.expect(PROMPT)
        terminal.sendline("hello")
        terminal.expect("total")
        terminal.expect(PROMPT)
        terminal.sendline("/quit")
        leaves(terminal)
    used = {code for code in STYLE.findall(terminal.seen.getvalue()) if code.strip("0")}
    assert used <= (set() if env else {"1", "2", "0;2", "0;38;5;102"})
    assert bool(used) is not bool(env)


def test_typed_lines_come_back_in_the_next_chat_and_are_private(
    rig: ChatRig, llm: LLMThread
) -> None:
    with rig.terminal() as terminal:
        terminal.expect(PROMPT)
        terminal.sendline("remember these words")
        terminal.expect("total")
        terminal.expect(PROMPT)
        terminal.sendcontrol("d")
        leaves(terminal)
    with rig.terminal() as terminal:
        terminal.expect("ago you said “remember these words” and heard “Hello there!”")
        terminal.expect("mood: still [a-z ,]+")
        terminal.expect(PROMPT)
        terminal.send("\x1b[A")
        terminal.expect("remember these words")
        terminal.send("\x01we \r")  # editing: to the start of the line
        terminal.expect("total")
    assert [turn[0] for turn in rig.turns()] == ["remember these words", "we remember these words"]
    history = rig.data / "chat_history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


def test_the_prompt_is_open_while_the_model_loads(rig: ChatRig) -> None:
    modes = "name=llm,endless-progress"
    command = json.dumps([sys.executable, scripted_child.__file__, modes])
    rig.configure(f"[sidecars.llm]\ncommand = {command}\n")
    with rig.terminal(answers_cursor=True) as terminal:
        terminal.expect("the model is loading; you can write already")
        terminal.expect_exact("\x1b[6n")
        terminal.send("\x1b[9;1R")
        # The toolbar. The rest may come in pieces: only cells that change are drawn again.
        terminal.expect(r"default · companion · loading…")
        terminal.sendline("hello")
        terminal.expect(r"\r.*loading…")
        terminal.sendintr()
        terminal.expect_exact("\x1b[6n")
        terminal.send("\x1b[20;1R")
        terminal.expect(PROMPT)
        terminal.sendline("/session")
        terminal.expect("model loading…")
        terminal.expect_exact("\x1b[6n")
        terminal.send("\x1b[20;1R")
        terminal.sendcontrol("d")
        leaves(terminal)
    assert rig.turns() == []


def test_a_second_chat_on_the_same_data_is_refused_with_the_first_ones_pid(rig: ChatRig) -> None:
    with rig.terminal() as terminal:
        terminal.expect(PROMPT)
        second = rig.script(b"hello\n")
        assert second.returncode == 78 and second.stdout == b""
        (line,) = second.stderr.splitlines()
        assert f"pid {terminal.pid}".encode() in line


@pytest.mark.model
@pytest.mark.timeout(300)
def test_a_killed_model_and_a_killed_brain_cost_neither_conversation_nor_mood(
    rig: ChatRig,
) -> None:
    rig.configure("")  # the embedded model
    with rig.terminal() as terminal:
        terminal.timeout = 3 * PATIENCE_S  # a busy machine may take long to load it, twice
        terminal.expect(PROMPT)
        terminal.sendline("I had a rough day at work.")
        terminal.expect("total")
        terminal.expect(PROMPT)
        terminal.sendline("Tell me a long story about the sea and a small boat.")
        terminal.expect("companion> ")
        brain = psutil.Process(terminal.pid)
        first = model_process(brain)
        first.kill()
        # Before the first token the request is simply sent again; after it, the reply stays cut.
        terminal.expect(["limbic: the answer of the llm broke off[^\r\n]*\r?\n", "total"])
        terminal.expect(PROMPT)
        terminal.sendline("Are you still there?")
        terminal.expect("total")
        assert model_process(brain).pid != first.pid
        processes = brain.children(recursive=True)
        brain.kill()
        _, left = psutil.wait_procs(processes, timeout=PATIENCE_S)
        assert left == []
    with rig.terminal() as terminal:
        terminal.expect("ago you said “Are you still there\\?” and heard")
        terminal.expect("mood: ")
        terminal.expect(PROMPT)
        terminal.sendcontrol("d")
        leaves(terminal)
    statuses = [turn[2] for turn in rig.turns()]
    assert statuses[0] == statuses[2] == "done" and statuses[1] in ("done", "partial")


def model_process(brain: psutil.Process) -> psutil.Process:
    """The process of the chat model."""
    (found,) = (p for p in brain.children(recursive=True) if "sidecars.llm" in p.cmdline())
    return found
