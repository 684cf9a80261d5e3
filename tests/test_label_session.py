"""One rater at work: undo, redo, resuming, blind repeats, second rater, resolving."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.label_kit import a_label, add_rows, ticking
from trainers.affect.label.log import DecisionLog, LabelError, LogDamaged, read_log
from trainers.affect.label.queue import Plan
from trainers.affect.label.session import Conflict, LabelSession, import_drafts
from trainers.affect.label.state import LabelState


@pytest.fixture
def log(tmp_path):
    with DecisionLog(tmp_path / "labels.log", ticking()) as opened:
        yield opened


def session_on(log, rater="ana", **options):
    return LabelSession(log, rater, guideline="1.0", **options)


def test_undo_brings_the_row_back_with_its_answer_and_redo_makes_it_again(log):
    add_rows(log, ["one", "two"])
    session = session_on(log)
    row = session.current().row
    session.save(a_label(valence=0.5, tags=("everyday_warm",)))
    session.undo()
    assert session.current().row == row
    assert session.current().label == a_label(valence=0.5, tags=("everyday_warm",))
    assert session.state.labels(row) == {}
    session.redo()
    assert session.state.labels(row)["ana"].valence == 0.5
    assert session.current().row != row


def test_a_new_answer_after_undo_ends_redo(log):
    add_rows(log, ["one", "two"])
    session = session_on(log)
    session.save(a_label())
    session.undo()
    session.save(a_label(valence=-1))
    with pytest.raises(LabelError, match="nothing to redo"):
        session.redo()


def test_a_session_goes_on_where_it_stopped_and_can_undo_across_the_stop(log):
    rows = add_rows(log, ["one", "two", "three"])
    first = session_on(log)
    first.save(a_label())
    first.skip("cannot read it")
    again = session_on(log)
    [left] = set(rows) - {decision.row for decision in log.decisions[3:]}
    assert again.current().row == left
    again.save(a_label())
    assert again.current() is None
    again.undo()
    again.undo()
    assert again.current().label is None  # it was skipped, there is no answer to show


def test_a_skipped_row_does_not_come_back(log):
    add_rows(log, ["one"])
    session_on(log).skip()
    assert session_on(log).current() is None


def test_an_answer_to_a_row_that_is_no_longer_shown_is_refused(log):
    add_rows(log, ["one", "two"])
    session = session_on(log)
    at = session.current().at
    session.save(a_label(), at=at)
    with pytest.raises(Conflict, match="answered already"):
        session.save(a_label(), at=at)
    assert len(session.state.labelled_by("ana")) == 1


def test_blind_repeats_are_one_in_twenty_and_look_like_any_other_row(log):
    add_rows(log, [f"text {n}" for n in range(200)])
    session = session_on(log, repeat_share=0.05)
    repeated = []
    while (task := session.current()) is not None:
        assert task.label is None and task.others is None
        if task.slot == "repeat":
            repeated.append(task.row)
            recent = session.state.labelled_by("ana")[-10:]
            assert task.row not in recent
        session.save(a_label(valence=0.1))
    assert len(session.state.labelled_by("ana")) == 200
    assert len(repeated) == len(set(repeated)) == 10
    assert set(session.state.repeats("ana")) == set(repeated)


def test_where_a_repeat_comes_cannot_be_counted_out(log):
    add_rows(log, [f"text {n}" for n in range(200)])
    session = session_on(log)
    at = []
    while (task := session.current()) is not None:
        if task.slot == "repeat":
            at.append(len(session.state.labelled_by("ana")) % 20)
        session.save(a_label())
    assert len(set(at)) > 3


def test_a_second_rater_gets_only_rows_others_labelled_and_does_not_see_the_labels(log):
    add_rows(log, ["one", "two", "three"])
    ana = session_on(log)
    done = ana.current().row
    ana.save(a_label(valence=0.9))
    ben = session_on(log, "ben", plan=Plan(mode="second"))
    task = ben.current()
    assert (task.row, task.label, task.others) == (done, None, None)
    ben.save(a_label(valence=0.7))
    assert ben.current() is None
    assert {w: x.valence for w, x in ben.state.labels(done).items()} == {"ana": 0.9, "ben": 0.7}


def disputed(log):
    [row, *_] = add_rows(log, ["fine.", "agreed"])
    for rater, valence in (("ana", -0.4), ("ben", 0.4)):
        session = session_on(log, rater, repeat_share=0)
        while (task := session.current()) is not None:
            session.save(a_label(valence=valence if task.row == row else 0.0))
    return row


def test_resolving_shows_both_labels_and_only_disputed_rows(log):
    row = disputed(log)
    cara = session_on(log, "cara", plan=Plan(mode="resolve"))
    task = cara.current()
    assert task.row == row
    assert {who: label.valence for who, label in task.others.items()} == {"ana": -0.4, "ben": 0.4}
    with pytest.raises(LabelError, match="resolved or dropped"):
        cara.skip()
    cara.drop("no context")
    assert cara.current() is None
    assert cara.state.resolution(row) == (True, None)
    cara.undo()
    cara.save(a_label(valence=-0.3))
    assert cara.state.resolution(row)[1].valence == -0.3


def test_undo_does_not_wipe_out_what_somebody_else_has_decided_since(log):
    row = disputed(log)
    session_on(log, "cara", plan=Plan(mode="resolve")).drop()
    state = LabelState(log.decisions)
    log.append(import_drafts(state, "dan", "human", {row: a_label()}, "1.0", slot="resolution"))
    cara = session_on(log, "cara", plan=Plan(mode="resolve"))
    with pytest.raises(LabelError, match="someone has decided it since"):
        cara.undo()


def test_a_machine_rater_cannot_be_worn_by_a_person(log):
    add_rows(log, ["one"])
    log.append(import_drafts(LabelState(log.decisions), "r1", "llm", {"r000": a_label()}, "1.0"))
    with pytest.raises(LabelError, match="choose another name"):
        session_on(log, "r1")


def test_a_log_whose_before_does_not_fit_is_damage(log):
    add_rows(log, ["one"])
    session_on(log).save(a_label())
    with pytest.raises(LogDamaged, match="not what the log holds"):
        LabelState([*log.decisions[:-1], log.decisions[-1], log.decisions[-1]])


class AnyOrderOfKeys(RuleBasedStateMachine):
    """Whatever keys are pressed, the log alone gives the state, and undo then redo is nothing."""

    @initialize()
    def open(self):
        import tempfile
        from pathlib import Path

        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "labels.log"
        self.log = DecisionLog(self.path, ticking())
        add_rows(self.log, [f"text {n}" for n in range(6)])
        self.session = session_on(self.log, repeat_share=0.5)

    @rule(valence=st.sampled_from([-1, -0.5, 0, 0.5, 1]))
    def save(self, valence):
        if self.session.current():
            self.session.save(a_label(valence=valence))

    @rule()
    def skip(self):
        if self.session.current():
            self.session.skip()

    @rule()
    def undo_then_redo(self):
        if self.session.progress()["can_undo"]:
            before = dict(self.session.state.slots)
            self.session.undo()
            self.session.redo()
            assert dict(self.session.state.slots) == before

    @rule()
    def undo(self):
        if self.session.progress()["can_undo"]:
            self.session.undo()

    @rule()
    def redo(self):
        if self.session.progress()["can_redo"]:
            self.session.redo()

    @rule()
    def restart(self):
        self.log.close()
        self.log = DecisionLog(self.path, ticking())
        self.session = session_on(self.log, repeat_share=0.5)

    @invariant()
    def the_log_alone_gives_the_state(self):
        again = LabelState(read_log(self.path))
        assert again.slots == self.session.state.slots
        assert again.labelled_by("ana") == self.session.state.labelled_by("ana")

    def teardown(self):
        self.log.close()
        self.folder.cleanup()


TestAnyOrderOfKeys = AnyOrderOfKeys.TestCase
TestAnyOrderOfKeys.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)
