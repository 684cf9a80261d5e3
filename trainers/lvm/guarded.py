"""Train a recipe of the earlier line (v3, p1 to p4): stages, tripwires, roll-back, curves.

Resumable after every epoch, and deterministic: an epoch's order and dropout depend only on the
seed and its number.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from brain.errors import ConfigError
from trainers.lvm import checkpoint, losses
from trainers.lvm.batches import Corpus
from trainers.lvm.curves import draw
from trainers.lvm.measure import Judge, baselines, fit_linear, fit_scalars
from trainers.lvm.networks import count_parameters
from trainers.lvm.predictors import Predictor, build
from trainers.lvm.recipes import Guarded
from trainers.lvm.report import report

AHEAD = 3  # k = 1..3 of the future guard and margin; a rollout of H needs H - 1


def future_of(corpus: Corpus, owner: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors after the targets ``[B, 3, D]``, and which exist in the same document ``[B, 3]``."""
    at = targets[:, None] + torch.arange(1, AHEAD + 1, device=targets.device)
    inside = at.clamp(max=len(owner) - 1)
    known = (at < len(owner)) & (owner[inside] == owner[targets][:, None])
    return corpus.vectors[inside].float(), known


def loss_of(
    net: Predictor,
    recipe: Guarded,
    terms: dict[str, float],
    corpus: Corpus,
    owner: Tensor,
    targets: Tensor,
) -> Tensor:
    """The weighted loss of one batch. MSE is the mean over elements, 2 (1 - cos) / D."""
    context, target = corpus.context(targets), corpus.vectors[targets].float()
    last = context[:, -1]
    if recipe.context_dropout:
        kept = torch.rand(context.shape[:2], device=context.device) >= recipe.context_dropout
        context = context * kept[..., None]
    predicted = net(context)
    total = terms["mse"] * F.mse_loss(predicted, target)
    if terms["direction"]:
        guard = losses.direction_guard(
            predicted, target, last, recipe.direction_margin, bool(terms["adaptive"])
        )
        total = total + terms["direction"] * guard
    if terms["future"] or terms["roll"]:
        future, known = future_of(corpus, owner, targets)
        if terms["future"]:
            guard = losses.future_guard(predicted, target, future, known, recipe.future_margin)
            total = total + terms["future"] * guard
        if terms["roll"]:
            steps = int(terms["horizon"])
            rolled = losses.rollout_loss(net, context, predicted, future, known, steps)
            total = total + terms["roll"] * rolled
    return total


