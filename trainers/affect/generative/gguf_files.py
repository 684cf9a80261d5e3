"""PyTorch weights → GGUF files that llama.cpp loads: a whole model, or a LoRA adapter alone.

Everything but the weights (tokenizer, chat template, shape) is copied from the base model's file,
so nothing is converted twice. Names come from gguf's own table. One thing is not a copy: llama.cpp
rotates neighbouring pairs of a query or key (RoPE, Su et al. 2021) where transformers rotates
halves, so the rows of those two maps are reordered, as llama.cpp's converter does it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from torch import nn

from sidecars.affect_prompt import KIND, MANIFEST_KEY, PROMPT_VERSION
from trainers.affect.errors import DataConfigError, DataError
from trainers.affect.generative.model import ARCHITECTURE
from trainers.affect.head.arrays import TAGS

Array = NDArray[np.float32]
_OWN_KEYS = ("GGUF.", "general.architecture", "general.file_type", "general.quantization_version",
             "general.name", MANIFEST_KEY)  # fmt: skip


def read(path: Path) -> gguf.GGUFReader:
    """Open a GGUF file.

    Raises:
        DataConfigError: missing, damaged or not GGUF.
    """
    try:
        return gguf.GGUFReader(path)
    except (OSError, ValueError, IndexError, KeyError, TypeError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataConfigError(f"{path}: cannot be read as GGUF ({why})") from error


def text_field(reader: gguf.GGUFReader, key: str) -> str:
    """A string of the metadata, empty where it is not there."""
    field = reader.get_field(key)
    return "" if field is None else str(field.contents())


def tensor_types(path: Path) -> dict[str, int]:
    """How many matrices of a file have which type, by name (``Q8_0`` …); vectors are left out."""
    found = Counter(t.tensor_type.name for t in read(path).tensors if len(t.shape) > 1)
    return dict(sorted(found.items()))


def manifest(name: str, confidence: Mapping[str, float] | None, **more: Any) -> str:
    """What a file says of itself, as JSON; the sidecar refuses a file without it."""
    body = {"kind": KIND, "name": name, "version": "1", "prompt": PROMPT_VERSION,
            "tags": list(TAGS), "confidence": confidence, **more}  # fmt: skip
    return json.dumps(body, sort_keys=True)


def write_model(base: Path, net: nn.Module, out: Path, *, name: str, described: str) -> None:
    """A whole model: ``base``'s metadata with the (merged) weights of ``net``; matrices as F16.

    Raises:
        DataConfigError: ``base`` is no llama model. DataError: a tensor is missing, has another
            shape or values that F16 cannot hold.
    """
    reader = read(base)
    _check_base(reader, base)
    weights = _by_gguf_name(reader, {n: p.detach().float().cpu().numpy()
                                     for n, p in net.state_dict().items()})  # fmt: skip
    part = out.with_suffix(".part")
    writer = gguf.GGUFWriter(part, ARCHITECTURE)
    for field in reader.fields.values():
        if not field.name.startswith(_OWN_KEYS):
            array = field.types[0] == gguf.GGUFValueType.ARRAY
            writer.add_key_value(
                field.name, field.contents(), field.types[0], field.types[-1] if array else None
            )
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_string(MANIFEST_KEY, described)
    for tensor in reader.tensors:
        if tensor.name not in weights:
            raise DataError(f"{base}: the network has no weights for its tensor {tensor.name}")
        value, shape = weights[tensor.name], tuple(int(n) for n in reversed(tensor.shape))
        if value.shape != shape:
            raise DataError(f"{tensor.name}: shape {value.shape}, {base.name} has {shape}")
        if value.ndim > 1:
            stored: NDArray[Any] = _half(value, tensor.name)
        else:
            stored = value
        writer.add_tensor(tensor.name, np.ascontiguousarray(stored))
    _finish(writer, part, out)


def lora_maps(net: nn.Module) -> dict[str, Array]:
    """The A [r, in] and B [out, r] of every LoRA map of a peft network, as ``NAME.weight/A``.

    Raises:
        DataError: it has none.
    """
    maps: dict[str, Array] = {}
    for key, value in net.state_dict().items():
        for side in ("A", "B"):
            if f".lora_{side}." in key:
                plain = key.removeprefix("base_model.model.").split(f".lora_{side}.")[0]
                maps[f"{plain}.weight/{side}"] = value.detach().float().cpu().numpy().copy()
    if not maps:
        raise DataError("the network has no LoRA maps; limbic train affect-generative makes them")
    return maps


def write_adapter(
    base: Path, maps: Mapping[str, Array], out: Path, *, name: str, alpha: float, described: str
) -> None:
    """``lora_maps`` alone, for use on top of ``base`` or another quantisation of it.

    Raises:
        DataConfigError: ``base`` is no llama model. DataError: a map without a name there.
    """
    reader = read(base)
    _check_base(reader, base)
    names, heads = _names(reader), _heads(reader)
    part = out.with_suffix(".part")
    writer = gguf.GGUFWriter(part, ARCHITECTURE)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_string(MANIFEST_KEY, described)
    for key, value in sorted(maps.items()):
        plain, side = key.rsplit("/", 1)
        target = names.get_name(plain, try_suffixes=(".weight",))
        if target is None:
            raise DataError(f"{plain}: llama.cpp has no name for it")
        if side == "B":  # rows of B are rows of the map's output
            value = _permute(value, target, heads)
        writer.add_tensor(f"{target}.lora_{side.lower()}", np.ascontiguousarray(value))
    _finish(writer, part, out)


def _check_base(reader: gguf.GGUFReader, path: Path) -> None:
    if text_field(reader, gguf.Keys.General.TYPE) == gguf.GGUFType.ADAPTER:
        raise DataConfigError(f"{path}: is a LoRA adapter; the base must be a whole model")
    found = text_field(reader, gguf.Keys.General.ARCHITECTURE)
    if found != ARCHITECTURE:
        raise DataConfigError(f"{path}: is a {found or 'nameless'} model; a llama model is needed")


def _number(reader: gguf.GGUFReader, key: str) -> int:
    field = reader.get_field(key.format(arch=ARCHITECTURE))
    if field is None:
        raise DataConfigError(f"{key.format(arch=ARCHITECTURE)}: missing in the base model's file")
    return int(field.contents())


def _heads(reader: gguf.GGUFReader) -> dict[str, int]:
    return {"attn_q": _number(reader, gguf.Keys.Attention.HEAD_COUNT),
            "attn_k": _number(reader, gguf.Keys.Attention.HEAD_COUNT_KV)}  # fmt: skip


def _names(reader: gguf.GGUFReader) -> gguf.TensorNameMap:
    layers = _number(reader, gguf.Keys.LLM.BLOCK_COUNT)
    return gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)


def _by_gguf_name(reader: gguf.GGUFReader, weights: Mapping[str, Array]) -> dict[str, Array]:
    names, heads, found = _names(reader), _heads(reader), {}
    for key, value in weights.items():
        target = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if target is not None:
            found[target] = _permute(value, target, heads)
    return found


def _permute(value: Array, name: str, heads: Mapping[str, int]) -> Array:
    """Rows of a query or key map from halves to neighbouring pairs; others as they are."""
    count = next((n for part, n in heads.items() if f".{part}." in name), 0)
    if not count:
        return value
    half = value.shape[0] // count // 2
    rest = value.shape[1:]
    return value.reshape(count, 2, half, *rest).swapaxes(1, 2).reshape(value.shape)


def _half(value: Array, name: str) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        small = value.astype(np.float16)
    if not np.isfinite(small).all():
        raise DataError(f"{name}: has values that F16 cannot hold; train with a smaller rate")
    return small


def _finish(writer: gguf.GGUFWriter, part: Path, out: Path) -> None:
    """Write it whole, then give it its name."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.replace(out)
