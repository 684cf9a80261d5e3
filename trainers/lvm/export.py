"""Write a trained network as the runtime's model folder: fp16 safetensors and a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sidecars.lvm_network import ARCHITECTURE
from trainers.lvm.model_folder import write_model

LIMIT = 10_000_000  # bytes; what may be committed and shipped


def export(
    folder: Path,
    weights: dict[str, torch.Tensor],
    shape: dict[str, Any],
    *,
    name: str,
    encoder_sha256: str,
    measured: dict[str, Any],
) -> int:
    """Write ``model.safetensors`` and ``manifest.json``; returns the size in bytes."""
    return write_model(
        folder,
        {key: value.half().numpy() for key, value in weights.items()},
        {"architecture": ARCHITECTURE, **shape},
        name=name,
        encoder_sha256=encoder_sha256,
        measured=measured,
    )
