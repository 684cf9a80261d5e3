"""What the chat says about itself: commands, status lines, and text made safe to print."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain.app import Limbic
from brain.cli.screen import BOLD, ReplyText, Screen
from brain.cli.slash import COMMANDS, Commands
from brain.cli.status import (
    affect_lines,
    bar,
    clip,
    latency,
    model_trouble,
    mood_words,
    span,
    turn_status,
)
from brain.errors import ConfigError, InputError
from brain.persona import load_persona
from brain.redact import printable
from brain.schema import Affect
from brain.settings import LlmSettings, PathSettings, Settings
from brain.sidecar import SidecarStatus
from brain.state import HormoneState
from brain.turn import Turn
from tests.fakes.clock import ManualClock
from tests.fakes.llm_server import FakeLLM, reply

DAY_S = 86_400.0


@pytest.fixture
async def llm() -> AsyncIterator[FakeLLM]:
    async with FakeLLM() as server:
        yield server


def settings_in(folder: Path, llm: FakeLLM) -> Settings:
    return Settings(
        paths=PathSettings(data=folder, logs=folder / "logs"),
        llm=LlmSettings(base_url=f"{llm.url}/v1", prefill="off"),
    )


@pytest.fixture
async def commands(tmp_path: Path, llm: FakeLLM) -> AsyncIterator[Commands]:
    async with Limbic.open(settings_in(tmp_path, llm)) as limbic:
        yield Commands(limbic, limbic.session("alice"))


# -- commands


async def test_help_lists_every_command_and_unknown_ones_point_to_it(commands: Commands) -> None:
    text = "\n".join(await commands.run("/help"))
    assert all(f"/{name}" in text for name in COMMANDS)
    with pytest.raises(InputError, match="no command /nope; /help"):
        await commands.run("/nope")
    with pytest.raises(InputError, match="no command /;"):
        await commands.run("/")


async def test_state_shows_every_level_and_the_mood(commands: Commands) -> None:
    session = await commands.handle.open()
    lines = await commands.run("/state")
    assert [line.split()[0] for line in lines[:-1]] == list(session.engine.state.levels)
    assert f"{session.engine.state.levels['serotonin']:.2f}" in lines[1]
    assert lines[-1].strip() == f"mood: {mood_words(session.persona, session.engine.peek())}"


async def test_affect_says_why_there_is_none_and_shows_what_there_is(commands: Commands) -> None:
    assert await commands.run("/affect") == ["no affect: sidecars.cahm is switched off"]
    session = await commands.handle.open()
    session.last_affect = Affect(
        valence=-0.5, intimacy=0.25, tension=1, confidence=0.8, tags=("hostile_intimacy",),
        reasoning="sharp\nwords", latency_ms=12,
    )  # fmt: skip
    text = "\n".join(await commands.run("/affect"))
    for part in ("valence", "-0.50", "+0.25", "+1.00", "0.80", "12 ms", "hostile_intimacy"):
        assert part in text
    assert "sharp words" in text


async def test_memories_are_listed_and_forgotten(commands: Commands) -> None:
    assert await commands.run("/memory") == ["no memories yet"]
    await commands.handle.say("my sister Ann lives in Porto now")
    (line,) = await commands.run("/memory")
    assert line.split()[0] == "1" and line.endswith("my sister Ann lives in Porto now")
    assert await commands.run("/memory forget 1") == ["forgot 1"]
    assert await commands.run("/memory forget 1") == ["there is no memory 1"]
    assert await commands.run("/memory forget " + "9" * 30) == [f"there is no memory {'9' * 30}"]
    assert await commands.run("/memory list") == ["no memories yet"]
    for wrong in ("/memory forget", "/memory forget ١", "/memory forget -1", "/memory burn 1"):
        with pytest.raises(InputError, match="forget NUMBER"):
            await commands.run(wrong)


async def test_sessions_are_shown_listed_and_switched(commands: Commands) -> None:
    await commands.handle.say("hello")
    assert (await commands.run("/session"))[0] == (
        "session alice · persona companion · 1 turns in the prompt"
    )
    assert await commands.run("/session switch bob") == ["session bob"]
    assert commands.handle.session_id == "bob"
    listed = await commands.run("/session list")
    assert sorted(line[:7] for line in listed) == ["  alice", "* bob  "]
    back = await commands.run("/session switch alice")
    assert "you said “hello” and heard “Hello there!”" in back[1]
    with pytest.raises(InputError, match="a session id"):
        await commands.run("/session switch ../etc")
    assert commands.handle.session_id == "alice"


async def test_personas_are_listed_and_switched(commands: Commands) -> None:
    assert await commands.run("/persona") == ["* companion", "  maverick"]
    (said,) = await commands.run("/persona switch maverick")
    assert said.startswith("maverick: ")
    assert await commands.run("/persona list") == ["  companion", "* maverick"]
    with pytest.raises(InputError, match="no persona nobody; there are: companion, maverick"):
        await commands.run("/persona switch nobody")


async def test_undo_takes_the_last_exchange_back(commands: Commands) -> None:
    await commands.handle.say("one")
    await commands.handle.say("two")
    assert await commands.run("/undo") == ["took back: two"]
    assert await commands.run("/undo") == ["took back: one"]
    assert await commands.run("/undo") == ["there is nothing to take back"]


async def test_quit_leaves_and_takes_no_words(commands: Commands) -> None:
    with pytest.raises(InputError, match="/quit takes no words"):
        await commands.run("/quit now")
    assert not commands.left
    assert await commands.run("/quit") == []
    assert commands.left


# -- coming back


async def test_a_new_session_has_no_welcome(commands: Commands) -> None:
    assert await commands.welcome() == []


async def test_a_session_is_welcomed_with_its_last_words_and_its_aged_mood(
    tmp_path: Path, llm: FakeLLM
) -> None:
    settings = settings_in(tmp_path, llm)
    long = "word " * 100
    llm.enqueue(reply(long))
    clock = ManualClock(jump=False)
    async with Limbic.open(settings, clock=clock) as limbic:
        session = await limbic.session("a").open()
        await session.engine.restore(
            session.engine.state.model_copy(
                update={"levels": {**session.engine.state.levels, "cortisol": 0.95}}
            )
        )
        await limbic.session("a").say("I had a rough day")
    later = ManualClock(epoch=clock.time() + 3 * DAY_S)
    async with Limbic.open(settings, clock=later) as limbic:
        first, second = await Commands(limbic, limbic.session("a")).welcome()
    assert first.startswith("3 days ago you said “I had a rough day” and heard “word word")
    assert first.endswith("…”") and len(first) <= 80
    assert second.startswith("mood: ")
    then, now = second.removeprefix("mood: ").split(" then, ")
    assert "tense" in then and "tense" not in now and now.endswith(" now")


# -- status


def finished(**changes: object) -> Turn:
    async def never(_: Turn) -> AsyncIterator[str]:
        yield ""

    turn = Turn("s", "t", "hi", never)  # type: ignore[arg-type]
    for name, value in changes.items():
        setattr(turn, name, value)
    return turn


def test_the_status_of_a_turn_has_mood_late_marks_and_latency() -> None:
    persona = load_persona("companion", Settings())
    rest = HormoneState(
        levels={n: lv.baseline for n, lv in persona.hormones.levels.items()}, at_s=0
    )
    turn = finished(
        state=rest,
        sides={"affect": {"outcome": "late"}, "foresight": {"outcome": "down"},
               "recall": {"outcome": "on_time"}},
        late_applied=[{"side": "affect", "age_s": 75.0, "weight": 0.4},
                      {"side": "foresight", "age_s": 900.0, "weight": 0.0}],
        timings={"first_token_ms": 240.4, "total_ms": 1_930.0},
    )  # fmt: skip
    assert turn_status(turn, persona) == (
        "even and attentive · affect late · foresight down · affect of 1 minute ago joined"
        " · first token 240 ms · total 1.9 s"
    )
    assert turn_status(finished(), persona) == ""


def test_times_are_said_in_their_largest_whole_unit() -> None:
    said = [span(s) for s in (0, 0.9, 1, 59, 60, 7_199, 7_200, DAY_S, 400 * DAY_S)]
    assert said == [
        "a moment", "a moment", "1 second", "59 seconds", "1 minute", "1 hour", "2 hours",
        "1 day", "400 days",
    ]  # fmt: skip
    assert (latency(3.2), latency(999.4), latency(1000)) == ("3 ms", "999 ms", "1.0 s")


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (SidecarStatus("ready", reason=""), None),
        (SidecarStatus("remote"), None),
        (SidecarStatus("starting"), "loading…"),
        (SidecarStatus("starting", reason="loading model.gguf: 31 %"), "loading… model.gguf: 31 %"),
        (SidecarStatus("starting", restarts=1, reason="killed"), "restarting… killed"),
        (SidecarStatus("restarting", reason="killed"), "restarting… killed"),
        (SidecarStatus("failed", reason="no such file"), "failed: no such file"),
        (SidecarStatus("stopped"), "stopped"),
    ],
)
async def test_trouble_with_the_model_is_said_in_a_few_words(
    commands: Commands, monkeypatch: pytest.MonkeyPatch, status: SidecarStatus, said: str | None
) -> None:
    monkeypatch.setattr(commands.limbic.supervisor, "status", lambda: {"llm": status})
    assert model_trouble(commands.limbic) == said


def test_no_affect_yet_differs_from_no_classifier() -> None:
    assert affect_lines(None, classifier=True) == ["no affect: nothing has been scored yet"]


@given(share=st.floats(0, 1), cells=st.integers(1, 60))
def test_a_bar_is_as_full_as_its_share(share: float, cells: int) -> None:
    drawn = bar(share, cells=cells)
    assert len(drawn) == cells
    assert abs(drawn.count("█") - share * cells) <= 0.5
    assert drawn == "█" * drawn.count("█") + "░" * drawn.count("░")


@given(text=st.text(), chars=st.integers(1, 40))
def test_clipped_text_is_one_line_of_limited_length(text: str, chars: int) -> None:
    said = clip(text, chars)
    assert len(said) <= chars and "\n" not in said
    whole = " ".join(text.split())
    assert said == whole or (said.endswith("…") and whole.startswith(said[:-1]))


# -- text made safe

hostile = st.text(st.sampled_from("ab \n\t\r\x1b\x07\x9b\u202e\u2028é"), max_size=12)


@given(tokens=st.lists(hostile, max_size=8))
def test_a_streamed_reply_prints_the_same_however_it_is_cut(tokens: list[str]) -> None:
    reply_text = ReplyText()
    shown = "".join(map(reply_text.feed, tokens)) + reply_text.end()
    assert shown == printable("".join(tokens).lstrip().replace("\r\n", "\n"))
    assert all(c.isprintable() or c in "\n\t" for c in shown)


def terminal(encoding: str = "utf-8") -> tuple[Screen, io.BytesIO]:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    stream.isatty = lambda: True  # type: ignore[method-assign]
    return Screen(stream), raw


def test_styles_need_a_terminal_that_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert terminal()[0].styled("x", BOLD) == "\x1b[1mx\x1b[0m"
    assert Screen(io.StringIO()).styled("x", BOLD) == "x"
    monkeypatch.setenv("TERM", "dumb")
    assert terminal()[0].styled("x", BOLD) == "x"
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert terminal()[0].styled("\x1bx", BOLD) == "\\x1bx"


def test_lines_begin_at_the_left_and_notes_overwrite_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    screen, raw = terminal()
    screen.write("half a reply")
    screen.line("status")
    screen.note("loading… 10 %")
    screen.note("9")
    screen.note("")
    screen.line("ready")
    assert raw.getvalue().decode() == (
        f"half a reply\nstatus\n\r\rloading… 10 %\r{' ' * 13}\r9\r \rready\n"
    )


def test_what_a_terminal_cannot_encode_is_shown_as_an_escape() -> None:
    screen, raw = terminal("ascii")
    screen.write("é█\udc80")
    assert raw.getvalue() == b"\\xe9\\u2588\\udc80"
    assert not screen.gone


def test_a_terminal_that_went_away_is_noticed_and_never_raised() -> None:
    class Gone(io.StringIO):
        def write(self, text: str, /) -> int:
            raise OSError(5, "Input/output error")

    screen = Screen(Gone())
    screen.write("hello")
    screen.line("status")
    assert screen.gone


async def test_an_unknown_persona_in_the_settings_is_said_at_once(
    tmp_path: Path, llm: FakeLLM
) -> None:
    settings = settings_in(tmp_path, llm)
    wrong = settings.model_copy(update={"chat": settings.chat.model_copy(update={"persona": "x"})})
    with pytest.raises(ConfigError, match="persona 'x' not found"):
        await Limbic.open(wrong).__aenter__()
