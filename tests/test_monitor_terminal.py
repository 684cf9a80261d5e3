"""``limbic monitor`` at a real (pseudo-)terminal: what its screen shows, and how it ends."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.screen import Terminal, terminal
from tests.fakes.snapshot_server import SnapshotServer, answering
from tests.test_monitor import end_of_turn
from tests.test_monitor_view import FULL

COLOUR = re.compile(r"\x1b\[[0-9;]*[34][0-9]")


@pytest.fixture
def brain() -> Iterator[SnapshotServer]:
    with answering(FULL) as server:
        yield server


def watching(brain: SnapshotServer, logs: Path) -> tuple[str, ...]:
    return "monitor", "--every", "0.1", "--url", brain.url, "--logs", str(logs)


def fills(lines: list[str]) -> bool:
    """Whether two frames, one above the other, take the whole screen and are drawn to their end."""
    return (lines[0].startswith("╭") and lines[-1].startswith("╰")
            and sum(line.startswith("╭") for line in lines) == 2
            and all(line.endswith(("╮", "│", "╯")) for line in lines))  # fmt: skip


def leaves(screen: Terminal) -> None:
    screen.child.sendintr()
    assert screen.ends() == 0
    assert screen.seen.endswith("\x1b[?25h\x1b[?1049l")  # the cursor and the old screen are back


def test_the_whole_picture_is_on_80_by_24_and_follows_a_resize(
    brain: SnapshotServer, tmp_path: Path
) -> None:
    with terminal(*watching(brain, tmp_path)) as screen:
        lines = screen.shows("stopped before its reply")
        assert fills(lines) and "limbic · degraded · up 5 min" in lines[0]
        text = "\n".join(lines)
        for words in ("valence", "melatonin", "hostile_intimacy", "parts", "RemoteTimeout"):
            assert words in text
        for columns, rows in ((60, 15), (40, 10), (120, 30), (80, 24)):
            screen.resize(columns, rows)
            lines = screen.shows(
                lambda now, n=columns: (
                    fills(now) and len(now[0]) == n and "12:30:20 ddddeeee" in "\n".join(now)
                )
            )
            assert len(lines) == rows
        leaves(screen)


def test_a_resize_is_followed_at_once(brain: SnapshotServer, tmp_path: Path) -> None:
    slow = [*watching(brain, tmp_path)]
    slow[2] = "60"  # the next look is a minute away
    with terminal(*slow) as screen:
        screen.shows(fills)
        screen.resize(60, 15)
        screen.shows(lambda now: fills(now) and len(now[0]) == 60)
        leaves(screen)


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {}], ids=["no-color", "colour"])
def test_colours_respect_no_color(
    brain: SnapshotServer, tmp_path: Path, env: dict[str, str]
) -> None:
    with terminal(*watching(brain, tmp_path), **env) as screen:
        screen.shows("RemoteTimeout")
        leaves(screen)
    assert bool(COLOUR.search(screen.seen)) is not bool(env)


def test_once_at_a_terminal_draws_one_picture_and_leaves(
    brain: SnapshotServer, tmp_path: Path
) -> None:
    with terminal(*watching(brain, tmp_path), "--once", lines=30) as screen:
        lines = screen.shows("stopped before its reply")
        assert lines[0].startswith("╭") and "\x1b[?1049h" not in screen.seen
        assert screen.ends() == 0


def test_a_dumb_terminal_gets_plain_lines(brain: SnapshotServer, tmp_path: Path) -> None:
    with terminal(*watching(brain, tmp_path), lines=40, TERM="dumb") as screen:
        screen.shows("valence    -0.60")
        screen.child.sendintr()
        assert screen.ends() == 0
    assert "\x1b" not in screen.seen and "╭" not in screen.seen


def test_it_outlives_its_brain_and_goes_on_with_the_next(tmp_path: Path) -> None:
    with answering(FULL) as first:
        port = first.port
        args = watching(first, tmp_path)
    with terminal(*args) as screen:
        lines = screen.shows("no brain at http://127.0.0.1")
        assert fills(lines)
        with answering(FULL, port=port):
            assert "no brain" not in "\n".join(screen.shows("hostile_intimacy"))
        lines = screen.shows("no brain at")
        assert "hostile_intimacy" in "\n".join(lines) and "as it was" in lines[0]
        (tmp_path / "turns.jsonl").write_text(
            end_of_turn("fromlog", 1, hormones_after={"joy": 0.5})
        )
        lines = screen.shows("13:00:01 fromlog")
        assert "from the logs" in lines[0] and "joy" in "\n".join(lines)
        with answering(FULL | {"uptime_s": 2.0}, port=port):
            screen.shows("up 2 s")
        leaves(screen)


def test_a_brain_that_hangs_holds_up_neither_the_picture_nor_the_end(
    brain: SnapshotServer, tmp_path: Path
) -> None:
    brain.hold.clear()
    with terminal(*watching(brain, tmp_path)) as screen:
        screen.shows("not asked yet")
        (tmp_path / "turns.jsonl").write_text(end_of_turn("meanwhile", 1))
        screen.shows("13:00:01 meanwhil")
        leaves(screen)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_stop_signal_gives_the_terminal_back(
    brain: SnapshotServer, tmp_path: Path, number: signal.Signals
) -> None:
    with terminal(*watching(brain, tmp_path)) as screen:
        screen.shows(fills)
        screen.child.kill(number)
        assert screen.ends() == 0
    assert screen.seen.endswith("\x1b[?25h\x1b[?1049l")


def test_a_terminal_that_closes_ends_it(brain: SnapshotServer, tmp_path: Path) -> None:
    with terminal(*watching(brain, tmp_path)) as screen:
        screen.shows(fills)
        child = screen.child
        child.ptyproc.fileobj.close()
        _, status = os.waitpid(child.pid, 0)
        child.terminated = child.ptyproc.terminated = child.closed = True
        child.ptyproc.closed = True
    assert os.waitstatus_to_exitcode(status) == 0


def test_ctrl_z_gives_the_terminal_back_until_it_goes_on(
    brain: SnapshotServer, tmp_path: Path
) -> None:
    with terminal(*watching(brain, tmp_path)) as screen:
        screen.shows(fills)
        screen.child.sendcontrol("z")
        _, status = os.waitpid(screen.child.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        screen.child.kill(signal.SIGCONT)
        screen.shows(lambda _: screen.seen.count("\x1b[?1049h") == 2)
        assert screen.seen.count("\x1b[?1049l") == 1
        screen.screen.reset()
        screen.shows(fills)
        leaves(screen)
