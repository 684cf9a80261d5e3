"""The candidates' density in the dialogue model's rank head: what it does, and how it is fitted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("safetensors")

from brain.errors import ArtifactCorrupt, ConfigError
from sidecars.lvm_network import LvmNetwork, load_network, unit
from tests.fakes.lvm_worlds import CycleRule, cycling_store, halves, write_store
from trainers.lvm import density
from trainers.lvm.cli import main
from trainers.lvm.corpora import is_dev
from trainers.lvm.errors import TooFewWindows
from trainers.lvm.fivecat import measure
from trainers.lvm.model_folder import write_model
from trainers.lvm.recipes import Linear
from trainers.lvm.store import VectorStore, store_in_memory

DIM = 16
SHAPE = {
    "dim": DIM,
    "vector": {"hidden": 4, "layers": 0, "heads": 2, "ff": 4},
    "rank": {"hidden": 4, "layers": 0, "heads": 2, "ff": 4, "queries": 1, "candidate_hidden": 4}
    | {"bilinear_heads": 1, "bilinear_rank": 2, "mix": 2},
}
CROWD = {"neighbours": 3, "factors": [8.0, 4.0]}


def copying_tensors() -> dict[str, np.ndarray]:
    """A network that predicts the last vector, and ranks by 20 × likeness to it."""
    zeros = {
        "vector.inp.weight": (4, DIM), "vector.position": (5, 4), "vector.norm.weight": (4,),
        "vector.norm.bias": (4,), "vector.skip.weight": (DIM, 5 * DIM), "vector.out.weight":
        (DIM, 20), "rank.inp.weight": (4, DIM), "rank.position": (5, 4), "rank.norm.weight": (4,),
        "rank.norm.bias": (4,), "rank.slots": (1, 5), "rank.queries": (1, 4), "rank.out.weight":
        (DIM, 4), "rank.cand_in.weight": (4, DIM), "rank.cand_out.weight": (DIM, 4),
        "rank.left.weight": (2, DIM), "rank.right.weight": (2, DIM), "rank.weight": (11,),
        "rank.gate.weight": (11, 4), "rank.log_scale": (), "rank.cand_bias.weight": (1, 4),
        "rank.mix.weight": (2, 11), "rank.mix_context.weight": (2, 4),
        "rank.mix_candidate.weight": (2, 4), "rank.mix_out": (2,),
    }  # fmt: skip
    tensors = {name: np.zeros(shape, np.float32) for name, shape in zeros.items()}
    tensors["vector.skip.weight"][:, -DIM:] = np.eye(DIM)
    tensors["rank.slots"][0, -1] = 1.0
    tensors["rank.weight"][0] = 20.0
    return tensors


def copying(crowd: dict | None = None) -> LvmNetwork:
    network = SHAPE | ({"density": crowd} if crowd else {})
    return LvmNetwork({"network": network}, copying_tensors())


def write_copying(folder: Path, encoder: str = "f" * 64) -> Path:
    shape = {"architecture": "two-heads-1", **SHAPE}
    write_model(folder, copying_tensors(), shape, name="n", encoder_sha256=encoder, measured={})
    return folder


def vectors(count: int, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32))


def hubs(documents: int = 60, length: int = 12, seed: int = 0) -> VectorStore:
    """A topic walks on; each sentence also says more or less of what every sentence says."""
    rng, made = np.random.default_rng(seed), []
    common = np.eye(DIM)[0]
    for _ in range(documents):
        topic, rows = rng.standard_normal(DIM), []
        for _ in range(length):
            topic = 0.8 * topic + 0.6 * rng.standard_normal(DIM)
            rows.append(unit(topic / 4 + rng.uniform(0, 2.5) * common))
        made.append(np.asarray(rows))
    return store_in_memory(made, halves(documents))


def test_without_factors_and_with_two_candidates_the_scores_are_each_candidates_own() -> None:
    context, bank = vectors(10).reshape(2, 5, DIM), vectors(9, seed=1)
    plain, crowded = copying(), copying(CROWD)
    assert np.array_equal(plain.rank(context, bank), plain.rank_alone(context, bank))
    for count in (1, 2):
        few = bank[:count]
        assert np.array_equal(crowded.rank(context, few), plain.rank(context, few))
    three = crowded.rank(context, bank[:3])
    assert np.isfinite(three).all() and not np.allclose(three, plain.rank(context, bank[:3]))
    assert three.mean() == pytest.approx(plain.rank(context, bank[:3]).mean(), abs=1e-4)


def test_a_crowd_loses_and_the_order_of_the_candidates_does_not_matter() -> None:
    axes = np.eye(DIM, dtype=np.float32)
    crowd = unit(axes[1] + 0.1 * vectors(10))
    bank = np.concatenate([axes[:1], axes[1:2], crowd])
    context = np.tile(unit(axes[0] + axes[1]), (1, 5, 1))
    model = copying(CROWD)
    scores = model.rank(context, bank)[0]
    assert copying().rank(context, bank)[0, 0] == pytest.approx(14.14, abs=0.01)
    assert scores[0] > scores[1] + 5
    order = np.random.default_rng(2).permutation(len(bank))
    assert model.rank(context, bank[order])[0] == pytest.approx(scores[order], abs=1e-4)


def test_many_candidates_keep_their_scores_in_another_order(monkeypatch) -> None:
    monkeypatch.setattr("sidecars.lvm_linear.REFERENCES", 20)
    context, bank = vectors(5)[None], vectors(90, seed=3)
    order = np.random.default_rng(2).permutation(90)
    model = copying(CROWD)
    moved = model.rank(context, bank[order])
    assert moved == pytest.approx(model.rank(context, bank)[:, order], abs=1e-4)


@pytest.mark.parametrize(
    "wrong", [{"neighbours": 0, "factors": [1.0, 1]}, {"factors": [1.0, 1]}, {"neighbours": 3},
              {"neighbours": 3, "factors": [float("nan"), 1]}, [3],
              {"neighbours": 3, "factors": []}, {"neighbours": 3, "factors": [1.0] * 3}],
)  # fmt: skip
def test_a_density_that_makes_no_sense_is_refused(wrong) -> None:
    with pytest.raises(ArtifactCorrupt, match="does not fit"):
        copying(wrong)


def test_the_fit_takes_density_off_where_some_sentences_are_near_everything() -> None:
    store, model = hubs(), copying()
    fitted = density.fit(model, store, store.windows("train"))
    assert max(fitted["factors"]) > 0
    network = SHAPE | {"density": fitted}
    scaled = LvmNetwork({"network": network}, copying_tensors())
    valid = store.windows("valid")
    before, after = measure(model, store, valid), measure(scaled, store, valid)
    assert after.mrr_rank.mean() > before.mrr_rank.mean() + 0.02


def test_a_model_that_is_right_already_gets_no_factor() -> None:
    class Knowing:
        def rank_alone(self, context: np.ndarray, candidates: np.ndarray) -> np.ndarray:
            return 20 * CycleRule().predict(context) @ candidates.T

    store = cycling_store(documents=40)
    assert density.fit(Knowing(), store, store.windows("train"))["factors"] == [0.0, 0.0]


def test_what_chose_the_epochs_does_not_fit_the_factors() -> None:
    store = hubs()
    targets = density.training_windows(store, "train", 10_000, 0, dev_share=0.4)
    used = {store.documents[i].id for i in store.document_of(targets)}
    train = {d.id for d in store.documents if d.split == "train"}
    assert used == {d for d in train if not is_dev(d, 0.4)} != train
    assert len(density.training_windows(store, "train", 50, 0)) == 50
    with pytest.raises(TooFewWindows, match="held out"):
        density.training_windows(store, "train", 50, 0, dev_share=1.0)


def test_the_command_writes_factors_and_what_was_measured_with_them(tmp_path, capsys) -> None:
    folder = write_copying(tmp_path / "model")
    write_store(hubs(), tmp_path / "store")
    weights = (folder / "model.safetensors").read_bytes()
    with pytest.raises(SystemExit) as left:
        main(
            [
                "density",
                "--model",
                str(folder),
                "--store",
                str(tmp_path / "store"),
                "--version",
                "7",
            ]
        )
    assert left.value.code == 0 and "nearest" in capsys.readouterr().out
    assert (folder / "model.safetensors").read_bytes() == weights
    assert [p.name for p in sorted(folder.iterdir())] == ["manifest.json", "model.safetensors"]
    model = load_network(folder)
    assert model.manifest["version"] == 7
    assert isinstance(model, LvmNetwork) and max(model.manifest["network"]["density"]["factors"])
    store = VectorStore.open(tmp_path / "store")
    found = measure(model, store, store.windows("valid"))
    measured = model.manifest["measured"]
    assert measured["mrr"]["mean"] == pytest.approx(found.mrr_rank.mean(), abs=1e-6)
    assert measured["hit10"]["mean"] == pytest.approx(found.hit_rank.mean(), abs=1e-6)


def test_a_model_it_cannot_be_added_to_stays_as_it_is(tmp_path) -> None:
    store = hubs(documents=8)
    foreign = write_copying(tmp_path / "foreign", encoder="a" * 64)
    small = tmp_path / "small"
    network = {"architecture": "linear-1", "dim": DIM, "groups": Linear("x").groups}
    write_model(small, {}, network, name="n", encoder_sha256="f" * 64, measured={})
    for folder, why in ((foreign, "other vectors"), (small, "two-heads")):
        before = (folder / "manifest.json").read_text()
        with pytest.raises(ConfigError, match=why):
            density.add(folder, store, store.windows("train"), store, "valid")
        assert (folder / "manifest.json").read_text() == before
    assert "density" not in json.loads(before)["network"]
