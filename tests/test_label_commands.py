"""`limbic label` as a user runs it: import, resolve, rebuild, and what it says to bad input."""

from __future__ import annotations

import subprocess
import sys

import orjson
import pytest
from click.testing import CliRunner

from tests.label_kit import write_jsonl
from trainers.affect.label.commands import label
from trainers.affect.label.guidelines import FOLDER, load_guidelines
from trainers.affect.label.log import read_log
from trainers.affect.rows import ARCHETYPES, FLAGS, read_rows

ROWS = [
    {
        "id": "p1",
        "text": "who is she",
        "context": ["hi"],
        "intended": "hostile_intimacy",
        "frame": "who-is",
    },
    {"id": "p2", "text": "fine.", "context": [], "intended": "flat_numb", "frame": "fine"},
    {
        "id": "p3",
        "text": "bins tuesday",
        "context": [],
        "intended": "neutral_but_close",
        "frame": "bins",
    },
]


def scored(row, valence, confidence=0.8, tags=(), **extra):
    return {
        "id": row,
        "valence": valence,
        "intimacy": 0.5,
        "tension": 0.2,
        "confidence": confidence,
        "tags": list(tags),
        **extra,
    }


R1 = [scored("p1", -0.75, 0.9, ["hostile_intimacy"]), scored("p2", -0.5), scored("p3", 0)]
R2 = [
    scored("p1", -0.5, 0.7, ["hostile_intimacy", "safety_edge"]),
    scored("p2", 0.25),
    scored("p3", 0.1),
]


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    write_jsonl(tmp_path / "r1.jsonl", R1)
    write_jsonl(tmp_path / "r2.jsonl", R2)

    def invoke(*arguments, code=0):
        result = CliRunner().invoke(label, [*arguments], env={"LIMBIC_LABEL_LOG": "labels.log"})
        assert result.exit_code == code, result.output
        return result

    return invoke


IMPORT = (
    "import",
    "--rows",
    "rows.jsonl",
    "--rater",
    "r1=r1.jsonl",
    "--rater",
    "r2=r2.jsonl",
    "--kind",
    "llm",
    "--licence",
    "Apache-2.0",
)


def test_two_raters_become_a_set_with_the_dispute_left_out(run, tmp_path):
    run(*IMPORT)
    out = orjson.loads(run("resolve", "--out", "out.jsonl", "--queue", "q.jsonl", "--json").stdout)
    assert (out["resolved"], out["disputed"], out["pending"]) == (2, 1, 0)
    first, second = read_rows(tmp_path / "out.jsonl")
    assert (first.id, first.valence, first.confidence) == ("p1", -0.625, 0.8)
    assert first.tags == ("hostile_intimacy", "safety_edge")
    assert (first.source, first.guideline, first.licence) == (
        "llm_label",
        load_guidelines().version,
        "Apache-2.0",
    )
    assert (first.frame, first.context, first.quality) == ("who-is", ("hi",), "clean")
    assert second.id == "p3"
    [dispute] = map(orjson.loads, (tmp_path / "q.jsonl").read_bytes().splitlines())
    assert (dispute["id"], dispute["gap"]["valence"]) == ("p2", 0.75)


def test_a_third_reading_settles_disputes_and_the_rest_can_be_dropped(run, tmp_path):
    run(*IMPORT)
    write_jsonl(tmp_path / "third.jsonl", [scored("p2", -0.4)])
    run("resolve", "--out", "out.jsonl", "--decisions", "third.jsonl", "--rater", "ana")
    by_id = {row.id: row for row in read_rows(tmp_path / "out.jsonl")}
    assert (by_id["p2"].valence, by_id["p2"].source) == (-0.4, "human")
    write_jsonl(tmp_path / "third.jsonl", [{"id": "p2", "drop": True}])
    run("resolve", "--out", "out.jsonl", "--decisions", "third.jsonl", "--rater", "ana")
    assert {row.id for row in read_rows(tmp_path / "out.jsonl")} == {"p1", "p3"}


def test_dropping_the_rest_is_a_decision_in_the_log(run):
    run(*IMPORT)
    said = orjson.loads(run("resolve", "--out", "o.jsonl", "--drop-rest", "--json").stdout)
    assert (said["dropped"], said["disputed"]) == (1, 0)
    assert run("rebuild", "--check", "o.jsonl").exit_code == 0


