"""VADER's valence of a message (Hutto and Gilbert 2014), as a baseline: NumPy alone.

Word valences from its lexicon with its rules for negation, degree words, "but" and exclamation
marks, and its normalisation to (−1, 1). Left out, since prepared rows are lower-case word pieces:
capitals, emoticons and idioms.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

NEGATED, BOOST, EXCLAMATION, ALPHA = -0.74, 0.293, 0.292, 15.0
_WORD = re.compile(r"[a-z0-9'-]+")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


NEGATIONS = _words(
    """aint arent cannot cant couldnt darent didnt doesnt dont hadnt hasnt havent isnt mightnt
    mustnt neither neednt never none nope nor not nothing nowhere oughtnt shant shouldnt uhuh
    wasnt werent without wont wouldnt rarely seldom despite"""
)
STRONGER = _words(
    """absolutely amazingly awfully completely considerably decidedly deeply enormously entirely
    especially exceptionally extremely fabulously fully fucking greatly hella highly hugely
    incredibly intensely majorly more most particularly purely quite really remarkably so
    substantially thoroughly totally tremendously uber unbelievably unusually utterly very"""
)
WEAKER = _words(
    """almost barely hardly kinda less little marginally occasionally partly scarcely slightly
    somewhat sorta"""
)


def read_lexicon(path: Path) -> dict[str, float]:
    """Word → mean rating, −4 to 4, from ``vader_lexicon.txt``.

    Raises:
        ValueError: a line is not ``word, rating, …``.
    """
    words = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            word, rating = line.split("\t")[:2]
            words[word] = float(rating)
        except ValueError:
            raise ValueError(f"{path}:{number}: not a line of VADER's lexicon") from None
    return words


def valence(text: str, lexicon: dict[str, float]) -> float:
    """The compound score of lower-case ``text``, in (−1, 1); 0 where no word is known."""
    words = _WORD.findall(text)
    scores = [_of_word(words, i, lexicon) for i in range(len(words))]
    if "but" in words:
        at = words.index("but")
        scores = [s * (0.5 if i < at else 1.5) for i, s in enumerate(scores)]
    total = sum(scores)
    if total:
        total += (1 if total > 0 else -1) * EXCLAMATION * min(4, text.count("!"))
    return total / (total * total + ALPHA) ** 0.5


def _of_word(words: Sequence[str], i: int, lexicon: dict[str, float]) -> float:
    score = lexicon.get(words[i], 0.0)
    if not score or words[i] in STRONGER or words[i] in WEAKER:
        return 0.0
    sign = 1.0 if score > 0 else -1.0
    for distance, fade in ((1, 1.0), (2, 0.95), (3, 0.9)):
        before = words[i - distance] if i >= distance else ""
        if before in STRONGER:
            score += sign * BOOST * fade
        elif before in WEAKER:
            score -= sign * BOOST * fade
        elif before.replace("'", "") in NEGATIONS:
            score *= NEGATED
    return score
