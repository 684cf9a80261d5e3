"""What the generative affect head is asked and what it writes: one text for trainer and sidecar.

The answer is one JSON object, ``{"valence":-0.7,"intimacy":0.6,"tension":0.7,"tags":["…"],
"reasoning":"…"}``, scores before words, so that they can leave while the words are still written.
It is made of *pieces* that are tokenised one by one: what is the same in every answer is never
generated, and a score's digits are always tokens of their own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from sidecars.affect_manifest import AXES

KIND = "affect-generative"
#: Metadata key of a GGUF file that holds this head's manifest as JSON.
MANIFEST_KEY = "limbic.affect"
#: Changes whenever what is asked or written changes: a model answers only what it was taught.
PROMPT_VERSION = 1
SYSTEM = "Rate the affect, in JSON."
MAX_MESSAGE_CHARS = 600
MAX_CONTEXT_CHARS = 160
MAX_REASONING_TOKENS = 32
MAX_TAGS = 2
#: Scores in tenths, as they are written.
GRID = tuple(round(step / 10, 1) for step in range(-10, 11))
OPENINGS = ('{"valence":', ',"intimacy":', ',"tension":')
TAGS_OPENING, TAGS_CLOSING = ',"tags":[', "]"
REASONING_OPENING, REASONING_CLOSING = ',"reasoning":"', '"}'

_SPACES = re.compile(r"\s+")


def messages(text: str, context: Sequence[str] = ()) -> list[dict[str, str]]:
    """The chat that asks for one message's affect; a message loses its end, context its beginning.

    Args:
        context: up to two earlier turns, oldest first.
    """
    earlier = [f"Before: {_flat(said)[-MAX_CONTEXT_CHARS:]}\n" for said in context[-2:]]
    asked = "".join(earlier) + f"Message: {_flat(text)[:MAX_MESSAGE_CHARS]}"
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": asked}]


def is_cut(text: str) -> bool:
    """Whether ``messages`` leaves out the end of ``text``."""
    return len(_flat(text)) > MAX_MESSAGE_CHARS


def number(value: float) -> str:
    """A score in [-1, 1] as it is written: one digit after the point, no negative zero."""
    return f"{round(value, 1) + 0.0:.1f}"


def score_pieces(scores: Sequence[float]) -> list[str]:
    """The pieces of the three scores: opening, number, opening, number, opening, number."""
    return [
        piece
        for opening, value in zip(OPENINGS, scores, strict=True)
        for piece in (opening, number(value))
    ]


def grammar(tags: Sequence[str]) -> str:
    """The answer as GBNF: scores in [-1, 1], at most two known tags, one line of reasoning."""
    names = " | ".join(f'"\\"{tag}\\""' for tag in tags)
    fields = " ".join(f'"{key}" num' for key in map(_escape, OPENINGS))
    closing, opening = _escape(TAGS_CLOSING + REASONING_OPENING), _escape(TAGS_OPENING)
    return "\n".join(
        [
            f'root ::= {fields} "{opening}" tags? "{closing}" char+ "{_escape(REASONING_CLOSING)}"',
            'num ::= "0." [0-9] | "1.0" | "-0." [1-9] | "-1.0"',
            'tags ::= tag ("," tag)?',
            f"tag ::= {names}",
            # ASCII without quote and backslash: a grammar over bytes lets broken UTF-8 through.
            r"char ::= [ !#-\[\]-~]",
        ]
    )


def _flat(text: str) -> str:
    return _SPACES.sub(" ", text).strip()


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


assert len(OPENINGS) == len(AXES)
