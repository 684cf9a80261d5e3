"""``limbic train affect-distil``: a trained head learns from a larger encoder that is never served.

    limbic train affect-distil --data FILE.npz --head RUN/head.safetensors --out RUN2

Wide teachers are heads alone, on the frozen middle layers of a larger encoder (``wide``), several
that differ in their seed. The student is the head that ``--head`` names (a run's file or a served
folder); it goes on learning the labels and, on labelled and unlabelled messages, the mean of the
teachers and of what it said itself before (Hinton et al. 2015; Li and Hoiem 2016 for the latter).
How much of each is chosen on dev. A stopped run continues when the command is repeated.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainers.affect.head import curves, measure, train
from trainers.affect.head.arrays import AXES, PARTS, SOURCES, Prepared
from trainers.affect.head.losses import decorrelation, imitate, supervised
from trainers.affect.head.network import AffectNet, Heads, Predicted
from trainers.affect.head.texts import read_texts
from trainers.affect.head.wide import ENCODER, LAYERS, WideEncoder, choose, wide_vectors
from trainers.encoder.minilm import load_minilm

Array = NDArray[np.float32]
Rows = NDArray[np.int64]
Outputs = dict[str, Array]
UNLABELLED = ("chat", "variant")
SAVE_EVERY = 100
CHUNKS = 4  # a step's rows, sorted by length, go through the encoder in so many batches


@dataclass(frozen=True)
class Recipe:
    """One run. ``pool`` … ``chat`` are rows a step for the student."""

    seed: int = 0
    limit: int = 3_000
    teachers: int = 3
    teacher_steps: int = 1200
    teacher_rate: float = 5e-4
    teacher_dropout: float = 0.4
    steps: int = 1300
    pool: int = 24
    emobank: int = 20
    intimacy: int = 6
    semeval: int = 2
    xed: int = 6
    goemotions: int = 14
    chat: int = 8
    variant: int = 24
    learning_rate: float = 4e-5
    head_rate: float = 4e-4
    weight_decay: float = 0.01
    warmup: float = 0.05
    decorrelation: float = 0.1
    imitation: float = 1.0
    ema: float = 0.995


class Draw:
    """Mixed batches out of the rows that have vectors, reproducible by seed and step.

    Half of the pool's rows are drawn by their cell-balancing weight, so that rare cells count.
    """

    def __init__(self, data: Prepared, rows: Rows, recipe: Recipe) -> None:
        self._seed, self._data = recipe.seed, data
        places = {"llm_label": recipe.pool}
        places |= {n: getattr(recipe, n) for n in ("emobank", "intimacy", "semeval", "xed",
                                                   "goemotions", *UNLABELLED)}  # fmt: skip
        self._parts = []
        for name, count in places.items():
            part = data.rows("unlabelled" if name in UNLABELLED else "train", name)
            part = part[np.isin(part, rows)]
            if len(part) and count:
                self._parts.append((name, part, count))
        self.all = np.concatenate([part for _, part, _ in self._parts])

    def rows(self, step: int, times: int = 1, seed: int = 0) -> Rows:
        """Rows of one step, ``times`` as many as the recipe's."""
        rng = np.random.default_rng((self._seed, seed, step))
        found = []
        for name, part, count in self._parts:
            n = count * times
            if name == "llm_label":
                weight = self._data.weight[part].astype(np.float64)
                found.append(rng.choice(part, n // 2, p=weight / weight.sum()))
                n -= n // 2
            found.append(rng.choice(part, n))
        return np.concatenate(found)


def pool_of(data: Prepared, rows: Rows) -> NDArray[np.bool_]:
    """Which rows are of the labelled pool: the ones whose predicted axes are decorrelated."""
    return np.asarray(data.source[rows] == SOURCES.index("llm_label"))


def loss_of(
    net: Heads, data: Prepared, rows: Rows, answer: Predicted, recipe: Recipe, device: str
) -> Tensor:
    """Labels, and independence of the axes over the pool's rows of the step."""
    loss = supervised(net, answer, train.targets(data, rows, device))
    chosen = torch.as_tensor(pool_of(data, rows), device=device)
    if recipe.decorrelation and int(chosen.sum()) > 3:
        loss = loss + recipe.decorrelation * decorrelation(answer.axes.float()[chosen])
    return loss


def wide_teacher(
    data: Prepared, vectors: Array, place: Rows, draw: Draw, recipe: Recipe, seed: int, device: str
) -> Heads:
    """Heads on wide vectors [n, width], standardised; ``place`` maps rows of the set to them."""
    torch.manual_seed(seed)
    widths = {k: getattr(data, k).shape[1] for k in ("emotions", "film", "intensity")}
    net = Heads(vectors.shape[1], dropout=recipe.teacher_dropout, **widths).to(device)
    optimiser = torch.optim.AdamW(net.parameters(), lr=recipe.teacher_rate, weight_decay=0.05)
    for step in range(recipe.teacher_steps):
        rows = draw.rows(step, times=4, seed=seed)
        rows = rows[data.part[rows] == PARTS.index("train")]
        rate = train.rate(step, recipe.teacher_steps, recipe.warmup)
        for group in optimiser.param_groups:
            group["lr"] = recipe.teacher_rate * rate
        answer = net.read(torch.as_tensor(vectors[place[rows]], device=device))
        loss = loss_of(net, data, rows, answer, recipe, device)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
    return net.eval()


@torch.inference_mode()
def read_all(net: Heads, vectors: Array, rows: Rows, total: int, device: str) -> Outputs:
    """Probabilities and scores over all ``total`` rows, NaN outside ``rows``."""
    found: Outputs = {}
    for start in range(0, len(rows), 4096):
        part = slice(start, start + 4096)
        answer = net.read(torch.as_tensor(vectors[part], device=device))
        train.keep(found, answer, rows[part], total)
    return found


def mixed(wide: Outputs, own: Outputs, share: dict[str, float]) -> Outputs:
    """``share`` of the wide teachers in each output, the rest what the head said before."""
    return {k: share.get(k, 0.0) * wide[k] + (1 - share.get(k, 0.0)) * own[k] for k in own}


def choose_shares(data: Prepared, wide: Outputs, own: Outputs) -> dict[str, float]:
    """The share of the wide teachers that correlates best with dev labels, for axes and arousal.

    Tags follow the axes; the published emotions stay the head's own.
    """
    pool, emobank = data.rows("dev", "llm_label"), data.rows("dev", "emobank")
    best: dict[str, tuple[float, float]] = {}
    for share in np.linspace(0.0, 1.0, 11):
        axes = share * wide["axes"] + (1 - share) * own["axes"]
        arousal = share * wide["arousal"] + (1 - share) * own["arousal"]
        r = [measure.pearson(axes[pool, i], data.axes[pool, i]) for i in range(len(AXES))]
        r.append(measure.pearson(axes[emobank, 0], data.axes[emobank, 0]))
        for key, score in (
            ("axes", float(np.mean(r))),
            ("arousal", measure.pearson(arousal[emobank], data.axes[emobank, 2])),
        ):
            if key not in best or score > best[key][0]:
                best[key] = (score, float(share))
    found = {key: share for key, (_, share) in best.items()}
    return {**found, "tags": found["axes"]}


def by_length(data: Prepared, rows: Rows, chunks: int = CHUNKS) -> list[Rows]:
    """``rows`` sorted by length and cut into batches that pad little."""
    order = np.argsort(data.starts[rows + 1] - data.starts[rows], kind="stable")
    return [part for part in np.array_split(rows[order], chunks) if len(part)]


def answer_of(net: AffectNet, data: Prepared, parts: list[Rows], device: str) -> Predicted:
    """One ``Predicted`` over the rows of all ``parts``, in their order."""
    found = [
        net(*(torch.as_tensor(array, device=device) for array in data.batch(part)))
        for part in parts
    ]
    names = [field.name for field in fields(Predicted)]
    return Predicted(**{n: torch.cat([getattr(p, n) for p in found]) for n in names})


def student(
    net: AffectNet, data: Prepared, teacher: Outputs, draw: Draw, recipe: Recipe, run: Path,
    device: str,
) -> AffectNet:  # fmt: skip
    """Train ``net`` on; logs to ``run/log.jsonl``, resumes from ``run/student.ckpt``; returns the
    average of the weights over the steps."""
    torch.manual_seed(recipe.seed)
    net = net.to(device)
    heads = [p for n, p in net.named_parameters() if not n.startswith("body.")]
    groups = [
        {"params": list(net.body.parameters()), "lr": recipe.learning_rate},
        {"params": heads, "lr": recipe.head_rate},
    ]
    optimiser = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)
    average = {n: p.detach().clone() for n, p in net.named_parameters()}
    checkpoint, first = run / "student.ckpt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        net.load_state_dict(saved["net"])
        optimiser.load_state_dict(saved["optimiser"])
        average, first = saved["average"], saved["step"]
    began = time.monotonic()
    for step in range(first, recipe.steps):
        net.train()
        rate = train.rate(step, recipe.steps, recipe.warmup)
        for group, top in zip(
            optimiser.param_groups, (recipe.learning_rate, recipe.head_rate), strict=True
        ):
            group["lr"] = top * rate
        parts = by_length(data, draw.rows(step))
        rows = np.concatenate(parts)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            answer = answer_of(net, data, parts, device)
            loss = loss_of(net, data, rows, answer, recipe, device)
            wanted = {k: torch.as_tensor(v[rows], device=device) for k, v in teacher.items()}
            loss = loss + recipe.imitation * imitate(answer, wanted)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        kept = min(recipe.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for n, p in net.named_parameters():
                average[n].lerp_(p, 1 - kept)
        last = step + 1 == recipe.steps
        if step % 20 == 0 or last:
            look = step % train.DEV_EVERY == 0 or last
            dev = train.dev_r(net, data, device) if look else None
            train.log(run, "student", step, float(loss.detach()), began, dev)
        if step % SAVE_EVERY == SAVE_EVERY - 1 and not last:
            train.save(checkpoint, {"net": net.state_dict(), "optimiser": optimiser.state_dict(),
                                    "average": average, "step": step + 1})  # fmt: skip
    net.load_state_dict(average)
    curves.draw(run)
    return net.eval()


def start_head(path: Path, data: Prepared) -> AffectNet:
    """The head to go on from: a run's safetensors file, or a served folder, whose int8 matrices
    are multiplied out (heads that only training has start anew)."""
    from safetensors.torch import load_file

    from trainers.affect.head.weights import served_weights

    widths = {k: getattr(data, k).shape[1] for k in ("emotions", "film", "intensity")}
    net = AffectNet(load_minilm(), **widths)
    if path.is_dir():
        found = {k: torch.tensor(v) for k, v in served_weights(path).items()}
        missing = set(net.load_state_dict(found, strict=False).missing_keys)
        unknown = {n for n in missing if n.partition(".")[0] not in ("film", "intensity", "scale",
                                                                     "shift")}  # fmt: skip
        if unknown:
            raise ValueError(f"{path}: lacks {', '.join(sorted(unknown)[:3])}")
    else:
        net.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return net


def main(argv: list[str] | None = None) -> int:
    """Vectors, wide teachers, what the head says now, the student: ``OUT/head.safetensors``."""
    from safetensors.torch import save_file

    parser = argparse.ArgumentParser(
        prog="limbic train affect-distil", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--data", type=Path, required=True, help="what prepare wrote")
    parser.add_argument("--head", type=Path, required=True, help="head.safetensors, or a folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--encoder", default=ENCODER, help="a model folder or a name of the hub")
    parser.add_argument("--layers", default=",".join(map(str, LAYERS)))
    parser.add_argument("--device", default="auto")
    for field, value in asdict(Recipe()).items():
        parser.add_argument(f"--{field.replace('_', '-')}", type=type(value), default=value)
    args = parser.parse_args(argv)
    for path in (args.data, args.head):
        if not path.exists():
            parser.error(f"{path}: not found")
    recipe = Recipe(**{field: getattr(args, field) for field in asdict(Recipe())})
    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    run = args.out
    run.mkdir(parents=True, exist_ok=True)
    data = Prepared.load(args.data)
    rows = choose(data, recipe.limit, recipe.seed)
    layers = [int(layer) for layer in args.layers.split(",")]
    header = {"recipe": asdict(recipe), "data": data.digest, "encoder": args.encoder,
              "layers": layers, "device": device}  # fmt: skip
    (run / "recipe.json").write_text(json.dumps(header, indent=1) + "\n")
    draw = Draw(data, rows, recipe)
    final, kept = run / "head.safetensors", run / "wide.npz"
    if not kept.exists():
        try:
            messages = read_texts(args.data, data)
            encoder = WideEncoder(args.encoder, layers, device)
            vectors = wide_vectors(encoder, messages, data, rows, run / "wide").astype(np.float32)
        except (ValueError, OSError) as error:  # OSError is how transformers says "no such model"
            parser.error(str(error).partition("\n")[0])
        outputs = teach(data, vectors, rows, draw, recipe, run, device)
        _write(kept, outputs)
    wide = _read(kept)
    net = start_head(args.head, data)
    own_file = run / "own.npz"
    if not own_file.exists():
        measured = np.union1d(rows, train.measured_rows(data))
        _write(own_file, train.predict(net.to(device).eval(), data, measured, device, batch=128))
    own = _read(own_file)
    train.report(run, "before", data, own)
    shares = choose_shares(data, wide, own)
    print(f"share of the wide teachers: {shares}", flush=True)
    teacher = mixed(wide, own, shares)
    train.report(run, "teacher", data, teacher)
    if not final.exists():
        net = student(net, data, teacher, draw, recipe, run, device)
        part = final.with_suffix(".part")
        save_file({k: v.contiguous().cpu() for k, v in net.state_dict().items()}, part)
        part.replace(final)
        (run / "student.ckpt").unlink(missing_ok=True)
    net = start_head(final, data).to(device).eval()
    said = train.predict(net, data, train.measured_rows(data), device, batch=128)
    train.report(run, "student", data, said)
    return 0


def teach(
    data: Prepared, vectors: Array, rows: Rows, draw: Draw, recipe: Recipe, run: Path, device: str
) -> Outputs:
    """The mean of what the wide teachers say of ``rows``; each is reported."""
    place = np.full(len(data.part), -1, np.int64)
    place[rows] = np.arange(len(rows))
    known = vectors[place[draw.all]]
    vectors = (vectors - known.mean(0)) / np.maximum(known.std(0), 1e-6)
    total: Outputs = {}
    for i in range(recipe.teachers):
        net = wide_teacher(data, vectors, place, draw, recipe, recipe.seed * 100 + i + 1, device)
        said = read_all(net, vectors, rows, len(data.part), device)
        train.report(run, f"wide{i}", data, said)
        total = said if not total else {k: total[k] + said[k] for k in total}
    mean = {k: v / recipe.teachers for k, v in total.items()}
    train.report(run, "wide", data, mean)
    return mean


def _write(path: Path, outputs: Outputs) -> None:
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez(file, **{k: v.astype(np.float16) for k, v in outputs.items()})
    part.replace(path)


def _read(path: Path) -> Outputs:
    with np.load(path) as file:
        return {k: file[k].astype(np.float32) for k in file.files}


if __name__ == "__main__":
    raise SystemExit(main())
