"""Another persona for a session: from whatever it had before, and without moving its levels."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import pytest

from brain.errors import ConfigError
from brain.persona import load_persona
from brain.sessions import Sessions
from brain.settings import load_settings
from brain.state import Event
from brain.store import Store
from tests.fakes.clock import ManualClock
from tests.test_store import say

SETTINGS = load_settings(None, environ={})


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await Store.open(tmp_path)
    yield opened
    await opened.close()


def sessions_of(store: Store, clock: ManualClock) -> Sessions:
    return Sessions(
        store, persona_named=lambda name: load_persona(name, SETTINGS),
        default_persona="companion", clock=clock, max_open=4,
    )  # fmt: skip


async def test_a_session_whose_persona_is_gone_says_how_to_open_it_and_does(store: Store) -> None:
    sessions = sessions_of(store, ManualClock())
    await sessions.get("s")
    await say(store, 1)
    await store.set_persona("s", "ghost")
    sessions = sessions_of(store, ManualClock())
    with pytest.raises(ConfigError, match=r"session s: .*'ghost'.*--persona NAME") as caught:
        await sessions.get("s")
    assert len(caught.value.problems) == 1 and "\n" not in caught.value.problems[0]
    await sessions.set_persona("s", "maverick")
    session = await sessions.get("s")
    assert session.persona.name == "maverick" and [e.user for e in session.history] == ["words 1"]
    again = await sessions_of(store, ManualClock()).get("s")
    assert again.persona.name == "maverick"


async def test_a_persona_that_does_not_exist_leaves_the_session_its_own(store: Store) -> None:
    sessions = sessions_of(store, ManualClock())
    await sessions.set_persona("s", "maverick")
    with pytest.raises(ConfigError, match="'ghost' not found"):
        await sessions.set_persona("s", "ghost")
    assert (await sessions_of(store, ManualClock()).get("s")).persona.name == "maverick"


async def test_another_persona_moves_no_level_although_the_clock_was_set_forward(
    store: Store,
) -> None:
    clock = ManualClock()
    sessions = sessions_of(store, clock)
    session = await sessions.get("s")
    strained = await session.engine.register_event(Event(triggers={"tension": 1.0}))
    clock.set_time(clock.time() + 86_400)
    await sessions.set_persona("s", "maverick")
    assert session.engine.peek().levels == pytest.approx(strained.levels)
    assert session.engine.model == session.persona.hormones
    await clock.advance(600)
    assert session.engine.peek().levels != pytest.approx(strained.levels)


@pytest.mark.parametrize("passes", range(1, 9))
async def test_a_session_knows_what_was_taken_back_although_the_command_was_cancelled(
    store: Store, passes: int
) -> None:
    sessions = sessions_of(store, ManualClock())
    await sessions.get("s")
    for number in (1, 2):
        await say(store, number)
    sessions = sessions_of(store, ManualClock())
    session = await sessions.get("s")
    await cancelled(sessions.undo("s"), passes)
    stored = await sessions_of(store, ManualClock()).get("s")
    assert session.history == stored.history


@pytest.mark.parametrize("passes", range(1, 9))
async def test_a_session_knows_its_persona_although_the_change_was_cancelled(
    store: Store, passes: int
) -> None:
    sessions = sessions_of(store, ManualClock())
    session = await sessions.get("s")
    await cancelled(sessions.set_persona("s", "maverick"), passes)
    stored = await sessions_of(store, ManualClock()).get("s")
    assert session.persona.name == stored.persona.name
    assert session.engine.model == session.persona.hormones


async def cancelled(work: Coroutine[Any, Any, object], passes: int) -> None:
    """Run ``work`` for so many passes of the loop, then cancel it."""
    task = asyncio.ensure_future(work)
    for _ in range(passes):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
