"""The affect head's trainer: masks, gold kept out, figures that can fail, a run that goes on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from tests.fakes import affect_data
from trainers.affect.frame import empty
from trainers.affect.generative import examples
from trainers.affect.head import measure, network, rowcache, train
from trainers.affect.head.arrays import PARTS, SOURCES, TAGS, Prepared, digest_of
from trainers.affect.head.losses import decorrelation, imitate, masked_mean
from trainers.affect.head.network import AffectNet, Heads, rebuild
from trainers.affect.head.prepare import _rows, _some, main
from trainers.affect.head.vectors import has_vectors, pooled_vectors
from trainers.affect.rows import write_rows
from trainers.encoder.minilm import MiniLM

EMOTIONS, FILM, INTENSITY = 28, 9, 5


def prepared(per_part: int = 12, **changes: Any) -> Prepared:
    """A few rows of random tokens in every part; scores follow the first token."""
    rng = np.random.default_rng(0)
    parts = [p for p in PARTS for _ in range(per_part)]
    n = len(parts)
    lengths = rng.integers(4, 9, n)
    ids = rng.integers(1000, 3000, int(lengths.sum())).astype(np.uint16)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    axes = rng.uniform(-0.9, 0.9, (n, 3)).astype(np.float32)
    source = np.zeros(n, np.uint8)
    for i, part in enumerate(parts):
        if part in ("train", "dev", "test"):
            source[i] = (0, 1, 2, 3)[i % 4]
            if source[i]:
                axes[i, 0 if source[i] == 2 else 1] = np.nan
        if part == "unlabelled":
            source[i], axes[i] = SOURCES.index("chat"), np.nan
    labels = {
        "tags": (rng.random((n, len(TAGS))) < 0.3).astype(np.float32),
        "emotions": (rng.random((n, EMOTIONS)) < 0.2).astype(np.float32),
        "film": np.full((n, FILM), np.nan, np.float32),
        "intensity": np.full((n, INTENSITY), np.nan, np.float32),
    }
    fields: dict[str, Any] = {
        "ids": ids, "kinds": np.zeros(len(ids), np.uint8), "starts": starts, "axes": axes,
        "shares": np.ones((n, 3), np.float32), **labels, "weight": np.ones(n, np.float32),
        "part": np.asarray([PARTS.index(p) for p in parts], np.uint8), "source": source,
        "weak": np.zeros(n, bool), "clean_pair": np.arange(n) % 2 == 0,
        "pair_axis": (np.arange(n) % 3).astype(np.int8), "digest": "synthetic",
        # Three rows a document; the two sides of a pair, which are two parts, share a number.
        "groups": (np.arange(n) % per_part // 3).astype(np.int32),
    }  # fmt: skip
    return Prepared(**{**fields, **changes})


def small_minilm() -> MiniLM:
    """An encoder of one layer with the same weights each time, whatever the generator's state."""
    net = MiniLM()
    net.blocks = net.blocks[:1]
    with torch.no_grad():
        for i, parameter in enumerate(net.parameters()):
            generator = torch.Generator().manual_seed(i)
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return net


def test_what_nobody_measured_changes_no_loss() -> None:
    values = torch.tensor([1.0, 5.0, 3.0])
    known = torch.tensor([True, False, True])
    assert masked_mean(values, known).item() == pytest.approx(2.0)
    assert masked_mean(values, torch.zeros(3, dtype=torch.bool)).item() == 0.0


def test_decorrelation_is_zero_for_independent_axes_and_high_for_copies() -> None:
    z = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
    assert decorrelation(z).item() < 0.02
    copied = torch.stack([z[:, 0], z[:, 0], -z[:, 0]], 1)
    assert decorrelation(copied).item() == pytest.approx(3.0, abs=0.01)
    assert torch.isfinite(decorrelation(torch.zeros(8, 3)))


def test_a_sampler_draws_training_rows_alone() -> None:
    data = prepared()
    sampler = train.Sampler(data, train.Recipe(pool=8, emobank=4, intimacy=4, goemotions=4), 1)
    allowed = set(data.rows("train").tolist())
    for step in range(20):
        assert set(sampler.labelled(step).tolist()) <= allowed
        assert set(sampler.balanced(step, 16).tolist()) <= allowed
    assert np.array_equal(sampler.labelled(3), sampler.labelled(3))


