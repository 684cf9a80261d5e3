"""What a caller holds while a turn runs, and the canonical record that remains of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from dataclasses import dataclass, field
from typing import Any, Literal

from brain.errors import LimbicError
from brain.schema import Affect, Behaviour, Foresight
from brain.state import HormoneState

TurnStatus = Literal["new", "running", "done", "partial", "cancelled", "failed", "repeated"]


@dataclass(slots=True, eq=False)
class Turn:
    """One message and its reply. Iterate for tokens, or await for the whole reply::

        async for token in session.say("hello"):
            print(token, end="")

    Leaving the loop early, or cancelling the task that runs it, cancels the turn.
    """

    session_id: str
    turn_id: str
    text: str
    runner: Callable[[Turn], AsyncGenerator[str, None]] = field(repr=False)
    status: TurnStatus = "new"
    reply: str = ""
    seq: int = 0
    affect: Affect | None = None
    foresight: Foresight | None = None
    state: HormoneState | None = None
    behaviour: Behaviour | None = None
    error: LimbicError | None = None
    recalled: tuple[str, ...] = ()
    timings: dict[str, float] = field(default_factory=dict)
    sides: dict[str, dict[str, Any]] = field(default_factory=dict)
    late_applied: list[dict[str, Any]] = field(default_factory=list)

    @property
    def kept(self) -> bool:
        """Whether it became history, whole or as far as it came."""
        return self.status in ("done", "partial")

    def __aiter__(self) -> AsyncIterator[str]:
        if self.status != "new":
            raise RuntimeError("a turn runs once; say() the message again for another")
        self.status = "running"
        return self.runner(self)

    def __await__(self) -> Generator[Any, None, str]:
        return self._whole().__await__()

    async def _whole(self) -> str:
        async for _ in self:
            pass
        return self.reply
