"""What a sidecar asks of the operating system: signals, cores, its parent's death and ear."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import sys
from pathlib import Path

import orjson

TOKEN_ENV = "LIMBIC_SIDECAR_TOKEN"
_PR_SET_PDEATHSIG = 1
# As malloc.h names them: one heap; what is freed at its top beyond 16 MB goes back; pieces of over
# 8 MB are no part of it. Those of a batch are smaller: getting them anew each time is slow.
_MALLOPT = {-8: 1, -1: 16 * 1024 * 1024, -3: 8 * 1024 * 1024}
_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def take_managed_token() -> str | None:
    """The token a supervising parent gave, removed from the environment; ``None`` without one."""
    return os.environ.pop(TOKEN_ENV, None) or None


def install_stack_dump() -> None:
    """SIGUSR1 writes every thread's stack to stderr, even while the interpreter is stuck."""
    if hasattr(signal, "SIGUSR1"):
        faulthandler.register(signal.SIGUSR1, all_threads=True)


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies (Linux; elsewhere nothing).

    A second line of defence: the supervisor asks for the same when it starts the child. SIGKILL
    because a sidecar keeps nothing that a hard stop could spoil.
    """
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the kernel was asked
        os._exit(0)


def available_cores() -> int:
    """Cores this process may use: its affinity, and a container's CPU quota if it is smaller."""
    if sys.platform != "linux":
        return os.cpu_count() or 1
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = _CGROUP_QUOTA.read_text().split()
        if quota != "max":
            cores = min(cores, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        pass
    return cores


class ParentLine:
    """JSON lines to the parent on the original standard output.

    Standard output itself is pointed at standard error, so that no library can print into the
    protocol. In the foreground, progress goes to stderr in words.
    """

    def __init__(self, name: str, *, managed: bool) -> None:
        self._name = name
        self._managed = managed
        self._fd: int | None = None
        if managed or not sys.stdout.isatty():
            self._fd = os.dup(1)
            os.set_inheritable(self._fd, False)
            os.dup2(2, 1)

    def progress(self, detail: str) -> None:
        """Report real progress; extends the parent's start-up deadline."""
        self._send({"event": "progress", "detail": detail[:400]})
        if not self._managed:
            print(f"{self._name}: {detail}", file=sys.stderr, flush=True)

    def hello(self, *, port: int, url: str, model: str, sha256: str, version: str) -> None:
        """Announce that the sidecar listens and is ready to be asked."""
        body = {"event": "hello", "name": self._name, "port": port, "pid": os.getpid()}
        self._send({**body, "model": model, "sha256": sha256, "version": version})
        if not self._managed:
            print(f"{self._name}: {model} is ready at {url}", file=sys.stderr, flush=True)

    def _send(self, event: dict[str, object]) -> None:
        if self._fd is None:
            return
        try:
            os.write(self._fd, orjson.dumps(event) + b"\n")
        except OSError:
            # Nobody reads. A managed sidecar without a parent has no purpose.
            if self._managed:
                os._exit(0)
            self._fd = None


def bound_free_memory() -> None:
    """Have the allocator give freed memory back; call before the process has threads (glibc;
    elsewhere nothing).

    Left to itself glibc has one heap for each thread, and learns from every large piece that is
    freed to keep so much the next time: after batches of many lengths a process held some 50 MB
    more than it used.
    """
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        return
    for option, value in _MALLOPT.items():
        libc.mallopt(option, value)


def limit_openmp_spinning() -> None:
    """Make idle OpenMP threads sleep soon; call before the library that uses OpenMP is imported.

    GNU OpenMP's threads spin at every barrier for milliseconds. When anything else wants a core,
    the spinning thread holds it while the one everybody waits for is off the processor: on two
    cores that made a 64-token step up to 20 times slower. A short spin costs nothing measurable.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
