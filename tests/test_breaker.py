"""The circuit breaker: what opens it, what closes it, and what leaves it alone."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from brain.breaker import CircuitBreaker
from brain.errors import (
    BreakerOpen,
    InputError,
    LimbicError,
    ProtocolError,
    RateLimited,
    RemoteRejected,
    RemoteTimeout,
    RemoteUnavailable,
    SidecarDown,
    StreamBroken,
)
from brain.settings import BreakerSettings
from tests.fakes.clock import ManualClock
from tests.fakes.rig import Emitted


def make(
    failures: int = 3, window_s: float = 30, open_s: float = 5
) -> tuple[CircuitBreaker, ManualClock, Emitted]:
    clock, emitted = ManualClock(jump=True), Emitted()
    settings = BreakerSettings(failures=failures, window_s=window_s, open_s=open_s)
    return CircuitBreaker(settings, remote="llm", clock=clock, emit=emitted), clock, emitted


def trip(breaker: CircuitBreaker, times: int = 3) -> None:
    for _ in range(times):
        breaker.check()
        breaker.failure()


def test_it_opens_at_the_configured_number_of_failures_and_not_before() -> None:
    breaker, _, emitted = make(failures=5)
    trip(breaker, 4)
    assert breaker.state == "closed"
    trip(breaker, 1)
    assert breaker.state == "open"
    with pytest.raises(BreakerOpen, match=r"the llm failed repeatedly .* another 5\.0 s"):
        breaker.check()
    assert emitted.named("breaker_opened") == [{"remote": "llm", "open_s": 5.0}]


def test_a_success_forgets_earlier_failures() -> None:
    breaker, _, _ = make()
    for _ in range(10):
        trip(breaker, 2)
        breaker.success()
    assert breaker.state == "closed"


async def test_failures_older_than_the_window_do_not_count() -> None:
    breaker, clock, _ = make(window_s=10)
    trip(breaker, 2)
    await clock.sleep(10.5)
    trip(breaker, 2)
    assert breaker.state == "closed"
    await clock.sleep(10)  # the window's last moment
    trip(breaker, 1)
    assert breaker.state == "open"


async def test_one_probe_passes_when_half_open_and_its_success_closes() -> None:
    breaker, clock, emitted = make()
    trip(breaker)
    await clock.sleep(5)
    assert breaker.state == "half_open"
    breaker.check()
    with pytest.raises(BreakerOpen, match="one request is testing it"):
        breaker.check()
    breaker.success()
    assert breaker.state == "closed"
    breaker.check()
    assert [name for name, _ in emitted.events] == [
        "breaker_opened",
        "breaker_half_open",
        "breaker_closed",
    ]


async def test_a_failed_probe_opens_again_for_the_whole_time() -> None:
    breaker, clock, _ = make()
    trip(breaker)
    await clock.sleep(7)
    breaker.check()
    breaker.failure()
    await clock.sleep(4.9)
    assert breaker.state == "open"
    await clock.sleep(0.2)
    assert breaker.state == "half_open"


async def test_a_cancelled_probe_frees_its_slot_for_the_next() -> None:
    breaker, clock, _ = make()
    trip(breaker)
    await clock.sleep(5)
    with pytest.raises(asyncio.CancelledError), breaker.guard():
        raise asyncio.CancelledError
    assert breaker.state == "half_open"
    with breaker.guard():
        pass
    assert breaker.state == "closed"


def test_calls_begun_before_it_opened_do_not_prolong_it() -> None:
    breaker, clock, _ = make()
    trip(breaker)
    asyncio.run(clock.sleep(3))
    breaker.failure()
    breaker.failure()
    asyncio.run(clock.sleep(2))
    assert breaker.state == "half_open"


async def test_a_refusal_proves_the_remote_alive() -> None:
    breaker, clock, _ = make()

    def refuse() -> None:
        with pytest.raises(RemoteRejected), breaker.guard():
            raise RemoteRejected("400: no such model")

    for _ in range(5):
        trip(breaker, 2)
        refuse()
    assert breaker.state == "closed"
    trip(breaker)
    await clock.sleep(5)
    refuse()
    assert breaker.state == "closed"


@pytest.mark.parametrize(
    ("error", "opens"),
    [
        (RemoteUnavailable("x"), True),
        (RemoteTimeout("x"), True),
        (ProtocolError("x"), True),
        (StreamBroken("x"), True),
        (RemoteRejected("x"), False),
        (RateLimited("x"), False),
        (SidecarDown("x"), False),
        (InputError("x"), False),
    ],
    ids=lambda value: getattr(value, "code", ""),
)
def test_only_a_remote_that_fails_counts(error: LimbicError, opens: bool) -> None:
    breaker, _, _ = make(failures=1)
    with pytest.raises(type(error)), breaker.guard():
        raise error
    assert (breaker.state == "open") is opens


class BreakerMachine(RuleBasedStateMachine):
    """Against a model that knows only: when it opened, and who holds the probe."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker, self.clock, _ = make(failures=3, window_s=30, open_s=5)
        self.running = 0
        self.failed: list[float] = []
        self.opened_at: float | None = None
        self.probing = False

    @rule(seconds=st.floats(0, 12))
    def time_passes(self, seconds: float) -> None:
        asyncio.run(self.clock.sleep(seconds))

    @rule()
    def ask(self) -> None:
        now = self.clock.monotonic()
        half = self.opened_at is not None and now >= self.opened_at + 5
        allowed = self.opened_at is None or (half and not self.probing)
        if allowed:
            self.breaker.check()
            self.running += 1
            self.probing = self.opened_at is not None
        else:
            with pytest.raises(BreakerOpen):
                self.breaker.check()

    @precondition(lambda self: self.running)
    @rule()
    def succeed(self) -> None:
        self.running -= 1
        self.breaker.success()
        self.opened_at, self.probing, self.failed = None, False, []

    @precondition(lambda self: self.running)
    @rule()
    def fail(self) -> None:
        self.running -= 1
        now = self.clock.monotonic()
        self.breaker.failure()
        if self.opened_at is None:
            self.failed = [at for at in [*self.failed, now] if now - at <= 30]
            if len(self.failed) == 3:
                self.opened_at, self.failed = now, []
        elif self.probing:
            self.opened_at, self.probing = now, False

    @precondition(lambda self: self.running)
    @rule()
    def give_up(self) -> None:
        self.running -= 1
        self.breaker.release()
        self.probing = False

    @invariant()
    def states_agree(self) -> None:
        now = self.clock.monotonic()
        if self.opened_at is None:
            expected = "closed"
        else:
            expected = "half_open" if now >= self.opened_at + 5 else "open"
        assert self.breaker.state == expected


BreakerMachine.TestCase.settings = hypothesis_settings(max_examples=60, stateful_step_count=30)
TestBreakerMachine = BreakerMachine.TestCase
