"""MiniLM with one set of linear heads: three axes, arousal, tags and published emotions.

Input is one message, with its context as the second segment; only the message's own tokens are
pooled, so the context informs but is not scored (design: affect heads after Mohammad 2018's
separate dimensions; encoder Wang et al. 2020).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from trainers.affect.head.arrays import AXES, TAGS, Prepared
from trainers.affect.head.runs import not_finite
from trainers.encoder.minilm import HIDDEN, MiniLM, load_minilm, pool

# Sources whose scale differs from the labelled pool's get an affine map of their own on each axis.
SCALED_SOURCES = ("emobank", "intimacy", "weak")


@dataclass(frozen=True)
class Predicted:
    """What the network says of B messages. ``axes`` [B, 3] in (−1, 1); the rest are logits but
    for ``arousal`` [B] and ``spread`` [B] (expected absolute error, ≥ 0)."""

    axes: Tensor
    arousal: Tensor
    spread: Tensor
    tags: Tensor
    emotions: Tensor
    film: Tensor
    intensity: Tensor
    embedding: Tensor


class Heads(nn.Module):
    """All heads over one vector a message, [B, width]; ``emotions``, ``film`` and ``intensity`` are
    the label counts of GoEmotions, XED and SemEval."""

    def __init__(
        self,
        width: int = HIDDEN,
        *,
        dropout: float = 0.1,
        emotions: int = 28,
        film: int = 9,
        intensity: int = 5,
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.axes = nn.Sequential(nn.Linear(width, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, len(AXES)))
        self.arousal = nn.Linear(width, 1)
        self.spread = nn.Linear(width, 1)
        self.tags = nn.Linear(width, len(TAGS))
        self.emotions = nn.Linear(width, emotions)
        self.film = nn.Linear(width, film)
        self.intensity = nn.Linear(width, intensity)
        self.scale = nn.Parameter(torch.ones(len(SCALED_SOURCES), 3))
        self.shift = nn.Parameter(torch.zeros(len(SCALED_SOURCES), 3))

    def read(self, vector: Tensor) -> Predicted:
        """What the heads say of vectors [B, width]."""
        x = self.dropout(vector)
        return Predicted(
            axes=torch.tanh(self.axes(x)),
            arousal=torch.tanh(self.arousal(x))[:, 0],
            spread=F.softplus(self.spread(vector))[:, 0],
            tags=self.tags(x),
            emotions=self.emotions(x),
            film=self.film(x),
            intensity=self.intensity(x),
            embedding=vector,
        )


class AffectNet(Heads):
    """The encoder and its heads; the counts are those of ``Heads``."""

    def __init__(
        self, body: MiniLM, *, emotions: int = 28, film: int = 9, intensity: int = 5
    ) -> None:
        super().__init__(emotions=emotions, film=film, intensity=intensity)
        self.body = body

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
    ) -> Predicted:
        """int64 [B, T] each."""
        return self.read(self.pooled(input_ids, attention_mask, token_type_ids))

    def pooled(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """The encoder's vector of each message, [B, 384]."""
        hidden = self.body(input_ids, attention_mask, token_type_ids)
        return pool(hidden, attention_mask, token_type_ids)


def rebuild(path: Path, data: Prepared) -> AffectNet:
    """The network of a run's head, on the CPU in float32.

    Raises:
        OSError: there is no such file.
        ValueError: it holds no weights of a head for this set, or some that are not finite.
    """
    widths = {k: getattr(data, k).shape[1] for k in ("emotions", "film", "intensity")}
    net = AffectNet(load_minilm(), **widths)
    try:
        weights = load_file(path)
        net.load_state_dict({name: value.float() for name, value in weights.items()})
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({error})") from error
    except RuntimeError as error:
        # PyTorch lists every name that is missing, unknown or of another shape, a line a kind.
        said = " ".join(str(error).partition("\n")[2].split())[:120]
        raise ValueError(f"{path}: not the weights of a head for this set ({said}…)") from error
    if name := not_finite(weights):
        raise ValueError(f"{path}: {name} is not finite")
    return net.eval()


class Served(nn.Module):
    """What is exported: the outputs that the sidecar reads, as probabilities."""

    outputs = ("axes", "spread", "tags", "emotions", "embedding", "arousal")

    def __init__(self, net: AffectNet) -> None:
        super().__init__()
        self.net = net

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
    ) -> tuple[Tensor, ...]:
        return self.of(self.net.pooled(input_ids, attention_mask, token_type_ids))

    def of(self, vector: Tensor) -> tuple[Tensor, ...]:
        """The outputs for vectors [B, 384] of the encoder."""
        p = self.net.read(vector)
        unit = vector / vector.norm(dim=1, keepdim=True).clamp(min=1e-12)
        return p.axes, p.spread, p.tags.sigmoid(), p.emotions.sigmoid(), unit, p.arousal
