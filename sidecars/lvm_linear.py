"""A small next-vector network for articles, in numpy: few parameters, none of them deep.

Within an article the last sentence is hard to beat and large networks overfit at once, so:

- *vector head*: the five vectors weighted by slot and by group of principal axes; the weights are
  linear in the context's own similarities; plus a constant along the mean direction;
- *rank head*: a conditional logit over similarities of context and candidate (slots, best, mean,
  squares) and two properties of the candidate among the candidates: how near its
  neighbours are, and how near all are. A sentence that is near everything is near the last one
  too; taking that off is known as local scaling (CSLS, Conneau et al. 2018).

A score depends on the candidates given with it, never on their order. ``trainers.lvm.linear`` fits
it with the functions below, so that what is trained is what runs.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from brain.errors import ArtifactCorrupt, InputError

Array = npt.NDArray[np.float32]
CONTEXT = 5
ARCHITECTURE = "linear-1"
#: Similarities of the candidates are taken with at most so many of them.
REFERENCES = 1000
_PAIRS = np.triu_indices(CONTEXT, 1)
GATES = 1 + len(_PAIRS[0])
USUAL = np.float32(0.4)  # about the mean similarity of two sentences of a window


def unit(x: Array) -> Array:
    """Rows at unit length; a zero row stays zero."""
    norm = np.sqrt(np.square(x).sum(axis=-1, keepdims=True, dtype=np.float32))
    return np.asarray(x / np.maximum(norm, 1e-6), dtype=np.float32)


def spans(groups: list[int]) -> list[slice]:
    """Axes of each group, from the edges in the manifest."""
    return [slice(a, b) for a, b in pairwise(groups)]


def gates(turned: Array) -> Array:
    """What the slot weights depend on, ``[B, 5, D] -> [B, 11]``: one, and ten similarities."""
    inner = np.einsum("bid,bjd->bij", turned, turned)
    ones = np.ones((len(turned), 1), np.float32)
    return np.concatenate([ones, inner[:, _PAIRS[0], _PAIRS[1]] - USUAL], axis=1)


def references(candidates: Array) -> npt.NDArray[np.intp]:
    """Which of the candidates ``[N, D]`` all are compared with, rising: all, or where they are many
    some that are evenly spread along the first axis, whatever order they come in."""
    count = len(candidates)
    if count <= REFERENCES:
        return np.arange(count)
    along = np.lexsort((candidates[:, 1], candidates[:, 0]))
    return np.sort(along[np.linspace(0, count - 1, REFERENCES).astype(int)])


def density(candidates: Array, neighbours: int) -> Array:
    """Of each candidate among the others ``[N, D] -> [N, 3]``: mean cosine of its nearest, mean
    and standard deviation of all. Zeros where there is no other."""
    count = len(candidates)
    chosen = references(candidates)
    out = np.zeros((count, 3), np.float32)
    for at in range(0, count, REFERENCES):
        rows = np.arange(at, min(at + REFERENCES, count))
        near = candidates[rows] @ candidates[chosen].T
        own = rows[:, None] == chosen[None]
        others = len(chosen) - own.sum(axis=1)
        known = np.where(own, 0.0, near)
        share = np.maximum(others, 1)
        mean = known.sum(axis=1) / share
        spread = np.square(known).sum(axis=1) / share - np.square(mean)
        most = min(neighbours, len(chosen) - 1)
        if most > 0:
            lowered = np.where(own, -2.0, near)
            best = np.partition(lowered, len(chosen) - most, axis=1)[:, -most:]
            out[rows, 0] = best.mean(axis=1)
        out[rows, 1], out[rows, 2] = mean, np.sqrt(np.maximum(spread, 0.0))
    return out


def rank_features(context: Array, candidates: Array, neighbours: int) -> Array:
    """Unit ``[B, 5, D]`` and ``[N, D] -> [B, N, 19]``: similarities with the five slots, the best
    of them, that with their mean, the squares of these seven, and the candidate's ``density``."""
    batch = len(context)
    slots = context @ candidates.T
    mean = unit(context.mean(axis=1)) @ candidates.T
    seven = np.concatenate([slots, slots.max(axis=1, keepdims=True), mean[:, None]], axis=1)
    alone = density(candidates, neighbours)
    alone = np.concatenate([alone, np.square(alone[:, :2])], axis=1).T
    every = [seven, np.square(seven), np.tile(alone, (batch, 1, 1))]
    return np.concatenate(every, axis=1).transpose(0, 2, 1)


