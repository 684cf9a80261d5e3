"""Write a trained network as the runtime's model folder: fp16 safetensors and a manifest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from sidecars.lvm_network import ARCHITECTURE, KIND

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


def write_model(
    folder: Path,
    tensors: dict[str, np.ndarray],
    network: dict[str, Any],
    *,
    name: str,
    encoder_sha256: str,
    measured: dict[str, Any],
) -> int:
    """The same from arrays, each in its own type. ``network`` names architecture, dim and shape."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.safetensors"
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, path)
    raw = path.read_bytes()
    manifest = {
        "name": name,
        "version": 1,
        "kind": KIND,
        "dim": network["dim"],
        "encoder_sha256": encoder_sha256,
        "network": network,
        "measured": measured,
        "files": {path.name: {"sha256": hashlib.sha256(raw).hexdigest(), "size": len(raw)}},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
    return len(raw)
