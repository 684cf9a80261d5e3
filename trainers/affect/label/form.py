"""The half-filled label on the rater's screen: pure, so that keys can be tested without a screen.

Keys, the same in the terminal and on the page: ``1``…``9`` set the focused axis (-1 to 1 in steps
of .25; confidence .1 to .9, ``0`` is 1) and move on; arrows nudge by .05 and change the focus; a
letter toggles a tag.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from trainers.affect.label.items import Label
from trainers.affect.rows import ARCHETYPES, AXES, FLAGS

FIELDS: tuple[str, ...] = (*AXES, "confidence")
ENDS: dict[str, tuple[str, str]] = {
    "valence": ("unpleasant", "pleasant"),
    "intimacy": ("cold, far", "close, open"),
    "tension": ("slack, numb", "urgent, strained"),
    "confidence": ("a guess", "certain"),
}
NUDGE = 0.05
TAG_KEYS: dict[str, str] = {
    "h": "hostile_intimacy",
    "a": "aggressive_distance",
    "n": "neutral_but_close",
    "f": "flat_numb",
    "u": "fearful_urgent",
    "p": "playful_neutral",
    "s": "safety_edge",
    "e": "everyday_neutral",
    "w": "everyday_warm",
    "i": "sarcasm",
    "q": "quoted_speech",
    "c": "creep",
    "b": "boundary",
}
if set(TAG_KEYS.values()) != {*ARCHETYPES, *FLAGS}:
    raise AssertionError("every tag needs exactly one key")


def low_of(name: str) -> float:
    """The lower end of a field's scale."""
    return 0.0 if name == "confidence" else -1.0


@dataclass(slots=True)
class Form:
    """Values by field (missing until set), tags, note, and which field has the focus."""

    values: dict[str, float] = field(default_factory=dict)
    tags: set[str] = field(default_factory=set)
    note: str = ""
    focus: int = 0

    @classmethod
    def of(cls, label: Label | None) -> Form:
        """A form that shows `label`, or an empty one."""
        if label is None:
            return cls()
        values = {name: getattr(label, name) for name in FIELDS}
        return cls(values, set(label.tags), label.note)

    @property
    def focused(self) -> str:
        return FIELDS[self.focus]

    def digit(self, digit: int) -> None:
        """Set the focused field and move to the next one. ``0`` means nothing on an axis."""
        name = self.focused
        if name == "confidence":
            self.values[name] = digit / 10 if digit else 1.0
        elif digit:
            self.values[name] = (digit - 5) / 4
        else:
            return
        self.focus = min(self.focus + 1, len(FIELDS) - 1)

    def nudge(self, steps: int) -> None:
        """Move the focused field by `steps` of .05 inside its scale."""
        name = self.focused
        start = self.values.get(name, 0.5 if name == "confidence" else 0.0)
        self.values[name] = round(min(1.0, max(low_of(name), start + steps * NUDGE)), 2) + 0.0

    def move(self, steps: int) -> None:
        """Move the focus, staying on the form."""
        self.focus = min(len(FIELDS) - 1, max(0, self.focus + steps))

    def toggle(self, tag: str) -> None:
        self.tags.symmetric_difference_update({tag})

    def missing(self) -> list[str]:
        """Fields that have no value yet."""
        return [name for name in FIELDS if name not in self.values]

    def label(self) -> Label:
        """The finished label; only when nothing is `missing`."""
        return Label(**self.values, tags=tuple(sorted(self.tags)), note=self.note)
