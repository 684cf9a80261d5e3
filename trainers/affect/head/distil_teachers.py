"""Who teaches the distilled student: heads on a larger encoder's vectors, and how they are mixed.

The larger encoder is frozen (``wide``); heads on it that differ in their seed are averaged, and
ridge takes EmoBank's part (``published_teacher``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from torch import Tensor, nn

from trainers.affect.head import measure, train
from trainers.affect.head.arrays import AXES, PARTS, SOURCES, Prepared
from trainers.affect.head.losses import contrast, decorrelation, supervised
from trainers.affect.head.measure import Array, Outputs
from trainers.affect.head.network import Heads, Predicted

Rows = NDArray[np.int64]
UNLABELLED = ("chat", "variant", "prose")
PROSE = ("emobank", "prose")  # sentences out of context, on EmoBank's scale
LARGEST_FAMILY = 6
UNSERVED = ("film", "intensity")  # heads that only training has
PENALTIES = (3e3, 1e4, 3e4)
# Rows of a teacher's step, a quarter of them; a student that draws others has the same teachers.
TEACHER_ROWS = {"pool": 60, "emobank": 16, "intimacy": 6, "semeval": 0, "xed": 2, "goemotions": 8,
                "chat": 6, "variant": 28, "prose": 18}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """One run. ``limit``: rows of each large source that get vectors; ``pool`` … ``prose``: rows
    a step for the student; ``imitation``: how much the teachers' answers count beside labels, and
    ``labelled`` how much of that on messages of the pool, whose axes have labels; ``balance``: how
    much the pool's weights count in its loss, after they have counted in the draw; ``round``: of
    several runs, each from where the one before ended, which one this is, so that it draws rows of
    its own."""

    seed: int = 0
    limit: int = 6_000
    teachers: int = 3
    teacher_steps: int = 1200
    teacher_rate: float = 5e-4
    teacher_dropout: float = 0.4
    steps: int = 760
    pool: int = 60
    emobank: int = 16
    intimacy: int = 6
    semeval: int = 0
    xed: int = 2
    goemotions: int = 8
    chat: int = 6
    variant: int = 28
    prose: int = 18
    learning_rate: float = 8e-5
    head_rate: float = 4e-4
    weight_decay: float = 0.01
    warmup: float = 0.05
    decorrelation: float = 0.2
    contrast: float = 0.0
    imitation: float = 3.0
    labelled: float = 1.0
    balance: float = 1.0
    ema: float = 0.995
    round: int = 0


# What is not in a recipe's teachers: runs that differ in these alone have the same ones.
STUDENT_ONLY = (*TEACHER_ROWS, "steps", "learning_rate", "head_rate", "weight_decay", "warmup",
                "imitation", "labelled", "balance", "ema", "round")  # fmt: skip
LATER_ROUND = 1_000_000  # beyond the teachers' seeds


class Draw:
    """Mixed batches out of the rows that have vectors, reproducible by seed and step.

    Half of the pool's rows are drawn by their cell-balancing weight, so that rare cells count; the
    other half are whole families (groups of two to ``LARGEST_FAMILY`` messages), as many as make
    up about their number.
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
        pool = self.all[pool_of(data, self.all)]
        pool = pool[np.argsort(data.groups[pool], kind="stable")]
        found = np.split(pool, np.flatnonzero(np.diff(data.groups[pool])) + 1)
        self.families = [rows for rows in found if 2 <= len(rows) <= LARGEST_FAMILY]
        self._family_size = (
            float(np.mean([len(rows) for rows in self.families])) if self.families else 0.0
        )

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
                if self.families:
                    chosen = rng.choice(len(self.families), max(1, round(n / self._family_size)))
                    found += [self.families[i] for i in chosen]
                    continue
            found.append(rng.choice(part, n))
        return np.concatenate(found)


def places(data: Prepared, rows: Rows) -> Rows:
    """Row of the set → its place among ``rows``, −1 where it is not among them."""
    found = np.full(len(data.part), -1, np.int64)
    found[rows] = np.arange(len(rows))
    return found


def pool_of(data: Prepared, rows: Rows) -> NDArray[np.bool_]:
    """Which rows are of the labelled pool: the ones whose predicted axes are decorrelated."""
    return np.asarray(data.source[rows] == SOURCES.index("llm_label"))


def prose_of(data: Prepared) -> NDArray[np.bool_]:
    """Which of all rows are sentences out of context: the ones whose valence ridge teaches."""
    return np.isin(data.source, [SOURCES.index(name) for name in PROSE])


def loss_of(
    net: Heads,
    data: Prepared,
    rows: Rows,
    answer: Predicted,
    recipe: Recipe,
    device: str,
    balance: float = 1.0,
) -> Tensor:
    """Labels; over the pool's rows, independence of the axes and what sets families apart.

    ``balance``: exponent of the pool's weights about their mean, 1 as they are, 0 all the same.
    """
    chosen = torch.as_tensor(pool_of(data, rows), device=device)
    wanted = train.targets(data, rows, device)
    if balance != 1.0 and bool(chosen.any()):
        weight = wanted["weight"][chosen]
        wanted["weight"][chosen] = weight.mean() * (weight / weight.mean()) ** balance
    loss = supervised(net, answer, wanted)
    if recipe.decorrelation and int(chosen.sum()) > 3:
        loss = loss + recipe.decorrelation * decorrelation(answer.axes.float()[chosen])
    if recipe.contrast and int(chosen.sum()) > 1:
        family = data.groups[rows].astype(np.int64)
        loss = loss + recipe.contrast * contrast(
            answer.axes.float()[chosen],
            torch.as_tensor(data.axes[rows], device=device)[chosen],
            torch.as_tensor(family, device=device)[chosen],
        )
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