def test_without_unlabelled_rows_the_student_learns_from_the_labelled_alone() -> None:
    whole = prepared()
    part = np.where(whole.part == PARTS.index("unlabelled"), PARTS.index("train"), whole.part)
    assert len(train.Sampler(whole, train.Recipe(), 1).chat(0, 5)) == 5
    found = train.Sampler(prepared(part=part.astype(np.uint8)), train.Recipe(), 1).chat(0, 5)
    assert len(found) == 0 and found.dtype == np.int64
    assert len(np.concatenate([whole.rows("train"), found])) == len(whole.rows("train"))


def test_a_perfect_model_has_perfect_figures_and_a_flat_one_fails() -> None:
    data = prepared(per_part=60)
    perfect = np.nan_to_num(data.axes)
    gold = measure.scored(data, perfect, "gold")
    assert gold["valence"]["r"] == pytest.approx(1.0)
    assert measure.minimal_pairs(data, perfect, clean_only=False)["right_direction"] == 1.0
    flat = np.full_like(perfect, 0.3)
    assert measure.scored(data, flat, "gold")["valence"]["r"] == 0.0
    assert measure.scored(data, flat, "gold")["valence"]["sd_ratio"] < 0.01
    assert measure.minimal_pairs(data, flat, clean_only=False)["right_direction"] == 0.0
    copied = np.repeat(perfect[:, :1], 3, 1)
    assert measure.independence(data, copied)["V-T"] == pytest.approx(1.0)
    balanced = measure.balanced_independence(data, copied)
    assert balanced["V-T"] == pytest.approx(1.0)
    assert balanced["V-T labels"] < 0.3


def test_thresholds_recover_the_labels_of_separable_scores() -> None:
    truth = (np.random.default_rng(1).random((200, 4)) < 0.3).astype(np.float32)
    scores = (0.1 + 0.3 * truth).astype(np.float32)
    assert measure.macro_f1(scores, truth, measure.best_thresholds(scores, truth)) == 1.0
    assert measure.macro_f1(scores, truth, np.full(4, 0.9, np.float32)) == 0.0


def test_a_batch_is_padded_with_a_mask() -> None:
    data = prepared()
    rows = np.array([0, 5, 9])
    ids, mask, kinds = data.batch(rows)
    assert ids.shape == mask.shape == kinds.shape
    for i, row in enumerate(rows):
        own = data.ids[data.starts[row] : data.starts[row + 1]]
        assert np.array_equal(ids[i, : len(own)], own)
        assert mask[i].sum() == len(own) and not ids[i, len(own) :].any()


def saved(data: Prepared, file: Path) -> Path:
    fields = {k: getattr(data, k) for k in Prepared.__dataclass_fields__}
    np.savez(file, **{**fields, "digest": np.array(data.digest)})
    return file


def test_a_set_that_an_older_prepare_wrote_is_refused_in_one_line(tmp_path: Path) -> None:
    data = prepared()
    fields = {k: getattr(data, k) for k in Prepared.__dataclass_fields__ if k != "groups"}
    np.savez(tmp_path / "old.npz", **fields)
    with pytest.raises(ValueError, match=r"old\.npz: lacks groups; run prepare again"):
        Prepared.load(tmp_path / "old.npz")
    (tmp_path / "torn.npz").write_bytes(saved(data, tmp_path / "new.npz").read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"torn\.npz: cannot be read"):
        Prepared.load(tmp_path / "torn.npz")
    assert Prepared.load(tmp_path / "new.npz").digest == "synthetic"


def test_a_change_in_any_array_is_another_set() -> None:
    data = prepared()
    arrays = {k: getattr(data, k) for k in Prepared.__dataclass_fields__ if k != "digest"}
    digest = digest_of(arrays)
    assert digest == digest_of(dict(reversed(arrays.items())))
    for name, array in arrays.items():
        changed = array.copy()
        changed.flat[0] = not changed.flat[0] if array.dtype == bool else 7
        assert digest_of({**arrays, name: changed}) != digest, name
        assert digest_of({**arrays, name: array[:-1]}) != digest, name
    wider = {**arrays, "weight": arrays["weight"].astype(np.float64)}
    assert digest_of(wider) != digest


