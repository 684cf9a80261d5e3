"""The runtime's model folder, written from arrays: safetensors and a manifest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from sidecars.lvm_network import KIND


def write_model(
    folder: Path,
    tensors: dict[str, np.ndarray],
    network: dict[str, Any],
    *,
    name: str,
    encoder_sha256: str,
    measured: dict[str, Any],
) -> int:
    """Write ``model.safetensors`` and ``manifest.json``; returns the size in bytes.

    ``tensors`` keep their types; ``network`` names architecture, dim and shape.
    """
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
