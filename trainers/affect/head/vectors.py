"""The pooled vectors of a frozen encoder, computed once: what heads alone are trained on.

They are kept beside the run, bound to the hash of the encoder's weights and of the token ids, so
neither another encoder nor another set can read them by mistake.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from trainers.affect.head.arrays import Prepared
from trainers.affect.head.measure import Outputs
from trainers.affect.head.network import AffectNet
from trainers.affect.head.rowcache import RowCache

TOKENS_A_BATCH = 4096
NAME = "pooled"


def body_hash(body: nn.Module) -> str:
    """SHA-256 over names and float32 values of all parameters."""
    digest = hashlib.sha256()
    for name, tensor in sorted(body.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def has_vectors(net: AffectNet, data: Prepared, folder: Path) -> bool:
    """Whether a run kept vectors of this very encoder."""
    path = RowCache(folder, NAME, body_hash(net.body), data).path
    return path is not None and path.exists()


@torch.inference_mode()
def pooled_vectors(
    net: AffectNet, data: Prepared, rows: NDArray[np.int64], folder: Path, device: str = "cpu"
) -> NDArray[np.float32]:
    """Vectors [N, 384] over all rows of the set, NaN outside ``rows``."""
    body = net.body.to(device).eval()

    def run(part: NDArray[np.int64]) -> Outputs:
        lengths = data.starts[part + 1] - data.starts[part]
        order = np.argsort(lengths, kind="stable")
        found = np.empty((len(part), 384), np.float32)
        start = 0
        while start < len(order):
            stop = min(len(order), start + 256)
            while stop - start > 1 and lengths[order[stop - 1]] * (stop - start) > TOKENS_A_BATCH:
                stop = start + (stop - start) // 2
            places = order[start:stop]
            arrays = (torch.as_tensor(a, device=device) for a in data.batch(part[places]))
            found[places] = net.pooled(*arrays).float().cpu().numpy()
            start = stop
        return {NAME: found}

    return RowCache(folder, NAME, body_hash(body), data).outputs(rows, run)[NAME]
