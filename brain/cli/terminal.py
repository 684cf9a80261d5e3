"""A conversation at a terminal: editing and history, streamed replies, a line of status.

The prompt is open while the model still loads. Ctrl-C stops a running reply; at an empty prompt, or
while nothing runs, it leaves.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import termios
from collections.abc import AsyncGenerator, Coroutine, Iterable, Iterator
from contextlib import aclosing, contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.styles import Style

from brain.app import Limbic
from brain.cli.screen import BOLD, DIM, ReplyText, Screen, wants_colour
from brain.cli.slash import COMMANDS, Commands
from brain.cli.status import (
    REDRAW_S,
    clip,
    model_trouble,
    mood_words,
    turn_status,
    until_loaded,
)
from brain.cli.stopping import Stopped, drain, unless_stopped
from brain.errors import LimbicError
from brain.redact import printable
from brain.sessions import Session
from brain.turn import Turn

HISTORY_FILE = "chat_history"
PROMPT = "you> "


class Conversation:
    """One person at one terminal; ends when they leave, the terminal goes, or ``stop`` is set."""

    def __init__(self, limbic: Limbic, commands: Commands, stop: asyncio.Event) -> None:
        self._limbic = limbic
        self._commands = commands
        self._stop = stop
        self._screen = Screen(sys.stdout)
        self._errors = Screen(sys.stderr)
        self._session: Session
        self._running: asyncio.Task[None] | None = None
        self._interrupted = False
        self._prompt = self._make_prompt()

    async def run(self) -> None:
        """Talk until it ends. Raises ``LimbicError`` only when the session cannot be opened."""
        loop = asyncio.get_running_loop()
        self._session = await self._commands.handle.open()
        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        try:
            with suppress(Stopped):
                for line in await self._commands.welcome():
                    self._screen.line(line, DIM)
                self._screen.line("/help lists the commands, Ctrl-D leaves", DIM)
                if model_trouble(self._limbic) is not None:
                    self._screen.line("the model is loading; you can write already", DIM)
                while not (self._commands.left or self._screen.gone or self._stop.is_set()):
                    text = await self._ask()
                    if text is None:
                        return
                    await self._act(text)
        finally:
            loop.remove_signal_handler(signal.SIGINT)

    async def _ask(self) -> str | None:
        """What the person typed; ``None`` when they leave."""
        watching = asyncio.create_task(self._keep_toolbar())
        asking = self._prompt.prompt_async(handle_sigint=False, set_exception_handler=False)
        try:
            return (await unless_stopped(asking, self._stop)).strip()
        except EOFError:
            return None
        finally:
            watching.cancel()

    async def _keep_toolbar(self) -> None:
        """Redraw when the status under the prompt changes, and only then."""
        shown = self._status()
        while True:
            await asyncio.sleep(REDRAW_S)
            if (now := self._status()) != shown:
                self._prompt.app.invalidate()
                shown = now

    async def _act(self, text: str) -> None:
        if not text:
            return
        if text.startswith("/") and not text.startswith("//"):
            await self._interruptible(self._command(text))
        else:
            message = text[1:] if text.startswith("//") else text
            with quiet_keys():
                await self._interruptible(self._speak(message))

    async def _interruptible(self, work: Coroutine[Any, Any, None]) -> None:
        """Run one reply or command; an error is one line, and the conversation goes on."""
        self._interrupted = False
        task = self._running = asyncio.create_task(work)
        try:
            await drain(task, self._stop, clock=self._limbic.clock)
        finally:
            self._running = None
        if task.cancelled():
            return
        try:
            task.result()
        except LimbicError as error:
            self._screen.end_line()
            self._errors.line(f"limbic: {clip(str(error), 500)}")

    async def _command(self, text: str) -> None:
        for line in await self._commands.run(text):
            self._screen.line(line)
        self._session = await self._commands.handle.open()

    async def _speak(self, message: str) -> None:
        await unless_stopped(until_loaded(self._limbic, self._note), self._stop)
        turn = self._commands.handle.say(message)
        try:
            await self._stream(turn)
        finally:
            if turn.status in ("done", "partial", "cancelled"):
                self._finish(turn)

    def _note(self, text: str) -> None:
        # A wrapped line could not be overwritten.
        self._screen.note(clip(text, shutil.get_terminal_size().columns - 1))

    async def _stream(self, turn: Turn) -> None:
        screen, reply = self._screen, ReplyText()
        screen.write(screen.styled(f"{self._session.persona.name}> ", BOLD))
        async with aclosing(cast("AsyncGenerator[str, None]", aiter(turn))) as tokens:
            async for token in tokens:
                screen.write(reply.feed(token))
        screen.write(reply.end())

    def _finish(self, turn: Turn) -> None:
        parts = {"cancelled": "stopped", "partial": "broken off"}
        said = [parts[turn.status]] if turn.status in parts else []
        if rest := turn_status(turn, self._session.persona):
            said.append(rest)
        self._screen.line(f"[{' · '.join(said)}]", DIM)

    def _interrupt(self) -> None:
        """Ctrl-C, or SIGINT from elsewhere."""
        if self._running is not None and not self._interrupted:
            self._interrupted = True
            self._running.cancel()
        else:
            self._stop.set()

    def _make_prompt(self) -> PromptSession[str]:
        keys = KeyBindings()
        colour = wants_colour(sys.stdout)

        @keys.add("c-c")
        def _clear_or_leave(event: KeyPressEvent) -> None:
            if event.current_buffer.text:
                event.current_buffer.reset()
            else:
                event.app.exit(exception=EOFError())

        return PromptSession(
            PROMPT,
            history=chat_history(self._limbic.settings.data_dir / HISTORY_FILE),
            key_bindings=keys,
            completer=_CommandNames(),
            complete_while_typing=False,
            bottom_toolbar=self._toolbar,
            style=Style.from_dict({"bottom-toolbar": "noreverse" + (" dim" if colour else "")}),
            include_default_pygments_style=False,
            reserve_space_for_menu=4,
            # Raising KeyboardInterrupt inside a task would end the event loop itself.
            interrupt_exception=EOFError,
        )

    def _toolbar(self) -> FormattedText:
        width = get_app().output.get_size().columns
        return FormattedText([("", clip(self._status(), width - 1))])

    def _status(self) -> str:
        """Session, persona, the model's trouble or else the mood, what came late."""
        session = self._session
        parts = [
            session.session_id,
            session.persona.name,
            model_trouble(self._limbic) or mood_words(session.persona, session.engine.peek()),
            *(f"{answer.side} came late, joins the next turn" for answer in session.late),
        ]
        return printable(" · ".join(parts))


