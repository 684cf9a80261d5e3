"""The affect head's page, card and chain: figures follow predictions, stages resume."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidecars.onnx_text import TextModel
from tests.test_affect_head_training import prepared, saved
from trainers.affect.head import baselines, card, measure, refit, reproduce, vader
from trainers.affect.head.arrays import PARTS, SOURCES, TAGS, Prepared
from trainers.affect.head.bootstrap import GroupSampler, intervals
from trainers.affect.head.distil_teachers import Recipe
from trainers.affect.head.left_out import left_out
from trainers.affect.head.left_out import render as render_left_out
from trainers.affect.head.pictures import PICTURES, draw
from trainers.affect.head.report import SERVED, WEIGHTS, page, report
from trainers.affect.head.report import main as report_main
from trainers.affect.head.served import answers, run_onnx
from trainers.encoder.manifest import write_manifest

ROOT = Path(__file__).parents[1]
MANIFEST = {"name": "scripted", "version": "1", "confidence": {"a": 2.0, "b": 4.0}}


def data_and_perfect_answers() -> tuple[Prepared, dict[str, np.ndarray]]:
    data = prepared(160)
    axes = np.nan_to_num(data.axes).astype(np.float32)
    out = {"axes": axes, "tags": data.tags.copy(), "emotions": data.emotions.copy(),
           "spread": np.full(len(axes), 0.1, np.float32)}  # fmt: skip
    return data, out


def page_of(table: dict[str, Any], **others: dict[str, Any]) -> str:
    table["model"] = {"name": "scripted", "version": "1", "sha256": "0" * 64}
    return page({**others, SERVED: table}, "pictures")


def test_perfect_predictions_give_perfect_figures_and_a_page_says_met() -> None:
    data, out = data_and_perfect_answers()
    table = report(data, out, MANIFEST, draws=20)
    assert table["gold"]["valence"]["r"] == pytest.approx(1.0)
    assert table["archetypes"]["right"] == 1.0
    text = page_of(table)
    assert "| gold valence r | 0.75 | 1.000 (met)<br>1.00 to 1.00 |" in text
    table_rows = [line for line in text.splitlines() if "predicted" in line and line[0] == "|"]
    assert table_rows and all(line.replace(r"\|", "").count("|") == 4 for line in table_rows)
    assert all(f"pictures/affect-{name}.png" in text for name in PICTURES)


def test_a_partial_correlation_shows_what_leaks_from_one_axis_into_another() -> None:
    data, out = data_and_perfect_answers()
    rng = np.random.default_rng(0)
    noisy = out["axes"] + rng.normal(0, 0.2, out["axes"].shape).astype(np.float32)
    apart = measure.partial_correlations(data, noisy)
    assert len(apart) == 6 and max(map(abs, apart.values())) < 0.4
    leaking = noisy.copy()
    leaking[:, 1] += 0.9 * data.axes[:, 0]  # intimacy takes something of valence
    found = measure.partial_correlations(data, leaking)
    assert found["predicted I, V given I"] > 0.8
    assert found["predicted V, I given V"] == pytest.approx(apart["predicted V, I given V"])
    shown = page_of(report(data, {**out, "axes": leaking}, MANIFEST, draws=5))
    assert f"predicted I, V given I {found['predicted I, V given I']:.2f} (" in shown


def test_noise_instead_of_predictions_is_said_to_miss() -> None:
    data, out = data_and_perfect_answers()
    out["axes"] = np.random.default_rng(0).uniform(-1, 1, out["axes"].shape).astype(np.float32)
    assert "(**missed**)" in page_of(report(data, out, MANIFEST, draws=5))


def test_every_figure_of_the_report_has_an_interval_around_it() -> None:
    data, out = data_and_perfect_answers()
    noise = np.random.default_rng(0).normal(0, 0.3, out["axes"].shape)
    out["axes"] = np.clip(out["axes"] + noise, -1, 1).astype(np.float32)
    table = report(data, out, MANIFEST, draws=40)
    assert len(table["summary"]) >= 20
    for name, value in table["summary"].items():
        low, high = table["intervals"][f"summary/{name}"]
        assert low <= high, name
        # The worst of several cells is lower in most draws than in the whole: no centre there.
        if "worst" not in name and "smallest" not in name and "|r|" not in name:
            assert low - 0.02 <= value <= high + 0.02, name
    assert table["intervals"]["pairs/isolated"][0] < table["intervals"]["pairs/isolated"][1]


def test_rows_of_one_document_are_drawn_together() -> None:
    data = prepared(60)
    rows = measure.rows_measured(data)
    sampler = GroupSampler(data, rows)
    source = data.source[rows].astype(int)
    keys = data.part[rows].astype(int) * 10_000 + source * 1000 + data.groups[rows]
    pair = np.isin(data.part[rows], [PARTS.index("pair_a"), PARTS.index("pair_b")])
    keys[pair] = data.groups[rows][pair]
    size = dict(zip(*np.unique(keys, return_counts=True), strict=True))
    key_of = dict(zip(rows.tolist(), keys.tolist(), strict=True))
    assert sampler.groups == len(size)
    drawn = sampler.draw(np.random.default_rng(3))
    seen = [key_of[row] for row in drawn.tolist()]
    assert all(seen.count(key) % size[key] == 0 for key in set(seen))
    part = data.targets_of(drawn)
    a, b = part.rows("pair_a"), part.rows("pair_b")
    assert len(a) == len(b) and np.array_equal(part.groups[a], part.groups[b])


def test_dependent_rows_widen_an_interval_that_single_rows_would_not() -> None:
    data = prepared(240)
    rows = data.rows("gold")
    rng = np.random.default_rng(5)
    level = rng.normal(size=80)[np.arange(240) // 3].astype(np.float32)
    values = np.zeros((len(data.part), 1), np.float32)
    values[rows, 0] = level

    def width(groups: np.ndarray) -> float:
        changed = prepared(240, groups=groups.astype(np.int32))
        low, high = intervals(
            changed, rows, {"x": values}, lambda _, out: {"mean": float(out["x"].mean())}, draws=300
        )["mean"]
        return high - low

    assert width(data.groups) > 1.4 * width(np.arange(len(data.part)))


def test_the_confusion_counts_each_gold_row_with_one_archetype_once() -> None:
    data, out = data_and_perfect_answers()
    gold = data.rows("gold")
    single = int((data.tags[gold].sum(1) == 1).sum())
    out["tags"] = np.zeros_like(out["tags"])
    out["tags"][:, 3] = 1.0
    found = measure.confusion(data, out["tags"])
    counts = np.array(found["counts"])
    assert counts.sum() == counts[:, 3].sum() == single == found["n"]
    assert set(found["labelled"]) <= set(TAGS)


def test_confidence_that_knows_has_auc_1_and_confidence_that_does_not_has_half() -> None:
    data, out = data_and_perfect_answers()
    rows = np.concatenate([data.rows("gold"), data.rows("test", "llm_label")])
    axes = out["axes"].copy()
    axes[rows[::2]] -= 0.6 * np.sign(axes[rows[::2]])
    knows = np.ones(len(axes), np.float32)
    knows[rows[::2]] = 0.0
    assert measure.calibration(data, axes, knows)["auc"] == 1.0
    assert measure.calibration(data, axes, np.full_like(knows, 0.5))["auc"] == pytest.approx(0.5)


def test_the_pictures_are_drawn_from_whatever_there_is(tmp_path: Path) -> None:
    data, out = data_and_perfect_answers()
    draw(data, out, report(data, out, MANIFEST, draws=2), tmp_path)
    for name in PICTURES:
        assert (tmp_path / f"affect-{name}.png").read_bytes().startswith(b"\x89PNG")


def test_training_rows_are_never_run_for_a_figure() -> None:
    data, _ = data_and_perfect_answers()
    assert not np.isin(measure.rows_measured(data), data.rows("train")).any()


def test_the_published_dev_part_of_emobank_stands_beside_the_test_rows() -> None:
    data, out = data_and_perfect_answers()
    axes, arousal, dev = out["axes"], out["axes"][:, 2].copy(), data.rows("dev", "emobank")
    axes[dev, 0] *= -1
    arousal[dev] *= -1
    found = measure.summary(measure.everything(data, axes, arousal=arousal))
    table = {name: value for name, value, _ in found}
    assert table["EmoBank valence r"] == pytest.approx(1) == table["EmoBank arousal r"]
    assert table["EmoBank valence r, published dev"] == pytest.approx(-1)
    assert table["EmoBank arousal r, published dev"] == pytest.approx(-1)


def test_vader_knows_negation_degree_and_but() -> None:
    words = {"good": 1.9, "bad": -2.5}
    good = vader.valence("this is good", words)
    assert good > 0 > vader.valence("this is not good", words)
    assert vader.valence("this is very good!", words) > good
    assert vader.valence("this is slightly good", words) < good
    assert vader.valence("it is good but the end is bad", words) < 0
    assert vader.valence("nothing is known here", words) == 0.0
    # The example of the published rules: one word of valence 1.9 compounds to .4404.
    assert good == pytest.approx(0.4404, abs=1e-4)


def test_a_ridge_baseline_learns_from_train_rows_what_the_tests_hold() -> None:
    data = prepared(400)
    axes = data.axes.copy()
    features = np.random.default_rng(2).normal(size=(len(axes), 6)).astype(np.float32)
    known = ~np.isnan(axes)
    axes[known] = (features @ np.ones((6, 3), np.float32) / 12)[known]
    taught = prepared(400, axes=axes)
    found = baselines.ridge_axes(taught, lambda rows: features[rows])
    gold = taught.rows("gold")
    assert measure.pearson(found[gold, 0], axes[gold, 0]) > 0.99
    assert np.isnan(found[taught.rows("train")]).all()
    # Question intimacy measures intimacy alone: no other axis is invented.
    asked = taught.rows("test", SOURCES[2])
    assert not found[asked][:, [0]].any()


REPORT_WITHOUT_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError("PyTorch is not here", name=name)
sys.meta_path.insert(0, Refuse())
from trainers.affect.head.report import main
raise SystemExit(main(sys.argv[1:]))
"""


