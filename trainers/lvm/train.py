"""Train our two heads. Evaluated every epoch on the device; each head keeps its own best epoch."""

from __future__ import annotations

import contextlib
import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from trainers.lvm import checkpoint
from trainers.lvm.batches import Batch, Corpus, count_batches, epoch_batches
from trainers.lvm.export import export
from trainers.lvm.losses import cosine_loss, rank_losses
from trainers.lvm.measure import Judge, Measured, baselines, fit_linear, fit_scalars
from trainers.lvm.networks import TwoHeads, count_parameters
from trainers.lvm.recipes import Recipe
from trainers.lvm.report import METRICS, report


def build(recipe: Recipe, corpus: Corpus) -> TwoHeads:
    """The network at its starting point: ridge in the vector head, scalars in the rank head."""
    torch.manual_seed(recipe.seed)
    shape = {"dim": corpus.vectors.shape[1], "vector": recipe.vector, "rank": recipe.rank}
    net = TwoHeads(shape, (recipe.vector_dropout, recipe.rank_dropout)).to(corpus.vectors.device)
    scalars = fit_scalars(corpus)
    linear = fit_linear(corpus, recipe.ridge, toward=scalars if recipe.toward_scalars else None)
    with torch.no_grad():
        net.vector.skip.weight.copy_(linear[:-1].T)
        net.vector.skip.bias.copy_(linear[-1])
        # Equal queries would stay equal but for their residuals; a little noise sets them apart.
        net.rank.slots.copy_(scalars + 0.05 * torch.randn_like(net.rank.slots))
    return net


