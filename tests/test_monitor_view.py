"""What ``limbic monitor`` draws: everything that counts, in whatever room there is."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from brain.cli import monitor_view as view
from brain.cli.monitor_feed import Feed
from brain.cli.monitor_view import feeling, plain_rows, rows_of

FULL: dict[str, Any] = {
    "status": "degraded", "time": "2026-01-01T12:31:00.000Z", "uptime_s": 300.0,
    "problems": ["cahm: degraded, ended five times within 30 s"],
    "affect": {
        "last": {"turn_id": "t1", "valence": -0.6, "intimacy": 0.7, "tension": 0.5,
                 "confidence": 0.82, "latency_ms": 9.4, "tags": ["hostile_intimacy"], "late": True},
        "latency_ms": {"p50": 9.0, "p95": 14.0, "n": 4}, "on_time": 3, "late": 1, "missed": 0,
        "down": 2,
    },
    "foresight": {"surprise": 0.8, "on_time": 2, "late": 0, "missed": 0, "down": 0,
                  "latency_ms": {"p50": 3.0, "p95": 4.0, "n": 2}},
    "hormones": {"dopamine": 0.4, "serotonin": 0.5, "oxytocin": 0.3, "cortisol": 0.61,
                 "adrenaline": 0.2, "melatonin": 0.1},
    "behaviour": {"directive": "gentle, a little guarded; short sentences"},
    "llm": {"ttft_ms": {"p50": 240.0, "p95": 800.0, "n": 12}, "tokens_per_s": 31.0, "retries": 1,
            "breaker": "closed"},
    "turns": {"done": 12, "failed": 1},
    "sidecars": {"cahm": {"state": "degraded", "rss_mb": 96, "restarts": 5},
                 "llm": {"state": "ready", "rss_mb": 300, "restarts": 0}},
    "recent": [
        {"turn_id": "2d3afbe8f9ba", "at": "2026-01-01T12:30:00.000Z", "status": "done",
         "affect": {"valence": -0.6, "intimacy": 0.7, "tension": 0.5, "confidence": 0.82,
                    "latency_ms": 9.4, "tags": ["hostile_intimacy"], "late": True},
         "reasoning": "tension: “liar” +0.40, “you” +0.10; valence: “liar” -0.52, “again” -0.07",
         "error": None, "sides": {"affect": {"outcome": "late", "ms": 812.0}},
         "timings": {"first_token_ms": 240.0, "total_ms": 1900.0}},
        {"turn_id": "aaaabbbbcccc", "at": "2026-01-01T12:30:10.000Z", "status": "failed",
         "affect": None, "reasoning": "",
         "error": {"code": "RemoteTimeout", "message": "the llm sent no first token in 30 s"},
         "sides": {"affect": {"outcome": "down", "ms": 0.1, "reason": "BreakerOpen: not asked"}},
         "timings": {"total_ms": 30000.0}},
        {"turn_id": "ddddeeee", "at": "2026-01-01T12:30:20.000Z", "status": "cancelled",
         "affect": None, "reasoning": "", "error": None,
         "sides": {"foresight": {"outcome": "missed", "ms": 5000.0}},
         "timings": {"total_ms": 1200.0}},
    ],
}  # fmt: skip
ODD = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                ["affect", "last", "hormones", "valence", "tags", "sidecars", "late", "recent",
                 "turn_id", "at", "error", "message", "sides", "timings", "total_ms", "latency_ms",
                 "problems", "turns", "status", "foresight", "outcome", "late_applied", "event"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=14,
)  # fmt: skip


def drawn(
    snapshot: dict[str, Any], *, width: int = 80, height: int = 24, problem: str = "",
    feed: Feed | None = None, ascii_only: bool = False,
) -> list[str]:  # fmt: skip
    """The lines of a screen."""
    if feed is None:
        feed = Feed()
        feed.take_snapshot(snapshot)
    console = Console(width=width, height=height, color_system=None)
    with console.capture() as found:
        console.print(
            view.frame(snapshot, feed, title="limbic", problem=problem, empty="no turn yet",
                       width=width, height=height, ascii_only=ascii_only)
        )  # fmt: skip
    return found.get().rstrip("\n").split("\n")


def test_everything_is_on_a_screen_of_80_by_24() -> None:
    lines = drawn(FULL)
    text = "\n".join(lines)
    assert len(lines) == 24 and {cell_len(line) for line in lines} == {80}
    for words in (
        "problem cahm: degraded, ended five times", "-0.60", "dopamine", "melatonin", "0.61",
        "distressed, close (late)", "hostile_intimacy", "confidence 0.82", "9 ms",
        "12 done · 1 failed", "first token p50 240 ms p95 800 ms", "31 tokens/s", "retries 1",
        "p50 9 ms p95 14 ms · on time 3 · late 1 · missed 0 · down 2", "surprise 0.80",
        "a little guarded", "restarts 5",
        "failed after 30.0 s: RemoteTimeout: the llm sent no first token in 30 s",
        "affect down (BreakerOpen: not asked)", "cancelled after 1.2 s: stopped before",
        "foresight missed after 5.0 s", "affect late after 812 ms", "“liar” +0.40",
    ):  # fmt: skip
        assert words in text, words


@pytest.mark.parametrize("size", [(60, 15), (40, 12), (30, 9), (20, 6), (10, 3), (200, 60)])
@pytest.mark.parametrize("problem", ["", "no brain at http://127.0.0.1:8765: Connection refused"])
def test_it_fits_every_screen_and_the_last_turn_is_always_there(
    size: tuple[int, int], problem: str
) -> None:
    width, height = size
    lines = drawn(FULL, width=width, height=height, problem=problem)
    assert len(lines) <= height and max(map(cell_len, lines)) <= width
    assert "12:30:20 d" in "\n".join(lines) or width < 20


def test_what_counts_least_goes_first() -> None:
    text = "\n".join(drawn(FULL, width=60, height=15))
    for words in ("problem", "valence", "-0.60", "cortisol", "distressed"):
        assert words in text
    for words in ("tone", "parts", "foresight  "):
        assert words not in text


def test_many_problems_do_not_hide_the_scores() -> None:
    problems = [f"part {n}: gone, and nobody knows where it is or when it comes" for n in range(9)]
    text = "\n".join(drawn(FULL | {"problems": problems}, width=60, height=15))
    assert "part 0" in text and "valence" in text and "distressed" in text


def test_a_problem_is_told_above_what_was_known() -> None:
    lines = drawn(FULL, problem="no brain at http://127.0.0.1:8765: Connection refused")
    assert "no brain at http://127.0.0.1:8765: Connection refused" in lines[1]
    assert "12 done" in "\n".join(lines)


def test_many_events_do_not_push_the_turns_out() -> None:
    feed = Feed()
    feed.take_snapshot(FULL)
    for number in range(60):
        line = {"event": "sidecar_ended", "time": f"2026-01-01T12:40:{number:02}.000Z",
                "name": "cahm", "reason": "killed by SIGKILL, " * 9}  # fmt: skip
        feed.take_line(orjson.dumps(line).decode())
    lines = drawn(FULL, feed=feed)
    text = "\n".join(lines)
    assert "cancelled after 1.2 s" in text and "12:40:59 sidecar_ended cahm: killed" in text
    assert 1 < sum("sidecar_ended" in line for line in lines) < 5


def test_before_anything_is_known_the_screen_says_so() -> None:
    lines = drawn({}, width=60, height=15)
    assert len(lines) == 15 and "no turn yet" in "\n".join(lines)


@given(st.text(max_size=40), st.integers(1, 100), st.integers(1, 30))
def test_no_text_is_wider_than_the_screen_or_acts_on_it(text: str, width: int, height: int) -> None:
    """Wide characters take two cells; control characters are shown as escapes."""
    snapshot = {
        "hormones": {text: 0.5},
        "problems": [text],
        "behaviour": {"directive": text},
        "affect": {"last": {"valence": 0.1, "tags": [text]}},
        "recent": [{"turn_id": text, "status": "done", "reasoning": text * 9,
                    "error": {"code": "X", "message": text * 3}}],
    }  # fmt: skip
    lines = drawn(snapshot, width=width, height=height, problem=text)
    assert len(lines) <= height and max(map(cell_len, lines)) <= width
    assert not any(ord(char) < 32 or ord(char) == 0x7F for line in lines for char in line)


def test_markup_is_text() -> None:
    snapshot = {"recent": [{"turn_id": "t", "reasoning": "\x1b[2Jgone [bold]x[/bold]"}]}
    assert "\\x1b[2Jgone [bold]x[/bold]" in "\n".join(drawn(snapshot))


@given(ODD)
def test_no_snapshot_and_no_log_line_however_odd_breaks_it(value: Any) -> None:
    snapshot = value if isinstance(value, dict) else {"affect": value, "recent": [value]}
    assert len(drawn(snapshot, width=60, height=15)) <= 15
    assert all(isinstance(row.text, str) for row in rows_of(snapshot))
    feed = Feed()
    for name in ("turn", "affect", "affect_reasoning", "side_down", "late_affect", "sidecar_ended"):
        try:
            feed.take_line(orjson.dumps({"event": name, "turn_id": "t", **snapshot}).decode())
        except orjson.JSONEncodeError:  # an integer or a text that JSON cannot hold
            return
    drawn(feed.as_snapshot(), feed=feed)
    list(feed.fresh())


def test_plain_rows_have_neither_bars_nor_boxes() -> None:
    text = "\n".join(plain_rows(FULL))
    assert "valence    -0.60" in text and "cortisol   0.61" in text
    assert not any(0x2500 <= ord(char) <= 0x259F for char in text)


def test_bars_are_ascii_where_nothing_else_can_be_shown() -> None:
    text = "\n".join(drawn(FULL, ascii_only=True))
    assert "#" in text and "█" not in text


def test_a_feeling_has_a_word() -> None:
    assert feeling({"valence": -0.5, "tension": -0.5}) == "numb"
    assert feeling({"valence": 0.5, "intimacy": -0.4}) == "pleased, distant"
    assert feeling({}) == "even"


def test_a_bar_shows_where_a_score_is_in_its_range() -> None:
    assert [view.bar(share, 4, "#-") for share in (0.0, 0.25, 1.0, 7.0, -1.0)] == [
        "----", "#---", "####", "####", "----",
    ]  # fmt: skip
    shares = {row.name: row.share for row in rows_of(FULL)}
    assert shares["valence"] == pytest.approx(0.2), "a score begins at -1"
    assert shares["cortisol"] == pytest.approx(0.61), "a level begins at 0"


def test_of_an_odd_number_of_levels_the_first_column_has_more() -> None:
    few = {"affect": {"last": {}}, "hormones": {"a": 0.1, "b": 0.2, "c": 0.3}}
    lines = [line.text.split() for line in view.upper(rows_of(few), width=60)]
    assert [[word for word in line if word in "abc"] for line in lines] == [["a", "c"], ["b"]]


def test_an_open_breaker_is_a_problem_and_failed_turns_are_a_warning() -> None:
    snapshot = {"llm": {"breaker": "open"}, "turns": {"done": 3, "failed": 1}}
    problem, turns = rows_of(snapshot)
    assert (problem.text, problem.style) == ("the breaker of the llm is open", "bad")
    assert (turns.text, turns.style) == ("3 done · 1 failed", "warn")
    (fine,) = rows_of({"llm": {"breaker": "closed"}, "turns": {"done": 3, "failed": 0}})
    assert fine.style == ""


def test_a_side_model_that_was_never_asked_has_no_line() -> None:
    silent = {"on_time": 0, "late": 0, "missed": 0, "down": 0,
              "latency_ms": {"p50": 0.0, "p95": 0.0, "n": 0}}  # fmt: skip
    assert rows_of({"affect": silent, "foresight": silent}) == []
