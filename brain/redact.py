"""Secrets never reach a log: keys and tokens are replaced wherever they stand in a string."""

from __future__ import annotations

import re

_SECRET = re.compile(
    r"(?i)\b(bearer\s+|api[_-]?key[\"'=:\s]+|token[\"'=:\s]+|password[\"'=:\s]+)"
    r"([A-Za-z0-9._~+/=-]{8,})|\b(sk-[A-Za-z0-9_-]{8,}|hf_[A-Za-z0-9]{8,})"
)


def scrub(text: str) -> str:
    """``text`` with bearer tokens, API keys and passwords replaced by ``***``."""
    return _SECRET.sub(lambda m: f"{m.group(1) or ''}***", text)


_UNSAFE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)


def printable(text: str) -> str:
    """``text`` safe to print: control characters, escape codes and direction overrides are shown
    as ``\\x1b`` and the like instead of acting on the terminal. Newline and tab stay."""
    return _UNSAFE.sub(lambda m: f"\\x{ord(m.group()):02x}", text)
