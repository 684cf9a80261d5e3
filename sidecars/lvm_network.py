"""The shipped next-vector network in numpy: loads safetensors, predicts and ranks.

Two separate heads over the last five unit vectors of a conversation:

- *vector head*: a linear map of the five vectors (it starts as ridge regression) plus a small
  transformer's correction; trained for cosine, for decoding and surprise;
- *rank head*: scores a context and a candidate jointly from similarities (several queries, the
  five raw ones, low-rank bilinear ones), gated by the context and mixed by a small MLP. How dense
  the candidates lie around a candidate then counts against it, where the manifest says how much
  (``network.density``; local scaling, CSLS of Conneau et al. 2018).

Parameter names are those of ``trainers.lvm.networks``, which defines the same function in torch.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from brain.errors import ArtifactCorrupt, ArtifactMissing, InputError
from sidecars import lvm_linear
from sidecars.lvm_linear import LinearNetwork

Array = npt.NDArray[np.float32]
CONTEXT = 5
KIND = "lvm"
ARCHITECTURE = "two-heads-1"
ARCHITECTURES = (ARCHITECTURE, lvm_linear.ARCHITECTURE)
_TYPES = {"F16": np.float16, "F32": np.float32}
_MANIFEST, _WEIGHTS = "manifest.json", "model.safetensors"


def read_safetensors(path: Path) -> dict[str, Array]:
    """Every tensor of a safetensors file as float32.

    Raises ArtifactMissing or ArtifactCorrupt. Format: u64 header length, JSON header, raw data.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ArtifactMissing(f"cannot read {path}: {error.strerror}") from error
    tensors: dict[str, Array] = {}
    try:
        start = 8 + int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8:start])
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            data = np.frombuffer(raw[start + begin : start + end], dtype=_TYPES[entry["dtype"]])
            tensors[name] = data.reshape(entry["shape"]).astype(np.float32)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactCorrupt(f"{path} is not a usable safetensors file: {error}") from error
    return tensors


