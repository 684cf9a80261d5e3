"""Labelled rows → what the model reads and what it should write.

Only rows of the labelled pool have all three axes, so they alone are used. Nobody wrote reasons for
them: the reasoning that is taught restates the scores in words (how pleasant, how close, how tense)
and says nothing that was not labelled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl

from sidecars import affect_prompt
from trainers.affect.errors import DataError
from trainers.affect.gold import GoldGuard
from trainers.affect.head.arrays import AXES, TAGS
from trainers.affect.head.prepare import TIES
from trainers.affect.rows import GUIDED_SOURCES
from trainers.affect.shards import load_part

POOL = Path(__file__).parents[1] / "pool"
# What a token is for: given, or learnt as part of a score, a tag, the reasoning.
GIVEN, SCORE, TAG, REASON = range(4)
#: Two careful raters differ by about this much on an axis.
LABEL_SD = 0.1
LEVELS = (-0.6, -0.2, 0.2, 0.6)
WORDS = {
    "valence": ("very unpleasant", "unpleasant", "neutral", "pleasant", "very pleasant"),
    "intimacy": ("shut out", "distant", "neither close nor cold", "close", "very close"),
    "tension": ("slack", "calm", "even", "tense", "urgent"),
}


class Tokeniser(Protocol):
    """What is used of a transformers tokenizer."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any: ...


@dataclass(frozen=True)
class Row:
    """One labelled message; ``axes`` in [-1, 1]. Rows of one ``group`` were made together: they
    share a frame, a thread or a pair (empty: the row stands alone)."""

    text: str
    context: tuple[str, ...]
    axes: tuple[float, float, float]
    tags: tuple[str, ...]
    # Nothing is learnt from it, so it is no part of what a digest tells.
    group: str = field(default="", repr=False)


@dataclass(frozen=True)
class Example:
    """One training sequence of T tokens; ``role`` says for each what it is for."""

    ids: tuple[int, ...]
    role: tuple[int, ...]


def load_rows(folder: Path, part: str) -> list[Row]:
    """The pool's rows of one part of a built set; those of ``train`` are checked against gold.

    Raises:
        DataError: the folder holds none. GoldRefused: gold among the training rows.
    """
    table = load_part(folder, part)
    if part == "train":
        GoldGuard.load(POOL).refuse(table, f"{folder}: training rows")
    table = table.filter(
        pl.col("source").is_in(sorted(GUIDED_SOURCES))
        & pl.all_horizontal(pl.col(a).is_not_null() for a in AXES)
    )
    if not table.height:
        raise DataError(
            f"{folder}: no labelled rows in {part}; make the set with `limbic data build`"
        )
    return [_row(record) for record in table.to_dicts()]


def reasoning(axes: Sequence[float]) -> str:
    """The scores in words, for instance "very unpleasant, close, tense"."""
    return ", ".join(
        WORDS[axis][int(np.searchsorted(LEVELS, value, "right"))]
        for axis, value in zip(AXES, axes, strict=True)
    )


def prompt_ids(tokeniser: Tokeniser, text: str, context: Sequence[str] = ()) -> list[int]:
    """Tokens of the question, up to where the answer begins."""
    asked = affect_prompt.messages(text, context)
    return list(
        tokeniser.apply_chat_template(
            asked, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    )


def answer(tokeniser: Tokeniser, row: Row, axes: Sequence[float]) -> tuple[list[int], list[int]]:
    """Tokens of the answer with these scores, and the role of each."""
    scores = affect_prompt.score_pieces(axes)
    pieces = [(piece, SCORE if i % 2 else GIVEN) for i, piece in enumerate(scores)]
    pieces.append((affect_prompt.TAGS_OPENING, GIVEN))
    for i, tag in enumerate(row.tags):
        pieces.append((("," if i else "") + f'"{tag}"', TAG))
    pieces.append((affect_prompt.TAGS_CLOSING, TAG))
    pieces.append((affect_prompt.REASONING_OPENING, GIVEN))
    pieces.append((reasoning(axes), REASON))
    pieces.append((affect_prompt.REASONING_CLOSING, REASON))
    ids: list[int] = []
    role: list[int] = []
    for text, kind in pieces:
        tokens = tokeniser.encode(text, add_special_tokens=False)
        ids += tokens
        role += [kind] * len(tokens)
    return ids, role


def example(tokeniser: Tokeniser, row: Row, rng: np.random.Generator | None = None) -> Example:
    """One row to learn from. With ``rng`` the scores are drawn around the label, as raters would
    scatter, so that over many draws the model learns how sure one can be, not one exact digit."""
    axes = np.asarray(row.axes)
    if rng is not None:
        axes = np.clip(axes + rng.normal(0.0, LABEL_SD, 3), -1.0, 1.0)
    asked = prompt_ids(tokeniser, row.text, row.context)
    written, role = answer(tokeniser, row, axes.tolist())
    return Example((*asked, *written), (*[GIVEN] * len(asked), *role))


def _row(record: dict[str, Any]) -> Row:
    tags = tuple(tag for tag in TAGS if tag in (record["tags"] or ()))[: affect_prompt.MAX_TAGS]
    return Row(
        record["text"],
        tuple(record["context"] or ()),
        (float(record["valence"]), float(record["intimacy"]), float(record["tension"])),
        tags,
        next(f"{tie} {record[tie]}" for tie in TIES if record.get(tie)),
    )


def digest(rows: Sequence[Row]) -> str:
    """SHA-256 over what is learnt from: rows and wording."""
    told = repr((affect_prompt.PROMPT_VERSION, affect_prompt.SYSTEM, WORDS, list(rows)))
    return hashlib.sha256(told.encode()).hexdigest()
