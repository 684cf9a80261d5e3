"""Correlation, its grouped bootstrap, distance correlation, balance and the gate."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.affect_data import labelled
from trainers.affect.balance import balance, cell_weights, cells
from trainers.affect.config import load_build
from trainers.affect.correlate import correlate, render
from trainers.affect.dependence import (
    PAIR_NAMES,
    bootstrap_r,
    dependence,
    distance_correlation,
    weighted_r,
)
from trainers.affect.errors import DataError
from trainers.affect.frame import complete, matrix, to_frame, unmeasured
from trainers.affect.picture import draw_joint

BUILD = load_build()
FAST = BUILD.model_copy(update={"balance": BUILD.balance.model_copy(update={"bootstrap": 200})})


def train_frame(count: int = 400, **more) -> pl.DataFrame:
    frame = to_frame(labelled(count, **more))
    return frame.with_columns(pl.lit("train").alias("split"), pl.lit(1.0).alias("weight"))


def normals(seed: int, count: int = 500) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=count), rng.normal(size=count)


def test_weighted_correlation_agrees_with_numpy_and_with_repeated_rows():
    x, y = normals(1, 60)
    y = 0.5 * x + y
    times = np.random.default_rng(2).integers(1, 4, size=60)
    assert weighted_r(x, y, np.ones(60)) == pytest.approx(np.corrcoef(x, y)[0, 1])
    repeated = np.corrcoef(np.repeat(x, times), np.repeat(y, times))[0, 1]
    assert weighted_r(x, y, times.astype(float)) == pytest.approx(repeated)


def test_a_constant_axis_has_no_correlation():
    assert np.isnan(weighted_r(np.ones(5), np.arange(5.0), np.ones(5)))


def test_the_interval_covers_a_known_correlation_and_shrinks_with_rows():
    rng = np.random.default_rng(3)
    widths = []
    for count in (200, 3200):
        x = rng.normal(size=count)
        y = 0.6 * x + 0.8 * rng.normal(size=count)
        low, high = bootstrap_r(
            x, y, np.ones(count), np.arange(count), draws=400, level=0.95, seed=1
        )
        assert low < 0.6 < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 3


def test_rows_of_one_group_do_not_count_as_independent():
    x, y = normals(4, 50)
    x, y = np.repeat(x, 20), np.repeat(y, 20)
    groups = np.repeat(np.arange(50), 20)
    options = {"draws": 400, "level": 0.95, "seed": 1}
    honest = bootstrap_r(x, y, np.ones(1000), groups, **options)
    naive = bootstrap_r(x, y, np.ones(1000), np.arange(1000), **options)
    assert honest[1] - honest[0] > 3 * (naive[1] - naive[0])


def test_distance_correlation_sees_what_r_misses():
    x, noise = normals(5)
    y = x**2 + 0.1 * noise
    found = dependence(
        x, y, np.ones(500), np.arange(500), draws=200, level=0.95, sample=400, seed=1
    )
    assert abs(found.r) < 0.2
    assert found.distance > 0.4 > 0.2 > found.distance_shuffled


def test_distance_correlation_is_one_for_a_line_and_symmetric_and_weighted():
    x, y = normals(6, 80)
    ones = np.ones(80)
    assert distance_correlation(x, -3 * x + 1, ones) == pytest.approx(1.0)
    assert distance_correlation(x, y, ones) == pytest.approx(distance_correlation(y, x, ones))
    times = np.random.default_rng(7).integers(1, 4, size=80)
    repeated = distance_correlation(np.repeat(x, times), np.repeat(y, times), np.ones(times.sum()))
    assert distance_correlation(x, y, times.astype(float)) == pytest.approx(repeated)


@given(st.integers(0, 2**32 - 1))
def test_estimates_are_the_same_for_the_same_seed(seed):
    x, y = normals(8, 40)
    options = {"draws": 100, "level": 0.9, "sample": 30, "seed": seed}
    first = dependence(x, y, np.ones(40), np.arange(40) // 2, **options)
    assert first == dependence(x, y, np.ones(40), np.arange(40) // 2, **options)


def test_cells_tell_low_middle_high_and_null_apart():
    scores = np.array([[-0.5, 0.0, 0.5], [np.nan, 0.2, -0.21]])
    assert cells(scores, 0.2).tolist() == [0 * 16 + 1 * 4 + 2, 3 * 16 + 1 * 4 + 0]


def test_cell_weights_lift_rare_cells_within_the_clip_and_keep_the_total():
    scores = np.array([[0.8, 0.8, 0.8]] * 70 + [[-0.8, 0.8, 0.8]] * 30)
    weights = cell_weights(scores, np.ones(100), BUILD.balance)
    assert weights.sum() == pytest.approx(100, rel=1e-3)
    assert weights[-1] / weights[0] == pytest.approx(70 / 30, rel=1e-3)
    rare = np.array([[0.8, 0.8, 0.8]] * 999 + [[-0.8, 0.8, 0.8]])
    clipped = cell_weights(rare, np.ones(1000), BUILD.balance)
    assert clipped[-1] / clipped[0] < BUILD.balance.clip**2 + 1e-6


def test_rows_with_one_axis_keep_their_weight():
    scores = np.array([[0.5, np.nan, np.nan]] * 5 + [[-0.5, np.nan, np.nan]])
    assert cell_weights(scores, np.full(6, 2.0), BUILD.balance).tolist() == [2.0] * 6


def test_independent_rows_pass_and_a_mirrored_axis_fails_the_gate():
    good = correlate(train_frame(), FAST)
    bad = correlate(train_frame(coupled=0.9), FAST)
    assert good["passed"]
    assert not bad["passed"]
    assert bad["pairs"]["V-T"]["bound"] > 0.9 > 0.3 > bad["pairs"]["V-I"]["bound"]
    assert "gate FAILED" in render(bad)
    assert "gate passed" in render(good)


def test_the_gate_is_on_the_upper_bound_not_on_the_estimate():
    few = correlate(train_frame(24), FAST)
    worst = max(few["pairs"].values(), key=lambda pair: pair["bound"])
    assert abs(worst["r"]) < worst["bound"]
    assert few["passed"] is (worst["bound"] <= 0.3)
    assert not few["passed"]


def test_a_pair_that_nothing_measures_fails():
    frame = train_frame().with_columns(pl.lit(None, pl.Float64).alias("intimacy"))
    report = correlate(frame, FAST)
    assert report["pairs"]["V-T"]["bound"] <= 0.3
    assert not report["passed"]


def test_dependence_inside_the_complete_rows_is_not_hidden_by_other_sources():
    tied = train_frame(150, seed=5, coupled=0.95)
    loose = train_frame(1500, seed=6).with_columns(pl.lit(None, pl.Float64).alias("intimacy"))
    loose = loose.with_columns((pl.col("id") + "x").alias("id"))
    report = correlate(pl.concat([tied, loose]), FAST)
    assert report["pairs"]["V-T"]["bound"] < 0.3
    assert report["complete"]["V-T"]["bound"] > 0.9
    assert not report["passed"]


def test_the_report_lists_sources_tags_and_all_27_cells():
    report = correlate(train_frame(), FAST)
    assert list(report["by_source"]) == ["llm_label"]
    assert len(report["by_tag"]) == 9
    assert len(report["cells"]) == 27
    assert sum(cell["rows"] for cell in report["cells"]) == 400
    assert list(report["pairs"]) == list(PAIR_NAMES)


def test_balance_brings_a_moderate_dependence_below_the_limit():
    frame = train_frame(600, coupled=0.35)
    before = correlate(frame, FAST)
    balanced, report = balance(frame, FAST)
    after = correlate(balanced, FAST)
    assert not before["passed"]
    assert after["passed"]
    assert max(report.after.values()) <= FAST.balance.limit < report.before["V-T"]
    assert balanced["id"].to_list() == frame["id"].to_list()


def test_selection_takes_the_worst_labels_first_and_keeps_their_emotions():
    good = train_frame(600, seed=11)
    weak = train_frame(600, seed=12, coupled=0.97).with_columns(
        pl.lit("backfill").alias("quality"),
        pl.lit(None, pl.Float64).alias("intimacy"),
        pl.lit([{"name": "anger", "value": 1.0}]).alias("aux"),
    )
    narrow = FAST.balance.model_copy(update={"clip": 1.01})
    wide = FAST.model_copy(update={"balance": narrow})
    frame = complete(pl.concat([good, weak]))
    balanced, report = balance(frame, wide)
    out = balanced.filter(unmeasured())
    assert report.selected_out == out.height > 0
    assert set(out["quality"]) == {"backfill"}
    assert out["aux"].list.len().min() == 1
    assert np.isnan(matrix(out)).all()


def test_balance_gives_up_with_the_pair_and_what_to_add():
    with pytest.raises(DataError, match=r"balance: .*V-T stays at .*add rows to its empty"):
        balance(train_frame(coupled=1.0), FAST)


def test_balance_leaves_dev_and_test_alone():
    frame = train_frame(300, coupled=0.3).with_columns(
        pl.when(pl.int_range(pl.len()) < 100).then(pl.lit("dev")).otherwise("split").alias("split")
    )
    balanced, _ = balance(frame, FAST)
    dev = pl.col("split") == "dev"
    assert balanced.filter(dev).equals(frame.filter(dev))


def test_the_picture_is_a_png_with_the_same_bytes_every_time(tmp_path):
    before, after = train_frame(200, coupled=0.9), train_frame(200)
    for name in ("a.png", "b.png"):
        draw_joint(before, after, tmp_path / name)
    data = (tmp_path / "a.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert data == (tmp_path / "b.png").read_bytes()
    draw_joint(after, after, tmp_path / "c.png")
    assert data != (tmp_path / "c.png").read_bytes()