def optimizer_of(net: TwoHeads, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW; decay on matrices only, a small rate on the ridge map, which starts at its optimum."""
    skip = list(net.vector.skip.parameters())
    others = [p for p in net.parameters() if all(p is not s for s in skip)]
    plain = [p for p in others if p.ndim < 2]
    matrices = [p for p in others if p.ndim >= 2]
    groups = [
        {"params": matrices, "peak": recipe.lr, "weight_decay": recipe.weight_decay},
        {"params": plain, "peak": recipe.lr, "weight_decay": 0.0},
        {"params": skip, "peak": recipe.skip_lr, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98))


def rate(progress: float, warmup: float) -> float:
    """Factor of the peak rate: linear warm-up, then half a cosine to zero."""
    if progress < warmup:
        return progress / warmup + 1e-3
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))


def train_step(
    net: TwoHeads,
    optimizer: torch.optim.Optimizer,
    corpus: Corpus,
    batch: Batch,
    recipe: Recipe,
) -> torch.Tensor:
    """One step of both heads; the three losses ``[3]``: vector, everyone, own document."""
    context, bank = corpus.context(batch.targets), corpus.vectors[batch.bank].float()
    on_gpu = corpus.vectors.device.type == "cuda"
    with torch.autocast("cuda", torch.bfloat16) if on_gpu else contextlib.nullcontext():
        vector = net.vector(context)
        scores = net.rank(context, bank)
    vector_loss = cosine_loss(vector, bank[batch.place])
    everyone, own = rank_losses(scores, batch, bank)
    loss = vector_loss * 10 + everyone + recipe.own_weight * own
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    # The heads share nothing, so each has a norm of its own.
    for head in (net.vector, net.rank):
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
    optimizer.step()
    return torch.stack([vector_loss.detach(), everyone.detach(), own.detach()])


def merit(found: dict[str, float], best: dict[str, float], recipe: Recipe) -> float:
    """Mean of the two retrieval ratios over their targets: 1 where both are just met."""
    mrr = found["mrr"] / best["mrr"] / recipe.target_mrr
    return 0.5 * (mrr + found["hit10"] / best["hit10"] / recipe.target_hit)


def train(
    recipe: Recipe,
    corpus: Corpus,
    valid: Corpus,
    out: Path,
    *,
    dev: Corpus | None = None,
    minutes: float | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Run the recipe; writes log.jsonl, metrics.json, last.pt and model/. Returns the metrics.

    ``dev`` chooses the epochs; without it ``valid``, which is always what is reported, does.

    With ``minutes`` the schedule ends by the clock (so the result depends on the machine's
    speed); without it, after ``epochs``, and the same seed gives the same run. Only the latter
    keeps a state to go on from; one of another recipe or other data is a ConfigError.
    """
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    device = corpus.vectors.device
    net = build(recipe, corpus)
    judge = Judge(dev or valid)
    rivals = baselines(fit_scalars(corpus), fit_linear(corpus, recipe.ridge))
    table = {name: judge.vector(predictor) for name, predictor in rivals.items()}
    best = {m: max(found.means()[m] for found in table.values()) for m in METRICS}
    average = checkpoint.Average(net, recipe.ema)
    optimizer = optimizer_of(net, recipe)
    kept: dict[str, Any] = {"rank": {"merit": -1.0}, "vector": {"cosine": -1.0}}
    epoch, spent = 0, 0.0
    header = {
        "recipe": asdict(recipe),
        "training": corpus.identity(),
        "chosen by": (dev or valid).identity(),
    }
    state = checkpoint.load(out, str(device), header) if resume else None
    if state is not None:
        net.load_state_dict(state["net"])
        average.module.load_state_dict(state["average"])
        average.steps = state["average_steps"]
        optimizer.load_state_dict(state["optimizer"])
        kept, epoch, spent = state["kept"], state["epoch"], state["spent"]
    log = (out / "log.jsonl").open("a" if state else "w", encoding="utf-8")
    per_epoch = count_batches(corpus, recipe.batch)
    progress = 0.0
    print(
        f"{len(corpus.targets)} training windows, {len(judge.targets)} to choose by, "
        f"{count_parameters(net)} parameters, {per_epoch} steps an epoch, "
        f"set up in {time.monotonic() - began:.1f} s",
        flush=True,
    )
    began = time.monotonic() - spent
    while epoch < recipe.epochs and progress < 1.0:
        torch.manual_seed(recipe.seed * 100_003 + epoch)
        net.train()
        sums = torch.zeros(3, device=device)
        steps = 0
        for batch in epoch_batches(corpus, recipe.batch, recipe.seed, epoch):
            progress = (epoch + min(1.0, steps / per_epoch)) / recipe.epochs
            if minutes is not None:
                progress = max(progress, (time.monotonic() - began) / (60 * minutes))
            if progress >= 1.0:
                break
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate(progress, recipe.warmup)
            sums += train_step(net, optimizer, corpus, batch, recipe)
            average.update(net)
            steps += 1
        epoch += 1
        model = average.module
        found = judge.score(model.rank, model.vector).means()
        value = merit(found, best, recipe)
        if value > kept["rank"]["merit"]:
            weights = checkpoint.to_cpu(model.rank)
            kept["rank"] = {"merit": value, "epoch": epoch, "weights": weights}
        if found["cosine"] > kept["vector"]["cosine"]:
            weights = checkpoint.to_cpu(model.vector)
            kept["vector"] = {"cosine": found["cosine"], "epoch": epoch, "weights": weights}
        losses = (sums / max(1, steps)).tolist()
        spent = time.monotonic() - began
        row = {
            "epoch": epoch,
            "seconds": round(spent, 1),
            "loss": dict(zip(("vector", "everyone", "own"), losses, strict=True)),
            **found,
            "mrr_ratio": found["mrr"] / best["mrr"],
            "hit10_ratio": found["hit10"] / best["hit10"],
        }
        log.write(json.dumps(row) + "\n")
        log.flush()
        print(
            f"epoch {epoch:3d} {spent:6.1f} s  loss {losses[0]:.4f} {losses[1]:.3f} {losses[2]:.3f}"
            f"  cos {found['cosine']:.4f}  mrr {found['mrr']:.4f} ({row['mrr_ratio']:.3f} x)"
            f"  hit {found['hit10']:.4f} ({row['hit10_ratio']:.3f} x)",
            flush=True,
        )
        if minutes is None:
            checkpoint.save(
                out,
                {
                    "header": header,
                    "net": net.state_dict(),
                    "average": average.module.state_dict(),
                    "average_steps": average.steps,
                    "optimizer": optimizer.state_dict(),
                    "kept": kept,
                    "epoch": epoch,
                    "spent": spent,
                },
            )
    log.close()
    if dev is not None:
        judge = Judge(valid)
        table = {name: judge.vector(predictor) for name, predictor in rivals.items()}
    metrics = _finish(recipe, corpus, judge, table, average.module, kept, out)
    metrics |= {"seconds": round(spent, 1), "valid_windows": len(valid.targets)}
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", "utf-8")
    return metrics


def _finish(
    recipe: Recipe,
    corpus: Corpus,
    judge: Judge,
    table: dict[str, Measured],
    final: TwoHeads,
    kept: dict[str, Any],
    out: Path,
) -> dict[str, Any]:
    """Each head at its best epoch, rounded as it ships: measured, then exported."""
    final.rank.load_state_dict(kept["rank"]["weights"])
    final.vector.load_state_dict(kept["vector"]["weights"])
    with torch.no_grad():  # what is measured is what is shipped: the rounded weights
        for parameter in final.parameters():
            parameter.copy_(parameter.half().float())
    table["ours"] = judge.score(final.rank, final.vector)
    table["ours, vector head alone"] = judge.vector(final.vector)
    metrics = report(table) | {
        "recipe": asdict(recipe),
        "epochs": {head: kept[head]["epoch"] for head in kept},
        "parameters": count_parameters(final),
        "train_windows": len(corpus.targets),
    }
    metrics["bytes"] = export(
        out / "model",
        checkpoint.to_cpu(final),
        final.shape,
        name=recipe.name,
        encoder_sha256=corpus.encoder,
        measured=metrics["table"]["ours"],
    )
    return metrics
