"""Bytes in any slices give the same text, whole characters only, nothing of a stop sequence."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from sidecars.reply_text import ReplyText

TEXT = st.text(alphabet="ab\n.é漢😀", max_size=40)


def feed_all(reply: ReplyText, data: bytes, cuts: list[int]) -> tuple[str, list[str]]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    pieces = [reply.feed(data[a:b]) for a, b in pairwise(edges)]
    pieces.append(reply.finish())
    return "".join(pieces), pieces


@given(TEXT, st.lists(st.integers(0, 200)))
def test_without_stops_the_text_is_the_bytes_however_they_are_cut(
    text: str, cuts: list[int]
) -> None:
    joined, pieces = feed_all(ReplyText(), text.encode(), cuts)
    assert joined == text
    assert not any("\ufffd" in piece for piece in pieces)


@given(
    TEXT,
    st.lists(st.text(alphabet="ab\n.é", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.integers(0, 200)),
)
def test_text_ends_before_the_earliest_stop_however_it_is_cut(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    reply = ReplyText(stops)
    joined, _ = feed_all(reply, text.encode(), cuts)
    # Feeding stops a real engine at the first stop that is complete, so compare with that.
    first = next(
        (
            min(prefix.find(s) for s in stops if s in prefix)
            for end in range(len(text) + 1)
            if any(s in (prefix := text[:end]) for s in stops)
        ),
        None,
    )
    assert reply.stopped == (first is not None)
    if first is None:
        assert joined == text
    else:
        assert text.startswith(joined)
        assert not any(stop in joined for stop in stops)


def test_text_that_cannot_become_a_stop_is_not_held_back() -> None:
    reply = ReplyText(["\nUser:"])
    assert reply.feed(b"Hi") == "Hi"
    assert reply.feed(b" there\n") == " there"
    assert reply.feed(b"Use") == ""
    assert reply.feed(b"d") == "\nUsed"
    assert reply.finish() == ""


def test_a_half_character_at_the_end_becomes_a_replacement_mark() -> None:
    reply = ReplyText()
    assert reply.feed("é".encode()[:1]) == ""
    assert reply.finish() == "\ufffd"


@given(st.binary(max_size=30), st.lists(st.integers(0, 200)))
def test_any_bytes_give_text_that_can_be_encoded(data: bytes, cuts: list[int]) -> None:
    joined, _ = feed_all(ReplyText(["stop"]), data, cuts)
    joined.encode()
