"""Losses of the affect head; every one masks what nobody measured (NaN)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from trainers.affect.head.arrays import SOURCES, TAGS
from trainers.affect.head.network import SCALED_SOURCES, Heads, Predicted

HUBER_DELTA = 0.25
# safety_edge counts more when it is missed than when it is seen wrongly: recall first.
TAG_POSITIVE = {"safety_edge": 3.0}


def masked_mean(values: Tensor, mask: Tensor, weight: Tensor | None = None) -> Tensor:
    """Weighted mean of ``values`` where ``mask``; 0 when nothing is measured."""
    w = mask.to(values.dtype) if weight is None else mask * weight
    return (torch.where(mask, values, torch.zeros_like(values)) * w).sum() / w.sum().clamp(min=1e-6)


def on_source_scale(net: Heads, axes: Tensor, source: Tensor, weak: Tensor) -> Tensor:
    """``axes`` [B, 3] mapped to each row's own scale; the labelled pool's is the model's."""
    codes = torch.full_like(source, -1)
    for i, name in enumerate(SCALED_SOURCES):
        chosen = weak if name == "weak" else source == SOURCES.index(name)
        codes = torch.where(chosen, torch.full_like(codes, i), codes)
    row = codes.clamp(min=0)
    mapped = axes * net.scale[row] + net.shift[row]
    return torch.where((codes >= 0)[:, None], mapped, axes)


def supervised(net: Heads, p: Predicted, t: dict[str, Tensor]) -> Tensor:
    """Huber on axes and arousal, cross-entropy on tags and emotions, over one mixed batch."""
    measured = ~t["axes"].isnan()
    mapped = on_source_scale(net, p.axes, t["source"], t["weak"])
    gap = F.smooth_l1_loss(mapped, t["axes"].nan_to_num(), beta=HUBER_DELTA, reduction="none")
    loss = 4.0 * masked_mean(gap, measured, t["shares"] * t["weight"][:, None])
    emobank = (t["source"] == SOURCES.index("emobank")) & measured[:, 2]
    gap = F.smooth_l1_loss(
        p.arousal, t["axes"][:, 2].nan_to_num(), beta=HUBER_DELTA, reduction="none"
    )
    loss = loss + 2.0 * masked_mean(gap, emobank)
    positive = torch.tensor([TAG_POSITIVE.get(tag, 1.0) for tag in TAGS], device=p.tags.device)
    pairs = (("tags", p.tags, positive, 0.5), ("emotions", p.emotions, None, 6.0),
             ("film", p.film, None, 1.0), ("intensity", p.intensity, None, 1.0))  # fmt: skip
    for name, logits, weight, share in pairs:
        known = ~t[name].isnan()
        gap = F.binary_cross_entropy_with_logits(
            logits, t[name].nan_to_num(), reduction="none", pos_weight=weight
        )
        loss = loss + share * masked_mean(gap, known)
    return loss


def decorrelation(axes: Tensor) -> Tensor:
    """Sum of squared correlations between the predicted axes [B, 3] over a balanced batch."""
    centred = axes - axes.mean(0)
    # A collapsed axis would divide by nothing: the deviation has a floor.
    z = centred / centred.std(0, unbiased=False).clamp(min=1e-2)
    r = z.T @ z / len(axes)
    return r[0, 1] ** 2 + r[0, 2] ** 2 + r[1, 2] ** 2


def contrast(axes: Tensor, wanted: Tensor, family: Tensor) -> Tensor:
    """Huber on what sets the messages of a family apart: axes [B, 3] and their labels, each less
    its mean over the rows of the batch that share ``family`` [B]. Rows without kin say nothing.
    A contrast as in the analysis of variance; it has nothing to do with contrastive learning.

    A family's messages are edits of each other; what they share in error cancels, so that the loss
    is about the edit: the axis that moved, and the others, that did not.
    """
    _, place, size = torch.unique(family, return_inverse=True, return_counts=True)
    kin = size[place] > 1
    if not bool(kin.any()):
        return axes.sum() * 0.0
    gap = (axes - wanted.to(axes.dtype))[kin]
    place = place[kin]
    mean = torch.zeros(len(size), axes.shape[1], dtype=gap.dtype, device=gap.device)
    mean.index_add_(0, place, gap)
    gap = gap - mean[place] / size[place][:, None]
    return F.smooth_l1_loss(gap, torch.zeros_like(gap), beta=HUBER_DELTA)


def imitate(p: Predicted, teacher: dict[str, Tensor], weight: Tensor | None = None) -> Tensor:
    """Distance to the mean of the teachers (Hinton et al. 2015), on any text. ``weight`` [B] is how
    much a row's axes and tags count; 1 where it is not given."""
    gap = (p.axes - teacher["axes"]).square()
    loss = 8.0 * (gap if weight is None else gap * weight[:, None]).mean()
    loss = loss + 2.0 * F.mse_loss(p.arousal, teacher["arousal"])
    each = None if weight is None else weight[:, None].expand_as(p.tags)
    loss = loss + 0.5 * F.binary_cross_entropy_with_logits(p.tags, teacher["tags"], weight=each)
    for name, share in (("emotions", 6.0), ("film", 1.0), ("intensity", 1.0)):
        logits = getattr(p, name)
        if not logits.shape[1]:  # a set without that source: the mean of nothing is not a number
            continue
        loss = loss + share * F.binary_cross_entropy_with_logits(logits, teacher[name])
    return loss
