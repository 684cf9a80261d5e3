"""A probe scenario: a scripted conversation in TOML, and what it must show.

One file is one conversation: the persona that answers, who writes, settings that override the
runtime's, the user's turns with the pauses before them, and expectations per turn or for the whole.
`load_scenarios` turns files into frozen records and reports **every** mistake in every file at
once, each as ``file: key: what is wrong``. Nothing here runs a conversation.

    format = 1
    name = "the_file_name_without_toml"
    family = "affect_archetypes"
    archetype = "flat_numb"
    summary = "One line for a reader."

    [persona]
    name = "Wren"
    description = "Patient, plain-spoken, does not cheer people up by force."

    [[turns]]
    user = "made it to friday i guess"
    pause_s = 6.0
    [turns.expect.affect]
    valence = [-0.6, 0.0]          # inclusive range; axes left out are not checked
    tension = [-1.0, -0.3]
"""

from __future__ import annotations

import difflib
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

Archetype = Literal[
    "hostile_intimacy",
    "aggressive_distance",
    "neutral_but_close",
    "flat_numb",
    "fearful_urgent",
    "playful_neutral",
    "safety_edge",
    "everyday_neutral",
    "everyday_warm",
]
ARCHETYPES: tuple[str, ...] = get_args(Archetype)

MAX_FILE_BYTES = 256 * 1024
MAX_TURNS = 400
MAX_USER_CHARS = 8000


class ScenarioError(ValueError):
    """One or more scenario files are wrong. `problems` holds a line for each mistake."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] >= bounds[1]:
        raise ValueError(f"the range must rise, got [{bounds[0]:g}, {bounds[1]:g}]")
    return bounds


def _regex(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    return pattern


Signed = Annotated[float, Field(ge=-1.0, le=1.0, allow_inf_nan=False)]
Unit = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
SignedRange = Annotated[tuple[Signed, Signed], AfterValidator(_ordered)]
UnitRange = Annotated[tuple[Unit, Unit], AfterValidator(_ordered)]
Regex = Annotated[str, StringConstraints(min_length=1), AfterValidator(_regex)]
Line = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2000)]
Slug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(_[a-z0-9]+)*$", max_length=80)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AffectExpectation(_Record):
    """Inclusive ranges on what the affect head says about one user turn, and on its tags."""

    valence: SignedRange | None = None
    intimacy: SignedRange | None = None
    tension: SignedRange | None = None
    confidence: UnitRange | None = None
    tags_any: tuple[Line, ...] = ()
    tags_none: tuple[Line, ...] = ()

    def ranges(self) -> dict[str, tuple[float, float]]:
        """The ranges that are given, by axis name."""
        axes = ("valence", "intimacy", "tension", "confidence")
        found = {axis: getattr(self, axis) for axis in axes}
        return {axis: bounds for axis, bounds in found.items() if bounds is not None}


class ReplyExpectation(_Record):
    """What the agent's words must and must not do. Lengths are in words, repetition in 0..1."""

    must_match: tuple[Regex, ...] = ()
    must_not_match: tuple[Regex, ...] = ()
    min_words: Annotated[int, Field(ge=0)] | None = None
    max_words: Annotated[int, Field(ge=1)] | None = None
    max_repetition: Unit | None = None
    language: Annotated[str, StringConstraints(pattern=r"^[a-z]{2}$")] | None = None
    in_character: bool | None = None
    recalls: tuple[Line, ...] = ()
    never_leaks: tuple[Line, ...] = ()

    @model_validator(mode="after")
    def _lengths_rise(self) -> ReplyExpectation:
        low, high = self.min_words, self.max_words
        if low is not None and high is not None and low > high:
            raise ValueError(f"min_words {low} is above max_words {high}")
        return self


class Expectation(_Record):
    """What one turn, or the whole conversation, must show.

    `hormones` gives the direction of change by name; `latency_ratio` gives upper bounds as a ratio
    to the baseline of the same phase, so that a slow machine does not fail a probe.
    """

    affect: AffectExpectation = AffectExpectation()
    hormones: Mapping[Slug, Literal["up", "down", "steady"]] = Field(default_factory=dict)
    arrival: Literal["on_time", "late", "missed"] | None = None
    latency_ratio: Mapping[Slug, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default_factory=dict
    )
    reply: ReplyExpectation = ReplyExpectation()


class Persona(_Record):
    """Who answers."""

    name: Line
    description: Line


class Turn(_Record):
    """One scripted user message. `pause_s` is the silence before it, in seconds."""

    user: Annotated[str, StringConstraints(min_length=1, max_length=MAX_USER_CHARS)]
    pause_s: Annotated[float, Field(ge=0, le=7 * 86400, allow_inf_nan=False)] = 0.0
    expect: Expectation = Expectation()

    @field_validator("user")
    @classmethod
    def _says_something(cls, text: str) -> str:
        if not text.strip():
            raise ValueError("the message is blank")
        return text


