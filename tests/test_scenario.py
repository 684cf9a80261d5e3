"""Scenario files: every mistake is reported, in every file, at once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.scenario import ScenarioError, load_scenario, load_scenarios, main, parse_scenario

SHIPPED = Path(__file__).parent.parent / "probes" / "scenarios" / "affect_archetypes"
GOOD = """
format = 1
name = "good"
family = "recovery"
summary = "s"
[persona]
name = "Wren"
description = "d"
[[turns]]
user = "hello"
pause_s = 2
[turns.expect]
arrival = "on_time"
hormones = { cortisol = "up" }
latency_ratio = { first_token = 1.5 }
[turns.expect.affect]
valence = [-0.5, 0.5]
tags_any = ["everyday_neutral"]
[turns.expect.reply]
must_not_match = ["(?i)as an ai"]
max_words = 40
[expect.reply]
in_character = true
"""


def problems_of(text):
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(text, "f.toml")
    return caught.value.problems


def test_a_whole_file_reads_into_frozen_records():
    scenario = parse_scenario(GOOD, "f.toml")
    [turn] = scenario.turns
    assert turn.expect.affect.ranges() == {"valence": (-0.5, 0.5)}
    assert turn.expect.hormones == {"cortisol": "up"}
    assert scenario.expect.reply.in_character is True
    with pytest.raises(ValueError, match="frozen"):
        scenario.name = "other"


def test_all_mistakes_of_a_file_are_reported_together_with_their_keys():
    text = (
        GOOD.replace("[-0.5, 0.5]", "[0.5, -2.0]")
        .replace("pause_s = 2", "pause_s = -1")
        .replace('"(?i)as an ai"', '"(as"')
        .replace("max_words", "max_wrods")
        .replace('summary = "s"', "")
        .replace('"up"', '"sideways"')
    )
    found = "\n".join(problems_of(text))
    for part in (
        "f.toml: summary: missing",
        "f.toml: turns.0.pause_s:",
        "f.toml: turns.0.expect.affect.valence.1:",
        "f.toml: turns.0.expect.hormones.cortisol:",
        "f.toml: turns.0.expect.reply.max_wrods: unknown key, did you mean 'max_words'?",
        "f.toml: turns.0.expect.reply.must_not_match.0: not a regular expression",
    ):
        assert part in found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("[-0.5, 0.5]", "[0.5, 0.5]"), "the range must rise"),
        (("[-0.5, 0.5]", "[nan, 0.5]"), "valence.0"),
        (("max_words = 40", "max_words = 4\nmin_words = 9"), "min_words 9 is above max_words 4"),
        (('user = "hello"', 'user = "  "'), "blank"),
        (('"recovery"', '"affect_archetypes"'), "archetype: needed in this family"),
        (("format = 1", "format = 2"), "format"),
        (("[persona]", "[prsona]"), "prsona: unknown key, did you mean 'persona'?"),
    ],
)
def test_each_kind_of_mistake_says_what_is_wrong(change, said):
    assert said in "\n".join(problems_of(GOOD.replace(*change)))


def test_mistakes_of_several_files_come_at_once(tmp_path):
    (tmp_path / "a.toml").write_text("format = [")
    (tmp_path / "b.toml").write_text(GOOD)  # its name is "good", not "b"
    (tmp_path / "c.toml").write_bytes(b"\xff\xfe")
    (tmp_path / "good.toml").write_text(GOOD)
    with pytest.raises(ScenarioError) as caught:
        load_scenarios([tmp_path])
    assert [p.partition(": ")[2].partition(":")[0] for p in caught.value.problems] == [
        "not TOML",
        "name",
        "not UTF-8 at byte 0",
    ]


def test_a_name_used_twice_is_reported(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "good.toml").write_text(GOOD)
    with pytest.raises(ScenarioError, match="is also in"):
        load_scenarios([tmp_path])


def test_an_empty_folder_and_a_missing_file_are_mistakes(tmp_path, capsys):
    with pytest.raises(ScenarioError, match="no scenario files"):
        load_scenarios([tmp_path])
    assert main([str(tmp_path / "none.toml")]) == 1
    assert "cannot be read" in capsys.readouterr().err


@given(st.text(max_size=200))
def test_any_text_is_a_scenario_or_a_named_mistake(text):
    try:
        parse_scenario(text, "f.toml")
    except ScenarioError as error:
        assert error.problems and all(p.startswith("f.toml: ") for p in error.problems)


# ---------------------------------------------------------------------- what ships


def test_every_archetype_ships_four_or_more_scenarios_of_five_to_eight_turns():
    scenarios = load_scenarios([SHIPPED])
    counts = Counter(scenario.archetype for scenario in scenarios)
    for archetype in (
        "hostile_intimacy",
        "aggressive_distance",
        "neutral_but_close",
        "flat_numb",
        "fearful_urgent",
        "playful_neutral",
        "safety_edge",
    ):
        assert counts[archetype] >= 4
    for scenario in scenarios:
        assert 5 <= len(scenario.turns) <= 8, scenario.name
        assert scenario.name.startswith(f"{scenario.archetype}_")
        assert scenario.writer
        for turn in scenario.turns:
            assert set(turn.expect.affect.ranges()) >= {"valence", "intimacy", "tension"}


def test_no_line_is_used_twice_in_the_shipped_scenarios():
    lines = Counter(t.user.lower() for s in load_scenarios([SHIPPED]) for t in s.turns)
    assert [line for line, count in lines.items() if count > 1] == []


@pytest.mark.parametrize(
    ("archetype", "signs"),
    [
        ("hostile_intimacy", (-1, 1, 1)),
        ("aggressive_distance", (-1, -1, 1)),
        ("neutral_but_close", (0, 1, -1)),
        ("flat_numb", (-1, 0, -1)),
        ("fearful_urgent", (0, 0, 1)),
        ("playful_neutral", (0, 0, 0)),
    ],
)
def test_the_expected_ranges_lie_where_the_archetype_does(archetype, signs):
    for path in sorted(SHIPPED.glob(f"{archetype}_*.toml")):
        scenario = load_scenario(path)
        for axis, sign in zip(("valence", "intimacy", "tension"), signs, strict=True):
            middles = [sum(turn.expect.affect.ranges()[axis]) / 2 for turn in scenario.turns]
            mean = sum(middles) / len(middles)
            assert mean * sign > 0.1 if sign else True, (path.name, axis, mean)
