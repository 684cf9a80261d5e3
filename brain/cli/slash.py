"""The commands that begin with a slash: what a person may ask of a session besides talking."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from brain.app import Limbic, SessionHandle
from brain.cli.status import (
    affect_lines,
    clip,
    model_trouble,
    span,
    state_lines,
    surprise_line,
    welcome_lines,
)
from brain.errors import InputError

MEMORIES = 20
Action = Callable[["Commands", list[str]], Awaitable[list[str]]]


@dataclass(frozen=True, slots=True)
class Command:
    """One command: what to type, what it does, and the method that does it."""

    usage: str
    help: str
    action: Action


class Commands:
    """Runs commands on one open ``Limbic``; ``handle`` is the session that is talked to."""

    def __init__(self, limbic: Limbic, handle: SessionHandle) -> None:
        self.limbic = limbic
        self.handle = handle
        self.left = False

    async def run(self, line: str) -> list[str]:
        """Lines to show for one typed command; nothing in them is made harmless yet.

        Raises:
            InputError: no such command, or wrong words after it.
            LimbicError: it could not be done.
        """
        name, *words = line[1:].split() or [""]
        command = COMMANDS.get(name)
        if command is None:
            raise InputError(f"there is no command /{name[:32]}; /help lists them")
        return await command.action(self, words)

    async def welcome(self) -> list[str]:
        """Where the conversation was left; empty for a new session."""
        session = await self.handle.open()
        now = self.limbic.clock.time()
        record = await self.limbic.parts.store.load_session(
            session.session_id, persona=session.persona.name, at=now
        )
        width = shutil.get_terminal_size().columns
        return welcome_lines(record, session, now=now, chars=width)

    async def _state(self, words: list[str]) -> list[str]:
        _expect(words, "/state")
        session = await self.handle.open()
        return state_lines(session.persona, session.engine.peek(), session.last_affect)

    async def _affect(self, words: list[str]) -> list[str]:
        _expect(words, "/affect")
        session = await self.handle.open()
        lines = affect_lines(
            session.last_affect, classifier=self.limbic.parts.classifier is not None
        )
        late = [f"{a.side} came late and joins the next turn" for a in session.late]
        return lines + late

    async def _memory(self, words: list[str]) -> list[str]:
        match words:
            case [] | ["list"]:
                found = await self.handle.memories(MEMORIES)
                width = max(20, shutil.get_terminal_size().columns - 16)
                lines = [f"  {seq:>4}  {weight:.2f}  {clip(t, width)}" for seq, weight, t in found]
                session = await self.handle.open()
                lines += [f"  expected next: {clip(one.text, width)}" for one in session.expected]
                lines = lines or ["no memories yet"]
                if self.limbic.parts.foresight is not None:
                    lines.append(surprise_line(session.foresight))
                return lines
            case ["forget", number] if number.isascii() and number.isdigit():
                known = len(number) < 19 and await self.handle.forget(int(number))
                return [f"{'forgot' if known else 'there is no memory'} {number}"]
        raise InputError("say /memory, or /memory forget NUMBER with a number it lists")

    async def _session(self, words: list[str]) -> list[str]:
        match words:
            case [] | ["show"]:
                session = await self.handle.open()
                trouble = model_trouble(self.limbic)
                return [
                    f"session {session.session_id} · persona {session.persona.name}"
                    f" · {len(session.history)} turns in the prompt",
                    f"model {trouble or 'ready'}",
                ]
            case ["list"]:
                now = self.limbic.clock.time()
                return [
                    f"{'*' if name == self.handle.session_id else ' '} {name}  {persona}"
                    f"  {turns} turns, {span(max(0.0, now - at))} ago"
                    for name, persona, turns, at in await self.limbic.parts.store.sessions()
                ]
            case ["switch", name]:
                handle = self.limbic.session(name)
                await handle.open()
                self.handle = handle
                return [f"session {name}", *await self.welcome()]
        raise InputError("say /session, /session list, or /session switch NAME")

    async def _persona(self, words: list[str]) -> list[str]:
        match words:
            case [] | ["list"]:
                current = (await self.handle.open()).persona.name
                return [
                    f"{'*' if name == current else ' '} {name}" for name in self.limbic.personas()
                ]
            case ["switch", name]:
                if name not in self.limbic.personas():
                    known = ", ".join(self.limbic.personas())
                    raise InputError(f"there is no persona {name[:64]}; there are: {known}")
                persona = await self.handle.set_persona(name)
                return [f"{persona.name}: {persona.description}".rstrip(": ")]
        raise InputError("say /persona, or /persona switch NAME")

    async def _undo(self, words: list[str]) -> list[str]:
        _expect(words, "/undo")
        undone = await self.handle.undo()
        return ["there is nothing to take back"] if undone is None else [f"took back: {undone}"]

    async def _help(self, words: list[str]) -> list[str]:
        _expect(words, "/help")
        wide = max(len(command.usage) for command in COMMANDS.values())
        lines = [f"  {command.usage:<{wide}}  {command.help}" for command in COMMANDS.values()]
        return [
            *lines,
            "  Ctrl-C stops a reply, and leaves at an empty prompt; Ctrl-D leaves.",
            "  A message that begins with a slash: type it with two.",
        ]

    async def _quit(self, words: list[str]) -> list[str]:
        _expect(words, "/quit")
        self.left = True
        return []


def _expect(words: list[str], usage: str) -> None:
    if words:
        raise InputError(f"{usage} takes no words after it")


COMMANDS: dict[str, Command] = {
    "state": Command("/state", "levels now, as bars", Commands._state),
    "affect": Command("/affect", "what was last heard in your words", Commands._affect),
    "memory": Command("/memory [forget N]", "what is remembered; forget one", Commands._memory),
    "session": Command(
        "/session [list | switch NAME]", "this session; all; another one", Commands._session
    ),
    "persona": Command(
        "/persona [switch NAME]", "who may talk to you; change it", Commands._persona
    ),
    "undo": Command("/undo", "take the last exchange back", Commands._undo),
    "help": Command("/help", "this list", Commands._help),
    "quit": Command("/quit", "leave", Commands._quit),
}