class _CommandNames(Completer):
    """Completes the first word of a command."""

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        typed = document.text_before_cursor
        if typed.startswith("/") and " " not in typed:
            for name in COMMANDS:
                if name.startswith(typed[1:]):
                    yield Completion(f"/{name}", start_position=-len(typed))


class _QuietFileHistory(FileHistory):
    """A history file that must not end a conversation: a full disk loses the line, no more."""

    def store_string(self, string: str) -> None:
        with suppress(OSError):
            super().store_string(string)


def chat_history(path: Path) -> History:
    """Typed lines kept in ``path``, readable by its owner only; in memory if it cannot be used."""
    try:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(path, flags, 0o600)
        try:
            os.fchmod(fd, 0o600)
        finally:
            os.close(fd)
    except OSError:
        return InMemoryHistory()
    return _QuietFileHistory(str(path))


@contextmanager
def quiet_keys() -> Iterator[None]:
    """What is typed meanwhile is kept for the next prompt, and not echoed into the reply."""
    fd = sys.stdin.fileno()
    try:
        before = termios.tcgetattr(fd)
        silent = [*before]
        silent[3] &= ~termios.ECHO
        termios.tcsetattr(fd, termios.TCSANOW, silent)
    except termios.error:  # the terminal is gone
        yield
        return
    try:
        yield
    finally:
        with suppress(termios.error):
            termios.tcsetattr(fd, termios.TCSANOW, before)
