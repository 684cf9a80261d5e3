"""Token bytes → text that may be shown: whole characters only, and nothing of a stop sequence."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class ReplyText:
    """Feeds on the bytes of tokens; gives text as soon as it is certain.

    Bytes of an unfinished UTF-8 character wait for the rest. Text that may turn out to be the
    beginning of a stop sequence waits too. Bytes that can be no character become U+FFFD.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped = False

    def feed(self, data: bytes) -> str:
        """The text that ``data`` makes certain; after a stop sequence, nothing."""
        return self._take(self._decoder.decode(data))

    def finish(self) -> str:
        """What was held back, at the end of the reply."""
        text = self._take(self._decoder.decode(b"", final=True))
        text, self._held = text + self._held, ""
        return text

    def _take(self, new: str) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        if not self._stops:
            return text
        found = min((at for stop in self._stops if (at := text.find(stop)) >= 0), default=-1)
        if found >= 0:
            self.stopped = True
            self._held = ""
            return text[:found]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
