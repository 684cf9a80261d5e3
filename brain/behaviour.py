"""State and affect → how the next reply should sound. Pure.

Five style values in [-1, 1] or [0, 1] are smooth functions of the levels and of the message's
affect; sampling parameters are linear in them, so a small change in gives a small change out (the
Lipschitz property that the tests check). The directive names the strongest values in plain words.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from brain.persona import Persona
from brain.schema import Affect, Behaviour
from brain.state import HormoneState

NEUTRAL = 0.5
MAX_TRAITS = 3
WORD_THRESHOLD = 0.22


@dataclass(frozen=True, slots=True)
class Mood:
    """Style values: ``warmth``, ``energy``, ``strain``, ``play`` and ``care``, each in [-1, 1]."""

    warmth: float
    energy: float
    strain: float
    play: float
    care: float


WORDS: dict[str, tuple[str, str]] = {
    # (when low, when high); an empty word is not said
    "warmth": ("a little guarded", "warm and close"),
    "energy": ("quiet and slow", "lively"),
    "strain": ("relaxed", "tense, careful"),
    "play": ("serious", "playful"),
    "care": ("", "gentle, caring"),
}


def mood(persona: Persona, state: HormoneState, affect: Affect | None) -> Mood:
    """Style values of a moment. Levels count by their distance from the persona's baselines."""

    def off(name: str) -> float:
        level = persona.hormones.levels.get(name)
        return 0.0 if level is None else state.levels.get(name, level.baseline) - level.baseline

    a = affect.confidence if affect else 0.0
    valence = a * affect.valence if affect else 0.0
    intimacy = a * affect.intimacy if affect else 0.0
    tension = a * affect.tension if affect else 0.0
    return Mood(
        warmth=math.tanh(2.5 * off("oxytocin") - 1.2 * off("cortisol") + 0.35 * intimacy),
        energy=math.tanh(
            1.6 * off("dopamine") + 1.6 * off("adrenaline") - 1.6 * off("melatonin") + 0.3 * tension
        ),
        strain=math.tanh(
            2.2 * off("cortisol") + 1.2 * off("adrenaline") - off("serotonin") + 0.35 * tension
        ),
        play=math.tanh(
            2.2 * off("dopamine") - 2.2 * off("cortisol") + 0.35 * valence - 0.35 * tension
        ),
        care=math.tanh(-0.8 * valence + 0.3 * intimacy + 0.2 * tension),
    )


def behave(
    persona: Persona, state: HormoneState, affect: Affect | None, *, max_reply_tokens: int = 8192
) -> Behaviour:
    """The directive and the sampling parameters for the next reply.

    Args:
        affect: the current message's affect if it came in time, else ``None`` (neutral).
        max_reply_tokens: upper limit that a configuration sets on any persona.
    """
    m = mood(persona, state, affect)
    style = persona.style
    heat = NEUTRAL + 0.25 * m.energy + 0.15 * m.play - 0.10 * m.strain
    length = NEUTRAL + 0.20 * m.warmth + 0.15 * m.energy - 0.15 * m.strain
    tokens = _between(style.reply_tokens_min, style.reply_tokens_max, length)
    return Behaviour(
        directive=directive(m, brief=length < 0.4),
        temperature=round(_between(style.temperature_min, style.temperature_max, heat), 4),
        top_p=round(_between(style.top_p_min, style.top_p_max, heat), 4),
        max_tokens=max(1, min(max_reply_tokens, round(tokens))),
    )


def directive(m: Mood, *, brief: bool) -> str:
    """The strongest traits in plain words, for the tail of the prompt; about a dozen tokens."""
    values = {name: getattr(m, name) for name in WORDS}
    ranked = sorted(values, key=lambda name: -abs(values[name]))
    said = [
        word
        for name in ranked
        if abs(values[name]) >= WORD_THRESHOLD and (word := WORDS[name][values[name] > 0])
    ]
    tone = ", ".join(said[:MAX_TRAITS]) or "even and attentive"
    return f"{tone}; short sentences" if brief else tone


def _between(low: float, high: float, share: float) -> float:
    return low + (high - low) * min(1.0, max(0.0, share))
