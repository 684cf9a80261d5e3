"""The pure parts of supervision: restart policy, line splitting, handshake, environment."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain.errors import ProtocolError
from brain.handshake import Handshake, LineSplitter
from brain.processes import child_env
from brain.restart import RestartPolicy
from brain.settings import SidecarSettings, SupervisorSettings
from brain.startup import StartDeadline
from tests.fakes.clock import ManualClock

HELLO = {"event": "hello", "name": "llm", "port": 8081, "pid": 7}


def policy(seed: int = 0, **changes: object) -> RestartPolicy:
    return RestartPolicy(SupervisorSettings(**changes), random.Random(seed))


def test_first_crash_restarts_at_once_and_later_ones_wait_longer_up_to_the_limit() -> None:
    rules = policy(backoff_base_ms=100, backoff_max_ms=1_000, intensity_restarts=100)
    delays = [rules.ended(now=100.0 * n, ready_s=1.0).delay_s for n in range(12)]
    assert delays[0] == 0
    for number, delay in enumerate(delays[1:]):
        full = min(0.1 * 2**number, 1.0)
        assert full / 2 <= delay <= full


def test_more_than_five_ends_within_the_window_are_a_crash_loop() -> None:
    rules = policy()
    outcomes = [rules.ended(now=n * 1.0, ready_s=0.5) for n in range(6)]
    assert [outcome.degraded for outcome in outcomes] == [False] * 5 + [True]
    assert outcomes[-1].delay_s == SupervisorSettings().slow_retry_s


def test_ends_spread_wider_than_the_window_are_not_a_crash_loop() -> None:
    rules = policy()
    assert not any(rules.ended(now=n * 7.0, ready_s=5.0).degraded for n in range(50))


def test_the_last_moment_of_the_window_counts() -> None:
    rules = policy()
    outcomes = [rules.ended(now=n * 6.0, ready_s=5.0).degraded for n in range(6)]
    assert outcomes == [False] * 5 + [True]


def test_a_person_who_restarts_gives_a_fresh_start() -> None:
    rules = policy()
    for n in range(5):
        rules.ended(now=float(n), ready_s=0.5)
    rules.reset()
    first = rules.ended(now=5.0, ready_s=0.5)
    assert (first.delay_s, first.degraded) == (0.0, False)


def test_a_child_that_never_becomes_ready_degrades_however_slowly_it_fails() -> None:
    rules = policy()
    outcomes = [rules.ended(now=n * 1_000.0, ready_s=None).degraded for n in range(6)]
    assert outcomes == [False] * 5 + [True]


def test_degraded_is_left_only_by_a_life_that_stays_ready_for_a_whole_window() -> None:
    rules = policy()
    for n in range(6):
        rules.ended(now=float(n), ready_s=None)
    assert rules.ended(now=1_000.0, ready_s=29.0).degraded
    assert rules.ended(now=2_000.0, ready_s=30.0).delay_s == 0


def test_a_persons_restart_clears_the_record() -> None:
    rules = policy()
    for n in range(6):
        rules.ended(now=float(n), ready_s=None)
    rules.reset()
    assert rules.ended(now=7.0, ready_s=None) == policy().ended(now=7.0, ready_s=None)


@given(
    gaps=st.lists(st.floats(0, 200), min_size=1, max_size=60),
    readies=st.lists(st.none() | st.floats(0, 60), min_size=60, max_size=60),
    seed=st.integers(0, 2**16),
)
def test_restarts_within_any_window_never_exceed_the_intensity_limit(
    gaps: list[float], readies: list[float | None], seed: int
) -> None:
    settings = SupervisorSettings()
    rules = policy(seed)
    now, quick = 0.0, []
    for gap, ready_s in zip(gaps, readies, strict=False):
        lived = min(gap, ready_s) if ready_s is not None else None
        now += gap
        outcome = rules.ended(now, lived)
        assert 0 <= outcome.delay_s <= max(settings.backoff_max_ms / 1000, settings.slow_retry_s)
        if not outcome.degraded:
            quick.append(now)
            assert sum(now - t <= settings.intensity_window_s for t in quick) <= 6
        now += outcome.delay_s


@given(st.lists(st.binary(max_size=40), max_size=30), st.integers(1, 20))
def test_lines_do_not_depend_on_how_the_bytes_are_cut(chunks: list[bytes], limit: int) -> None:
    whole, cut = LineSplitter(limit), LineSplitter(limit)
    expected = whole.feed(b"".join(chunks)) + whole.close()
    got = [line for chunk in chunks for line in cut.feed(chunk)] + cut.close()
    assert got == expected
    assert cut.oversized == whole.oversized
    assert all(len(line) <= limit and b"\n" not in line for line in got)


def test_an_oversized_line_is_dropped_whole_or_cut_and_counted() -> None:
    data = b"12345\n1234\n123456789\r\nab"
    dropping, cutting = LineSplitter(4), LineSplitter(4, keep_prefix=True)
    assert dropping.feed(data) + dropping.close() == [b"1234", b"ab"]
    assert cutting.feed(data) + cutting.close() == [b"1234", b"1234", b"1234", b"ab"]
    assert dropping.oversized == cutting.oversized == 2


@given(st.binary(max_size=300) | st.from_regex(rb'\{"event": ?"(hello|progress)".*\}'))
def test_no_output_of_a_child_breaks_the_handshake(line: bytes) -> None:
    talk = Handshake("llm")
    try:
        kind = talk.feed(line, pid=7)
    except ProtocolError as error:
        assert "handshake" in str(error)
    else:
        assert (kind == "junk") == (talk.junk == 1)
        assert (kind == "hello") == (talk.hello is not None)


def test_handshake_takes_progress_and_hello_and_counts_the_rest() -> None:
    talk = Handshake("llm")
    assert talk.feed(b"Loading checkpoint shards", 7) == "junk"
    assert talk.feed(b'{"event": "progress", "detail": "40 %"}', 7) == "progress"
    assert talk.feed(b'{"event": "progress", "detail": 40}', 7) == "junk"
    assert talk.detail == "40 %"
    assert talk.feed(json.dumps({**HELLO, "extra": 1}).encode(), 7) == "hello"
    assert talk.hello is not None and talk.hello.port == 8081
    assert talk.junk == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "cahm"}, "says it is 'cahm', not 'llm'"),
        ({"pid": 8}, "says pid 8, but 7 was started"),
        ({"port": 0}, "port"),
        ({"port": None}, "port"),
    ],
)
def test_a_hello_that_cannot_be_right_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        Handshake("llm").feed(json.dumps({**HELLO, **change}).encode(), 7)


async def test_start_deadline_extends_on_progress_but_never_past_the_hard_cap() -> None:
    clock = ManualClock(jump=True)
    deadline = StartDeadline(clock, SidecarSettings(ready_deadline_s=30, ready_hard_cap_s=100))
    assert deadline.remaining_s() == 30
    for _ in range(4):
        await clock.sleep(20)
        deadline.extend()
    assert deadline.remaining_s() == 20
    await clock.sleep(20)
    assert deadline.remaining_s() == 0
    assert deadline.describe() == "not ready within the hard cap of 100 s"


def test_children_get_an_allow_list_of_the_environment() -> None:
    ours = {
        "PATH": "/bin",
        "LC_ALL": "C",
        "LIMBIC_X": "1",
        "AWS_SECRET": "s",
        "OPENAI_API_KEY": "k",
    }
    assert child_env(ours, {"EXTRA": "e", "PATH": "/usr/bin"}) == {
        "PATH": "/usr/bin",
        "LC_ALL": "C",
        "LIMBIC_X": "1",
        "EXTRA": "e",
    }
