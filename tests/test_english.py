"""What counts as English: chat as people type it does, other languages do not, however short."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecars.affect_head import AffectHead, Message
from sidecars.cahm import WEIGHTS
from sidecars.english import COMMON_WORDS, looks_english
from sidecars.foreign_words import ONLY, SHARED
from tests.foreign_lines import FOREIGN_LINES

ENGLISH = (
    "I do not know why you talk to me like this", "ok", "lol", "Marta Kowalczyk", "nah",
    "that's great, congrats!!", "omg same haha", "No me neither", "a la carte", "tell me so",
    "Juan de la Cruz", "Los Angeles", "Las Vegas baby", "Van der Beek", "Che Guevara shirt",
    "I love Beyoncé", "Beyoncé!", "José is great", "meet me at the café", "déjà vu",
    "my fiancée left me", "I told him ich liebe dich lol",
    "c'mon man", "y'all", "o'clock", "it's o'brien's", "Mia and Ella", "Dan, Kim and Ben",
    "die", "man was so in war", "you hate me", "hush baby", "sup bro", "gimme a sec",
    "thx", "idk tbh", "brb", "u ok?", "wyd rn", "gonna bounce", "miss u sm", "k", "🙂 fine",
)  # fmt: skip
NAMES = re.findall(
    r"\w+",
    "Olivia Emma Amelia Charlotte Mia Sophia Isabella Evelyn Ava Luna Harper Camila Sofia Eleanor "
    "Elena Nora Lily Ella Hazel Chloe Aria Nina Lena Ana Sara Rosa Eva Iris Carmen Diego Luis "
    "Mateo Liam Noah Oliver Theodore James Henry Elijah Lucas William Ben Levi Jack Leo Luca Dan "
    "Kai Ian Jan Hans Otto Ole Per Kim Ali Sam Max Eli Marco Paolo Pedro Juan Pierre Jean Sven",
)


def pieces(text: str) -> int:
    """A tokenizer that knows every word."""
    return len(text.split())


@pytest.mark.model
def test_chat_as_people_type_it_is_english() -> None:
    shipped = AffectHead.load(WEIGHTS)
    assert [text for text in (*ENGLISH, *NAMES) if not shipped._readable(text)] == []


@pytest.mark.parametrize("language", FOREIGN_LINES)
def test_most_short_lines_of_another_language_are_not_english(language: str) -> None:
    lines = FOREIGN_LINES[language]
    assert len(lines) >= 15
    passed = [line for line in lines if looks_english(line, pieces)]
    assert len(passed) <= 0.25 * len(lines), passed


def test_nine_of_ten_foreign_lines_are_found() -> None:
    lines = [line for lines in FOREIGN_LINES.values() for line in lines]
    found = sum(not looks_english(line, pieces) for line in lines)
    assert found >= 0.88 * len(lines)


def test_words_of_another_language_are_no_common_english_words() -> None:
    for language, only in ONLY.items():
        assert not only & COMMON_WORDS, language
        assert not only & SHARED[language], language
        assert not only & {name.lower() for name in NAMES}, language


@pytest.mark.model
def test_a_short_foreign_line_is_scored_with_low_confidence() -> None:
    shipped = AffectHead.load(WEIGHTS)
    foreign = ["ich hasse dich", "te quiero mucho", "je suis fatigué", "sono stanco",
               "estou cansado", "Ich habe heute einen schlechten Tag gehabt",
               "asdkjh qwoeiu zmxn", "Minulla on tänään todella huono päivä"]  # fmt: skip
    assert all(one.confidence <= 0.3 for one in shipped.score([Message(t) for t in foreign]))


@given(st.text(max_size=200))
def test_any_text_gets_a_verdict(text: str) -> None:
    assert looks_english(text, pieces) in (True, False)
