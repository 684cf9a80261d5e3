"""What a larger encoder says of the messages: the input of the wide teachers.

The larger encoder is frozen and is never served: its hidden states, averaged over a message's own
tokens at several depths, are computed once and kept. Middle layers of a sentence encoder say more
about affect than its sentence vector, which was trained to forget tone (docs/affect-head.md).
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainers.affect.head.arrays import MAX_TOKENS, SOURCES, Prepared
from trainers.affect.head.texts import Message
from trainers.affect.head.vectors import body_hash

ENCODER = "sentence-transformers/all-mpnet-base-v2"
LAYERS = (4, 6, 8, 10)
PER_FILE = 2048
BATCH = 32
# Sources that are there for volume: a limit of rows each is enough, the other sources come whole.
LARGE = ("goemotions", "xed", "chat")
SECOND = "\n"
Rows = NDArray[np.int64]


def choose(data: Prepared, limit: int, seed: int) -> Rows:
    """Rows worth the larger encoder's time: all that have measured axes, the variants, the
    prose, and ``limit`` train rows of each large source. Gold and pairs are among them only to be
    measured on."""
    found = [data.rows(part) for part in ("gold", "pair_a", "pair_b")]
    for name in SOURCES:
        if name in ("variant", "prose"):
            found.append(data.rows("unlabelled", name))
        elif name in LARGE:
            rows = data.rows("unlabelled" if name == "chat" else "train", name)
            rng = np.random.default_rng((seed, SOURCES.index(name)))
            found.append(np.sort(rng.permutation(rows)[:limit]))
        elif name != "pair":
            found += [data.rows(part, name) for part in ("train", "dev", "test")]
    return np.unique(np.concatenate(found))


class WideEncoder:
    """A transformers encoder, cut after the last layer that is read.

    Args:
        name: a model folder, or a name that the hub knows.
        layers: 1-based; the vectors of these are put side by side.
    """

    def __init__(self, name: str, layers: Sequence[int] = LAYERS, device: str = "cpu") -> None:
        if Path(name).is_absolute() and not Path(name).is_dir():
            raise ValueError(f"{name}: no such model folder")
        # Imported here: transformers takes seconds, and refusals should not.
        from transformers import AutoModel, AutoTokenizer

        self.layers, self.device = tuple(layers), device
        self._tokenizer = AutoTokenizer.from_pretrained(name)
        net = AutoModel.from_pretrained(name)
        if not hasattr(net, "encoder") or not hasattr(net.encoder, "layer"):
            raise ValueError(f"{name}: not an encoder of the BERT kind (BERT, RoBERTa, MPNet)")
        depth = len(net.encoder.layer)
        if not all(1 <= layer <= depth for layer in layers):
            raise ValueError(f"{name} has layers 1 to {depth}; asked for {list(layers)}")
        net.encoder.layer = net.encoder.layer[: max(layers)]
        self._net = net.to(device).eval()
        self.width = int(net.config.hidden_size) * len(self.layers)
        self.digest = body_hash(self._net)

    @torch.inference_mode()
    def vectors(self, messages: Sequence[Message]) -> NDArray[np.float16]:
        """Means over each message's own tokens, [n, width]; the context is the second segment."""
        out = np.empty((len(messages), self.width), np.float16)
        # An empty second segment is not none: the two kinds do not share a batch.
        for paired in (False, True):
            places = [i for i, m in enumerate(messages) if bool(m.context) is paired]
            places.sort(key=lambda i: len(messages[i].text) + len(SECOND.join(messages[i].context)))
            for start in range(0, len(places), BATCH):
                part = places[start : start + BATCH]
                out[part] = self._batch([messages[i] for i in part], paired=paired)
        return out

    def _batch(self, part: Sequence[Message], *, paired: bool) -> NDArray[np.float16]:
        texts: tuple[list[str], ...] = ([m.text for m in part],)
        if paired:
            texts = (*texts, [SECOND.join(m.context) for m in part])
        read = self._tokenizer(
            *texts, truncation=True, max_length=MAX_TOKENS, padding=True, return_tensors="pt"
        )
        own = [[s == 0 for s in read.sequence_ids(i)] for i in range(len(part))]
        mask = torch.tensor(own, device=self.device)[..., None].float()
        states = self._net(
            input_ids=read["input_ids"].to(self.device),
            attention_mask=read["attention_mask"].to(self.device),
            output_hidden_states=True,
        ).hidden_states
        total = mask.sum(1).clamp(min=1.0)
        means = [(states[layer] * mask).sum(1) / total for layer in self.layers]
        found: NDArray[np.float16] = torch.cat(means, 1).cpu().numpy().astype(np.float16)
        return found


def wide_vectors(
    encoder: Any, messages: Sequence[Message], data: Prepared, rows: Rows, folder: Path
) -> NDArray[np.float16]:
    """Vectors [len(rows), width] in the order of ``rows``.

    They are kept in ``folder``, in files of ``PER_FILE`` rows that are bound to the encoder, its
    layers and the set: a killed run goes on after the last whole file.
    """
    kind = {"encoder": encoder.digest, "layers": list(encoder.layers), "data": data.digest}
    folder.mkdir(parents=True, exist_ok=True)
    said = folder / "vectors.json"
    if said.exists() and json.loads(said.read_text()) != kind:
        raise ValueError(f"{folder}: holds vectors of another encoder or set; give another folder")
    said.write_text(json.dumps(kind) + "\n")
    known: dict[int, tuple[int, int]] = {}
    files = sorted(folder.glob("part-*.npz"))
    for number, path in enumerate(files):
        with np.load(path) as file:
            known |= {int(row): (number, i) for i, row in enumerate(file["rows"])}
    missing = np.asarray([row for row in rows.tolist() if row not in known], np.int64)
    began = time.monotonic()
    for start in range(0, len(missing), PER_FILE):
        part = missing[start : start + PER_FILE]
        values = encoder.vectors([messages[i] for i in part])
        path = folder / f"part-{len(files):05d}.npz"
        _write(path, part, values)
        known |= {int(row): (len(files), i) for i, row in enumerate(part)}
        files.append(path)
        rate = (start + len(part)) / max(1e-9, time.monotonic() - began)
        left = (len(missing) - start - len(part)) / rate
        print(f"wide vectors {start + len(part)}/{len(missing)}, {rate:.0f}/s, {left:.0f} s left",
              flush=True)  # fmt: skip
    out = np.empty((len(rows), encoder.width), np.float16)
    places = np.asarray([known[row] for row in rows.tolist()], np.int64)
    for number, path in enumerate(files):
        here = places[:, 0] == number
        if here.any():
            with np.load(path) as file:
                out[here] = file["values"][places[here, 1]]
    return out


def _write(path: Path, rows: Rows, values: NDArray[np.float16]) -> None:
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez(file, rows=rows, values=values)
    part.replace(path)
