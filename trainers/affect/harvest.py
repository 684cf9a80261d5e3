"""`limbic data harvest`: candidates for labelling, out of the runtime's own logs and store.

Reads ``turns.jsonl``, ``affect_head_raw.jsonl`` and the SQLite store, joins them by turn, proposes
what to label next: turns on which scores disagree, the head was unsure, or the cell is rare.
Nothing is read without consent; what is written is redacted, and its session ids are hashes.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import orjson

from trainers.affect.errors import DataConfigError
from trainers.affect.heard import Heard, collect, log_records, store_turns
from trainers.affect.label.queue import Entry, Plan, band_cell, interleave, stable_fraction
from trainers.affect.redact import redact_session
from trainers.affect.reporting import reject_options, reported, settle_rejects
from trainers.affect.rows import (
    AXES,
    MAX_CONTEXT_TURNS,
    MAX_TEXT_CHARS,
    TAGS,
    Axis,
    Rejects,
    read_rows,
    stable_id,
)

SOURCE = "manual_chat"
LICENCE = "LicenseRef-private"
_CONFIDENCE_FLOOR = 0.1


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which turns are candidates. Empty criteria ask for all."""

    tags: tuple[str, ...] = ()
    bands: tuple[tuple[Axis, float, float], ...] = ()
    min_disagreement: float | None = None
    max_confidence: float | None = None

    def reasons(self, heard: Heard) -> list[str]:
        """Why this turn is wanted; empty when it is not."""
        mean = heard.mean()
        gap, axis = heard.disagreement()
        found = [f"tag {tag}" for tag in self.tags if tag in mean.tags]
        for name, low, high in self.bands:
            if name in mean.scores and low <= mean.scores[name] <= high:
                found.append(f"{name} {mean.scores[name]:+.2f} in {low:g}..{high:g}")
        if self.min_disagreement is not None and axis and gap >= self.min_disagreement:
            found.append(f"scores differ by {gap:.2f} on {axis}")
        if (
            self.max_confidence is not None
            and mean.confidence is not None
            and mean.confidence <= self.max_confidence
        ):
            found.append(f"confidence {mean.confidence:.2f}")
        if self == Wanted():
            found.append("any turn")
        return found


# ---------------------------------------------------------------------- choosing


def _sessions(turns: Iterable[Heard]) -> dict[str, list[Heard]]:
    grouped: dict[str, list[Heard]] = {}
    for heard in turns:
        grouped.setdefault(heard.session or heard.turn, []).append(heard)
    return {key: sorted(group, key=lambda heard: heard.order) for key, group in grouped.items()}


def _redacted(group: list[Heard]) -> Iterator[tuple[Heard, str, tuple[str, ...]]]:
    """Each turn of one session that has text, with its context, both redacted together."""
    spoken = [heard for heard in group if heard.text is not None]
    contexts = [
        heard.context
        if heard.context is not None
        else tuple(str(before.text) for before in spoken[max(0, i - MAX_CONTEXT_TURNS) : i])
        for i, heard in enumerate(spoken)
    ]
    parts = [str(heard.text) for heard in spoken] + [part for each in contexts for part in each]
    clean = iter(redact_session(parts))
    texts = [next(clean) for _ in spoken]
    for heard, text, context in zip(spoken, texts, contexts, strict=True):
        yield heard, text, tuple(next(clean) for _ in context)


