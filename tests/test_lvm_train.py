"""Training end to end on a small synthetic store."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("safetensors")

import torch

from brain.errors import EXIT_CONFIG, EXIT_USAGE, ConfigError
from sidecars.lvm_network import LvmNetwork
from trainers.lvm import (
    batches,
    compare,
    guarded,
    losses,
    measure,
    networks,
    predictors,
    recipes,
    train_cli,
)

DIM = 32


def write_store(folder: Path, documents: int = 24, seed: int = 0, sha: str = "aa") -> Path:
    """Documents whose next vector is a fixed rotation of the last, plus noise."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(np.random.default_rng(9).normal(size=(DIM, DIM)))[0]
    rows, listed = [], []
    for number in range(documents):
        x = rng.normal(size=DIM)
        start = len(rows)
        for _ in range(8 + number % 5):
            x = turn @ x + rng.normal(size=DIM) * 0.4
            x /= np.linalg.norm(x)
            rows.append(x)
        split = "valid" if number % 4 == 0 else "train"
        listed.append({"id": str(number), "start": start, "stop": len(rows), "split": split})
    folder.mkdir(parents=True)
    np.save(folder / "vectors.npy", np.array(rows, dtype=np.float16))
    manifest = {"encoder": "e", "encoder_sha256": sha, "dim": DIM, "documents": listed}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