@pytest.mark.model
def test_the_report_of_an_exported_head_needs_no_pytorch(tmp_path: Path) -> None:
    data = prepared(per_part=100)
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text("good\t1.9\t0.9\t[2]\n")
    options = [
        "--data", str(saved(data, tmp_path / "set.npz")), "--out", str(tmp_path / "docs"),
        "--cache", str(tmp_path / "cache"), "--lexicon", str(lexicon), "--draws", "3",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", REPORT_WITHOUT_TORCH, *options], cwd=ROOT, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "docs" / "affect-report.md").read_text()
    names = ("VADER", "TF-IDF + ridge", "frozen vectors + ridge",
             "frozen, tension = −valence", SERVED)  # fmt: skip
    assert "| figure | target | " + " | ".join(names) + " |" in text
    tables = json.loads((tmp_path / "docs" / "affect-report.json").read_text())
    assert set(tables) == set(names)
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.model
def test_a_grafted_arousal_head_says_what_was_fitted_and_changes_nothing_else(
    tmp_path: Path,
) -> None:
    data = prepared(per_part=12)
    rows = np.arange(len(data.part))
    source = refit.with_pooled(WEIGHTS)
    pooled = run_onnx(source, data, rows, names=("pooled",))["pooled"]
    weight = np.random.default_rng(0).normal(0, 0.05, pooled.shape[1]).astype(np.float32)
    for bias in (0.2, -0.4):  # the second replaces the first
        name = WEIGHTS / "model.onnx" if bias > 0 else tmp_path / "model.onnx"
        refit.graft(name, tmp_path / "model.onnx", weight, bias)
        (tmp_path / "tokenizer.json").write_bytes((WEIGHTS / "tokenizer.json").read_bytes())
        manifest = json.loads((WEIGHTS / "manifest.json").read_text())
        write_manifest(tmp_path, **{k: v for k, v in manifest.items() if k != "files"})
        model = TextModel.load(tmp_path)
        said = answers(model, data, rows)["arousal"]
        assert np.allclose(said, np.tanh(pooled @ weight + bias), atol=1e-5)
    before = TextModel.load(WEIGHTS)
    assert refit.changed(before, model, data, None) == []
    assert model.outputs.count("arousal") == 1


def test_an_arousal_head_learns_from_dev_documents_and_is_judged_on_others() -> None:
    data = prepared(400)
    pooled = np.random.default_rng(2).normal(size=(len(data.part), 8)).astype(np.float32)
    axes = data.axes.copy()
    emobank = data.source == SOURCES.index("emobank")
    axes[emobank, 2] = np.tanh(pooled[emobank].mean(1))
    weight, bias, scores = refit.fit_arousal(prepared(400, axes=axes), pooled)
    assert measure.pearson(pooled @ weight + bias, pooled.mean(1)) > 0.99
    assert max(scores.values()) > 0.99 and len(scores) == len(refit.PENALTIES)


def test_a_damaged_model_ends_the_report_with_78(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    argv = ["--data", str(saved(prepared(), tmp_path / "set.npz")), "--model", str(tmp_path)]
    with pytest.raises(SystemExit) as caught:
        report_main(argv)
    assert caught.value.code == 78
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_shipped_cards_hash_is_that_of_its_manifest_and_of_its_file() -> None:
    manifest = json.loads((WEIGHTS / "manifest.json").read_text())
    text = (WEIGHTS / "README.md").read_text()
    digest = hashlib.sha256((WEIGHTS / "model.onnx").read_bytes()).hexdigest()
    assert manifest["files"]["model.onnx"]["sha256"] == digest
    assert card.between(text, "file") == (
        f"`model.onnx`, SHA-256 `{digest}`; data `{manifest['data']}`.\n"
    )
    for name, file in manifest["files"].items():
        assert (WEIGHTS / name).stat().st_size == file["size"]
    for tag in manifest["tags"]:
        assert tag in TAGS
    # The page and the card show the same run of the same file.
    shown = (ROOT / "docs" / "affect-report.md").read_text()
    assert digest in shown
    for line in card.between(text, "figures").splitlines()[2:]:
        name, value = (cell.strip() for cell in line.replace(r"\|", "\0").split("|")[1:3])
        row = next(r for r in shown.splitlines() if r.startswith(f"| {name} ".replace("\0", r"\|")))
        assert value in row, name


def test_a_card_is_renewed_between_its_marks_alone(tmp_path: Path) -> None:
    data, out = data_and_perfect_answers()
    table = report(data, out, MANIFEST, draws=3)
    table["model"], table["data"] = {"sha256": "f" * 64}, "d" * 64
    path = tmp_path / "README.md"
    path.write_text("# Card of before\n<!-- file -->\nbefore\n<!-- end file -->\nkept\n"
                    "<!-- figures -->\nbefore\n<!-- end figures -->\nend\n")  # fmt: skip
    card.write_figures(path, table)
    text = path.read_text()
    assert text.count("before") == 1 and text.startswith("# Card of before\n")
    assert "kept" in text and "f" * 64 in text
    assert "| gold valence r | 1.000 | 1.000 to 1.000 | 0.75, met |" in text
    path.write_text("# no marks\n")
    with pytest.raises(ValueError, match="lacks <!-- file -->"):
        card.write_figures(path, table)


class Runner:
    """Stands for ``subprocess.run``: makes each stage's output, or fails at one, or at its gate."""

    def __init__(self, chain: list[reproduce.Stage], fail: str = "", gate: str = "") -> None:
        self.outputs = {stage.module: stage for stage in chain}
        self.fail, self.gate, self.ran = fail, gate, []

    def __call__(self, argv: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        stage = self.outputs[argv[2]]
        self.ran.append(stage.name)
        if stage.name == self.fail:
            return subprocess.CompletedProcess(argv, 3)
        stage.output.parent.mkdir(parents=True, exist_ok=True)
        stage.output.write_text("done")
        return subprocess.CompletedProcess(argv, int(stage.name == self.gate))


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
    assert second.ran == ["train", "export", "report"]


def test_the_full_chain_serves_what_the_larger_encoder_taught(tmp_path: Path) -> None:
    out = tmp_path / "out"
    chain = {
        stage.name: stage
        for stage in reproduce.stages(
            tmp_path, out, quick=False, lexicon=None, encoder="big", rounds=1
        )
    }
    names = ["build", "prepare", "train", "distil", "average", "export", "report"]
    assert list(chain) == names
    first, taught, averaged = (str(chain[n].output) for n in ("train", "distil", "average"))
    assert len({first, taught, averaged}) == 3
    assert first in chain["distil"].arguments
    assert {first, taught} <= set(chain["average"].arguments)
    assert averaged in chain["export"].arguments
    assert "big" in chain["distil"].arguments


def test_a_further_round_starts_where_the_one_before_ended_and_keeps_its_teachers(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    found = reproduce.stages(tmp_path, out, quick=False, lexicon=None, rounds=2)
    chain = {stage.name: stage for stage in found}
    assert list(chain)[3:7] == ["distil", "average", "distil2", "average2"]
    ended, teachers = str(chain["average"].output), str(chain["distil"].output.parent)
    second = chain["distil2"].arguments
    assert second[second.index("--head") + 1] == ended
    assert second[second.index("--teachers-in") + 1] == teachers
    assert second[second.index("--round") + 1] == "1"
    assert "--round" not in chain["distil"].arguments
    known = {f"--{field.name.replace('_', '-')}" for field in fields(Recipe)}
    assert set(second[second.index("--round") :: 2]) >= set(reproduce.AGAIN[::2]) <= known
    averaged = chain["average2"].arguments
    assert averaged[averaged.index("--start") + 1] == ended
    assert averaged[averaged.index("--share") + 1] == "1"
    assert "--share" not in chain["average"].arguments, "half and half after the first"
    assert str(chain["average2"].output) in chain["export"].arguments


def test_a_chain_of_other_rounds_does_not_take_what_is_there_for_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chain = reproduce.stages(tmp_path, tmp_path / "out", quick=False, lexicon=None, rounds=1)
    monkeypatch.setattr(reproduce.subprocess, "run", Runner(chain))
    argv = ["--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert reproduce.main([*argv, "--rounds", "1"]) == 0
    for more, said in (("2", "holds a full chain of 1 rounds"), ("0", "at least 1")):
        with pytest.raises(SystemExit) as caught:
            reproduce.main([*argv, "--rounds", more])
        assert caught.value.code == 2
        assert said in capsys.readouterr().err.splitlines()[-1]


def test_a_full_chain_does_not_take_quick_results_for_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chain = reproduce.stages(tmp_path, tmp_path / "out", quick=True, lexicon=None)
    monkeypatch.setattr(reproduce.subprocess, "run", Runner(chain))
    argv = ["--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert reproduce.main([*argv, "--quick"]) == 0
    with pytest.raises(SystemExit) as caught:
        reproduce.main(argv)
    assert caught.value.code == 2
    assert "holds a quick chain" in capsys.readouterr().err.splitlines()[-1]


def test_a_chain_of_other_data_or_another_encoder_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    other.mkdir()
    chain = reproduce.stages(tmp_path, out, quick=False, lexicon=None, rounds=1)
    monkeypatch.setattr(reproduce.subprocess, "run", Runner(chain))
    argv = ["--data", str(tmp_path), "--out", str(out), "--rounds", "1"]
    assert reproduce.main(argv) == 0 == reproduce.main(argv)
    for more, said in (
        (["--data", str(other)], f"holds a full chain of 1 rounds from {tmp_path};"),
        (["--encoder", "big"], "holds a full chain of 1 rounds with the default encoder;"),
    ):
        with pytest.raises(SystemExit) as caught:
            reproduce.main([*argv, *more])
        assert caught.value.code == 2
        assert said in capsys.readouterr().err.splitlines()[-1]
    # A chain from before these were written down is anyone's, once.
    (out / reproduce.CHAIN_FILE).write_text('{"quick": false, "rounds": 1}')
    assert reproduce.main([*argv, "--encoder", "big"]) == 0
    with pytest.raises(SystemExit):
        reproduce.main(argv)
    assert "with big;" in capsys.readouterr().err.splitlines()[-1]


def test_a_gate_that_failed_is_not_forgotten_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chain = reproduce.stages(tmp_path, tmp_path / "out", quick=True, lexicon=None)
    runner = Runner(chain, gate="export")
    monkeypatch.setattr(reproduce.subprocess, "run", runner)
    assert reproduce.run_chain(chain) == 1
    assert runner.ran[-2:] == ["export", "report"]
    assert reproduce.run_chain(chain) == 1
    assert runner.ran[-2:] == ["export", "report"] and len(runner.ran) == len(chain)
    assert "its gate failed: 1" in capsys.readouterr().out
    export = next(stage for stage in chain if stage.name == "export")
    export.output.unlink()
    runner.gate = ""
    assert reproduce.run_chain(chain) == 0 == reproduce.run_chain(chain)
    assert runner.ran[len(chain) :] == ["export"]


def test_results_of_a_set_that_was_rebuilt_as_another_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chain = reproduce.stages(tmp_path, tmp_path / "out", quick=True, lexicon=None)
    runner = Runner(chain)
    monkeypatch.setattr(reproduce.subprocess, "run", runner)
    arrays, head = chain[1].output, chain[2].output
    assert reproduce.run_chain(chain) == 0
    saved(prepared(), arrays)
    (head.parent / "recipe.json").write_text('{"recipe": {}, "data": "synthetic"}')
    assert reproduce.run_chain(chain) == 0
    saved(prepared(digest="another"), arrays)
    assert reproduce.run_chain(chain) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and f"{head}: made with another set" in told[0]
    assert len(runner.ran) == len(chain)


# A stage that is killed half way, the first time it runs, and leaves a torn output beside its own.
STAGE = """
import os, pathlib, signal, sys
output, tries = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[1] + ".tries")
tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
output.with_suffix(".part").write_text("half")
if len(tries.read_text()) == 1:
    os.kill(os.getpid(), signal.SIGKILL)
output.with_suffix(".part").write_text("whole")
output.with_suffix(".part").replace(output)
"""


def test_a_chain_killed_at_every_stage_ends_with_every_output_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stage_of_a_test.py").write_text(STAGE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    outputs = [tmp_path / f"{name}.txt" for name in ("first", "second", "third")]
    chain = [reproduce.Stage(p.stem, p, "stage_of_a_test", (str(p),)) for p in outputs]
    codes = [reproduce.run_chain(chain) for _ in range(4)]
    assert codes == [-signal.SIGKILL] * 3 + [0]
    assert [path.read_text() for path in outputs] == ["whole"] * 3
    assert [Path(f"{p}.tries").read_text() for p in outputs] == ["xx"] * 3


def test_a_stage_that_outlived_its_chain_is_not_doubled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with reproduce.alone(out):
        left = subprocess.Popen(
            [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False
        )
    try:
        with pytest.raises(SystemExit) as caught:
            reproduce.main(["--data", str(tmp_path), "--out", str(out), "--quick"])
        assert caught.value.code == 2
        assert "still at work" in capsys.readouterr().err.splitlines()[-1]
    finally:
        left.communicate(b"\n")
    with reproduce.alone(out):
        assert (out / "chain.lock").exists()


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


def test_a_cell_that_is_left_out_is_not_taught_and_the_others_are() -> None:
    data = prepared(per_part=400)
    pool = np.concatenate([data.rows(part, "llm_label") for part in ("train", "dev")])
    rows = np.concatenate([pool, data.rows("gold")])
    tags = np.zeros_like(data.tags)
    tags[rows, np.arange(len(rows)) % 3] = 1.0  # three archetypes of as many rows
    vectors = np.zeros((len(data.part), 4), np.float32)
    # Each archetype says its valence in a place of its own; the other axes stand elsewhere.
    vectors[rows, tags[rows].argmax(1)] = data.axes[rows, 0]
    vectors[rows, 3] = data.axes[rows, 1]
    table = left_out(replace(data, tags=tags), 10 * vectors)
    assert list(table) == list(TAGS[:3])
    for row in table.values():
        assert row["rows"] == pytest.approx(len(data.rows("train", "llm_label")) / 3, abs=1)
        assert row["without"]["mae"] > row["with"]["mae"] + 0.1
        assert row["without"]["sign"] < row["with"]["sign"]
    assert "hostile_intimacy" in render_left_out(table)
