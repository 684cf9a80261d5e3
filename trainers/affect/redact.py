"""Takes out of a message what could name or reach a person, and keeps how it feels.

Addresses, links, handles, phone and other numbers are found by their shape. Names are found where
possible: after "my name is", a title or a greeting, as capitalised words inside a sentence, and
again wherever the same session repeats them. It errs on the side of taking out too much; it cannot
find a name typed in lower case without any such sign, so harvested rows stay private.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_SHAPES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("[email]", re.compile(r"[\w.+%-]+@[\w-]+(?:\.[\w-]+)+")),
    ("[url]", re.compile(r"(?:\b[a-z][a-z0-9+.-]{1,9}://|\bwww\.)\S+", re.IGNORECASE)),
    (
        "[url]",
        re.compile(
            r"\b(?:[\w-]+\.)+(?:com|org|net|io|de|uk|fr|eu|app|dev|me)\b(?:/\S*)?", re.IGNORECASE
        ),
    ),
    ("[handle]", re.compile(r"(?<![\w\[])@\w[\w.]*")),
    ("[phone]", re.compile(r"(?<![\w.])\+?\(?\d(?:[\s().-]{0,2}\d){6,18}(?!\w)")),
    ("[number]", re.compile(r"\d(?:[.,:/-]?\d)+")),
)
_NAME = r"[^\W\d_][^\W\d_]+(?:[-'’][^\W\d_]+)*"
_CAPITAL = re.compile(_NAME)
_INTRODUCED = re.compile(rf"(?i)\b(?:my name is|my name's|my name’s|i am called)\s+({_NAME})")
_ADDRESSED = re.compile(
    rf"(?i:\b(?:hi|hey|hello|dear|bye|goodbye|thanks|thank you|love|mr|mrs|ms|miss|dr|prof"
    rf"|aunt|auntie|uncle)\b\.?)\s+({_NAME})"
)
_SENTENCE_END = frozenset('.!?…:\n"“”(*-—')

#: Capitalised words that are not names of people; everything is compared in lower case.
_WORDS = """
    monday tuesday wednesday thursday friday saturday sunday january february march april may june
    july august september october november december christmas easter hanukkah ramadan eid diwali
    halloween english french german spanish italian polish turkish dutch european american british
    god jesus lord allah mum mom dad mama papa mother father grandma grandpa nan gran granny auntie
    aunt uncle sis bro sir madam ok okay yes no well oh ah hey hi hello please sorry thanks thank
    honestly look listen wait stop fine sure and but so if when why what who where how that this it
    the you your we he she they my me not then now just there here do don't i'm i'll i've i'd it's
    let let's maybe never always everything nothing tv pc dm app wifi internet covid
"""
_NOT_NAMES = frozenset(_WORDS.split())


def _looks_like_name(word: str) -> bool:
    return (
        word[0].isupper()
        and not word.isupper()  # shouting is not a name
        and word.lower() not in _NOT_NAMES
        and word.lower().partition("'")[0].partition("’")[0] not in _NOT_NAMES
    )


def _bare(word: str) -> str:
    """A name without its possessive, in lower case."""
    return re.sub(r"['’]s?$", "", word).lower()


def names_in(text: str) -> set[str]:
    """Words of `text` that are probably names, in lower case."""
    found = {_bare(match[1]) for match in _INTRODUCED.finditer(text)}
    for match in _ADDRESSED.finditer(text):
        if _looks_like_name(match[1]):
            found.add(_bare(match[1]))
    for match in _CAPITAL.finditer(text):
        before = text[: match.start()].rstrip(" ")
        starts = not before or before[-1] in _SENTENCE_END
        called = starts and text[match.end() : match.end() + 1] == ","
        if _looks_like_name(match[0]) and (called or not starts):
            found.add(_bare(match[0]))
    return found - _NOT_NAMES


def redact(text: str, names: Iterable[str] = ()) -> str:
    """`text` with placeholders such as ``[email]`` and ``[name]``; doing it twice changes nothing.

    `names` (lower case) are taken out too, as when the same session gave them away elsewhere.
    """
    found = names_in(text) | set(names)
    for placeholder, shape in _SHAPES:
        text = shape.sub(placeholder, text)
    introduced = {_bare(match[1]) for match in _INTRODUCED.finditer(text)}

    def one(match: re.Match[str]) -> str:
        word, bare = match[0], _bare(match[0])
        inside = text[max(0, match.start() - 1) : match.start()] == "["
        if inside or bare not in found or not (word[0].isupper() or bare in introduced):
            return word
        return "[name]" + ("'s" if re.search(r"['’]s$", word) else "")

    return _CAPITAL.sub(one, text)


def redact_session(texts: Iterable[str]) -> list[str]:
    """All texts of one session, each without any name that one of them gave away."""
    kept = list(texts)
    names: set[str] = set().union(*map(names_in, kept)) if kept else set()
    return [redact(text, names) for text in kept]
