"""Runs llama-cpp-python's own server, as ``python -m llama_cpp.server`` does, on any processor.

Where the library was compiled with AMX by a compiler older than GCC 13, its AMX code faults. AMX is
one of llama.cpp's "extra buffer types"; the server has no option to leave them out, so this does.
"""

from __future__ import annotations

import runpy
from typing import Any

from llama_cpp import llama_cpp as lib

_defaults = lib.llama_model_default_params


def _without_extra_buffers() -> Any:
    params = _defaults()
    params.use_extra_bufts = False
    return params


if __name__ == "__main__":
    if b"AMX_INT8 = 1" in lib.llama_print_system_info():
        lib.llama_model_default_params = _without_extra_buffers
    runpy.run_module("llama_cpp.server", run_name="__main__")
