"""Hormone-like levels: a pure model of mood. No I/O, no clock.

Each level x in [0, 1] relaxes towards its baseline b with half-life h in closed form,
``x(t + dt) = b + (x - b) * 2**(-dt / h)``, so advancing by a and then b equals advancing by a + b
whatever the tick rate. A level may have a circadian baseline ``b + A cos(w (t - peak))``; its exact
solution is used, so the same law holds. Events add bounded impulses: a gain g moves a level by
``g * (1 - x)`` when positive and by ``g * x`` when negative, which cannot leave [0, 1].
Couplings scale gains by a positive factor m: ``|g| -> 1 - (1 - |g|) ** m``, still within [0, 1].

See ``docs/runtime.md``, section "State".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from brain.schema import Affect, Frame, Unit

DAY_S = 86_400.0
Trigger = Literal["valence", "intimacy", "tension", "surprise", "message"]
Gain = Annotated[float, Field(ge=-1.0, le=1.0, allow_inf_nan=False)]
Coupling = Annotated[float, Field(ge=-10.0, le=10.0, allow_inf_nan=False)]


class Level(Frame):
    """One hormone: where it rests and how fast it returns there."""

    baseline: Unit
    half_life_s: Annotated[float, Field(gt=0, le=1e8, allow_inf_nan=False)]
    circadian_amplitude: Unit = 0.0
    circadian_peak_hour: Annotated[float, Field(ge=0, lt=24, allow_inf_nan=False)] = 0.0

    @model_validator(mode="after")
    def _inside(self) -> Level:
        low, high = (
            self.baseline - self.circadian_amplitude,
            self.baseline + self.circadian_amplitude,
        )
        if low < 0 or high > 1:
            raise ValueError("baseline ± circadian_amplitude must stay within [0, 1]")
        return self

    def target(self, at_s: float) -> float:
        """The solution that the level relaxes to at local time ``at_s`` (seconds)."""
        if not self.circadian_amplitude:
            return self.baseline
        rate, omega = math.log(2) / self.half_life_s, 2 * math.pi / DAY_S
        phase = omega * (at_s - self.circadian_peak_hour * 3600) - math.atan2(omega, rate)
        swing = self.circadian_amplitude * rate / math.hypot(rate, omega)
        return self.baseline + swing * math.cos(phase)

    def decay(self, x: float, at_s: float, dt_s: float) -> float:
        """Level ``dt_s`` seconds after it was ``x`` at ``at_s``."""
        if not self.circadian_amplitude:  # the same, without two calls: every turn does this often
            return self.baseline + (x - self.baseline) * math.exp2(-dt_s / self.half_life_s)
        later = self.target(at_s + dt_s)
        return later + (x - self.target(at_s)) * math.exp2(-dt_s / self.half_life_s)


class HormoneModel(Frame):
    """The data of the model: levels, gains of each trigger, couplings (rows scaled by columns)."""

    levels: Annotated[dict[str, Level], Field(min_length=1, max_length=32)]
    gains: dict[Trigger, dict[str, Gain]] = Field(default_factory=dict)
    couplings: dict[str, dict[str, Coupling]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _known(self) -> HormoneModel:
        used = {name for gains in self.gains.values() for name in gains}
        used |= set(self.couplings) | {n for row in self.couplings.values() for n in row}
        if unknown := sorted(used - set(self.levels)):
            raise ValueError(f"gains or couplings name unknown levels: {', '.join(unknown)}")
        for name in self.levels:
            total = sum(abs(gains.get(name, 0.0)) for gains in self.gains.values())
            if total > 1.0:
                raise ValueError(f"gains on {name} add up to {total:.2f}; the limit is 1")
        return self

    def initial(self, at_s: float = 0.0) -> HormoneState:
        """Every level at rest at local time ``at_s``."""
        return HormoneState(
            levels={name: _unit(lv.target(at_s)) for name, lv in self.levels.items()}, at_s=at_s
        )

    def merged(self, override: Mapping[str, Any]) -> HormoneModel:
        """This model with a persona's overrides, level by level and gain by gain."""
        return HormoneModel.model_validate(_deep_merge(self.model_dump(), override))


