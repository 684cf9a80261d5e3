"""The lvm sidecar with its two heads in PyTorch eager: the other side of ``lvm_sidecar``.

The same service, encoder and weights; only the network differs. ``python -m benchmarks.lvm_eager
--port N`` serves it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from sidecars import lvm
from sidecars.launch import main
from sidecars.lvm_network import check_folder, read_safetensors
from trainers.lvm.networks import TwoHeads


class EagerNetwork:
    """``LvmNetwork``'s interface on torch, one thread."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self.manifest = check_folder(folder)
        shape = self.manifest["network"]
        self.dim = int(shape["dim"])
        self.net = TwoHeads({key: shape[key] for key in ("dim", "vector", "rank")}).eval()
        weights = read_safetensors(folder / "model.safetensors")
        self.net.load_state_dict({name: torch.from_numpy(w) for name, w in weights.items()})

    @classmethod
    def load(cls, folder: Path) -> EagerNetwork:
        """The network of a model folder."""
        return cls(folder)

    def predict(self, context: np.ndarray) -> np.ndarray:
        """``[B, 5, D] -> [B, D]``."""
        with torch.inference_mode():
            found: np.ndarray = self.net.vector(torch.from_numpy(context)).numpy()
        return found

    def rank(self, context: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """``[B, 5, D], [N, D] -> [B, N]``."""
        with torch.inference_mode():
            bank = torch.from_numpy(candidates)
            scores = self.net.rank(torch.from_numpy(context), bank)
            crowd = self.manifest["network"].get("density")
            if crowd and len(bank) > 2:  # as LvmNetwork, for up to a thousand candidates
                near = (bank @ bank.T).fill_diagonal_(-2.0)
                nearest = near.topk(min(crowd["neighbours"], len(bank) - 1)).values.mean(1)
                every = (near.sum(1) + 2) / (len(bank) - 1)
                dense = crowd["factors"][0] * nearest + crowd["factors"][1] * every
                scores = scores - (dense - dense.mean())
        found: np.ndarray = scores.numpy()
        return found


if __name__ == "__main__":
    lvm.LvmNetwork = EagerNetwork  # type: ignore[assignment, misc]
    sys.exit(main(lvm.LvmService))
