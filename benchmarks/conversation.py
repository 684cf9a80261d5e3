"""Conversations for the benchmarks: histories of a given length, put into the store directly."""

from __future__ import annotations

import random
import time

from brain import prompt
from brain.app import Limbic
from brain.persona import load_persona
from brain.state_engine import StateEngine
from brain.store_sql import TurnCommit

SAID = (
    "My manager moved the deadline again and did not even tell me",
    "I slept badly, the neighbours had people over until three",
    "My sister called, we had not spoken since the spring",
    "I burned the rice and then laughed about it for ten minutes",
    "The dog is limping and the vet has no time before Friday",
    "I finally finished the drawing that I started last winter",
    "Someone at the station shouted at me for no reason at all",
    "I keep thinking about moving back to the coast",
    "We won the small grant, nobody here seems to care",
    "It rained all day and I stayed in bed with a book",
)
HEARD = (
    "That sounds exhausting. What would have helped you most at that moment?",
    "Oh, that is a lot for one day. How are you feeling about it now?",
    "I am glad you told me. Was it different from what you expected?",
    "That must have stung. Do you want to talk it through, or leave it for tonight?",
    "I can picture it. What did you do afterwards?",
)
QUESTIONS = (
    "what would you do if you were me tonight, honestly",
    "do you think that I was too hard on her this morning",
    "how do I stop going over the same thing again and again",
    "is it strange that I miss that place more than the people",
    "should I write to him again or just let it rest for now",
    "why do small things make me so angry at the end of the day",
)
OPENERS = ("Well", "So", "Hey", "Okay", "Listen", "Anyway", "Look", "Now", "Right", "Please")


def message(rng: random.Random) -> str:
    """A user's message of some fifteen words; the first word already tells two apart."""
    number = rng.randrange(1000, 9999)
    return f"{rng.choice(OPENERS)} {number}, {rng.choice(QUESTIONS)}?"


async def seed_history(limbic: Limbic, session_id: str, *, tokens: int, rng: random.Random) -> int:
    """Store turns until their texts have at least ``tokens`` of the model's tokens.

    The session must not be open. The first message begins with a random number, so that the model
    server knows nothing of this history but the persona. Returns the tokens of the texts.
    """
    store, settings = limbic.parts.store, limbic.settings
    persona = load_persona(settings.chat.persona, settings)
    state = StateEngine(persona.hormones, clock=limbic.clock).peek()
    await store.load_session(session_id, persona=persona.name, at=time.time())
    total = 0
    while total < tokens:
        user = f"Day {rng.randrange(100_000, 999_999)}. {rng.choice(SAID)}."
        reply = rng.choice(HEARD)
        count = sum(await limbic.parts.llm.count_tokens([user, reply]))
        begun = await store.begin_turn(session_id, f"{rng.random():.15f}", user, at=time.time())
        await store.finish_turn(
            TurnCommit(
                session_id=session_id, seq=begun.seq, status="done", reply=reply, affect=None,
                state=state, record={}, tokens=count + 2 * prompt.PER_MESSAGE_TOKENS,
                at=time.time(),
            )
        )  # fmt: skip
        total += count
    return total