@torch.no_grad()
def quick_checks(
    net: Predictor, corpus: Corpus, owner: Tensor, targets: Tensor
) -> dict[str, float]:
    """The cheap parts of 5CAT: future margin, ablations, and how flat a rollout of five is."""
    seen = targets[:: max(1, len(targets) // 4096)]
    context, target = corpus.context(seen), corpus.vectors[seen].float()
    future, known = future_of(corpus, owner, seen)
    predicted = net(context)
    cosine = (predicted * target).sum(-1)
    # Over positions where all three exist, so that both sides mean the same windows.
    whole = known.all(1)
    ahead = (predicted[:, None] * future).sum(-1)[whole]
    found = {"margin_future": float("nan")}
    if bool(whole.any()):
        found["margin_future"] = float(cosine[whole].mean() - ahead.mean(0).max())
    generator = torch.Generator().manual_seed(0)
    for name, order in (("shuffle", torch.randperm(5, generator=generator)), ("reverse", None)):
        moved = context.flip(1) if order is None else context[:, order.to(context.device)]
        found[name] = float(((net(moved) * target).sum(-1) - cosine).mean())
    other = context.roll(len(seen) // 2, 0)
    found["other_document"] = float(((net(other) * target).sum(-1) - cosine).mean())
    window, step, flat = context, predicted, []
    for _ in range(4):
        window = torch.cat([window[:, 1:], step[:, None]], 1)
        following = net(window)
        flat.append(float((following * step).sum(-1).mean()))
        step = following
    return found | {"flatness": sum(flat) / len(flat)}


def train(
    recipe: Guarded, corpus: Corpus, valid: Corpus, out: Path, *, resume: bool = False
) -> dict[str, Any]:
    """Run the recipe. Writes log.jsonl, metrics.json, curves.png, last.pt, model.safetensors.

    Nothing depends on how many epochs will be, so a state with fewer may be gone on from; one of
    another recipe or other data, or with more epochs, is a ConfigError.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    device = corpus.vectors.device
    net = build(
        recipe.architecture,
        corpus.vectors.shape[1],
        dropout=recipe.dropout,
        temporal=recipe.temporal,
        causal=recipe.causal,
        residual=recipe.residual,
        parameters=recipe.parameters,
    ).to(device)
    optimizer = torch.optim.AdamW(net.parameters(), recipe.lr, weight_decay=recipe.weight_decay)
    judge, owner, targets = Judge(valid), corpus.owner, corpus.targets
    rows: list[dict[str, Any]] = []
    overrides: dict[str, float] = {}
    best: dict[str, Any] = {"cosine": -2.0, "margin": -2.0, "epoch": 0, "weights": {}}
    began, epoch = time.monotonic(), 0
    schedule = {key: value for key, value in asdict(recipe).items() if key != "epochs"}
    header = {
        "recipe": schedule,
        "training": corpus.identity(),
        "chosen by": valid.identity(),
    }
    state = checkpoint.load(out, str(device), header) if resume else None
    if state is not None and state["epoch"] > recipe.epochs:
        raise ConfigError(
            f"{out / checkpoint.LAST} has {state['epoch']} epochs, more than the {recipe.epochs} "
            "wanted; delete it to start over, or give another --out"
        )
    if state is not None:
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        rows, overrides, best = state["rows"], state["overrides"], state["best"]
        epoch, began = state["epoch"], began - rows[-1]["seconds"]
    while epoch < recipe.epochs:
        epoch += 1
        terms = recipe.terms(epoch, overrides)
        torch.manual_seed(recipe.seed * 100_003 + epoch)
        order = np.random.default_rng([recipe.seed, epoch]).permutation(len(targets))
        net.train()
        total = torch.zeros((), device=device)
        parts = targets[torch.as_tensor(order, device=device)].split(recipe.batch)
        for part in parts:
            loss = loss_of(net, recipe, terms, corpus, owner, part)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            total += loss.detach()
        net.eval()
        row: dict[str, Any] = {
            "epoch": epoch,
            "loss": float(total) / len(parts),
            **judge.vector(net).means(),
        }
        if epoch % recipe.full_check_every == 0:
            row |= quick_checks(net, valid, judge.owner, judge.targets)
        row |= {"terms": terms, "events": []}
        for wire in recipe.tripwire:
            if wire.epoch == epoch and row[wire.metric] < wire.below:
                overrides = overrides | wire.set
                row["events"].append(f"{wire.metric} under {wire.below}: {wire.set}")
        lost_cosine = best["cosine"] - row["cosine"] > recipe.rollback_cosine
        lost_margin = best["margin"] - row["margin"] > recipe.rollback_margin
        if best["weights"] and (lost_cosine or lost_margin):
            net.load_state_dict(best["weights"])
            for group in optimizer.param_groups:
                group["lr"] *= 0.5
            row["events"].append(f"rolled back to epoch {best['epoch']}, rate halved")
        elif row["cosine"] > best["cosine"]:
            best = {k: row[k] for k in ("cosine", "margin", "epoch")}
            best["weights"] = checkpoint.to_cpu(net)
        row["seconds"] = round(time.monotonic() - began, 1)
        rows.append(row)
        print(
            f"epoch {epoch:3d} {row['seconds']:6.1f} s  loss {row['loss']:.5f}  cos "
            f"{row['cosine']:.4f}  margin {row['margin']:+.4f}  mrr {row['mrr']:.4f}  "
            + "; ".join(row["events"]),
            flush=True,
        )
        lines = "".join(json.dumps(r) + "\n" for r in rows)
        (out / "log.jsonl").write_text(lines, "utf-8")
        draw(rows, out / "curves.png", recipe.name)
        state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "rows": rows}
        state |= {"overrides": overrides, "best": best, "epoch": epoch, "header": header}
        checkpoint.save(out, state)
    if best["weights"]:
        net.load_state_dict(best["weights"])
    net.eval()
    fitted = baselines(fit_scalars(corpus), fit_linear(corpus, 0.03))
    table = {name: judge.vector(predictor) for name, predictor in fitted.items()}
    table["ours"] = judge.vector(net)
    save_file(checkpoint.to_cpu(net), out / "model.safetensors")
    metrics = report(table) | {
        "recipe": asdict(recipe),
        "epochs": {"vector": best["epoch"]},
        "parameters": count_parameters(net),
        "bytes": (out / "model.safetensors").stat().st_size,
        "seconds": rows[-1]["seconds"] if rows else 0.0,
        "history": rows,
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", "utf-8")
    return metrics