def candidates(
    turns: Iterable[Heard],
    wanted: Wanted,
    *,
    known: Mapping[str, int] | None = None,
    known_texts: frozenset[str] = frozenset(),
    limit: int = 500,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Rows for `limbic label`, best first, each with its rank and reason.

    The value of a turn is disagreement (at least .1) over confidence; the cells with fewest `known`
    rows come first. Texts that are already labelled, repeated or too long are left out.
    """
    found: dict[str, tuple[Entry, dict[str, Any]]] = {}
    for session, group in _sessions(turns).items():
        alias = "s-" + hashlib.blake2b(session.encode(), digest_size=6).hexdigest()
        for heard, text, context in _redacted(group):
            reasons = wanted.reasons(heard)
            too_long = any(len(part) > MAX_TEXT_CHARS for part in (text, *context))
            row = stable_id(SOURCE, text, context)
            if not reasons or too_long or text in known_texts or row in found:
                continue
            mean, (gap, _) = heard.mean(), heard.disagreement()
            sure = max(0.5 if mean.confidence is None else mean.confidence, _CONFIDENCE_FLOOR)
            entry = Entry(row, max(gap, 0.1) / sure, band_cell(mean.scores), "; ".join(reasons))
            record: dict[str, Any] = {
                "id": row,
                "text": text,
                "context": list(context),
                "valence": None,
                "intimacy": None,
                "tension": None,
                "source": SOURCE,
                "licence": LICENCE,
                "quality": "auto",
                "session_id": alias,
                "model": {**mean.scores, "confidence": mean.confidence, "tags": list(mean.tags)},
            }
            found[row] = (entry, record)
    by_cell: dict[str, list[tuple[float, float, Entry]]] = {}
    for entry, _ in found.values():
        tie = stable_fraction(seed, entry.row)
        by_cell.setdefault(entry.cell, []).append((-entry.value, tie, entry))
    order = interleave(by_cell, dict(known or {}), Plan(seed=seed))[:limit]
    return [
        {**found[entry.row][1], "rank": rank, "reason": f"{entry.reason}; cell {entry.cell}"}
        for rank, entry in enumerate(order, start=1)
    ]


# ---------------------------------------------------------------------- the command


def require_consent(given: bool, config: Path | None) -> None:
    """Raise `DataConfigError` unless the user or the configuration allows harvesting."""
    if given:
        return
    if config is not None:
        try:
            settings = tomllib.loads(config.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise DataConfigError(f"{config}: cannot read the configuration: {error}") from error
        telemetry = settings.get("telemetry")
        if isinstance(telemetry, dict) and telemetry.get("harvest_consent") is True:
            return
    raise DataConfigError(
        "harvesting people's words needs consent: set telemetry.harvest_consent = true in the "
        "configuration (--config FILE) or pass --consent"
    )


def _bands(
    context: click.Context, option: click.Parameter, values: tuple[str, ...]
) -> tuple[tuple[Axis, float, float], ...]:
    found = []
    for value in values:
        name, _, span = value.partition("=")
        low, colon, high = span.partition(":")
        try:
            axis = next(axis for axis in AXES if axis == name)
            band = (axis, float(low), float(high))
        except (StopIteration, ValueError):
            colon = ""
        if not colon or not -1 <= band[1] < band[2] <= 1:
            raise click.BadParameter(f"{value!r}: write AXIS=LOW:HIGH, such as tension=0.5:1")
        found.append(band)
    return tuple(found)


@click.command(
    "harvest",
    epilog="Example: limbic data harvest --logs logs --consent --low-confidence 0.5 "
    "--out candidates_manual.jsonl",
)
@click.option("--logs", type=click.Path(path_type=Path, file_okay=False), help="The log folder.")
@click.option("--store", type=click.Path(path_type=Path, dir_okay=False), help="The SQLite store.")
@click.option("--consent", is_flag=True, help="The people in these logs have agreed.")
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Configuration with telemetry.harvest_consent.",
)
@click.option("--tag", "tags", multiple=True, type=click.Choice(sorted(TAGS)))
@click.option("--band", "bands", multiple=True, callback=_bands, help="AXIS=LOW:HIGH. Repeatable.")
@click.option("--disagreement", type=click.FloatRange(0, 2), help="At least this between scores.")
@click.option("--low-confidence", type=click.FloatRange(0, 1), help="At most this confidence.")
@click.option(
    "--known",
    type=click.Path(path_type=Path, dir_okay=False),
    multiple=True,
    help="Rows that are labelled already: left out, and their cells count as filled.",
)
@click.option("--limit", type=click.IntRange(1), default=500, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("candidates_manual.jsonl"),
    show_default=True,
)
@reject_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@reported
def harvest(
    logs: Path | None,
    store: Path | None,
    consent: bool,
    config: Path | None,
    tags: tuple[str, ...],
    bands: tuple[tuple[Axis, float, float], ...],
    disagreement: float | None,
    low_confidence: float | None,
    known: tuple[Path, ...],
    limit: int,
    seed: int,
    out: Path,
    rejects_path: Path | None,
    max_rejects: float,
    as_json: bool,
) -> None:
    """Propose turns to label next, redacted, from the runtime's logs and store."""
    if logs is None and store is None:
        raise click.UsageError("give --logs FOLDER, --store FILE or both")
    require_consent(consent, config)
    rejects = Rejects()
    records: list[Mapping[str, Any]] = []
    if store is not None:
        records.extend(store_turns(store))
    if logs is not None:
        records.extend(log_records(logs, rejects))
    settle_rejects(rejects, rejects_path, max_rejects)
    turns = collect(records)
    cells: Counter[str] = Counter()
    texts: set[str] = set()
    for row in read_rows(known):
        scored = {axis: getattr(row, axis) for axis in AXES}
        cells[band_cell({axis: v for axis, v in scored.items() if v is not None})] += 1
        texts.add(row.text)
    found = candidates(
        turns,
        Wanted(tags, bands, disagreement, low_confidence),
        known=cells,
        known_texts=frozenset(texts),
        limit=limit,
        seed=seed,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in found))
    silent = sum(heard.text is None for heard in turns)
    summary = {
        "turns": len(turns),
        "without_text": silent,
        "candidates": len(found),
        "out": str(out),
    }
    told = f"{len(found)} candidates of {len(turns)} turns in {out}"
    if silent:
        told += f"; {silent} turns had no text (telemetry.log_text was off)"
    click.echo(orjson.dumps(summary).decode() if as_json else told)


if __name__ == "__main__":
    harvest(prog_name="limbic data harvest")
