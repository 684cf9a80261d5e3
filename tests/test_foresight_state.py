"""What foresight remembers: one encoder's vectors, each under its own message, in a safe record."""

from __future__ import annotations

import itertools
import struct
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from brain.foresight_state import (
    MAX_MESSAGES,
    MIN_DISTANCES,
    UNKNOWN_ENCODER,
    ForesightState,
    SeenMessage,
    cosine_distance,
    percentile,
    restored,
    rewound,
    single,
)
from brain.schema import CONTEXT_VECTORS, Foresight

ENCODER = "mini:aa:3"
single_floats = st.floats(-1e6, 1e6, width=32)
distances = st.floats(0, 2, width=32)
names = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)


def usable_rows(dim: int) -> st.SearchStrategy[tuple[float, ...]]:
    row = st.lists(single_floats, min_size=dim, max_size=dim).map(tuple)
    return row.filter(lambda r: sum(x * x for x in r) > 1e-6)


@st.composite
def states(draw: st.DrawFn) -> ForesightState:
    rows = usable_rows(draw(st.integers(1, 6)))
    seqs = sorted(draw(st.sets(st.integers(0, 2**40), max_size=12)))
    held = draw(st.integers(0, min(CONTEXT_VECTORS, len(seqs))))
    messages = [
        SeenMessage(
            seq,
            draw(rows) if number >= len(seqs) - held else None,
            draw(st.none() | distances),
            draw(st.none() | rows) if number >= len(seqs) - held else None,
        )
        for number, seq in enumerate(seqs)
    ]
    predicted = draw(st.none() | rows)
    could_hear = predicted is not None and bool(messages) and messages[-1].reply is not None
    heard = could_hear and draw(st.booleans())
    return ForesightState(draw(names), draw(names), tuple(messages), predicted, heard)


def seen(
    *numbers: float, distance: float | None = None, encoder: str = ENCODER, surprise: Any = None
) -> Foresight:
    return Foresight(vector=numbers, distance=distance, encoder=encoder, surprise=surprise)


def talked(turns: int, *, answered: bool = False) -> ForesightState:
    """A state that saw turns 1, 2, …: each with the vector (1, seq, 0), the distance seq / 1000,
    and where ``answered`` its reply's vector (0, seq, 1)."""
    state = ForesightState()
    for seq in range(1, turns + 1):
        state = state.after(seq, seen(1.0, float(seq), 0.0, distance=single(seq / 1000)))
        if answered:
            state = state.with_replies(reply_to(seq), ENCODER)
    return state


def reply_to(*seqs: int) -> dict[int, tuple[float, ...]]:
    return {seq: (0.0, float(seq), 1.0) for seq in seqs}


def said(state: ForesightState) -> list[tuple[str, int]]:
    """Who said each message of the context, and in which turn."""
    return [("person" if v[0] else "agent", int(v[1])) for v in state.context]


@given(states())
def test_a_state_survives_its_record_exactly(state: ForesightState) -> None:
    assert ForesightState.from_bytes(state.to_bytes()) == state


@given(states(), st.integers(0, 10_000))
def test_a_truncated_record_is_refused(state: ForesightState, cut: int) -> None:
    data = state.to_bytes()
    with pytest.raises(ValueError):
        ForesightState.from_bytes(data[: cut % len(data)])


@given(st.binary(max_size=64))
def test_any_bytes_are_a_state_or_refused(data: bytes) -> None:
    for record in (data, b"FS\x02" + data, b"FS\x03" + data):
        try:
            state = ForesightState.from_bytes(record)
        except ValueError:
            assert restored(record) == ForesightState()
            continue
        assert ForesightState.from_bytes(state.to_bytes()) == state


def test_a_record_of_version_1_is_of_an_unknown_encoder_and_starts_anew() -> None:
    header = struct.pack("<2sBBBHH", b"FS", 1, 2, True, 1, 2)
    record = header + struct.pack("<7f", 1, 0, 0, 1, 1, 0, 0.5)
    state = ForesightState.from_bytes(record)
    assert state == ForesightState(encoder=UNKNOWN_ENCODER)
    assert state.after(3, seen(1.0, 0.0, 0.0)).encoder == ENCODER


