"""Labelling in the terminal: one key an axis step, everything on one screen."""

from __future__ import annotations

from collections.abc import Callable

from prompt_toolkit.application import Application
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout import (
    BufferControl,
    ConditionalContainer,
    FormattedTextControl,
    HSplit,
    Layout,
    VSplit,
    Window,
)
from prompt_toolkit.output import Output
from prompt_toolkit.styles import Style

from trainers.affect.label.form import ENDS, FIELDS, TAG_KEYS, Form, low_of
from trainers.affect.label.items import MAX_NOTE_CHARS, Label
from trainers.affect.label.log import LabelError
from trainers.affect.label.session import LabelSession

_STYLE = Style.from_dict(
    {
        "bar": "reverse",
        "text": "bold",
        "dim": "ansibrightblack",
        "focus": "ansicyan bold",
        "tag.on": "ansigreen bold",
        "key": "ansiyellow",
        "bad": "ansired bold",
        "good": "ansigreen",
    }
)
_SCALE_WIDTH = 41
_HELP = (
    "1-9 set, ←→ nudge, ↑↓ axis, letters tags, Enter save, k skip, z undo, y redo, m note, "
    "? guidelines, Ctrl-Q quit"
)
_HELP_RESOLVE = _HELP.replace("k skip", "[ ] take a rater's, x drop")


