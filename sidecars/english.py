"""Whether a text looks like the English that the affect head was made for.

Script first. Then words: a line is foreign where it holds words that only another language has and
more of that language than of English. What no list knows is judged by how finely the tokenizer has
to cut the words and how few of them are among the commonest: other languages and typed noise differ
in both. How often this errs is in docs/affect-head.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from sidecars.foreign_words import ONLY, SHARED


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


MAX_CHARS = 4096  # more than the head reads
MAX_WORDS, MAX_WORD_CHARS = 48, 100
# Share of a line's words that must be of the other language: a name or a loan is not a sentence.
FOREIGN_SHARE = 0.4
# Set on chat and on the affect set. Pieces are the tokenizer's, a word.
MOST_COMMON = 0.2
LONG_ENOUGH, LONG_PIECES, SHORT_PIECES = 6, 1.35, 2.0
COMMON_WORDS = _words(
    """i you he she it we they me him her us them my your his its our their this that these
    those the a an and or but if so because as of at by for with about to from in on up out
    off over not no yes do does did done have has had am is are was were be been being can
    could will would should may might must what when where why how who which there here just
    like get got go going know think want love hate good bad really very too then now ok okay
    hi hey hello thanks please im dont cant thats haha lol yeah wow oh hmm"""
)
# Words that English took over with their accents; names with accents are written with a capital.
LOANS = _words(
    """café cafés fiancé fiancée naïve naïveté cliché clichés clichéd résumé resumé déjà touché
    über façade soufflé protégé entrée entrées sauté sautéed passé risqué blasé décor crêpe crêpes
    pâté purée crème brûlée à piñata jalapeño jalapeños señor señorita pokémon animé maté saké
    doppelgänger matinée exposé appliqué vis-à-vis coup coöperate rosé flambé"""
)
_LANGUAGES = {w: [code for code in ONLY if w in ONLY[code]] for only in ONLY.values() for w in only}
_LATIN = re.compile(r"[A-Za-z\u00c0-\u024f\u1e00-\u1eff]+")
_LETTERS = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")
# Elision: j'ai, t'aime, c'est, qu'il, l'amore, dell'anno. English has few: o'clock, y'all, d'oh.
_ELIDED = re.compile(r"(?:[jtnlsm]|c|qu|un|dell|all|nell|dall|sull)'[a-zà-ÿ]{2,}")
_ENDINGS = _words("t s re ve ll d m")
_NOT_ELIDED = _words(
    "c'mon c'mere t'was t'is s'more s'mores s'pose s'up s'all n'sync m'lady l'oreal l'oréal"
)


def looks_english(text: str, count_pieces: Callable[[str], int]) -> bool:
    """Whether ``text`` is in Latin letters and not plainly of another language.

    Args:
        count_pieces: how many pieces the tokenizer cuts a text into.
    """
    text = text[:MAX_CHARS].replace("’", "'")
    letters = sum(char.isalpha() for char in text)
    # A word longer than the tokenizer takes is one unknown token to it.
    read = sum(len(run) for run in _LATIN.findall(text) if len(run) <= MAX_WORD_CHARS)
    if not letters or read < 0.5 * letters:
        return False
    found = _LETTERS.findall(text)[:MAX_WORDS]
    words = [word.lower() for word in found]
    if is_foreign(found):
        return False
    if len(words) < 3:
        return True
    common = sum(_is_common(word) for word in words) / len(words)
    if common > MOST_COMMON:
        return True
    pieces = count_pieces(" ".join(w.split("'")[0][:MAX_WORD_CHARS] for w in words)) / len(words)
    if len(words) < LONG_ENOUGH:
        return common > 0 or pieces < SHORT_PIECES
    return pieces < LONG_PIECES


def is_foreign(found: Sequence[str]) -> bool:
    """Whether the words of a line, as written, are more of another language than of English."""
    words = [word.lower() for word in found]
    # Letters that English lacks: evidence in a word, none in a name; at the start it may be either.
    marked = [word if _is_marked(word) else "" for word in words]
    lower = {mark for mark, written in zip(marked, found, strict=True) if mark == written}
    start = marked[0] if len(words) > 1 else ""
    languages = {code for word in words for code in _LANGUAGES.get(word, ())}
    if not (languages or lower or start):
        return False
    for code in languages or SHARED:
        only, shared = ONLY[code], SHARED[code]
        if not (lower or not only.isdisjoint(words)):
            shared = frozenset()  # a name proves nothing of the words beside it
        theirs = [w in only or w in lower or w in shared or w == start != "" for w in words]
        english = sum(not t and _is_common(w) for t, w in zip(theirs, words, strict=True))
        if sum(theirs) > english and sum(theirs) >= FOREIGN_SHARE * len(words):
            return True
    return False


def _is_common(word: str) -> bool:
    """Whether a word is one of the commonest, or ends as only English does: isn't, healer's."""
    base, apostrophe, end = word.partition("'")
    return base in COMMON_WORDS or bool(apostrophe and end in _ENDINGS)


def _is_marked(word: str) -> bool:
    """Whether letters or an elision show that a word is not English."""
    if word in LOANS or word in _NOT_ELIDED:
        return False
    return not word.isascii() or _ELIDED.fullmatch(word) is not None
