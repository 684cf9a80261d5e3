"""Runs ``limbic chat`` as people do, against a scripted model, at a terminal or with pipes."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pexpect

from tests.fakes.llm_server import FakeLLM

ROOT = Path(__file__).parents[2]
LIMBIC = (sys.executable, "-c", "from brain.cli import main; main()")
PATIENCE_S = 30


class LLMThread:
    """A ``FakeLLM`` in a thread of its own, so that a test may block on a terminal meanwhile."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.server: FakeLLM = self.call(self._start())

    def call(self, work: Any) -> Any:
        """Run a coroutine in the server's loop; its result."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE_S)

    def release(self) -> None:
        """Let every ``Hold`` go on."""
        self.loop.call_soon_threadsafe(self.server.release)

    def until(self, *, left: int = 0, requests: int = 0) -> None:
        """Wait until so many clients left and so many requests came."""
        self.call(self.server.until(left=left, requests=requests))

    def close(self) -> None:
        """Stop the server and its thread."""
        self.call(self.server.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE_S)
        self.loop.close()

    @staticmethod
    async def _start() -> FakeLLM:
        return await FakeLLM().start()


class ChatRig:
    """One data directory, one configuration, one scripted model."""

    def __init__(self, folder: Path, llm: LLMThread, more: str = "") -> None:
        self.folder = folder
        self.llm = llm
        self.data = folder / "data"
        self.config = folder / "limbic.toml"
        self.configure(f'[llm]\nbase_url = "{llm.server.url}/v1"\nmax_attempts = 1\n{more}')

    def configure(self, text: str) -> None:
        """Replace the settings below ``[paths]``."""
        self.config.write_text(f'[paths]\ndata = "data"\nlogs = "logs"\n{text}', encoding="utf-8")

    def environment(self, **more: str) -> dict[str, str]:
        """A terminal user's environment, and nothing of this machine's."""
        kept = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
        return {
            **kept,
            "HOME": str(self.folder),
            "LIMBIC_CONFIG": str(self.config),
            "LANG": "C.UTF-8",
            "TERM": "xterm",
            **more,
        }

    @contextmanager
    def terminal(self, *args: str, answers_cursor: bool = False, **env: str) -> Iterator[Any]:
        """``limbic chat`` on a pseudo-terminal, killed at the end if it still runs.

        ``seen`` of the child holds everything it printed. ``answers_cursor``: the test answers
        questions about the cursor, as real terminals do.
        """
        if not answers_cursor:
            env["PROMPT_TOOLKIT_NO_CPR"] = "1"
        child = pexpect.spawn(
            LIMBIC[0],
            [*LIMBIC[1:], "chat", *args],
            env=self.environment(**env),
            cwd=str(self.folder),
            encoding="utf-8",
            timeout=PATIENCE_S,
            dimensions=(40, 120),
            echo=False,
        )
        child.logfile_read = child.seen = io.StringIO()
        try:
            yield child
        finally:
            child.close(force=True)

    def start(self, *args: str, **env: str) -> subprocess.Popen[bytes]:
        """``limbic chat`` with pipes."""
        return subprocess.Popen(
            [*LIMBIC, "chat", *args],
            env=self.environment(**env),
            cwd=self.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def script(self, text: bytes, *args: str, **env: str) -> subprocess.CompletedProcess[bytes]:
        """Run a whole script to its end."""
        process = self.start(*args, **env)
        try:
            out, err = process.communicate(text, timeout=PATIENCE_S)
        finally:
            end(process)
        return subprocess.CompletedProcess(args, process.returncode, out, err)

    def turns(self) -> Sequence[tuple[str, str, str]]:
        """(user's words, reply, status) of every stored turn, in order."""
        with closing(sqlite3.connect(self.data / "limbic.db")) as connection:
            return connection.execute(
                "SELECT user_text, reply, status FROM turns ORDER BY session_id, seq"
            ).fetchall()


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill and reap, whatever its state."""
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()
