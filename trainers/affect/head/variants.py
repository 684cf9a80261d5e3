"""Unlabelled variants of training messages: a word or two replaced by near ones.

A teacher says what a replacement does to each axis; the student sees many small moves around the
messages it has labels for (Jiao et al. 2020, TinyBERT, there with a language model). Near words are
neighbours in the encoder's own word table, which puts opposites close as well: that is the point.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

NEIGHBOURS = 12
LONGEST = 60  # words; a long message moves little with one of them
WORD = re.compile(r"^(\W*)([A-Za-z]{3,})(\W*)$")
SHARE_SECOND, SHARE_THIRD, SHARE_BARE = 0.5, 0.2, 0.3


class Neighbours:
    """The nearest whole words by cosine, out of a word table [V, H] and its vocabulary."""

    def __init__(self, vocabulary: dict[str, int], table: NDArray[np.float32]) -> None:
        self._words = sorted(w for w in vocabulary if w.isascii() and w.isalpha() and len(w) > 2)
        self._place = {word: i for i, word in enumerate(self._words)}
        rows = table[[vocabulary[word] for word in self._words]]
        self._unit = rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-9)
        self._found: dict[str, list[str]] = {}

    def of(self, word: str) -> list[str]:
        """Up to ``NEIGHBOURS`` words, nearest first; none for a word that is not in the table."""
        if word not in self._found:
            place = self._place.get(word)
            near: list[str] = []
            if place is not None:
                order = np.argsort(-(self._unit @ self._unit[place]), kind="stable")
                near = [self._words[i] for i in order[: NEIGHBOURS + 1] if i != place][:NEIGHBOURS]
            self._found[word] = near
        return self._found[word]


def variant(words: Sequence[str], near: Neighbours, rng: np.random.Generator) -> str | None:
    """``words`` with one to three replaced; None where none of them has neighbours."""
    places = [i for i, w in enumerate(words) if (m := WORD.match(w)) and near.of(m[2].lower())]
    if not places:
        return None
    count = 1 + int(rng.random() < SHARE_SECOND) + int(rng.random() < SHARE_THIRD)
    changed = list(words)
    for i in rng.permutation(places)[:count]:
        match = WORD.match(words[i])
        assert match is not None
        choice = near.of(match[2].lower())[int(rng.integers(len(near.of(match[2].lower()))))]
        new = choice.capitalize() if match[2][0].isupper() and not match[2].isupper() else choice
        changed[i] = f"{match[1]}{new.upper() if match[2].isupper() else new}{match[3]}"
    return " ".join(changed)


def variants(
    records: Iterable[dict[str, Any]], near: Neighbours, times: int, seed: int
) -> list[dict[str, Any]]:
    """Unlabelled records, ``times`` of each training message of the labelled pool.

    A variant stays in the group of its message, so that no split tells one from the other; some
    lose the context. What becomes of a message depends on it alone, not on those beside it.
    """
    found = []
    for record in records:
        words = record["text"].split()
        if (record["source"], record["part"]) != ("llm_label", "train") or len(words) > LONGEST:
            continue
        ties = {k: v for k, v in record.items() if k in ("group", "pair", "frame", "session_id")}
        seen = {record["text"]}
        own = zlib.crc32(record["text"].encode())
        for turn in range(times):
            rng = np.random.default_rng((seed, own, turn))
            text = variant(words, near, rng)
            bare = rng.random() < SHARE_BARE
            if text is None or text in seen:
                continue
            seen.add(text)
            context = [] if bare else list(record.get("context") or [])
            found.append({"text": text, "context": context, "source": "variant",
                          "part": "unlabelled", **ties})  # fmt: skip
    return found
