"""Wire frames and ids: what is refused at the door."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain.errors import InputError, ProtocolError, TextTooLong
from brain.schema import Affect, Embeddings, Prediction, check_id, check_text, parse_wire

GOOD = {"valence": 0.1, "intimacy": -1, "tension": 1, "confidence": 0.5, "tags": ["flat_numb"]}


def test_a_good_answer_is_read_and_unknown_keys_are_ignored() -> None:
    affect = parse_wire(Affect, orjson.dumps({**GOOD, "more": 1}), remote="cahm")
    assert (affect.valence, affect.tension, affect.tags) == (0.1, 1.0, ("flat_numb",))


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'{"valence": NaN}', b"\xff",
        orjson.dumps({**GOOD, "valence": None}),  # how orjson writes NaN
        orjson.dumps({**GOOD, "valence": 1.01}),
        orjson.dumps({**GOOD, "confidence": -0.1}),
        orjson.dumps({**GOOD, "tags": ["x" * 65]}),
        orjson.dumps({**GOOD, "tags": ["a"] * 17}),
        orjson.dumps({**GOOD, "reasoning": "x" * 5000}),
        orjson.dumps({k: v for k, v in GOOD.items() if k != "tension"}),
    ],
)  # fmt: skip
def test_a_bad_answer_is_refused_and_never_clamped(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="cahm answered"):
        parse_wire(Affect, body, remote="cahm")


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_an_answer_or_a_protocol_error(body: bytes) -> None:
    for model in (Affect, Prediction, Embeddings):
        try:
            parse_wire(model, body, remote="x")
        except ProtocolError as error:
            assert str(error)


@pytest.mark.parametrize("value", ["a", "alice", "A.b_c-9", "x" * 64])
def test_usable_ids_pass(value: str) -> None:
    assert check_id(value, what="a session id") == value


@pytest.mark.parametrize("value", ["", ".", "../etc", "a/b", "a b", "-x", "x" * 65, "é", "a\n"])
def test_other_ids_are_refused(value: str) -> None:
    with pytest.raises(InputError, match="session id must be"):
        check_id(value, what="a session id")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("", "empty"), (" \n\t ", "empty"), ("a\ud800b", "surrogate"), ("a\x1b[2Jb", r"U\+001B"),
     ("a\x00", r"U\+0000"), ("x\x9b31m", r"U\+009B")],
)  # fmt: skip
def test_unusable_text_is_refused_with_a_reason(text: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        check_text(text)


def test_text_over_the_limit_is_refused_with_both_numbers() -> None:
    with pytest.raises(TextTooLong, match="11 characters; the limit is 10"):
        check_text("x" * 11, max_chars=10)


@given(st.text(max_size=200))
def test_accepted_text_is_stable(text: str) -> None:
    try:
        cleaned = check_text(text)
    except InputError:
        return
    assert check_text(cleaned) == cleaned and "\r" not in cleaned
    cleaned.encode()


def test_emoji_joiners_and_line_ends_survive() -> None:
    assert check_text("hi 👩‍👩‍👧\r\nthere ") == "hi 👩‍👩‍👧\nthere"
