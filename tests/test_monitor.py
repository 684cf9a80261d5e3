"""``limbic monitor``: what it draws, what it survives; in a real terminal too."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import orjson
import pexpect
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from brain.cli import cli
from brain.cli.monitor import Watch, feeling, rows_of
from brain.logtail import LogTail

SNAPSHOT: dict[str, Any] = {
    "status": "ok",
    "affect": {
        "last": {"turn_id": "t1", "valence": -0.6, "intimacy": 0.7, "tension": 0.5,
                 "tags": ["hostile_intimacy"], "late": True},
        "latency_ms": {"p50": 9.0, "p95": 14.0}, "on_time": 3, "late": 1, "missed": 0,
    },
    "foresight": {"surprise": 0.8, "on_time": 2, "late": 0, "missed": 0, "latency_ms": {}},
    "hormones": {"cortisol": 0.61},
    "sidecars": {"cahm": {"state": "degraded", "reason": "restarting"}},
    "recent": [{"turn_id": "t1", "reasoning": "tension: “liar” +0.40"}],
}  # fmt: skip


def drawn(watch: Watch, *, width: int = 90) -> str:
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    console.print(watch.frame(height=40))
    return console.export_text()


def watch_on(tmp_path: Path) -> Watch:
    return Watch("http://127.0.0.1:1", "", LogTail(tmp_path / "log"))


def test_both_sections_are_drawn(tmp_path: Path) -> None:
    watch = watch_on(tmp_path)
    watch.snapshot, watch.problem = SNAPSHOT, ""
    text = drawn(watch)
    for words in ("valence", "-0.60", "distressed, close", "hostile_intimacy (late)", "p95 14 ms",
                  "surprise", "cortisol", "0.61", "restarting", "“liar” +0.40"):  # fmt: skip
        assert words in text


def test_hostile_text_does_not_act_on_the_terminal(tmp_path: Path) -> None:
    watch = watch_on(tmp_path)
    watch.snapshot = {"recent": [{"turn_id": "t", "reasoning": "\x1b[2Jgone [bold]x[/bold]"}]}
    text = drawn(watch, width=40)
    assert "\x1b" not in text
    assert "[bold]x[/bold]" in text


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(
                st.sampled_from(
                    ["affect", "last", "hormones", "valence", "tags", "sidecars", "late"]
                ),
                inner,
                max_size=3,
            )
        ),
        max_leaves=12,
    )
)
def test_no_snapshot_however_odd_breaks_the_frame(value: Any) -> None:
    rows = rows_of(value if isinstance(value, dict) else {"affect": value})
    assert all(len(row) == 3 for row in rows)


def test_a_feeling_has_a_word() -> None:
    assert feeling({"valence": -0.5, "tension": -0.5}) == "numb"
    assert feeling({"valence": 0.5, "intimacy": -0.4}) == "pleased, distant"
    assert feeling({}) == "even"


def test_the_newest_line_is_seen_however_long_the_others_are(tmp_path: Path) -> None:
    watch = watch_on(tmp_path)
    watch.lines.extend(["old " * 60] * 30 + ["the newest"])
    console = Console(width=60, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    console.print(watch.frame(height=24, width=60))
    lines = console.export_text().splitlines()
    assert len(lines) <= 24
    assert "the newest" in "\n".join(lines)


def test_events_of_the_log_are_shown_and_routine_ones_are_not(tmp_path: Path) -> None:
    rows = [
        {"event": "turn", "time": "2026-01-01T12:00:00.000Z"},
        {"event": "sidecar_ended", "time": "2026-01-01T12:30:01.000Z", "name": "cahm", "code": -9},
        {"event": "breaker_opened", "time": "2026-01-01T12:30:02.000Z", "remote": "llm"},
    ]
    (tmp_path / "events").write_bytes(
        b"not json\n" + b"".join(orjson.dumps(r) + b"\n" for r in rows)
    )
    watch = Watch("http://127.0.0.1:1", "", LogTail(tmp_path / "log"), LogTail(tmp_path / "events"))
    watch.read_logs()
    assert list(watch.lines) == ["12:30:01 sidecar_ended name cahm code -9",
                                 "12:30:02 breaker_opened remote llm"]  # fmt: skip


def test_a_narrow_terminal_is_not_overrun(tmp_path: Path) -> None:
    watch = watch_on(tmp_path)
    watch.snapshot, watch.problem = SNAPSHOT, ""
    for width in (20, 40, 200):
        console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
        console.print(watch.frame(height=40, width=width))
        assert max(map(len, console.export_text().splitlines())) <= width


def test_a_refused_token_says_which_option_to_use(tmp_path: Path) -> None:
    with answering(401) as url:
        answer = CliRunner().invoke(
            cli, ["monitor", "--once", "--url", url, "--logs", str(tmp_path)]
        )
    assert answer.exit_code == 1
    assert "--token-env" in str(answer.exception)


def test_the_token_of_the_named_variable_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "s3cret")
    seen: list[str] = []
    with answering(200, seen) as url:
        answer = CliRunner().invoke(cli, ["monitor", "--once", "--json", "--token-env", "MY_TOKEN",
                                          "--url", url, "--logs", str(tmp_path)])  # fmt: skip
    assert answer.exit_code == 0
    assert seen == ["Bearer s3cret"]


@contextmanager
def answering(status: int, seen: list[str] | None = None) -> Iterator[str]:
    """A server that gives the snapshot, or only a status."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if seen is not None:
                seen.append(self.headers.get("Authorization", ""))
            body = orjson.dumps(SNAPSHOT if status == 200 else {})
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{found.server_port}"
        finally:
            found.shutdown()


