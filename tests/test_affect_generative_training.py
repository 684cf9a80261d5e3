"""The generative head's trainer: what is learnt, gold kept out, a run that goes on."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch

from brain.errors import EXIT_CONFIG
from tests.fakes import tiny_llama
from trainers.affect.errors import DataConfigError, DataError, GoldRefused
from trainers.affect.generative import (
    compare,
    examples,
    export,
    gguf_files,
    model,
    train,
)
from trainers.affect.generative.examples import GIVEN, REASON, SCORE, TAG, Row

TOKENISER = tiny_llama.Tokeniser()
ROWS = [
    Row("you lied", ("where were you?",), (-0.7, 0.8, 0.6), ("hostile_intimacy", "safety_edge")),
    Row("nice day", (), (0.4, -0.1, -0.2), ()),
    Row("i feel nothing", (), (-0.5, 0.1, -0.8), ("flat_numb",)),
    Row("run!", (), (-0.2, 0.3, 1.0), ("fearful_urgent",)),
]
LENGTHS = [len(row.text) for row in ROWS]
RECIPE = train.Recipe(steps=6, batch=2, checkpoint_steps=3, layers=0, learning_rate=3e-3, rank=4)


def text_of(ids: Any) -> str:
    byte = {TOKENISER.encode(chr(b))[0]: b for b in range(128)}
    return bytes(byte[i] for i in ids if i in byte).decode("ascii")


def make(row: Row, rng: np.random.Generator) -> examples.Example:
    return examples.example(TOKENISER, row, rng)


def fresh() -> Any:
    return model.with_adapter(tiny_llama.network(), rank=4, alpha=8, dropout=0.0, layers=0)


def test_what_is_taught_is_the_contracts_json_and_only_choices_are_learnt() -> None:
    one = examples.example(TOKENISER, ROWS[0])
    written = text_of(one.ids).partition("assistant\n")[2]
    assert compare.valid(written)
    assert json.loads(written)["tags"] == ["hostile_intimacy", "safety_edge"]

    def learnt(role: int) -> str:
        return text_of(i for i, r in zip(one.ids, one.role, strict=True) if r == role)

    assert learnt(SCORE) == "-0.70.80.6"
    assert learnt(TAG) == '"hostile_intimacy","safety_edge"]'
    assert learnt(REASON) == 'very unpleasant, very close, urgent"}'
    assert "you lied" in learnt(GIVEN) and '"reasoning":"' in learnt(GIVEN)


def test_scores_are_drawn_around_the_label_and_stay_in_range() -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(200):
        ids = examples.example(TOKENISER, ROWS[3], rng).ids
        found.append(json.loads(text_of(ids).partition("assistant\n")[2]))
    tension = np.asarray([body["tension"] for body in found])
    assert tension.max() == 1.0 and tension.min() < 0.95
    assert np.mean([body["valence"] for body in found]) == pytest.approx(-0.2, abs=0.03)
    assert np.std([body["valence"] for body in found]) > 0.05


@pytest.mark.parametrize(
    ("axes", "said"),
    [((-1, -1, -1), "very unpleasant, shut out, slack"), ((0, 0, 0), "neutral, neither close nor "
     "cold, even"), ((1, 1, 1), "very pleasant, very close, urgent")],
)  # fmt: skip
def test_the_reasoning_says_the_scores_in_words(axes: tuple[float, ...], said: str) -> None:
    assert examples.reasoning(axes) == said


def test_gold_among_the_training_rows_is_refused(tmp_path: Path) -> None:
    gold = (examples.POOL / "gold.jsonl").read_text("utf-8").splitlines()[0]
    row = orjson.loads(gold) | {"quality": "clean", "id": "another", "split": "train"}
    (tmp_path / "train.jsonl").write_bytes(orjson.dumps(row) + b"\n")
    with pytest.raises(GoldRefused, match="gold"):
        examples.load_rows(tmp_path, "train")


def test_a_folder_without_labelled_rows_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match="limbic data build"):
        examples.load_rows(tmp_path, "dev")
    assert train.main(["--set", str(tmp_path), "--out", str(tmp_path / "run")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_bad_settings_are_a_configuration_error() -> None:
    with pytest.raises(DataConfigError, match="--batch") as caught:
        train.Recipe(batch=0)
    assert caught.value.exit_code == EXIT_CONFIG
    with pytest.raises(DataConfigError, match="--learning-rate"):
        train.Recipe(learning_rate=float("nan"))


def test_an_epoch_sees_every_row_once_and_a_step_is_the_same_after_a_restart() -> None:
    recipe = train.Recipe(batch=4, window=3, seed=7)
    sampler = train.Sampler(list(range(40)), recipe)
    seen = np.concatenate([sampler.rows(step) for step in range(10)])
    assert sorted(seen) == list(range(40))
    again = train.Sampler(list(range(40)), recipe)
    assert np.array_equal(again.rows(13), sampler.rows(13))
    assert not np.array_equal(again.rows(3), again.rows(13))
    few = train.Sampler([1, 2], recipe)
    assert len(few.rows(0)) == 4


def test_tokens_that_are_given_cost_nothing() -> None:
    net = tiny_llama.network()
    batch = [examples.example(TOKENISER, row) for row in ROWS[:2]]
    loss, parts = train.losses(net, batch, RECIPE)
    assert loss.item() > 0 and all(value > 0 for value in parts.values())
    given = [dataclasses.replace(one, role=(GIVEN,) * len(one.role)) for one in batch]
    assert train.losses(net, given, RECIPE)[0].item() == 0.0


def test_training_lowers_the_loss_and_a_stopped_run_ends_where_a_whole_one_does(
    tmp_path: Path,
) -> None:
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    weights = []
    for run in (whole, halved):
        run.mkdir()
        net = fresh()

        def stopping(row: Row, rng: np.random.Generator, run: Path = run) -> examples.Example:
            lines = run / "log.jsonl"
            if run == halved and lines.exists() and len(lines.read_text().splitlines()) == 4:
                raise KeyboardInterrupt
            return make(row, rng)

        try:
            train.fit(net, ROWS, stopping, LENGTHS, RECIPE, run, header={"a": 1}, log=_quiet)
        except KeyboardInterrupt:
            net = fresh()
            train.fit(net, ROWS, make, LENGTHS, RECIPE, run, header={"a": 1}, log=_quiet)
        weights.append({n: p for n, p in net.named_parameters() if p.requires_grad})
    for name, value in weights[0].items():
        assert torch.allclose(value, weights[1][name], atol=1e-5), name
    losses = [json.loads(line)["loss"] for line in (whole / "log.jsonl").read_text().splitlines()]
    assert len(losses) == RECIPE.steps
    assert losses[-1] < losses[0]
    assert (halved / "adapter" / "adapter_config.json").is_file()
    train.draw_curve(halved)
    assert (halved / "curve.png").stat().st_size > 1000


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, steps=1, checkpoint_steps=1)
    train.fit(fresh(), ROWS, make, LENGTHS, recipe, tmp_path, header={"a": 1}, log=_quiet)
    with pytest.raises(DataConfigError, match="another recipe") as caught:
        train.fit(fresh(), ROWS, make, LENGTHS, recipe, tmp_path, header={"a": 2}, log=_quiet)
    assert caught.value.exit_code == EXIT_CONFIG


def test_a_line_that_a_kill_cut_short_does_not_keep_a_run_from_its_curve(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, steps=2, checkpoint_steps=1)
    train.fit(fresh(), ROWS, make, LENGTHS, recipe, tmp_path, header={}, log=_quiet)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    train.draw_curve(tmp_path)
    assert (tmp_path / "curve.png").stat().st_size


@pytest.mark.parametrize("left", ["half-written", "missing"])
def test_a_run_killed_before_its_last_adapter_was_whole_writes_it_when_repeated(
    tmp_path: Path, left: str
) -> None:
    recipe = dataclasses.replace(RECIPE, steps=2, checkpoint_steps=2)
    train.fit(fresh(), ROWS, make, LENGTHS, recipe, tmp_path, header={}, log=_quiet)
    adapter = tmp_path / train.ADAPTER
    whole = (adapter / "adapter_model.safetensors").read_bytes()
    if left == "half-written":
        (adapter / "adapter_model.safetensors").write_bytes(whole[:100])
    else:
        shutil.rmtree(adapter)
    train.fit(fresh(), ROWS, make, LENGTHS, recipe, tmp_path, header={}, log=_quiet)
    assert (adapter / "adapter_model.safetensors").read_bytes() == whole
    assert not list(tmp_path.glob("adapter.*"))


def test_an_adapter_is_replaced_only_once_the_next_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = fresh()
    train.keep_adapter(net, tmp_path)
    adapter = tmp_path / train.ADAPTER / "adapter_model.safetensors"
    whole = adapter.read_bytes()

    def killed(folder: Path) -> None:
        folder.mkdir()
        (folder / adapter.name).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(net, "save_pretrained", killed)
    with pytest.raises(KeyboardInterrupt):
        train.keep_adapter(net, tmp_path)
    assert adapter.read_bytes() == whole


def test_a_refused_run_leaves_the_recipe_and_the_alpha_of_the_adapter_that_is_there(
    tmp_path: Path,
) -> None:
    recipe = dataclasses.replace(RECIPE, steps=1, checkpoint_steps=1)
    train.fit(fresh(), ROWS, make, LENGTHS, recipe, tmp_path, header={"a": 1}, log=_quiet)
    told = json.loads((tmp_path / train.RECIPE).read_text())
    assert told == {"a": 1, "device": "cpu"}
    net = model.with_adapter(tiny_llama.network(), rank=4, alpha=99, dropout=0.0, layers=0)
    with pytest.raises(DataConfigError, match="another recipe"):
        train.fit(net, ROWS, make, LENGTHS, recipe, tmp_path, header={"a": 2}, log=_quiet)
    assert json.loads((tmp_path / train.RECIPE).read_text()) == told
    assert export.alpha_of(tmp_path / train.ADAPTER) == 8.0


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    net = fresh()
    with torch.no_grad():
        next(p for p in net.parameters() if p.requires_grad).fill_(float("nan"))
    with pytest.raises(ArithmeticError, match="step 0"):
        train.fit(net, ROWS, make, LENGTHS, RECIPE, tmp_path, header={}, log=_quiet)
    assert not (tmp_path / train.CHECKPOINT).exists()


def test_lora_goes_into_the_last_layers_alone() -> None:
    net = model.with_adapter(tiny_llama.network(), rank=2, alpha=4, dropout=0.0, layers=1)
    learnt = [n for n, p in net.named_parameters() if p.requires_grad]
    assert learnt and all(".layers.1." in name for name in learnt)


def test_export_writes_every_file_with_the_gate_passed(tmp_path: Path) -> None:
    base = tmp_path / "base.gguf"
    tiny_llama.write_base(base)
    whole = tmp_path / "whole.gguf"
    gguf_files.write_model(base, tiny_llama.network(), whole, name="base", described="")
    net = fresh()
    train.fit(net, ROWS, make, LENGTHS, RECIPE, tmp_path, header={}, log=_quiet)
    report = export.export(
        net, TOKENISER, whole, ROWS, tmp_path / "out", alpha=8.0, gate_rows=3, told={"rows": "x"}
    )
    assert report["gate"]["passed"]
    assert report["files"]["adapter"]["against PyTorch"]["worst"] < export.GATE_WORST
    names = {path.name for path in (tmp_path / "out").iterdir()}
    for stem in ("model-F16", "model-Q8_0", "model-Q6_K", "adapter"):
        assert {f"{stem}.gguf", f"{stem}.gguf.lock.json"} <= names
    assert (tmp_path / "out" / "hf" / "config.json").is_file()
    assert "gate (F16" in export.render(report)


def test_the_comparison_sees_good_and_bad_heads_apart() -> None:
    wanted = np.random.default_rng(0).uniform(-1, 1, (60, 3)).astype(np.float32)
    alone = [""] * len(wanted)
    good = compare.figures(wanted * 0.9, wanted, alone)
    bad = compare.figures(-wanted, wanted, alone)
    assert good["valence"]["r"] > 0.99 and good["valence"]["sign"] == 1.0
    assert bad["valence"]["r"] < -0.99 and bad["valence"]["sign"] == 0.0
    fine = '{"valence":0.1,"intimacy":0.0,"tension":-0.2,"tags":[],"reasoning":"calm"}'
    assert compare.valid(fine)
    for wrong in (fine[:-1], fine.replace("0.1", "1.1"), fine.replace('"calm"', '""'), "[]", "7"):
        assert not compare.valid(wrong)


def test_rows_that_were_made_together_are_drawn_together() -> None:
    rng = np.random.default_rng(0)
    wanted = rng.uniform(-1, 1, 40).astype(np.float32)
    found = (wanted + rng.normal(0, 0.7, 40)).astype(np.float32)
    alone = compare.interval(found, wanted, [""] * 40)
    # Five copies of each row tell no more than one does, where they are known as one group.
    names = [f"frame {i}" for i in range(40)] * 5
    tied = compare.interval(np.tile(found, 5), np.tile(wanted, 5), names)
    loose = compare.interval(np.tile(found, 5), np.tile(wanted, 5), [""] * 200)
    assert tied[1] - tied[0] == pytest.approx(alone[1] - alone[0], rel=0.15)
    assert loose[1] - loose[0] < 0.6 * (tied[1] - tied[0])


def test_a_row_says_what_it_was_made_with_and_the_digest_does_not_change_by_it(
    tmp_path: Path,
) -> None:
    gold = (examples.POOL / "gold.jsonl").read_text("utf-8").splitlines()
    (tmp_path / "gold.jsonl").write_text("\n".join(gold) + "\n", "utf-8")
    rows = examples.load_rows(tmp_path, "gold")
    assert len({row.group for row in rows}) < len(rows)
    assert all(row.group for row in rows)
    bare = [dataclasses.replace(row, group="") for row in rows]
    assert examples.digest(bare) == examples.digest(rows)


def _quiet(_: str) -> None:
    pass
