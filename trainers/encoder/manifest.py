"""The manifest of a model folder, written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from sidecars.onnx_text import MANIFEST_FILE


def write_manifest(folder: Path, **fields: Any) -> dict[str, Any]:
    """Write ``manifest.json`` over the model and tokenizer of a folder; returns it."""
    files = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in {".onnx", ".json", ".npz", ".safetensors"} and path.name != MANIFEST_FILE:
            data = path.read_bytes()
            files[path.name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest = {**fields, "files": files}
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def renew_manifest(folder: Path, **changes: Any) -> dict[str, Any]:
    """Write a folder's manifest again over the files it has now; returns it."""
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    return write_manifest(folder, **{k: v for k, v in manifest.items() if k != "files"} | changes)