def test_a_row_that_a_person_labelled_is_one_of_the_pool(tmp_path: Path) -> None:
    rows = [
        affect_data.row("ana was here", split="train", source="human"),
        affect_data.row("so was bo", split="train", source="emobank", guideline=None),
    ]
    write_rows(tmp_path / "train.jsonl", rows)
    table = _rows(tmp_path, empty())
    assert dict(table.select("text", "source").iter_rows()) == {
        "ana was here": "llm_label", "so was bo": "emobank",
    }  # fmt: skip
    assert [one.text for one in examples.load_rows(tmp_path, "train")] == ["ana was here"]


def test_rows_of_a_source_that_the_head_does_not_know_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(
        tmp_path / "train.jsonl", [affect_data.row("hm", split="train", source="synthetic_probe")]
    )
    with pytest.raises(SystemExit) as end:
        main(["--set", str(tmp_path), "--out", str(tmp_path / "set.npz")])
    said = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 2 and "'synthetic_probe'" in said
    assert not (tmp_path / "set.npz").exists()


def test_a_cap_keeps_every_measured_row_of_dev_and_test() -> None:
    rows = [(part, source) for part, n in (("train", 60), ("dev", 20), ("test", 20), ("gold", 9))
            for source in ("llm_label", "xed") for _ in range(n)]  # fmt: skip
    table = pl.DataFrame(rows, schema=["part", "source"], orient="row")
    counted = _some(table, 16, 0).group_by("part", "source").len().rows()
    found = {(part, source): n for part, source, n in counted}
    assert found["train", "llm_label"] == found["train", "xed"] == 16
    assert found["dev", "xed"] == found["test", "xed"] == 4
    assert found["dev", "llm_label"] == found["test", "llm_label"] == 20
    assert found["gold", "llm_label"] == 9


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_network_starts_from_its_seed_alone(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "load_minilm", lambda _: small_minilm())
    found = []
    for disturbance, seed in ((1, 5), (2, 5), (1, 6)):
        torch.manual_seed(disturbance)
        found.append(train.build(train.Recipe(mode=mode), None, {}, seed).state_dict())
    first, again, other = found
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["axes.0.weight"], other["axes.0.weight"])


def test_merged_updates_say_the_same_in_plain_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "load_minilm", lambda _: small_minilm())
    data = prepared()
    plain = train.build(train.Recipe(), None, {}, 0).eval()
    net = train.build(train.Recipe(mode="lora"), None, {}, 0).eval()
    with torch.no_grad():
        for name, parameter in net.body.named_parameters():
            if "lora_B" in name:  # starts at zero, which would update nothing
                parameter.normal_(0, 0.1)
    rows = data.rows("gold")

    def said(of: AffectNet) -> torch.Tensor:
        with torch.inference_mode():
            return of(*(torch.as_tensor(a) for a in data.batch(rows))).axes

    before = said(net)
    assert not torch.allclose(before, said(plain), atol=1e-3)
    found = train.merged(net)
    assert torch.allclose(said(found), before, atol=1e-5)
    plain.load_state_dict(found.state_dict())  # the same names
    assert torch.equal(said(plain), said(found))


@pytest.mark.model
def test_a_frozen_encoder_runs_once_a_row_and_never_for_another_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = prepared()
    net = train.build(train.Recipe(mode="frozen"), None, {}, 0)
    encoded: list[int] = []
    whole = net.pooled
    monkeypatch.setattr(net, "pooled", lambda *a: encoded.append(len(a[0])) or whole(*a))
    rows = data.rows("train")
    first = pooled_vectors(net, data, rows[:8], tmp_path)
    assert sum(encoded) == 8
    both = pooled_vectors(net, data, rows, tmp_path)
    assert sum(encoded) == len(rows)
    assert np.array_equal(first[rows[:8]], both[rows[:8]])
    assert np.isnan(both[data.rows("gold")]).all()
    exact = net.eval()(*(torch.as_tensor(a) for a in data.batch(rows))).embedding
    assert np.allclose(both[rows], exact.detach().numpy(), atol=1e-5)
    assert has_vectors(net, data, tmp_path)
    with torch.no_grad():
        net.body.words.weight[1500] += 0.5
    assert not has_vectors(net, data, tmp_path)
    assert not has_vectors(net, prepared(per_part=13), tmp_path)


