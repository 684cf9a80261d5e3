"""The decision log survives kills and refuses damage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.label_kit import add_rows, ticking
from trainers.affect.label.log import (
    Decision,
    DecisionLog,
    Draft,
    LabelError,
    LogBusy,
    LogDamaged,
    parse_decision,
    parse_log,
    read_log,
)
from trainers.affect.label.state import LabelState

HALF_A_WRITE = textwrap.dedent("""
    import os, sys
    from pathlib import Path
    from trainers.affect.label.log import DecisionLog, Draft

    log = DecisionLog(Path(sys.argv[1]))
    draft = lambda n: Draft("", "add", f"r{n}", "item", None, {"id": f"r{n}", "text": "t"}, "1.0")
    for n in range(5):
        log.append(draft(n))
    real = os.write
    def half(fd, data):
        real(fd, bytes(data)[: len(data) // 2])
        print("mid-write", flush=True)
        sys.stdin.read()          # never returns: the parent kills us here
    os.write = half
    log.append(draft(99))
""")

ENDLESS = textwrap.dedent("""
    import itertools, sys
    from pathlib import Path
    from trainers.affect.label.log import DecisionLog, Draft

    log = DecisionLog(Path(sys.argv[1]))
    for n in itertools.count():
        item = {"id": f"r{n}", "text": "t" * 3000}
        log.append(Draft("", "add", f"r{n}", "item", None, item, "1"))
        print(n, flush=True)
""")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ((b'"text":"text of b"', b'"text":""'), "decision 2: text: string should have at least 1"),
        ((b'"valence":0.5', b'"valence":5'), "decision 4: valence: input should be less than"),
    ],
)
def test_a_value_that_no_tool_writes_is_damage_named_by_its_decision(tmp_path, damage, said):
    path = tmp_path / "labels.log"
    value = {"valence": 0.5, "intimacy": 0.0, "tension": 0.0, "confidence": 1.0}
    with DecisionLog(path, ticking()) as log:
        for name in "ab":
            item = {"id": name, "text": f"text of {name}"}
            log.append(Draft("", "add", name, "item", None, item, "1.0"))
        log.append(Draft("ana", "rater", "", "rater", None, {"kind": "human"}, "1.0"))
        log.append(Draft("ana", "label", "a", "label", None, value, "1.0"))
    LabelState(read_log(path))
    path.write_bytes(path.read_bytes().replace(*damage))
    with pytest.raises(LogDamaged, match=said):
        LabelState(read_log(path))


def start(code, path):
    return subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_a_process_killed_in_the_middle_of_a_write_loses_no_earlier_decision(tmp_path):
    path = tmp_path / "labels.log"
    with start(HALF_A_WRITE, path) as process:
        assert process.stdout.readline() == "mid-write\n"
        process.kill()
        assert process.wait() == -signal.SIGKILL
    torn = path.read_bytes()
    assert not torn.endswith(b"\n")
    assert [d.row for d in read_log(path)] == [f"r{n}" for n in range(5)]  # readers just ignore it

    with DecisionLog(path, ticking()) as log:
        assert log.recovered_bytes > 0
        log.append(Draft("", "add", "after", "item", None, {"id": "after", "text": "t"}, "1.0"))
    assert [d.row for d in read_log(path)] == ["r0", "r1", "r2", "r3", "r4", "after"]
    kept_aside = (tmp_path / "labels.log.torn").read_bytes()
    assert torn.endswith(kept_aside.rstrip(b"\n")) and kept_aside.strip()


def test_every_decision_acknowledged_before_a_kill_is_in_the_log(tmp_path):
    path = tmp_path / "labels.log"
    with start(ENDLESS, path) as process:
        acknowledged = [int(process.stdout.readline()) for _ in range(40)]
        process.kill()
        process.wait()
    with DecisionLog(path) as log:
        rows = [d.row for d in log.decisions]
    assert rows[: len(acknowledged)] == [f"r{n}" for n in acknowledged]


def test_a_second_writer_is_turned_away_in_one_line(tmp_path):
    path = tmp_path / "labels.log"
    with DecisionLog(path), pytest.raises(LogBusy, match="another labelling session"):
        DecisionLog(path)
    DecisionLog(path).close()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda lines: [lines[0], b"{oops\n", lines[2]], r":2: not JSON"),
        (lambda lines: [lines[0], lines[2]], r":2: decision 3 instead of 2"),
        (
            lambda lines: [lines[0], lines[1].replace(b'"add"', b'"hum"'), lines[2]],
            "unknown decision",
        ),
        (lambda lines: [lines[0], b"[]\n", lines[2]], "not an object"),
    ],
)
def test_damage_before_the_last_line_is_named_and_never_skipped(tmp_path, damage, said):
    path = tmp_path / "labels.log"
    with DecisionLog(path, ticking()) as log:
        add_rows(log, ["a", "b", "c"])
    path.write_bytes(b"".join(damage(path.read_bytes().splitlines(keepends=True))))
    before = path.read_bytes()
    with pytest.raises(LogDamaged, match=said):
        DecisionLog(path)
    assert path.read_bytes() == before


def test_a_full_disk_leaves_the_log_whole(tmp_path, monkeypatch):
    path = tmp_path / "labels.log"
    with DecisionLog(path, ticking()) as log:
        add_rows(log, ["a"])
        before = path.read_bytes()
        real = os.write

        def full(fd, data):
            real(fd, bytes(data)[:10])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(LabelError, match="not saved: No space left"):
            log.append(Draft("", "add", "b", "item", None, {"id": "b", "text": "b"}, "1.0"))
        monkeypatch.undo()
        assert path.read_bytes() == before
        [decision] = log.append(
            Draft("", "add", "c", "item", None, {"id": "c", "text": "c"}, "1.0")
        )
    assert decision.seq == 2
    assert [d.row for d in read_log(path)] == ["r000", "c"]


def test_a_decision_says_who_what_when_before_after_and_versions(tmp_path):
    path = tmp_path / "labels.log"
    with DecisionLog(path, ticking()) as log:
        log.append(Draft("ana", "label", "r1", "label", None, {"valence": 0.5}, "1.0"))
    record = orjson.loads(path.read_bytes())
    assert record == {
        "seq": 1,
        "at": "2030-01-01T00:00:00.000Z",
        "who": "ana",
        "what": "label",
        "row": "r1",
        "slot": "label",
        "before": None,
        "after": {"valence": 0.5},
        "guideline": "1.0",
        "tool": "limbic-label/1",
    }


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
DECISIONS = st.builds(
    Decision,
    seq=st.integers(1, 10**6),
    at=TEXT,
    who=TEXT,
    what=st.sampled_from(["label", "undo"]),
    row=TEXT,
    slot=st.sampled_from(["label", "repeat"]),
    before=st.none() | st.dictionaries(TEXT, TEXT, max_size=3),
    after=st.none() | st.dictionaries(TEXT, st.floats(-1, 1), max_size=3),
    guideline=TEXT,
    of=st.none() | st.integers(1, 10**6),
)


@given(DECISIONS)
def test_a_decision_reads_back_as_written_on_one_line(decision):
    line = decision.line()
    assert line.count(b"\n") == 1
    assert parse_decision(line) == decision
    assert parse_decision(line).line() == line


@given(st.binary(max_size=200))
def test_any_bytes_are_a_log_or_a_named_damage(data):
    try:
        decisions = parse_log(data, "x.log")
    except LogDamaged as error:
        assert str(error).startswith("x.log:")
    else:
        assert isinstance(decisions, list)
