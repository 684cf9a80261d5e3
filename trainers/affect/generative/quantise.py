"""llama.cpp's own quantiser, through llama-cpp-python's binding.

Q6_K works on blocks of 256 weights of one row. SmolLM2's rows are 576 wide (but 1,536 in
``ffn_down``), which no 256 divides: for such matrices llama.cpp itself takes Q8_0, whose blocks are
32. ``gguf_files.tensor_types`` shows what a file really holds.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import gguf

from trainers.affect.errors import DataConfigError, DataError
from trainers.affect.generative.gguf_files import read, text_field

TYPES = {"Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0, "Q6_K": gguf.LlamaFileType.MOSTLY_Q6_K}


def quantise(source: Path, out: Path, kind: str, *, threads: int = 1) -> None:
    """Write ``source``, a whole model, in a smaller type.

    Raises:
        DataConfigError: ``source`` is an adapter alone, damaged or no model; or an unknown type.
        DataError: llama.cpp refused.
    """
    if kind not in TYPES:
        raise DataConfigError(f"type {kind!r}: choose {' or '.join(TYPES)}")
    if text_field(read(source), gguf.Keys.General.TYPE) == gguf.GGUFType.ADAPTER:
        raise DataConfigError(
            f"{source}: is a LoRA adapter, not a whole model, and cannot be quantised; merge it "
            "into its base first (limbic export affect-generative writes model-F16.gguf)"
        )
    # Imported here: it loads the native library, which a refusal does not need.
    import llama_cpp.llama_cpp as lib

    from sidecars.llama_model import last_errors

    errors = last_errors()
    errors.clear()
    params = lib.llama_model_quantize_default_params()
    params.nthread, params.ftype = threads, int(TYPES[kind])
    part = out.with_suffix(".part")
    status = lib.llama_model_quantize(
        str(source).encode(), str(part).encode(), ctypes.byref(params)
    )
    if status != 0:
        part.unlink(missing_ok=True)
        raise DataError(f"{source}: llama.cpp could not quantise it to {kind} ({errors.last()})")
    part.replace(out)
