"""Four architectures under one interface: ``[B, 5, D] -> [B, D]``, unit norm.

About 1.5M (AMN), 5.1M (LSTM), 7.1M (GRU) and 17.9M (Transformer) parameters at D = 768; widths
scale with D, or follow from a number of parameters, so that all four can be compared at one size.
Each takes ``temporal`` (a learned encoding of the slot); attention takes ``causal``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brain.errors import ConfigError
from trainers.lvm.networks import CONTEXT, count_parameters, gelu, unit


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

    def __init__(self, dim: int, width: int, dropout: float) -> None:
        super().__init__()
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

    def __init__(
        self, dim: int, width: int, dropout: float, cell: type[nn.LSTM | nn.GRU], layers: int
    ) -> None:
        super().__init__()
        self.rnn = cell(dim, width, layers, batch_first=True, dropout=dropout)
        self.out = nn.Linear(width, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0][:, -1])


class Encoder(nn.Module):
    """Three pre-norm transformer layers, read at the last slot."""

    def __init__(self, dim: int, width: int, dropout: float, causal: bool) -> None:
        super().__init__()
        heads = next(h for h in (12, 8, 6, 4, 2, 1) if width % h == 0)
        layer = nn.TransformerEncoderLayer(
            width, heads, width * 8 // 3, dropout, "gelu", batch_first=True, norm_first=True
        )
        self.inp, self.out = nn.Linear(dim, width), nn.Linear(width, dim)
        self.layers = nn.TransformerEncoder(
            layer, 3, nn.LayerNorm(width), enable_nested_tensor=False
        )
        mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT) if causal else None
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layers(self.inp(x), mask=self.mask)[:, -1])


ARCHITECTURES = ("amn", "lstm", "gru", "transformer")
HEADS = 4  # widths found for a transformer are multiples of it


def build(
    name: str,
    dim: int,
    *,
    dropout: float = 0.1,
    temporal: bool = True,
    causal: bool = False,
    residual: float = 0.0,
    parameters: int = 0,
) -> Predictor:
    """The named architecture, as wide as ``parameters`` allow; 0 means its own width.

    Raises:
        ConfigError: another name, or fewer parameters than the narrowest network has.
    """
    body: Callable[..., nn.Module]
    if name == "amn":
        body, width = partial(Amn, dim, dropout=dropout), dim * 13 // 24
    elif name == "lstm":
        body, width = partial(Recurrent, dim, dropout=dropout, cell=nn.LSTM, layers=2), dim * 2 // 3
    elif name == "gru":
        body, width = partial(Recurrent, dim, dropout=dropout, cell=nn.GRU, layers=4), dim * 2 // 3
    elif name == "transformer":
        body, width = partial(Encoder, dim, dropout=dropout, causal=causal), dim
    else:
        raise ConfigError(f"architecture must be one of {', '.join(ARCHITECTURES)}, not {name!r}")
    if parameters:
        fixed = CONTEXT * dim if temporal else 0
        width = widest(body, parameters - fixed, HEADS if name == "transformer" else 1)
        if not width:
            raise ConfigError(f"{parameters} parameters are too few for the architecture {name!r}")
    return Predictor(body(width=width), dim, temporal, residual)


def widest(body: Callable[..., nn.Module], parameters: int, step: int) -> int:
    """The largest multiple of ``step`` whose network has at most so many parameters; 0: none."""

    def size(width: int) -> int:
        with torch.device("meta"):  # shapes only: no memory, no random numbers
            return count_parameters(body(width=width))

    low, high = 0, 1
    while size(high * step) <= parameters:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle * step) <= parameters else (low, middle)
    return low * step
