"""Model references → verified files. Nothing is loaded before its size and sha256 are checked.

A reference is one of::

    pkg:package/file.gguf        a file inside an installed Python package, which is not imported
    hf:org/repo/file.gguf        downloaded once, with progress and resume; hf:org/repo@revision/…
    file:/path/model.gguf        a file; ``~`` is expanded
    path/model.gguf              the same

each with an optional ``#sha256=<64 hex digits>``. What a file must be is known from up to three
records, and every one that exists must agree: that suffix, the pins of ``config/models.toml``, and
the lock file ``<file>.lock.json`` beside it, which a download writes (``record`` writes one for any
file). A file with no record is hashed, so that its hash can be reported, and loaded.

Hashing 100 MB takes a third of a second, so results are remembered by (path, size, modification
time, inode) in the user's cache directory; any change of these hashes the file again.
"""

from __future__ import annotations

import importlib.util
import os
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import orjson

import brain.errors
from brain.errors import ArtifactCorrupt, ArtifactError, ArtifactMissing, ArtifactRefused
from sidecars.formats import FORMATS, Format, sniff
from sidecars.hashing import Progress, cache_dir, hash_cached, hash_file, write_atomically

LOCK_SUFFIX = ".lock.json"

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PACKAGE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HF_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed reference. ``target`` is what follows the scheme; ``sha256`` may be empty."""

    kind: Literal["pkg", "hf", "file"]
    target: str
    sha256: str = ""

    def __str__(self) -> str:
        return self.target if self.kind == "file" else f"{self.kind}:{self.target}"


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file that may be loaded: it is what its records say. ``size`` in bytes."""

    reference: str
    path: Path
    size: int
    sha256: str
    format: Format

    @property
    def name(self) -> str:
        """Name shown for the model: the file's name without its last suffix."""
        return self.path.stem


@dataclass(frozen=True, slots=True)
class Expectation:
    """What one record says of a file. ``size`` in bytes, ``None`` when it does not say."""

    source: str
    sha256: str
    size: int | None = None


def resolve(
    reference: str,
    *,
    formats: tuple[Format, ...] = FORMATS,
    download: bool = True,
    progress: Progress = lambda _: None,
) -> Artifact:
    """Find, fetch if it must be fetched, and verify the file a reference names. Blocks.

    Args:
        reference: see the module's text.
        formats: what the caller can load.
        download: whether an ``hf:`` file that is not here may be fetched.
        progress: gets a line whenever real progress was made.

    Raises:
        ArtifactError: or one of its kinds; the message says what to do.
    """
    parsed = parse_reference(reference)
    path = locate(parsed)
    if parsed.kind == "hf" and download and not path.exists():
        from sidecars.fetch import fetch  # only a download needs the network stack

        fetch(parsed, path, progress=progress)
    return verify(parsed, path, formats=formats, progress=progress)


def parse_reference(text: str) -> Reference:
    """Parse a reference.

    Raises:
        ArtifactMissing: it names nothing that could exist; the message shows the right form.
    """
    body, mark, sha256 = text.partition("#sha256=")
    sha256 = sha256.lower()
    if mark and not _SHA256.fullmatch(sha256):
        raise ArtifactMissing(f"model {text!r}: #sha256= must be followed by 64 hex digits")
    if not body.strip() or "\0" in body:
        raise ArtifactMissing("the model reference is empty; give a path or pkg:package/file.gguf")
    kind, colon, target = body.partition(":")
    if colon and kind == "pkg":
        package, _, file = target.partition("/")
        if not _PACKAGE.fullmatch(package) or not _is_inner_path(file):
            raise ArtifactMissing(f"model {text!r}: write it as pkg:package/file.gguf")
        return Reference("pkg", target, sha256)
    if colon and kind == "hf":
        parts = target.split("/")
        repo, at, revision = parts[1].partition("@") if len(parts) > 2 else ("", "", "")
        names = [parts[0], repo, *parts[2:], *([revision] if at else [])]
        if len(parts) < 3 or not all(_HF_PART.fullmatch(name) for name in names):
            raise ArtifactMissing(f"model {text!r}: write it as hf:org/repo/file.gguf")
        return Reference("hf", target, sha256)
    return Reference("file", target if colon and kind == "file" else body, sha256)


def locate(reference: Reference) -> Path:
    """Where the file of a reference is, or would be once downloaded.

    Raises:
        ArtifactMissing: the package is not installed, or the path cannot be one.
    """
    try:
        if reference.kind == "file":
            return Path(reference.target).expanduser().resolve()
        if reference.kind == "hf":
            return models_dir().joinpath(*reference.target.replace("@", "--").split("/"))
    except (OSError, RuntimeError, ValueError) as error:  # no such user, or links in a circle
        raise ArtifactMissing(f"model {reference}: {error}; give another path") from error
    package, _, file = reference.target.partition("/")
    # A top-level name: find_spec reads the import path but runs none of the package's code.
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or []) if spec else []
    if not places:
        raise ArtifactMissing(
            f"model {reference}: package {package} is not installed; "
            f"{_remedy(reference) or 'install it first'}"
        )
    found = [Path(place) / file for place in places]
    return next((path for path in found if path.is_file()), found[0])