def check_folder(folder: Path) -> dict[str, Any]:
    """Read ``manifest.json`` and verify the sha256 of each listed file; returns the manifest."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text("utf-8"))
    except OSError as error:
        raise ArtifactMissing(f"cannot read {folder / _MANIFEST}: {error.strerror}") from error
    except ValueError as error:
        raise ArtifactCorrupt(f"{folder / _MANIFEST} is not JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        raise ArtifactCorrupt(f"{folder} does not hold a model of kind {KIND!r}")
    network = manifest.get("network")
    if not isinstance(network, dict) or network.get("architecture") not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ArtifactCorrupt(f"{folder}: this version runs only these networks: {known}")
    files = manifest.get("files")
    if not isinstance(files, dict) or _WEIGHTS not in files:
        raise ArtifactCorrupt(f"{folder / _MANIFEST} does not list {_WEIGHTS}")
    for name, entry in files.items():
        path = folder / Path(name).name
        if not path.is_file():
            raise ArtifactMissing(f"{path} is missing")
        wanted = entry.get("sha256") if isinstance(entry, dict) else None
        if hashlib.sha256(path.read_bytes()).hexdigest() != wanted:
            raise ArtifactCorrupt(f"{path}: its sha256 is not the one in {_MANIFEST}")
    return manifest


def unit(x: Array) -> Array:
    """Rows at unit length; a zero row stays zero."""
    norm = np.sqrt(np.square(x).sum(axis=-1, keepdims=True, dtype=np.float32))
    return np.asarray(x / np.maximum(norm, 1e-6), dtype=np.float32)


def _gelu(x: Array) -> Array:
    inner = np.float32(0.7978845608) * (x + np.float32(0.044715) * x * x * x)
    return np.asarray(np.float32(0.5) * x * (np.float32(1) + np.tanh(inner)), dtype=np.float32)


def load_network(folder: str | Path) -> LvmNetwork | LinearNetwork:
    """The network of a model folder, whichever architecture its manifest names.

    Raises ArtifactError subclasses (exit 78).
    """
    folder = Path(folder)
    manifest = check_folder(folder)
    tensors = read_safetensors(folder / _WEIGHTS)
    if manifest["network"]["architecture"] == lvm_linear.ARCHITECTURE:
        return LinearNetwork(manifest, tensors)
    return LvmNetwork(manifest, tensors)


class LvmNetwork:
    """The two heads with their weights. ``dim`` is D; ``manifest`` is the folder's."""

    def __init__(self, manifest: dict[str, Any], tensors: dict[str, Array]) -> None:
        self.manifest = manifest
        self.tensors = tensors
        try:
            network = manifest["network"]
            self.dim = int(network["dim"])
            self._vector, self._rank = network["vector"], network["rank"]
            crowd = network.get("density")
            self._neighbours = int(crowd["neighbours"]) if crowd else 0
            self._factors = np.array(crowd["factors"] if crowd else [], np.float32)
            if crowd and (
                self._neighbours < 1
                or self._factors.shape != (2,)
                or not np.isfinite(self._factors).all()
            ):
                raise ValueError("density needs neighbours and two finite factors")
            # One window through each head finds a missing or misshapen tensor now, not later.
            probe = np.zeros((1, CONTEXT, self.dim), np.float32)
            self.predict(probe)
            self.rank(probe, probe[0])
        except (LookupError, ValueError, TypeError, ArithmeticError) as error:
            raise ArtifactCorrupt(f"the network does not fit its manifest: {error}") from error

    @classmethod
    def load(cls, folder: str | Path) -> LvmNetwork:
        """Load and verify a model folder. Raises ArtifactError subclasses (exit 78)."""
        folder = Path(folder)
        manifest = check_folder(folder)
        return cls(manifest, read_safetensors(folder / _WEIGHTS))

    def predict(self, context: npt.ArrayLike) -> Array:
        """Next vector, ``[B, 5, D] -> [B, D]``, unit norm."""
        x = self._checked(context)
        tokens = self._tokens("vector", x)
        tokens = self._blocks("vector", tokens, self._vector)
        flat = tokens.reshape(len(x), -1)
        skip = self._linear("vector.skip", x.reshape(len(x), -1))
        return unit(skip + self._linear("vector.out", flat))

    def rank(self, context: npt.ArrayLike, candidates: npt.ArrayLike) -> Array:
        """Scores, higher is likelier: ``[B, 5, D]``, ``[N, D] -> [B, N]`` (logits).

        A score depends on the candidates given with it, never on their order. One alone, or two,
        keep the scores of ``rank_alone``.
        """
        score = self.rank_alone(context, candidates)
        return np.asarray(score - self.crowding(candidates), dtype=np.float32)

    def crowding(self, candidates: npt.ArrayLike) -> Array:
        """What density takes off each candidate's score, ``[N, D] -> [N]``, zero on average."""
        c = np.asarray(candidates, dtype=np.float32)
        if not len(self._factors) or len(c) < 3:  # two are as near to each other
            return np.zeros(len(c), np.float32)
        crowd = lvm_linear.density(c, self._neighbours)[:, :2] @ self._factors
        # About their mean: what the candidates share moves none of them.
        return np.asarray(crowd - crowd.mean(), dtype=np.float32)

    def rank_alone(self, context: npt.ArrayLike, candidates: npt.ArrayLike) -> Array:
        """``rank`` without the density: each candidate's score whatever the others are."""
        x = self._checked(context)
        c = np.asarray(candidates, dtype=np.float32)
        if c.ndim != 2 or c.shape[1] != self.dim:
            raise InputError(f"candidates must have shape (N, {self.dim}), not {c.shape}")
        t, batch, count = self.tensors, len(x), len(c)
        heads, rank = int(self._rank["bilinear_heads"]), int(self._rank["bilinear_rank"])
        slots = t["rank.slots"]
        queries = np.broadcast_to(t["rank.queries"], (batch, *t["rank.queries"].shape))
        tokens = np.concatenate([self._tokens("rank", x), queries], axis=1)
        tokens = self._blocks("rank", tokens, self._rank)[:, CONTEXT:]
        query = unit(np.matmul(slots, x) + self._linear("rank.out", tokens))
        summary = tokens.mean(axis=1)
        hidden = _gelu(self._linear("rank.cand_in", c))
        moved = unit(c + self._linear("rank.cand_out", hidden))
        left = self._linear("rank.left", x).reshape(batch, CONTEXT, heads, rank)
        right = self._linear("rank.right", c).reshape(count, heads, rank)
        bilinear = np.matmul(left.transpose(0, 2, 1, 3), right.transpose(1, 2, 0)[None])
        features = np.concatenate(
            [query @ moved.T, x @ c.T, bilinear.reshape(batch, heads * CONTEXT, count)], axis=1
        )
        weights = t["rank.weight"] + self._linear("rank.gate", summary)
        scale = np.exp(t["rank.log_scale"])
        score = scale * np.matmul(weights[:, None], features)[:, 0]
        score = score + self._linear("rank.cand_bias", hidden)[:, 0]
        mixed = np.matmul(t["rank.mix.weight"], features)
        mixed += self._linear("rank.mix_context", summary)[:, :, None]
        mixed += self._linear("rank.mix_candidate", hidden).T[None]
        score = score + np.matmul(t["rank.mix_out"], _gelu(mixed))
        return np.asarray(score, dtype=np.float32)

    def _checked(self, context: npt.ArrayLike) -> Array:
        x = np.asarray(context, dtype=np.float32)
        if x.ndim != 3 or x.shape[1:] != (CONTEXT, self.dim):
            raise InputError(f"context must have shape (B, {CONTEXT}, {self.dim}), not {x.shape}")
        return x

    def _linear(self, name: str, x: Array) -> Array:
        weight, bias = self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias")
        # One product for all windows: NumPy would do one each, and prepare the weights every time.
        y = x.reshape(-1, x.shape[-1]) @ weight.T
        if bias is not None:
            y += bias
        return np.asarray(y.reshape(*x.shape[:-1], len(weight)), dtype=np.float32)

    def _norm(self, name: str, x: Array) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        spread = np.square(centred).mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt(spread + np.float32(1e-5))
        return np.asarray(
            scaled * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"], np.float32
        )

    def _tokens(self, head: str, x: Array) -> Array:
        return self._linear(f"{head}.inp", x) + self.tensors[f"{head}.position"]

    def _blocks(self, head: str, x: Array, shape: dict[str, Any]) -> Array:
        """Pre-norm transformer blocks and a last norm, ``[B, T, H] -> [B, T, H]``."""
        heads = int(shape["heads"])
        batch, length, width = x.shape
        for layer in range(int(shape["layers"])):
            name = f"{head}.blocks.{layer}"
            mixed = self._linear(f"{name}.qkv", self._norm(f"{name}.norm1", x))
            split = mixed.reshape(batch, length, 3, heads, width // heads).transpose(2, 0, 3, 1, 4)
            logits = split[0] @ split[1].swapaxes(-1, -2) / np.float32(np.sqrt(width // heads))
            logits = np.exp(logits - logits.max(axis=-1, keepdims=True))
            attended = (logits / logits.sum(axis=-1, keepdims=True)) @ split[2]
            attended = attended.transpose(0, 2, 1, 3).reshape(batch, length, width)
            x = x + self._linear(f"{name}.proj", attended)
            inner = _gelu(self._linear(f"{name}.fc1", self._norm(f"{name}.norm2", x)))
            x = x + self._linear(f"{name}.fc2", inner)
        return self._norm(f"{head}.norm", x)