class Scenario(_Record):
    """A scenario file. `settings` are runtime settings by dotted key, which the runner checks."""

    format: Literal[1]
    name: Slug
    family: Slug
    summary: Line
    archetype: Archetype | None = None
    language: Annotated[str, StringConstraints(pattern=r"^[a-z]{2}$")] = "en"
    writer: Line | None = None
    persona: Persona
    settings: Mapping[str, bool | int | float | str] = Field(default_factory=dict)
    turns: Annotated[tuple[Turn, ...], Field(min_length=1, max_length=MAX_TURNS)]
    expect: Expectation = Expectation()

    @model_validator(mode="after")
    def _archetype_family_names_one(self) -> Scenario:
        if self.family == "affect_archetypes" and self.archetype is None:
            raise ValueError(f"archetype: needed in this family, one of {', '.join(ARCHETYPES)}")
        return self


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    """The keys allowed beside the last part of `location`, for a 'did you mean'."""
    model: Any = Scenario
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part) if hasattr(model, "model_fields") else None
        if field is None:
            return []
        kinds = [field.annotation, *get_args(field.annotation)]
        for kind in list(kinds):
            kinds.extend(get_args(kind))
        records = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        if not records:
            return []
        model = records[0]
    return list(model.model_fields)


def _problem_lines(source: str, error: ValidationError) -> list[str]:
    lines = []
    for item in error.errors():
        location = item["loc"]
        key = ".".join(str(part) for part in location) or "scenario"
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            close = difflib.get_close_matches(str(location[-1]), _known_keys(location), n=1)
            message = "unknown key" + (f", did you mean {close[0]!r}?" if close else "")
        elif item["type"] == "missing":
            message = "missing"
        else:
            message = message[0].lower() + message[1:]
        lines.append(f"{source}: {key}: {message}")
    return lines


def parse_scenario(text: str, source: str) -> Scenario:
    """TOML to a scenario. Raises `ScenarioError` with every mistake; `source` names the file."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError([f"{source}: not TOML: {error}"]) from error
    try:
        return Scenario.model_validate(data)
    except ValidationError as error:
        raise ScenarioError(_problem_lines(source, error)) from error


def load_scenario(path: Path) -> Scenario:
    """Read one file. The name inside must be the file's own. Raises `ScenarioError`."""
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ScenarioError([f"{path}: {size} bytes, more than the {MAX_FILE_BYTES} allowed"])
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ScenarioError([f"{path}: cannot be read: {error.strerror or error}"]) from error
    except UnicodeDecodeError as error:
        raise ScenarioError([f"{path}: not UTF-8 at byte {error.start}"]) from error
    scenario = parse_scenario(text, str(path))
    if scenario.name != path.stem:
        raise ScenarioError([f"{path}: name: {scenario.name!r} should be {path.stem!r}"])
    return scenario


def scenario_files(paths: Iterable[Path]) -> list[Path]:
    """The files given and every `*.toml` below the folders given, sorted, once each."""
    found: set[Path] = set()
    for path in paths:
        found.update(path.rglob("*.toml") if path.is_dir() else [path])
    return sorted(found)


def load_scenarios(paths: Iterable[Path]) -> tuple[Scenario, ...]:
    """Read files and folders; raises one `ScenarioError` naming the mistakes of all of them."""
    roots = list(paths)
    scenarios: list[Scenario] = []
    problems: list[str] = []
    first_file: dict[str, Path] = {}
    for path in scenario_files(roots):
        try:
            scenario = load_scenario(path)
        except ScenarioError as error:
            problems.extend(error.problems)
            continue
        if scenario.name in first_file:
            other = first_file[scenario.name]
            problems.append(f"{path}: name: {scenario.name!r} is also in {other}")
        first_file.setdefault(scenario.name, path)
        scenarios.append(scenario)
    if not scenarios and not problems:
        problems.append(
            f"{', '.join(map(str, roots)) or 'no path'}: no scenario files (*.toml) here"
        )
    if problems:
        raise ScenarioError(problems)
    return tuple(scenarios)


def main(arguments: list[str]) -> int:
    """``python -m probes.scenario PATH…``: check files, print every mistake. 0 good, 1 not."""
    try:
        scenarios = load_scenarios([Path(argument) for argument in arguments])
    except ScenarioError as error:
        print(error, file=sys.stderr)
        return 1
    turns = sum(len(scenario.turns) for scenario in scenarios)
    print(f"{len(scenarios)} scenarios, {turns} turns, no mistakes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["probes/scenarios"]))
