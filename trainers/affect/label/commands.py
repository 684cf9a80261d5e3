"""`limbic label`: label rows, measure agreement, resolve, rebuild the labelled set."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import click
import orjson

from trainers.affect.errors import DataConfigError
from trainers.affect.label.guidelines import load_guidelines
from trainers.affect.label.items import Item, read_items, read_labels
from trainers.affect.label.log import DecisionLog, Draft, LabelError, read_log
from trainers.affect.label.queue import (
    DEFAULT_QUOTA,
    DEFAULT_REPEAT_SHARE,
    CellKind,
    Mode,
    Plan,
    ranked,
)
from trainers.affect.label.resolve import Outcome, Policy, dispute_records, mean_label, resolve
from trainers.affect.label.scorer import ModelScore, read_scores, tfidf_scores
from trainers.affect.label.session import LabelSession, import_drafts
from trainers.affect.label.state import LabelState
from trainers.affect.reporting import reject_options, reported, settle_rejects
from trainers.affect.rows import Rejects, row_bytes, write_rows

_FILE = click.Path(path_type=Path, dir_okay=False)
_LOG = click.option(
    "--log",
    "log_path",
    type=_FILE,
    required=True,
    envvar="LIMBIC_LABEL_LOG",
    help="The decision log (or LIMBIC_LABEL_LOG). Made when it does not exist.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_GUIDELINES = click.option(
    "--guidelines", "guidelines_path", type=_FILE, help="Guidelines file, the newest by default."
)


@click.group(epilog="Example: limbic label web --log labels.log --rater ana --rows pool.jsonl")
def label() -> None:
    """Label or review rows, in the terminal or the browser.

    Every decision is one line in an append-only log; the labelled set is rebuilt from it.
    """


def _say(as_json: bool, record: Mapping[str, Any], text: str) -> None:
    click.echo(orjson.dumps(record).decode() if as_json else text)


def _item_drafts(
    log: DecisionLog,
    paths: tuple[Path, ...],
    licence: str | None,
    version: str,
    rejects: Rejects,
) -> list[Draft]:
    """Decisions that bring rows into the log which it does not hold yet."""
    known = LabelState(log.decisions).items
    drafts = []
    for item in read_items(paths, rejects):
        record = item.record()
        if licence is not None:
            record.setdefault("licence", licence)
        if item.id not in known:
            drafts.append(Draft("", "add", item.id, "item", None, record, version))
        elif (known[item.id].text, known[item.id].context) != (item.text, item.context):
            raise LabelError(
                f"row {item.id!r} is in {log.path} with another text; give the new one its own id"
            )
    return drafts


def _record(log: DecisionLog, drafts: list[Draft]) -> None:
    if drafts:
        log.append(drafts)


def _recovered(log: DecisionLog) -> None:
    if log.recovered_bytes:
        click.echo(
            f"note: the last write was cut off; {log.recovered_bytes} bytes of it are in "
            f"{log.path}.torn, all earlier decisions are here",
            err=True,
        )


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
        type=_FILE,
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
    click.option("--quotas", "quotas_path", type=_FILE, help="TOML: quota by cell."),
    click.option("--seed", type=int, default=0, show_default=True),
]
_SESSION_OPTIONS: list[Callable[[Any], Any]] = [
    _LOG,
    click.option("--rows", "row_paths", type=_FILE, multiple=True, help="Rows to add. Repeatable."),
    click.option("--licence", help="SPDX identifier for added rows that carry none."),
    click.option(
        "--repeats",
        type=click.FloatRange(0, 0.5),
        default=DEFAULT_REPEAT_SHARE,
        show_default=True,
        help="Share of blind repeats.",
    ),
    _GUIDELINES,
    *_PLAN_OPTIONS,
    reject_options,
]


def _with(options: list[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


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
    _recovered(log)
    items = _item_drafts(log, options["row_paths"], options["licence"], guidelines.version, rejects)
    settle_rejects(rejects, options["rejects_path"], options["max_rejects"])
    _record(log, items)
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


@label.command("terminal", epilog="Example: limbic label terminal --log labels.log --rater ana")
@_with(_SESSION_OPTIONS)
@reported
def terminal_command(**options: Any) -> None:
    """Label in the terminal: one key an axis step."""
    from trainers.affect.label.terminal import LabelScreen

    if not sys.stdin.isatty():
        raise click.UsageError("needs a terminal; 'limbic label web' or 'import' do not")
    with DecisionLog(options["log_path"]) as log:
        session, guidelines = _open_session(log, options)
        LabelScreen(session, guidelines).run()


@label.command("web", epilog="Example: limbic label web --log labels.log --rater ana --port 8790")
@_with(_SESSION_OPTIONS)
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


@label.command(
    "queue", epilog="Example: limbic label queue --log labels.log --rater ana --limit 20"
)
@_LOG
@_with(_PLAN_OPTIONS)
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True)
@_JSON
@reported
def queue_command(log_path: Path, limit: int, as_json: bool, **options: Any) -> None:
    """Show what would be asked next, and why. Changes nothing."""
    state = LabelState(read_log(log_path))
    scores = _model_scores(state, options["scores_path"], options["seed"])
    for entry in ranked(state, options["rater"], scores, _plan(options))[:limit]:
        record = {"id": entry.row, "value": entry.value, "cell": entry.cell, "reason": entry.reason}
        _say(as_json, record, f"{entry.row}  {entry.value:6.3f}  {entry.cell:<12} {entry.reason}")


# ---------------------------------------------------------------------- files in, files out


def _rater_file(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> Any:
    pairs: list[tuple[str, Path]] = []
    for value in values:
        name, sign, path = value.partition("=")
        if not (name and sign and path):
            raise click.BadParameter(f"{value!r}: write NAME=FILE")
        if name in dict(pairs):
            raise click.BadParameter(f"rater {name!r} is given twice; import one file at a time")
        pairs.append((name, Path(path)))
    return pairs


@label.command(
    "import",
    epilog="Example: limbic label import --log labels.log --rows pool.jsonl --rater r1=a.jsonl "
    "--rater r2=b.jsonl --kind llm",
)
@_LOG
@click.option("--rows", "row_paths", type=_FILE, multiple=True, help="Rows to add. Repeatable.")
@click.option(
    "--rater",
    "raters",
    multiple=True,
    callback=_rater_file,
    help="NAME=FILE with that rater's labels by id. Repeatable.",
)
@click.option(
    "--kind",
    type=click.Choice(["llm", "human"]),
    default="human",
    show_default=True,
    help="Who these raters are; decides the source of the rows.",
)
@click.option("--licence", help="SPDX identifier for added rows that carry none.")
@_GUIDELINES
@reject_options
@_JSON
@reported
def import_command(
    log_path: Path,
    row_paths: tuple[Path, ...],
    raters: list[tuple[str, Path]],
    kind: str,
    licence: str | None,
    guidelines_path: Path | None,
    rejects_path: Path | None,
    max_rejects: float,
    as_json: bool,
) -> None:
    """Record rows and raters' files as decisions. Importing the same again adds nothing."""
    version = load_guidelines(guidelines_path).version
    rejects = Rejects()
    with DecisionLog(log_path) as log:
        _recovered(log)
        items = _item_drafts(log, row_paths, licence, version, rejects)
        state = LabelState(log.decisions)
        known = {**state.items, **{draft.row: Item.model_validate(draft.after) for draft in items}}
        drafts = list(items)
        counts: dict[str, int] = {}
        for rater, path in raters:
            labels = read_labels(path, known, rejects)
            found = import_drafts(state, rater, kind, labels, version)
            drafts.extend(found)
            counts[rater] = sum(draft.slot == "label" for draft in found)
        # Nothing is recorded of an import that fails: one batch, after every check.
        settle_rejects(rejects, rejects_path, max_rejects)
        _record(log, drafts)
    record = {"rows_added": len(items), "decisions": counts, "rejected": len(rejects.items)}
    told = ", ".join(f"{rater} {count}" for rater, count in counts.items()) or "none"
    _say(
        as_json,
        record,
        f"{len(items)} rows added; decisions: {told}; {len(rejects.items)} rejected",
    )


