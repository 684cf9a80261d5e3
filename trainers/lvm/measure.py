"""Metrics of the training loop: cosine, MRR in the document, hit@10 in 1,000; baselines.

Ties are pessimistic. Candidates never include the five context vectors. Intervals resample
documents, not windows, because windows of one document are alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainers.lvm.batches import Corpus
from trainers.lvm.networks import unit
from trainers.lvm.store import CONTEXT

POOL = 1000
Scorer = Callable[[Tensor, Tensor], Tensor]
Predictor = Callable[[Tensor], Tensor]


@dataclass
class Measured:
    """Per window: ``cosine`` (nan without a vector), ``rr`` reciprocal rank in the document,
    ``hit`` (rank <= 10 among 1,000), ``margin`` cos(target) - cos(last); ``document`` numbers."""

    cosine: np.ndarray
    margin: np.ndarray
    rr: np.ndarray
    hit: np.ndarray
    document: np.ndarray

    def means(self) -> dict[str, float]:
        """Mean of each metric."""
        return {
            "cosine": float(self.cosine.mean()),
            "margin": float(self.margin.mean()),
            "mrr": float(self.rr.mean()),
            "hit10": float(self.hit.mean()),
        }


class Judge:
    """Measures scorers and predictors on one corpus, always with the same pools."""

    def __init__(self, corpus: Corpus, seed: int = 0, chunk: int = 512) -> None:
        self.corpus, self.chunk = corpus, chunk
        self.targets = corpus.targets
        self.owner = corpus.owner
        self.bank = corpus.vectors.float()
        total = len(self.bank)
        rng = np.random.default_rng(seed)
        count = min(POOL - 1, max(1, total - CONTEXT - 1))
        # More than needed are drawn and the window's own six fall away, so pools stay full.
        spare = min(total, count + 2 * CONTEXT + 2)
        at = self.targets.cpu().numpy()[:, None]
        drawn = np.stack([rng.choice(total, spare, replace=False) for _ in range(len(at))])
        own = (drawn >= at - CONTEXT) & (drawn <= at)
        order = np.argsort(own, axis=1, kind="stable")[:, :count]
        self.pools = torch.as_tensor(np.take_along_axis(drawn, order, 1), device=self.bank.device)

    @torch.no_grad()
    def score(self, scorer: Scorer, predictor: Predictor | None = None) -> Measured:
        """Measure ``scorer(context, bank) -> [B, N]`` and, if given, the vectors too."""
        parts: list[list[Tensor]] = [[], [], [], []]
        for rows in torch.arange(len(self.targets), device=self.bank.device).split(self.chunk):
            targets = self.targets[rows]
            context = self.corpus.context(targets)
            scores = scorer(context, self.bank).float()
            right = scores.gather(1, targets[:, None])
            offsets = torch.arange(-CONTEXT, 1, device=targets.device)
            same = self.owner[targets][:, None] == self.owner[None]
            same.scatter_(1, targets[:, None] + offsets, False)
            rank = 1 + ((scores >= right) & same).sum(1)
            pool_rank = 1 + (scores.gather(1, self.pools[rows]) >= right).sum(1)
            parts[0].append(1.0 / rank)
            parts[1].append((pool_rank <= 10).float())
            if predictor is not None:
                vector = predictor(context)
                near = (vector * self.bank[targets]).sum(-1)
                parts[2].append(near)
                parts[3].append(near - (vector * context[:, -1]).sum(-1))
        rr, hit = (torch.cat(p).cpu().numpy() for p in parts[:2])
        none = np.full(len(rr), np.nan)
        cosine, margin = (torch.cat(p).cpu().numpy() if p else none for p in parts[2:])
        return Measured(cosine, margin, rr, hit, self.owner[self.targets].cpu().numpy())

    def vector(self, predictor: Predictor) -> Measured:
        """Measure a predictor whose own cosine ranks the candidates."""
        return self.score(lambda context, bank: predictor(context) @ bank.T, predictor)


def interval(
    values: np.ndarray, documents: np.ndarray, base: np.ndarray | None = None, draws: int = 1000
) -> tuple[float, float]:
    """95 % cluster-bootstrap interval of the mean, or of the ratio of means to ``base``."""
    _, owner = np.unique(documents, return_inverse=True)
    count = int(owner.max()) + 1
    below = np.ones_like(values) if base is None else base
    sums = np.stack([np.bincount(owner, v, count) for v in (values, below)])
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(count, np.full(count, 1.0 / count), size=draws)
    top, bottom = drawn @ sums[0], drawn @ sums[1]
    low, high = np.percentile(top / np.maximum(bottom, 1e-12), [2.5, 97.5])
    return float(low), float(high)


def fit_linear(
    corpus: Corpus, ridge: float, chunk: int = 65536, toward: Tensor | None = None
) -> Tensor:
    """Ridge from the five vectors and a constant to the next: ``[5 D + 1, D]``, closed form.

    ``ridge`` is relative to the mean diagonal of the Gram matrix. The penalty draws the map to
    zero, or to these weights of the five vectors (``toward`` ``[5]``).
    """
    return ridges(corpus, (ridge,), chunk, toward)[0]


def ridges(
    corpus: Corpus, strengths: Sequence[float], chunk: int = 65536, toward: Tensor | None = None
) -> list[Tensor]:
    """``fit_linear`` for several strengths, in one pass over the corpus."""
    dim = corpus.vectors.shape[1]
    size = CONTEXT * dim + 1
    device = corpus.vectors.device
    gram = torch.zeros(size, size, device=device, dtype=torch.float64)
    cross = torch.zeros(size, dim, device=device, dtype=torch.float64)
    for targets in corpus.targets.split(chunk):
        x = corpus.context(targets).flatten(1)
        x = torch.cat([x, torch.ones(len(x), 1, device=device)], 1)
        gram += (x.T @ x).double()
        cross += (x.T @ corpus.vectors[targets].float()).double()
    origin = torch.zeros_like(cross)
    if toward is not None:
        identity = torch.eye(dim, device=device, dtype=torch.float64)
        origin[:-1] = torch.kron(toward.double()[:, None], identity)
    rest = cross - gram @ origin
    penalty = torch.eye(size, device=device, dtype=torch.float64) * gram.diagonal().mean()
    return [(origin + torch.linalg.solve(gram + penalty * r, rest)).float() for r in strengths]


def linear_vector(linear: Tensor) -> Predictor:
    """The predictor of a linear map ``[5 D + 1, D]``."""
    return lambda c: unit(c.flatten(1) @ linear[:-1] + linear[-1])


def fit_scalars(corpus: Corpus) -> Tensor:
    """Least-squares weights of the five vectors, ``[5]``."""
    device = corpus.vectors.device
    gram = torch.zeros(CONTEXT, CONTEXT, device=device, dtype=torch.float64)
    cross = torch.zeros(CONTEXT, device=device, dtype=torch.float64)
    for targets in corpus.targets.split(65536):
        x = corpus.context(targets)
        gram += torch.einsum("bid,bjd->ij", x, x).double()
        cross += torch.einsum("bid,bd->i", x, corpus.vectors[targets].float()).double()
    return torch.linalg.solve(gram, cross).float()


def baselines(scalars: Tensor, linear: Tensor) -> dict[str, Predictor]:
    """The baselines of the table, each ``[B, 5, D] -> [B, D]`` unit."""
    return {
        "copy-last": lambda c: c[:, -1],
        "mean-5": lambda c: unit(c.mean(1)),
        "scalars": lambda c: unit(torch.einsum("i,bid->bd", scalars, c)),
        "ridge": linear_vector(linear),
    }
