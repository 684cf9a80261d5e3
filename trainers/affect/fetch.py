"""Bringing the public sets to a data folder: downloaded, or taken from a copy already there.

Every file is checked against the SHA-256 in ``config/data/sources.toml`` before it gets its final
name. A download goes to ``NAME.part``; an interrupted one goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import http.client
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_exponential

from trainers.affect.config import SourceFile, Sources
from trainers.affect.errors import SourceMissing
from trainers.affect.gold import digest

Mode = Literal["copy", "link"]
#: Called with (file name, bytes so far, bytes expected).
Progress = Callable[[str, int, int], None]
_CHUNK_BYTES = 1 << 16
_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Fetched:
    """What became of one file: ``present``, ``copied``, ``linked`` or ``downloaded``."""

    path: str
    how: str


def wanted(sources: Sources, names: Iterable[str]) -> list[SourceFile]:
    """The files of the named sources (all when none is named)."""
    chosen = list(names) or list(sources.sources)
    unknown = [name for name in chosen if name not in sources.sources]
    if unknown:
        raise SourceMissing(
            f"no source {unknown[0]!r}; there are {', '.join(sorted(sources.sources))}"
        )
    return [file for name in chosen for file in sources.sources[name].files]


def verify(root: Path, file: SourceFile) -> None:
    """Raise :class:`SourceMissing` unless ``root / file.path`` is the published file."""
    path = root / file.path
    try:
        size = path.stat().st_size
    except OSError as error:
        raise SourceMissing(
            f"{path}: {error.strerror}; run `limbic data fetch`, or give the folder with --data"
        ) from error
    if size != file.bytes:
        raise SourceMissing(f"{path}: {size} bytes, expected {file.bytes}; fetch it again")
    found = digest(path)
    if found != file.sha256:
        raise SourceMissing(
            f"{path}: sha256 {found[:12]}… is not {file.sha256[:12]}…; fetch it again"
        )


def fetch(
    sources: Sources,
    names: Iterable[str],
    to: Path,
    *,
    origin: Path | None = None,
    mode: Mode = "copy",
    progress: Progress = lambda name, done, total: None,
) -> list[Fetched]:
    """Make every file of the named sources present and verified below ``to``.

    With ``origin`` files come from that folder (same relative paths), copied or linked; otherwise
    they are downloaded. Files already there and right are left alone.

    Raises:
        SourceMissing: a file that cannot be had. One that is published only inside an archive ends
            it after everything else is there.
    """
    results, archived = [], []
    for file in wanted(sources, names):
        target = to / file.path
        if target.exists():
            try:
                verify(to, file)
                results.append(Fetched(file.path, "present"))
                continue
            except SourceMissing:
                if origin is None and file.url is None:
                    raise
        target.parent.mkdir(parents=True, exist_ok=True)
        if origin is None and file.url is None:
            archived.append(file.path)
        elif origin is not None:
            verify(origin, file)
            results.append(_take(origin / file.path, target, file, mode))
            progress(file.path, file.bytes, file.bytes)
        else:
            _download(file, target, progress)
            results.append(Fetched(file.path, "downloaded"))
    if archived:
        raise SourceMissing(
            f"{', '.join(archived)}: published only inside an archive; unpack that by hand and "
            "give its folder with --from (everything else asked for is there)"
        )
    return results


def _take(found: Path, target: Path, file: SourceFile, mode: Mode) -> Fetched:
    part = target.with_name(target.name + ".part")
    part.unlink(missing_ok=True)
    if mode == "link":
        part.symlink_to(found.resolve())
    else:
        shutil.copyfile(found, part)
    part.replace(target)
    return Fetched(file.path, "linked" if mode == "link" else "copied")


def _download(file: SourceFile, target: Path, progress: Progress) -> None:
    assert file.url is not None
    part = target.with_name(target.name + ".part")
    try:
        _stream(file, part, progress)
    except (OSError, http.client.HTTPException) as error:
        raise SourceMissing(
            f"{file.url}: {error}; what came is kept, run the same command to go on, or give a "
            "copy with --from"
        ) from error
    try:
        data = derived(part.read_bytes(), file.derive)
    except ValueError as error:  # not the table: a login page, say
        part.unlink()
        raise SourceMissing(
            f"{file.url}: not the published file ({error}); try again, or give a good copy with "
            "--from"
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != file.sha256:
        part.unlink()
        raise SourceMissing(
            f"{file.url}: sha256 {found[:12]}… is not {file.sha256[:12]}…; the publisher changed "
            "the file or the download broke: try again, or give a good copy with --from"
        )
    part.write_bytes(data)
    part.replace(target)


@retry(
    retry=retry_if_exception_type((TimeoutError, ConnectionError, http.client.IncompleteRead)),
    stop=stop_after_attempt(4),
    wait=wait_exponential(multiplier=0.5, max=8),
    reraise=True,
)
def _stream(file: SourceFile, part: Path, progress: Progress) -> None:
    """Append what is missing to ``part``; a server without ranges makes it start over."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    request = urllib.request.Request(str(file.url), headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is missing
            return
        raise
    with response, part.open("ab" if response.status == 206 else "wb") as handle:
        done = have if response.status == 206 else 0
        expected = done + int(response.headers.get("Content-Length") or 0)
        while chunk := response.read(_CHUNK_BYTES):
            handle.write(chunk)
            done += len(chunk)
            progress(file.path, done, max(expected, done))
    if done < expected:
        raise ConnectionError(f"connection closed after {done} of {expected} bytes")


def derived(data: bytes, how: str | None) -> bytes:
    """The bytes the pipeline reads: ``drop_test_split`` leaves out the publisher's test rows.

    Lines end in CR LF whatever the download used, so that the checksum does not depend on it.

    Raises:
        ValueError: there is no such column.
    """
    if how is None:
        return data
    lines = data.replace(b"\r\n", b"\n").removesuffix(b"\n").split(b"\n")
    if b"split" not in (names := lines[0].split(b",")):
        raise ValueError("its first line names no column 'split'")
    column = names.index(b"split")
    kept = [lines[0]]
    # The split column comes before any quoted one, so a plain split of the line finds it.
    for number, line in enumerate(lines[1:], start=2):
        fields = line.split(b",", column + 1)
        if len(fields) <= column:
            raise ValueError(f"line {number} has no column 'split'")
        if fields[column] != b"test":
            kept.append(line)
    return b"\r\n".join(kept) + b"\r\n"
