"""Hormone state: decay, impulses, couplings."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from brain.persona import load_persona
from brain.schema import Affect
from brain.settings import load_settings
from brain.state import (
    DAY_S,
    Event,
    HormoneModel,
    HormoneState,
    Level,
    advance,
    affect_event,
    late_weight,
    message_event,
    surprise_event,
)
from brain.state_engine import StateEngine
from tests.fakes.clock import ManualClock

MODEL = load_persona("companion", load_settings(None, environ={})).hormones
NAMES = sorted(MODEL.levels)
axis = st.floats(-1, 1, allow_nan=False)
unit = st.floats(0, 1, allow_nan=False)
seconds = st.floats(0, 1e7, allow_nan=False)
states = st.builds(
    HormoneState,
    levels=st.fixed_dictionaries(dict.fromkeys(NAMES, unit)),
    at_s=st.floats(0, 4e9, allow_nan=False),
)
triggers = st.dictionaries(
    st.sampled_from(["valence", "intimacy", "tension", "surprise", "message"]), axis
)
events = st.builds(Event, triggers=triggers, weight=unit)


def close(a: HormoneState, b: HormoneState) -> bool:
    return all(math.isclose(a.levels[n], b.levels[n], abs_tol=1e-6) for n in NAMES)


@given(states, seconds, seconds)
def test_advancing_twice_equals_advancing_once(state: HormoneState, a: float, b: float) -> None:
    twice = advance(MODEL, advance(MODEL, state, dt_s=a), dt_s=b)
    assert close(twice, advance(MODEL, state, dt_s=a + b))


@given(states, seconds, st.lists(events, max_size=8))
def test_levels_never_leave_the_unit_interval(
    state: HormoneState, dt: float, happened: list[Event]
) -> None:
    after = advance(MODEL, state, dt_s=dt, events=happened)
    assert all(0.0 <= level <= 1.0 for level in after.levels.values())


@given(states)
def test_a_long_sleep_brings_every_level_to_rest(state: HormoneState) -> None:
    rested = advance(MODEL, state, dt_s=30 * 86_400)
    for name, level in MODEL.levels.items():
        assert rested.levels[name] == pytest.approx(level.target(rested.at_s), abs=1e-6)


def test_half_of_the_distance_is_left_after_one_half_life() -> None:
    state = HormoneState(levels={**MODEL.initial().levels, "dopamine": 0.85}, at_s=0)
    after = advance(MODEL, state, dt_s=MODEL.levels["dopamine"].half_life_s)
    assert after.levels["dopamine"] == pytest.approx(0.45 + 0.4 / 2)


@given(states, st.lists(events, min_size=1, max_size=1), unit)
def test_a_weaker_event_moves_less(
    state: HormoneState, happened: list[Event], share: float
) -> None:
    strong = happened[0]
    weak = strong.model_copy(update={"weight": strong.weight * share})
    before = advance(MODEL, state).levels
    moved_strong = advance(MODEL, state, events=[strong]).levels
    moved_weak = advance(MODEL, state, events=[weak]).levels
    for name in NAMES:
        strong_step, weak_step = moved_strong[name] - before[name], moved_weak[name] - before[name]
        assert abs(weak_step) <= abs(strong_step) + 1e-12


@pytest.mark.parametrize("half_life_s", [60.0, 3_600.0, 40_000.0])
def test_a_daily_rhythm_solves_its_equation(half_life_s: float) -> None:
    level = Level(baseline=0.5, half_life_s=half_life_s, circadian_amplitude=0.3,
                  circadian_peak_hour=22)  # fmt: skip
    rate, at, x, dt = math.log(2) / half_life_s, 5_000.0, 0.9, 20.0
    while at < 60_000.0:  # x' = rate (b(t) - x), b highest at 22 h; the midpoint rule
        b = 0.5 + 0.3 * math.cos(2 * math.pi * (at + dt / 2 - 22 * 3_600) / DAY_S)
        middle = x + rate * (b - x) * dt / 2
        x, at = x + rate * (b - middle) * dt, at + dt
    assert level.decay(0.9, 5_000.0, at - 5_000.0) == pytest.approx(x, abs=1e-3)


@given(states, seconds, st.lists(events, min_size=1, max_size=3))
def test_events_meet_the_levels_of_their_own_moment(
    state: HormoneState, dt: float, happened: list[Event]
) -> None:
    later = advance(MODEL, state, dt_s=dt)
    assert close(advance(MODEL, state, dt_s=dt, events=happened),
                 advance(MODEL, later, events=happened))  # fmt: skip


def test_at_rest_no_coupling_changes_a_gain() -> None:
    rest = MODEL.initial(12_345.0)
    for trigger in ("valence", "intimacy", "tension", "surprise", "message"):
        after = advance(MODEL, rest, events=[Event(triggers={trigger: 1.0})])
        for name, gain in MODEL.gains[trigger].items():
            x = rest.levels[name]
            wanted = x + gain * (1 - x) if gain > 0 else x + gain * x
            assert after.levels[name] == pytest.approx(wanted), (trigger, name)


def test_a_level_new_to_a_session_starts_at_rest_and_an_unknown_one_goes() -> None:
    old = HormoneState(levels={"dopamine": 0.9, "gone": 0.5}, at_s=1_000.0)
    now = advance(MODEL, old, dt_s=60.0)
    rest = MODEL.initial(1_060.0)
    assert set(now.levels) == set(NAMES) and now.levels["dopamine"] > rest.levels["dopamine"]
    for name in set(NAMES) - {"dopamine"}:
        assert now.levels[name] == pytest.approx(rest.levels[name]), name


def test_affect_moves_the_levels_that_the_design_names() -> None:
    rest = MODEL.initial()
    warm = Affect(valence=0.9, intimacy=0.9, tension=-0.5, confidence=1.0)
    harsh = Affect(valence=-0.9, intimacy=-0.5, tension=0.9, confidence=1.0)
    up = advance(MODEL, rest, events=[affect_event(warm)]).levels
    down = advance(MODEL, rest, events=[affect_event(harsh)]).levels
    assert up["dopamine"] > rest.levels["dopamine"] > down["dopamine"]
    assert up["oxytocin"] > rest.levels["oxytocin"] > down["oxytocin"]
    assert down["cortisol"] > rest.levels["cortisol"] > up["cortisol"]
    assert down["adrenaline"] > rest.levels["adrenaline"]


def test_affect_without_confidence_changes_nothing() -> None:
    rest = MODEL.initial()
    unsure = Affect(valence=1, intimacy=1, tension=1, confidence=0)
    assert advance(MODEL, rest, events=[affect_event(unsure)]) == rest


def test_strain_slows_the_growth_of_closeness() -> None:
    close_words = affect_event(Affect(valence=0, intimacy=1, tension=0, confidence=1))
    calm, strained = MODEL.initial(), MODEL.initial()
    strained = strained.model_copy(update={"levels": {**strained.levels, "cortisol": 0.95}})
    gain = [
        advance(MODEL, s, events=[close_words]).levels["oxytocin"] - s.levels["oxytocin"]
        for s in (calm, strained)
    ]
    assert 0 < gain[1] < gain[0]


def test_a_message_wakes_and_idle_time_brings_rest() -> None:
    rest = MODEL.initial()
    awake = advance(MODEL, rest, events=[message_event()])
    assert awake.levels["melatonin"] < rest.levels["melatonin"]
    later = advance(MODEL, awake, dt_s=3600)
    assert later.levels["melatonin"] > awake.levels["melatonin"]


def test_only_surprise_above_the_median_counts() -> None:
    assert surprise_event(0.5).triggers["surprise"] == 0.0
    assert surprise_event(1.0).triggers["surprise"] == 1.0


@given(st.floats(0, 1000), st.floats(0, 1000))
def test_late_affect_loses_weight_with_age_and_expires(a: float, b: float) -> None:
    young, old = sorted((a, b))
    weigh = [late_weight(age, half_life_s=60, max_age_s=300) for age in (young, old)]
    assert 1.0 >= weigh[0] >= weigh[1] >= 0.0
    assert (weigh[1] == 0.0) == (old > 300)


def test_what_came_late_counts_half_after_one_half_life() -> None:
    weight = late_weight(60.0, half_life_s=60, max_age_s=300)
    felt = Affect(valence=0.5, intimacy=0, tension=0, confidence=0.8)
    assert weight == pytest.approx(0.5)
    assert affect_event(felt, weight=weight).weight == pytest.approx(0.4)
    assert surprise_event(1.0, weight=weight).weight == pytest.approx(0.5)


def test_a_clock_that_went_backwards_counts_as_no_time() -> None:
    state = MODEL.initial(1e9)
    assert advance(MODEL, state, dt_s=-5000) == state


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"gains": {"valence": {"dopamine": 0.9}, "message": {"dopamine": 0.2}}}, "add up to"),
        ({"gains": {"valence": {"unicorn": 0.1}}}, "unknown levels: unicorn"),
        ({"levels": {"dopamine": {"baseline": 0.9, "half_life_s": 9, "circadian_amplitude": 0.2}}},
         "must stay within"),
    ],
)  # fmt: skip
def test_a_model_that_could_leave_its_range_is_refused(change: dict, complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        HormoneModel.model_validate({"levels": MODEL.model_dump()["levels"], **change})


async def test_no_update_is_lost_when_ticks_and_events_compete() -> None:
    clock = ManualClock()
    engine = StateEngine(MODEL, clock=clock)
    seen: list[HormoneState] = []

    async def commit(state: HormoneState) -> None:
        await asyncio.sleep(0)  # another task gets its chance inside the lock
        seen.append(state)

    nudge = Event(triggers={"intimacy": 0.1})
    work = [engine.register_event(nudge, commit=commit) for _ in range(100)]
    await asyncio.gather(*work, *(engine.tick() for _ in range(100)))
    expected = MODEL.initial(engine.state.at_s)
    for _ in range(100):
        expected = advance(MODEL, expected, events=[nudge])
    assert engine.state.levels["oxytocin"] == pytest.approx(expected.levels["oxytocin"])
    assert len(seen) == 100


async def test_levels_stay_when_the_commit_fails() -> None:
    engine = StateEngine(MODEL, clock=ManualClock())
    before = engine.peek()

    async def refuse(state: HormoneState) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        await engine.register_event(message_event(), commit=refuse)
    assert engine.peek() == before


async def test_a_wall_clock_that_jumps_moves_no_level_inside_a_process() -> None:
    clock = ManualClock()
    engine = StateEngine(MODEL, clock=clock)
    await engine.register_event(message_event())
    before = engine.peek().levels
    clock.set_time(clock.time() + 86_400)
    assert engine.peek().levels == before


def test_a_restored_state_is_aged_by_the_time_that_passed() -> None:
    clock = ManualClock()
    engine = StateEngine(MODEL, clock=clock)
    excited = engine.peek([Event(triggers={"tension": 1.0})])
    clock.set_time(clock.time() + 600)
    back = StateEngine(MODEL, clock=clock, restored=excited).state
    rest = MODEL.levels["adrenaline"].baseline
    gone = (back.levels["adrenaline"] - rest) / (excited.levels["adrenaline"] - rest)
    assert gone == pytest.approx(0.5, rel=1e-3)  # ten minutes are one half-life


async def test_moods_pass_while_the_machine_sleeps() -> None:
    clock = ManualClock()
    engine = StateEngine(MODEL, clock=clock)
    excited = await engine.register_event(Event(triggers={"tension": 1.0}))
    clock.suspend(600)
    assert left(engine.peek(), excited, "adrenaline") == pytest.approx(0.5, rel=1e-6)
    clock.suspend(4 * 86_400)
    rested = await engine.tick()
    assert close(rested, MODEL.initial(excited.at_s + 600 + 4 * 86_400))


async def test_a_clock_set_after_the_start_costs_no_mood_at_the_next_start() -> None:
    clock = ManualClock(epoch=0.0)  # a board without a battery, until it hears of the time
    engine = StateEngine(MODEL, clock=clock)
    clock.set_time(1.7e9)
    excited = await engine.register_event(Event(triggers={"tension": 1.0}))
    clock.set_time(1.7e9 + 600)
    back = StateEngine(MODEL, clock=clock, restored=excited).state
    assert left(back, excited, "adrenaline") == pytest.approx(0.5, rel=1e-3)


async def test_rest_follows_the_hour_that_the_clock_was_set_to() -> None:
    clock = ManualClock()
    engine = StateEngine(MODEL, clock=clock)
    clock.set_time(clock.time() + 12 * 3600)
    await clock.advance(40 * 3600)
    at_rest = StateEngine(MODEL, clock=clock).state
    assert close(engine.peek(), at_rest)
    assert engine.peek().at_s == pytest.approx(at_rest.at_s)


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("begins", [1774746000.0, 1792890000.0])  # 2026-03-29 and 2026-10-25, 01:00
@pytest.mark.parametrize("before_s", [60.0, 3_540.0, 6_000.0])
async def test_an_hour_of_daylight_saving_does_not_pass(
    berlin: None, begins: float, before_s: float
) -> None:
    clock = ManualClock(epoch=begins - 3_600 - before_s)
    excited = await StateEngine(MODEL, clock=clock).register_event(Event(triggers={"tension": 1.0}))
    clock.set_time(clock.time() + 2 * 3_600 + before_s)
    back = StateEngine(MODEL, clock=clock, restored=excited).state
    passed = (2 * 3_600 + before_s) / MODEL.levels["cortisol"].half_life_s
    assert left(back, excited, "cortisol") == pytest.approx(0.5**passed, rel=1e-6)


def left(now: HormoneState, then: HormoneState, name: str) -> float:
    """The share of a level's distance from rest that is left."""
    rest = MODEL.levels[name].baseline
    return (now.levels[name] - rest) / (then.levels[name] - rest)