def verify(
    reference: Reference,
    path: Path,
    *,
    formats: tuple[Format, ...] = FORMATS,
    progress: Progress = lambda _: None,
) -> Artifact:
    """Check that the file at ``path`` is whole, unaltered and of a format that may be loaded.

    Raises:
        ArtifactMissing, ArtifactCorrupt, ArtifactRefused.
    """
    fix = _remedy(reference) or "restore the file or give another model"
    try:
        stat = path.stat()
        if not path.is_file():
            raise ArtifactMissing(f"model {reference}: {path} is not a file")
        expected = list(expectations(reference, path))
        for record in expected:
            if record.size is not None and record.size != stat.st_size:
                raise ArtifactCorrupt(
                    f"model {path}: has {stat.st_size} bytes, {record.source} says {record.size}; "
                    f"it is cut off or altered: {fix}"
                )
        if stat.st_size == 0:
            raise ArtifactCorrupt(f"model {path}: is empty; {fix}")
        sha256 = hash_cached(path, stat, progress) if expected else ""
        for record in expected:
            if record.sha256 != sha256:
                raise ArtifactCorrupt(
                    f"model {path}: sha256 is {sha256[:12]}…, {record.source} says "
                    f"{record.sha256[:12]}…; it was altered: {fix}"
                )
        found = sniff(path)
        sha256 = sha256 or hash_cached(path, stat, progress)
    except FileNotFoundError:
        raise ArtifactMissing(f"model {reference}: {path} does not exist; {fix}") from None
    except OSError as error:
        raise ArtifactMissing(f"model {path}: cannot be read: {error.strerror or error}") from error
    if found not in formats:
        raise ArtifactRefused(f"model {path}: is {found}; {' or '.join(formats)} is needed here")
    return Artifact(str(reference), path, stat.st_size, sha256, found)


def expectations(reference: Reference, path: Path) -> Iterator[Expectation]:
    """Every record of what the file must be.

    Raises:
        ArtifactError: a record exists but cannot be read.
    """
    if reference.sha256:
        yield Expectation("the reference", reference.sha256)
    if pin := pins().get(str(reference)):
        yield Expectation("config/models.toml", str(pin["sha256"]), int(pin["size"]))
    lock = path.with_name(path.name + LOCK_SUFFIX)
    if lock.exists():
        try:
            data = orjson.loads(lock.read_bytes())
            yield Expectation(lock.name, str(data["sha256"]), int(data["size"]))
        except (OSError, orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"{lock}: not a lock file; delete it, or delete it and the model and fetch again"
            ) from error


def record(path: Path, *, reference: str = "", **more: str) -> Path:
    """Hash a file and write its lock file beside it; returns the lock's path. Blocks.

    Raises:
        OSError: the file cannot be read or the lock cannot be written.
    """
    stat = path.stat()
    lock = path.with_name(path.name + LOCK_SUFFIX)
    body = {"reference": reference, "size": stat.st_size, "sha256": hash_file(path), **more}
    write_atomically(lock, orjson.dumps(body, option=orjson.OPT_INDENT_2) + b"\n")
    return lock


@cache
def pins() -> dict[str, dict[str, Any]]:
    """Reference → pinned ``size``, ``sha256``, ``license``, ``install``; from models.toml.

    Raises:
        ArtifactError: the file is missing or wrong; without it nothing can be vouched for.
    """
    brain_dir = Path(brain.errors.__file__).parent
    packaged = brain_dir / "default_config" / "models.toml"
    path = packaged if packaged.is_file() else brain_dir.parent / "config" / "models.toml"
    try:
        models = tomllib.loads(path.read_text(encoding="utf-8"))["model"]
        found = {str(model["ref"]): dict(model) for model in models}
        if not all(_SHA256.fullmatch(m["sha256"]) and m["size"] > 0 for m in found.values()):
            raise ValueError("sha256 must be 64 hex digits and size positive")
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: cannot be used: {error}; reinstall Limbic") from error
    return found


def models_dir() -> Path:
    """Where downloads are kept: ``$LIMBIC_MODELS``, or ``limbic/models`` in the user's cache."""
    own = os.environ.get("LIMBIC_MODELS")
    return Path(own).expanduser() if own else cache_dir() / "models"


def _is_inner_path(text: str) -> bool:
    parts = text.split("/")
    return bool(text) and "\\" not in text and all(part not in ("", ".", "..") for part in parts)


def _remedy(reference: Reference) -> str:
    if pin := pins().get(str(reference)):
        return f"run: {pin['install']}"
    if reference.kind == "pkg":
        return "reinstall the package"
    if reference.kind == "hf":
        return "delete it and start again to download it"
    return ""
