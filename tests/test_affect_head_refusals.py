"""What the affect head's commands refuse: in one line, before any work, with nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sidecars.affect_manifest import Confidence
from tests.test_affect_head_training import prepared, saved, small_minilm
from trainers.affect.head import average, distil, export, network, refit, runs, train, tries
from trainers.affect.head.arrays import TAGS
from trainers.affect.head.measure import confidence_of
from trainers.affect.head.report import main as report_main

Command = Callable[[list[str]], int]
SOURCES_A_STEP = ("pool", "emobank", "intimacy", "goemotions", "xed", "semeval")


def refused(command: Command, argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command says when it ends with a usage error."""
    with pytest.raises(SystemExit) as end:
        command(argv)
    assert end.value.code == 2
    *usage, said = capsys.readouterr().err.splitlines()
    assert all(line.startswith(("usage: ", " ")) for line in usage)
    return said


def command_line(folder: Path, command: Command, **changes: str) -> list[str]:
    """Its arguments, on files that are there; ``changes`` replace some or add others."""
    (folder / "set.json").write_text("{}")
    if not (folder / "set.npz").exists():
        saved(prepared(), folder / "set.npz")
    (folder / "head").write_bytes(b"no weights at all")
    found = {"data": str(folder / "set.npz"), "out": str(folder / "out")}
    if command in (distil.main, export.main, average.main):
        found["head"] = str(folder / "head")
    if command is average.main:
        found["start"] = str(folder / "head")
    if command is tries.main:
        del found["out"]
    return [word for name, value in {**found, **changes}.items()
            for word in (f"--{name}", *([value] if value else []))]  # fmt: skip


@pytest.mark.parametrize(
    "command", [train.main, distil.main, export.main, average.main, refit.main, tries.main]
)
def test_a_set_that_cannot_be_read_is_refused(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "set.npz").write_bytes(b"torn")
    said = refused(command, command_line(tmp_path, command), capsys)
    assert "set.npz: cannot be read" in said and "run prepare again" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [distil.main, export.main, average.main])
def test_a_head_that_is_no_safetensors_file_is_refused(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(network, "load_minilm", small_minilm)
    said = refused(command, command_line(tmp_path, command), capsys)
    assert f"{tmp_path / 'head'}: not a safetensors file" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [export.main, average.main])
@pytest.mark.parametrize("beside", ["recipe.json", "average.json"])
def test_a_head_of_another_set_is_refused(
    command: Command, beside: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = command_line(tmp_path, command)
    (tmp_path / beside).write_text('{"recipe": {}, "data": "older"}')
    said = refused(command, argv, capsys)
    assert f"{tmp_path / 'head'}: made with another set (older… instead of synthetic…)" in said
    (tmp_path / beside).write_text('{"recipe": {}, "data": "synthetic"}')
    assert runs.another_set(tmp_path / "head", "synthetic") == ""
    (tmp_path / beside).write_text('{"share": 0.5}')  # from before it was written down
    assert runs.another_set(tmp_path / "head", "other") == ""


def test_weights_of_something_else_or_not_finite_are_no_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "load_minilm", small_minilm)
    data, path = prepared(), tmp_path / "head.safetensors"
    weights = dict(network.AffectNet(small_minilm()).state_dict())
    save_file(weights, path)
    assert not network.rebuild(path, data).training
    save_file({"other": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="not the weights of a head for this set") as end:
        network.rebuild(path, data)
    assert "\n" not in str(end.value)
    save_file({**weights, "tags.bias": torch.full((9,), torch.nan)}, path)
    with pytest.raises(ValueError, match=r"tags\.bias is not finite"):
        network.rebuild(path, data)


def test_a_head_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    path, good = tmp_path / "head.safetensors", {"a": torch.ones(2), "b": torch.ones(2)}
    for bad in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="not saved, b is not finite"):
            runs.save_head(path, {**good, "b": torch.tensor([1.0, bad])})
    assert list(tmp_path.iterdir()) == []
    runs.save_head(path, good)
    assert [found.name for found in tmp_path.iterdir()] == ["head.safetensors"]


@pytest.mark.parametrize(
    ("command", "changes", "wanted"),
    [
        (train.main, {"device": "toaster"}, "--device toaster: not a device of this machine"),
        (distil.main, {"device": "toaster"}, "--device toaster: not a device of this machine"),
        (train.main, {"device": "meta"}, "--device meta: not a device of this machine"),
        (distil.main, {"layers": "4,x"}, "--layers 4,x: numbers"),
        (distil.main, {"teachers": "0"}, "--teachers 0: at least 1"),
        (train.main, {"mode": "frozen", "pool": "0"}, "--pool 0: at least 1"),
        (train.main, {"chat": "-2", "head-rate": "nan"}, "--chat -2, --head-rate nan: at least 0"),
        (train.main, {"seed": "-1"}, "--seed -1: at least 0"),
        (train.main, {"decorrelation-rows": "0"}, "--decorrelation-rows 0: at least 3"),
        (train.main, dict.fromkeys(SOURCES_A_STEP, "0"), "no labelled rows a step"),
        (train.main, {"mode": "half"}, "choose full, lora, frozen"),
        (train.main, {"lexicon": "words.txt"}, "--lexicon is for --compare"),
        (train.main, {"lexicon": "gone.txt", "compare": ""}, "gone.txt"),
        (train.main, {"lexicon": "words.txt", "compare": ""}, "words.txt:1: not a line of VADER"),
        (report_main, {"lexicon": "words.txt"}, "words.txt:1: not a line of VADER"),
        (export.main, {"version": "6 beta"}, "--version '6 beta': letters"),
    ],
)
def test_options_that_cannot_be_are_refused(
    command: Command, changes: dict[str, str], wanted: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.txt").write_text("no rating\n")
    assert wanted in refused(command, command_line(tmp_path, command, **changes), capsys)
    assert not (tmp_path / "out").exists()


def test_an_export_without_rows_to_fit_confidence_on_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "load_minilm", small_minilm)
    argv = command_line(tmp_path, export.main)
    save_file(dict(network.AffectNet(small_minilm()).state_dict()), tmp_path / "head")
    said = refused(export.main, argv, capsys)
    assert "set.npz: too few dev rows of the pool" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "close",
    [
        np.ones(40, bool),
        np.zeros(40, bool),
        np.arange(40) >= 30,  # surest where it errs
        np.arange(40) < 10,
    ],
)
def test_a_confidence_curve_is_one_that_the_sidecar_takes(close: np.ndarray) -> None:
    spread = np.linspace(0.05, 0.6, 40)
    curve = export.curve_of(spread, close)
    assert Confidence.model_validate(curve).b == curve["b"]
    said = confidence_of(spread, curve)
    assert said.mean() == pytest.approx(close.mean(), abs=0.05)
    assert (said[0] > said[-1]) == bool(close[0] and not close[-1])


def test_thresholds_need_no_row_of_every_archetype() -> None:
    data = prepared()
    edge = TAGS.index("safety_edge")
    data.tags[:, edge] = 0.0
    found = export.tag_thresholds(data, {"tags": np.full(data.tags.shape, 0.4, np.float32)})
    assert len(found) == len(TAGS) and 0.0 <= found[edge] <= 1.0


def test_a_folder_that_cannot_be_made_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        said = refused(train.main, command_line(tmp_path, train.main, out=str(out)), capsys)
        assert f"{out}: cannot be written: " in said
