"""Running figures behind ``GET /telemetry/snapshot``: counts, recent turns, latency percentiles."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from brain.clock import Clock
from brain.redact import scrub
from brain.schema import Affect
from brain.turn import Turn

Key = tuple[str, str]
WINDOW = 200
RECENT = 20
SIDES = ("affect", "foresight", "recall")
GIVEN_UP = {"side_missed": "missed", "side_down": "down"}


class Latencies:
    """The last 200 latencies of one part, in milliseconds."""

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=WINDOW)

    def add(self, value_ms: float) -> None:
        """Add one; the oldest of more than 200 goes."""
        self._values.append(value_ms)

    def summary(self) -> dict[str, float | int]:
        """``{"p50", "p95", "n"}`` by the nearest-rank method; zeros when there is nothing."""
        ranked = sorted(self._values)
        return {"p50": _rank(ranked, 0.50), "p95": _rank(ranked, 0.95), "n": len(ranked)}


def _rank(ranked: Sequence[float], share: float) -> float:
    if not ranked:
        return 0.0
    return round(ranked[max(0, -(-int(share * 100) * len(ranked) // 100) - 1)], 2)


class Side:
    """Counts of one side model: on time, late, missed, down."""

    def __init__(self) -> None:
        self.latency = Latencies()
        self.outcomes: Counter[str] = Counter()

    def note(self, outcome: str, latency_ms: float) -> None:
        """One settled answer; only answers that came have a latency."""
        self.outcomes[outcome] += 1
        if outcome in ("on_time", "late"):
            self.latency.add(latency_ms)

    def summary(self) -> dict[str, Any]:
        """The part of the snapshot that every side model has."""
        return {
            "latency_ms": self.latency.summary(),
            "on_time": self.outcomes["on_time"],
            "late": self.outcomes["late"],
            "missed": self.outcomes["missed"],
            "down": self.outcomes["down"],
        }


class Snapshot:
    """What is known of the running brain; updated by telemetry, read by the endpoint."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._started = clock.monotonic()
        self._sides = {"affect": Side(), "foresight": Side()}
        self._expected: list[int] = []
        self._last_affect: dict[str, Any] | None = None
        self._heard: dict[Key, dict[str, Any]] = {}  # by session and turn, the latest last
        self._settled: dict[Key, dict[str, Any]] = {}  # by turn and side, the same
        self._surprise: float | None = None
        self._behaviour: dict[str, Any] = {}
        self._ttft = Latencies()
        self._rates: deque[float] = deque(maxlen=20)
        self._model = ""
        self._retries = 0
        self._turns: Counter[str] = Counter()
        self._recent: deque[dict[str, Any]] = deque(maxlen=RECENT)

    def note_affect(self, session_id: str, turn_id: str, affect: Affect, *, late: bool) -> None:
        """The latest affect answer, on time or late; its turn may not have ended yet."""
        self._last_affect = {
            "turn_id": turn_id, "valence": affect.valence, "intimacy": affect.intimacy,
            "tension": affect.tension, "confidence": affect.confidence, "tags": list(affect.tags),
            "reasoning": affect.reasoning, "latency_ms": round(affect.latency_ms, 1), "late": late,
        }  # fmt: skip
        _put_latest(self._heard, (session_id, turn_id), self._last_affect)
        for item in self._recent:
            if (item["session_id"], item["turn_id"]) == (session_id, turn_id):
                item["affect"], item["reasoning"] = self._last_affect, affect.reasoning

    def note_expected(self, turns: list[int]) -> None:
        """The turns whose memories were looked up for the message foreseen next."""
        self._expected = turns

    def note_surprise(self, surprise: float | None) -> None:
        """The latest surprise that was measured."""
        if surprise is not None:
            self._surprise = surprise

    def note_reasoning(self, session_id: str, turn_id: str, reasoning: str) -> None:
        """Why a message was scored as it was; it comes after the scores."""
        if (session_id, turn_id) in self._heard:
            self._heard[session_id, turn_id]["reasoning"] = reasoning
        for item in self._recent:
            if (item["session_id"], item["turn_id"]) == (session_id, turn_id):
                item["reasoning"] = reasoning

    def note_side(self, name: str, outcome: str, latency_ms: float) -> None:
        """What became of one side model's answer; called once for each question."""
        if name in self._sides:
            self._sides[name].note(outcome, latency_ms)

    def note_event(self, event: str, fields: Mapping[str, Any]) -> None:
        """What became of an answer that was still awaited when its turn was recorded."""
        name, outcome = settled(event, fields)
        turn_id = fields.get("turn_id")
        if not name or not isinstance(turn_id, str):
            return
        known = [item for item in self._recent if item["turn_id"] == turn_id]
        for item in known:
            if name in item["sides"]:
                item["sides"][name] = outcome
        if not known:  # its record is made and not noted yet: a turn is stored before it is told
            _put_latest(self._settled, (turn_id, name), outcome)

    def note_turn(self, record: Mapping[str, Any], turn: Turn) -> None:
        """A finished turn: status, latency, tokens, behaviour."""
        self._turns[str(record["status"])] += 1
        if record["behaviour"]:
            self._behaviour = dict(record["behaviour"])
        self.note_surprise(record["surprise"])
        llm = record["llm"]
        if llm:
            self._model = llm["model"] or self._model
            self._retries += llm["retries"] or 0
            if llm["ttft_ms"] is not None:
                self._ttft.add(llm["ttft_ms"])
            span_s = (
                turn.timings.get("total_ms", 0.0) - turn.timings.get("first_token_ms", 0.0)
            ) / 1000
            if llm["completion_tokens"] and span_s > 0:
                self._rates.append(llm["completion_tokens"] / span_s)
        affect = self._heard.get((turn.session_id, turn.turn_id))
        error = record["error"]
        self._recent.append(
            {"turn_id": turn.turn_id, "session_id": turn.session_id, "at": _now(self._clock),
             "status": record["status"], "affect": affect,
             "reasoning": affect["reasoning"] if affect else "",
             "error": {**error, "message": scrub(error["message"])} if error else None,
             "sides": {name: self._told(turn.turn_id, name, side)
                       for name, side in record["sides"].items()},
             "timings": {name: record["timings"][name] for name in ("first_token_ms", "total_ms")
                         if name in record["timings"]}}
        )  # fmt: skip

    def _told(self, turn_id: str, name: str, side: Mapping[str, Any]) -> dict[str, Any]:
        """What became of a side model's answer by now; its turn's record knows of the window."""
        later = self._settled.pop((turn_id, name), None)
        return dict(later if later is not None and side.get("outcome") == "late" else side)

    def render(
        self,
        *,
        sidecars: Mapping[str, Any],
        hormones: Mapping[str, float],
        breaker: str,
        problems: Sequence[str],
    ) -> dict[str, Any]:
        """The snapshot of ``docs/contracts.md``."""
        parts = {name: _sidecar(status) for name, status in sidecars.items()}
        reasons = list(problems)
        reasons += [
            f"{name}: {part['state']} {part['reason']}".rstrip()
            for name, part in parts.items()
            if part["state"] not in ("ready", "remote", "off")
        ]
        unready = any(
            status.required and status.state not in ("ready", "remote", "off")
            for status in sidecars.values()
        )
        if breaker == "open":  # remote servers are not watched: this is what is known of one
            reasons.append("llm: failed repeatedly and is not asked for a while")
            unready = True
        rate = sum(self._rates) / len(self._rates) if self._rates else 0.0
        return {
            "time": _now(self._clock),
            "uptime_s": round(self._clock.monotonic() - self._started, 3),
            "status": "unready" if unready else "degraded" if reasons else "ok",
            "problems": reasons,
            "affect": {"last": self._last_affect, **self._sides["affect"].summary()},
            "foresight": {
                "surprise": self._surprise,
                "expected": self._expected,
                **self._sides["foresight"].summary(),
            },
            "hormones": {name: round(level, 4) for name, level in hormones.items()},
            "behaviour": self._behaviour,
            "llm": {
                "model": self._model, "ttft_ms": self._ttft.summary(),
                "tokens_per_s": round(rate, 1), "retries": self._retries, "breaker": breaker,
            },
            "turns": dict(self._turns),
            "sidecars": parts,
            "recent": list(self._recent),
        }  # fmt: skip


def settled(event: str, fields: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The side model of an event such as ``late_affect`` or ``side_down``, and its outcome in the
    form that a turn's record has; an empty name for any other event."""
    name = fields.get("side") if event in GIVEN_UP else event.removeprefix("late_")
    if name not in SIDES or name == event:
        return "", {}
    outcome = {"outcome": GIVEN_UP.get(event, "late"),
               "ms": fields.get("age_ms", fields.get("limit_ms", 0.0))}  # fmt: skip
    return name, {**outcome, "reason": fields["reason"]} if fields.get("reason") else outcome


def _put_latest(kept: dict[Key, dict[str, Any]], key: Key, value: dict[str, Any]) -> None:
    """Keep the value, and no more than the latest ``WINDOW``."""
    kept[key] = value
    while len(kept) > WINDOW:
        del kept[next(iter(kept))]


def _sidecar(status: Any) -> dict[str, Any]:
    return {
        "state": status.state, "pid": status.pid, "restarts": status.restarts,
        "model": status.model, "sha256": status.sha256, "rss_mb": status.rss_mb,
        "queue": status.queue, "reason": status.reason,
    }  # fmt: skip


def _now(clock: Clock) -> str:
    at = datetime.fromtimestamp(clock.time(), UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
