"""One check and its outcome, and the checks that need no running brain."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import socket
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from brain.processes import module_argv, module_path
from brain.settings import Settings

Level = Literal["ok", "warning", "failed", "skipped"]
MIN_FREE_MB = 500
MODEL_CHECK_S = 600


@dataclass(frozen=True, slots=True)
class Check:
    """Outcome of one check: what was seen, and what to do when it is not ``ok``."""

    name: str
    level: Level
    seen: str
    fix: str = ""


def check_python() -> Check:
    """Python is new enough."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < (3, 11):  # noqa: UP036 - started by hand with an older one
        return Check("python", "failed", version, "install Python 3.11 or newer")
    return Check("python", "ok", version)


def check_libraries() -> Check:
    """Everything that the distribution declares is installed in a version that it allows."""
    from packaging.requirements import Requirement

    try:
        declared = importlib.metadata.requires("limbic-runtime") or []
    except importlib.metadata.PackageNotFoundError:
        return Check("libraries", "failed", "limbic-runtime is not installed", "run: make install")
    wrong = []
    count = 0
    for text in declared:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        count += 1
        try:
            found = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} {found}, wanted {requirement.specifier}")
    if wrong:
        return Check("libraries", "failed", "; ".join(wrong), "run: make install")
    return Check("libraries", "ok", f"{count} as declared")


def check_directory(name: str, path: Path) -> Check:
    """A directory that can be written, is ours alone, and has room."""
    probe = path / ".limbic-write-check"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        fix = f"make {path} writable, or set paths.{name} in the configuration"
        return Check(name, "failed", f"{path}: {error.strerror}", fix)
    free_mb = shutil.disk_usage(path).free // 2**20
    if free_mb < MIN_FREE_MB:
        seen = f"{path}: {free_mb} MB free"
        return Check(name, "warning", seen, f"free at least {MIN_FREE_MB} MB")
    if path.stat().st_mode & stat.S_IWOTH:
        return Check(name, "warning", f"{path}: anyone can write", f"chmod o-w {path}")
    return Check(name, "ok", f"{path}, {free_mb} MB free")


def check_store(path: Path) -> Check:
    """The database is whole, and no other user can read it. Opened read-only."""
    if not path.exists():
        return Check("store", "ok", "no conversation yet")
    try:
        with _read_only(path) as connection:
            found = str(connection.execute("PRAGMA quick_check").fetchone()[0])
            turns = connection.execute("SELECT COUNT(*) FROM turns").fetchone()[0]
    except sqlite3.Error as error:
        return Check("store", "failed", f"{path}: {error}", "restore a copy, or move it away")
    if found != "ok":
        return Check("store", "failed", f"{path}: {found}", "restore a copy, or move it away")
    if path.stat().st_mode & 0o077:
        return Check("store", "warning", f"{path}: readable by others", f"chmod 600 {path}")
    return Check("store", "ok", f"{turns} turns, whole")


def _read_only(path: Path) -> closing[sqlite3.Connection]:
    """A connection that changes and creates nothing; a ``#`` in the path is part of the path."""
    address = f"{path.absolute().as_uri()}?mode=ro"
    return closing(sqlite3.connect(address, uri=True, timeout=2))


def check_telemetry(settings: Settings) -> Check:
    """The log has the newest turn of the store: no stale tail while turns happen."""
    db, log = settings.data_dir / "limbic.db", settings.logs_dir / "turns.jsonl"
    if not db.exists():
        return Check("telemetry", "ok", "no turn yet")
    query = "SELECT turn_id FROM turns WHERE status != 'begun' ORDER BY finished_at DESC LIMIT 1"
    try:
        with _read_only(db) as connection:
            row = connection.execute(query).fetchone()
    except sqlite3.Error as error:
        return Check("telemetry", "skipped", f"the store cannot be read: {error}")
    if row is None:
        return Check("telemetry", "ok", "no turn yet")
    fix = f"look at the permissions and the space of {settings.logs_dir}"
    for path in (log, log.with_name("turns.jsonl.1")):
        if path.exists() and row[0].encode() in path.read_bytes()[-1_000_000:]:
            return Check("telemetry", "ok", f"{log.name} has the newest turn")
    return Check("telemetry", "warning", f"the newest turn is not in {log}", fix)


def check_port(host: str, port: int) -> Check:
    """The port of ``limbic serve`` is free, or a brain answers there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            seen = f"{host}:{port}: {error.strerror}"
            return Check("port", "warning", seen, "stop what listens there, or set web.port")
    return Check("port", "ok", f"{host}:{port} is free")


def check_model(name: str, reference: str) -> Check:
    """A model's file, or folder, is there and is what it should be; hashed in a process of its
    own."""
    try:
        done = subprocess.run(
            [*module_argv("sidecars.verify"), reference],
            env={**os.environ, **module_path(os.environ)},
            capture_output=True,
            text=True,
            timeout=MODEL_CHECK_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Check(f"model {name}", "failed", f"{reference}: no answer in {MODEL_CHECK_S} s")
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return Check(f"model {name}", "failed", lines[-1], "see the message; run: make install")
    return Check(f"model {name}", "ok", done.stdout.strip().splitlines()[-1])
