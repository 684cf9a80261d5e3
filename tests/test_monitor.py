"""``limbic monitor`` against brains that are missing, wrong, slow or restarted, and into pipes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from click.testing import CliRunner

from brain.cli import cli, run_command
from brain.cli import monitor as monitor_module
from brain.cli.monitor import Watch
from tests.fakes.snapshot_server import answering
from tests.test_monitor_view import FULL

BOXES = re.compile(r"[\u2500-\u259f\x1b]")
NOBODY = "http://127.0.0.1:1"


def run(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The command with its output in a pipe."""
    return subprocess.run(
        [sys.executable, "-m", "brain", "monitor", *args], capture_output=True, text=True,
        env={**os.environ, **env}, timeout=60, check=False,
    )  # fmt: skip


def end_of_turn(turn_id: str, second: int, **more: Any) -> str:
    record = {"time": f"2026-01-01T13:00:{second:02}.000Z", "event": "turn", "turn_id": turn_id,
              "status": "done", "sides": {}, "timings": {}, **more}  # fmt: skip
    return orjson.dumps(record).decode() + "\n"


async def looked(watch: Watch) -> str:
    """One look; the problem it found."""
    async with aiohttp.ClientSession() as http:
        await watch.look(http)
    return watch.problem


def test_once_into_a_pipe_is_plain_lines(tmp_path: Path) -> None:
    with answering(FULL) as brain:
        done = run("--once", "--url", brain.url, "--logs", str(tmp_path), FORCE_COLOR="1")
    assert done.returncode == 0 and done.stderr == ""
    assert "valence    -0.60\n" in done.stdout
    assert "RemoteTimeout: the llm sent no first token in 30 s\n" in done.stdout
    assert not BOXES.search(done.stdout)


def test_once_prints_the_snapshot_as_json(tmp_path: Path) -> None:
    with answering(FULL) as brain:
        brain.in_pieces = True
        done = CliRunner().invoke(
            cli, ["monitor", "--once", "--json", "--url", brain.url, "--logs", str(tmp_path)]
        )
    assert done.exit_code == 0
    assert orjson.loads(done.output) == FULL


def test_once_and_nobody_there_is_one_line_and_exit_1(tmp_path: Path) -> None:
    done = run("--once", "--url", NOBODY, "--logs", str(tmp_path))
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == (
        f"limbic: no brain at {NOBODY}: Connection refused; start one with: limbic serve\n"
    )


@pytest.mark.parametrize("url", ["127.0.0.1:8765", "ftp://here", "http://", "http://a:99999", ""])
def test_an_address_that_is_none_is_a_usage_error(url: str) -> None:
    with pytest.raises(SystemExit) as caught:
        run_command(cli, "limbic", ["monitor", "--once", "--url", url])
    assert caught.value.code == 2


def test_the_token_of_the_named_variable_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "s3cret")
    with answering(FULL) as brain:
        done = CliRunner().invoke(cli, ["monitor", "--once", "--json", "--token-env", "MY_TOKEN",
                                        "--url", brain.url, "--logs", str(tmp_path)])  # fmt: skip
    assert done.exit_code == 0
    assert brain.tokens == ["Bearer s3cret"]


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, {"error": {"message": "send Authorization"}}, "401: send Authorization; it wants a"),
        (400, {"error": {"message": "host x is not\x1b served"}}, "400: host x is not\\x1b served"),
        (500, b"<html>", "answered 500"),
        (302, b"", "answered 302"),
        (404, {"error": "gone"}, "is this a limbic serve?"),
        (200, b'{"affect": ', "not JSON"),
        (200, b"\xff\xfe", "not JSON"),
        (200, [1], "not a snapshot"),
        (200, b"", "not JSON"),
    ],
)
async def test_a_wrong_answer_is_told_and_what_was_known_stays(
    status: int, body: Any, words: str
) -> None:
    with answering(FULL) as brain:
        watch = Watch(brain.url)
        assert await looked(watch) == ""
        brain.status, brain.body = status, body
        assert words in await looked(watch)
        assert watch.snapshot == FULL
        brain.status, brain.body = 200, FULL
        assert await looked(watch) == ""


async def test_a_brain_that_never_answers_is_given_up_and_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(monitor_module, "ASK_S", 0.05)
    with answering(FULL) as brain:
        brain.hold.clear()
        watch = Watch(brain.url)
        assert "no answer within" in await looked(watch)
        brain.hold.set()
        monkeypatch.undo()
        assert await looked(watch) == ""


