"""Small sets for the data tests: rows, public files in the publishers' formats, their checksums."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trainers.affect.config import Source, SourceFile, Sources, load_mapping, load_sources
from trainers.affect.rows import ARCHETYPES, AffectRow

#: Words for random lines.
_WORDS = re.findall(
    "[a-z]+",
    """kettle garden letter bridge winter pocket ladder orange window summer engine pillow carpet
    market candle button saddle kitchen river lantern basket mirror feather hammer velvet copper
    thunder meadow harbour pencil blanket cabbage violin teapot magnet hollow gravel pepper""",
)


def row(text: str, valence: Any = 0.1, intimacy: Any = 0.2, tension: Any = -0.1, **more: Any):
    """A labelled row with everything a labelled row needs."""
    data = {
        "text": text,
        "valence": valence,
        "intimacy": intimacy,
        "tension": tension,
        "confidence": 0.8,
        "quality": "clean",
        "source": "llm_label",
        "licence": "Apache-2.0",
        "guideline": "1.0",
    }
    return AffectRow.model_validate(data | more)


def sentence(random_source: random.Random, words: int = 9) -> str:
    """A line of random words: never a near copy of another one."""
    return " ".join(random_source.choices(_WORDS, k=words))


def labelled(count: int, seed: int = 1, *, coupled: float = 0.0, **more: Any) -> list[AffectRow]:
    """Rows over the whole cube; ``coupled`` turns tension into minus valence by that share."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        v, i, t = (draw.uniform(-1, 1) for _ in range(3))
        t = (1 - coupled) * t - coupled * v
        own = {
            "tags": (ARCHETYPES[number % len(ARCHETYPES)],),
            "frame": f"{seed}-frame-{number // 3}",
        }
        rows.append(row(sentence(draw), round(v, 3), round(i, 3), round(t, 3), **own | more))
    return rows


def write_public(root: Path, count: int = 60, seed: int = 3) -> Sources:
    """Tiny files in the formats of all five public sets, and a registry that knows their sums."""
    draw = random.Random(seed)
    names = [name for name in load_mapping().labels["goemotions"] if name != "neutral"]
    names = [*sorted(names), "neutral"]
    _text(root / "affect/goemotions/emotions.txt", names)
    for split in ("train", "dev"):
        lines = (
            f"{sentence(draw)}\t{draw.randrange(len(names))}\tc{split}{n}" for n in range(count)
        )
        _text(root / f"affect/goemotions/{split}.tsv", lines)
    _text(
        root / "affect/xed_en/en-annotated.tsv",
        (f"{sentence(draw)}\t{draw.randrange(1, 9)}" for _ in range(count)),
        end="\r\n",
    )
    _text(root / "affect/xed_en/neu_en.txt", (f"9\t{sentence(draw)}" for _ in range(count)))
    emobank, ratings = ["id,split,V,A,D,text"], ["id,V,A,D"]
    for number in range(count):
        name = f"doc{number // 6}_{number}_{number + 9}"
        v, a, d = (round(draw.uniform(1.5, 4.5), 2) for _ in range(3))
        split = "dev" if number % 10 == 0 else "train"
        emobank.append(f'{name},{split},{v},{a},{d},"{sentence(draw)}, ""yes"""')
        ratings += [f"{name},{min(5, max(1, round(v) + step))},3,3" for step in (-1, 0, 1)]
    _text(root / "affect/emobank/emobank_train_dev.csv", emobank, end="\r\n")
    for who in ("reader", "writer"):
        _text(root / f"affect/emobank/individual_{who}_ratings.csv", ratings, end="\r\n")
    for split in ("train", "val"):
        lines = (f"{sentence(draw)}?\t{draw.uniform(-0.9, 0.6)}" for _ in range(count))
        _text(root / f"affect/question_intimacy/final_{split}.txt", lines)
    for split in ("train", "dev"):
        lines = ["id,text,anger,fear,joy,sadness,surprise"]
        lines += [
            f"{split}{n},{sentence(draw)},{','.join(str(draw.randrange(4)) for _ in range(5))}"
            for n in range(count)
        ]
        _text(root / f"affect/semeval2025_task11_en/track_b_{split}.csv", lines)
    return registry(root)


def registry(root: Path, url: str | None = None) -> Sources:
    """The shipped registry with the sizes and sums of the files that lie below ``root``."""
    shipped = load_sources()
    sources = {
        name: Source.model_validate(
            source.model_dump()
            | {"files": [_measured(root, file, url).model_dump() for file in source.files]}
        )
        for name, source in shipped.sources.items()
    }
    return Sources(licences=shipped.licences, sources=sources)


def _measured(root: Path, file: SourceFile, url: str | None) -> SourceFile:
    data = (root / file.path).read_bytes()
    return SourceFile(
        path=file.path,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        url=None if url is None else f"{url}/{file.path}",
    )


def _text(path: Path, lines: Iterable[str], end: str = "\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + end for line in lines).encode())
