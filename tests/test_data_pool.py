"""The real files: the shipped pool, and the public sets where they are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import polars as pl
import pytest

from trainers.affect.build import POOL
from trainers.affect.config import load_build, load_mapping, load_sources
from trainers.affect.fetch import verify, wanted
from trainers.affect.frame import read_frame
from trainers.affect.gold import GOLD_FILE, GoldGuard, check_frozen, pool_files
from trainers.affect.lint import lint
from trainers.affect.readers import READERS
from trainers.affect.rows import Rejects

DATA = Path(os.environ.get("LIMBIC_DATA") or "data/public")
ROW_FILES = pool_files(POOL)[0] if POOL.is_dir() else []

needs_pool = pytest.mark.skipif(not ROW_FILES, reason="the labelled pool is not in this checkout")
needs_gold = pytest.mark.skipif(not (POOL / GOLD_FILE).exists(), reason="no gold set here")
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="set LIMBIC_DATA to the public sets")


@needs_pool
def test_every_shipped_row_can_be_read_and_has_no_lint_error():
    rejects = Rejects()
    rows = read_frame(ROW_FILES, rejects)
    assert [str(item) for item in rejects.items] == []
    assert [found for found in lint(rows) if found.level == "error"] == []


@needs_pool
@needs_gold
def test_the_shipped_gold_set_is_frozen_and_apart_from_the_pool():
    check_frozen(POOL / GOLD_FILE)
    GoldGuard.load(POOL).refuse(read_frame(ROW_FILES), "pool")


@pytest.mark.big_data
@needs_data
@pytest.mark.parametrize(
    ("name", "rows", "rejected"),
    [
        ("goemotions", 48_836, 0),
        ("xed", 27_195, 7),  # subtitle lines with tabs inside
        ("emobank", 9_062, 0),
        ("intimacy", 2_022, 0),
        ("semeval", 2_878, 0),
    ],
)
def test_the_published_files_are_read_whole(name, rows, rejected):
    for file in wanted(load_sources(), [name]):
        verify(DATA, file)
    rejects = Rejects()
    frame = READERS[name](DATA, load_mapping(), load_build(), rejects)
    assert (frame.height, len(rejects.items)) == (rows, rejected)
    assert frame.filter(pl.col("id").is_duplicated()).height == 0