@label.command("agreement", epilog="Example: limbic label agreement --log labels.log --json")
@_LOG
@click.option(
    "--samples",
    type=click.IntRange(100, 100_000),
    default=1000,
    show_default=True,
    help="Bootstrap samples.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@_JSON
@reported
def agreement_command(log_path: Path, samples: int, seed: int, as_json: bool) -> None:
    """Krippendorff's alpha and ICC per axis with 95 % intervals; tags; blind repeats."""
    from trainers.affect.label.agreement import report

    found = report(LabelState(read_log(log_path)), samples=samples, seed=seed)
    _say(as_json, found, _agreement_text(found))


def _agreement_text(found: Mapping[str, Any]) -> str:
    def shown(interval: Mapping[str, float | None]) -> str:
        if interval["value"] is None:
            return f"{'–':^22}"
        if interval["low"] is None or interval["high"] is None:
            return f"{interval['value']:6.3f}{'':16}"
        return f"{interval['value']:6.3f} [{interval['low']:6.3f}, {interval['high']:5.3f}]"

    lines = [
        f"{found['shared_rows']} of {found['rows']} rows have two or more raters: "
        + ", ".join(
            f"{who} ({about['kind']}, {about['rows']})" for who, about in found["raters"].items()
        ),
        f"{'':<11} {'alpha':<23} {'ICC(2,1)':<23} {'ICC(2,k)':<23} mean gap  over .5",
    ]
    for axis, about in found["axes"].items():
        gap = "–" if about["mean_gap"] is None else f"{about['mean_gap']:.3f}"
        lines.append(
            f"{axis:<11} {shown(about['alpha'])}  {shown(about['icc_single'])}  "
            f"{shown(about['icc_mean'])}  {gap:>7}  {about['gap_over_half']:>7}"
        )
    used = {tag: about for tag, about in found["tags"].items() if about["given"]}
    lines.append(
        "tags, alpha: "
        + ", ".join(
            f"{tag} {'–' if about['alpha'] is None else format(about['alpha'], '.2f')}"
            for tag, about in used.items()
        )
    )
    for who, about in found["repeats"].items():
        if about["rows"] >= 2:
            parts = [f"{axis} {about[axis]['mean_gap']:.3f}" for axis in list(about)[1:]]
            lines.append(
                f"{who} against themselves, {about['rows']} repeats, mean gap: " + ", ".join(parts)
            )
    return "\n".join(lines)


_POLICY_OPTIONS: list[Callable[[Any], Any]] = [
    click.option(
        "--max-gap",
        type=click.FloatRange(0, 2),
        default=0.5,
        show_default=True,
        help="Largest difference on any axis that is averaged.",
    ),
    click.option("--min-raters", type=click.IntRange(1), default=2, show_default=True),
]


def _summary(outcome: Outcome, path: Path) -> tuple[dict[str, Any], str]:
    digest = hashlib.sha256(b"".join(row_bytes(row) + b"\n" for row in outcome.rows)).hexdigest()
    counts = outcome.counts()
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    return {**counts, "out": str(path), "sha256": digest}, f"{told}\n{path}  sha256 {digest}"


@label.command(
    "resolve",
    epilog="Example: limbic label resolve --log labels.log --out labelled.jsonl --queue open.jsonl",
)
@_LOG
@click.option("--out", type=_FILE, required=True, help="The labelled set.")
@click.option("--queue", "queue_path", type=_FILE, help="Where disputed rows are written.")
@click.option(
    "--decisions", type=_FILE, help='A third reading: labels by id, or {"id": …, "drop": true}.'
)
@click.option("--rater", default="resolver", show_default=True, help="Who made these decisions.")
@click.option("--kind", type=click.Choice(["llm", "human"]), default="human", show_default=True)
@click.option("--drop-rest", is_flag=True, help="Drop every row that is still disputed.")
@_with(_POLICY_OPTIONS)
@_GUIDELINES
@reject_options
@_JSON
@reported
def resolve_command(
    log_path: Path,
    out: Path,
    queue_path: Path | None,
    decisions: Path | None,
    rater: str,
    kind: str,
    drop_rest: bool,
    max_gap: float,
    min_raters: int,
    guidelines_path: Path | None,
    rejects_path: Path | None,
    max_rejects: float,
    as_json: bool,
) -> None:
    """Average raters who agree, queue those who do not, write the labelled set."""
    policy = Policy(max_gap, min_raters)
    state = LabelState(read_log(log_path))
    if decisions is not None or drop_rest:
        version = load_guidelines(guidelines_path).version
        rejects = Rejects()
        with DecisionLog(log_path) as log:
            _recovered(log)
            state = LabelState(log.decisions)
            if decisions is not None:
                labels = read_labels(decisions, state.items, rejects)
                settle_rejects(rejects, rejects_path, max_rejects)
                _record(log, import_drafts(state, rater, kind, labels, version, slot="resolution"))
                state = LabelState(log.decisions)
            if drop_rest:
                rest = dict.fromkeys(resolve(state, policy).disputed)
                _record(log, import_drafts(state, rater, kind, rest, version, slot="resolution"))
                state = LabelState(log.decisions)
    outcome = resolve(state, policy)
    write_rows(out, outcome.rows)
    if queue_path is not None:
        lines = [orjson.dumps(record) for record in dispute_records(state, outcome.disputed)]
        queue_path.parent.mkdir(parents=True, exist_ok=True)
        queue_path.write_bytes(b"".join(line + b"\n" for line in lines))
    _say(as_json, *_summary(outcome, out))


@label.command(
    "rebuild", epilog="Example: limbic label rebuild --log labels.log --out labelled.jsonl"
)
@_LOG
@click.option("--out", type=_FILE, help="Where the set is written.")
@click.option("--check", type=_FILE, help="Compare with this file, byte for byte; exit 1 if not.")
@_with(_POLICY_OPTIONS)
@_JSON
@reported
def rebuild_command(
    log_path: Path,
    out: Path | None,
    check: Path | None,
    max_gap: float,
    min_raters: int,
    as_json: bool,
) -> None:
    """Write the labelled set again from the log alone, the same bytes each time."""
    if out is None and check is None:
        raise click.UsageError("give --out FILE, --check FILE or both")
    outcome = resolve(LabelState(read_log(log_path)), Policy(max_gap, min_raters))
    if out is not None:
        write_rows(out, outcome.rows)
    if check is not None:
        _compare(check, [row_bytes(row) + b"\n" for row in outcome.rows])
    _say(as_json, *_summary(outcome, out or check or Path()))


def _compare(path: Path, lines: list[bytes]) -> None:
    try:
        given = path.read_bytes()
    except OSError as error:
        raise LabelError(f"{path}: cannot read it: {error.strerror or error}") from error
    if given == b"".join(lines):
        return
    held = given.splitlines(keepends=True)
    number = next(
        (n for n, pair in enumerate(zip(lines, held, strict=False), start=1) if pair[0] != pair[1]),
        min(len(lines), len(held)) + 1,
    )
    raise LabelError(
        f"{path}:{number}: differs from the log; 'limbic label rebuild --out' renews it"
    )


@label.command("status", epilog="Example: limbic label status --log labels.log")
@_LOG
@_JSON
@reported
def status_command(log_path: Path, as_json: bool) -> None:
    """Rows, raters and what is left to do."""
    state = LabelState(read_log(log_path))
    outcome = resolve(state)
    raters = {
        who: {"kind": kind, "rows": len(state.labelled_by(who))}
        for who, kind in sorted(state.raters.items())
    }
    record = {"rows": len(state.items), "raters": raters, **outcome.counts()}
    told = [
        f"{len(state.items)} rows: " + ", ".join(f"{n} {k}" for k, n in outcome.counts().items())
    ]
    told += [f"{who} ({about['kind']}): {about['rows']} labelled" for who, about in raters.items()]
    _say(as_json, record, "\n".join(told))
