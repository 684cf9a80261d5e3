"""`limbic label import`, `agreement`, `resolve`, `rebuild` and `status`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import orjson

from trainers.affect.label.guidelines import load_guidelines
from trainers.affect.label.items import Item, read_labels
from trainers.affect.label.log import DecisionLog, LabelError, read_log
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
from trainers.affect.label.resolve import Outcome, Policy, dispute_records, resolve
from trainers.affect.label.session import import_drafts
from trainers.affect.label.state import LabelState
from trainers.affect.reporting import reject_options, reported, settle_rejects
from trainers.affect.rows import Rejects, row_bytes, write_rows

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


@click.command(
    "import",
    epilog="Example: limbic label import --log labels.log --rows pool.jsonl --rater r1=a.jsonl "
    "--rater r2=b.jsonl --kind llm",
)
@LOG
@click.option("--rows", "row_paths", type=FILE, multiple=True, help="Rows to add. Repeatable.")
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
@GUIDELINES
@reject_options
@JSON
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
        tell_recovery(log)
        items = item_drafts(log, row_paths, licence, version, rejects)
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
        record(log, drafts)
    summary = {"rows_added": len(items), "decisions": counts, "rejected": len(rejects.items)}
    told = ", ".join(f"{rater} {count}" for rater, count in counts.items()) or "none"
    say(
        as_json,
        summary,
        f"{len(items)} rows added; decisions: {told}; {len(rejects.items)} rejected",
    )


@click.command("agreement", epilog="Example: limbic label agreement --log labels.log --json")
@LOG
@click.option(
    "--samples",
    type=click.IntRange(100, 100_000),
    default=1000,
    show_default=True,
    help="Bootstrap samples.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@JSON
@reported
def agreement_command(log_path: Path, samples: int, seed: int, as_json: bool) -> None:
    """Krippendorff's alpha and ICC per axis with 95 % intervals; tags; blind repeats."""
    from trainers.affect.label.agreement import report

    found = report(LabelState(read_log(log_path)), samples=samples, seed=seed)
    say(as_json, found, _agreement_text(found))


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


@click.command(
    "resolve",
    epilog="Example: limbic label resolve --log labels.log --out labelled.jsonl --queue open.jsonl",
)
@LOG
@click.option("--out", type=FILE, required=True, help="The labelled set.")
@click.option("--queue", "queue_path", type=FILE, help="Where disputed rows are written.")
@click.option(
    "--decisions", type=FILE, help='A third reading: labels by id, or {"id": …, "drop": true}.'
)
@click.option("--rater", default="resolver", show_default=True, help="Who made these decisions.")
@click.option("--kind", type=click.Choice(["llm", "human"]), default="human", show_default=True)
@click.option("--drop-rest", is_flag=True, help="Drop every row that is still disputed.")
@with_options(_POLICY_OPTIONS)
@GUIDELINES
@reject_options
@JSON
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
            tell_recovery(log)
            state = LabelState(log.decisions)
            if decisions is not None:
                labels = read_labels(decisions, state.items, rejects)
                settle_rejects(rejects, rejects_path, max_rejects)
                record(log, import_drafts(state, rater, kind, labels, version, slot="resolution"))
                state = LabelState(log.decisions)
            if drop_rest:
                rest = dict.fromkeys(resolve(state, policy).disputed)
                record(log, import_drafts(state, rater, kind, rest, version, slot="resolution"))
                state = LabelState(log.decisions)
    outcome = resolve(state, policy)
    write_rows(out, outcome.rows)
    if queue_path is not None:
        lines = [orjson.dumps(record) for record in dispute_records(state, outcome.disputed)]
        queue_path.parent.mkdir(parents=True, exist_ok=True)
        queue_path.write_bytes(b"".join(line + b"\n" for line in lines))
    say(as_json, *_summary(outcome, out))


@click.command(
    "rebuild", epilog="Example: limbic label rebuild --log labels.log --out labelled.jsonl"
)
@LOG
@click.option("--out", type=FILE, help="Where the set is written.")
@click.option("--check", type=FILE, help="Compare with this file, byte for byte; exit 1 if not.")
@with_options(_POLICY_OPTIONS)
@JSON
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
    say(as_json, *_summary(outcome, out or check or Path()))


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


@click.command("status", epilog="Example: limbic label status --log labels.log")
@LOG
@JSON
@reported
def status_command(log_path: Path, as_json: bool) -> None:
    """Rows, raters and what is left to do."""
    state = LabelState(read_log(log_path))
    outcome = resolve(state)
    raters = {
        who: {"kind": kind, "rows": len(state.labelled_by(who))}
        for who, kind in sorted(state.raters.items())
    }
    summary = {"rows": len(state.items), "raters": raters, **outcome.counts()}
    told = [
        f"{len(state.items)} rows: " + ", ".join(f"{n} {k}" for k, n in outcome.counts().items())
    ]
    told += [f"{who} ({about['kind']}): {about['rows']} labelled" for who, about in raters.items()]
    say(as_json, summary, "\n".join(told))