async def test_counters_that_begin_again_are_another_brain(tmp_path: Path) -> None:
    with answering(FULL) as brain:
        watch = Watch(brain.url, logs=tmp_path)
        await looked(watch)
        brain.body = FULL | {"uptime_s": 1.0, "turns": {"done": 1}, "recent": []}
        await looked(watch)
    told = list(watch.feed.fresh())
    assert told[-1] == "12:31:00 brain restarted" and "RemoteTimeout" in "\n".join(told)
    assert watch.best()["turns"] == {"done": 1}


async def test_a_log_folder_that_comes_later_is_read(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    watch = Watch(NOBODY, logs=logs)
    watch.read_logs()
    assert str(logs) in watch.empty()
    logs.mkdir()
    (logs / "turns.jsonl").write_text(end_of_turn("late-log", 1))
    watch.read_logs()
    assert "late-log" in "\n".join(watch.feed.fresh())


async def test_what_the_logs_know_is_shown_while_nobody_answers(tmp_path: Path) -> None:
    levels = {"hormones_after": {"cortisol": 0.77}}
    with answering(FULL) as brain:
        watch = Watch(brain.url, logs=tmp_path)
        await looked(watch)
        (tmp_path / "turns.jsonl").write_text(end_of_turn("x", 1, **levels))
        watch.read_logs()
        assert watch.best() is watch.snapshot
    assert "no brain" in await looked(watch)
    assert watch.best()["hormones"] == {"cortisol": 0.77}


async def test_a_rotated_log_is_read_on_and_a_gap_in_it_is_told(tmp_path: Path) -> None:
    log = tmp_path / "turns.jsonl"
    log.write_text(end_of_turn("first", 1))
    watch = Watch(NOBODY, logs=tmp_path)
    watch.read_logs()
    for number in (2, 3, 4):
        for old in range(number - 2, 0, -1):
            log.with_name(f"{log.name}.{old}").rename(log.with_name(f"{log.name}.{old + 1}"))
        log.rename(log.with_name(f"{log.name}.1"))
        log.write_text(end_of_turn(f"turn {number}", number))
    log.with_name(f"{log.name}.1").unlink()
    watch.read_logs()
    told = "\n".join(watch.feed.fresh())
    assert "first" in told and "turn 2" in told and "turn 4" in told
    assert "1 rotated file of turns.jsonl gone" in told


def test_a_remote_brain_is_not_mixed_with_the_logs_of_this_machine() -> None:
    with pytest.MonkeyPatch.context() as patch:
        seen: list[Any] = []
        patch.setattr(monitor_module, "Watch", lambda *args: seen.append(args) or Watch(*args))
        for url in ("http://[::1]:1", "http://brain.invalid:1"):
            CliRunner().invoke(cli, ["monitor", "--once", "--url", url])
    assert [args[2] is None for args in seen] == [False, True]


def test_in_a_pipe_changes_are_plain_lines_and_none_comes_twice(tmp_path: Path) -> None:
    (tmp_path / "turns.jsonl").write_text(end_of_turn("one", 1))
    with answering(FULL) as brain:
        child = subprocess.Popen(
            [sys.executable, "-m", "brain", "monitor", "--every", "0.1", "--logs", str(tmp_path),
             "--url", brain.url], stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert child.stdout is not None
        lines = [""]
        while "13:00:01 one" not in lines[-1]:
            lines.append(child.stdout.readline())
        with (tmp_path / "turns.jsonl").open("a") as log:
            log.write(end_of_turn("two", 2))
        while "13:00:02 two" not in lines[-1]:
            lines.append(child.stdout.readline())
        child.send_signal(signal.SIGTERM)
        rest, _ = child.communicate(timeout=30)
    text = "".join(lines) + rest
    assert child.returncode == 0 and not BOXES.search(text)
    assert text.count("13:00:01 one no scores") == 1 and text.count("RemoteTimeout") == 1


def test_a_pipe_whose_reader_left_ends_it_quietly(tmp_path: Path) -> None:
    with answering(FULL) as brain:
        child = subprocess.Popen(
            [sys.executable, "-m", "brain", "monitor", "--every", "0.1", "--logs", str(tmp_path),
             "--url", brain.url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert child.stdout is not None and child.stderr is not None
        child.stdout.readline()
        child.stdout.close()
        brain.body = FULL | {"turns": {"done": 99}}  # something to print
        error = child.stderr.read()
        assert child.wait(timeout=30) == 0 and error == ""
        child.stderr.close()
