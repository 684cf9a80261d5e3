"""Kill what a dead brain left behind, grandchildren included.

Run by path, never imported: ``python -I -S guard.py NAME=VALUE`` with standard input a pipe whose
only other end is in the brain. When the brain ends, in whatever way, the kernel closes that end;
then every process that carries ``NAME=VALUE`` in its environment is killed, and this one ends.

PR_SET_PDEATHSIG (``brain.spawn``) already kills the sidecars themselves; it does not reach the
processes that they started, nor one that left its process group. The environment is inherited by
all of them, and no process id can be mistaken for a reused one. Linux only (it reads ``/proc``).
"""

from __future__ import annotations

import os
import signal
import sys
import time

MAX_PASSES = 100
PASS_INTERVAL_S = 0.01


def carriers(marker: bytes) -> list[int]:
    """Process ids, other than ours, whose environment holds ``marker`` (``NAME=VALUE``)."""
    found = []
    for entry in os.listdir("/proc"):  # noqa: PTH208  (pathlib would cost 4 ms of start-up)
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            with open(f"/proc/{entry}/environ", "rb") as file:  # noqa: PTH123
                if marker in file.read().split(b"\0"):
                    found.append(int(entry))
        except OSError:  # gone, or another user's
            continue
    return found


def sweep(marker: bytes) -> int:
    """SIGKILL every carrier until a pass finds none; returns how many signals were sent."""
    sent = 0
    for _ in range(MAX_PASSES):
        found = carriers(marker)
        if not found:
            break
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
                sent += 1
            except OSError:
                continue
        time.sleep(PASS_INTERVAL_S)
    return sent


def main(argv: list[str]) -> int:
    """Wait for the end of standard input, then sweep."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.read(0, 4096):
        pass
    sweep(argv[1].encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
