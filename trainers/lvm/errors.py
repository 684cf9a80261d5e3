"""Errors of the LVM trainers. Each message is one line that a person can act on."""

from __future__ import annotations

from brain.errors import EXIT_CONFIG, LimbicError


class LvmError(LimbicError):
    """Base of the LVM trainers' errors."""


class CorpusError(LvmError):
    """A corpus file is missing, malformed or has no document boundaries."""

    exit_code = EXIT_CONFIG


class VectorStoreError(LvmError):
    """A vector store is missing, damaged, half-built or from another encoder."""

    exit_code = EXIT_CONFIG


class VectorError(LvmError):
    """Vectors of the wrong shape or with NaN or infinite values."""


class TooFewWindows(LvmError):
    """A split is too small for what was asked."""


class UnknownPredictor(LvmError):
    """Neither a model folder nor the name of a baseline."""

    exit_code = EXIT_CONFIG
