"""The event parser gives the same events however the bytes are cut, and stops at its limit."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from brain.sse import SSEParser


def by_the_book(body: bytes) -> list[bytes]:
    """Data of the complete events of ``body``, line by line as the HTML standard describes it."""
    body = body.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    events: list[bytes] = []
    data: list[bytes] = []
    for line in body.split(b"\n")[:-1]:
        if not line:
            if data:
                events.append(b"\n".join(data))
            data = []
            continue
        if line.startswith(b":"):
            continue
        field, _, value = line.partition(b":")
        if field == b"data":
            data.append(value.removeprefix(b" ") if value.startswith(b" ") else value)
    return events


def parse(pieces: list[bytes], limit: int = 1 << 20) -> tuple[list[bytes], bool]:
    parser = SSEParser(max_event_bytes=limit)
    events = [event for piece in pieces for event in parser.feed(piece)]
    return events, parser.overflowed


def cut(body: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(body) + 1) for place in places), len(body)]
    return [body[a:b] for a, b in itertools.pairwise(edges)]


line_ends = st.sampled_from([b"\n", b"\r\n", b"\r"])
lines = st.one_of(
    st.sampled_from(
        [
            b"",
            b"data",
            b"data:",
            b"data: ",
            b"data:  two spaces",
            b": comment",
            b":",
            b"event: error",
            b"id: 7",
            b"retry: 10",
            b"database: no",
            b" data: no",
            b"data: [DONE]",
        ]
    ),
    st.text(
        alphabet=st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=8
    ).map(lambda text: b"data: " + text.encode()),
    st.binary(max_size=6).map(lambda raw: raw.replace(b"\r", b"").replace(b"\n", b"")),
)
bodies = st.builds(
    lambda bom, pairs: bom + b"".join(line + end for line, end in pairs),
    st.sampled_from([b"", b"\xef\xbb\xbf"]),
    st.lists(st.tuples(lines, line_ends), max_size=14),
)
cuts = st.lists(st.integers(0, 400), max_size=12)


@given(bodies, cuts)
@example(b"data: a\r\n\r\ndata: b\r\r\n\n", [9, 10, 11, 12])
@example(b"\xef\xbb\xbfdata: a\n\n", [1, 2])
def test_any_chunking_gives_the_events_of_the_standard(body: bytes, places: list[int]) -> None:
    events, overflowed = parse(cut(body, places))
    assert events == by_the_book(body)
    assert not overflowed


@given(bodies)
def test_one_byte_at_a_time_gives_the_same_events(body: bytes) -> None:
    assert parse([bytes((byte,)) for byte in body])[0] == by_the_book(body)


@given(
    st.lists(st.integers(0, 40).map(lambda n: b"data: " + b"x" * n), max_size=6),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
    cuts,
)
def test_an_oversize_event_is_refused_at_the_same_place_whatever_the_chunking(
    blocks: list[bytes], end: bytes, places: list[int]
) -> None:
    body = b"".join(block + end + end for block in blocks)
    fits = next((i for i, block in enumerate(blocks) if len(block) > 24), len(blocks))
    events, overflowed = parse(cut(body, places), limit=24)
    assert events == [block[6:] for block in blocks[:fits]]
    assert overflowed == (fits < len(blocks))


def test_a_line_without_end_is_refused_and_not_kept() -> None:
    parser = SSEParser(max_event_bytes=1000)
    for _ in range(100):
        assert parser.feed(b"x" * 100) == []
    assert parser.overflowed
    assert parser.finish() == []


def test_several_data_lines_are_one_event() -> None:
    assert parse([b"data: one\ndata:two\nid: 3\ndata\n\n"])[0] == [b"one\ntwo\n"]


def test_comments_and_other_fields_give_nothing() -> None:
    assert parse([b": ping\n\n", b"event: x\nid: 1\n\n"])[0] == []


@pytest.mark.parametrize("tail", [b"data: [DONE]", b"data: [DONE]\n", b"data: [DONE]\r"])
def test_a_last_event_without_blank_line_is_given_at_the_end(tail: bytes) -> None:
    parser = SSEParser()
    assert parser.feed(b"data: a\n\n" + tail) == [b"a"]
    assert parser.finish() == [b"[DONE]"]
    assert parser.finish() == []
