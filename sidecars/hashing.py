"""File hashes, remembered; and the atomic write that keeps the memory whole."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import orjson

Progress = Callable[[str], None]

_HASH_STEP = 4 * 1024 * 1024
_PROGRESS_STEP = 256 * 1024 * 1024
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_REMEMBERED = 100


def hash_file(path: Path, progress: Progress = lambda _: None) -> str:
    """sha256 of a file in lower-case hex; one progress line each 256 MB."""
    digest = hashlib.sha256()
    done = 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(_HASH_STEP):
            digest.update(block)
            done += len(block)
            if done % _PROGRESS_STEP < _HASH_STEP and done > _PROGRESS_STEP // 2:
                progress(f"checking {path.name}: {done // (1024 * 1024)} MB")
    return digest.hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` whole or not at all, through a synced temporary file."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def hash_cached(path: Path, stat: os.stat_result, progress: Progress) -> str:
    """sha256 of a file whose ``stat`` was just read, from memory if it has not changed since.

    The memory is a convenience: unreadable or unwritable, the file is hashed.
    """
    store = cache_dir() / "verified.json"
    key = f"{path}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ino}"
    known: dict[str, str] = {}
    try:
        loaded = orjson.loads(store.read_bytes())
        known = {k: v for k, v in loaded.items() if isinstance(v, str) and _SHA256.fullmatch(v)}
    except (OSError, orjson.JSONDecodeError, AttributeError):
        pass
    if key in known:
        return known[key]
    sha256 = hash_file(path, progress)
    kept = {k: v for k, v in known.items() if not k.startswith(f"{path}|")}
    try:
        store.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(
            store, orjson.dumps({**dict(list(kept.items())[1 - _MAX_REMEMBERED :]), key: sha256})
        )
    except OSError:
        pass
    return sha256


def cache_dir() -> Path:
    """Limbic's directory in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "limbic"
