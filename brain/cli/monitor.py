"""``limbic monitor``: two sections, redrawn: scores and state above, reasons and events below.

Driven by ``GET /telemetry/snapshot`` of a running ``limbic serve`` and by the tails of the readable
affect log and of the event log, any of which may be missing, restart or be rotated while it runs.
Where the output cannot be redrawn (a pipe, a dumb terminal) each change is one more plain block.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import deque
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import aiohttp
import click
import orjson
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from brain.cli.common import config_option, settings_for
from brain.errors import ConfigError, LimbicError
from brain.logtail import LogTail
from brain.redact import printable

READABLE = "affect_head_readable.log"
EVENTS = "events.jsonl"
# Of every turn, and shown above already.
ROUTINE = frozenset({"turn", "affect_call", "sidecar_progress", "llm_reconnect"})
KEPT_LINES = 200
PLAIN_LINES = 10
ADVICE = {
    401: "; it wants a token: name the variable that holds it with --token-env",
    400: "; if it refuses this host name, use the one that it was started with",
    404: "; is this a limbic serve?",
}
MAX_SNAPSHOT = 4 << 20
ASK_S = 2.0
RETRY_MAX_S = 10.0
CELLS = 20
# Names of Russell's circumplex (1980), by the signs of valence and tension.
FEELINGS = {
    (1, 1): "excited", (1, 0): "pleased", (1, -1): "at ease", (0, 1): "tense", (0, 0): "even",
    (0, -1): "slack", (-1, 1): "distressed", (-1, 0): "displeased", (-1, -1): "numb",
}  # fmt: skip


@click.command(epilog="Example: limbic monitor --url http://127.0.0.1:8765")
@config_option
@click.option("--url", default="http://127.0.0.1:8765", show_default=True, help="A limbic serve.")
@click.option("--logs", type=click.Path(path_type=Path), help="Log folder. Default: paths.logs.")
@click.option("--token-env", metavar="NAME", help="Variable that holds the server's token.")
@click.option("--every", type=click.FloatRange(0.1, 60), default=1.0, help="Seconds between looks.")
@click.option("--once", is_flag=True, help="Print one frame and leave; 1 when nobody answers.")
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
    """Watch a running brain: scores, levels, latencies; below, why."""
    if as_json and not once:
        raise click.UsageError("--json needs --once")
    token = os.environ.get(token_env, "") if token_env else ""
    if token_env and not token:
        raise ConfigError(f"--token-env {token_env}: that variable is not set")
    folder = logs or settings_for(config).logs_dir
    watch = Watch(url.rstrip("/"), token, LogTail(folder / READABLE), LogTail(folder / EVENTS))
    with suppress(KeyboardInterrupt):
        asyncio.run(watch.once(as_json) if once else watch.follow(every))


class Watch:
    """What is known of a brain, and how it is drawn."""

    def __init__(self, url: str, token: str, tail: LogTail, events: LogTail | None = None) -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._tail = tail
        self._events = events
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.snapshot: dict[str, Any] | None = None
        self.problem = "not asked yet"

    async def once(self, as_json: bool) -> None:
        """One look. Raises LimbicError when nobody answers."""
        async with aiohttp.ClientSession() as http:
            await self.look(http)
        if self.snapshot is None:
            raise LimbicError(f"{self.problem}; start one with: limbic serve")
        if as_json:
            click.echo(orjson.dumps(self.snapshot).decode())
        else:
            Console().print(self.frame(height=40))

    async def follow(self, every: float) -> None:
        """Look and redraw until Ctrl-C or SIGTERM; a missing brain is asked ever more rarely."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        console = Console()
        plain = not sys.stdout.isatty() or console.is_dumb_terminal
        pause, next_ask, last = every, 0.0, ""
        async with aiohttp.ClientSession() as http:
            with (
                nullcontext()
                if plain
                else Live(console=console, auto_refresh=False, screen=True) as live
            ):
                while not stop.is_set():
                    if loop.time() >= next_ask:
                        await self.look(http)
                        pause = every if not self.problem else min(RETRY_MAX_S, 2 * pause)
                        next_ask = loop.time() + pause
                    self.read_logs()
                    frame = self.frame(height=console.size.height, width=console.size.width)
                    if live is not None:
                        live.update(frame, refresh=True)
                    elif (block := self.block()) != last:
                        click.echo(block)
                        last = block
                    with suppress(TimeoutError):
                        await asyncio.wait_for(stop.wait(), every)
        self._tail.close()
        if self._events is not None:
            self._events.close()

    def read_logs(self) -> None:
        """Take what the logs gained."""
        self.lines.extend(self._tail.read())
        if self._events is not None:
            self.lines.extend(filter(None, map(event_line, self._events.read())))

    def block(self) -> str:
        """Both sections as plain lines: no boxes, no colours, no cursor."""
        above = [f"limbic: {self.problem}"] if self.problem else []
        above += ["  ".join(map(printable, row)) for row in rows_of(self.snapshot or {})]
        return "\n".join([*above, *map(printable, self.below()[-PLAIN_LINES:]), ""])

    def below(self) -> list[str]:
        """Lines of the lower section: of the logs, else the snapshot's reasons."""
        return list(self.lines) or [
            f"{r['turn_id'][:12]} {r['reasoning']}" for r in recent_of(self.snapshot or {})
        ]

    async def look(self, http: aiohttp.ClientSession) -> None:
        """Ask for the snapshot; what was known stays when nobody answers."""
        self.read_logs()
        where = f"{self._url}/telemetry/snapshot"
        try:
            async with asyncio.timeout(ASK_S), http.get(where, headers=self._headers) as answer:
                # The body may come in any number of packets; one read returns only what is there.
                body = b""
                while len(body) < MAX_SNAPSHOT and (part := await answer.content.readany()):
                    body += part
                if answer.status != 200:
                    self.problem = f"{where} answered {answer.status}" + ADVICE.get(
                        answer.status, ""
                    )
                    return
                found = orjson.loads(body)
        except orjson.JSONDecodeError:
            self.problem = f"{where} answered something that is not JSON"
            return
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self.problem = f"no brain at {self._url} ({type(error).__name__})"
            return
        if not isinstance(found, dict):
            self.problem = f"{where} answered something that is not a snapshot"
            return
        self.snapshot, self.problem = found, ""

    def frame(self, *, height: int, width: int = 80) -> Group:
        """Both sections, within ``height`` lines of ``width`` columns; the newest lines stay."""
        above = Table.grid(padding=(0, 1))
        for row in rows_of(self.snapshot or {}):
            above.add_row(*(Text(printable(cell)) for cell in row))
        title = "limbic" if not self.problem else f"limbic: {self.problem}"
        room = max(3, height - len(above.rows) - 6)
        below = self.below()
        columns = max(8, width - 4)  # what the frame leaves
        wrapped = [
            line[i : i + columns]
            for line in map(printable, below[-room:])
            for i in range(0, max(1, len(line)), columns)
        ]
        text = Text("\n".join(wrapped[-room:]) or "nothing scored yet", overflow="fold")
        return Group(Panel(above, title=Text(title)), Panel(text, title="why"))


