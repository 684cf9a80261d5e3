"""``python -m trainers.affect.head.train --data FILE.npz --out RUN``: teachers, then one student.

Several teachers differ in their seed alone; the student learns the labels and the teachers' mean,
on labelled and unlabelled messages (Hinton et al. 2015). ``--teachers 0`` trains one head directly.
Modes: ``full`` trains everything, ``lora`` low-rank updates of the encoder (peft), ``frozen`` the
heads alone, on vectors that the encoder computes once. A stopped run continues from its last
checkpoint when the command is repeated; a folder that holds another run's results is refused.
``RUN/log.jsonl`` and ``RUN/curves.png`` show how it went.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainers.affect.head import curves, measure, runs
from trainers.affect.head.arrays import AXES, Prepared
from trainers.affect.head.checkpoints import done_with, rng_state, save, set_rng_state
from trainers.affect.head.losses import decorrelation, imitate, supervised
from trainers.affect.head.measure import Outputs
from trainers.affect.head.network import AffectNet, Predicted, rebuild
from trainers.affect.head.vader import read_lexicon
from trainers.affect.head.vectors import pooled_vectors
from trainers.encoder.minilm import MiniLM, load_minilm

TARGETS = ("axes", "shares", "tags", "emotions", "film", "intensity", "weight", "source", "weak")
DEV_EVERY = 200  # steps between looks at dev, which are for the curves alone
SAVE_S = 120.0  # seconds of training that a kill may cost: hundreds of steps, or a few
MODES = ("full", "lora", "frozen")
RESULTS = ("teacher*.npz", "*.ckpt", "head.safetensors")  # of one recipe, set and encoder
OUTPUTS = ("axes", "arousal", "tags", "emotions", "film", "intensity")


@dataclass(frozen=True)
class Recipe:
    """One run. Batches are mixed: so many rows of each source a step."""

    seed: int = 0
    teachers: int = 5
    mode: str = "full"
    steps: int = 900
    student_steps: int = 3000
    pool: int = 64
    emobank: int = 80
    intimacy: int = 32
    goemotions: int = 160
    xed: int = 48
    semeval: int = 24
    chat: int = 256
    learning_rate: float = 6e-5
    head_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.1
    decorrelation: float = 0.1
    decorrelation_rows: int = 256
    ema: float = 0.995
    imitation: float = 1.0

    def __post_init__(self) -> None:
        """Raises ValueError for numbers that no run can have."""
        wrong = [
            f"--{name.replace('_', '-')} {value}"
            for name, value in asdict(self).items()
            if not isinstance(value, str) and not 0 <= value < inf
        ]
        if wrong:
            raise ValueError(f"{', '.join(wrong)}: at least 0")
        if not (self.pool or self.emobank or self.intimacy or self.goemotions or self.xed
                or self.semeval):  # fmt: skip
            raise ValueError("no labelled rows a step: give --pool or another source rows")
        if self.decorrelation and self.decorrelation_rows < 3:
            raise ValueError(f"--decorrelation-rows {self.decorrelation_rows}: at least 3")


class Sampler:
    """Endless mixed batches of training rows, reproducible by seed and step."""

    def __init__(self, data: Prepared, recipe: Recipe, seed: int) -> None:
        self._data, self._seed = data, seed
        names = {
            "llm_label": recipe.pool, "emobank": recipe.emobank, "intimacy": recipe.intimacy,
            "goemotions": recipe.goemotions, "xed": recipe.xed, "semeval": recipe.semeval,
        }  # fmt: skip
        self._parts = [(data.rows("train", name), count) for name, count in names.items()]
        pool = data.rows("train", "llm_label")
        self._pool, weight = pool, data.weight[pool]
        self._balance = (weight / weight.sum()).astype(np.float64)
        self._chat = data.rows("unlabelled")

    @property
    def rows(self) -> NDArray[np.int64]:
        """All labelled rows that may be drawn."""
        return np.concatenate([rows for rows, count in self._parts if count])

    def labelled(self, step: int) -> NDArray[np.int64]:
        """Rows of one step."""
        rng = np.random.default_rng((self._seed, step, 1))
        return np.concatenate([rng.choice(r, n) for r, n in self._parts if len(r) and n])

    def balanced(self, step: int, count: int) -> NDArray[np.int64]:
        """Pool rows drawn by their cell-balancing weight, for the decorrelation term."""
        rng = np.random.default_rng((self._seed, step, 2))
        return rng.choice(self._pool, count, p=self._balance / self._balance.sum())

    def chat(self, step: int, count: int) -> NDArray[np.int64]:
        """Unlabelled rows; none where the set has none."""
        if not len(self._chat):
            return self._chat
        return np.random.default_rng((self._seed, step, 3)).choice(self._chat, count)


def build(recipe: Recipe, weights: Path | None, widths: dict[str, int], seed: int) -> AffectNet:
    """A fresh network on the pretrained encoder, with what the mode freezes frozen; ``seed`` alone
    says what its heads start from."""
    torch.manual_seed(seed)
    net = AffectNet(load_minilm(weights), **widths)
    if recipe.mode == "frozen":
        net.body.requires_grad_(False)
    elif recipe.mode == "lora":
        from peft import LoraConfig, inject_adapter_in_model

        names = ["query", "key", "value", "out", "up", "down"]
        config = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules=names)
        net.body.requires_grad_(False)
        net.body = cast(MiniLM, inject_adapter_in_model(config, net.body))
    return net


def merged(net: AffectNet) -> AffectNet:
    """``net`` with its low-rank updates added to the weights they update: plain layers, which say
    the same and are saved under the names that every other mode has."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(net.body.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            place, _, own = name.rpartition(".")
            setattr(net.body.get_submodule(place), own, layer.get_base_layer())
    return net


