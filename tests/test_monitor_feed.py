"""Turns put together from pieces: whatever their order and source, each is told once and whole."""

from __future__ import annotations

import itertools
from typing import Any

import orjson
import pytest

from brain.cli.monitor_feed import KEPT, Feed
from brain.logtail import Mark

SCORES = {"valence": -0.6, "intimacy": 0.7, "tension": 0.5, "confidence": 0.82, "latency_ms": 9.4,
          "tags": ["hostile_intimacy"]}  # fmt: skip
PIECES: dict[str, dict[str, Any]] = {
    "scores": {"event": "affect", "time": "2026-01-01T12:30:00.700Z", "turn_id": "aaaabbbbcccc",
               "text": "you liar", "late": True, "reasoning": "", **SCORES},
    "reason": {"event": "affect_reasoning", "time": "2026-01-01T12:30:02.500Z",
               "turn_id": "aaaabbbbcccc", "reasoning": "tension: “liar” +0.40"},
    "end": {"event": "turn", "time": "2026-01-01T12:30:02.000Z", "turn_id": "aaaabbbbcccc",
            "status": "done", "affect": None, "text": "you liar", "error": None,
            "timings": {"first_token_ms": 240.0, "total_ms": 1900.0},
            "sides": {"affect": {"outcome": "late", "ms": 600.0},
                      "foresight": {"outcome": "late", "ms": 600.0}},
            "late_applied": [{"side": "affect", "turn_id": "zzzzyyyyxxxx", "weight": 0.8}]},
    "given up": {"event": "side_missed", "time": "2026-01-01T12:30:05.000Z",
                 "turn_id": "aaaabbbbcccc", "side": "foresight", "limit_ms": 5000.0},
}  # fmt: skip
WHOLE = [
    "12:30:00 aaaabbbb V-0.60 I+0.70 T+0.50 c0.82 9 ms late · hostile_intimacy"
    " · first token 240 ms · total 1.9 s",
    "12:30:00 aaaabbbb affect late after 600 ms · foresight missed after 5.0 s"
    " · late affect of zzzzyyyy joined",
    "12:30:00 aaaabbbb “you liar” why: tension: “liar” +0.40",
]


def told(*lines: dict[str, Any]) -> list[str]:
    feed = Feed()
    for line in lines:
        feed.take_line(orjson.dumps(line).decode())
    return list(feed.fresh())


@pytest.mark.parametrize("order", list(itertools.permutations(PIECES)), ids="-".join)
def test_a_turn_is_whole_whatever_the_order_of_its_pieces(order: tuple[str, ...]) -> None:
    assert told(*(PIECES[name] for name in order)) == WHOLE


def test_each_line_is_given_once_and_what_joins_later_is_given_alone() -> None:
    feed = Feed()
    found = []
    for name in ("scores", "end", "given up", "reason"):
        feed.take_line(orjson.dumps(PIECES[name]).decode())
        found.append(list(feed.fresh()))
    assert found[0] == []  # it has not ended yet
    assert found[1][0] == WHOLE[0] and "why" not in "".join(found[1])
    assert found[2] == [WHOLE[1]]
    assert found[3] == [WHOLE[2]]


def test_the_same_turn_from_snapshot_and_log_is_one() -> None:
    feed = Feed()
    feed.take_line(orjson.dumps(PIECES["end"]).decode())
    recent = {"turn_id": "aaaabbbbcccc", "at": "2026-01-01T12:30:02.001Z", "status": "done",
              "affect": SCORES, "reasoning": "because", "error": None, "sides": {},
              "timings": {}}  # fmt: skip
    feed.take_snapshot({"recent": [recent]})
    feed.take_snapshot({"recent": [recent]})
    assert len(feed.items()) == 1
    assert "why: because" in "\n".join(feed.fresh())


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        ("failed", {"code": "RemoteTimeout", "message": "no first\ntoken in 30 s"},
         "failed after 2.0 s: RemoteTimeout: no first token in 30 s"),
        ("partial", {"code": "StreamBroken", "message": "the llm broke off"},
         "partial after 2.0 s: StreamBroken: the llm broke off"),
        ("cancelled", None, "cancelled after 2.0 s: stopped before its reply was whole"),
    ],
)  # fmt: skip
def test_a_turn_that_went_wrong_says_why(status: str, error: Any, words: str) -> None:
    line = {"event": "turn", "time": "2026-01-01T12:30:00.000Z", "turn_id": "t", "status": status,
            "error": error, "sides": {}, "timings": {"total_ms": 2000.0}}  # fmt: skip
    assert told(line) == ["12:30:00 t no scores", f"12:30:00 t {words}"]


