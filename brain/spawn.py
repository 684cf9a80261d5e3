"""Become another program, one that the kernel kills when its parent dies.

Run by path, never imported: ``python -I -S spawn.py PARENT_PID PROGRAM [ARGUMENT …]``.

PR_SET_PDEATHSIG must be set in the child between fork and exec. Doing that in a ``preexec_fn``
would fork a process that has threads and run Python in the copy, which can deadlock; here the brain
spawns with vfork, and this script, a fresh interpreter without threads, sets the signal and execs.
The process id stays the same. The signal fires when the *thread* that spawned the child ends, which
is the thread of the event loop. It adds 12 ms to a start (measured on two cores: 32 ms to ready
instead of 20 for a trivial child).

Exit codes when it cannot exec: 78 the program does not exist or may not be run, 71 the system
refused, 1 the parent is gone already.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
EXIT_OS_ERROR = 71
EXIT_CONFIG = 78
PERMANENT = (errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.ENOTDIR, errno.EISDIR)


def main(argv: list[str]) -> int:
    """Never returns when the exec succeeds."""
    parent, program = int(argv[1]), argv[2:]
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        zero = ctypes.c_ulong(0)
        wanted = ctypes.c_ulong(signal.SIGKILL)
        if libc.prctl(PR_SET_PDEATHSIG, wanted, zero, zero, zero) != 0:
            reason = os.strerror(ctypes.get_errno())
            print(f"the kernel refused PR_SET_PDEATHSIG: {reason}", file=sys.stderr, flush=True)
    if os.getppid() != parent:  # it died before the signal was set, so nothing else would kill us
        return 1
    # CPython ignores these two, and ignored signals survive exec.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        os.execvp(program[0], program)
    except OSError as error:
        print(f"cannot run {program[0]}: {error.strerror}", file=sys.stderr, flush=True)
        return EXIT_CONFIG if error.errno in PERMANENT else EXIT_OS_ERROR


if __name__ == "__main__":
    sys.exit(main(sys.argv))
