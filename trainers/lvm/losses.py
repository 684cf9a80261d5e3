"""Losses for next-vector models."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.lvm.batches import Batch
from trainers.lvm.store import CONTEXT


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


def direction_guard(
    predicted: Tensor, target: Tensor, last: Tensor, margin: float, adaptive: bool
) -> Tensor:
    """Penalty where the prediction is nearer the last vector than the target, less a margin.

    The reference is ctx[-1], the vector that the margin itself is measured against. ``adaptive``
    weights it by ``1 + mean sigmoid((cos(last, target) - .60) / .05)`` of the batch.
    """
    gap = margin + (predicted * last).sum(-1) - (predicted * target).sum(-1)
    loss = F.relu(gap).mean()
    if adaptive:
        nearness = (last * target).sum(-1)
        loss = loss * (1 + torch.sigmoid((nearness - 0.60) / 0.05).mean())
    return loss


def future_guard(
    predicted: Tensor, target: Tensor, future: Tensor, known: Tensor, margin: float
) -> Tensor:
    """Penalty where the prediction is nearer one of ``future`` ``[B, K, D]`` than the target.

    ``known`` bool ``[B, K]`` is False where the document ends before.
    """
    cosines = (predicted[:, None] * future).sum(-1).masked_fill(~known, -1.0)
    gap = margin + cosines.max(1).values - (predicted * target).sum(-1)
    return F.relu(gap).mean()


def rollout_loss(
    predictor: nn.Module, context: Tensor, first: Tensor, future: Tensor, known: Tensor, steps: int
) -> Tensor:
    """Feed predictions back for ``steps`` in all, against the true future; gradients flow through.

    ``first`` ``[B, D]`` is the one-step prediction; ``future`` ``[B, K, D]`` holds the vectors
    after the target, so step h (h = 1 is the target's) meets ``future[:, h - 2]``. Adds
    ``10 relu(cos(y_h, y_h+1) - .95)`` against a flat trajectory.
    """
    window, last = context, first
    total = first.new_zeros(())
    for step in range(min(steps - 1, future.shape[1])):
        window = torch.cat([window[:, 1:], last[:, None]], 1)
        following = predictor(window)
        mask = known[:, step].float()
        count = mask.sum().clamp(min=1)
        wrong = 1 - (following * future[:, step]).sum(-1)
        flat = 10 * F.relu((following * last).sum(-1) - 0.95)
        total = total + ((wrong + flat) * mask).sum() / count
        last = following
    return total / max(1, steps - 1)
