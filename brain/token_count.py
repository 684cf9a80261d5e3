"""How many tokens a text has: asked of the model's own tokenizer, or estimated safely.

Counts that the server gave are exact and cached. Where a server has no tokenizer route, they are
estimated from letters, marks and UTF-8 bytes, scaled by the prompt sizes it reports, on the safe
side: a prompt budget that is too small costs a little memory of the past, one that is too large
costs the turn.
"""

from __future__ import annotations

import math
import string
from collections import OrderedDict, deque
from collections.abc import Sequence

MAX_CACHED = 4_096
MAX_OBSERVED = 16

# Tokens per ASCII letter or blank; every other ASCII character, and every UTF-8 byte of others,
# counts as one token, which is the most that a byte-level vocabulary makes of it. Long words that
# the vocabulary lacks can exceed this; the tests hold it against a small vocabulary (49 thousand).
_PER_LETTER = 0.45
_LETTERS = (string.ascii_letters + string.whitespace).encode()
# Reported sizes may shrink an estimate to no less than this part of it, or raise it this far.
_MIN_SCALE, _MAX_SCALE = 0.4, 4.0
_MARGIN = 1.1


class TokenCache:
    """Exact counts by text; the least recently used are dropped. One server's, and no other's."""

    def __init__(self) -> None:
        self._counts: OrderedDict[str, int] = OrderedDict()

    def get(self, text: str) -> int | None:
        """The count of ``text``, if it is known."""
        count = self._counts.get(text)
        if count is not None:
            self._counts.move_to_end(text)
        return count

    def put(self, text: str, count: int) -> None:
        """Remember an exact count."""
        self._counts[text] = count
        self._counts.move_to_end(text)
        if len(self._counts) > MAX_CACHED:
            self._counts.popitem(last=False)


class TokenEstimate:
    """Estimates counts; learns from the prompt sizes that the server reports.

    The scale is the largest of the last ``MAX_OBSERVED`` reported-to-estimated ratios plus a
    margin, so one prompt of unusual text does not lead to an overfull next one.
    """

    def __init__(self) -> None:
        self._ratios: deque[float] = deque(maxlen=MAX_OBSERVED)

    @property
    def scale(self) -> float:
        """What the plain estimate is multiplied by; 1 until a size was reported."""
        if not self._ratios:
            return 1.0
        return min(max(max(self._ratios) * _MARGIN, _MIN_SCALE), _MAX_SCALE)

    def observe(self, texts: Sequence[str], prompt_tokens: int) -> None:
        """A prompt made of ``texts`` had ``prompt_tokens`` tokens, its template included."""
        plain = sum(_plain(text) for text in texts)
        if plain > 0 and prompt_tokens > 0:
            self._ratios.append(prompt_tokens / plain)

    def count(self, text: str) -> int:
        """Estimated tokens of ``text``: at least 1 unless it is empty."""
        return math.ceil(_plain(text) * self.scale)


def letters_and_rest(text: str) -> tuple[int, int]:
    """ASCII letters and blanks; and the other ASCII characters with the UTF-8 bytes of the rest."""
    data = text.encode("utf-8", "surrogatepass")
    rest = len(data.translate(None, _LETTERS))
    return len(data) - rest, rest


def _plain(text: str) -> float:
    letters, rest = letters_and_rest(text)
    return letters * _PER_LETTER + rest
