"""What the chat says about itself in words and bars. Pure, except for asking the supervisor."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from brain.app import Limbic
from brain.behaviour import directive, mood
from brain.errors import SidecarDown, SidecarFailed
from brain.foresight_state import MIN_DISTANCES, ForesightState
from brain.persona import Persona
from brain.schema import Affect
from brain.sessions import Session
from brain.settings import SideName
from brain.state import HormoneState
from brain.store_sql import SessionRecord
from brain.turn import Turn

BAR_CELLS = 20
QUOTE_CHARS = 60
REDRAW_S = 0.25
SIDES_WAIT_S = 20.0
AXES = ("valence", "intimacy", "tension")
_UNITS = ((86_400.0, "day"), (3_600.0, "hour"), (60.0, "minute"), (1.0, "second"))


def mood_words(persona: Persona, state: HormoneState, affect: Affect | None = None) -> str:
    """The mood in the words that the model is given: ``warm and close, lively``."""
    return directive(mood(persona, state, affect), brief=False).partition(";")[0]


def span(seconds: float) -> str:
    """A length of time for people, in its largest whole unit: ``3 hours``."""
    for size, unit in _UNITS:
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'' if count == 1 else 's'}"
    return "a moment"


def latency(ms: float) -> str:
    """``240 ms`` or ``1.9 s``."""
    return f"{ms:.0f} ms" if ms < 1000 else f"{ms / 1000:.1f} s"


def clip(text: str, chars: int) -> str:
    """``text`` on one line, at most ``chars`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= chars else line[: max(0, chars - 1)].rstrip() + "…"


def bar(share: float, *, cells: int = BAR_CELLS) -> str:
    """``share`` in [0, 1] as a bar of ``cells`` characters."""
    full = round(min(1.0, max(0.0, share)) * cells)
    return "█" * full + "░" * (cells - full)


def state_lines(persona: Persona, state: HormoneState, affect: Affect | None) -> list[str]:
    """Each level as a bar, with its distance from where it rests, and the mood in words."""
    wide = max(map(len, state.levels))
    lines = []
    for name, level in state.levels.items():
        known = persona.hormones.levels.get(name)
        off = "" if known is None else f"  {level - known.target(state.at_s):+.2f} from rest"
        lines.append(f"  {name:<{wide}}  {bar(level)}  {level:.2f}{off}")
    return [*lines, f"  mood: {mood_words(persona, state, affect)}"]


def affect_lines(affect: Affect | None, *, classifier: bool) -> list[str]:
    """The affect last heard in the person's words, or why there is none."""
    if affect is None:
        why = "nothing has been scored yet" if classifier else "sidecars.cahm is switched off"
        return [f"no affect: {why}"]
    wide = max(map(len, AXES))
    lines = [
        f"  {name:<{wide}}  {bar((value + 1) / 2)}  {value:+.2f}"
        for name in AXES
        for value in (getattr(affect, name),)
    ]
    lines.append(f"  confidence {affect.confidence:.2f} · {latency(affect.latency_ms)}")
    if affect.tags:
        lines.append(f"  {', '.join(affect.tags)}")
    if affect.reasoning:
        lines.append(f"  {clip(affect.reasoning, 4 * QUOTE_CHARS)}")
    return lines


def surprise_line(foresight: ForesightState) -> str:
    """How surprising the last message was among those of its session."""
    measured = len(foresight.distances)
    if foresight.last_surprise is None:
        return f"surprise: not known yet ({measured} measured, {MIN_DISTANCES} needed before it)"
    return (
        f"surprise: {foresight.last_surprise:.2f} (your last message was further from what was"
        f" expected than {foresight.last_surprise:.0%} of the {measured - 1} before it)"
    )


def late_marks(turn: Turn) -> list[str]:
    """What did not come in time for this turn, and what of earlier ones joined it."""
    marks = [
        f"{name} {side['outcome']}"
        for name, side in turn.sides.items()
        if side["outcome"] != "on_time"
    ]
    marks += [
        f"{late['side']} of {span(late['age_s'])} ago joined"
        for late in turn.late_applied
        if late["weight"] > 0
    ]
    return marks


def turn_status(turn: Turn, persona: Persona) -> str:
    """One line about a finished turn: mood, late marks, latency, and whether it was cut."""
    parts = []
    if turn.state is not None:
        parts.append(mood_words(persona, turn.state, turn.affect))
    parts += late_marks(turn)
    if (first := turn.timings.get("first_token_ms")) is not None:
        parts.append(f"first token {latency(first)}")
    if (total := turn.timings.get("total_ms")) is not None:
        parts.append(f"total {latency(total)}")
    return " · ".join(parts)


def welcome_lines(record: SessionRecord, session: Session, *, now: float, chars: int) -> list[str]:
    """The last exchange of a session with history, and what time has done to its mood.

    Args:
        record: the session as it was stored, before ageing. now: seconds since the epoch.
        chars: width of a line.
    """
    unanswered = []
    if record.unanswered is not None:
        words = clip(record.unanswered, max(16, chars - 40))
        unanswered = [f"your last message had no answer yet: “{words}”"]
    if not record.turns:
        return unanswered
    last = record.turns[-1]
    room = max(16, (chars - 40) // 2)
    lines = [
        f"{span(max(0.0, now - last.created_at))} ago you said “{clip(last.user_text, room)}”"
        f" and heard “{clip(last.reply, room)}”"
    ]
    mood_now = mood_words(session.persona, session.engine.peek())
    if record.state is not None:
        then = mood_words(session.persona, record.state)
        change = f"still {mood_now}" if then == mood_now else f"{then} then, {mood_now} now"
        lines.append(f"mood: {change}")
    return lines + unanswered


def model_trouble(limbic: Limbic) -> str | None:
    """Why the chat model cannot be asked now (``loading…``, ``failed: …``); ``None`` if it can."""
    status = limbic.supervisor.status().get("llm")
    if status is None or status.state in ("ready", "remote"):
        return None
    if status.state == "starting" and not status.restarts:
        return f"loading… {status.reason.removeprefix('loading ')}".rstrip()
    word = "restarting…" if status.state in ("starting", "restarting") else f"{status.state}:"
    return f"{word} {status.reason}".rstrip(": ")


async def until_loaded(limbic: Limbic, show: Callable[[str], None]) -> None:
    """Wait until the chat model can be asked; ``show`` is called with each new progress.

    Raises:
        SidecarDown, SidecarFailed: it will not come up soon; the message says why.
    """
    side = limbic.settings.sidecar("llm")
    if side.mode != "managed" or model_trouble(limbic) is None:
        return
    ready = asyncio.create_task(limbic.supervisor.wait_ready("llm", side.ready_hard_cap_s))
    shown = ""
    try:
        while not ready.done():
            await asyncio.wait({ready}, timeout=REDRAW_S)
            trouble = model_trouble(limbic) or ""
            if trouble != shown and not ready.done():
                show(trouble)
                shown = trouble
        ready.result()
    finally:
        ready.cancel()
        if shown:
            show("")


async def until_sides_answer(limbic: Limbic) -> None:
    """Wait, at most ``SIDES_WAIT_S``, until the side models that start with the chat can be asked.
    One that is off, remote, lazy or will not come up is not waited for: chat goes on without it."""

    async def ready(name: SideName) -> None:
        with suppress(SidecarDown, SidecarFailed):
            await limbic.supervisor.wait_ready(name, SIDES_WAIT_S)

    names: tuple[SideName, ...] = ("cahm", "lvm")
    sides = {name: limbic.settings.sidecar(name) for name in names}
    managed = [n for n, side in sides.items() if side.mode == "managed" and side.start == "eager"]
    await asyncio.gather(*map(ready, managed))