def test_the_set_is_rebuilt_from_the_log_alone_byte_for_byte(run, tmp_path):
    run(*IMPORT)
    run("resolve", "--out", "out.jsonl")
    for name in ("rows.jsonl", "r1.jsonl", "r2.jsonl"):
        (tmp_path / name).unlink()
    run("rebuild", "--out", "again.jsonl", "--check", "out.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "out.jsonl").read_bytes()


def test_a_changed_set_is_noticed_with_its_line(run, tmp_path):
    run(*IMPORT)
    run("resolve", "--out", "out.jsonl")
    path = tmp_path / "out.jsonl"
    path.write_bytes(path.read_bytes().replace(b"-0.625", b"-0.626"))
    assert "out.jsonl:1: differs" in run("rebuild", "--check", "out.jsonl", code=1).stderr


def test_importing_twice_adds_nothing(run, tmp_path):
    run(*IMPORT)
    before = (tmp_path / "labels.log").read_bytes()
    run(*IMPORT)
    assert (tmp_path / "labels.log").read_bytes() == before


def test_a_corrected_rater_file_is_a_new_decision_with_the_old_value_before_it(run, tmp_path):
    run(*IMPORT)
    write_jsonl(tmp_path / "r2.jsonl", [scored("p2", -0.5)])
    run("import", "--rater", "r2=r2.jsonl", "--kind", "llm")
    last = read_log(tmp_path / "labels.log")[-1]
    assert (last.before["valence"], last.after["valence"]) == (0.25, -0.5)


def test_half_a_pair_is_a_rejected_line_of_the_import(run, tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [*ROWS[:1], {"id": "p2", "text": "hm", "pair": "m1"}])
    said = run("import", "--rows", "rows.jsonl", "--licence", "Apache-2.0", code=1).stderr
    assert "rows.jsonl:2: 'pair' and 'pair_axis' go together" in said
    assert not read_log(tmp_path / "labels.log")


BAD = [
    (b'{"id": "p1", "valence": 3, "intimacy": 0, "tension": 0, "confidence": 1}', "valence:"),
    (b'{"id": "p1", "valence": 0, "tension": 0, "confidence": 1}', "missing column 'intimacy'"),
    (b'{"id": "zz", "valence": 0, "intimacy": 0, "tension": 0, "confidence": 1}', "'zz' is not"),
    (
        b'{"id": "p1", "valence": 0, "intimacy": 0, "tension": 0, "confidence":1,"tags":["joy"]}',
        "unknown tag 'joy'",
    ),
    (b'{"id": "p1", "valence": true, "intimacy": 0, "tension": 0, "confidence": 1}', "valence:"),
    (
        b'{"id": "p1", "valnce": 0, "valence": 0, "intimacy": 0, "tension": 0, "confidence": 1}',
        "unknown column 'valnce'",
    ),
    (b'{"id": "p1"', "broken JSON"),
    (b'\xff\xfe"', "UTF-16"),
    (b'{"id": "p1", "note": "\xff"}', "not UTF-8"),
]


@pytest.mark.parametrize(("line", "said"), BAD)
def test_a_bad_label_is_named_with_file_and_line_and_nothing_is_recorded(run, tmp_path, line, said):
    (tmp_path / "r1.jsonl").write_bytes(line + b"\n")
    result = run(*IMPORT, "--rejects", "rejects.jsonl", code=1)
    assert "r1.jsonl:" in result.stderr and said in result.stderr
    assert read_log(tmp_path / "labels.log") == []
    [reject] = map(orjson.loads, (tmp_path / "rejects.jsonl").read_bytes().splitlines())
    assert said in reject["reason"]


def test_a_small_share_of_bad_lines_can_be_allowed(run, tmp_path):
    with (tmp_path / "r1.jsonl").open("ab") as file:
        file.write(b"{\n")
    run(*IMPORT, code=1)
    said = run(*IMPORT, "--max-rejects", "0.2", "--json")
    assert orjson.loads(said.stdout) == {
        "rows_added": 3,
        "decisions": {"r1": 3, "r2": 3},
        "rejected": 1,
    }


def test_one_id_with_two_texts_is_refused(run, tmp_path):
    run(*IMPORT)
    write_jsonl(tmp_path / "rows.jsonl", [{"id": "p1", "text": "another"}])
    assert "'p1' is in labels.log with another text" in run(*IMPORT, code=1).stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("status",), 1, "no such log"),
        (("import", "--rater", "r1"), 2, "write NAME=FILE"),
        (("import", "--rater", "a=x", "--rater", "a=y"), 2, "given twice"),
        (("rebuild",), 2, "give --out FILE"),
        (("import", "--guidelines", "none.md"), 78, "cannot read the guidelines"),
        (("terminal", "--rater", "ana"), 2, "needs a terminal"),
        (("web", "--rater", "ana"), 1, "no rows to label"),
    ],
)
def test_mistakes_get_one_line_and_the_right_exit_code(run, arguments, code, said):
    result = run(*arguments, code=code)
    assert said in result.stderr
    assert "Traceback" not in result.output


def test_agreement_queue_and_status_print_for_people_and_for_programs(run):
    run(*IMPORT)
    found = orjson.loads(run("agreement", "--samples", "100", "--json").stdout)
    assert found["shared_rows"] == 3
    assert found["axes"]["valence"]["gap_over_half"] == 1
    assert "alpha" in run("agreement", "--samples", "100").stdout
    queue = run("queue", "--rater", "ana", "--mode", "resolve").stdout
    assert "p2" in queue and "raters differ by 0.75 on valence" in queue
    assert "3 rows: 2 resolved, 1 disputed" in run("status").stdout


def test_every_command_shows_an_example():
    for name, command in label.commands.items():
        assert "Example: limbic label" in (command.epilog or ""), name


def test_the_module_runs_as_limbic_label():
    result = subprocess.run(
        [sys.executable, "-m", "trainers.affect.label", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Usage: limbic label" in result.stdout


def test_the_guidelines_name_every_tag_and_every_anchor_of_every_axis():
    guidelines = load_guidelines()
    for tag in (*ARCHETYPES, *FLAGS):
        assert f"`{tag}`" in guidelines.text
    sections = {part.split(":")[0].strip(): part for part in guidelines.text.split("\n## ")}
    for axis in ("Valence", "Intimacy", "Tension"):
        rows = {
            r.split("|")[1].strip(): r for r in sections[axis].splitlines() if r.startswith("|")
        }
        for anchor in ("−1", "−.5", "0", ".5", "1"):
            assert rows[anchor].count("[") >= 3, (axis, anchor)


@pytest.mark.parametrize("text", ["no front matter", "---\nversion: one\n---\n", "---\n---\n"])
def test_guidelines_without_a_version_are_refused(tmp_path, run, text):
    (tmp_path / "g.md").write_text(text)
    assert "version" in run(*IMPORT, "--guidelines", "g.md", code=78).stderr


def test_the_newest_guidelines_are_the_default():
    newest = max(FOLDER.glob("v*.md"), key=lambda path: int(path.stem[1:]))
    assert load_guidelines() == load_guidelines(newest)