def record_of_version_2(state: ForesightState) -> bytes:
    """A state without replies, as version 2 wrote it."""
    names = state.encoder.encode(), state.predictor.encode()
    messages = state.messages
    vectors = [m.vector for m in messages if m.vector] + [v for v in [state.predicted] if v]
    numbers = [-1.0 if m.distance is None else m.distance for m in messages]
    numbers += [x for vector in vectors for x in vector]
    header = struct.pack(
        "<2sBBBHHHH", b"FS", 2, state.predicted is not None, len(state.vectors), len(messages),
        state.dim or 0, *map(len, names),
    )  # fmt: skip
    seqs = struct.pack(f"<{len(messages)}q", *(m.seq for m in messages))
    return header + b"".join(names) + seqs + struct.pack(f"<{len(numbers)}f", *numbers)


def test_a_record_of_version_2_keeps_all_and_measures_anew_once_replies_count() -> None:
    """What was expected from the person's messages alone was further off: the next message is
    still measured among its like, and the distances go when replies have joined the context."""
    before = talked(9).expecting((1.0, 0.0, 0.0), "p")
    state = ForesightState.from_bytes(record_of_version_2(before))
    assert (state.messages, state.predicted) == (before.messages, before.predicted)
    assert (state.encoder, state.predictor) == (ENCODER, "p from the person alone")
    assert state.measure((1.0, 0.0, 0.0), ENCODER) == before.measure((1.0, 0.0, 0.0), ENCODER)
    assert ForesightState.from_bytes(state.to_bytes()) == state, "and it is not marked twice"
    assert state.unheard == (7, 8, 9)
    after = state.with_replies(reply_to(7, 8, 9), ENCODER).expecting((1.0, 0.0, 0.0), "p")
    assert (after.distances, after.predictor) == ((), "p")


@given(st.integers(0, 10_000))
def test_a_truncated_record_of_version_2_is_refused(cut: int) -> None:
    data = record_of_version_2(talked(4))
    with pytest.raises(ValueError):
        ForesightState.from_bytes(data[: cut % len(data)])


ROW = (1.0, 0.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"messages": (SeenMessage(1, (1.0,)), SeenMessage(2, (1.0, 2.0)))},
        {"messages": (SeenMessage(1, (1.0,)),), "predicted": (1.0, 2.0)},
        {"messages": tuple(SeenMessage(n, ROW) for n in range(6))},
        {"messages": (SeenMessage(2), SeenMessage(1))},
        {"messages": (SeenMessage(1), SeenMessage(1))},
        {"messages": (SeenMessage(1, ROW), SeenMessage(2))},
        {"messages": (SeenMessage(1, ()),)},
        {"predicted": ()},
        {"predicted": (1.0,) * 5_000},
        {"predicted": (float("nan"),)},
        {"predicted": (float("inf"), 1.0)},
        {"predicted": (0.0, 0.0)},
        {"messages": (SeenMessage(1, distance=2.5),)},
        {"messages": (SeenMessage(1, distance=float("nan")),)},
        {"messages": tuple(SeenMessage(n) for n in range(201))},
        {"messages": (SeenMessage(1, reply=ROW),)},
        {"messages": (SeenMessage(1, ROW, reply=(1.0,)),)},
        {"messages": (SeenMessage(1, ROW, reply=(0.0, 0.0)),)},
        {"messages": (SeenMessage(1, ROW, reply=ROW),), "heard": True},
        {"messages": (SeenMessage(1, ROW),), "predicted": ROW, "heard": True},
    ],
)
def test_a_state_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="foresight state"):
        ForesightState(**wrong)


def test_the_last_five_vectors_and_the_last_two_hundred_distances_are_kept() -> None:
    state = talked(MAX_MESSAGES + 7)
    assert [vector[1] for vector in state.vectors] == [203.0, 204.0, 205.0, 206.0, 207.0]
    assert len(state.distances) == MAX_MESSAGES
    assert state.newest == 207


@given(st.permutations(range(1, 9)))
def test_the_order_in_which_vectors_come_does_not_matter(order: list[int]) -> None:
    """As long as no more than five are kept, late ones end where they would have been in time."""
    late = in_time = ForesightState().after(0, seen(1.0, 0.0, 0.0))
    for seq in order[: CONTEXT_VECTORS - 1]:
        late = late.after(seq, seen(1.0, float(seq), 0.0, distance=single(seq / 1000)))
    for seq in sorted(order[: CONTEXT_VECTORS - 1]):
        in_time = in_time.after(seq, seen(1.0, float(seq), 0.0, distance=single(seq / 1000)))
    assert late == in_time


