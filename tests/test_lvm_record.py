"""The record: runs side by side, from what they measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from brain.errors import EXIT_CONFIG
from trainers.lvm.record import main


def write_run(folder: Path, name: str, cosines: list[float]) -> Path:
    def figure(mean: float) -> dict[str, Any]:
        return {"mean": mean, "interval": [mean - 0.01, mean + 0.01]}  # as trainers.lvm.report

    def row(mean: float) -> dict[str, Any]:
        return {key: figure(mean) for key in ("cosine", "margin", "mrr", "hit10")}

    history = [
        {"epoch": i + 1, "cosine": c, "margin": -c, "mrr": c / 2} for i, c in enumerate(cosines)
    ]
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps({
        "recipe": {"name": name}, "history": history, "seconds": 12.0,
        "table": {"copy-last": row(0.4), "ridge": row(0.45), "ours": row(max(cosines))},
    }))  # fmt: skip
    return folder


def test_a_run_that_collapsed_shows_its_best_and_its_last_epoch(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "v3", "v3", [0.5, 0.54, 0.35])]
    runs.append(write_run(tmp_path / "p1", "p1", [0.5, 0.55]))
    assert main([*map(str, runs), "--out", str(tmp_path / "out")]) == 0
    table = (tmp_path / "out" / "record.md").read_text()
    assert (
        "| v3 | 0.540 [0.530, 0.550] | +0.540 | 0.540 [0.530, 0.550] | 0.350, -0.350 | 3 |" in table
    )
    assert table.index("copy-last") < table.index("| v3")
    assert (tmp_path / "out" / "record.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_a_finished_run_is_one_line_and_78(tmp_path: Path, capsys: Any) -> None:
    assert main([str(tmp_path), "--out", str(tmp_path / "out")]) == EXIT_CONFIG
    assert "metrics.json" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