def fit(
    net: AffectNet,
    data: Prepared,
    recipe: Recipe,
    run: Path,
    *,
    name: str,
    seed: int,
    steps: int,
    device: str,
    teacher: dict[str, NDArray[np.float16]] | None = None,
    vectors: NDArray[np.float32] | None = None,
) -> AffectNet:
    """Train one head; logs to ``run/log.jsonl``, resumes from ``run/NAME.ckpt``; returns the
    average of the weights over the steps (EMA). The checkpoint stays until its caller has kept what
    came of it (``done_with``). ``vectors`` [N, 384] stand for a frozen encoder."""
    torch.manual_seed(seed)
    net = net.to(device)
    sampler = Sampler(data, recipe, seed)
    heads = [p for n, p in net.named_parameters() if not n.startswith("body.") and p.requires_grad]
    body = [p for p in net.body.parameters() if p.requires_grad]
    groups = [{"params": heads, "lr": recipe.head_rate}]
    if body:
        top = recipe.learning_rate if recipe.mode == "full" else 5 * recipe.learning_rate
        groups.append({"params": body, "lr": top})
    optimiser = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: rate(s, steps, recipe.warmup))
    average = {n: p.detach().clone() for n, p in net.named_parameters() if p.requires_grad}
    checkpoint, first = run / f"{name}.ckpt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        net.load_state_dict(saved["net"])
        optimiser.load_state_dict(saved["optimiser"])
        schedule.load_state_dict(saved["schedule"])
        average, first = saved["average"], saved["step"]
        set_rng_state(saved.get("rng"))
    started = saved_at = time.monotonic()
    for step in range(first, steps):
        net.train()
        rows = sampler.labelled(step)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            answer = _answer(net, data, rows, device, vectors)
            loss = supervised(net, answer, targets(data, rows, device))
            if recipe.decorrelation:
                pool = sampler.balanced(step, recipe.decorrelation_rows)
                axes = _answer(net, data, pool, device, vectors).axes.float()
                loss = loss + recipe.decorrelation * decorrelation(axes)
            if teacher is not None:
                chat = np.concatenate([rows, sampler.chat(step, recipe.chat)])
                wanted = {
                    k: torch.as_tensor(v[chat], device=device).float() for k, v in teacher.items()
                }
                answer = _answer(net, data, chat, device, vectors)
                loss = loss + recipe.imitation * imitate(answer, wanted)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        kept = min(recipe.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for n, p in net.named_parameters():
                if n in average:
                    average[n].lerp_(p, 1 - kept)
        last = step + 1 == steps
        if step % 50 == 0 or last:
            dev = None
            if step % DEV_EVERY == 0 or last:
                dev = dev_r(net, data, device, vectors)
            log(run, name, step, float(loss.detach()), started, dev)
        if last or time.monotonic() - saved_at >= SAVE_S:
            save(checkpoint, {"net": net.state_dict(), "optimiser": optimiser.state_dict(),
                               "schedule": schedule.state_dict(), "average": average,
                               "step": step + 1, "rng": rng_state()})  # fmt: skip
            saved_at = time.monotonic()
    net.load_state_dict(average, strict=False)
    curves.draw(run)
    return net.eval()


@torch.inference_mode()
def predict(
    net: AffectNet,
    data: Prepared,
    rows: NDArray[np.int64],
    device: str,
    batch: int = 512,
    vectors: NDArray[np.float32] | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Outputs over all N rows (NaN where not in ``rows``); logits become probabilities."""
    lengths = data.starts[rows + 1] - data.starts[rows]
    ordered = rows[np.argsort(lengths, kind="stable")]
    found: dict[str, NDArray[np.float32]] = {}
    for start in range(0, len(ordered), batch):
        part = ordered[start : start + batch]
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            p = _answer(net, data, part, device, vectors)
        keep(found, p, part, len(data.part))
    return found


def keep(
    found: dict[str, NDArray[np.float32]], p: Predicted, rows: NDArray[np.int64], total: int
) -> None:
    """Put what was predicted of ``rows`` into arrays over ``total`` rows, NaN elsewhere; logits
    become probabilities."""
    for name in OUTPUTS:
        value = getattr(p, name).float()
        value = value.sigmoid() if name not in ("axes", "arousal") else value
        array = value.cpu().numpy()
        if name not in found:
            found[name] = np.full((total, *array.shape[1:]), np.nan, np.float32)
        found[name][rows] = array


def report(run: Path, name: str, data: Prepared, outputs: Outputs) -> dict[str, Any]:
    """Measure one model, write ``NAME.json``, print its summary; emotions only where it was run on
    the published rows."""
    rows = np.concatenate([data.rows(part, "goemotions") for part in ("dev", "test")])
    emotions = outputs["emotions"]
    table = measure.everything(
        data, outputs["axes"], arousal=outputs["arousal"],
        emotions=None if np.isnan(emotions[rows]).any() else emotions,
    )  # fmt: skip
    (run / f"{name}.json").write_text(json.dumps(table, indent=1) + "\n")
    line = " ".join(f"{k}={v:.3f}" for k, v, _ in measure.summary(table))
    print(f"[{name}] {line}", flush=True)
    return table


def measured_rows(data: Prepared) -> NDArray[np.int64]:
    """Rows of dev and test that have figures, gold and both sides of the pairs."""
    sources = ("llm_label", "emobank", "intimacy", "goemotions")
    places = [(part, source) for part in ("dev", "test") for source in sources]
    rows = [data.rows(*place) for place in places]
    return np.concatenate(rows + [data.rows(part) for part in ("gold", "pair_a", "pair_b")])


def main(argv: list[str] | None = None) -> int:
    """Train teachers and student; the student's weights are ``RUN/head.safetensors``."""
    parser = argparse.ArgumentParser(prog="limbic train affect", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="encoder safetensors (default: the package)")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--compare", action="store_true", help="the baselines in one table with the head"
    )
    parser.add_argument("--lexicon", type=Path, help="vader_lexicon.txt, for --compare")
    defaults = Recipe()
    for field, value in asdict(defaults).items():
        parser.add_argument(f"--{field.replace('_', '-')}", type=type(value), default=value)
    args = parser.parse_args(argv)
    try:
        recipe = Recipe(**{field: getattr(args, field) for field in asdict(defaults)})
    except ValueError as error:
        parser.error(str(error))
    if recipe.mode not in MODES:
        parser.error(f"mode {recipe.mode!r}: choose {', '.join(MODES)}")
    if recipe.pool < 1 and recipe.mode == "frozen" and recipe.decorrelation:
        # The term draws rows of the pool, which have vectors only where they may be drawn.
        parser.error(f"--pool {recipe.pool}: at least 1, or --decorrelation 0")
    if args.lexicon and not args.compare:
        parser.error("--lexicon is for --compare")
    try:
        device = runs.device_of(args.device)
        data = Prepared.load(args.data)
        if args.lexicon:
            read_lexicon(args.lexicon)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    widths = {k: getattr(data, k).shape[1] for k in ("emotions", "film", "intensity")}
    run = args.out
    try:
        weights = runs.file_hash(args.weights) if args.weights else None
    except OSError as error:
        parser.error(str(error))
    header = {"recipe": asdict(recipe), "data": data.digest, "weights": weights, "device": device}
    if problem := runs.another(run, header, RESULTS):
        parser.error(problem)
    try:
        if not runs.held(run, RESULTS):  # else they were made with what is written there
            runs.write_header(run, header)
    except OSError as error:
        parser.error(f"{run}: cannot be written: {error.strerror}")
    labelled = Sampler(data, recipe, recipe.seed).rows
    rows = np.concatenate([measured_rows(data), labelled])
    if recipe.teachers:
        rows = np.concatenate([rows, data.rows("unlabelled")])
    vectors = None
    if recipe.mode == "frozen":
        began, fresh = time.monotonic(), build(recipe, args.weights, widths, recipe.seed)
        vectors = pooled_vectors(fresh, data, rows, run, device)
        print(f"{len(rows)} frozen vectors {time.monotonic() - began:.0f} s", flush=True)
    total: Outputs | None = None
    for i in range(recipe.teachers):
        seed, kept = recipe.seed * 100 + i + 1, run / f"teacher{i}.npz"
        if not kept.exists():
            net = fit(
                build(recipe, args.weights, widths, seed), data, recipe, run,
                name=f"teacher{i}", seed=seed, steps=recipe.steps, device=device, vectors=vectors,
            )  # fmt: skip
            if bad := runs.not_finite(net.state_dict()):
                done_with(run, f"teacher{i}")
                parser.exit(1, f"{parser.prog}: teacher{i} not kept, {bad} is not finite\n")
            outputs = predict(net, data, rows, device, vectors=vectors)
            report(run, f"teacher{i}", data, outputs)
            part = run / "part.npz"
            halves: dict[str, Any] = {k: v.astype(np.float16) for k, v in outputs.items()}
            np.savez(part, **halves)
            part.replace(kept)
        done_with(run, f"teacher{i}")
        with np.load(kept) as file:
            one = {k: file[k].astype(np.float32) for k in file.files}
        total = one if total is None else {k: total[k] + one[k] for k in total}
    teacher = None
    if total is not None:
        mean: Outputs = {k: v / recipe.teachers for k, v in total.items()}
        report(run, "ensemble", data, mean)
        teacher = {k: v.astype(np.float16) for k, v in mean.items()}
    final = run / "head.safetensors"
    steps = recipe.student_steps if teacher else recipe.steps
    if final.exists():
        try:
            net = rebuild(final, data).to(device)
        except ValueError as error:
            parser.error(str(error))
    else:
        net = build(recipe, args.weights, widths, recipe.seed)
        net = fit(net, data, recipe, run, name="student", seed=recipe.seed, steps=steps,
                  device=device, teacher=teacher, vectors=vectors)  # fmt: skip
        net = merged(net) if recipe.mode == "lora" else net
        try:
            runs.save_head(final, net.state_dict())
        except ValueError as error:
            done_with(run, "student")
            parser.exit(1, f"{parser.prog}: {error}\n")
    done_with(run, "student")
    outputs = predict(net, data, measured_rows(data), device, vectors=vectors)
    report(run, "student", data, outputs)
    if args.compare:
        # Imported here: the exported encoder and scikit-learn serve the baselines alone.
        from trainers.affect.head import baselines

        table = baselines.compare(data, {"this head": outputs["axes"]}, args.lexicon, run)
        (run / "compare.json").write_text(json.dumps(table, indent=1) + "\n")
        print(baselines.render(table))
    return 0


def _inputs(data: Prepared, rows: NDArray[np.int64], device: str) -> Iterator[Tensor]:
    return (torch.as_tensor(array, device=device) for array in data.batch(rows))


def _answer(
    net: AffectNet,
    data: Prepared,
    rows: NDArray[np.int64],
    device: str,
    vectors: NDArray[np.float32] | None,
) -> Predicted:
    """What the network says of some rows, from their tokens or from their frozen vectors."""
    if vectors is None:
        return net(*_inputs(data, rows, device))
    return net.read(torch.as_tensor(vectors[rows], device=device))


def targets(data: Prepared, rows: NDArray[np.int64], device: str) -> dict[str, Tensor]:
    """Labels of some rows, NaN where nobody measured."""
    found = {k: torch.as_tensor(getattr(data, k)[rows], device=device) for k in TARGETS}
    found["source"] = found["source"].long()
    return found


def rate(step: int, steps: int, warmup: float) -> float:
    """The share of the top rate at a step: up over ``warmup`` of the steps, then down to 0."""
    warm = max(1, int(warmup * steps))
    return min((step + 1) / warm, max(0.0, (steps - step) / max(1, steps - warm)))


def log(
    run: Path, name: str, step: int, loss: float, started: float, dev: dict[str, float] | None
) -> None:
    """A line of the run's log, and now and then one on the terminal."""
    line = {"model": name, "step": step, "loss": loss, "seconds": time.monotonic() - started}
    said = ""
    if dev is not None:
        line["dev"] = dev
        said = ", dev " + " ".join(f"{axis} {r:.3f}" for axis, r in dev.items())
    with (run / curves.LOG_FILE).open("a") as file:
        file.write(json.dumps(line) + "\n")
    if said or step % 300 == 0:
        print(f"{name} step {step} loss {loss:.4f} {line['seconds']:.0f} s{said}", flush=True)


def dev_r(
    net: AffectNet, data: Prepared, device: str, vectors: NDArray[np.float32] | None = None
) -> dict[str, float]:
    """r of each axis with the labelled pool's dev rows; leaves ``net`` in training mode."""
    rows = data.rows("dev", "llm_label")
    found = predict(net.eval(), data, rows, device, batch=128, vectors=vectors)
    net.train()
    return {
        axis: round(measure.pearson(found["axes"][rows, i], data.axes[rows, i]), 4)
        for i, axis in enumerate(AXES)
    }


if __name__ == "__main__":
    raise SystemExit(main())
