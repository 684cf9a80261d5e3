"""The texts of a prepared set, beside its arrays: for encoders with a tokenizer of their own."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.affect.head.arrays import Prepared


@dataclass(frozen=True)
class Message:
    """A text with what was said before it."""

    text: str
    context: tuple[str, ...] = ()


def texts_file(arrays: Path) -> Path:
    """Where ``prepare`` puts the texts of an array file."""
    return arrays.with_suffix(".texts.jsonl.gz")


def write_texts(arrays: Path, digest: str, records: Sequence[dict[str, Any]]) -> None:
    """A line for each row, after one with the digest of the array file."""
    path = texts_file(arrays)
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as file:
        file.write(json.dumps({"digest": digest}).encode() + b"\n")
        for record in records:
            line = [record["text"], *(record.get("context") or [])]
            file.write(json.dumps(line).encode() + b"\n")
    part.replace(path)


def read_texts(arrays: Path, data: Prepared) -> list[Message]:
    """The N messages of a prepared set.

    Raises:
        ValueError: there is no such file, or it belongs to another set.
    """
    path = texts_file(arrays)
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            head, *lines = (json.loads(line) for line in file)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); run prepare again") from error
    if head != {"digest": data.digest} or len(lines) != len(data.part):
        raise ValueError(f"{path}: belongs to another set; run prepare again")
    return [Message(line[0], tuple(line[1:])) for line in lines]
