"""The database's file, and the directory that one brain owns."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from pathlib import Path

from brain import store_sql as sql
from brain.errors import DataDirectoryInUse, StoreError

BUSY_TIMEOUT_S = 5.0


def open_database(path: Path) -> sqlite3.Connection:
    """Open the database, or create it for its owner only; a file that was there is checked first.

    Raises:
        StoreError: it is damaged, or of a newer version. OSError, sqlite3.Error: what was refused.
    """
    try:
        path.stat()  # not exists(), which may take a disk that fails for a file that is not there
        existed = True
    except FileNotFoundError:
        existed = False
    connection = sqlite3.connect(
        path, timeout=BUSY_TIMEOUT_S, check_same_thread=False, isolation_level="IMMEDIATE"
    )
    try:
        if not existed:
            path.chmod(0o600)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        if existed:
            found = connection.execute("PRAGMA quick_check").fetchone()[0]
            if found != "ok":
                raise StoreError(
                    f"{path} is damaged ({found}); restore a copy, or move it away to start anew"
                )
        sql.migrate(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def own(directory: Path) -> int:
    """Lock the directory until the descriptor that comes back is closed.

    Raises:
        DataDirectoryInUse: another brain has it; the message names its pid. OSError.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(directory / "limbic.lock", flags, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        os.close(fd)
        pid = int(text) if text.isdigit() else None
        raise DataDirectoryInUse(
            f"{directory} is in use by another limbic (pid {pid or 'unknown'}); "
            "stop it, or set another paths.data",
            pid=pid,
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd
