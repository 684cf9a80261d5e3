"""What every child process needs around it: environment, launcher, orphan guard, memory.

All of this is about the operating system and knows nothing of sidecars. On Linux a child is
launched through ``brain/spawn.py`` (dies with the brain) and one ``brain/guard.py`` process for the
whole brain kills grandchildren; elsewhere children are started directly.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brain.clock import Clock

MARKER_VARIABLE = "LIMBIC_SUPERVISOR"
GUARD_CLOSE_S = 2.0

ALLOWED = frozenset(
    {
        "CUDA_VISIBLE_DEVICES",
        "HF_ENDPOINT",
        "HF_HOME",
        "HF_HUB_OFFLINE",
        "HF_TOKEN",
        "HOME",
        "HTTPS_PROXY",
        "HTTP_PROXY",
        "LANG",
        "LANGUAGE",
        "LD_LIBRARY_PATH",
        "NO_PROXY",
        "OMP_NUM_THREADS",
        "PATH",
        "PYTHONPATH",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
        "TMPDIR",
        "TZ",
        "USER",
        "VIRTUAL_ENV",
        "XDG_CACHE_HOME",
        "XDG_DATA_HOME",
        "http_proxy",
        "https_proxy",
        "no_proxy",
    }
)
ALLOWED_PREFIXES = ("LC_", "LIMBIC_")

_HERE = Path(__file__).parent
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def child_env(environ: Mapping[str, str], extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child: what ``ALLOWED`` names of ours, then ``extra``."""
    kept = {
        name: value
        for name, value in environ.items()
        if name in ALLOWED or name.startswith(ALLOWED_PREFIXES)
    }
    return {**kept, **extra}


def launch_argv(argv: Sequence[str]) -> tuple[str, ...]:
    """``argv`` wrapped so that the program dies with this process (Linux)."""
    if sys.platform != "linux":
        return tuple(argv)
    return (sys.executable, "-I", "-S", str(_HERE / "spawn.py"), str(os.getpid()), *argv)


def module_argv(module: str) -> tuple[str, ...]:
    """A Python module of this project as a program; run it with ``module_path`` of the environment.

    ``-P``: a file in the folder that a command runs in is nobody's library, whatever its name.
    """
    return (sys.executable, "-P", "-m", module)


def module_path(environ: Mapping[str, str]) -> dict[str, str]:
    """``PYTHONPATH`` with the folder of these packages in front, unless they are installed."""
    packages = _HERE.parent
    if packages.name in ("site-packages", "dist-packages"):
        return {}
    rest = environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": f"{packages}{os.pathsep}{rest}" if rest else str(packages)}


def rss_bytes(pid: int) -> int | None:
    """Resident memory of a process, or ``None`` where ``/proc`` cannot say. Blocking, about 50 µs.

    Source: ``/proc/PID/statm``, second field, in pages (proc(5)).
    """
    try:
        fields = Path(f"/proc/{pid}/statm").read_bytes().split()
    except OSError:
        return None
    return int(fields[1]) * _PAGE_BYTES if len(fields) > 1 else None


async def settle(clock: Clock, future: asyncio.Future[Any], timeout_s: float) -> bool:
    """Wait at most ``timeout_s`` until ``future`` is done; never cancels it or raises its error."""
    if not future.done():
        timer = asyncio.ensure_future(clock.sleep(max(0.0, timeout_s)))
        try:
            await asyncio.wait({future, timer}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
    return future.done()


class _GuardProtocol(asyncio.SubprocessProtocol):
    def __init__(self) -> None:
        self.exited: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def process_exited(self) -> None:
        if not self.exited.done():
            self.exited.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._transport.close()


class OrphanGuard:
    """One small process that kills every marked process once this one is gone (Linux).

    ``environment`` marks a child; give it to each.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = asyncio.Lock()
        self._transport: asyncio.SubprocessTransport | None = None
        self._protocol: _GuardProtocol | None = None
        self._marker = secrets.token_hex(16)

    @property
    def environment(self) -> dict[str, str]:
        """The variable that marks a process as ours."""
        return {MARKER_VARIABLE: self._marker}

    @property
    def pid(self) -> int | None:
        """Process id of the running guard, if any."""
        if self._protocol is None or self._transport is None or self._protocol.exited.done():
            return None
        return self._transport.get_pid()

    async def ensure(self) -> None:
        """Start the guard unless it runs. Raises ``OSError`` if it cannot be started."""
        if sys.platform != "linux":
            return
        async with self._lock:
            if self.pid is not None:
                return
            self._transport, self._protocol = await asyncio.get_running_loop().subprocess_exec(
                _GuardProtocol,
                sys.executable,
                "-I",
                "-S",
                str(_HERE / "guard.py"),
                f"{MARKER_VARIABLE}={self._marker}",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                env={},
                start_new_session=True,  # a signal to our group must not reach it
            )

    async def close(self) -> None:
        """Let the guard sweep what is left and end; bounded."""
        transport, protocol = self._transport, self._protocol
        self._transport = self._protocol = None
        if transport is None or protocol is None:
            return
        pipe = transport.get_pipe_transport(0)
        if pipe is not None:
            pipe.close()
        if not await settle(self._clock, protocol.exited, GUARD_CLOSE_S):
            transport.kill()
            await settle(self._clock, protocol.exited, GUARD_CLOSE_S)
        transport.close()
