"""The numpy network is the torch network."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("safetensors")

import torch

from sidecars.lvm_network import LvmNetwork
from trainers.lvm.export import LIMIT, export
from trainers.lvm.networks import TwoHeads, count_parameters, unit
from trainers.lvm.predictors import build
from trainers.lvm.recipes import RANK_SHAPE, VECTOR_SHAPE


def trained_like(dim: int = 384) -> TwoHeads:
    """Default shape, with every weight moved off its starting point, rounded as shipped."""
    torch.manual_seed(3)
    net = TwoHeads({"dim": dim, "vector": VECTOR_SHAPE, "rank": RANK_SHAPE}).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02).copy_(parameter.half().float())
    return net


def test_numpy_equals_torch_and_the_file_is_small(tmp_path):
    net = trained_like()
    size = export(tmp_path, net.state_dict(), net.shape, name="n", encoder_sha256="aa", measured={})
    assert size < LIMIT
    twin = LvmNetwork.load(tmp_path)
    context, bank = unit(torch.randn(7, 5, 384)), unit(torch.randn(50, 384))
    with torch.no_grad():
        vector, scores = net.vector(context), net.rank(context, bank)
    assert np.abs(twin.predict(context.numpy()) - vector.numpy()).max() < 1e-3
    assert np.abs(twin.rank(context.numpy(), bank.numpy()) - scores.numpy()).max() < 1e-3
    assert twin.predict(context.numpy()).dtype == np.float32


def test_a_batch_gives_each_window_what_it_gets_alone(tmp_path):
    net = trained_like()
    export(tmp_path, net.state_dict(), net.shape, name="n", encoder_sha256="aa", measured={})
    twin = LvmNetwork.load(tmp_path)
    context, bank = unit(torch.randn(9, 5, 384)).numpy(), unit(torch.randn(20, 384)).numpy()
    alone = [twin.predict(window[None])[0] for window in context]
    assert np.abs(twin.predict(context) - np.stack(alone)).max() < 1e-6
    scores = [twin.rank(window[None], bank)[0] for window in context]
    assert np.abs(twin.rank(context, bank) - np.stack(scores)).max() < 1e-4


def test_the_rank_head_starts_as_the_mean_of_the_context():
    torch.manual_seed(0)
    net = TwoHeads({"dim": 64, "vector": VECTOR_SHAPE, "rank": RANK_SHAPE}).eval()
    context, bank = unit(torch.randn(4, 5, 64)), unit(torch.randn(30, 64))
    with torch.no_grad():
        scores = net.rank(context, bank)
    mean = unit(context.mean(1)) @ bank.T * 20
    assert torch.corrcoef(torch.stack([scores.flatten(), mean.flatten()]))[0, 1] > 0.95


@pytest.mark.parametrize(
    ("name", "millions"), [("amn", 1.5), ("lstm", 5.1), ("gru", 7.1), ("transformer", 17.9)]
)
def test_architectures_have_their_sizes_and_one_interface(name, millions):
    net = build(name, 768, causal=True, residual=0.5)
    assert count_parameters(net) == pytest.approx(millions * 1e6, rel=0.02)
    small = build(name, 24)(unit(torch.randn(3, 5, 24)))
    assert small.shape == (3, 24)
    assert torch.allclose(small.norm(dim=-1), torch.ones(3), atol=1e-5)
