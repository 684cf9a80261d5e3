"""Losses for next-vector models."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.lvm.batches import CONTEXT, Batch


def cosine_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """1 - mean cosine of unit vectors."""
    return 1.0 - (predicted * target).sum(-1).mean()


def rank_losses(
    scores: Tensor, batch: Batch, bank: Tensor, near: float = 0.95
) -> tuple[Tensor, Tensor]:
    """InfoNCE over the whole bank and over the target's own document.

    ``scores`` ``[B, N]`` logits, ``bank`` ``[N, D]`` unit vectors. The five context vectors are no
    candidates (neither are they when the model is used or measured), and a candidate whose cosine
    with the target is over ``near`` is the same utterance again, not a negative.
    """
    scores = scores.float()
    rows = torch.arange(len(scores), device=scores.device)
    targets = bank[batch.place]
    barred = (targets @ bank.T) > near
    offsets = torch.arange(-CONTEXT, 0, device=scores.device)
    barred.scatter_(1, batch.place[:, None] + offsets, True)
    barred[rows, batch.place] = False
    scores = scores.masked_fill(barred, float("-inf"))
    everyone = F.cross_entropy(scores, batch.place)
    own = F.cross_entropy(scores.masked_fill(~batch.same, float("-inf")), batch.place)
    return everyone, own