def test_a_message_counts_once_however_often_its_vector_comes() -> None:
    state = talked(4).expecting((1.0, 0.0, 0.0), "p")
    assert state.after(3, seen(0.0, 0.0, 1.0, distance=0.9)) is state


def test_a_message_older_than_the_five_adds_its_distance_alone() -> None:
    state = talked(9).without(2).after(2, seen(0.0, 0.0, 1.0, distance=0.75))
    assert [v[1] for v in state.vectors] == [5.0, 6.0, 7.0, 8.0, 9.0]
    assert state.distances[0] == 0.75


def test_what_was_expected_is_used_up_by_the_next_message_whether_seen_or_not() -> None:
    state = talked(2).expecting((1.0, 0.0, 0.0), "p")
    assert state.after(3, seen(1.0, 0.0, 0.0)).predicted is None
    assert state.passed().predicted is None
    assert state.passed().messages == state.messages
    assert talked(2).passed() == talked(2)


def test_the_context_is_both_speakers_last_five_in_the_order_they_were_said() -> None:
    assert said(talked(1)) == [("person", 1)]
    assert said(talked(1, answered=True)) == [("person", 1), ("agent", 1)]
    answered = talked(9, answered=True)
    assert said(answered) == [
        ("agent", 7), ("person", 8), ("agent", 8), ("person", 9), ("agent", 9),
    ]  # fmt: skip
    before_its_reply = answered.after(10, seen(1.0, 10.0, 0.0))
    assert said(before_its_reply)[-3:] == [("person", 9), ("agent", 9), ("person", 10)]
    assert [vector[1] for vector in answered.vectors] == [5.0, 6.0, 7.0, 8.0, 9.0]


def test_a_reply_that_is_missing_is_left_out_and_may_still_come() -> None:
    state = talked(4).with_replies(reply_to(2, 4), ENCODER)
    assert said(state) == [
        ("person", 2), ("agent", 2), ("person", 3), ("person", 4), ("agent", 4),
    ]  # fmt: skip
    assert state.unheard == (3,)
    late = state.with_replies(reply_to(3), ENCODER)
    assert said(late) == said(talked(4, answered=True)) and late.unheard == ()


def test_only_replies_that_could_be_in_the_context_are_asked_for() -> None:
    assert talked(9).unheard == (7, 8, 9)
    assert ForesightState().unheard == ()
    assert talked(9).passed().unheard == (7, 8, 9)


def test_a_reply_joins_its_own_message_once_or_not_at_all() -> None:
    state = talked(3, answered=True)
    assert state.with_replies({3: (9.0, 9.0, 9.0)}, ENCODER) is state, "it is known"
    assert talked(3).with_replies(reply_to(4), ENCODER) == talked(3), "its message is not here"
    assert talked(9).with_replies(reply_to(2), ENCODER) == talked(9), "nor is its vector"
    assert talked(3).with_replies(reply_to(3), "other:bb:3") == talked(3)


def test_what_is_expected_is_made_anew_once_the_reply_is_heard() -> None:
    state = talked(3).expecting((1.0, 0.0, 0.0), "p")
    assert state.foreseen and not state.heard
    joined = state.with_replies(reply_to(3), ENCODER)
    assert joined.predicted == (1.0, 0.0, 0.0), "until there is better"
    assert not joined.foreseen
    anew = joined.expecting((0.0, 1.0, 0.0), "p")
    assert anew.foreseen and anew.heard
    for later in (anew.passed(), anew.without(3), anew.after(4, seen(1.0, 4.0, 0.0))):
        assert (later.predicted, later.heard, later.foreseen) == (None, False, False)


def test_a_message_taken_back_takes_its_reply_along_and_leaves_a_whole_context() -> None:
    state = talked(9, answered=True).without(9)
    assert said(state) == said(talked(8, answered=True))
    assert len(state.context) == CONTEXT_VECTORS


def test_another_encoder_of_the_same_dimension_starts_anew() -> None:
    state = talked(9).expecting((1.0, 0.0, 0.0), "p")
    after = state.after(10, seen(0.0, 1.0, 0.0, encoder="other:bb:3"))
    assert after == ForesightState("other:bb:3", messages=(SeenMessage(10, (0.0, 1.0, 0.0)),))
    assert state.measure((1.0, 0.0, 0.0), ENCODER)[1] is not None
    assert state.measure((1.0, 0.0, 0.0), "other:bb:3") == (None, None)


