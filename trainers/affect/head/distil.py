"""``limbic train affect-distil``: a trained head learns from a larger encoder that is never served.

    limbic train affect-distil --data FILE.npz --head RUN/head.safetensors --out RUN2

Wide teachers are heads alone, on the frozen middle layers of a larger encoder (``wide``), several
that differ in their seed. The student is the head that ``--head`` names (a run's file or a served
folder); it goes on learning the labels and, on labelled and unlabelled messages, the mean of the
teachers and of what it said itself before (Hinton et al. 2015; Li and Hoiem 2016 for the latter).
How much of each is chosen on dev. A stopped run continues when the command is repeated; a folder
that holds another run's results is refused. A further round (``--round 1 --teachers-in RUN``, from
where ``RUN`` ended) takes the wide teachers of ``RUN`` and mixes them with what the head says now.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import Ridge
from torch import nn

from trainers.affect.head import curves, runs, train
from trainers.affect.head.arrays import PARTS, SOURCES, Prepared
from trainers.affect.head.checkpoints import done_with, rng_state, save, set_rng_state
from trainers.affect.head.distil_teachers import (
    LATER_ROUND,
    STUDENT_ONLY,
    TEACHER_ROWS,
    UNSERVED,
    Draw,
    Recipe,
    Rows,
    choose_shares,
    loss_of,
    mixed,
    pool_of,
    published_teacher,
    standardised,
    teach,
)
from trainers.affect.head.losses import imitate
from trainers.affect.head.measure import Array, Outputs
from trainers.affect.head.network import AffectNet, Predicted, rebuild
from trainers.affect.head.texts import read_texts
from trainers.affect.head.weights import served_weights
from trainers.affect.head.wide import ENCODER, LAYERS, WideEncoder, choose, wide_vectors
from trainers.encoder.minilm import load_minilm

SAVE_EVERY = 100
RESULTS = ("own.npz", "student.ckpt", "head.safetensors")  # of one head, recipe and set
PUBLISHED = "published.npz"  # what the wide teachers say, ridge on EmoBank included
AROUSED = ("emobank", "goemotions", "xed", "chat", "prose")  # whose rows teach the arousal head
AROUSAL_PENALTY = 100.0
CHUNKS = 4  # a step's rows, sorted by length, go through the encoder in so many batches


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
        set_rng_state(saved.get("rng"))
    began = time.monotonic()
    for step in range(first, recipe.steps):
        net.train()
        rate = train.rate(step, recipe.steps, recipe.warmup)
        for group, top in zip(
            optimiser.param_groups, (recipe.learning_rate, recipe.head_rate), strict=True
        ):
            group["lr"] = top * rate
        parts = by_length(data, draw.rows(step, seed=recipe.round * LATER_ROUND))
        rows = np.concatenate(parts)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            answer = answer_of(net, data, parts, device)
            loss = loss_of(net, data, rows, answer, recipe, device, recipe.balance)
            wanted = {k: torch.as_tensor(v[rows], device=device) for k, v in teacher.items()}
            weight = torch.ones(len(rows), device=device)
            weight[torch.as_tensor(pool_of(data, rows), device=device)] = recipe.labelled
            loss = loss + recipe.imitation * imitate(answer, wanted, weight)
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
            save(checkpoint, {"net": net.state_dict(), "optimiser": optimiser.state_dict(),
                              "average": average, "step": step + 1,
                              "rng": rng_state()})  # fmt: skip
    net.load_state_dict(average)
    curves.draw(run)
    return net.eval()


@torch.inference_mode()
def fit_arousal(
    net: AffectNet, data: Prepared, wanted: Array, rows: Rows, device: str
) -> AffectNet:
    """Fit the arousal head alone, ridge on the student's vectors of ``rows`` to the teacher's
    ``wanted`` [N].

    The head that a run starts from may have been fitted on dev (``refit``); what dev says of this
    one is not flattered by that. Of the rows that teach, those of published sets and chat are read:
    EmoBank's for its prose, the others because nobody trained the student on their arousal. In a
    set without EmoBank no teacher knows arousal, and the head stays what it was.
    """
    if not len(data.rows("train", "emobank")):
        return net
    chosen = np.isin(data.source[rows], [SOURCES.index(name) for name in AROUSED])
    rows = rows[
        chosen & np.isin(data.part[rows], [PARTS.index(p) for p in ("train", "unlabelled")])
    ]
    rows = rows[np.argsort(data.starts[rows + 1] - data.starts[rows], kind="stable")]
    vectors = [
        net.pooled(*(torch.as_tensor(array, device=device) for array in data.batch(part))).cpu()
        for part in np.array_split(rows, max(1, len(rows) // 128))
    ]
    goal = np.arctanh(np.clip(wanted[rows], -0.95, 0.95))
    model = Ridge(alpha=AROUSAL_PENALTY).fit(torch.cat(vectors).float().numpy(), goal)
    net.arousal.weight.copy_(torch.as_tensor(model.coef_[None], device=device))
    net.arousal.bias.copy_(torch.as_tensor([model.intercept_], device=device))
    return net


def start_head(path: Path, data: Prepared, seed: int = 0) -> AffectNet:
    """The head to go on from: a run's safetensors file, or a served folder, whose int8 matrices
    are multiplied out (heads that only training has start anew, from what ``seed`` says)."""
    if not path.is_dir():
        return rebuild(path, data)
    torch.manual_seed(seed)
    widths = {k: getattr(data, k).shape[1] for k in ("emotions", "film", "intensity")}
    net = AffectNet(load_minilm(), **widths)
    found = {k: torch.tensor(v) for k, v in served_weights(path).items()}
    missing = net.load_state_dict(found, strict=False).missing_keys
    unknown = sorted(n for n in missing if n.partition(".")[0] not in (*UNSERVED, "scale", "shift"))
    if unknown:
        raise ValueError(f"{path}: lacks {', '.join(unknown[:3])}")
    return net


def other_teachers(folder: Path, header: dict[str, Any], *, named: bool) -> str:
    """Why the wide teachers of the run in ``folder`` are not those of ``header``; empty where they
    are. A run's own folder (not ``named``) may hold none yet; one that is named must hold them, or
    they would be made inside another run."""
    kept = runs.held(folder, ("wide.npz", PUBLISHED))
    if not named and not kept:
        return ""
    try:
        before = runs.read_header(folder)
    except FileNotFoundError:
        return f"{folder}: holds no run; give the folder of one"
    except ValueError as error:
        return f"{error}; give another folder"
    if named and PUBLISHED not in kept:
        return f"{folder}: holds no teachers; give the folder of the first round"
    differ = [
        name
        for name, value in header["recipe"].items()
        if name not in STUDENT_ONLY and before["recipe"].get(name) != value
    ]
    differ += [n for n in ("data", "encoder", "layers") if before.get(n) != header[n]]
    if not differ:
        return ""
    return f"{folder}: its teachers were made with another {', '.join(differ)}; give another folder"


def main(argv: list[str] | None = None) -> int:
    """Vectors, wide teachers, what the head says now, the student: ``OUT/head.safetensors``."""
    parser = argparse.ArgumentParser(
        prog="limbic train affect-distil", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--data", type=Path, required=True, help="what prepare wrote")
    parser.add_argument("--head", type=Path, required=True, help="head.safetensors, or a folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--encoder", default=ENCODER, help="a model folder or a name of the hub")
    parser.add_argument("--layers", default=",".join(map(str, LAYERS)))
    parser.add_argument(
        "--teachers-in",
        type=Path,
        metavar="RUN",
        help="a run on the same set whose vectors and wide teachers are used again",
    )
    parser.add_argument("--device", default="auto")
    for field, value in asdict(Recipe()).items():
        parser.add_argument(f"--{field.replace('_', '-')}", type=type(value), default=value)
    args = parser.parse_args(argv)
    for path in (args.data, args.head):
        if not path.exists():
            parser.error(f"{path}: not found")
    recipe = Recipe(**{field: getattr(args, field) for field in asdict(Recipe())})
    run, shared = args.out, args.teachers_in or args.out
    if recipe.teachers < 1:
        parser.error(f"--teachers {recipe.teachers}: at least 1")
    try:
        layers = [int(layer) for layer in args.layers.split(",")]
    except ValueError:
        parser.error(f"--layers {args.layers}: numbers, with commas between them")
    try:  # all of it before anything is written, and before the vectors, which take long
        device = runs.device_of(args.device)
        data = Prepared.load(args.data)
        header = {"recipe": asdict(recipe), "data": data.digest, "head": runs.file_hash(args.head),
                  "encoder": args.encoder, "layers": layers, "device": device}  # fmt: skip
        problem = other_teachers(shared, header, named=args.teachers_in is not None)
        problem = problem or runs.another(run, header, RESULTS)
        if problem:
            parser.error(problem)
        net = start_head(args.head, data, recipe.seed)
    except (ValueError, OSError) as error:
        parser.error(str(error).partition("\n")[0])
    if not runs.held(run, RESULTS):  # else they were made with what is written there
        runs.write_header(run, header)
    rows = choose(data, recipe.limit, recipe.seed)
    final, kept, whole = run / "head.safetensors", shared / "wide.npz", shared / PUBLISHED
    if not whole.exists():
        try:
            messages = read_texts(args.data, data)
            encoder = WideEncoder(args.encoder, layers, device)
            vectors = wide_vectors(encoder, messages, data, rows, shared / "wide").astype(
                np.float32
            )
        except (ValueError, OSError) as error:  # OSError is how transformers says "no such model"
            parser.error(str(error).partition("\n")[0])
        draw = Draw(data, rows, replace(recipe, **TEACHER_ROWS))
        vectors = standardised(data, vectors, rows, draw)
        if not kept.exists():
            _write(kept, teach(data, vectors, rows, draw, recipe, shared, device))
        _write(whole, published_teacher(data, vectors, rows, _read(kept)))
    wide = _read(whole)
    train.report(run, "published", data, wide)
    own_file = run / "own.npz"
    if not own_file.exists():
        measured = np.union1d(rows, train.measured_rows(data))
        _write(own_file, train.predict(net.to(device).eval(), data, measured, device, batch=128))
    own = _read(own_file)
    train.report(run, "before", data, own)
    shares = choose_shares(data, wide, own)
    print(f"share of the wide teachers: {shares}", flush=True)
    teacher = mixed(data, wide, own, shares)
    train.report(run, "teacher", data, teacher)
    if not final.exists():
        net = student(net, data, teacher, Draw(data, rows, recipe), recipe, run, device)
        net = fit_arousal(net, data, wide["arousal"], rows, device)
        try:
            runs.save_head(final, net.state_dict())
        except ValueError as error:
            parser.exit(1, f"{parser.prog}: {error}\n")
        done_with(run, "student")
    net = start_head(final, data).to(device).eval()
    said = train.predict(net, data, train.measured_rows(data), device, batch=128)
    train.report(run, "student", data, said)
    return 0


def _write(path: Path, outputs: Outputs) -> None:
    part = path.with_suffix(".part")
    halves: dict[str, Any] = {k: v.astype(np.float16) for k, v in outputs.items()}
    with part.open("wb") as file:
        np.savez(file, **halves)
    part.replace(path)


def _read(path: Path) -> Outputs:
    with np.load(path) as file:
        return {k: file[k].astype(np.float32) for k in file.files}


if __name__ == "__main__":
    raise SystemExit(main())
