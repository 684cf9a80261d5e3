"""Texts in, named arrays out: a tokenizer and an ONNX text model, run without PyTorch.

A folder holds ``manifest.json`` (name, version, kind, ``max_tokens``, and size and SHA-256 of every
other file), ``tokenizer.json`` (Hugging Face tokenizers) and ``model.onnx`` with the inputs
``input_ids``, ``attention_mask`` and ``token_type_ids``, int64 [B, T]. Nothing is loaded that the
manifest does not vouch for.

``model.onnx`` multiplies in int8. Where ``float32.onnx`` lies beside it, the same weights can be
multiplied in float32: that file is a graph whose tensors are ranges of bytes of ``model.onnx``,
multiplied out once, when it is loaded. A processor without instructions for int8 products is faster
at that, for more memory.
"""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import onnxruntime
import orjson
from numpy.typing import NDArray
from tokenizers import Tokenizer

from brain.errors import ConfigError
from sidecars.hashing import hash_file
from sidecars.processor import multiplies_int8

MAX_BATCH = 32
# A batch is padded to its longest text: beyond this many tokens it is cut into smaller ones, which
# keeps memory below 200 MB and does not slow messages of 30 tokens, 32 at a time.
MAX_BATCH_TOKENS = 1024
# Float32 weights take the memory that the other half of such a batch would need.
MAX_FLOAT_BATCH_TOKENS = 512
# Characters a token that are looked at before a long text is cut: four times what words have.
CHARS_A_TOKEN = 16
MODEL_FILE = "model.onnx"
FLOAT_FILE = "float32.onnx"
TOKENIZER_FILE = "tokenizer.json"
MANIFEST_FILE = "manifest.json"
WEIGHTS_SHA256 = "weights_sha256"  # in float32.onnx: of the model.onnx whose bytes it reads

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
Outputs = dict[str, NDArray[np.float32]]
Feed = dict[str, NDArray[np.int64]]
Products = Literal["int8", "float32"]


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a weights folder, with every file it names verified by size and SHA-256.

    Raises:
        ConfigError: no folder, no or bad manifest, a file missing or altered (exit code 78).
    """
    folder = Path(folder)
    path = folder / MANIFEST_FILE
    try:
        manifest = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"{path}: not found; a model folder holds a {MANIFEST_FILE}") from None
    except (OSError, orjson.JSONDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON ({error})") from error
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or not files:
        raise ConfigError(f"{path}: names no files; it is not the manifest of a model")
    for name, expected in files.items():
        if not _FILE_NAME.fullmatch(name) or not isinstance(expected, dict):
            raise ConfigError(f"{path}: the entry of {name[:60]!r} under files is malformed")
        _verify(folder / name, expected, path)
    found: dict[str, Any] = manifest
    return found


def _verify(path: Path, expected: dict[str, Any], manifest: Path) -> None:
    try:
        # The size first: a link to a device or a pipe would be read without end.
        size = path.stat().st_size
        if not path.is_file() or size != expected.get("size"):
            raise ConfigError(
                f"{path}: {size} bytes where {manifest.name} says otherwise; reinstall the model"
            )
        # In pieces: whole, the allocator would from then on keep as much as the file is long.
        sha256 = hash_file(path)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; reinstall the model") from error
    if sha256 != expected.get("sha256"):
        raise ConfigError(f"{path}: altered; its SHA-256 is not the one in {manifest.name}")


def choose_products(wanted: str, files: Container[str], *, where: str) -> Products:
    """What to multiply in: ``int8``, ``float32``, or for ``auto`` what this processor is faster at.

    Args:
        files: names of the model's files; without ``float32.onnx`` there is int8 alone.
        where: the manifest, for the message.

    Raises:
        ConfigError: no such products, or ``float32`` of a model that has no graph for them.
    """
    if wanted == "auto":
        return "int8" if FLOAT_FILE not in files or multiplies_int8() else "float32"
    if wanted == "int8":
        return "int8"
    if wanted != "float32":
        raise ConfigError(f"products must be auto, int8 or float32 (got {wanted[:40]!r})")
    if FLOAT_FILE not in files:
        raise ConfigError(
            f"{where}: {FLOAT_FILE} is not listed, so the model multiplies in int8 alone; add it "
            "with: python -m trainers.encoder.float_graph FOLDER"
        )
    return "float32"


class Tokens(NamedTuple):
    """What the model reads of one text and its second segment (kind 1)."""

    ids: list[int]
    kinds: list[int]


class TextModel:
    """A verified text model; ``run`` is safe to call from one thread at a time."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        tokenizer: Tokenizer,
        manifest: dict[str, Any],
        products: Products = "int8",
    ) -> None:
        self._session = session
        self._tokenizer = tokenizer
        self.manifest = manifest
        self.products = products
        self._limit = int(manifest["max_tokens"])
        self._batch_tokens = MAX_BATCH_TOKENS if products == "int8" else MAX_FLOAT_BATCH_TOKENS
        self.outputs: tuple[str, ...] = tuple(o.name for o in session.get_outputs())

    @classmethod
    def load(cls, folder: str | Path, *, threads: int = 1, products: str = "int8") -> TextModel:
        """Verify and load a folder.

        Args:
            threads: what one inference may use.
            products: ``int8``, ``float32`` or ``auto`` (``choose_products``).

        Raises:
            ConfigError: it is missing, altered, not a text model, or lacks these products (exit
                code 78).
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        for name in (MODEL_FILE, TOKENIZER_FILE):
            if name not in manifest["files"]:
                raise ConfigError(f"{folder / MANIFEST_FILE}: {name} is not listed")
        limit = manifest.get("max_tokens")
        if not isinstance(limit, int) or not 8 <= limit <= 8192:
            raise ConfigError(f"{folder / MANIFEST_FILE}: max_tokens must be 8 to 8192")
        chosen = choose_products(products, manifest["files"], where=str(folder / MANIFEST_FILE))
        file = MODEL_FILE
        options = onnxruntime.SessionOptions()
        if chosen == "float32":
            file = FLOAT_FILE
            # Weights are otherwise kept quantised, to be multiplied out anew in every product.
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Threads would otherwise spin on after an answer, on cores that the chat model needs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        # Batches differ in shape: an arena would keep the largest one ever seen resident.
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        options.log_severity_level = 4  # what goes wrong is raised, and told once
        try:
            tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
            session = onnxruntime.InferenceSession(
                str(folder / file), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # both libraries raise types of their own
            raise ConfigError(f"{folder}: cannot be loaded ({first_line(error)})") from error
        wanted = {"input_ids", "attention_mask", "token_type_ids"}
        if {i.name for i in session.get_inputs()} != wanted:
            raise ConfigError(f"{folder / file}: not a text model of this project")
        # Ranges of bytes mean nothing in another file of weights.
        made_for = session.get_modelmeta().custom_metadata_map.get(WEIGHTS_SHA256)
        if chosen == "float32" and made_for != manifest["files"][MODEL_FILE].get("sha256"):
            raise ConfigError(
                f"{folder / file}: made for another {MODEL_FILE}; make it again with: "
                f"python -m trainers.encoder.float_graph {folder}"
            )
        # The library's own truncation keeps what it cuts, for a pair in every combination: two long
        # texts would take all memory.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return cls(session, tokenizer, manifest, chosen)

    @property
    def sha256(self) -> str:
        """SHA-256 of the file that holds the weights, whatever they are multiplied in."""
        return str(self.manifest["files"][MODEL_FILE]["sha256"])

    def count_tokens(self, text: str) -> int:
        """Tokens of ``text`` as the model would read it, at most ``max_tokens``."""
        return len(self.read(text, "").ids)

    def is_cut(self, text: str) -> bool:
        """Whether ``text`` alone is longer than the model reads."""
        part = self._beginning(text)
        return len(part) < len(text) or len(self._tokenizer.encode(part).ids) > self._limit

    def _beginning(self, text: str) -> str:
        """``text``, or as much of it as is worth the tokenizer's time where it is very long."""
        size = CHARS_A_TOKEN * self._limit
        return text if len(text) <= size else text[: max(text.rfind(" ", 0, size), size // 2)]

    def read(self, text: str, second: str) -> Tokens:
        """Both segments within the limit. ``second`` loses its beginning first; only a ``text``
        that is too long alone is cut, at its end."""
        text = self._beginning(text)
        ids = self._tokenizer.encode(text).ids
        if len(ids) > self._limit:
            ids = ids[: self._limit - 1] + ids[-1:]  # its end mark stays
        alone = Tokens(ids, [0] * len(ids))
        room = self._limit - len(ids) - 1
        if not second or room <= 0:
            return alone
        second = second[-CHARS_A_TOKEN * self._limit :]
        begins = [b for b, _ in self._tokenizer.encode(second, add_special_tokens=False).offsets]
        # A part that begins within a word can have more pieces than it had as part of the whole.
        for start in begins[-room:]:
            pair = self._tokenizer.encode(text, second[start:])
            if len(pair.ids) <= self._limit:
                return Tokens(pair.ids, pair.type_ids)
        return alone

    def infer(self, arrays: Feed) -> Outputs:
        """Every output of the model for one batch of token arrays, as ``feed`` makes them."""
        return dict(zip(self.outputs, self._session.run(None, arrays), strict=True))

    def run(self, texts: Sequence[str], pairs: Sequence[str | None] | None = None) -> Outputs:
        """Every output of the model for ``texts``, in their order.

        Args:
            pairs: a second segment for each text (``None`` or empty: none). Where both are too
                long it is the second that is cut, at its beginning.

        Returns:
            Output name → array of shape [N, …].
        """
        if not texts:
            return {name: np.zeros((0,), np.float32) for name in self.outputs}
        seconds = pairs if pairs is not None else [None] * len(texts)
        read = [self.read(a, b or "") for a, b in zip(texts, seconds, strict=True)]
        order = sorted(range(len(read)), key=lambda i: len(read[i].ids))
        parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in self.outputs}
        start = 0
        while start < len(order):
            stop = min(start + MAX_BATCH, len(order))
            while stop - start > 1 and len(read[order[stop - 1]].ids) * (stop - start) > (
                self._batch_tokens
            ):
                stop -= 1
            answer = self.infer(feed([read[i] for i in order[start:stop]]))
            for name, array in answer.items():
                parts[name].append(array)
            start = stop
        back = np.argsort(np.asarray(order), kind="stable")
        return {name: np.concatenate(chunks)[back] for name, chunks in parts.items()}


def feed(batch: Sequence[Tokens]) -> Feed:
    """The model's inputs, int64 ``[B, T]`` each, padded at the end."""
    shape = (len(batch), max(len(e.ids) for e in batch))
    ids, mask, kinds = (np.zeros(shape, np.int64) for _ in range(3))
    for row, tokens in enumerate(batch):
        length = len(tokens.ids)
        ids[row, :length] = tokens.ids
        mask[row, :length] = 1
        kinds[row, :length] = tokens.kinds
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": kinds}


def first_line(error: Exception) -> str:
    """What a library's error says, as one short line."""
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else repr(error)