class LabelScreen:
    """The application. `run` returns when the rater quits or the queue is empty."""

    def __init__(self, session: LabelSession, guidelines: str) -> None:
        self._session = session
        self._guidelines = Buffer(document=Document(guidelines, 0), read_only=True)
        self._show_guidelines = False
        self._writing_note = False
        self._message: tuple[str, str] = ("", "")
        self._form = Form()
        self._note = Buffer(multiline=False)
        self._load()

    def run(self, input: Input | None = None, output: Output | None = None) -> None:
        """Take over the terminal (or the given input and output, in tests)."""
        self._application(input, output).run()

    # ------------------------------------------------------------------ drawing

    def _application(self, input: Input | None, output: Output | None) -> Application[None]:
        note = ConditionalContainer(
            VSplit(
                [
                    Window(width=7, char=" ", content=FormattedTextControl(" note: ")),
                    Window(BufferControl(self._note), height=1),
                ]
            ),
            filter=Condition(lambda: self._writing_note),
        )
        body = Window(
            FormattedTextControl(self._draw, focusable=True, show_cursor=False), wrap_lines=True
        )
        self._body = body
        self._page = Window(BufferControl(self._guidelines), wrap_lines=True)
        reading = Condition(lambda: self._show_guidelines)
        bar = Window(FormattedTextControl(self._bar), height=1, style="class:bar")
        return Application(
            layout=Layout(
                HSplit(
                    [
                        bar,
                        ConditionalContainer(self._page, filter=reading),
                        ConditionalContainer(body, filter=~reading),
                        note,
                    ]
                ),
                focused_element=body,
            ),
            key_bindings=self._bindings(),
            style=_STYLE,
            full_screen=True,
            input=input,
            output=output,
        )

    def _bar(self) -> StyleAndTextTuples:
        progress = self._session.progress()
        title = {"label": "labelling", "second": "second rater", "resolve": "resolving"}
        return [
            (
                "",
                f" {title[progress['mode']]} · {progress['rater']} · {progress['done']} done · "
                f"{progress['left']} left · guidelines {progress['guideline']} ",
            )
        ]

    def _draw(self) -> StyleAndTextTuples:
        task = self._session.current()
        if task is None:
            return [
                ("class:good", "\n  Nothing left to label here.\n"),
                ("class:dim", "  z undo, Ctrl-Q quit\n"),
            ]
        parts: StyleAndTextTuples = [("", "\n")]
        for turn in task.context:
            parts.append(("class:dim", f"  before: {turn}\n"))
        parts.append(("class:text", f"\n  {task.text}\n\n"))
        for name in FIELDS:
            parts.extend(self._scale(name))
        parts.append(("", "\n  "))
        for key, tag in TAG_KEYS.items():
            on = tag in self._form.tags
            parts.append(("class:key", key))
            parts.append(("class:tag.on" if on else "", f" {'●' if on else '○'} {tag}   "))
        parts.append(("", "\n"))
        if self._form.note:
            parts.append(("class:dim", f"\n  note: {self._form.note}\n"))
        for number, (who, label) in enumerate((task.others or {}).items()):
            parts.append(("class:key", f"\n  {'[]'[number] if number < 2 else ' '} "))
            parts.append(("", f"{who}: {_spoken(label)}"))
        style, message = self._message
        parts.append((style, f"\n\n  {message}\n"))
        parts.append(("class:dim", f"  {_HELP_RESOLVE if task.others else _HELP}"))
        return parts

    def _scale(self, name: str) -> StyleAndTextTuples:
        value = self._form.values.get(name)
        focused = self._form.focused == name
        line = ["─"] * _SCALE_WIDTH
        line[0], line[_SCALE_WIDTH // 2], line[-1] = "├", "┼", "┤"
        if value is not None:
            low = low_of(name)
            line[round((value - low) / (1 - low) * (_SCALE_WIDTH - 1))] = "●"
        left, right = ENDS[name]
        shown = "  ·  " if value is None else f"{value:+.2f}" if low_of(name) else f"{value:.2f}"
        style = "class:focus" if focused else ""
        return [
            (style, f"  {'›' if focused else ' '} {name:<11}"),
            ("class:dim", f"{left:>12} "),
            (style, "".join(line)),
            ("class:dim", f" {right:<17}"),
            (style, f"{shown}\n"),
        ]

    # ------------------------------------------------------------------ doing

    def _load(self) -> None:
        task = self._session.current()
        self._form = Form.of(task.label if task else None)

    def _try(self, act: Callable[[], None], done: str) -> None:
        try:
            act()
        except LabelError as error:
            self._message = ("class:bad", str(error))
            return
        self._message = ("class:good", done)
        self._load()

    def _save(self) -> None:
        if self._session.current() is None:
            return
        if missing := self._form.missing():
            self._form.focus = FIELDS.index(missing[0])
            self._message = ("class:bad", f"not saved: {', '.join(missing)} not set")
            return
        label = self._form.label()
        self._try(lambda: self._session.save(label), f"saved {_spoken(label)}")

    def _adopt(self, number: int) -> None:
        task = self._session.current()
        labels = list((task.others or {}).values()) if task else []
        if number < len(labels):
            self._form = Form.of(labels[number])

    def _bindings(self) -> KeyBindings:
        keys = KeyBindings()
        on_form = Condition(lambda: not self._writing_note and not self._show_guidelines)
        writing = Condition(lambda: self._writing_note)
        not_writing = ~writing

        def bind(*names: str) -> Callable[[Callable[[KeyPressEvent], None]], object]:
            def add(handler: Callable[[KeyPressEvent], None]) -> object:
                for name in names:
                    keys.add(name, filter=on_form)(handler)
                return handler

            return add

        def press_digit(event: KeyPressEvent) -> None:
            self._form.digit(int(event.data))

        def press_tag(event: KeyPressEvent) -> None:
            self._form.toggle(TAG_KEYS[event.data])

        bind(*"0123456789")(press_digit)
        bind(*TAG_KEYS)(press_tag)
        bind("left", "-")(lambda event: self._form.nudge(-1))
        bind("right", "+")(lambda event: self._form.nudge(1))
        bind("up", "s-tab")(lambda event: self._form.move(-1))
        bind("down", "tab")(lambda event: self._form.move(1))
        bind("enter")(lambda event: self._save())
        bind("k")(lambda event: self._try(lambda: self._session.skip(self._form.note), "skipped"))
        bind("x")(lambda event: self._try(lambda: self._session.drop(self._form.note), "dropped"))
        bind("z")(lambda event: self._try(self._session.undo, "taken back"))
        bind("y")(lambda event: self._try(self._session.redo, "made again"))
        bind("[")(lambda event: self._adopt(0))
        bind("]")(lambda event: self._adopt(1))

        @keys.add("?", filter=not_writing)
        def _(event: KeyPressEvent) -> None:
            self._show_guidelines = not self._show_guidelines
            event.app.layout.focus(self._page if self._show_guidelines else self._body)

        @keys.add("m", filter=on_form)
        def _(event: KeyPressEvent) -> None:
            self._writing_note = True
            self._note.text = self._form.note
            event.app.layout.focus(self._note)

        @keys.add("enter", filter=writing)
        @keys.add("escape", filter=writing, eager=True)
        def _(event: KeyPressEvent) -> None:
            self._form.note = self._note.text.strip()[:MAX_NOTE_CHARS]
            self._writing_note = False
            event.app.layout.focus(self._body)

        @keys.add("c-q")
        @keys.add("c-c")
        def _(event: KeyPressEvent) -> None:
            event.app.exit()

        return keys


def _spoken(label: Label) -> str:
    scores = " ".join(
        f"{axis[0].upper()}{value:+.2f}" for axis, value in zip(FIELDS, label.scores, strict=False)
    )
    return f"{scores} confidence {label.confidence:.2f} {', '.join(label.tags)}".rstrip()
