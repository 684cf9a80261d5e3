"""The terminal screen: the keys of a real prompt_toolkit application, and of a real terminal."""

from __future__ import annotations

import os
import sys

import pexpect
import pytest
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from tests.label_kit import a_label, add_rows, ticking, write_jsonl
from trainers.affect.label.form import FIELDS, Form
from trainers.affect.label.log import DecisionLog, read_log
from trainers.affect.label.queue import Plan
from trainers.affect.label.session import LabelSession
from trainers.affect.label.state import LabelState
from trainers.affect.label.terminal import LabelScreen

LEFT, UP = "\x1b[D", "\x1b[A"
QUIT = "\x11"


@pytest.fixture
def log(tmp_path):
    with DecisionLog(tmp_path / "labels.log", ticking()) as opened:
        yield opened


def press(log, keys, rater="ana", plan=None):
    session = LabelSession(log, rater, guideline="1.0", plan=plan, repeat_share=0)
    with create_pipe_input() as pipe:
        pipe.send_text(keys + QUIT)
        LabelScreen(session, "the guidelines").run(pipe, DummyOutput())
    return session.state


def test_one_key_an_axis_labels_a_row(log):
    [row] = add_rows(log, ["who is she"])
    state = press(log, "2897hs\r")
    assert state.labels(row)["ana"] == a_label(
        -0.75, 0.75, 1.0, 0.7, ("hostile_intimacy", "safety_edge")
    )


def test_arrows_nudge_and_go_back_to_an_axis(log):
    [row] = add_rows(log, ["fine."])
    state = press(log, "5559" + UP + LEFT + LEFT + "\r")
    assert state.labels(row)["ana"].scores == (0.0, 0.0, -0.1)


def test_an_unfinished_label_is_not_saved(log):
    [row] = add_rows(log, ["fine."])
    assert press(log, "55\r").labels(row) == {}


def test_skip_undo_redo_and_note(log):
    add_rows(log, ["one", "two"])
    press(log, "mtoo short\rk" + "z" + "y" + "5559\r")
    skip, undo, redo, label = log.decisions[-4:]
    assert [d.what for d in (skip, undo, redo, label)] == ["skip", "undo", "redo", "label"]
    assert skip.after == redo.after == {"skipped": True, "note": "too short"}
    assert undo.of == skip.seq and redo.of == skip.seq
    assert label.row != skip.row


def test_tag_letters_inside_a_note_are_words(log):
    [row] = add_rows(log, ["one"])
    label = press(log, "5559" + "mhow sad?\r" + "\r").labels(row)["ana"]
    assert (label.note, label.tags) == ("how sad?", ())


def test_the_guidelines_can_be_read_in_between(log):
    [row] = add_rows(log, ["one"])
    assert press(log, "55" + "?" + "?" + "59\r").labels(row)["ana"].scores == (0, 0, 0)


def test_a_disputed_row_can_take_a_raters_label_or_be_dropped(log):
    rows = add_rows(log, ["fine.", "ok."])
    for rater, keys in (("ana", "2559\r"), ("ben", "8559\r")):
        press(log, keys * 2, rater)
    state = press(log, "]\r" + "x", "cara", Plan(mode="resolve"))
    outcomes = [state.resolution(row) for row in rows]
    assert (True, None) in outcomes
    assert [label.valence for _, label in outcomes if label] == [0.75]


def test_nudging_stays_on_the_scale():
    form = Form()
    for name in FIELDS:
        form.focus = FIELDS.index(name)
        form.nudge(-100)
        assert form.values[name] == (0 if name == "confidence" else -1)
        form.nudge(500)
        assert form.values[name] == 1


def test_a_real_terminal_session_killed_at_the_keyboard_keeps_what_was_saved(tmp_path):
    rows = write_jsonl(
        tmp_path / "r.jsonl", [{"id": f"r{n}", "text": f"text {n}"} for n in range(3)]
    )
    log = tmp_path / "labels.log"
    arguments = [
        "-m",
        "trainers.affect.label",
        "terminal",
        "--log",
        str(log),
        "--rows",
        str(rows),
        "--rater",
        "ana",
    ]
    child = pexpect.spawn(
        sys.executable,
        arguments,
        encoding="utf-8",
        timeout=30,
        dimensions=(40, 120),
        env={**os.environ, "TERM": "xterm"},
    )
    child.expect("0 done")
    child.send("2897h\r")
    child.expect("saved V-0.75")
    child.send("45")  # half an answer
    child.kill(9)
    child.wait()
    state = LabelState(read_log(log))
    assert len(state.labelled_by("ana")) == 1
    again = pexpect.spawn(
        sys.executable,
        arguments,
        encoding="utf-8",
        timeout=30,
        dimensions=(40, 120),
        env={**os.environ, "TERM": "xterm"},
    )
    again.expect("1 done")
    again.send(QUIT)
    again.expect(pexpect.EOF)
    again.close()
    assert again.exitstatus == 0