def monitor_process(*args: str, **env: str) -> Any:
    return pexpect.spawn(
        sys.executable, ["-m", "brain", "monitor", "--every", "0.1", *args],
        dimensions=(40, 100), timeout=30, encoding="utf-8", env={**os.environ, **env},
    )  # fmt: skip


def test_it_goes_on_with_a_brain_that_comes_back(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    child = monitor_process("--logs", str(tmp_path), "--url", f"http://127.0.0.1:{port}")
    child.expect("no brain at")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(orjson.dumps(SNAPSHOT))

        def log_message(self, *_: Any) -> None:
            pass

    HTTPServer.allow_reuse_address = True
    with HTTPServer(("127.0.0.1", port), Handler) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        child.expect("hostile_intimacy")
        child.sendintr()
        child.expect(pexpect.EOF)
        found.shutdown()
    child.close()
    assert child.exitstatus == 0


@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {"NO_COLOR": "1"}])
def test_dumb_terminals_get_plain_blocks_and_no_color_gets_no_colour(
    tmp_path: Path, env: dict[str, str]
) -> None:
    with answering(200) as url:
        child = monitor_process("--logs", str(tmp_path), "--url", url, **env)
        child.expect("hostile_intimacy")
        seen = child.before
        child.sendintr()
        child.expect(pexpect.EOF)
        child.close()
    if env.get("TERM") == "dumb":
        assert "\x1b" not in seen
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", seen)


def test_in_a_pipe_it_prints_plain_blocks(tmp_path: Path) -> None:
    with answering(200) as url:
        child = subprocess.Popen(
            [sys.executable, "-m", "brain", "monitor", "--every", "0.1", "--logs", str(tmp_path),
             "--url", url], stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert child.stdout is not None
        line = child.stdout.readline()
        child.send_signal(signal.SIGTERM)
        child.communicate(timeout=30)
    assert line.startswith("valence") and "\x1b" not in line
    assert child.returncode == 0


def test_nobody_there_is_one_line_and_exit_1(tmp_path: Path) -> None:
    from brain.cli import run_command

    with pytest.raises(SystemExit) as caught:
        run_command(cli, "limbic", ["monitor", "--once", "--url", "http://127.0.0.1:1",
                                    "--logs", str(tmp_path)])  # fmt: skip
    assert caught.value.code == 1


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = orjson.dumps(SNAPSHOT)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:40])
            self.wfile.flush()
            threading.Event().wait(0.05)  # the rest comes in another packet
            self.wfile.write(body[40:])

        def log_message(self, *_: Any) -> None:
            pass

    found = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()


def test_once_prints_the_snapshot_as_json(server: HTTPServer, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{server.server_port}"
    answer = CliRunner().invoke(
        cli, ["monitor", "--once", "--json", "--url", url, "--logs", str(tmp_path)]
    )
    assert answer.exit_code == 0
    assert orjson.loads(answer.output) == SNAPSHOT


def test_in_a_terminal_it_outlives_its_brain_and_ends_on_ctrl_c(
    server: HTTPServer, tmp_path: Path
) -> None:
    child = pexpect.spawn(
        sys.executable,
        ["-m", "brain", "monitor", "--every", "0.1", "--logs", str(tmp_path),
         "--url", f"http://127.0.0.1:{server.server_port}"],
        dimensions=(40, 100), timeout=30, encoding="utf-8",
    )  # fmt: skip
    child.expect("hostile_intimacy")
    (tmp_path / "affect_head_readable.log").write_text("a reason from the log\n")
    child.expect("a reason from the log")
    server.shutdown()
    server.server_close()
    child.expect("no brain at")
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
