"""Scenarios as rows."""

from __future__ import annotations

import orjson
import pytest
from click.testing import CliRunner

from probes.scenario import parse_scenario
from trainers.affect.label.items import read_items
from trainers.affect.rows import Rejects, read_rows
from trainers.affect.synth import expected, synth, unlabelled

TEXT = """
format = 1
name = "x"
family = "affect_archetypes"
archetype = "flat_numb"
summary = "s"
[persona]
name = "Wren"
description = "d"
"""


def scenario(*turns: str):
    return parse_scenario(TEXT + "".join(f"\n[[turns]]\n{turn}\n" for turn in turns), "x.toml")


def test_a_range_becomes_its_middle_and_a_wide_or_absent_one_stays_null():
    [row] = expected(
        [
            scenario(
                'user = "a"\n[turns.expect.affect]\nvalence = [-0.6, -0.2]\ntension = [-1.0, 0.5]'
            )
        ]
    )
    assert (row.valence, row.intimacy, row.tension) == (-0.4, None, None)
    assert row.confidence == 0.8
    assert (row.source, row.quality, row.tags) == ("synthetic_probe", "auto", ("flat_numb",))


def test_a_turn_with_no_usable_expectation_is_no_labelled_row():
    assert expected([scenario('user = "a"')]) == []
    assert len(unlabelled([scenario('user = "a"')])) == 1


def test_context_is_the_two_turns_before():
    rows = unlabelled([scenario(*(f'user = "{word}"' for word in "abcd"))])
    assert [row.context for row in rows] == [(), ("a",), ("a", "b"), ("b", "c")]


def test_a_scenario_is_one_frame_and_one_session_so_a_split_keeps_it_whole():
    rows = unlabelled([scenario('user = "a"', 'user = "b"')])
    assert {(row.frame, row.session_id, row.intended) for row in rows} == {("x", "x", "flat_numb")}


def test_the_shipped_scenarios_become_labelled_rows_of_every_archetype(tmp_path):
    out = tmp_path / "s.jsonl"
    result = CliRunner().invoke(synth, ["--label", "expectation", "--out", str(out)])
    assert result.exit_code == 0, result.output
    rows = list(read_rows(out))
    assert len(rows) > 100
    counts = {
        tag: sum(tag in row.tags for row in rows)
        for tag in (
            "hostile_intimacy",
            "aggressive_distance",
            "neutral_but_close",
            "flat_numb",
            "fearful_urgent",
            "playful_neutral",
            "safety_edge",
        )
    }
    assert all(count >= 16 for count in counts.values()), counts
    again = tmp_path / "t.jsonl"
    CliRunner().invoke(synth, ["--label", "expectation", "--out", str(again)])
    assert again.read_bytes() == out.read_bytes()


def test_unlabelled_rows_go_straight_into_labelling(tmp_path):
    out = tmp_path / "s.jsonl"
    arguments = ["--archetype", "flat_numb", "--out", str(out), "--json"]
    said = orjson.loads(CliRunner().invoke(synth, arguments).stdout)
    rejects = Rejects()
    items = list(read_items([out], rejects))
    assert rejects.items == [] and len(items) == said["rows"]
    assert {item.intended for item in items} == {"flat_numb"}


@pytest.mark.parametrize(("text", "said"), [("x = [", "not TOML"), ("format = 1", "name: missing")])
def test_a_broken_scenario_is_a_configuration_error(tmp_path, text, said):
    (tmp_path / "bad.toml").write_text(text)
    result = CliRunner().invoke(synth, [str(tmp_path), "--out", str(tmp_path / "o.jsonl")])
    assert result.exit_code == 78
    assert said in result.stderr and "bad.toml" in result.stderr
