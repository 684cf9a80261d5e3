"""A model folder that is missing, changed or foreign is refused with one clear line."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("safetensors")

import torch

from brain.errors import EXIT_CONFIG, ArtifactCorrupt, ArtifactMissing, InputError
from sidecars.lvm_network import LvmNetwork
from trainers.lvm.export import export
from trainers.lvm.networks import TwoHeads

SHAPE = {
    "dim": 16,
    "vector": {"hidden": 8, "layers": 1, "heads": 2, "ff": 8},
    "rank": {"hidden": 8, "layers": 1, "heads": 2, "ff": 8, "queries": 2, "candidate_hidden": 8}
    | {"bilinear_heads": 2, "bilinear_rank": 4, "mix": 4},
}


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    export(
        tmp_path, TwoHeads(SHAPE).state_dict(), SHAPE, name="n", encoder_sha256="aa", measured={}
    )
    return tmp_path


def test_a_missing_file_is_named(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ArtifactMissing, match=r"model\.safetensors") as caught:
        LvmNetwork.load(folder)
    assert caught.value.exit_code == EXIT_CONFIG


def test_a_changed_file_is_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ArtifactCorrupt, match="sha256"):
        LvmNetwork.load(folder)


def test_another_kind_of_model_is_refused(folder):
    (folder / "manifest.json").write_text(json.dumps({"kind": "affect-encoder"}))
    with pytest.raises(ArtifactCorrupt, match="kind 'lvm'"):
        LvmNetwork.load(folder)


def test_a_manifest_that_does_not_fit_its_weights_is_refused(folder):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["network"]["rank"]["layers"] = 2
    path.write_text(json.dumps(manifest))
    with pytest.raises(ArtifactCorrupt, match="does not fit"):
        LvmNetwork.load(folder)


def test_shapes_are_checked(folder):
    net = LvmNetwork.load(folder)
    with pytest.raises(InputError, match="context must have shape"):
        net.predict(np.zeros((1, 4, 16), np.float32))
    with pytest.raises(InputError, match="candidates must have shape"):
        net.rank(np.zeros((1, 5, 16), np.float32), np.zeros((3, 15), np.float32))