def test_a_cache_keeps_what_was_done_when_the_run_broke_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, rows, asked = prepared(), np.arange(20), []
    monkeypatch.setattr(rowcache, "EVERY", 8)

    def run(part: np.ndarray) -> dict[str, np.ndarray]:
        if len(asked) == 2:
            asked.append([])
            raise KeyboardInterrupt
        asked.append(part.tolist())
        return {"x": part[:, None].astype(np.float32)}

    def cache() -> rowcache.RowCache:
        return rowcache.RowCache(tmp_path, "x", "a" * 64, data)

    with pytest.raises(KeyboardInterrupt):
        cache().outputs(rows, run)
    found = cache().outputs(rows, run)["x"][:, 0]
    assert asked[0] + asked[1] + asked[3] == rows.tolist()
    assert np.array_equal(found[:20], rows) and np.isnan(found[20:]).all()
    path = cache().path
    assert path is not None
    path.write_bytes(path.read_bytes()[:100])
    assert len(cache().read()[0]) == 0


def test_what_another_recipe_set_or_encoder_left_is_never_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Started(Exception):
        """The run got to where it builds its network: it was not refused."""

    def start(*_: Any) -> None:
        raise Started

    monkeypatch.setattr(train, "build", start)
    run, encoder = tmp_path / "run", tmp_path / "encoder.safetensors"
    encoder.write_bytes(b"weights")
    argv = ["--data", str(saved(prepared(), tmp_path / "set.npz")), "--out", str(run)]
    for result in ("teacher0.npz", "student.ckpt", "head.safetensors"):
        with pytest.raises(Started):
            train.main(argv)
        before = (run / "recipe.json").read_text()
        (run / result).touch()
        for option, value, said in (
            ("--steps", "5", "another steps;"),
            ("--mode", "frozen", "another mode;"),
            ("--mode", "half", "choose full, lora, frozen"),
            ("--data", str(saved(prepared(digest="b"), tmp_path / "b.npz")), "another data;"),
            ("--weights", str(encoder), "another weights;"),
        ):
            with pytest.raises(SystemExit) as end:
                train.main([*argv, option, value])
            assert end.value.code == 2 and said in capsys.readouterr().err.splitlines()[-1]
            assert (run / "recipe.json").read_text() == before
        (run / result).unlink()