class HormoneState(Frame):
    """Levels in [0, 1] at local time ``at_s``, seconds since the epoch plus the UTC offset."""

    levels: dict[str, Unit]
    at_s: Annotated[float, Field(allow_inf_nan=False)]


class Event(Frame):
    """Something that happened: strength in [-1, 1] of each trigger, scaled by ``weight``."""

    triggers: dict[Trigger, Annotated[float, Field(ge=-1.0, le=1.0, allow_inf_nan=False)]]
    weight: Unit = 1.0


def message_event() -> Event:
    """A message arrived, whatever it says."""
    return Event(triggers={"message": 1.0})


def affect_event(affect: Affect, *, weight: float = 1.0) -> Event:
    """Affect as an event, weighted by its confidence (and by age when it comes late)."""
    return Event(
        triggers={
            "valence": affect.valence,
            "intimacy": affect.intimacy,
            "tension": affect.tension,
        },
        weight=affect.confidence * weight,
    )


def surprise_event(surprise: float, *, weight: float = 1.0) -> Event:
    """Surprise as an event; only what is above the session's median counts."""
    return Event(triggers={"surprise": max(0.0, 2.0 * surprise - 1.0)}, weight=weight)


def late_weight(age_s: float, *, half_life_s: float, max_age_s: float) -> float:
    """Weight of affect that came ``age_s`` late: ``2**(-age/half_life)``, 0 past ``max_age_s``."""
    if not 0.0 <= age_s <= max_age_s:
        return 0.0
    return math.exp2(-age_s / half_life_s)


def advance(
    model: HormoneModel, state: HormoneState, *, dt_s: float = 0.0, events: Iterable[Event] = ()
) -> HormoneState:
    """Let ``dt_s`` seconds pass, then apply ``events`` in order.

    Negative time (a clock that jumped back) counts as none. Levels that the model does not know
    are dropped and new ones start at rest, so an edited configuration keeps what it can.
    """
    dt_s = max(0.0, dt_s)
    levels = {}
    for name, level in model.levels.items():
        x = state.levels.get(name)
        levels[name] = _unit(
            level.target(state.at_s + dt_s) if x is None else level.decay(x, state.at_s, dt_s)
        )
    for event in events:
        levels = _impulse(model, levels, event, at_s=state.at_s + dt_s)
    return HormoneState(levels=levels, at_s=state.at_s + dt_s)


def _impulse(
    model: HormoneModel, levels: dict[str, float], event: Event, *, at_s: float
) -> dict[str, float]:
    """All levels move at once, from the levels before the event: order of names does not matter."""
    after = dict(levels)
    gains: dict[str, float] = {}
    for trigger, strength in event.triggers.items():
        for name, gain in model.gains.get(trigger, {}).items():
            gains[name] = gains.get(name, 0.0) + strength * gain
    for name, summed in gains.items():
        gain = event.weight * summed
        if gain == 0.0:
            continue
        x = levels[name]
        row = model.couplings.get(name)
        if row:
            pull = sum(c * (levels[n] - model.levels[n].target(at_s)) for n, c in row.items())
            gain = math.copysign(1.0 - (1.0 - min(1.0, abs(gain))) ** math.exp(pull), gain)
        after[name] = _unit(x + gain * (1.0 - x) if gain > 0 else x + gain * x)
    return after


def _unit(x: float) -> float:
    """Remove rounding error of a few ulp at the edges; the mathematics cannot leave [0, 1]."""
    assert -1e-9 <= x <= 1.0 + 1e-9, f"level {x} left [0, 1]"
    return min(1.0, max(0.0, x))


def _deep_merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in override.items():
        old = merged.get(key)
        merged[key] = (
            _deep_merge(old, value)
            if isinstance(old, Mapping) and isinstance(value, Mapping)
            else value
        )
    return merged
