"""Secrets never reach a log: keys and tokens are replaced wherever they stand in a string."""

from __future__ import annotations

import re
from typing import Any

_SECRET = re.compile(
    r"(?i)\b(bearer\s+|api[_-]?key[\"'=:\s]+|token[\"'=:\s]+|password[\"'=:\s]+)"
    r"([A-Za-z0-9._~+/=-]{8,})|\b(sk-[A-Za-z0-9_-]{8,}|hf_[A-Za-z0-9]{8,})"
)
# What every match holds, and its least length. Asked first, since the pattern takes longer over a
# reply than all that telemetry does with it otherwise; (?i) finds more than ASCII in other texts.
_MARKS = ("bearer", "api", "token", "password", "sk-", "hf_")
_SHORTEST = 11
_PLAIN = frozenset({float, int, bool, type(None)})


def scrub(text: str) -> str:
    """``text`` with bearer tokens, API keys and passwords replaced by ``***``."""
    if len(text) < _SHORTEST:
        return text
    if text.isascii():
        lower = text.lower()
        if not any(mark in lower for mark in _MARKS):
            return text
    return _SECRET.sub(lambda m: f"{m.group(1) or ''}***", text)


def scrub_all(value: Any) -> Any:
    """``value`` with every string in it scrubbed, however deep; what holds them is copied."""
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, dict):
        return {k: v if type(v) in _PLAIN else scrub_all(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [v if type(v) in _PLAIN else scrub_all(v) for v in value]
    return value


_UNSAFE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)


def printable(text: str) -> str:
    """``text`` safe to print: control characters, escape codes and direction overrides are shown
    as ``\\x1b`` and the like instead of acting on the terminal. Newline and tab stay."""
    return _UNSAFE.sub(lambda m: f"\\x{ord(m.group()):02x}", text)