def vector_parts(turned: Array, mean: Array, groups: list[int]) -> Array:
    """What the vector head adds up, ``[B, 5 G + 1, D]``: each slot's share of each group, slots
    fastest, and the mean direction."""
    batch, _, dim = turned.shape
    parts = np.zeros((batch, CONTEXT * (len(groups) - 1) + 1, dim), np.float32)
    for number, span in enumerate(spans(groups)):
        rows = slice(number * CONTEXT, (number + 1) * CONTEXT)
        parts[:, rows, span] = turned[:, :, span]
    parts[:, -1] = mean
    return parts


class LinearNetwork:
    """The two heads with their weights. ``dim`` is D; ``manifest`` is the folder's.

    Tensors: ``basis`` [D, D] (columns are axes), ``mean`` [D] (turned), ``vector.weights``
    [5 G, 11], ``vector.constant`` [1], ``rank.weights`` [F].
    """

    def __init__(self, manifest: dict[str, Any], tensors: dict[str, Array]) -> None:
        self.manifest, self.tensors = manifest, tensors
        try:
            network = manifest["network"]
            self.dim = int(network["dim"])
            self._groups = [int(edge) for edge in network["groups"]]
            self._neighbours = int(network["neighbours"])
            if self._groups[0] != 0 or self._groups[-1] != self.dim:
                raise ValueError("the groups do not cover the axes")
            # One window through each head finds a missing or misshapen tensor now, not later.
            probe = np.zeros((1, CONTEXT, self.dim), np.float32)
            self.predict(probe)
            self.rank(probe, probe[0])
        except (LookupError, ValueError, TypeError, ArithmeticError) as error:
            raise ArtifactCorrupt(f"the network does not fit its manifest: {error}") from error

    def predict(self, context: npt.ArrayLike) -> Array:
        """Next vector, ``[B, 5, D] -> [B, D]``, unit norm."""
        turned = self._checked(context) @ self.tensors["basis"]
        weights = gates(turned) @ self.tensors["vector.weights"].T
        sums = np.tile(self.tensors["vector.constant"] * self.tensors["mean"], (len(turned), 1))
        for number, span in enumerate(spans(self._groups)):
            share = weights[:, number * CONTEXT : (number + 1) * CONTEXT]
            sums[:, span] += np.einsum("bs,bsd->bd", share, turned[:, :, span])
        return unit(sums @ self.tensors["basis"].T)

    def rank(self, context: npt.ArrayLike, candidates: npt.ArrayLike) -> Array:
        """Scores, higher is likelier: ``[B, 5, D]``, ``[N, D] -> [B, N]``, among the N given."""
        windows, given = self._checked(context), np.asarray(candidates, dtype=np.float32)
        if given.ndim != 2 or given.shape[1] != self.dim:
            raise InputError(f"candidates must have shape (N, {self.dim}), not {given.shape}")
        features = rank_features(windows, given, self._neighbours)
        return np.asarray(features @ self.tensors["rank.weights"], dtype=np.float32)

    def _checked(self, context: npt.ArrayLike) -> Array:
        x = np.asarray(context, dtype=np.float32)
        if x.ndim != 3 or x.shape[1:] != (CONTEXT, self.dim):
            raise InputError(f"context must have shape (B, {CONTEXT}, {self.dim}), not {x.shape}")
        return x