RECIPE = """
name = "small"
epochs = 3
batch = 64
share = [1.5]
[vector]
hidden = 16
ff = 16
heads = 2
[rank]
hidden = 16
layers = 1
heads = 2
ff = 16
queries = 3
candidate_hidden = 16
bilinear_heads = 2
bilinear_rank = 8
mix = 4
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(RECIPE)
    return path


def options(recipe: Path, store: Path, out: Path, *more: str) -> list[str]:
    return ["--recipe", str(recipe), "--store", str(store), "--out", str(out), *more]


def test_a_run_writes_log_metrics_and_a_model_the_sidecar_loads(tmp_path, recipe, capsys):
    store = write_store(tmp_path / "store")
    train_cli.run(options(recipe, store, tmp_path / "out"))
    log = [json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert [row["epoch"] for row in log] == [1, 2, 3]
    assert {"copy-last", "mean-5", "scalars", "ridge", "ours"} <= set(metrics["table"])
    net = LvmNetwork.load(tmp_path / "out/model")
    valid = batches.load_corpus([store], "valid", "cpu")
    context = valid.context(valid.targets).numpy()
    cosine = (net.predict(context) * valid.vectors[valid.targets].float().numpy()).sum(-1).mean()
    assert cosine == pytest.approx(metrics["table"]["ours"]["cosine"]["mean"], abs=2e-3)
    assert "copy-last" in capsys.readouterr().out


def test_a_run_ends_with_the_factors_of_the_candidates_density_unless_told_not_to(tmp_path, recipe):
    store = write_store(tmp_path / "store")
    train_cli.run(options(recipe, store, tmp_path / "out"))
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    manifest = json.loads((tmp_path / "out/model/manifest.json").read_text())
    fitted = manifest["network"]["density"]
    assert len(fitted["factors"]) == 2
    found = metrics["density"]
    assert {key: found[key] for key in fitted} == fitted
    assert found["valid"]["mrr"] == manifest["measured"]["mrr"]["mean"]
    recipe.write_text("density = 0\n" + RECIPE)
    train_cli.run(options(recipe, store, tmp_path / "without"))
    manifest = json.loads((tmp_path / "without/model/manifest.json").read_text())
    assert "density" not in manifest["network"]
    metrics = json.loads((tmp_path / "without/metrics.json").read_text())
    assert "density" not in metrics
    assert manifest["measured"] == metrics["table"]["ours"]


def test_the_same_seed_gives_the_same_run_and_resuming_changes_nothing(tmp_path, recipe):
    store = write_store(tmp_path / "store")
    for name, more in (("a", ()), ("b", ())):
        train_cli.run(options(recipe, store, tmp_path / name, *more))
    a, b = ((tmp_path / n / "model/model.safetensors").read_bytes() for n in "ab")
    assert a == b
    state = torch.load(tmp_path / "b/last.pt", weights_only=True)
    assert state["epoch"] == 3
    train_cli.run(options(recipe, store, tmp_path / "b", "--resume"))
    assert (tmp_path / "b/model/model.safetensors").read_bytes() == a


@pytest.mark.parametrize("kind", ["two-heads", "guarded"])
def test_a_run_goes_on_with_the_recipe_and_the_data_it_began_with_alone(
    tmp_path, recipe, capsys, kind
):
    store, other = write_store(tmp_path / "store"), write_store(tmp_path / "other", seed=1)
    text = RECIPE if kind == "two-heads" else GUARDED
    recipe.write_text(text)
    train_cli.run(options(recipe, store, tmp_path / "out", "--epochs", "1"))
    state = (tmp_path / "out/last.pt").read_bytes()

    def refused(folder: Path, *more: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            again = options(recipe, folder, tmp_path / "out", "--epochs", "1", "--resume", *more)
            train_cli.main(again)
        assert left.value.code == EXIT_CONFIG
        assert (tmp_path / "out/last.pt").read_bytes() == state
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "last.pt" in said
        return said

    assert "recipe.seed is 7, was 0" in refused(store, "--seed", "7")
    assert "training.digest" in refused(other)
    assert "chosen by.digest" in refused(store, "--valid-store", str(other))
    smaller = "batch = 16\n" + text.replace("batch = 64\n", "").replace("batch = 32\n", "")
    recipe.write_text(smaller)
    assert "recipe.batch is 16, was" in refused(store)
    recipe.write_text(text)
    train_cli.run(options(recipe, store, tmp_path / "out", "--epochs", "1", "--resume"))


def test_how_long_a_two_heads_run_is_decides_its_rates_so_it_cannot_change_half_way(
    tmp_path, recipe
):
    store = write_store(tmp_path / "store")
    train_cli.run(options(recipe, store, tmp_path / "out", "--epochs", "1"))
    with pytest.raises(ConfigError, match=r"recipe\.epochs is 2, was 1"):
        train_cli.run(options(recipe, store, tmp_path / "out", "--epochs", "2", "--resume"))


def test_a_guarded_run_cannot_go_on_to_fewer_epochs_than_it_has(tmp_path):
    store, path = write_store(tmp_path / "store"), tmp_path / "g.toml"
    path.write_text(GUARDED)
    train_cli.run(options(path, store, tmp_path / "out", "--epochs", "2"))
    with pytest.raises(ConfigError, match="has 2 epochs, more than the 1"):
        train_cli.run(options(path, store, tmp_path / "out", "--epochs", "1", "--resume"))


def test_a_state_that_does_not_say_of_which_run_it_is_is_refused(tmp_path, recipe):
    store = write_store(tmp_path / "store")
    train_cli.run(options(recipe, store, tmp_path / "out", "--epochs", "1"))
    state = torch.load(tmp_path / "out/last.pt", weights_only=True)
    del state["header"]
    torch.save(state, tmp_path / "out/last.pt")
    with pytest.raises(ConfigError, match="earlier version"):
        train_cli.run(options(recipe, store, tmp_path / "out", "--epochs", "1", "--resume"))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--minutes", "1", "--resume"), "--resume"),
        (("--minutes", "0"), "--minutes 0"),
        (("--minutes", "-2"), "--minutes -2"),
        (("--minutes", "nan"), "--minutes nan"),
        (("--epochs", "0"), "--epochs 0"),
    ],
)
def test_options_that_make_no_sense_are_one_line_and_touch_nothing(
    tmp_path, recipe, capsys, more, said
):
    out = tmp_path / "out"
    out.mkdir()
    (out / "log.jsonl").write_text("kept\n")
    with pytest.raises(SystemExit) as left:
        train_cli.main(options(recipe, tmp_path / "none", out, *more))
    assert left.value.code == EXIT_USAGE
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert (out / "log.jsonl").read_text() == "kept\n"


def test_a_recipe_of_no_epochs_is_refused(tmp_path, recipe):
    recipe.write_text(RECIPE.replace("epochs = 3", "epochs = 0"))
    with pytest.raises(ConfigError, match="epochs must be at least 1"):
        train_cli.run(options(recipe, tmp_path / "none", tmp_path / "out"))


def test_stores_of_different_encoders_are_refused(tmp_path):
    stores = [write_store(tmp_path / "a", sha="aa"), write_store(tmp_path / "b", sha="bb")]
    with pytest.raises(ConfigError, match="different encoders"):
        batches.load_corpus(stores, "train", "cpu")


def test_windows_stay_inside_documents_and_a_batch_points_at_its_targets(tmp_path):
    corpus = batches.load_corpus([write_store(tmp_path / "s")], "train", "cpu")
    owner = corpus.owner
    assert bool((owner[corpus.targets] == owner[corpus.targets - 5]).all())
    seen = []
    for batch in batches.epoch_batches(corpus, 40, seed=1, epoch=0):
        assert torch.equal(batch.bank[batch.place], batch.targets)
        assert bool((owner[batch.bank][None] == owner[batch.targets][:, None]).eq(batch.same).all())
        seen.append(batch.targets)
    assert torch.equal(torch.cat(seen).sort().values, corpus.targets)


def test_context_and_repeats_of_the_target_are_no_negatives(tmp_path):
    corpus = batches.load_corpus([write_store(tmp_path / "s")], "train", "cpu")
    batch = batches.make_batch(corpus, np.array([0, 1]))
    bank = corpus.vectors[batch.bank].float()
    scores = torch.zeros(len(batch.targets), len(bank))
    _, own = losses.rank_losses(scores, batch, bank)
    candidates = batch.same.sum(1) - 5
    assert own.item() == pytest.approx(candidates.float().log().mean().item(), rel=1e-5)
    bank[batch.place[0] + 1] = bank[batch.place[0]]
    _, fewer = losses.rank_losses(scores, batch, bank)
    assert fewer.item() < own.item()


def test_an_oracle_ranks_first_and_ties_count_against_the_model(tmp_path):
    corpus = batches.load_corpus([write_store(tmp_path / "s")], "valid", "cpu")
    judge = measure.Judge(corpus)
    tied = judge.score(lambda c, bank: torch.zeros(len(c), len(bank)))
    lengths = corpus.stops - corpus.starts
    assert tied.rr[0] == pytest.approx(1 / (lengths[0] - 5))
    at = iter(judge.targets.split(judge.chunk))

    def oracle(context, bank):
        return corpus.vectors[next(at)].float() @ bank.T

    assert judge.score(oracle).rr.min() == 1.0


def test_pools_never_hold_the_window_itself(tmp_path):
    corpus = batches.load_corpus([write_store(tmp_path / "s", documents=80)], "valid", "cpu")
    judge = measure.Judge(corpus)
    ahead = judge.targets[:, None] - judge.pools
    assert not bool(((ahead >= 0) & (ahead <= 5)).any())


def test_an_unknown_recipe_key_is_named(tmp_path, recipe):
    recipe.write_text("epoch = 3\n" + RECIPE)
    with pytest.raises(ConfigError, match="epoch"):
        train_cli.run(options(recipe, tmp_path, tmp_path / "out"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('epochs = "3"', "epochs must be a whole number, not '3'"),
        ("lr = true", "lr must be a number"),
        ("share = 0.5", "share must be a list"),
        ('rank = {hidden = "wide"}', "rank.hidden must be a whole number"),
        ('kind = "guarded"\nbatch = 6.5', "batch must be a whole number"),
        ('kind = "linear"\ngroups = "0-384"', "groups must be a list"),
    ],
)
def test_a_recipe_value_of_another_kind_is_named(tmp_path, line, said):
    path = tmp_path / "recipe.toml"
    path.write_text(line + "\n")
    with pytest.raises(ConfigError, match=re.escape(said)):
        recipes.load(path)


GUARDED = """
name = "g"
kind = "guarded"
architecture = "amn"
epochs = 4
batch = 32
context_dropout = 0.05
[[stage]]
from = 2
roll = 0.1
direction = 0.002
adaptive = 1
future = 0.002
[[tripwire]]
epoch = 1
metric = "cosine"
below = 2.0
set = { horizon = 4 }
"""


def test_a_guarded_run_trips_resumes_and_is_deterministic(tmp_path):
    store, path = write_store(tmp_path / "store"), tmp_path / "g.toml"
    path.write_text(GUARDED)
    train_cli.run(options(path, store, tmp_path / "a"))
    train_cli.run(options(path, store, tmp_path / "b", "--epochs", "2"))
    train_cli.run(options(path, store, tmp_path / "b", "--resume"))
    a, b = ((tmp_path / n / "model.safetensors").read_bytes() for n in "ab")
    assert a == b
    rows = [json.loads(r) for r in (tmp_path / "b/log.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in rows] == [1, 2, 3, 4]
    assert rows[0]["events"] and rows[1]["terms"]["horizon"] == 4
    assert rows[0]["terms"]["roll"] == 0 and rows[1]["terms"]["roll"] == 0.1


def test_a_regression_rolls_back_to_the_best_epoch(tmp_path):
    store, path = write_store(tmp_path / "store"), tmp_path / "g.toml"
    text = GUARDED.replace("epochs = 4", "epochs = 3\nlr = 0.01\nrollback_cosine = -1.0")
    path.write_text(text)
    train_cli.run(options(path, store, tmp_path / "a"))
    rows = [json.loads(r) for r in (tmp_path / "a/log.jsonl").read_text().splitlines()]
    assert any("rolled back to epoch 1" in event for event in rows[1]["events"])
    assert json.loads((tmp_path / "a/metrics.json").read_text())["epochs"]["vector"] == 1


def test_rollout_meets_the_true_future_and_sends_gradients_through_every_step():
    torch.manual_seed(0)
    net = torch.nn.Linear(5 * DIM, DIM)

    def predictor(window):
        return torch.nn.functional.normalize(net(window.flatten(1)), dim=-1)

    context = torch.randn(6, 5, DIM)
    first = predictor(context).detach().requires_grad_()
    future, known = torch.randn(6, 3, DIM), torch.ones(6, 3, dtype=torch.bool)
    losses.rollout_loss(predictor, context, first, future, known, 3).backward()
    assert first.grad.abs().sum() > 0 and net.weight.grad.abs().sum() > 0
    known[:] = False
    assert losses.rollout_loss(predictor, context, first, future, known, 3).item() == 0


def test_the_shipped_recipes_are_valid():
    folder = Path(__file__).parents[1] / "config/lvm"
    names = {recipes.load(path).name for path in folder.glob("*.toml")}
    assert names == {"v3", "p1", "p2", "p3", "p4", "ours-dialogue", "ours-articles", "compare"}
    p4 = recipes.load(folder / "p4.toml")
    assert [p4.terms(e, {})["roll"] for e in (1, 3, 4, 6, 7, 20)] == [0, 0, 0.05, 0.05, 0.1, 0.1]
    assert [p4.terms(e, {})["direction"] for e in (5, 6)] == [0, 0.002]
    assert [p4.terms(e, {})["future"] for e in (9, 10)] == [0, 0.002]


SMALL = 'kind = "guarded"\nepochs = 1\nbatch = 64\n'


def comparing(path: Path, store: Path, out: Path, *more: str) -> dict:
    path.write_text(SMALL)
    compare.run(options(path, store, out, *more))
    return json.loads((out / "compare.json").read_text())


def test_compare_puts_architectures_seeds_and_other_runs_into_one_table(tmp_path, recipe):
    store, path = write_store(tmp_path / "store"), tmp_path / "g.toml"
    train_cli.run(options(recipe, store, tmp_path / "ours"))
    both = ["--architecture", "amn", "--architecture", "gru", "--seeds", "2"]
    more = ["--with", str(tmp_path / "ours/metrics.json"), "--model", str(tmp_path / "ours/model")]
    rows = comparing(path, store, tmp_path / "all", *both, *more)["rows"]
    assert [r["name"] for r in rows if r["baseline"]] == ["copy-last", "mean-5", "scalars", "ridge"]
    found = {r["name"]: r for r in rows if not r["baseline"]}
    assert {n: r["seeds"] for n, r in found.items()} == {
        "amn": 2, "gru": 2, "small": 1, "small, vector head alone": 1,
    }  # fmt: skip
    mrr = [r["mrr"]["mean"] for r in rows if not r["baseline"]]
    assert mrr == sorted(mrr, reverse=True)
    gru = found["gru"]["cosine"]
    assert gru["mean"] == pytest.approx(np.mean(gru["each"])) and gru["spread"] > 0
    assert gru["interval"][0] < gru["mean"] < gru["interval"][1]
    table = (tmp_path / "all/compare.md").read_text()
    assert all(row["name"] in table for row in rows)
    with pytest.raises(ConfigError, match="kind 'guarded'"):
        compare.run(options(recipe, store, tmp_path / "all"))
    pytest.importorskip("matplotlib")
    assert (tmp_path / "all/compare.png").stat().st_size > 1000


def test_compare_measures_a_model_as_its_own_training_did(tmp_path, recipe):
    store = write_store(tmp_path / "store")
    train_cli.run(options(recipe, store, tmp_path / "ours"))
    wanted = json.loads((tmp_path / "ours/metrics.json").read_text())["table"]
    more = ["--architecture", "amn", "--seeds", "1", "--model", str(tmp_path / "ours/model")]
    rows = comparing(tmp_path / "g.toml", store, tmp_path / "all", *more)["rows"]
    found = {row["name"]: row for row in rows}
    for mine, theirs in (("small", "ours"), ("small, vector head alone", "ours, vector head alone"),
                         ("copy-last", "copy-last")):  # fmt: skip
        for column in ("cosine", "mrr"):
            assert found[mine][column]["mean"] == pytest.approx(wanted[theirs][column]["mean"],
                                                                abs=2e-3), mine  # fmt: skip


def test_no_run_of_a_comparison_sees_what_the_table_is_measured_on(tmp_path, monkeypatch):
    store, seen = write_store(tmp_path / "store", documents=60), []
    train = guarded.train

    def spy(recipe, corpus, valid, out, **more):
        seen.extend([corpus, valid])
        return train(recipe, corpus, valid, out, **more)

    monkeypatch.setattr(guarded, "train", spy)
    more = ["--architecture", "amn", "--seeds", "1"]
    sizes = comparing(tmp_path / "g.toml", store, tmp_path / "all", *more)["sizes"]
    measured = batches.load_corpus([store], "valid", "cpu")
    parts = [{row.tobytes() for row in c.vectors.numpy()} for c in (*seen, measured)]
    assert all(not a & b for i, a in enumerate(parts) for b in parts[:i])
    assert sizes["train"]["documents"] + sizes["held"]["documents"] == 45
    assert sizes["held"]["documents"] == 4


def test_a_stopped_comparison_goes_on_and_another_one_does_not_mix_with_it(tmp_path):
    store, path = write_store(tmp_path / "store"), tmp_path / "g.toml"
    more = ["--architecture", "amn", "--architecture", "lstm", "--seeds", "1", "--epochs", "2"]
    whole = comparing(path, store, tmp_path / "a", *more)
    comparing(path, store, tmp_path / "b", "--architecture", "amn", "--seeds", "1", "--epochs", "2")
    weights = tmp_path / "b/amn-0/model.safetensors"
    state = (tmp_path / "b/amn-0/last.pt").read_bytes()
    weights.unlink()  # as if killed before the end of the run
    measured = dict(np.load(tmp_path / "b/amn-0/measured.npz"))
    again = comparing(path, store, tmp_path / "b", *more)
    assert (tmp_path / "b/amn-0/last.pt").read_bytes() == state
    means = [{r["name"]: r["cosine"]["mean"] for r in x["rows"]} for x in (whole, again)]
    assert means[0] == means[1]
    measured["cosine"] = measured["cosine"] + 1  # what is kept is what is read, for these weights
    np.savez(tmp_path / "b/amn-0/measured.npz", **measured)
    rows = {r["name"]: r for r in comparing(path, store, tmp_path / "b", *more)["rows"]}
    assert rows["amn"]["cosine"]["mean"] == pytest.approx(means[0]["amn"] + 1, abs=1e-6)
    np.savez(tmp_path / "b/amn-0/measured.npz", **measured | {"key": np.array("of others")})
    rows = {r["name"]: r for r in comparing(path, store, tmp_path / "b", *more)["rows"]}
    assert rows["amn"]["cosine"]["mean"] == pytest.approx(means[0]["amn"], abs=1e-6)
    with pytest.raises(ConfigError, match="epochs"):
        comparing(path, store, tmp_path / "b", *more[:-1], "3")


def test_one_size_for_all_architectures(tmp_path):
    for name in predictors.ARCHITECTURES:
        size = networks.count_parameters(predictors.build(name, 384, parameters=1_000_000))
        assert 930_000 < size <= 1_000_000, name
    with pytest.raises(ConfigError, match="too few"):
        predictors.build("gru", 384, parameters=1000)


def test_epochs_are_chosen_on_training_documents_that_are_neither_trained_on_nor_reported(
    tmp_path, recipe
):
    store = write_store(tmp_path / "store", documents=60)
    corpus, dev = batches.load_parts([store], "train", "cpu", None, 0.3)
    every = batches.load_corpus([store], "train", "cpu")
    assert len(corpus.starts) + len(dev.starts) == len(every.starts)
    assert 0 < len(dev.starts) < len(corpus.starts)
    recipe.write_text("dev_share = 0.3\ntoward_scalars = true\n" + RECIPE)
    train_cli.run(options(recipe, store, tmp_path / "out"))
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["train_windows"] == len(corpus.targets)
    valid = batches.load_corpus([store], "valid", "cpu")
    assert metrics["valid_windows"] == len(valid.targets)
    copied = (valid.context(valid.targets)[:, -1] * valid.vectors[valid.targets]).sum(-1).mean()
    assert metrics["table"]["copy-last"]["cosine"]["mean"] == pytest.approx(float(copied), abs=1e-3)


def test_a_ridge_toward_the_scalars_is_them_when_strong_and_the_plain_one_when_weak(tmp_path):
    corpus = batches.load_corpus([write_store(tmp_path / "s", documents=80)], "train", "cpu")
    scalars = measure.fit_scalars(corpus)
    weak, strong = measure.ridges(corpus, (1e-6, 1e6), toward=scalars)
    assert torch.allclose(weak, measure.fit_linear(corpus, 1e-6), atol=1e-3)
    context = corpus.context(corpus.targets)
    table = measure.baselines(scalars, strong)
    assert torch.allclose(table["ridge"](context), table["scalars"](context), atol=1e-3)
