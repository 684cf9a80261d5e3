"""Sample real turns from chat corpora, to be labelled: one turn a dialogue, chosen by hash.

A corpus is ``docs.jsonl.gz`` with ``doc``, ``split`` and ``turns`` a line. The same files and seed
give the same bytes: a dialogue's rank and its turn follow from a hash of seed and dialogue id, not
from the order of lines. Sampled turns keep the licence of their source.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import orjson

MIN_WORDS, MAX_WORDS = 3, 60
CONTEXT_TURNS = 2


@dataclass(frozen=True, slots=True)
class Corpus:
    """A chat corpus: folder name, licence of its text, share of the sample."""

    name: str
    licence: str
    share: float


CORPORA = (Corpus("chitchat_byu", "MIT", 0.6), Corpus("self_dialogue", "BSD-3-Clause", 0.4))


def sampled(root: Path, count: int, seed: int) -> Iterator[dict[str, object]]:
    """Yield ``count`` turns: ``id, text, context, source, licence, session_id``.

    Raises:
        click.UsageError: a corpus is not under ``root``, or is too small.
    """
    for corpus in CORPORA:
        path = root / "corpora" / corpus.name / "docs.jsonl.gz"
        if not path.is_file():
            raise click.UsageError(f"{path}: no such file; set --data or LIMBIC_DATA")
        wanted = round(count * corpus.share)
        ranked = sorted(_candidates(path, seed), key=lambda item: item[0])[:wanted]
        if len(ranked) < wanted:
            raise click.UsageError(f"{path}: {len(ranked)} usable dialogues, {wanted} asked for")
        for _, doc, position, turns in ranked:
            yield {
                "id": f"{corpus.name}:{doc}:{position}",
                "text": turns[position],
                "context": turns[max(0, position - CONTEXT_TURNS) : position],
                "origin": corpus.name,
                "licence": corpus.licence,
                "session_id": f"{corpus.name}:{doc}",
            }


def _candidates(path: Path, seed: int) -> Iterator[tuple[str, str, int, list[str]]]:
    with gzip.open(path, "rb") as lines:
        for line in lines:
            record = orjson.loads(line)
            if record["split"] != "train":
                continue
            turns = [" ".join(turn.split()) for turn in record["turns"]]
            usable = [i for i, turn in enumerate(turns) if _usable(turn)]
            if not usable:
                continue
            digest = hashlib.sha256(f"{seed}:{record['doc']}".encode()).hexdigest()
            yield digest, record["doc"], usable[int(digest[:8], 16) % len(usable)], turns


def _usable(turn: str) -> bool:
    words = turn.split()
    return MIN_WORDS <= len(words) <= MAX_WORDS and not re.search(r"https?://|@\w", turn)


@click.command(epilog="Example: limbic data sample --count 650 --out turns.jsonl")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    envvar="LIMBIC_DATA",
    required=True,
    help="Folder with corpora/ (default LIMBIC_DATA).",
)
@click.option("--count", type=click.IntRange(1, 20_000), default=650, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def sample(data: Path, count: int, seed: int, out: Path) -> None:
    """Sample real chat turns to label, one a dialogue."""
    rows = list(sampled(data, count, seed))
    partial = out.with_name(out.name + ".partial")
    partial.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    partial.replace(out)
    click.echo(f"{len(rows)} turns -> {out}")


if __name__ == "__main__":
    sample()
