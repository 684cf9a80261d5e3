"""One child process: its pipes are drained, its end is noticed at once, it is always reaped.

A ``ChildProcess`` is its own asyncio protocol, so the exit arrives as a callback that does not wait
for the pipes: a grandchild that holds them cannot hide the death of its parent. When the leader
ends, whatever is left of its process group is killed in the same callback; the sockets of a request
in flight close with it, and every waiter fails at that moment.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import cast

from brain.clock import Clock
from brain.errors import EXIT_CONFIG
from brain.events import Emit
from brain.handshake import LineSplitter
from brain.processes import launch_argv, settle

STDERR_LINE_BYTES = 2_000
STDERR_TAIL_LINES = 40
STDERR_BURST_LINES = 400
STDERR_LINES_PER_S = 50.0
REASON_CHARS = 300

DUMP_FIRST_LINE_S = 0.3
DUMP_QUIET_S = 0.03
DUMP_TOTAL_S = 1.0
DRAIN_S = 0.2
REAP_S = 5.0


class ChildProcess(asyncio.SubprocessProtocol):
    """A running sidecar process. Make one with ``spawn``; end it with ``terminate``.

    ``exited`` resolves with the return code (negative: the signal's number). ``output_ended``
    resolves when nothing more can come from standard output.
    """

    def __init__(
        self, name: str, *, clock: Clock, emit: Emit, on_line: Callable[[int, bytes], None]
    ) -> None:
        loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[int] = loop.create_future()
        self.output_ended: asyncio.Future[None] = loop.create_future()
        self.pid = 0
        self.stderr_tail: deque[str] = deque(maxlen=STDERR_TAIL_LINES)
        self.stderr_lines = 0
        self._closed: asyncio.Future[None] = loop.create_future()
        self._name = name
        self._clock = clock
        self._emit = emit
        self._on_line = on_line
        self._stdout = LineSplitter()
        self._stderr = LineSplitter(STDERR_LINE_BYTES, keep_prefix=True)
        self._stderr_at = clock.monotonic()
        self._stderr_allowance = float(STDERR_BURST_LINES)
        self._stderr_suppressed = 0
        self._transport: asyncio.SubprocessTransport | None = None
        self._over = False

    @classmethod
    async def spawn(
        cls,
        name: str,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        clock: Clock,
        emit: Emit,
        on_line: Callable[[int, bytes], None],
    ) -> ChildProcess:
        """Start ``argv`` in a session and process group of its own.

        ``on_line`` gets the pid and each line of standard output, bounded; it must not raise.

        Raises:
            OSError: the system refused to start a process.
        """
        transport, child = await asyncio.get_running_loop().subprocess_exec(
            lambda: cls(name, clock=clock, emit=emit, on_line=on_line),
            *launch_argv(argv),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=dict(env),
            start_new_session=True,
        )
        child.pid = transport.get_pid()
        return child

    @property
    def oversized_lines(self) -> int:
        """How many lines of standard output were dropped for their length."""
        return self._stdout.oversized

    # -- asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.SubprocessTransport, transport)
        self.pid = self._transport.get_pid()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 1:
            for line in self._stdout.feed(data):
                self._on_line(self.pid, line)
        else:
            for line in self._stderr.feed(data):
                self._stderr_line(line)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if fd == 1:
            for line in self._stdout.close():
                self._on_line(self.pid, line)
            if not self.output_ended.done():
                self.output_ended.set_result(None)
        else:
            for line in self._stderr.close():
                self._stderr_line(line)

    def process_exited(self) -> None:
        code = self._transport.get_returncode() if self._transport is not None else None
        if not self.exited.done():
            self.exited.set_result(-signal.SIGKILL if code is None else code)
        self.kill_group()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._closed.done():
            self._closed.set_result(None)

    # -- ending it

    def kill_group(self) -> None:
        """SIGKILL the whole process group, now. Safe at any time, any number of times."""
        self._signal_group(signal.SIGKILL)

    async def terminate(self, *, grace_s: float | None, dump: bool = False) -> None:
        """Ask, wait, kill; on return the child is reaped and its pipes are closed.

        The ladder: SIGUSR1 for a stack dump (``dump``), SIGTERM to the group, ``grace_s``, SIGKILL
        to the group. Cancelling it, or ``grace_s=None``, skips to the last step. Calling it again
        does nothing.
        """
        if self._over:
            return
        try:
            if dump and not self.exited.done():
                await self._dump()
            if grace_s is not None and not self.exited.done():
                self._signal_group(signal.SIGTERM)
                await settle(self._clock, self.exited, grace_s)
        finally:
            self.kill_group()
            try:
                # Deadlines of the kernel, not of policy: in real seconds whatever the clock is.
                await asyncio.wait({self.exited}, timeout=REAP_S)
                await self.drained()
            finally:
                self._over = True
                if self._transport is not None:
                    self._transport.close()
                if not self.exited.done():
                    self._emit("sidecar_not_reaped", name=self._name, pid=self.pid)

    async def drained(self) -> None:
        """Give the last lines of a dead child a moment to arrive; bounded."""
        await asyncio.wait({self._closed}, timeout=DRAIN_S)

    def describe_exit(self) -> str:
        """Why it ended, in one line: the code or signal, and its last word on standard error."""
        code = self.exited.result()
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            hint = " (by somebody, or for want of memory)" if -code == signal.SIGKILL else ""
            return f"killed by {name}{hint}"
        what = f"exit code {code}" + (" (configuration)" if code == EXIT_CONFIG else "")
        last = next((line for line in reversed(self.stderr_tail) if line.strip()), "")
        return f"{what}: {last.strip()[:REASON_CHARS]}" if last else what

    # -- inside

    def _signal_group(self, number: signal.Signals) -> None:
        if self.pid > 0 and not self._over:  # 0 is our own group; a reaped id may be reused
            # macOS says EPERM of a group that has only zombies left.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    async def _dump(self) -> None:
        before = self.stderr_lines
        started = asyncio.get_running_loop().time()
        try:
            os.kill(self.pid, signal.SIGUSR1)
        except ProcessLookupError:
            return
        seen = before
        while not self.exited.done():
            await asyncio.wait({self.exited}, timeout=DUMP_QUIET_S)
            elapsed = asyncio.get_running_loop().time() - started
            quiet = self.stderr_lines == seen
            silent = seen == before
            if elapsed >= DUMP_TOTAL_S or (quiet and (not silent or elapsed >= DUMP_FIRST_LINE_S)):
                break
            seen = self.stderr_lines
        lines = self.stderr_lines - before
        self._emit("sidecar_stack_dump", name=self._name, pid=self.pid, lines=lines)

    def _stderr_line(self, line: bytes) -> None:
        """Keep the line for reasons; log it within a rate, so that a flood stays a trickle."""
        text = line.decode("utf-8", "replace")
        self.stderr_tail.append(text)
        self.stderr_lines += 1
        now = self._clock.monotonic()
        refill = (now - self._stderr_at) * STDERR_LINES_PER_S
        self._stderr_at = now
        self._stderr_allowance = min(STDERR_BURST_LINES, self._stderr_allowance + refill)
        if self._stderr_allowance < 1:
            self._stderr_suppressed += 1
            return
        self._stderr_allowance -= 1
        suppressed, self._stderr_suppressed = self._stderr_suppressed, 0
        self._emit(
            "sidecar_stderr", name=self._name, pid=self.pid, line=text, suppressed=suppressed
        )
