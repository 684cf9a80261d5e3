"""Ordered corpora: documents of clean texts, read one at a time, each with its split."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import tomllib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainers.lvm.errors import CorpusError

VALID_SHARE = 0.05  # of the documents, where a corpus has no split of its own
SPLITS = ("train", "valid", "dev", "test")
_SPACE = re.compile(r"\s+")


class Corpus(BaseModel):
    """One entry of ``config/data/corpora.toml``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    field: str
    kind: Literal["dialogue", "articles"]
    licence: str
    min_words: int = Field(default=1, ge=1)
    max_words: int = Field(default=200, ge=1)
    drop_pattern: str | None = None
    unique: Literal["corpus", "document", "adjacent"] = "adjacent"
    near_duplicate: float = Field(default=0.95, gt=0, le=1)


@dataclass(frozen=True, slots=True)
class TextDocument:
    """The clean texts of one document, in order."""

    id: str
    split: str
    texts: tuple[str, ...]


def load_corpora(path: Path | None = None) -> dict[str, Corpus]:
    """All corpora by name. Raises CorpusError when the file is wrong."""
    path = path or _default_config()
    try:
        table = tomllib.loads(path.read_text())
        return {name: Corpus.model_validate(entry) for name, entry in table.items()}
    except (OSError, tomllib.TOMLDecodeError, ValidationError) as error:
        raise CorpusError(f"{path}: {str(error).splitlines()[0]}") from error


def corpus_file(corpus: Corpus, data: Path) -> Path:
    """The corpus's file below ``data``. Raises CorpusError when it is absent."""
    path = data / corpus.path
    if not path.is_file():
        raise CorpusError(f"{path} is missing: give the data folder with --data or LIMBIC_DATA")
    return path


def read_documents(corpus: Corpus, data: Path, limit: int | None = None) -> Iterator[TextDocument]:
    """Documents in the file's order, cleaned; one that is left with no text is not yielded.

    Args:
        limit: read only so many documents of the file.

    Raises:
        CorpusError: the file is missing, cut short, not JSON lines, or has no document boundaries.
    """
    path = corpus_file(corpus, data)
    clean = _Cleaner(corpus)
    names: set[str] = set()
    number = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if limit is not None and number > limit:
                    return
                name, split, texts = _record(line, corpus, f"{path}:{number}")
                if name in names:
                    raise CorpusError(f"{path}:{number}: document '{name}' appears twice")
                names.add(name)
                kept = clean(texts)
                if kept:
                    yield TextDocument(name, split, kept)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise CorpusError(f"{path} cannot be read after line {number}: {error}") from error


class _Cleaner:
    """Leaves out the blemishes of a corpus; remembers texts where repeats do not count."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self._drop = re.compile(corpus.drop_pattern) if corpus.drop_pattern else None
        self._seen: set[bytes] = set()

    def __call__(self, texts: list[str]) -> tuple[str, ...]:
        kept: list[str] = []
        last = b""
        if self._corpus.unique == "document":
            self._seen.clear()
        for raw in texts:
            # The pattern looks at the raw text: a double space is evidence of a lost template.
            if self._drop is not None and self._drop.search(raw):
                continue
            text = _SPACE.sub(" ", raw).strip()
            if not self._corpus.min_words <= len(text.split()) <= self._corpus.max_words:
                continue
            key = hashlib.blake2b(text.lower().encode(), digest_size=8).digest()
            if key == last or (self._corpus.unique != "adjacent" and key in self._seen):
                continue
            last = key
            self._seen.add(key)
            kept.append(text)
        if self._corpus.unique == "adjacent":
            self._seen.clear()
        return tuple(kept)


def _record(line: str, corpus: Corpus, where: str) -> tuple[str, str, list[str]]:
    try:
        record: Any = json.loads(line)
    except ValueError as error:
        raise CorpusError(f"{where}: not JSON ({error})") from error
    texts = record.get(corpus.field) if isinstance(record, dict) else None
    if not isinstance(texts, list) or "doc" not in record:
        raise CorpusError(
            f"{where}: no document boundaries; "
            f"each line must be one document with 'doc' and a list '{corpus.field}'"
        )
    if not all(isinstance(text, str) for text in texts):
        raise CorpusError(f"{where}: '{corpus.field}' holds something that is not text")
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise CorpusError(f"{where}: '{corpus.field}' holds half a character: {error}") from (
                error
            )
    name = str(record["doc"])
    split = record.get("split") or split_of(name)
    if split not in SPLITS:
        raise CorpusError(f"{where}: unknown split '{split}' (known: {', '.join(SPLITS)})")
    return name, split, texts


def split_of(document: str) -> str:
    """``train`` or ``valid`` from the document's name: the same on every machine and every run."""
    number = int.from_bytes(hashlib.sha256(document.encode()).digest()[:8], "big")
    return "valid" if number / 2**64 < VALID_SHARE else "train"


def is_dev(document: str, share: float) -> bool:
    """Whether a training document is held out to choose by: the same on every machine and run."""
    digest = hashlib.sha256(f"dev:{document}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < share


def _default_config() -> Path:
    spec = find_spec("brain")
    package = Path(spec.origin).parent if spec and spec.origin else Path("brain")
    installed = package / "default_config" / "data" / "corpora.toml"
    source = package.parent / "config" / "data" / "corpora.toml"
    return source if source.is_file() else installed
