"""Evaluated prompts on disk, so that a restarted model server need not evaluate them again.

One file a prompt: a line of JSON (what the state belongs to, its sizes, its checksum), the tokens
as 32-bit integers, the model's own copy of its keys and values. A file is only used by the same
model and library version; anything else is removed, since it can never be used again. Files hold
what was said, in tokens, so they are readable by their owner alone.

A library may crash on a state it does not like. A file is therefore renamed while it is tried: what
a crash leaves under that name is not tried a second time.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import zlib
from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import orjson

log = logging.getLogger(__name__)
SUFFIX, TRYING, FRESH = ".state", ".trying", ".new"
FORMAT = 1
_MAX_HEAD_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Stored:
    """A file's head. ``tokens`` were evaluated; the first ``prompt_length`` are a prompt."""

    path: Path
    tokens: array[int]
    prompt_length: int
    size: int
    checksum: int


@dataclass(frozen=True, slots=True, eq=False)
class Saved:
    """A copy of an evaluated prompt: in memory, or what ``StateFiles`` has of it."""

    tokens: array[int]
    prompt_length: int
    state: bytearray | Stored

    @property
    def memory_bytes(self) -> int:
        """None while it is on disk."""
        return 0 if isinstance(self.state, Stored) else len(self.state)


class StateFiles:
    """A folder of saved states of one model.

    Args:
        owner: names the model and library; states of another owner are removed.
        budget_bytes: most the states may take together; the least recently saved go first.
    """

    def __init__(self, folder: Path, *, owner: str, budget_bytes: int) -> None:
        self._folder = folder
        self._owner = owner
        self.budget_bytes = budget_bytes

    def read_all(self) -> list[Stored]:
        """The heads of all usable files, least recently saved first; unusable files are removed."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            files = sorted(self._folder.iterdir(), key=lambda file: file.stat().st_mtime_ns)
        except OSError as error:
            log.warning("saved prompts cannot be read: %s", error)
            return []
        found = []
        for file in files:
            if file.suffix not in (SUFFIX, TRYING, FRESH):
                continue  # somebody else's
            if file.suffix == SUFFIX and (stored := self._head(file)) is not None:
                found.append(stored)
            else:
                log.info("a saved prompt that cannot be used is removed: %s", file.name)
                _remove(file)
        return found

    def use(self, stored: Stored, restore: Callable[[bytearray], bool]) -> bool:
        """Read the state and give it to ``restore``; false if it is damaged, gone or refused.

        What could not be used is removed. A process that dies in ``restore`` leaves the file under
        another name, and it is not tried again.
        """
        marked = stored.path.with_suffix(TRYING)
        try:
            stored.path.rename(marked)
            state = _state(marked, stored)
        except OSError as error:
            log.warning("a saved prompt cannot be read: %s", error)
            state = None
        if state is None or not restore(state):
            _remove(marked)
            return False
        with suppress(OSError):
            marked.rename(stored.path)
        return True

    def keep(self, states: Sequence[Saved]) -> int:
        """Make the folder hold these and nothing else, the last ones first while there is room.

        Args:
            states: the most recently used last.

        Returns:
            How many are on disk now. Failures are logged: a restart then evaluates again.
        """
        wanted: list[Path] = []
        room = self.budget_bytes
        for one in reversed(states):
            state = one.state
            size = state.size if isinstance(state, Stored) else len(state)
            if size > room:
                continue
            path = self._folder / (_name(one.tokens) + SUFFIX)
            try:
                if not isinstance(state, Stored) and not path.exists():
                    self._write(path, one.tokens, one.prompt_length, state)
            except OSError as error:
                log.warning("an evaluated prompt could not be saved: %s", error)
                break
            room -= size
            wanted.append(path)
        with suppress(OSError):
            for file in self._folder.iterdir():
                if file.suffix in (SUFFIX, FRESH) and file not in wanted:
                    _remove(file)
        for path in reversed(wanted):
            with suppress(OSError):
                os.utime(path)  # the order in which they were used is the order of their times
        return len(wanted)

    def _write(self, path: Path, tokens: array[int], prompt_length: int, state: bytearray) -> None:
        body = tokens.tobytes()
        head = {
            "format": FORMAT,
            "owner": self._owner,
            "tokens": len(tokens),
            "prompt_length": prompt_length,
            "size": len(state),
            "checksum": zlib.crc32(state, zlib.crc32(body)),
        }
        # Not synced: a file that a power cut left half-written fails its checksum, and is no loss.
        handle, name = tempfile.mkstemp(dir=self._folder, suffix=FRESH)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(orjson.dumps(head) + b"\n")
                file.write(body)
                file.write(state)
            Path(name).replace(path)
        except BaseException:
            _remove(Path(name))
            raise

    def _head(self, path: Path) -> Stored | None:
        try:
            with path.open("rb") as file:
                head = orjson.loads(file.readline(_MAX_HEAD_BYTES))
                count = head["tokens"]
                if head["format"] != FORMAT or head["owner"] != self._owner:
                    return None
                tokens = array("i")
                tokens.frombytes(file.read(count * tokens.itemsize))
                left = os.fstat(file.fileno()).st_size - file.tell()
                whole = len(tokens) == count and left == head["size"]
                if not (whole and 0 < head["prompt_length"] <= count):
                    return None
                return Stored(path, tokens, head["prompt_length"], head["size"], head["checksum"])
        except (OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError):
            return None


def _state(path: Path, stored: Stored) -> bytearray | None:
    """The state behind the head, checked."""
    with path.open("rb") as file:
        file.readline(_MAX_HEAD_BYTES)
        body = file.read(len(stored.tokens) * stored.tokens.itemsize)
        state = bytearray(stored.size)
        read = file.readinto(state)
    if read != stored.size or zlib.crc32(state, zlib.crc32(body)) != stored.checksum:
        log.warning("a saved prompt is damaged and is evaluated again: %s", path.name)
        return None
    return state


def _name(tokens: array[int]) -> str:
    return hashlib.blake2b(tokens.tobytes(), digest_size=12).hexdigest()


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
