"""What can go wrong in the data pipeline.

DataError                 one line: what is wrong, where, what to do       exit 1
├── BadRow                a row that breaks the schema, named by file and line
├── TooManyRejects        more than the allowed share of the rows were rejected
├── SourceMissing         a public file is absent, truncated or has another checksum
├── LeakFound             one text, near-copy, session, thread or frame is in two splits
├── GoldRefused           a gold row was on its way into a training set
└── DataConfigError       a mapping or source file under ``config/data`` is wrong   exit 78
"""

from __future__ import annotations


class DataError(Exception):
    """Base of all pipeline errors; the message is one line that a person can act on."""

    exit_code = 1


class BadRow(DataError):
    """A row that breaks the schema of :class:`trainers.affect.rows.AffectRow`."""


class TooManyRejects(DataError):
    """More rows were rejected than the caller allows."""


class SourceMissing(DataError):
    """A source file is absent, cut short, or is not the published one."""


class LeakFound(DataError):
    """The same words, session, thread, frame or minimal pair appear in two splits."""


class GoldRefused(DataError):
    """Gold rows are for measuring only; something tried to train on them."""


class DataConfigError(DataError):
    """A file under ``config/data`` cannot be used as it is."""

    exit_code = 78
