"""Weights between a run and where it started: what is averaged, who chooses, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.test_affect_head_training import prepared, saved
from trainers.affect.head import average, distil

SERVED = Path(__file__).parents[1] / "sidecars" / "weights" / "cahm"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A set, a head, and the same head a step away from it."""
    data = prepared(12)
    head = {k: v.clone() for k, v in distil.start_head(SERVED, data).state_dict().items()}
    save_file(head, tmp_path / "head.safetensors")
    save_file({k: v + 0.01 for k, v in head.items()}, tmp_path / "start.safetensors")
    return (
        saved(data, tmp_path / "set.npz"),
        tmp_path / "head.safetensors",
        (tmp_path / "start.safetensors"),
    )


def run(files: tuple[Path, Path, Path], out: Path, *more: str) -> int:
    data, head, start = map(str, files)
    return average.main(
        ["--data", data, "--head", head, "--start", start, "--out", str(out), *more]
    )


@pytest.mark.model
def test_every_weight_lies_between_the_two_but_those_of_arousal(
    files: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "averaged" / "head.safetensors"
    assert run(files, out, "--share", "0.25") == 0
    found, head = load_file(out), load_file(files[1])
    assert found.keys() == head.keys()
    for name, value in found.items():
        moved = 0.0 if name.startswith("arousal.") else 0.0075
        assert torch.allclose(value, head[name] + moved, atol=1e-5), name
    assert json.loads((out.parent / "average.json").read_text()) == {
        "share": 0.25, "data": "synthetic", "dev": {},
    }  # fmt: skip


@pytest.mark.model
def test_dev_chooses_the_share(
    files: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.1, 0.2, 0.9, 0.3, 0.4])
    monkeypatch.setattr(average, "dev_figures", lambda *_: {"mean r": next(scores)})
    assert run(files, tmp_path / "new.safetensors", "--choose") == 0
    told = json.loads((tmp_path / "average.json").read_text())
    assert told["share"] == average.SHARES[2] and len(told["dev"]) == len(average.SHARES)


@pytest.mark.model
def test_dev_figures_are_those_of_the_pools_dev_rows(files: tuple[Path, Path, Path]) -> None:
    data = prepared(12)
    net = distil.start_head(files[1], data)
    found = average.dev_figures(net, data)
    assert found["mean r"] == pytest.approx(sum(found[a] for a in average.AXES) / 3)
    assert 0 < found["mean error"] < 2


@pytest.mark.parametrize(
    ("more", "said"), [(("--share", "1.5"), "from 0 to 1"), (("--head", "nowhere"), "not found")]
)
def test_bad_arguments_are_refused_in_one_line(
    tmp_path: Path, more: tuple[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).touch()
    files = (tmp_path / "a", tmp_path / "b", tmp_path / "c")
    with pytest.raises(SystemExit) as caught:
        run(files, tmp_path / "out", *more)
    assert caught.value.code == 2 and said in capsys.readouterr().err.splitlines()[-1]
