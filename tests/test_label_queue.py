"""What is asked first."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tests.label_kit import a_label, add_rows, ticking, write_jsonl
from trainers.affect.label import items
from trainers.affect.label.items import Item
from trainers.affect.label.log import DecisionLog, Draft
from trainers.affect.label.queue import Plan, band_cell, ranked, repeats_due, value_of
from trainers.affect.label.scorer import ModelScore, read_scores, tfidf_scores
from trainers.affect.label.session import import_drafts
from trainers.affect.label.state import LabelState
from trainers.affect.rows import AffectRow, Rejects


@pytest.fixture
def log(tmp_path):
    with DecisionLog(tmp_path / "labels.log", ticking()) as opened:
        yield opened


def says(valence, confidence=0.5, spread=0.0):
    return ModelScore({"valence": valence, "intimacy": 0.0, "tension": 0.0}, confidence, spread)


def labelled(log, labels):
    log.append(import_drafts(LabelState(log.decisions), "r1", "llm", labels, "1.0"))
    return LabelState(log.decisions)


def test_value_is_disagreement_over_the_confidence_of_the_label():
    reference = {"valence": 0.6, "intimacy": 0.0, "tension": 0.0}
    sure, _ = value_of(reference, 0.9, says(-0.3))
    unsure, reason = value_of(reference, 0.3, says(-0.3))
    assert sure == pytest.approx(0.3 / 0.9)
    assert unsure == pytest.approx(0.3 / 0.3)
    assert reason == "valence differs by 0.90 from the model, confidence 0.30"
    assert value_of(reference, 0.0, says(-0.3))[0] == pytest.approx(0.3 / 0.1)  # floor


def test_the_row_the_model_disputes_most_comes_first_within_a_cell(log):
    rows = add_rows(log, ["a", "b", "c"])
    state = labelled(log, dict.fromkeys(rows, a_label(valence=0.1)))
    scores = {rows[0]: says(0.2), rows[1]: says(0.9), rows[2]: says(-0.4)}
    order = ranked(state, "ana", scores, Plan(mode="second"))
    assert [entry.row for entry in order] == [rows[1], rows[2], rows[0]]


def test_cells_take_turns_and_a_full_cell_waits_for_the_rest(log):
    rows = add_rows(log, [f"t{n}" for n in range(9)])
    cells = [0.8] * 6 + [-0.8] * 3
    state = labelled(log, {r: a_label(valence=v) for r, v in zip(rows, cells, strict=True)})
    order = ranked(state, "ana", {}, Plan(mode="second", quota=2))
    signs = ["+" if entry.cell.startswith("V+") else "-" for entry in order]
    assert sorted(signs[:2]) == sorted(signs[2:4]) == ["+", "-"]
    assert len(order) == 9
    by_quota = ranked(state, "ana", {}, Plan(mode="second", quotas={"V+ I0 T0": 1}, quota=50))
    assert [entry.cell for entry in by_quota].index("V+ I0 T0") <= 1
    assert {entry.cell for entry in by_quota[:4]} == {"V+ I0 T0", "V- I0 T0"}
    assert [entry.cell[:2] for entry in by_quota[4:]] == ["V+"] * 5


def test_rows_already_done_by_this_rater_count_towards_their_cell(log):
    rows = add_rows(log, [f"t{n}" for n in range(6)])
    values = [0.8, 0.8, 0.8, -0.8, -0.8, -0.8]
    state = labelled(log, {r: a_label(valence=v) for r, v in zip(rows, values, strict=True)})
    mine = {row: a_label(valence=0.8) for row in rows[:2]}
    log.append(import_drafts(state, "ana", "human", mine, "1.0"))
    order = ranked(LabelState(log.decisions), "ana", {}, Plan(mode="second"))
    assert [entry.cell[:2] for entry in order[:2]] == ["V-", "V-"]


def test_tag_cells_use_what_the_text_was_written_for(log):
    for n, intended in enumerate(["flat_numb", "flat_numb", "safety_edge"]):
        item = {"id": f"r{n}", "text": f"t{n}", "intended": intended}
        log.append(Draft("", "add", f"r{n}", "item", None, item, "1.0"))
    order = ranked(LabelState(log.decisions), "ana", {}, Plan(cells="tag"))
    assert {entry.cell for entry in order[:2]} == {"flat_numb", "safety_edge"}


def test_unlabelled_rows_are_ranked_by_the_spread_of_the_model(log):
    rows = add_rows(log, ["a", "b"])
    scores = {rows[0]: says(0, spread=0.1), rows[1]: says(0, spread=0.4)}
    order = ranked(LabelState(log.decisions), "ana", scores, Plan())
    assert [entry.row for entry in order] == [rows[1], rows[0]]
    assert "spread 0.40" in order[0].reason


def test_the_order_depends_on_the_seed_and_nothing_else(log):
    add_rows(log, [f"t{n}" for n in range(30)])
    state = LabelState(log.decisions)
    assert ranked(state, "ana", {}, Plan()) == ranked(state, "ana", {}, Plan())
    assert ranked(state, "ana", {}, Plan()) != ranked(state, "ana", {}, Plan(seed=1))


def test_bands_name_low_middle_high_and_unmeasured():
    assert band_cell({"valence": -0.26, "tension": 0.25}) == "V- I? T0"


@pytest.mark.parametrize("share", [0.02, 0.05, 0.2])
def test_repeats_keep_their_share_and_only_grow(share):
    due = [repeats_due(n, share, "ana", 0) for n in range(1001)]
    assert due[0] == 0 and due[1000] == round(1000 * share)
    assert all(0 <= b - a <= 1 for a, b in itertools.pairwise(due))


def test_the_text_model_learns_and_does_not_remember_its_own_rows():
    rng = np.random.default_rng(0)
    good, bad = ["lovely", "great", "happy", "sunny"], ["awful", "broken", "sad", "cold"]
    items, labels = [], {}
    for n in range(160):
        words = good if n % 2 else bad
        text = " ".join(rng.choice(words, 3)) + f" w{n}"
        items.append(Item(id=f"r{n}", text=text))
        labels[f"r{n}"] = a_label(valence=0.8 if n % 2 else -0.8)
    labels["r0"] = a_label(valence=0.8)  # planted mistake: the words say the opposite
    scores = tfidf_scores(items, labels)
    right = np.mean([(scores[f"r{n}"].scores["valence"] > 0) == bool(n % 2) for n in range(1, 160)])
    assert right > 0.95
    assert scores["r0"].scores["valence"] < 0
    value, _ = value_of({"valence": 0.8}, 0.8, scores["r0"])
    assert value > 2 * value_of({"valence": 0.8}, 0.8, scores["r1"])[0]
    assert scores == tfidf_scores(items, labels)


def test_too_few_rows_train_nothing():
    assert tfidf_scores([Item(id="a", text="hello")], {"a": a_label()}) == {}


def test_a_scores_file_names_its_bad_lines(tmp_path):
    path = write_jsonl(
        tmp_path / "s.jsonl", [{"id": "a", "valence": 0.5}, {"id": "b", "valence": 5}]
    )
    rejects = Rejects()
    assert set(read_scores(path, rejects)) == {"a"}
    assert [reject.line for reject in rejects.items] == [2]


def test_every_column_of_an_affect_row_can_be_brought_to_labelling():
    assert set(AffectRow.model_fields) <= set(Item.model_fields) | items._PASSING
