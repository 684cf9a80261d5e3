"""Four architectures under one interface: ``[B, 5, D] -> [B, D]``, unit norm.

About 1.5M (AMN), 5.1M (LSTM), 7.1M (GRU) and 17.9M (Transformer) parameters at D = 768; widths
scale with D. Each takes ``temporal`` (a learned encoding of the slot); attention takes ``causal``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brain.errors import ConfigError
from trainers.lvm.networks import CONTEXT, gelu, unit


class Predictor(nn.Module):
    """Adds slot encodings, calls ``body`` and normalises; ``residual`` adds it to the last vector.

    With ``residual`` alpha the output is ``unit(last + alpha * body)`` (recipe P2).
    """

    def __init__(self, body: nn.Module, dim: int, temporal: bool, residual: float) -> None:
        super().__init__()
        self.body, self.residual = body, residual
        self.position = nn.Parameter(torch.zeros(CONTEXT, dim)) if temporal else None

    def forward(self, context: Tensor) -> Tensor:
        x = context if self.position is None else context + self.position
        y = self.body(x)
        return unit(context[:, -1] + self.residual * y if self.residual else y)


class Amn(nn.Module):
    """Attention-mixing network: tanh attention over the slots, then a residual MLP."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        width = dim * 13 // 24
        self.inp, self.out = nn.Linear(dim, width), nn.Linear(width, dim)
        self.key, self.weigh = nn.Linear(width, width), nn.Linear(width, 1)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        h = self.inp(x)
        weights = self.weigh(torch.tanh(self.key(h))).softmax(1)
        mixed = (weights * h).sum(1)
        inner = F.dropout(gelu(self.fc1(self.norm(mixed))), self.dropout, self.training)
        return self.out(mixed + self.fc2(inner))


class Recurrent(nn.Module):
    """LSTM (two layers) or GRU (four), read at the last slot."""

    def __init__(self, cell: type[nn.RNNBase], layers: int, dim: int, dropout: float) -> None:
        super().__init__()
        width = dim * 2 // 3
        self.rnn = cell(dim, width, layers, batch_first=True, dropout=dropout)
        self.out = nn.Linear(width, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0][:, -1])


class Encoder(nn.Module):
    """Three pre-norm transformer layers as wide as the vectors, read at the last slot."""

    def __init__(self, dim: int, dropout: float, causal: bool) -> None:
        super().__init__()
        heads = next(h for h in (12, 8, 6, 4, 2, 1) if dim % h == 0)
        layer = nn.TransformerEncoderLayer(
            dim, heads, dim * 8 // 3, dropout, "gelu", batch_first=True, norm_first=True
        )
        self.inp, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.layers = nn.TransformerEncoder(layer, 3, nn.LayerNorm(dim), enable_nested_tensor=False)
        mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT) if causal else None
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layers(self.inp(x), mask=self.mask)[:, -1])


ARCHITECTURES = ("amn", "lstm", "gru", "transformer")


def build(
    name: str,
    dim: int,
    *,
    dropout: float = 0.1,
    temporal: bool = True,
    causal: bool = False,
    residual: float = 0.0,
) -> Predictor:
    """The named architecture. Raises ConfigError for any other name."""
    body: nn.Module
    if name == "amn":
        body = Amn(dim, dropout)
    elif name == "lstm":
        body = Recurrent(nn.LSTM, 2, dim, dropout)
    elif name == "gru":
        body = Recurrent(nn.GRU, 4, dim, dropout)
    elif name == "transformer":
        body = Encoder(dim, dropout, causal)
    else:
        raise ConfigError(f"architecture must be one of {', '.join(ARCHITECTURES)}, not {name!r}")
    return Predictor(body, dim, temporal, residual)
