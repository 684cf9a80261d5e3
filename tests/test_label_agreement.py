"""Agreement measures against published worked examples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.label_kit import a_label, add_rows, ticking
from trainers.affect.label.agreement import alpha_interval, icc, report, with_intervals
from trainers.affect.label.log import DecisionLog
from trainers.affect.label.session import import_drafts
from trainers.affect.label.state import LabelState

_ = np.nan
#: Krippendorff 2011, the four-observer example with missing values: 12 units.
KRIPPENDORFF = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
        [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
    ]
).T
#: Shrout and Fleiss 1979, table 2: six targets, four judges.
SHROUT_FLEISS = np.array(
    [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float
)


def test_alpha_is_that_of_the_published_example():
    assert alpha_interval(KRIPPENDORFF) == pytest.approx(0.849, abs=0.0005)


def test_icc_is_that_of_the_published_example():
    single, mean = icc(SHROUT_FLEISS)
    assert single == pytest.approx(0.29, abs=0.005)
    assert mean == pytest.approx(0.62, abs=0.005)


def slow_alpha(scores):
    """Straight from the definition: observed over expected squared difference of pairs."""
    units = [[v for v in unit if not np.isnan(v)] for unit in scores]
    units = [unit for unit in units if len(unit) > 1]
    values = [v for unit in units for v in unit]
    n = len(values)
    observed = sum(sum((a - b) ** 2 for a in u for b in u) / (len(u) - 1) for u in units) / n
    expected = sum((a - b) ** 2 for a in values for b in values) / (n * (n - 1))
    return 1 - observed / expected


@given(
    arrays(
        float,
        st.tuples(st.integers(2, 8), st.integers(2, 4)),
        elements=st.sampled_from([-1, -0.5, 0, 0.25, 1, np.nan]),
    )
)
def test_alpha_follows_its_definition(scores):
    pairable = scores[(~np.isnan(scores)).sum(axis=1) >= 2]
    if len(pairable) == 0 or len(np.unique(pairable[~np.isnan(pairable)])) < 2:
        assert np.isnan(alpha_interval(scores))
    else:
        assert alpha_interval(scores) == pytest.approx(slow_alpha(scores))


def test_intervals_hold_the_estimate_narrow_with_rows_and_repeat_with_the_seed():
    rng = np.random.default_rng(1)
    truth = rng.uniform(-1, 1, size=(800, 1))
    many = truth + rng.normal(0, 0.2, size=(800, 2))
    wide, narrow = with_intervals(many[:50]), with_intervals(many)
    for name in ("alpha", "icc_single", "icc_mean"):
        assert wide[name].low < wide[name].value < wide[name].high
        assert narrow[name].high - narrow[name].low < wide[name].high - wide[name].low
    assert with_intervals(many) == narrow
    assert with_intervals(many, seed=1)["alpha"] != narrow["alpha"]


def test_nothing_to_compare_is_not_a_number_rather_than_perfect():
    assert np.isnan(with_intervals(np.array([[0.5, np.nan]]))["alpha"].value)
    assert np.isnan(alpha_interval(np.array([[0.5, 0.5], [0.5, 0.5]])))


def test_the_report_counts_shared_rows_large_gaps_and_tags(tmp_path):
    with DecisionLog(tmp_path / "labels.log", ticking()) as log:
        rows = add_rows(log, ["a", "b", "c", "d"])
        first = {
            row: a_label(valence=v, tags=("flat_numb",))
            for row, v in zip(rows, (-1, -0.5, 0.5), strict=False)
        }
        second = {row: a_label(valence=v) for row, v in zip(rows, (-1, 0.3, 0.5, 1), strict=True)}
        for who, labels in (("r1", first), ("r2", second)):
            log.append(import_drafts(LabelState(log.decisions), who, "llm", labels, "1.0"))
        found = report(LabelState(log.decisions), samples=200)
    assert (found["rows"], found["shared_rows"]) == (4, 3)
    valence = found["axes"]["valence"]
    assert valence["gap_over_half"] == 1
    assert valence["mean_gap"] == pytest.approx(0.8 / 3, abs=1e-4)
    assert valence["alpha"]["value"] == pytest.approx(
        slow_alpha([[-1, -1], [-0.5, 0.3], [0.5, 0.5]]), abs=1e-4
    )
    assert found["axes"]["intimacy"]["alpha"]["value"] is None  # all equal: nothing to agree on
    assert found["tags"]["flat_numb"]["given"] == 3
