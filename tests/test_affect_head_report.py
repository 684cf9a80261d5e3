"""The affect head's page and chain: figures that follow the predictions, stages that resume."""

from __future__ import annotations

import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.test_affect_head_training import prepared
from trainers.affect.head import reproduce
from trainers.affect.head.arrays import Prepared
from trainers.affect.head.network import TAGS
from trainers.affect.head.report import PICTURES, confusion, draw, page, report, rows_to_run
from trainers.affect.head.report import main as report_main

MANIFEST = {"name": "scripted", "version": "1", "confidence": {"a": 2.0, "b": 4.0}}


def data_and_perfect_answers() -> tuple[Prepared, dict[str, np.ndarray]]:
    data = prepared(160)
    axes = np.nan_to_num(data.axes).astype(np.float32)
    out = {"axes": axes, "tags": data.tags.copy(), "emotions": data.emotions.copy(),
           "spread": np.full(len(axes), 0.1, np.float32)}  # fmt: skip
    return data, out


def test_perfect_predictions_give_perfect_figures_and_a_page_says_met() -> None:
    data, out = data_and_perfect_answers()
    table = report(data, out, MANIFEST)
    assert table["gold"]["valence"]["r"] == pytest.approx(1.0)
    assert table["archetypes"]["most probable is right"] == 1.0
    text = page(table, "pictures")
    assert "| gold valence r | 1.000 (met) | 0.75 |" in text
    table_rows = [line for line in text.splitlines() if "predicted" in line and line[0] == "|"]
    assert table_rows and all(line.replace(r"\|", "").count("|") == 4 for line in table_rows)
    assert all(f"pictures/affect-{name}.png" in text for name in PICTURES)


def test_noise_instead_of_predictions_is_said_to_miss() -> None:
    data, out = data_and_perfect_answers()
    out["axes"] = np.random.default_rng(0).uniform(-1, 1, out["axes"].shape).astype(np.float32)
    assert "| gold valence r | 0." in page(report(data, out, MANIFEST), "p").replace("-0.", "0.")
    assert "(**missed**)" in page(report(data, out, MANIFEST), "p")


def test_the_confusion_counts_each_gold_row_with_one_archetype_once() -> None:
    data, out = data_and_perfect_answers()
    gold = data.rows("gold")
    single = int((data.tags[gold].sum(1) == 1).sum())
    out["tags"] = np.zeros_like(out["tags"])
    out["tags"][:, 3] = 1.0
    counts, names = confusion(data, out["tags"])
    assert counts.sum() == counts[:, 3].sum() == single
    assert set(names) <= set(TAGS)


def test_the_pictures_are_drawn_from_whatever_there_is(tmp_path: Path) -> None:
    data, out = data_and_perfect_answers()
    draw(data, out, report(data, out, MANIFEST), tmp_path)
    for name in PICTURES:
        assert (tmp_path / f"affect-{name}.png").read_bytes().startswith(b"\x89PNG")


def test_training_rows_are_never_run_for_a_figure() -> None:
    data, _ = data_and_perfect_answers()
    assert not np.isin(rows_to_run(data), data.rows("train")).any()


class Runner:
    """Stands for ``subprocess.run``: makes each stage's output, or fails at one."""

    def __init__(self, chain: list[reproduce.Stage], fail: str = "") -> None:
        self.outputs = {stage.module: stage for stage in chain}
        self.fail, self.ran = fail, []

    def __call__(self, argv: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        stage = self.outputs[argv[2]]
        self.ran.append(stage.name)
        if stage.name == self.fail:
            return subprocess.CompletedProcess(argv, 3)
        stage.output.parent.mkdir(parents=True, exist_ok=True)
        stage.output.write_text("done")
        return subprocess.CompletedProcess(argv, 0)


def test_a_chain_that_stopped_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = reproduce.stages(tmp_path, tmp_path / "out", quick=True, lexicon=None)
    argv = ["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--quick"]
    first = Runner(chain, fail="train")
    monkeypatch.setattr(reproduce.subprocess, "run", first)
    assert reproduce.main(argv) == 3
    assert first.ran == ["build", "prepare", "train"]
    second = Runner(chain)
    monkeypatch.setattr(reproduce.subprocess, "run", second)
    assert reproduce.main(argv) == 0
    assert second.ran == ["train", "export", "baselines", "report"]


@pytest.mark.parametrize("command", [reproduce.main, report_main])
def test_data_that_is_not_there_is_a_usage_error_in_one_line(
    command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        command(["--data", str(tmp_path / "none"), "--out", str(tmp_path / "out")])
    assert caught.value.code == 2
    assert "no such" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_the_generative_chain_is_of_modules_that_exist_and_hands_files_on(tmp_path: Path) -> None:
    chain = reproduce.generative_stages(tmp_path, tmp_path / "out", quick=True)
    assert [stage.name for stage in chain] == ["build", "train", "export", "compare"]
    assert all(find_spec(stage.module) is not None for stage in chain)
    built = chain[0].output.parent
    assert all(str(built) in stage.arguments for stage in chain)
    assert str(chain[1].output.parent) in chain[2].arguments
    assert str(chain[2].output.parent / "model-Q8_0.gguf") in chain[3].arguments
