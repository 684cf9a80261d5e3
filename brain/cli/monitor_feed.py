"""What a watched brain did: turns and events, put together from its snapshot and its logs.

A turn comes in pieces and from several places: scores from ``affect_head_raw.jsonl``, its end from
``turns.jsonl``, answers given up later from ``events.jsonl``, the reason of its scores last of all;
the snapshot has the latest turns too. Its id joins them. All of it may be odd: what does not fit is
left out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from brain.logtail import Mark
from brain.snapshot import SIDES, Side, settled

KEPT = 200
AXES = ("valence", "intimacy", "tension")
# Of every turn, and shown with it.
ROUTINE = frozenset({"turn", "affect_call", "sidecar_progress", "llm_reconnect"})
UNTOLD = frozenset({"event", "time", "sha256", "level"})
ABOUT = ("name", "remote", "side")
REASONS = ("error", "reason", "detail")
WORDS = {"start": "brain started", "stop": "brain stopped"}
BAD = re.compile(r"ended|failed|error|opened|degraded|missed|dropped|dump|not_")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[.\dZ+:-]*")

Part = tuple[str, str]  # style ("", "good", "warn", "bad", "dim"), text of one line


@dataclass(slots=True)
class Item:
    """Something that happened. ``parts`` are its lines, the most important first."""

    at: str = ""
    name: str = ""
    printed: set[str] = field(default_factory=set)

    @property
    def prefix(self) -> str:
        """The clock, and what it is about."""
        return f"{self.at[11:19]} {self.name}".strip()

    @property
    def finished(self) -> bool:
        """Whether its lines are complete, but for what may join it later."""
        return True

    def parts(self) -> list[Part]:
        """Its lines without ``prefix``."""
        return []


@dataclass(slots=True)
class EventItem(Item):
    """An event of the log, or a word about the log itself."""

    text: str = ""
    style: str = ""

    def parts(self) -> list[Part]:
        return [(self.style, self.text)]


@dataclass(slots=True)
class TurnItem(Item):
    """One turn, as far as it is known."""

    status: str = ""
    scores: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    why: str = ""
    error: str = ""
    sides: dict[str, tuple[str, float, str]] = field(default_factory=dict)  # outcome, ms, reason
    joined: list[str] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return bool(self.status)

    def parts(self) -> list[Part]:
        found: list[Part] = [("", self._head())]
        if self.status in ("failed", "partial", "cancelled"):
            found.append(("warn" if self.status == "cancelled" else "bad", self._end()))
        late = [_side_words(name, *side) for name, side in sorted(self.sides.items())]
        late += self.joined
        if late:
            found.append(("warn", " · ".join(late)))
        if self.text or self.why:
            said = f"“{self.text}” " if self.text else ""
            found.append(("dim", said + (f"why: {self.why}" if self.why else "")))
        return found

    def _head(self) -> str:
        words = [score_words(self.scores) if self.scores else "no scores" * bool(self.status)]
        words += self.scores.get("tags", [])
        if not self.status:
            words.append("answering…")
        elif self.status == "done":
            words += [f"{name} {ms_words(self.timings[key])}"
                      for name, key in (("first token", "first_token_ms"), ("total", "total_ms"))
                      if key in self.timings]  # fmt: skip
        return " · ".join(filter(None, words))

    def _end(self) -> str:
        total = self.timings.get("total_ms")
        after = f" after {ms_words(total)}" if total is not None else ""
        why = self.error or ("stopped before its reply was whole" * (self.status == "cancelled"))
        return f"{self.status}{after}" + (f": {why}" if why else "")


class Feed:
    """Turns and events of a brain, the latest ``KEPT``."""

    def __init__(self) -> None:
        self._items: dict[str, Item] = {}
        self._latest = ""
        self._uptime: float | None = None
        self._reads_events = False
        self._count = 0
        self._turns: Counter[str] = Counter()
        self._sides = {"affect": Side(), "foresight": Side()}
        self._record: Mapping[str, Any] = {}

    def items(self) -> list[Item]:
        """Everything kept, oldest first."""
        return sorted(self._items.values(), key=lambda item: item.at)

    def fresh(self) -> Iterator[str]:
        """Lines that were not given before, each with its clock and name."""
        for item in self.items():
            if item.finished:
                for _, text in item.parts():
                    if text not in item.printed:
                        item.printed.add(text)
                        yield f"{item.prefix} {text}".strip()

    def take_snapshot(self, snapshot: Mapping[str, Any]) -> None:
        """The latest turns of a snapshot, and whether its brain is another than before."""
        uptime = number(snapshot.get("uptime_s"))
        at = _time(snapshot.get("time")) or self._latest
        if uptime is not None:
            if self._uptime is not None and uptime < self._uptime and not self._reads_events:
                self._event("brain restarted", at=at, style="warn")
            self._uptime = uptime
        recent = snapshot.get("recent")
        for entry in recent if isinstance(recent, list) else []:
            if isinstance(entry, Mapping) and isinstance(entry.get("turn_id"), str):
                turn = self._turn(entry["turn_id"], entry.get("at"))
                self._take_scores(turn, part(entry, "affect"))
                self._take_end(turn, entry)
                turn.why = _words(entry.get("reasoning")) or turn.why

    def take_line(self, line: str) -> None:
        """One line of any of the JSON logs."""
        if isinstance(line, Mark):
            self._event(line, style="warn")
            return
        try:
            fields = orjson.loads(line)
        except orjson.JSONDecodeError:
            return
        name = fields.get("event") if isinstance(fields, dict) else None
        if not isinstance(name, str):
            return
        turn_id = fields.get("turn_id")
        at = _time(fields.get("time"))
        side, outcome = settled(name, fields)
        if not isinstance(turn_id, str) or not turn_id:
            self._take_event(name, fields)
        elif name == "turn" and "sides" in fields:  # of turns.jsonl; events.jsonl has a shorter one
            self._take_record(self._turn(turn_id, at), fields)
        elif name == "affect":
            turn = self._turn(turn_id, at)
            self._take_scores(turn, fields)
            turn.text = _words(fields.get("text")) or turn.text
            turn.why = _words(fields.get("reasoning")) or turn.why
        elif name == "affect_reasoning":
            turn = self._turn(turn_id, at)
            turn.why = _words(fields.get("reasoning")) or turn.why
        elif side:
            self._take_side(self._turn(turn_id, at), side, outcome)
        elif name == "late_dropped" and fields.get("side") in SIDES:
            why = f"not used: {_words(fields.get('reason'))}"
            self._take_side(
                self._turn(turn_id, at), fields["side"], {"outcome": "late", "reason": why}
            )
        else:
            self._take_event(name, fields)

    def as_snapshot(self) -> dict[str, Any]:
        """What the logs alone say, in the form of a snapshot: for a chat that serves none."""
        last = next(
            (i for i in reversed(self.items()) if isinstance(i, TurnItem) and i.scores), None
        )
        return {
            "time": self._latest,
            "affect": {"last": last.scores if last else None, **self._sides["affect"].summary()},
            "foresight": {"surprise": self._record.get("surprise"),
                          **self._sides["foresight"].summary()},
            "hormones": self._record.get("hormones_after") or self._record.get("hormones_before"),
            "behaviour": self._record.get("behaviour"),
            "turns": dict(self._turns),
        }  # fmt: skip

    @property
    def last_turn_at(self) -> str:
        """When the last turn that a log told of ended; empty for none."""
        return _time(self._record.get("time"))

    def _turn(self, turn_id: str, at: Any) -> TurnItem:
        key = f"turn {turn_id}"
        found = self._items.get(key)
        when = _time(at) or self._latest
        if not isinstance(found, TurnItem):
            found = TurnItem(at=when, name=turn_id[:8])
            self._keep(key, found)
        found.at = min(found.at, when) or when
        return found

    def _keep(self, key: str, item: Item) -> None:
        self._items[key] = item
        self._latest = max(self._latest, item.at)
        while len(self._items) > KEPT:
            del self._items[next(iter(self._items))]

    def _event(self, text: str, *, at: str = "", style: str = "") -> None:
        self._count += 1
        self._keep(f"event {self._count}",
                   EventItem(at=at or self._latest, text=text, style=style))  # fmt: skip

    def _take_event(self, name: str, fields: Mapping[str, Any]) -> None:
        self._reads_events = True
        if name in ROUTINE:
            return
        style = "bad" if BAD.search(name) else "dim"
        self._event(_event_words(name, fields), at=_time(fields.get("time")), style=style)

    def _take_record(self, turn: TurnItem, record: Mapping[str, Any]) -> None:
        self._record = record
        self._turns[_words(record.get("status"))] += 1
        for name, side in part(record, "sides").items():
            ms = number(part(part(record, "sides"), name).get("ms"))
            if name in self._sides and isinstance(side, Mapping) and ms is not None:
                self._sides[name].note(_words(side.get("outcome")), ms)
        self._take_scores(turn, part(record, "affect"))
        self._take_end(turn, record)
        turn.text = _words(record.get("text")) or turn.text

    def _take_scores(self, turn: TurnItem, scores: Mapping[str, Any]) -> None:
        if all(number(scores.get(axis)) is None for axis in AXES):
            return
        tags = scores.get("tags")
        turn.scores = {
            **{key: number(scores.get(key)) for key in (*AXES, "confidence", "latency_ms")},
            "tags": [_words(tag) for tag in tags] if isinstance(tags, list) else [],
            "late": scores.get("late") is True or turn.scores.get("late", False),
        }

    def _take_end(self, turn: TurnItem, record: Mapping[str, Any]) -> None:
        turn.status = _words(record.get("status")) or turn.status
        error = part(record, "error")
        if error:
            turn.error = f"{_words(error.get('code'))}: {_words(error.get('message'))}"
        for name, side in part(record, "sides").items():
            if isinstance(side, Mapping):
                self._take_side(turn, str(name), side)
        for key, value in part(record, "timings").items():
            if (ms := number(value)) is not None:
                turn.timings[key] = ms
        late = record.get("late_applied")
        turn.joined = [
            f"late {_words(one.get('side'))} of {_words(one.get('turn_id'))[:8]} joined"
            for one in (late if isinstance(late, list) else [])
            if isinstance(one, Mapping) and (number(one.get("weight")) or 0.0) > 0
        ] or turn.joined

    def _take_side(self, turn: TurnItem, name: str, side: Mapping[str, Any]) -> None:
        """The record has what was known when the turn ended; what came later counts."""
        outcome, ms = _words(side.get("outcome")), number(side.get("ms")) or 0.0
        if outcome in ("", "on_time"):
            return
        before = turn.sides.get(name, ("late", 0.0, ""))
        if outcome != "late" or before[0] == "late":
            reason = _words(side.get("reason")) or before[2]
            turn.sides[name] = (outcome, max(ms, before[1]), reason)


def score_words(scores: Mapping[str, Any]) -> str:
    """``V-0.60 I+0.70 T+0.50 c0.82 9 ms late``."""
    words = [f"{axis[0].upper()}{value:+.2f}" for axis in AXES
             if (value := number(scores.get(axis))) is not None]  # fmt: skip
    if (confidence := number(scores.get("confidence"))) is not None:
        words.append(f"c{confidence:.2f}")
    if (ms := number(scores.get("latency_ms"))) is not None:
        words.append(ms_words(ms))
    return " ".join([*words, *(["late"] if scores.get("late") else [])])


def _side_words(name: str, outcome: str, ms: float, reason: str) -> str:
    after = f" after {ms_words(ms)}" if ms and outcome in ("late", "missed") else ""
    return f"{name} {outcome}{after}" + (f" ({reason})" if reason else "")


def _event_words(name: str, fields: Mapping[str, Any]) -> str:
    """``sidecar_ended cahm: killed by SIGKILL · pid 7101``: what tells most comes first."""
    said = {key: _words(value) or str(value) for key, value in fields.items()
            if key not in UNTOLD and isinstance(value, str | int | float)}  # fmt: skip
    who = [said.pop(key) for key in ABOUT if key in said]
    why = [said.pop(key) for key in REASONS if said.get(key)]
    head = " ".join([WORDS.get(name, name), *who])
    rest = [f"{key} {value}" for key, value in said.items()]
    return " · ".join([": ".join([head, *why]), *rest])


def ms_words(ms: float) -> str:
    """``9 ms`` or ``1.9 s``."""
    return f"{ms:.0f} ms" if ms < 1000 else f"{ms / 1000:.1f} s"


def part(of: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The mapping under a key; an empty one for anything else."""
    found = of.get(key)
    return found if isinstance(found, Mapping) else {}


def number(value: Any) -> float | None:
    """A finite number, or ``None``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e15:
        return None
    return float(value)


def _words(value: Any) -> str:
    """A string on one line; empty for anything else."""
    return " ".join(value.split()) if isinstance(value, str) else ""


def _time(value: Any) -> str:
    return value if isinstance(value, str) and TIME.fullmatch(value) else ""