async def test_levels_taken_back_are_aged_to_now_and_no_further() -> None:
    clock = ManualClock()
    engine = StateEngine(MODEL, clock=clock)
    earlier = engine.peek([Event(triggers={"tension": 1.0})])
    await clock.advance(600)
    await engine.restore(earlier)
    wanted = advance(MODEL, earlier, dt_s=600).levels
    assert engine.state.levels == pytest.approx(wanted)
    assert engine.peek().levels == pytest.approx(wanted)


async def test_time_that_has_passed_does_not_pass_again() -> None:
    clock = ManualClock()
    engine = StateEngine(MODEL, clock=clock)
    await engine.register_event(Event(triggers={"tension": 1.0}))
    before = engine.state
    await clock.advance(600)
    assert engine.peek().levels == pytest.approx(advance(MODEL, before, dt_s=600).levels)
    ticked = await engine.tick()
    assert ticked.levels == pytest.approx(advance(MODEL, before, dt_s=600).levels)
    assert engine.peek() == ticked


async def test_another_model_goes_on_from_the_levels_of_now() -> None:
    clock = ManualClock()
    engine = StateEngine(MODEL, clock=clock)
    await engine.register_event(Event(triggers={"tension": 1.0}))
    await clock.advance(600)
    calmer = MODEL.merged({"levels": {"adrenaline": {"baseline": 0.05}}})
    assert engine.under(calmer).state.levels == pytest.approx(engine.peek().levels)


@pytest.mark.parametrize("offset_h", [-8, 0, 11])
async def test_the_day_of_the_levels_is_this_machines_own(
    monkeypatch: pytest.MonkeyPatch, offset_h: int
) -> None:
    monkeypatch.setattr("brain.state_engine.utc_offset_s", lambda at: offset_h * 3_600.0)
    clock = ManualClock()
    here = MODEL.initial(clock.time() + offset_h * 3_600.0)
    engine = StateEngine(MODEL, clock=clock)
    assert engine.state == here
    await engine.restore(here)
    assert engine.state == here
    assert StateEngine(MODEL, clock=clock, restored=here).state == here


def test_after_a_clock_set_back_the_new_date_counts() -> None:
    clock = ManualClock()
    before = MODEL.initial(StateEngine(MODEL, clock=clock).state.at_s)
    clock.set_time(clock.time() - 9 * 3_600)
    back = StateEngine(MODEL, clock=clock, restored=before).state
    assert back.levels == before.levels
    assert back.at_s == pytest.approx(before.at_s - 9 * 3_600)
