"""What a folder of results says of itself: with which recipe, set and head they were made.

A stopped run goes on when its command is repeated, out of what lies in its folder. A folder that
holds results is therefore never taken for another command's: ``another`` says what differs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

RECIPE_FILE = "recipe.json"
MODEL_FILE = "model.onnx"  # a served folder's weights
# Files that name the set their folder's results were made with.
SETS = (RECIPE_FILE, "average.json", "manifest.json", "affect-report.json")
ELSEWHERE = ("device",)  # a run may go on on another device
LATER = ("head", "weights")  # runs from before these were written down hold none


def file_hash(path: Path) -> str:
    """SHA-256 of a file of weights; of a served folder, of the file that holds its weights.

    Raises:
        OSError: it cannot be read.
    """
    with (path / MODEL_FILE if path.is_dir() else path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_header(folder: Path) -> dict[str, Any]:
    """What ``write_header`` wrote: ``recipe``, ``data`` and whatever else the run depends on.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: what is there is not what a run writes.
    """
    path = folder / RECIPE_FILE
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("recipe"), dict):
        raise ValueError(f"{path}: not what a run writes")
    return found


def write_header(run: Path, header: dict[str, Any]) -> None:
    """Make the folder, and its ``recipe.json`` whole or not at all."""
    run.mkdir(parents=True, exist_ok=True)
    part = run / f"{RECIPE_FILE}.part"
    part.write_text(json.dumps(header, indent=1) + "\n", "utf-8")
    part.replace(run / RECIPE_FILE)


def held(run: Path, patterns: Iterable[str]) -> list[str]:
    """Names of the files in ``run`` that fit one of the ``patterns``, sorted."""
    return sorted({path.name for pattern in patterns for path in run.glob(pattern)})


def another(run: Path, header: dict[str, Any], patterns: Iterable[str]) -> str:
    """Why the results in ``run`` (files of ``patterns``) are not those of ``header``; empty where
    they are, or where there are none."""
    results = held(run, patterns)
    if not results:
        return ""
    try:
        differ = _differences(read_header(run), header)
    except FileNotFoundError:
        return f"{run}: holds {results[0]} without a {RECIPE_FILE}; give another --out"
    except ValueError as error:
        return f"{error}; give another --out"
    if not differ:
        return ""
    return f"{run}: holds a run with another {', '.join(differ)}; give another --out"


def set_of(folder: Path) -> str | None:
    """The digest of the set that the results in ``folder`` were made with: a run's, an averaged
    head's, an exported model's or a report's; None where nothing says."""
    for name in SETS:
        try:
            found = json.loads((folder / name).read_text("utf-8"))
        except (OSError, ValueError):
            continue
        for table in (found, *found.values()) if isinstance(found, dict) else ():
            if isinstance(table, dict) and isinstance(table.get("data"), str):
                return str(table["data"])
    return None


def another_set(result: Path, digest: str) -> str:
    """Why ``result`` is not of the set of this digest; empty where it is, or nothing says."""
    before = set_of(result.parent)
    if before is None or before == digest:
        return ""
    return f"{result}: made with another set ({before[:12]}… instead of {digest[:12]}…)"


def _differences(before: dict[str, Any], header: dict[str, Any]) -> list[str]:
    old, new = before["recipe"], header["recipe"]
    found = [name for name in dict.fromkeys([*new, *old]) if old.get(name) != new.get(name)]
    for name, value in header.items():
        known = name in before or name not in LATER
        if name not in ("recipe", *ELSEWHERE) and known and before.get(name) != value:
            found.append(name)
    return found


def device_of(wanted: str) -> str:
    """Where to compute: ``wanted``, and for ``auto`` a GPU where there is one.

    Raises:
        ValueError: this machine, or its PyTorch, has no such device.
    """
    # Imported here: what only reads a run's recipe needs no PyTorch.
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=wanted).item()
    except (RuntimeError, AssertionError, NotImplementedError):  # PyTorch's ways to say no
        raise ValueError(f"--device {wanted}: not a device of this machine; cpu or auto") from None
    return wanted


def not_finite(weights: Mapping[str, Tensor]) -> str:
    """The name of a weight that is not a finite number; empty where all are. A head with one
    answers nothing."""
    return next((n for n, value in weights.items() if not bool(value.isfinite().all())), "")


def save_head(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write a head's weights, whole or not at all.

    Raises:
        ValueError: one of them is not finite.
    """
    # Imported here: what only reads a run's recipe needs no PyTorch.
    from safetensors.torch import save_file

    if name := not_finite(weights):
        raise ValueError(f"{path}: not saved, {name} is not finite")
    part = path.with_suffix(".part")
    save_file({name: value.contiguous().cpu() for name, value in weights.items()}, part)
    part.replace(path)
