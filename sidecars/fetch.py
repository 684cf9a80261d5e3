"""Download one model file from a model hub: progress, resume, and the hub's own hash checked.

The bytes go to ``<file>.part`` and are renamed once complete and hashed, so an interrupted download
is continued by the next attempt, and a file under its final name is always whole. A lock file is
written beside it. ``$HF_ENDPOINT`` names another hub that speaks the same protocol, ``$HF_TOKEN``
authorises private files.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import orjson
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from brain.errors import ArtifactCorrupt, ArtifactError, ArtifactMissing
from sidecars.artifacts import LOCK_SUFFIX, Reference
from sidecars.hashing import Progress, hash_file, write_atomically

DEFAULT_ENDPOINT = "https://huggingface.co"
ATTEMPTS = 6
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=20, sock_read=60)
_BLOCK = 1024 * 1024
_HASH = "X-Linked-Etag"
_SHA256 = re.compile(r"[0-9a-f]{64}")


def fetch(reference: Reference, path: Path, *, progress: Progress = lambda _: None) -> None:
    """Download the file of an ``hf:`` reference to ``path`` and write its lock file. Blocks.

    Safe against another process doing the same: the second waits, then finds the file there.

    Raises:
        ArtifactMissing: the hub has no such file, or cannot be reached.
        ArtifactCorrupt: what arrived is not what the hub announced.
        ArtifactError: no room on the disk, or the directory is not writable.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _only_one(path, progress):
            if not path.exists():
                asyncio.run(_download(reference, path, progress))
    except OSError as error:
        raise ArtifactError(
            f"model {reference}: cannot be stored in {path.parent}: {error.strerror or error}; "
            "set LIMBIC_MODELS to a directory with room"
        ) from error


def url_of(reference: Reference) -> str:
    """Address of the file on the hub."""
    org, repo, *file = reference.target.split("/")
    name, _, revision = repo.partition("@")
    endpoint = os.environ.get("HF_ENDPOINT", DEFAULT_ENDPOINT).rstrip("/")
    return f"{endpoint}/{org}/{name}/resolve/{revision or 'main'}/{'/'.join(file)}"


class _Interrupted(Exception):
    """The transfer broke; what arrived is kept and the next attempt continues it."""


async def _download(reference: Reference, path: Path, progress: Progress) -> None:
    part = path.with_name(path.name + ".part")
    token = os.environ.get("HF_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        async with aiohttp.ClientSession(
            timeout=_TIMEOUT, headers=headers, trust_env=True, auto_decompress=False
        ) as http:
            async for attempt in AsyncRetrying(
                stop=stop_after_attempt(ATTEMPTS),
                wait=wait_random_exponential(multiplier=0.5, max=20),
                retry=retry_if_exception_type(_Interrupted),
                reraise=True,
            ):
                with attempt:
                    announced = await _transfer(http, reference, part, progress)
    except _Interrupted as error:
        raise ArtifactMissing(
            f"model {reference}: the download failed {ATTEMPTS} times ({error}); check the network "
            "and start again, it continues where it stopped"
        ) from error
    progress(f"checking {path.name}")
    sha256 = await asyncio.to_thread(hash_file, part)
    if (announced and announced != sha256) or (reference.sha256 and reference.sha256 != sha256):
        part.unlink()
        raise ArtifactCorrupt(
            f"model {reference}: what was downloaded has sha256 {sha256[:12]}…, expected "
            f"{(reference.sha256 or announced)[:12]}…; it was discarded, start again"
        )
    lock = {"reference": str(reference), "size": part.stat().st_size, "sha256": sha256}
    write_atomically(
        path.with_name(path.name + LOCK_SUFFIX), orjson.dumps(lock, option=orjson.OPT_INDENT_2)
    )
    part.replace(path)


async def _transfer(
    http: aiohttp.ClientSession, reference: Reference, part: Path, progress: Progress
) -> str:
    """One attempt; returns the sha256 the hub announced, or ""."""
    etag_file = part.with_name(part.name + ".etag")
    etag, have = _kept(part, etag_file)
    headers = {"Range": f"bytes={have}-", "If-Range": etag} if have else {}
    try:
        async with http.get(url_of(reference), headers=headers) as answer:
            # The hub redirects large files to a store and announces their hash on the way.
            hops = [*answer.history, answer]
            linked = next((h.headers[_HASH] for h in hops if _HASH in h.headers), "")
            _check_status(answer, reference)
            if answer.status != 206:
                have = 0
            if answer.status == 416:
                etag_file.write_text("")
                raise _Interrupted("the partial file no longer fits")
            total = have + (answer.content_length or 0)
            _check_room(part, (answer.content_length or 0), reference)
            etag_file.write_text(answer.headers.get("ETag", ""))
            with part.open("ab" if have else "wb") as file:
                shown = -1
                async for block in answer.content.iter_chunked(_BLOCK):
                    file.write(block)
                    have += len(block)
                    if total and (now := have * 100 // total) != shown:
                        shown = now
                        progress(f"downloading {reference}: {now} % of {total // _BLOCK} MB")
                file.flush()
                os.fsync(file.fileno())
            if total and have != total:
                raise _Interrupted(f"{have} of {total} bytes arrived")
    except (aiohttp.ClientError, TimeoutError) as error:
        raise _Interrupted(str(error) or type(error).__name__) from error
    etag_file.unlink(missing_ok=True)
    digest = linked.strip('W/"').lower()
    return digest if _SHA256.fullmatch(digest) else ""


def _kept(part: Path, etag_file: Path) -> tuple[str, int]:
    """The entity tag of a partial file and its bytes; ``"", 0`` when it cannot be continued."""
    if not part.exists() or not etag_file.exists():
        return "", 0
    etag = etag_file.read_text()
    return (etag, part.stat().st_size) if etag else ("", 0)


def _check_status(answer: aiohttp.ClientResponse, reference: Reference) -> None:
    if answer.status in (200, 206, 416):
        return
    if answer.status in (401, 403):
        raise ArtifactMissing(f"model {reference}: the hub refuses access; set HF_TOKEN")
    if answer.status == 404:
        raise ArtifactMissing(f"model {reference}: the hub has no such file; check the name")
    raise _Interrupted(f"the hub answered {answer.status}")


def _check_room(part: Path, needed: int, reference: Reference) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise ArtifactError(
            f"model {reference}: needs {needed // _BLOCK} MB, {part.parent} has "
            f"{free // _BLOCK} MB free; set LIMBIC_MODELS to a directory with room"
        )


@contextmanager
def _only_one(path: Path, progress: Progress) -> Iterator[None]:
    with path.with_name(path.name + ".part.guard").open("w") as guard:
        try:
            fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"waiting for another process to download {path.name}")
            fcntl.flock(guard, fcntl.LOCK_EX)
        yield
