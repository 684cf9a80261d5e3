"""Behaviour: state and affect become tone and sampling parameters."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from brain.behaviour import behave, mood
from brain.persona import list_personas, load_persona
from brain.schema import Affect
from brain.settings import load_settings
from brain.state import HormoneState, advance, affect_event

SETTINGS = load_settings(None, environ={})
PERSONAS = {name: load_persona(name, SETTINGS) for name in list_personas(SETTINGS)}
SOL = PERSONAS["companion"]
unit = st.floats(0, 1)
axis = st.floats(-1, 1)
level_maps = st.fixed_dictionaries(dict.fromkeys(sorted(SOL.hormones.levels), unit))
affects = st.builds(Affect, valence=axis, intimacy=axis, tension=axis, confidence=unit)


def state_of(levels: dict[str, float]) -> HormoneState:
    return HormoneState(levels=levels, at_s=0.0)


@given(level_maps, level_maps, affects, affects, st.sampled_from(sorted(PERSONAS)))
def test_a_small_change_in_gives_a_small_change_out(
    a: dict[str, float], b: dict[str, float], x: Affect, y: Affect, name: str
) -> None:
    persona = PERSONAS[name]
    distance = (
        sum(abs(a[n] - b[n]) for n in a)
        + abs(x.confidence - y.confidence)
        + sum(abs(getattr(x, n) - getattr(y, n)) for n in ("valence", "intimacy", "tension"))
    )
    one, two = behave(persona, state_of(a), x), behave(persona, state_of(b), y)
    style = persona.style
    wide = style.temperature_max - style.temperature_min
    assert abs(one.temperature - two.temperature) <= 2.5 * wide * distance + 2e-4
    assert abs(one.top_p - two.top_p) <= 2.5 * distance + 2e-4
    span = style.reply_tokens_max - style.reply_tokens_min
    assert abs(one.max_tokens - two.max_tokens) <= 2.5 * span * distance + 1


@given(level_maps, affects, st.sampled_from(sorted(PERSONAS)))
def test_parameters_stay_within_the_personas_range(
    levels: dict[str, float], affect: Affect, name: str
) -> None:
    style = PERSONAS[name].style
    b = behave(PERSONAS[name], state_of(levels), affect)
    assert style.temperature_min <= b.temperature <= style.temperature_max
    assert style.top_p_min <= b.top_p <= style.top_p_max
    assert style.reply_tokens_min <= b.max_tokens <= style.reply_tokens_max
    assert len(b.directive.split()) <= 14


def test_at_rest_the_tone_is_even() -> None:
    levels = {n: lv.baseline for n, lv in SOL.hormones.levels.items()}
    assert behave(SOL, state_of(levels), None).directive.startswith("even and attentive")


def test_hostile_closeness_numbness_and_play_sound_different() -> None:
    rest = SOL.hormones.initial()
    said = {}
    for name, v, i, t in (("hostile", -0.8, 0.7, 0.8), ("numb", -0.7, 0.2, -0.8),
                          ("playful", 0.6, 0.3, -0.2)):  # fmt: skip
        affect = Affect(valence=v, intimacy=i, tension=t, confidence=0.9)
        state = advance(SOL.hormones, rest, events=[affect_event(affect)])
        said[name] = behave(SOL, state, affect).directive
    assert "tense, careful" in said["hostile"]
    assert "gentle, caring" in said["numb"]
    assert "playful" in said["playful"]


def test_a_reply_limit_of_the_configuration_wins_over_the_persona() -> None:
    levels = {n: lv.baseline for n, lv in SOL.hormones.levels.items()}
    assert behave(SOL, state_of(levels), None, max_reply_tokens=10).max_tokens == 10


def test_warmth_follows_oxytocin_and_falls_with_strain() -> None:
    base = {n: lv.baseline for n, lv in SOL.hormones.levels.items()}
    warm = mood(SOL, state_of({**base, "oxytocin": 0.8}), None).warmth
    tense = mood(SOL, state_of({**base, "oxytocin": 0.8, "cortisol": 0.9}), None).warmth
    assert warm > 0 and tense < warm
