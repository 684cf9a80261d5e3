"""Networks in torch: our two heads, and what the numpy runtime needs to be the same function.

Shapes: context ``[B, 5, D]`` of unit vectors, candidates ``[N, D]``. The numpy twin is
``sidecars.lvm_network``; parameter names are shared with it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONTEXT = 5


def gelu(x: Tensor) -> Tensor:
    """The tanh form: numpy has no erf."""
    return F.gelu(x, approximate="tanh")


def unit(x: Tensor) -> Tensor:
    """Rows at unit length, in float32 whatever the autocast type."""
    return F.normalize(x.float(), dim=-1, eps=1e-6)


class Block(nn.Module):
    """Pre-norm transformer block, ``[B, T, H] -> [B, T, H]``."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v)
        attended = attended.transpose(1, 2).reshape(batch, length, width)
        x = x + F.dropout(self.proj(attended), self.dropout, self.training)
        inner = F.dropout(gelu(self.fc1(self.norm2(x))), self.dropout, self.training)
        return x + F.dropout(self.fc2(inner), self.dropout, self.training)


class Trunk(nn.Module):
    """What both heads share in form (not in weights): input map, slot positions, blocks."""

    def __init__(
        self, dim: int, hidden: int, layers: int, heads: int, inner: int, dropout: float
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.inp = nn.Linear(dim, hidden)
        self.position = nn.Parameter(torch.randn(CONTEXT, hidden) * 0.02)
        self.blocks = nn.ModuleList(Block(hidden, heads, inner, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden)

    def tokens(self, context: Tensor) -> Tensor:
        """Slot tokens, ``[B, 5, D] -> [B, 5, H]``; unit vectors have tiny entries, so dropout."""
        return self.inp(F.dropout(context, self.dropout / 2, self.training)) + self.position

    def run(self, tokens: Tensor) -> Tensor:
        """Blocks and the last norm."""
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)


class VectorHead(Trunk):
    """Linear skip of the five vectors plus a correction, ``[B, 5, D] -> [B, D]`` unit."""

    def __init__(self, dim: int, hidden: int, layers: int, heads: int, ff: int, dropout: float):
        super().__init__(dim, hidden, layers, heads, ff, dropout)
        self.skip = nn.Linear(CONTEXT * dim, dim)
        self.out = nn.Linear(CONTEXT * hidden, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, context: Tensor) -> Tensor:
        tokens = self.run(self.tokens(context)).flatten(1)
        tokens = F.dropout(tokens, self.dropout, self.training)
        return unit(self.skip(context.flatten(1)) + self.out(tokens))


class RankHead(Trunk):
    """Joint score of context and candidate from similarities, ``-> [B, N]`` logits.

    Features of a pair: K learned queries against the moved candidate, five raw similarities, and
    5 x M low-rank bilinear ones. Score = scale (w + gate(context)) . features + bias(candidate)
    + MLP(features, context, candidate). It starts as the scalar baseline: w is 1/K on the queries,
    whose residuals start small, and all else starts at zero.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        layers: int,
        heads: int,
        ff: int,
        dropout: float,
        queries: int = 8,
        candidate_hidden: int = 512,
        bilinear_heads: int = 4,
        bilinear_rank: int = 64,
        mix: int = 32,
        temperature: float = 0.05,
    ) -> None:
        super().__init__(dim, hidden, layers, heads, ff, dropout)
        self.bilinear = (bilinear_heads, bilinear_rank)
        count = queries + CONTEXT + CONTEXT * bilinear_heads
        self.slots = nn.Parameter(torch.full((queries, CONTEXT), 1.0 / CONTEXT))
        self.queries = nn.Parameter(torch.randn(queries, hidden) * 0.5)
        self.out = nn.Linear(hidden, dim)
        self.cand_in = nn.Linear(dim, candidate_hidden)
        self.cand_out = nn.Linear(candidate_hidden, dim)
        self.left = nn.Linear(dim, bilinear_heads * bilinear_rank, bias=False)
        self.right = nn.Linear(dim, bilinear_heads * bilinear_rank, bias=False)
        weight = torch.zeros(count)
        weight[:queries] = 1.0 / queries
        self.weight = nn.Parameter(weight)
        self.log_scale = nn.Parameter(torch.tensor(1.0 / temperature).log())
        self.gate = nn.Linear(hidden, count)
        self.cand_bias = nn.Linear(candidate_hidden, 1)
        self.mix = nn.Linear(count, mix, bias=False)
        self.mix_context = nn.Linear(hidden, mix)
        self.mix_candidate = nn.Linear(candidate_hidden, mix, bias=False)
        self.mix_out = nn.Parameter(torch.zeros(mix))
        for layer in (self.cand_out, self.gate, self.cand_bias):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.out.weight, std=0.02 / hidden**0.5)
        nn.init.zeros_(self.out.bias)
        nn.init.orthogonal_(self.left.weight)
        with torch.no_grad():
            self.right.weight.copy_(self.left.weight)

    def forward(self, context: Tensor, candidates: Tensor) -> Tensor:
        batch, count = len(context), len(candidates)
        heads, rank = self.bilinear
        queries = self.queries.expand(batch, -1, -1)
        tokens = self.run(torch.cat([self.tokens(context), queries.to(context.dtype)], 1))
        tokens = tokens[:, CONTEXT:]
        query = unit(self.slots @ context.float() + self.out(tokens))
        summary = F.dropout(tokens.mean(1), self.dropout, self.training)
        hidden = F.dropout(gelu(self.cand_in(candidates)), self.dropout, self.training)
        moved = unit(candidates + self.cand_out(hidden))
        # One product per head over all windows: broadcasting would copy the bank for each window.
        left = self.left(context).view(batch * CONTEXT, heads, rank).transpose(0, 1)
        right = self.right(candidates).view(count, heads, rank).permute(1, 2, 0)
        bilinear = (left @ right).view(heads, batch, CONTEXT, count)
        features = torch.cat([query @ moved.T, context @ candidates.T, *bilinear], 1)
        weights = self.weight + self.gate(summary)
        score = self.log_scale.exp() * (weights[:, None] @ features)[:, 0].float()
        score = score + self.cand_bias(hidden)[:, 0].float()
        mixed = self.mix.weight @ features
        mixed = mixed + self.mix_context(summary)[:, :, None] + self.mix_candidate(hidden).T
        return score + (self.mix_out @ gelu(mixed)).float()


class TwoHeads(nn.Module):
    """Our network: ``vector`` and ``rank`` heads with separate weights."""

    def __init__(self, shape: dict[str, Any], dropout: tuple[float, float] = (0.0, 0.0)) -> None:
        super().__init__()
        self.shape = shape
        self.vector = VectorHead(shape["dim"], **shape["vector"], dropout=dropout[0])
        self.rank = RankHead(shape["dim"], **shape["rank"], dropout=dropout[1])


def count_parameters(module: nn.Module) -> int:
    """Trainable scalars."""
    return sum(p.numel() for p in module.parameters())