def published_teacher(data: Prepared, vectors: Array, rows: Rows, wide: Outputs) -> Outputs:
    """``wide`` with what ridge on EmoBank's train rows says of arousal, everywhere, and of valence
    on EmoBank's own rows and other prose, brought to the mean and spread that ``wide`` has on
    EmoBank.

    EmoBank's valence is the reader's and writer's of sentences out of context, on another scale:
    a teacher of its own follows it far better than heads shared with chat. The penalty is the one
    with the highest r on dev. A set without EmoBank has no such teacher: ``wide`` as it is.
    """
    place = places(data, rows)
    train_rows, dev = data.rows("train", "emobank"), data.rows("dev", "emobank")
    if not len(train_rows):
        return wide
    x = vectors[place[train_rows]]
    found = {k: v.copy() for k, v in wide.items()}
    for axis in (0, 2):
        best: tuple[float, Array] | None = None
        wanted = data.axes[train_rows, axis]
        for penalty in PENALTIES:
            said = Ridge(alpha=penalty).fit(x, wanted).predict(vectors).astype(np.float32)
            r = measure.pearson(said[place[dev]], data.axes[dev, axis])
            if best is None or r > best[0]:
                best = (r, said)
        assert best is not None
        if axis == 2:
            found["arousal"][rows] = best[1]
            continue
        own = rows[data.source[rows] == SOURCES.index("emobank")]
        said, before = best[1][place[own]], wide["axes"][own, 0]
        scale = before.std() / said.std()
        prose = rows[prose_of(data)[rows]]
        found["axes"][prose, 0] = (best[1][place[prose]] - said.mean()) * scale + before.mean()
    return found


def mixed(data: Prepared, wide: Outputs, own: Outputs, share: dict[str, float]) -> Outputs:
    """``share`` of the wide teachers in each output, the rest what the head said before."""
    found = {k: v if k not in share else share[k] * wide[k] + (1 - share[k]) * v
             for k, v in own.items()}  # fmt: skip
    rows = np.flatnonzero(prose_of(data))
    a = share["emobank valence"]
    found["axes"][rows, 0] = a * wide["axes"][rows, 0] + (1 - a) * own["axes"][rows, 0]
    return found


def choose_shares(data: Prepared, wide: Outputs, own: Outputs) -> dict[str, float]:
    """The share of the wide teachers that correlates best with dev labels, for axes (over the
    pool), EmoBank's valence and arousal. Tags follow the axes; the published emotions stay the
    head's own. Heads that are not served are all the teachers': the head may not have them."""
    pool, emobank = data.rows("dev", "llm_label"), data.rows("dev", "emobank")
    best: dict[str, tuple[float, float]] = {}
    for share in np.linspace(0.0, 1.0, 11):
        axes = share * wide["axes"] + (1 - share) * own["axes"]
        arousal = share * wide["arousal"] + (1 - share) * own["arousal"]
        r = [measure.pearson(axes[pool, i], data.axes[pool, i]) for i in range(len(AXES))]
        for key, score in (
            ("axes", float(np.mean(r))),
            ("emobank valence", measure.pearson(axes[emobank, 0], data.axes[emobank, 0])),
            ("arousal", measure.pearson(arousal[emobank], data.axes[emobank, 2])),
        ):
            if key not in best or score > best[key][0]:
                best[key] = (score, float(share))
    found = {key: share for key, (_, share) in best.items()}
    return {**found, "tags": found["axes"], **dict.fromkeys(UNSERVED, 1.0)}


def standardised(data: Prepared, vectors: Array, rows: Rows, draw: Draw) -> Array:
    """Vectors with mean 0 and deviation 1 over the rows that teach."""
    known = vectors[np.isin(rows, draw.all)]
    return np.asarray((vectors - known.mean(0)) / np.maximum(known.std(0), 1e-6), np.float32)


def teach(
    data: Prepared, vectors: Array, rows: Rows, draw: Draw, recipe: Recipe, run: Path, device: str
) -> Outputs:
    """The mean of what the wide teachers say of ``rows``; each is reported."""
    place = places(data, rows)
    total: Outputs = {}
    for i in range(recipe.teachers):
        net = wide_teacher(data, vectors, place, draw, recipe, recipe.seed * 100 + i + 1, device)
        said = read_all(net, vectors, rows, len(data.part), device)
        train.report(run, f"wide{i}", data, said)
        total = said if not total else {k: total[k] + said[k] for k in total}
    mean: Outputs = {k: v / recipe.teachers for k, v in total.items()}
    train.report(run, "wide", data, mean)
    return mean
