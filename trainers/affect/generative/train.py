"""``limbic train affect-generative``: a LoRA on the chat model that writes affect as JSON.

    limbic train affect-generative --set data/affect --out runs/generative

The set is what ``limbic data build`` made; gold rows are refused. The loss is cross-entropy on what
the model chooses itself: the digits of the scores, the tags and the reasoning, each with a weight.
``RUN`` gets ``recipe.json``, ``log.jsonl``, ``curve.png``, ``adapter/`` (peft's format) and
``base/`` (the unpacked chat model); a stopped run goes on from its last checkpoint when the command
is repeated.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from brain.errors import LimbicError
from sidecars.hashing import hash_file
from trainers.affect.errors import DataConfigError, DataError
from trainers.affect.generative import examples, model
from trainers.affect.generative.examples import REASON, SCORE, TAG, Example, Row
from trainers.affect.head.runs import device_of

CHECKPOINT = "last.ckpt"
ADAPTER, BASE, RECIPE = "adapter", "base", "recipe.json"


@dataclass(frozen=True)
class Recipe:
    """One run. ``layers`` counts from the top (0: all); ``*_share`` weigh the parts of an answer in
    the loss; rows above ``max_tokens`` are left out, since a batch is as long as its longest.
    """

    seed: int = 0
    steps: int = 160
    batch: int = 8
    rank: int = 8
    alpha: float = 16.0
    layers: int = 10
    dropout: float = 0.0
    learning_rate: float = 2e-3
    warmup: float = 0.05
    weight_decay: float = 0.0
    score_share: float = 1.0
    tag_share: float = 0.5
    reason_share: float = 0.3
    max_tokens: int = 112
    window: int = 16
    checkpoint_steps: int = 20

    def __post_init__(self) -> None:
        low = {"steps": 1, "batch": 1, "rank": 1, "window": 1, "checkpoint_steps": 1}
        wrong = [f"--{k.replace('_', '-')} must be at least {v} (got {getattr(self, k)})"
                 for k, v in low.items() if getattr(self, k) < v]  # fmt: skip
        if not self.learning_rate > 0:
            wrong.append(f"--learning-rate must be above 0 (got {self.learning_rate})")
        if wrong:
            raise DataConfigError("; ".join(wrong))


class Sampler:
    """Endless batches of rows by seed and step alone: a resumed run sees what the first would have.

    An epoch is shuffled; within a window of batches rows of like length stand together, so that
    little is padding.
    """

    def __init__(self, lengths: Sequence[int], recipe: Recipe) -> None:
        self._lengths = np.asarray(lengths)
        self._recipe = recipe
        self._per_epoch = max(1, len(lengths) // recipe.batch)
        self._epoch, self._batches = -1, np.empty((0, recipe.batch), np.int64)

    def rows(self, step: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Indices of one step's rows."""
        epoch, place = divmod(step, self._per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._shuffle(epoch)
        return self._batches[place % len(self._batches)]

    def _shuffle(self, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        rng = np.random.default_rng((self._recipe.seed, epoch))
        batch, order = self._recipe.batch, rng.permutation(len(self._lengths))
        if len(order) < batch:
            order = np.resize(order, batch)
        order = order[: len(order) // batch * batch]
        step, found = batch * self._recipe.window, []
        for start in range(0, len(order), step):
            part = order[start : start + step]
            part = part[np.argsort(self._lengths[part], kind="stable")].reshape(-1, batch)
            found.append(part[rng.permutation(len(part))])
        return np.concatenate(found)


def collate(batch: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """(ids, mask, role) int64 [B, T], padded at the end."""
    shape = (len(batch), max(len(one.ids) for one in batch))
    ids, mask, role = (torch.zeros(shape, dtype=torch.int64) for _ in range(3))
    for i, one in enumerate(batch):
        count = len(one.ids)
        ids[i, :count] = torch.as_tensor(one.ids)
        role[i, :count] = torch.as_tensor(one.role)
        mask[i, :count] = 1
    return ids, mask, role


def losses(net: Any, batch: Sequence[Example], recipe: Recipe) -> tuple[Tensor, dict[str, float]]:
    """The weighted loss of a batch, and the mean cross-entropy of each part of the answer."""
    ids, mask, role = collate(batch)
    device = next(net.parameters()).device
    target_role = role[:, 1:]
    wanted = torch.zeros_like(role, dtype=torch.bool)
    wanted[:, :-1] = target_role > 0
    logits = model.answer_logits(net, ids.to(device), mask.to(device), wanted.to(device))
    chosen = target_role > 0
    entropy = F.cross_entropy(logits.float(), ids[:, 1:][chosen].to(device), reduction="none")
    kind = target_role[chosen].to(device)
    parts = {"score": (SCORE, recipe.score_share), "tag": (TAG, recipe.tag_share),
             "reason": (REASON, recipe.reason_share)}  # fmt: skip
    total = entropy.new_zeros(())
    seen: dict[str, float] = {}
    for name, (code, share) in parts.items():
        inside = kind == code
        mean = (entropy * inside).sum() / inside.sum().clamp(min=1)
        total = total + share * mean
        seen[name] = float(mean.detach())
    return total, seen


def fit(
    net: Any,
    rows: Sequence[Row],
    make: Callable[[Row, np.random.Generator], Example],
    lengths: Sequence[int],
    recipe: Recipe,
    run: Path,
    *,
    header: dict[str, Any],
    log: Callable[[str], None] = print,
) -> None:
    """Train the adapter of ``net``; logs to ``run/log.jsonl``, resumes from ``run/last.ckpt``.

    ``run/recipe.json`` is ``header`` and the device, and is only written for a run that may go on:
    what lies there describes the adapter beside it.

    Raises:
        DataConfigError: the checkpoint is of another recipe or other data.
        ArithmeticError: the loss is not finite; the last checkpoint stays.
    """
    learnt = {n: p for n, p in net.named_parameters() if p.requires_grad}
    optimiser = torch.optim.AdamW(
        learnt.values(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    sampler = Sampler(lengths, recipe)
    checkpoint, first, spent = run / CHECKPOINT, 0, 0.0
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        if saved["header"] != json.dumps(header, sort_keys=True):
            raise DataConfigError(
                f"{checkpoint}: is of another recipe or other data; delete it or give another --out"
            )
        with torch.no_grad():
            for name, value in saved["weights"].items():
                learnt[name].copy_(value)
        optimiser.load_state_dict(saved["optimiser"])
        first, spent = saved["step"], saved["seconds"]
        log(f"going on at step {first} of {recipe.steps}")
    told = {**header, "device": next(iter(learnt.values())).device.type}
    (run / RECIPE).write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    began = time.monotonic() - spent
    net.train()
    for step in range(first, recipe.steps):
        torch.manual_seed(recipe.seed * 1_000_003 + step)
        rng = np.random.default_rng((recipe.seed, step, 1))
        batch = [make(rows[i], rng) for i in sampler.rows(step)]
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * _rate(step, recipe)
        loss, parts = losses(net, batch, recipe)
        if not torch.isfinite(loss):
            raise ArithmeticError(f"step {step}: the loss is {float(loss.detach())}")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(learnt.values(), 1.0)
        optimiser.step()
        done, seconds = step + 1, time.monotonic() - began
        line = {"step": step, "loss": float(loss.detach()), **parts, "seconds": round(seconds, 1)}
        with (run / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if done % 10 == 0 or done == recipe.steps:
            rest = seconds / done * (recipe.steps - done)
            log(f"step {done}/{recipe.steps} loss {line['loss']:.3f} "
                f"(scores {parts['score']:.3f}) {seconds:.0f} s, {rest:.0f} s left")  # fmt: skip
        if done % recipe.checkpoint_steps == 0 or done == recipe.steps:
            _save(checkpoint, {
                "weights": {n: p.detach().cpu().clone() for n, p in learnt.items()},
                "optimiser": optimiser.state_dict(), "step": done, "seconds": seconds,
                "header": json.dumps(header, sort_keys=True),
            })  # fmt: skip
            keep_adapter(net, run)
    net.eval()
    # A run killed between a checkpoint and its adapter has no step left to write the adapter in.
    keep_adapter(net, run)


def keep_adapter(net: Any, run: Path) -> None:
    """``run/adapter`` in peft's format: whole, whenever the run is killed."""
    part = run / f"{ADAPTER}.part"
    shutil.rmtree(part, ignore_errors=True)
    net.save_pretrained(part)
    model.swap(part, run / ADAPTER)


def draw_curve(run: Path) -> None:
    """``curve.png``: each part of the loss over the steps, smoothed over 25."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    by_step: dict[int, dict[str, Any]] = {}
    for line in (run / "log.jsonl").read_text("utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # a killed run may leave half a line
            continue
        # A resumed run logs the steps since its checkpoint again; the last word counts.
        by_step[row["step"]] = row
    lines = [by_step[step] for step in sorted(by_step)]
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    width = max(1, min(25, len(lines)))
    for name in ("score", "tag", "reason"):
        values = np.convolve([row[name] for row in lines], np.ones(width) / width, "valid")
        panel.plot(np.arange(len(values)) + width, values, label=name)
    panel.set(xlabel="step", ylabel="cross-entropy a token")
    panel.legend()
    figure.savefig(run / "curve.png", dpi=80, metadata={"Software": None})


def main(argv: list[str] | None = None) -> int:
    """Train, or go on; 0 done, 1 failed, 78 bad configuration."""
    parser = argparse.ArgumentParser(
        prog="limbic train affect-generative", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--set", dest="folder", type=Path, required=True, help="a built set")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--base", default=model.BASE, help="GGUF of the chat model (%(default)s)")
    parser.add_argument("--device", default="auto")
    for field, value in asdict(Recipe()).items():
        name = f"--{field.replace('_', '-')}"
        parser.add_argument(name, type=type(value), default=value, help=f"default {value}")
    args = parser.parse_args(argv)
    try:
        _run(args, Recipe(**{field: getattr(args, field) for field in asdict(Recipe())}))
    except (DataError, LimbicError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except ArithmeticError as error:
        print(f"error: {error}; try a smaller --learning-rate", file=sys.stderr)
        return 1
    return 0


def _run(args: argparse.Namespace, recipe: Recipe) -> None:
    rows = examples.load_rows(args.folder, "train")
    base = model.base_file(args.base)
    try:
        device = device_of(args.device)
    except ValueError as error:
        raise DataConfigError(str(error)) from error
    run: Path = args.out
    run.mkdir(parents=True, exist_ok=True)
    header = {"recipe": asdict(recipe), "base": base.name, "base_sha256": hash_file(base),
              "rows": examples.digest(rows)}  # fmt: skip
    print(
        f"{len(rows)} rows, {recipe.steps} steps of {recipe.batch}; loading {base.name}", flush=True
    )
    torch.manual_seed(recipe.seed)
    net, tokeniser = model.load_base(base, run / BASE)
    net = model.with_adapter(
        net, rank=recipe.rank, alpha=recipe.alpha, dropout=recipe.dropout, layers=recipe.layers
    )
    lengths = [len(examples.example(tokeniser, row).ids) for row in rows]
    kept = [i for i, length in enumerate(lengths) if length <= recipe.max_tokens]
    if not kept:
        raise DataConfigError(f"--max-tokens {recipe.max_tokens} leaves no row")
    print(f"{len(kept)} rows of at most {recipe.max_tokens} tokens", flush=True)
    fit(
        net.to(device), [rows[i] for i in kept],
        lambda row, rng: examples.example(tokeniser, row, rng), [lengths[i] for i in kept],
        recipe, run, header=header, log=lambda line: print(line, flush=True),
    )  # fmt: skip
    draw_curve(run)
    print(f"adapter: {run / ADAPTER}")


def _rate(step: int, recipe: Recipe) -> float:
    warm = max(1, int(recipe.warmup * recipe.steps))
    return min((step + 1) / warm, max(0.0, (recipe.steps - step) / max(1, recipe.steps - warm)))


def _save(path: Path, state: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


if __name__ == "__main__":
    raise SystemExit(main())