def test_a_late_vector_of_the_former_encoder_does_not_bring_it_back() -> None:
    state = talked(9).after(11, seen(0.0, 1.0, 0.0, encoder="other:bb:3"))
    assert state.after(10, seen(1.0, 0.0, 0.0)) is state


def test_a_message_taken_back_leaves_nothing_of_it() -> None:
    with_it = talked(7).after(8, seen(0.0, 0.0, 1.0, distance=1.5)).expecting((1.0, 0.0, 0.0), "p")
    without = with_it.without(8)
    assert without.distances == talked(7).distances
    assert without.vectors == talked(7).vectors[1:] and without.predicted is None
    assert rewound(with_it.to_bytes(), 8) == without.to_bytes()
    assert rewound(None, 8) is None


def test_distances_of_another_predictor_are_no_measure() -> None:
    state = talked(9).expecting((1.0, 0.0, 0.0), "p1")
    assert len(state.distances) == 8
    again = state.expecting((1.0, 0.0, 0.0), "p1")
    assert again.distances == state.distances
    other = state.expecting((1.0, 0.0, 0.0), "p2")
    assert other.distances == () and other.vectors == state.vectors


def test_surprise_begins_at_the_seventh_message() -> None:
    """The first has no prediction; five distances must be there before one is ranked among them."""
    state, surprises = ForesightState(), []
    for seq in range(1, 9):
        vector = (1.0, 0.1 * seq, 0.0)
        distance, surprise = state.measure(vector, ENCODER)
        surprises.append(surprise)
        state = state.after(seq, seen(*vector, distance=distance, surprise=surprise))
        assert state.last_surprise == surprise
        state = state.expecting((1.0, 0.0, 0.0), "p")
    assert surprises[:6] == [None] * 6
    assert surprises[6:] == [1.0, 1.0]
    assert surprises.index(1.0) == MIN_DISTANCES + 1


@given(states(), usable_rows(3), st.integers(1, 2**41))
def test_every_state_that_a_message_makes_is_a_state(
    state: ForesightState, row: tuple[float, ...], seq: int
) -> None:
    assume(state.dim in (None, 3))
    for encoder in (state.encoder, "other"):
        after = state.after(seq, Foresight(vector=row, encoder=encoder, distance=0.5))
        answered = after.with_replies(dict.fromkeys(after.unheard, row), encoder)
        for made in (after, answered, answered.expecting(row, "p"), answered.without(seq)):
            assert ForesightState.from_bytes(made.to_bytes()) == made
            assert len(made.vectors) <= CONTEXT_VECTORS and len(made.context) <= CONTEXT_VECTORS


def test_surprise_is_the_mid_rank_percentile_of_the_sessions_own_history() -> None:
    history = [0.1, 0.2, 0.2, 0.3, 0.4]
    assert percentile(0.0, history) == 0.0
    assert percentile(0.2, history) == pytest.approx((1 + 3) / 2 / 5)
    assert percentile(0.25, history) == pytest.approx(3 / 5)
    assert percentile(9.0, history) == 1.0
    assert percentile(0.2, history[:4]) is None


@given(st.lists(st.floats(0, 2), min_size=5, max_size=200), st.floats(0, 2), st.floats(0, 2))
def test_a_larger_distance_is_never_less_surprising(
    history: list[float], a: float, b: float
) -> None:
    low, high = sorted((a, b))
    less, more = percentile(low, history), percentile(high, history)
    assert less is not None and more is not None
    assert 0 <= less <= more <= 1


@given(st.lists(distances, min_size=MIN_DISTANCES, max_size=50, unique=True))
def test_over_a_whole_history_surprise_is_even(history: list[float]) -> None:
    """Each value ranked among all: the mean is one half, so surprise says no more of a chatty
    session than of a quiet one."""
    ranks = [percentile(value, history) for value in history]
    assert sum(r for r in ranks if r is not None) / len(ranks) == pytest.approx(0.5)
    assert all(a != b for a, b in itertools.pairwise(sorted(r or 0.0 for r in ranks)))


def test_cosine_distance_has_its_known_values() -> None:
    assert cosine_distance((1, 0), (2, 0)) == pytest.approx(0)
    assert cosine_distance((1, 0), (0, 3)) == pytest.approx(1)
    assert cosine_distance((1, 0), (-1, 0)) == pytest.approx(2)
