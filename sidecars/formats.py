"""Tell a model file's format from its bytes, never from its name.

Only three formats are ever loaded: GGUF, safetensors and ONNX. They hold data; loading one runs no
code from the file. Pickle and the archives that usually wrap it (PyTorch, joblib, NumPy object
arrays) can run code while they load and are refused, whatever they are called.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO, Literal, get_args

import orjson

from brain.errors import ArtifactCorrupt, ArtifactRefused

Format = Literal["gguf", "safetensors", "onnx"]
FORMATS: tuple[Format, ...] = get_args(Format)

MAX_SAFETENSORS_HEADER = 100 * 1024 * 1024
_GGUF_VERSIONS = range(2, 17)
_REFUSED: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "a zip archive (PyTorch, Keras or NumPy)"),
    (b"PK\x05\x06", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"\x93NUMPY", "a NumPy array, which may hold pickled objects"),
    (b"\x89HDF\r\n", "an HDF5 file"),
    (b"GGML", "an old GGML file"),
    (b"ggjt", "an old GGJT file"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
    (b"<!DOCTYPE", "a web page, not a model"),
    (b"<html", "a web page, not a model"),
)
_ONNX_FIELDS = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2}
_ONNX_GRAPH, _ONNX_MAX_FIELDS = 7, 100_000


def sniff(path: Path) -> Format:
    """The format of the file at ``path``, by its content.

    Raises:
        ArtifactRefused: a format that is never loaded.
        ArtifactCorrupt: one of the three, but its own structure says that it is incomplete.
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(64)
        if head[:4] == b"GGUF":
            _check_gguf(path, head)
            return "gguf"
        if why := _known_refusal(head):
            raise ArtifactRefused(
                f"{path}: is {why}; only GGUF, safetensors and ONNX files are loaded"
            )
        if _is_safetensors(path, file, head, size):
            return "safetensors"
        if _is_onnx(path, file, size):
            return "onnx"
    raise ArtifactRefused(
        f"{path}: is none of GGUF, safetensors and ONNX, the only formats that are loaded"
    )


def _known_refusal(head: bytes) -> str | None:
    if len(head) >= 2 and head[0] == 0x80 and 2 <= head[1] <= 5:
        return "a pickle, which can run code when it is loaded"
    return next((name for magic, name in _REFUSED if head.startswith(magic)), None)


def _check_gguf(path: Path, head: bytes) -> None:
    if len(head) < 24:
        raise ArtifactCorrupt(f"{path}: is cut off inside the GGUF header; fetch it again")
    version = int.from_bytes(head[4:8], "little")
    if version not in _GGUF_VERSIONS:
        raise ArtifactRefused(
            f"{path}: is GGUF version {version}; little-endian version 2 or newer is needed"
        )


def _is_safetensors(path: Path, file: BinaryIO, head: bytes, size: int) -> bool:
    """Layout: u64 header length, JSON header, then tensors that fill the rest of the file."""
    if len(head) < 10 or head[8:9] != b"{":
        return False
    (length,) = struct.unpack("<Q", head[:8])
    if length > MAX_SAFETENSORS_HEADER:
        return False
    if 8 + length > size:
        raise ArtifactCorrupt(f"{path}: is cut off inside the safetensors header; fetch it again")
    file.seek(8)
    try:
        header = orjson.loads(file.read(length))
        ends = [item["data_offsets"][1] for key, item in header.items() if key != "__metadata__"]
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError):
        return False
    if max(ends, default=0) != size - 8 - length:
        raise ArtifactCorrupt(
            f"{path}: holds {size - 8 - length} bytes of tensors but its header lists "
            f"{max(ends, default=0)}; fetch it again"
        )
    return True


def _is_onnx(path: Path, file: BinaryIO, size: int) -> bool:
    """ONNX has no magic bytes: walk the top-level protobuf fields of ``ModelProto``.

    The walk skips over contents, so it costs a few reads, and a file that ends too early shows.
    """
    file.seek(0)
    if file.read(1) != b"\x08":
        return False
    file.seek(0)
    seen: set[int] = set()
    for _ in range(_ONNX_MAX_FIELDS):
        if file.tell() == size:
            return _ONNX_GRAPH in seen
        key = _varint(file)
        if key is None or _ONNX_FIELDS.get(key >> 3) != key & 7:
            return False
        value = _varint(file)
        if value is None:
            return False
        seen.add(key >> 3)
        if key & 7 == 2:
            if file.tell() + value > size:
                if _ONNX_GRAPH in seen:
                    raise ArtifactCorrupt(f"{path}: is cut off inside the ONNX graph; fetch again")
                return False
            file.seek(value, os.SEEK_CUR)
    return False


def _varint(file: BinaryIO) -> int | None:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            return None
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    return None
