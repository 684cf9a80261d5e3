"""`limbic label terminal`, `web` and `queue`."""

from __future__ import annotations

import asyncio
import signal
import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import click

from trainers.affect.errors import DataConfigError
from trainers.affect.label.guidelines import load_guidelines
from trainers.affect.label.log import DecisionLog, read_log
from trainers.affect.label.options import (
    FILE,
    GUIDELINES,
    JSON,
    LOG,
    item_drafts,
    record,
    say,
    tell_recovery,
    with_options,
)
from trainers.affect.label.queue import (
    DEFAULT_QUOTA,
    DEFAULT_REPEAT_SHARE,
    CellKind,
    Mode,
    Plan,
    ranked,
)
from trainers.affect.label.resolve import mean_label
from trainers.affect.label.scorer import ModelScore, read_scores, tfidf_scores
from trainers.affect.label.session import LabelSession
from trainers.affect.label.state import LabelState
from trainers.affect.reporting import reject_options, reported, settle_rejects
from trainers.affect.rows import Rejects

# ---------------------------------------------------------------------- sessions


def _quotas(path: Path | None) -> dict[str, int]:
    if path is None:
        return {}
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataConfigError(f"{path}: not a quotas file: {error}") from error
    for cell, quota in table.items():
        if type(quota) is not int or quota < 1:
            raise DataConfigError(
                f"{path}: {cell}: a quota is a whole number from 1, got {quota!r}"
            )
    return table


_PLAN_OPTIONS: list[Callable[[Any], Any]] = [
    click.option("--rater", required=True, help="Your name or number in the log."),
    click.option(
        "--mode",
        type=click.Choice(get_args(Mode)),
        default="label",
        show_default=True,
        help="label: new rows; second: rows others labelled, blind; resolve: disputed rows.",
    ),
    click.option(
        "--scores",
        "scores_path",
        type=FILE,
        help="Model scores by id (JSONL); without it a small text model is trained on the log.",
    ),
    click.option(
        "--cells",
        type=click.Choice(get_args(CellKind)),
        default="bands",
        show_default=True,
        help="What quotas count: score bands or tags.",
    ),
    click.option(
        "--quota",
        type=click.IntRange(1),
        default=DEFAULT_QUOTA,
        show_default=True,
        help="Rows wanted in each cell.",
    ),
    click.option("--quotas", "quotas_path", type=FILE, help="TOML: quota by cell."),
    click.option("--seed", type=int, default=0, show_default=True),
]
_SESSION_OPTIONS: list[Callable[[Any], Any]] = [
    LOG,
    click.option("--rows", "row_paths", type=FILE, multiple=True, help="Rows to add. Repeatable."),
    click.option("--licence", help="SPDX identifier for added rows that carry none."),
    click.option(
        "--repeats",
        type=click.FloatRange(0, 0.5),
        default=DEFAULT_REPEAT_SHARE,
        show_default=True,
        help="Share of blind repeats.",
    ),
    GUIDELINES,
    *_PLAN_OPTIONS,
    reject_options,
]


def _plan(options: Mapping[str, Any]) -> Plan:
    quotas = _quotas(options["quotas_path"])
    return Plan(options["mode"], options["cells"], options["quota"], quotas, options["seed"])


def _model_scores(state: LabelState, scores_path: Path | None, seed: int) -> dict[str, ModelScore]:
    """Scores of the given file (whose bad lines are an error), or of the built-in model."""
    if scores_path is not None:
        rejects = Rejects()
        found = read_scores(scores_path, rejects)
        settle_rejects(rejects, None, 0.0)
        return found
    labels = {row: mean_label(given) for row in state.items if (given := state.labels(row))}
    return tfidf_scores(list(state.items.values()), labels, seed)


def _open_session(log: DecisionLog, options: Mapping[str, Any]) -> tuple[LabelSession, str]:
    """The session behind both faces, and the guidelines text."""
    guidelines = load_guidelines(options["guidelines_path"])
    rejects = Rejects()
    tell_recovery(log)
    items = item_drafts(log, options["row_paths"], options["licence"], guidelines.version, rejects)
    settle_rejects(rejects, options["rejects_path"], options["max_rejects"])
    record(log, items)
    state = LabelState(log.decisions)
    scores = _model_scores(state, options["scores_path"], options["seed"])
    session = LabelSession(
        log,
        options["rater"],
        guideline=guidelines.version,
        plan=_plan(options),
        scores=scores,
        repeat_share=options["repeats"],
    )
    return session, guidelines.text


@click.command("terminal", epilog="Example: limbic label terminal --log labels.log --rater ana")
@with_options(_SESSION_OPTIONS)
@reported
def terminal_command(**options: Any) -> None:
    """Label in the terminal: one key an axis step."""
    from trainers.affect.label.terminal import LabelScreen

    if not sys.stdin.isatty():
        raise click.UsageError("needs a terminal; 'limbic label web' or 'import' do not")
    with DecisionLog(options["log_path"]) as log:
        session, guidelines = _open_session(log, options)
        LabelScreen(session, guidelines).run()


@click.command("web", epilog="Example: limbic label web --log labels.log --rater ana --port 8790")
@with_options(_SESSION_OPTIONS)
@click.option("--port", type=click.IntRange(0, 65535), default=8790, show_default=True)
@reported
def web_command(port: int, **options: Any) -> None:
    """Label on a page in the browser, on this machine only. Ctrl-C ends it."""
    from trainers.affect.label.web import LabelServer, serve

    async def run(server: LabelServer) -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        await serve(server, port, lambda link: click.echo(f"open {link}"), stop)

    with DecisionLog(options["log_path"]) as log:
        session, guidelines = _open_session(log, options)
        asyncio.run(run(LabelServer(session, guidelines)))


@click.command(
    "queue", epilog="Example: limbic label queue --log labels.log --rater ana --limit 20"
)
@LOG
@with_options(_PLAN_OPTIONS)
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True)
@JSON
@reported
def queue_command(log_path: Path, limit: int, as_json: bool, **options: Any) -> None:
    """Show what would be asked next, and why. Changes nothing."""
    state = LabelState(read_log(log_path))
    scores = _model_scores(state, options["scores_path"], options["seed"])
    for entry in ranked(state, options["rater"], scores, _plan(options))[:limit]:
        shown = {"id": entry.row, "value": entry.value, "cell": entry.cell, "reason": entry.reason}
        say(as_json, shown, f"{entry.row}  {entry.value:6.3f}  {entry.cell:<12} {entry.reason}")
