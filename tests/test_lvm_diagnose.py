"""Diagnosis tells ordered text from shuffled text, and what is out of reach."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tests.fakes.lvm_worlds import drifting_store, write_store
from trainers.lvm.cli import cli
from trainers.lvm.diagnose import BadData, diagnose, optimal_margin, r_min, require_good
from trainers.lvm.errors import TooFewWindows
from trainers.lvm.store import VectorStore, store_in_memory


def shuffled_store() -> VectorStore:
    rng = np.random.default_rng(0)
    return store_in_memory([rng.standard_normal((14, 16)) for _ in range(120)], "train")


def test_the_needed_r_is_the_one_of_the_record() -> None:
    assert r_min(0.457, 0.56, 0.10) == pytest.approx(0.603, abs=5e-4)


def test_a_negative_margin_is_normal() -> None:
    assert optimal_margin(0.60, 0.457) < 0 < optimal_margin(0.70, 0.457)


def test_drifting_topics_are_good_data() -> None:
    report = diagnose(drifting_store())
    assert report["good"], report
    assert report["temporal_signal"] > 0.05
    assert report["monotonic_order"] >= 0.75
    require_good(report)


def test_data_without_order_stops_a_run_unless_overridden() -> None:
    report = diagnose(shuffled_store())
    assert not report["good"]
    with pytest.raises(BadData, match="temporal signal"):
        require_good(report)
    require_good(report, override=True)


def test_too_few_documents_are_refused() -> None:
    with pytest.raises(TooFewWindows, match="5 are needed"):
        diagnose(store_in_memory([np.eye(8)], "train"))


def test_the_command_prints_draws_and_exits_by_the_verdict(tmp_path: Path) -> None:
    write_store(drifting_store(), tmp_path / "good")
    write_store(shuffled_store(), tmp_path / "bad")
    picture = tmp_path / "p.png"
    good = CliRunner().invoke(cli, ["diagnose", str(tmp_path / "good"), "--picture", str(picture)])
    assert good.exit_code == 0, good.output
    assert "temporal signal" in good.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    bad = CliRunner().invoke(cli, ["diagnose", str(tmp_path / "bad"), "--json"])
    assert bad.exit_code == 1
    assert '"good": false' in bad.output
