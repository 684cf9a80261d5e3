"""`limbic data synth`: probe scenarios as rows for empty cells.

A scripted user turn becomes a row with the turns before it as context. Without labels it goes to
`limbic label`; with ``--label expectation`` each axis gets the middle of its expected range, and
stays null where the range is too wide to mean a value or where none is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import click
import orjson

import probes.scenario
from probes.scenario import Scenario, ScenarioError, Turn, load_scenarios
from trainers.affect.errors import DataConfigError
from trainers.affect.label.items import Item
from trainers.affect.reporting import reported
from trainers.affect.rows import (
    ARCHETYPES,
    AXES,
    MAX_CONTEXT_TURNS,
    TAGS,
    AffectRow,
    Axis,
    stable_id,
    write_rows,
)

SOURCE = "synthetic_probe"
LICENCE = "Apache-2.0"
#: Beside the code, so that an installed package finds it from any folder.
DEFAULT_FOLDER = Path(probes.scenario.__file__).parent / "scenarios" / "affect_archetypes"
DEFAULT_MAX_WIDTH = 0.9


def _turns(scenarios: Iterable[Scenario]) -> Iterator[tuple[Scenario, Turn, tuple[str, ...]]]:
    """Each turn with the user's turns before it, oldest first."""
    for scenario in scenarios:
        said = [turn.user for turn in scenario.turns]
        for index, turn in enumerate(scenario.turns):
            yield scenario, turn, tuple(said[max(0, index - MAX_CONTEXT_TURNS) : index])


def unlabelled(scenarios: Iterable[Scenario]) -> list[Item]:
    """Rows for the labelling queue; `intended` names the cell the scenario was written for."""
    return [
        Item(
            id=stable_id(SOURCE, turn.user, context),
            text=turn.user,
            context=context,
            intended=scenario.archetype,
            frame=scenario.name,
            session_id=scenario.name,
            source=SOURCE,
            licence=LICENCE,
        )
        for scenario, turn, context in _turns(scenarios)
    ]


def expected(
    scenarios: Iterable[Scenario], max_width: float = DEFAULT_MAX_WIDTH
) -> list[AffectRow]:
    """Rows labelled from expectations, turns with no usable range left out.

    Confidence falls with the width of the ranges used: a range of 0 would be 1, of `2` would be 0.
    """
    rows = []
    for scenario, turn, context in _turns(scenarios):
        ranges = turn.expect.affect.ranges()
        usable: dict[Axis, tuple[float, float]] = {
            axis: ranges[axis]
            for axis in AXES
            if axis in ranges and ranges[axis][1] - ranges[axis][0] <= max_width + 1e-9
        }
        if not usable:
            continue
        middle = {axis: round((low + high) / 2, 4) for axis, (low, high) in usable.items()}
        width = sum(high - low for low, high in usable.values()) / len(usable)
        tags = {scenario.archetype, *turn.expect.affect.tags_any} & TAGS
        rows.append(
            AffectRow(
                id=stable_id(SOURCE, turn.user, context),
                text=turn.user,
                context=context,
                valence=middle.get("valence"),
                intimacy=middle.get("intimacy"),
                tension=middle.get("tension"),
                confidence=round(1 - width / 2, 4),
                tags=tuple(tag for tag in sorted(TAGS) if tag in tags),
                quality="auto",
                source=SOURCE,
                licence=LICENCE,
                frame=scenario.name,
                session_id=scenario.name,
            )
        )
    return rows


@click.command(
    "synth", epilog="Example: limbic data synth --label expectation --out synthetic.jsonl"
)
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True)
@click.option(
    "--label",
    "labelling",
    type=click.Choice(["none", "expectation"]),
    default="none",
    show_default=True,
    help="none: rows for 'limbic label'; expectation: the middle of each expected range.",
)
@click.option(
    "--archetype", "archetypes", type=click.Choice(ARCHETYPES), multiple=True, help="Only these."
)
@click.option(
    "--max-width",
    type=click.FloatRange(0, 2),
    default=DEFAULT_MAX_WIDTH,
    show_default=True,
    help="A wider expected range is no label.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@reported
def synth(
    paths: tuple[Path, ...],
    out: Path,
    labelling: str,
    archetypes: tuple[str, ...],
    max_width: float,
    as_json: bool,
) -> None:
    """Turn probe scenarios (files or folders, the shipped ones by default) into rows."""
    try:
        scenarios = load_scenarios(paths or [DEFAULT_FOLDER])
    except ScenarioError as error:
        for problem in error.problems[1:]:
            click.echo(f"error: {problem}", err=True)
        raise DataConfigError(error.problems[0]) from error
    chosen = [s for s in scenarios if not archetypes or s.archetype in archetypes]
    if labelling == "expectation":
        count = write_rows(out, expected(chosen, max_width))
    else:
        items = unlabelled(chosen)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(b"".join(orjson.dumps(item.record()) + b"\n" for item in items))
        count = len(items)
    record = {"scenarios": len(chosen), "rows": count, "out": str(out)}
    told = f"{count} rows from {len(chosen)} scenarios in {out}"
    click.echo(orjson.dumps(record).decode() if as_json else told)


if __name__ == "__main__":
    synth(prog_name="limbic data synth")