def test_a_stopped_run_ends_where_a_whole_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = prepared(per_part=24)
    vectors = np.random.default_rng(1).normal(size=(len(data.part), 384)).astype(np.float32)
    recipe = train.Recipe(mode="frozen", pool=4, emobank=2, intimacy=2, goemotions=2,
                          decorrelation_rows=4, ema=0.5)  # fmt: skip
    monkeypatch.setattr(train, "load_minilm", lambda *_: small_minilm())
    monkeypatch.setattr(train.curves, "draw", lambda run: None)
    monkeypatch.setattr(train, "SAVE_S", 0.0)

    def fit(name: str) -> dict[str, torch.Tensor]:
        run = tmp_path / name
        run.mkdir(exist_ok=True)
        widths = {"emotions": EMOTIONS, "film": FILM, "intensity": INTENSITY}
        net = train.fit(train.build(recipe, None, widths, 3), data, recipe, run, name="student",
                        seed=3, steps=5, device="cpu", vectors=vectors)  # fmt: skip
        return {k: v.clone() for k, v in net.state_dict().items() if not k.startswith("body.")}

    whole, save = fit("whole"), train.save

    def killed(path: Path, state: dict[str, Any]) -> None:
        save(path, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(train, "save", killed)
        fit("stopped")
    torch.manual_seed(99)
    stopped = fit("stopped")
    assert all(torch.equal(value, stopped[name]) for name, value in whole.items())


def test_a_set_without_published_emotions_or_questions_trains_and_their_figures_are_unknown() -> (
    None
):
    data = prepared(per_part=120)
    kept = np.flatnonzero(~np.isin(data.source, [2, 3]))
    none = np.zeros((len(kept), 0), np.float32)
    starts = data.starts
    data = dataclasses.replace(
        data.targets_of(kept), starts=starts, emotions=none, film=none, intensity=none
    )
    outputs = {"axes": np.zeros((len(kept), 3), np.float32), "emotions": none}
    table = measure.everything(data, outputs["axes"], emotions=none)
    found = {name: value for name, value, _ in measure.summary(table)}
    assert np.isnan(found["question intimacy r"]) and np.isnan(found["GoEmotions macro-F1"])
    answer = Heads(8, emotions=0, film=0, intensity=0).read(torch.zeros(4, 8))
    names = ("axes", "arousal", "tags", "emotions", "film", "intensity")
    wanted = {name: torch.zeros_like(getattr(answer, name)) for name in names}
    assert torch.isfinite(imitate(answer, wanted))


@pytest.mark.parametrize("mode", [pytest.param("frozen", marks=pytest.mark.model), "lora"])
def test_teachers_then_a_student_and_a_repeat_trains_nothing_again(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mode == "lora":
        for module in (train, network):
            monkeypatch.setattr(module, "load_minilm", lambda *_: small_minilm())
    data = prepared(per_part=96)
    run = tmp_path / "run"
    options = short_run(saved(data, tmp_path / "set.npz"), run, mode, steps=2)
    assert train.main(options) == 0
    first = (run / "head.safetensors").read_bytes()
    steps = len((run / "log.jsonl").read_text().splitlines())
    assert {"teacher0.json", "student.json", "recipe.json"} <= {p.name for p in run.iterdir()}
    assert "gold" in json.loads((run / "student.json").read_text())
    assert train.main(options) == 0
    assert (run / "head.safetensors").read_bytes() == first
    assert len((run / "log.jsonl").read_text().splitlines()) == steps
    said = train.predict(rebuild(run / "head.safetensors", data), data, np.arange(4), "cpu")
    assert np.isfinite(said["axes"][:4]).all()


def short_run(file: Path, run: Path, mode: str, *, steps: int) -> list[str]:
    """The options of a run with one teacher that takes next to no time."""
    return ["--data", str(file), "--out", str(run), "--device", "cpu",
            "--mode", mode, "--teachers", "1", "--steps", str(steps), "--student-steps", str(steps),
            "--pool", "4", "--emobank", "2", "--intimacy", "2", "--goemotions", "2", "--xed",
            "0", "--semeval", "0", "--chat", "2", "--decorrelation-rows", "4"]  # fmt: skip


def test_a_run_killed_while_training_or_before_its_results_are_kept_trains_on_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (train, network):
        monkeypatch.setattr(module, "load_minilm", lambda *_: small_minilm())
    monkeypatch.setattr(train, "SAVE_S", 0.0)
    run = tmp_path / "run"
    options = short_run(saved(prepared(per_part=96), tmp_path / "set.npz"), run, "frozen", steps=3)

    def logged() -> list[tuple[str, int]]:
        lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
        return [(line["model"], line["step"]) for line in lines]

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "report", killed)  # trained, and predicted what nobody has written yet
        with pytest.raises(KeyboardInterrupt):
            train.main(options)
    assert logged() == [("teacher0", 0), ("teacher0", 2)]
    assert [p.name for p in run.glob("*.ckpt")] == ["teacher0.ckpt"]
    log = train.log

    def killed_at_the_end(run: Path, name: str, step: int, *more: Any) -> None:
        if (name, step) == ("student", 2):
            raise KeyboardInterrupt
        log(run, name, step, *more)

    with monkeypatch.context() as patch:
        patch.setattr(train, "log", killed_at_the_end)
        with pytest.raises(KeyboardInterrupt):
            train.main(options)
    assert logged()[2:] == [("student", 0)]
    assert train.main(options) == 0
    assert logged()[3:] == [("student", 2)]
    assert not list(run.glob("*.ckpt"))
