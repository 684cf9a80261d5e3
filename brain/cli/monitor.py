"""``limbic monitor``: two sections, redrawn: scores and state above, turns and events below.

Driven by ``GET /telemetry/snapshot`` of a running ``limbic serve`` and by the tails of the logs,
any of which may be missing, restart or be rotated while it runs. Where the output cannot be redrawn
(a pipe, a dumb terminal) what changes is printed as plain lines.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import click
import orjson
from rich.console import Console
from yarl import URL

from brain.cli.common import config_option, settings_for
from brain.cli.monitor_feed import Feed, number
from brain.cli.monitor_view import frame, plain_rows
from brain.cli.screen import Screen
from brain.cli.stopping import stop_on_signals
from brain.errors import ConfigError, LimbicError
from brain.logtail import LogTail
from brain.redact import printable

# Name and how many bytes of its end are read at first.
LOGS = (("affect_head_raw.jsonl", 16 << 10), ("turns.jsonl", 64 << 10), ("events.jsonl", 4 << 10))
ADVICE = {
    401: "; it wants a token: name the variable that holds it with --token-env",
    400: "; if it refuses this host name, use the one that it was started with",
    404: "; is this a limbic serve?",
}
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
MAX_SNAPSHOT = 4 << 20
MAX_WHY = 200
ASK_S = 2.0
RETRY_MAX_S = 10.0
ENTER, LEAVE, HOME, CLEAR = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l", "\x1b[H", "\x1b[K"
CLEAR_BELOW = "\r\n\x1b[J"


@click.command(epilog="Example: limbic monitor --url http://127.0.0.1:8765")
@config_option
@click.option("--url", default="http://127.0.0.1:8765", show_default=True, help="A limbic serve.")
@click.option(
    "--logs",
    type=click.Path(path_type=Path),
    help="Log folder. Default: paths.logs, where --url is this machine.",
)
@click.option("--token-env", metavar="NAME", help="Variable that holds the server's token.")
@click.option("--every", type=click.FloatRange(0.1, 60), default=1.0, help="Seconds between looks.")
@click.option("--once", is_flag=True, help="Print one picture and leave; 1 when nobody answers.")
@click.option("--json", "as_json", is_flag=True, help="With --once: the snapshot as JSON.")
def monitor(
    config: Path | None,
    url: str,
    logs: Path | None,
    token_env: str | None,
    every: float,
    once: bool,
    as_json: bool,
) -> None:
    """Watch a running brain: scores, levels, latencies; below, what happened and why."""
    if as_json and not once:
        raise click.UsageError("--json needs --once")
    host = _host(url)
    token = os.environ.get(token_env, "") if token_env else ""
    if token_env and not token:
        raise ConfigError(f"--token-env {token_env}: that variable is not set")
    if logs is None and host in LOOPBACK:
        logs = settings_for(config).logs_dir
    with suppress(AttributeError):  # what the terminal's encoding lacks is shown as an escape
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    watch = Watch(url.rstrip("/"), token, logs)
    if once:
        asyncio.run(watch.once(as_json))
    else:
        asyncio.run(watch.follow(every))


class Watch:
    """What is known of a brain, asked and read again and again."""

    def __init__(self, url: str, token: str = "", logs: Path | None = None) -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._logs = logs
        self._tails = [LogTail(logs / name, backlog=size) for name, size in LOGS] if logs else []
        self._screen = Screen(sys.stdout)
        self._shown: list[str] = []
        self.feed = Feed()
        self.snapshot: dict[str, Any] | None = None
        self.problem = "not asked yet"

    async def once(self, as_json: bool) -> None:
        """One look. Raises LimbicError when nobody answers."""
        async with aiohttp.ClientSession() as http:
            await self.look(http)
        if self.snapshot is None:
            raise LimbicError(f"{self.problem}; start one with: limbic serve")
        self.read_logs()
        if as_json:
            self._screen.write(orjson.dumps(self.snapshot).decode() + "\n")
        elif _can_redraw():
            width, height = _size()
            console = Console(width=width, height=height, file=sys.stdout)
            with console.capture() as drawn:
                console.print(self.frame(width=width, height=max(1, height - 1)))
            self._screen.write(drawn.get())
        else:
            self._print_changes()

    async def follow(self, every: float) -> None:
        """Look and redraw until Ctrl-C, SIGTERM or SIGHUP, or until the output is gone. A missing
        brain is asked ever more rarely; asking never holds up drawing."""
        wake = asyncio.Event()
        loop = asyncio.get_running_loop()
        with stop_on_signals() as stop:
            loop.add_signal_handler(signal.SIGINT, stop.set)
            stopping = asyncio.create_task(_then(stop, wake))
            async with aiohttp.ClientSession() as http:
                asking = asyncio.create_task(self._ask(http, every, wake))
                try:
                    with self._drawing(wake) as draw:
                        while not stop.is_set() and not self._screen.gone:
                            wake.clear()
                            self.read_logs()
                            draw()
                            with suppress(TimeoutError):
                                await asyncio.wait_for(wake.wait(), every)
                finally:
                    for task in (asking, stopping):
                        task.cancel()
                    await asyncio.wait((asking, stopping))
        for tail in self._tails:
            tail.close()

    async def _ask(self, http: aiohttp.ClientSession, every: float, wake: asyncio.Event) -> None:
        pause = every
        while True:
            await self.look(http)
            wake.set()
            pause = min(RETRY_MAX_S, 2 * pause) if self.problem else every
            await asyncio.sleep(pause)

    @contextmanager
    def _drawing(self, wake: asyncio.Event) -> Iterator[Any]:
        """A function that shows what is known now; on a screen of its own where there is one."""
        if not _can_redraw():
            yield self._print_changes
            return
        loop = asyncio.get_running_loop()

        def suspend() -> None:
            self._screen.write(LEAVE)
            os.kill(os.getpid(), signal.SIGSTOP)  # Ctrl-Z; it goes on here after ``fg``
            self._screen.write(ENTER)
            wake.set()

        loop.add_signal_handler(signal.SIGWINCH, wake.set)
        loop.add_signal_handler(signal.SIGTSTP, suspend)
        self._screen.write(ENTER)
        try:
            yield self._redraw
        finally:
            self._screen.write(LEAVE)
            loop.remove_signal_handler(signal.SIGWINCH)
            loop.remove_signal_handler(signal.SIGTSTP)

    def _redraw(self) -> None:
        width, height = _size()
        console = Console(width=width, height=height, file=sys.stdout)
        with console.capture() as drawn:
            console.print(self.frame(width=width, height=height), end="")
        lines = drawn.get().split("\n")[:height]
        while lines and not lines[-1]:
            lines.pop()
        # Cleared before it is written: after the last column it would take the last character.
        text = "\r\n".join(CLEAR + line for line in lines)
        self._screen.write(HOME + text + (CLEAR_BELOW if len(lines) < height else ""))

    def _print_changes(self) -> None:
        """What is new, as plain lines: the upper section when it changed, then each new line."""
        above = [f"limbic: {self.problem}"] if self.problem else []
        above += plain_rows(self.best())
        if above != self._shown:
            self._shown = above
            for line in above:
                self._screen.line(line)
        for line in self.feed.fresh():
            self._screen.line(" ".join(line.split()))

    def read_logs(self) -> None:
        """Take what the logs gained."""
        for tail in self._tails:
            for line in tail.read():
                self.feed.take_line(line)

    def best(self) -> Mapping[str, Any]:
        """The snapshot; where nobody answers and the logs know of a later turn, what they say."""
        known = self.snapshot or {}
        asked = known.get("time")
        later = self.feed.last_turn_at > (asked if isinstance(asked, str) else "")
        return self.feed.as_snapshot() if self.problem and later else known

    async def look(self, http: aiohttp.ClientSession) -> None:
        """Ask for the snapshot; what was known stays when nobody answers."""
        where = f"{self._url}/telemetry/snapshot"
        try:
            async with asyncio.timeout(ASK_S):
                async with http.get(where, headers=self._headers, allow_redirects=False) as answer:
                    # It may come in any number of packets; one read returns only what is there.
                    body = b""
                    while len(body) < MAX_SNAPSHOT and (some := await answer.content.readany()):
                        body += some
            if answer.status != 200:
                advice = ADVICE.get(answer.status, "")
                self.problem = f"{where} answered {answer.status}{_said(body)}{advice}"
                return
            found = orjson.loads(body)
        except orjson.JSONDecodeError:
            self.problem = f"{where} answered something that is not JSON"
        except TimeoutError:
            self.problem = f"no brain at {self._url}: no answer within {ASK_S:.0f} seconds"
        except aiohttp.ClientConnectorError as error:
            self.problem = f"no brain at {self._url}: {_system_words(error.os_error)}"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            self.problem = f"no brain at {self._url}: {type(error).__name__}"
        else:
            if isinstance(found, dict):
                self.snapshot, self.problem = found, ""
                self.feed.take_snapshot(found)
            else:
                self.problem = f"{where} answered something that is not a snapshot"

    def frame(self, *, width: int, height: int) -> Any:
        """Both sections, within ``height`` lines of ``width`` columns."""
        encoding = (sys.stdout.encoding or "utf-8").lower()
        return frame(
            self.best(), self.feed, title=self._title(), problem=self.problem, empty=self.empty(),
            width=width, height=height, ascii_only=not encoding.startswith("utf"),
        )  # fmt: skip

    def empty(self) -> str:
        """What stands in an empty lower section."""
        if self._logs is not None and not self._logs.is_dir():
            return f"no turn yet; there is no log folder {self._logs} yet"
        return "no turn yet"

    def _title(self) -> str:
        if self.problem:
            source = "from the logs" if self.best() is not self.snapshot else "as it was"
            return f"limbic · {source}" if self.best() else "limbic"
        known = self.snapshot or {}
        words = ["limbic", str(known.get("status", ""))]
        if (uptime := number(known.get("uptime_s"))) is not None:
            words.append(f"up {_span(uptime)}")
        return " · ".join(filter(None, words))


def _host(url: str) -> str:
    try:
        parsed = URL(url)
        if parsed.scheme in ("http", "https") and parsed.host and parsed.port:
            return parsed.host
    except ValueError:
        pass
    raise click.BadParameter(f"{url!r} is no http://HOST:PORT", param_hint="--url")


def _can_redraw() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")


def _size() -> tuple[int, int]:
    """Columns and lines now; what the environment says of them does not follow a resize."""
    try:
        size = os.get_terminal_size(sys.stdout.fileno())
    except (OSError, ValueError):
        return 80, 24
    return size.columns or 80, size.lines or 24


def _system_words(error: OSError) -> str:
    """``Connection refused``; asyncio's own words hold an address that is said already."""
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or type(error).__name__


def _said(body: bytes) -> str:
    """The sentence of an error answer."""
    try:
        said = orjson.loads(body)["error"]["message"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return ""
    return f": {printable(said)[:MAX_WHY]}" if isinstance(said, str) else ""


def _span(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"


async def _then(first: asyncio.Event, second: asyncio.Event) -> None:
    await first.wait()
    second.set()
