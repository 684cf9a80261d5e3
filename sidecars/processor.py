"""Which products this processor is fast at, as its operating system says."""

from __future__ import annotations

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
# Names of the kernel for instructions that sum products of int8: AVX-512 VNNI, AVX-VNNI, AMX, Arm.
INTEGER_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"})


def multiplies_int8(cpuinfo: Path = CPUINFO) -> bool:
    """Whether the processor has an instruction for int8 products; true where it is not known.

    Args:
        cpuinfo: a file in the form of Linux's ``/proc/cpuinfo``. The line ``flags`` (x86) or
            ``Features`` (Arm) of its first processor counts.
    """
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return True
    for line in lines:
        key, _, words = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return not INTEGER_FLAGS.isdisjoint(words.split())
    return True