def test_a_side_model_that_is_down_says_why() -> None:
    line = {**PIECES["end"], "late_applied": [], "sides": {
        "affect": {"outcome": "down", "ms": 0.1, "reason": "BreakerOpen: cahm failed too often"},
        "recall": {"outcome": "on_time", "ms": 3.0}}}  # fmt: skip
    assert "12:30:02 aaaabbbb affect down (BreakerOpen: cahm failed too often)" in told(line)


def test_a_late_answer_that_is_not_used_is_told_with_its_turn() -> None:
    time = "2026-01-01T12:30:01.000Z"
    late = {"event": "late_affect", "time": time, "turn_id": "t", "age_ms": 814.0}
    dropped = {"event": "late_dropped", "time": time, "turn_id": "t", "side": "affect",
               "reason": "failed"}  # fmt: skip
    end = {"event": "turn", "time": time, "turn_id": "t", "status": "failed", "timings": {},
           "sides": {"affect": {"outcome": "late", "ms": 600.0}}}  # fmt: skip
    for order in itertools.permutations((late, dropped, end)):
        assert told(*order)[2] == "12:30:01 t affect late after 814 ms (not used: failed)"


def test_events_are_told_and_routine_ones_are_not() -> None:
    found = told(
        {"event": "start", "time": "2026-01-01T12:29:00.000Z"},
        {"event": "turn", "time": "2026-01-01T12:30:00.000Z", "turn_id": "t", "status": "done"},
        {"event": "affect_call", "time": "2026-01-01T12:30:00.000Z", "turn_id": "t"},
        {
            "event": "sidecar_ended",
            "time": "2026-01-01T12:30:01.000Z",
            "name": "cahm",
            "code": -9,
            "reason": "killed",
        },
        {"event": "late_dropped", "time": "2026-01-01T12:30:02.000Z", "turn_id": "t", "side": "x"},
    )
    assert found == ["12:29:00 brain started", "12:30:01 sidecar_ended cahm: killed · code -9",
                     "12:30:02 late_dropped x · turn_id t"]  # fmt: skip


def test_lines_that_are_no_events_are_left_out_and_a_gap_in_the_log_is_told() -> None:
    feed = Feed()
    for line in ("not json", "[]", "{}", '{"event": 3}', '{"event": "turn", "turn_id": 7}'):
        feed.take_line(line)
    feed.take_line(Mark("… (2 rotated files of events.jsonl gone)"))
    assert list(feed.fresh()) == ["… (2 rotated files of events.jsonl gone)"]


def test_another_brain_under_the_same_address_is_told_once() -> None:
    feed = Feed()
    for uptime in (100.0, 101.0, 2.0, 3.0):
        feed.take_snapshot({"uptime_s": uptime, "time": "2026-01-01T12:30:00.000Z"})
    assert list(feed.fresh()) == ["12:30:00 brain restarted"]


def test_a_chat_that_serves_no_snapshot_is_known_from_its_log() -> None:
    feed = Feed()
    record = {**PIECES["end"], "hormones_after": {"cortisol": 0.6}, "surprise": 0.9,
              "behaviour": {"directive": "calm"},
              "sides": {"affect": {"outcome": "on_time", "ms": 12.0}}}  # fmt: skip
    feed.take_line(orjson.dumps(record).decode())
    feed.take_line(orjson.dumps(PIECES["scores"]).decode())
    found = feed.as_snapshot()
    assert found["affect"]["last"]["valence"] == -0.6 and found["affect"]["on_time"] == 1
    assert found["hormones"] == {"cortisol": 0.6} and found["turns"] == {"done": 1}
    assert feed.last_turn_at == "2026-01-01T12:30:02.000Z"


def test_only_the_latest_are_kept() -> None:
    feed = Feed()
    for number in range(KEPT + 50):
        feed.take_line(orjson.dumps({"event": "e", "number": number}).decode())
    assert len(feed.items()) == KEPT
    assert list(feed.fresh())[-1] == f"e · number {KEPT + 49}"