def event_line(line: str) -> str:
    """An event of the log as ``12:30:01 name key value …``; empty for what is routine or broken."""
    try:
        event = orjson.loads(line)
    except orjson.JSONDecodeError:
        return ""
    if not isinstance(event, dict) or event.get("event") in (None, *ROUTINE):
        return ""
    clock = str(event.pop("time", ""))[11:19]
    name = event.pop("event")
    rest = " ".join(
        f"{key} {value}" for key, value in event.items() if isinstance(value, str | int | float)
    )
    return f"{clock} {name} {rest}".strip()


def rows_of(snapshot: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The upper section: (name, bar, words). Anything missing or odd is left out."""
    rows: list[tuple[str, str, str]] = []
    affect = _part(snapshot, "affect")
    last = _part(affect, "last")
    for axis in ("valence", "intimacy", "tension"):
        value = _number(last.get(axis))
        if value is not None:
            rows.append((axis, bar((value + 1) / 2), f"{value:+.2f}"))
    if last:
        tags = last.get("tags")
        named = " ".join(map(str, tags)) if isinstance(tags, list) else ""
        rows.append(("feels", feeling(last), named + (" (late)" if last.get("late") else "")))
    for name in ("affect", "foresight"):
        side = _part(snapshot, name)
        times = _part(side, "latency_ms")
        counts = " ".join(f"{k} {side[k]}" for k in ("on_time", "late", "missed") if k in side)
        if counts:
            p50, p95 = (_number(times.get(k)) or 0.0 for k in ("p50", "p95"))
            rows.append((name, f"p50 {p50:.0f} p95 {p95:.0f} ms", counts))
    surprise = _number(_part(snapshot, "foresight").get("surprise"))
    if surprise is not None:
        rows.append(("surprise", bar(surprise), f"{surprise:.2f}"))
    for name, level in _part(snapshot, "hormones").items():
        value = _number(level)
        if value is not None:
            rows.append((str(name), bar(value), f"{value:.2f}"))
    for name, part in _part(snapshot, "sidecars").items():
        if isinstance(part, Mapping):
            rows.append((str(name), str(part.get("state", "")), str(part.get("reason") or "")))
    return rows


def recent_of(snapshot: Mapping[str, Any]) -> list[dict[str, str]]:
    """Turns with a reason, oldest first."""
    found = snapshot.get("recent")
    items = found if isinstance(found, list) else []
    return [
        {"turn_id": str(i.get("turn_id", "")), "reasoning": str(i["reasoning"])}
        for i in items
        if isinstance(i, Mapping) and i.get("reasoning")
    ]


def feeling(scores: Mapping[str, Any]) -> str:
    """One word for a message's scores, and whether it is close or distant."""
    signs = [_sign(_number(scores.get(axis)) or 0.0) for axis in ("valence", "tension")]
    word = FEELINGS[(signs[0], signs[1])]
    close = _sign(_number(scores.get("intimacy")) or 0.0)
    return word + {1: ", close", 0: "", -1: ", distant"}[close]


def bar(share: float) -> str:
    """``share`` in [0, 1] as a bar."""
    full = round(min(1.0, max(0.0, share)) * CELLS)
    return "█" * full + "░" * (CELLS - full)


def _sign(value: float) -> int:
    return 0 if abs(value) < 0.15 else (1 if value > 0 else -1)


def _part(of: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = of.get(key)
    return found if isinstance(found, Mapping) else {}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and value == value else None
