"""Which tokens need no evaluation: the live sequence's common prefix, or that of a saved state.

A model has one live sequence. A conversation's next prompt mostly begins with what is live, so only
the rest is evaluated. When another conversation's prompt comes, what it would overwrite is first
copied to memory, and copied back when that conversation goes on. Copies are bounded in bytes, the
least recently used go first.

A copy costs about a hundredth of what evaluating the same tokens costs, but is worth nothing
unless its conversation returns. So a state is saved only if at least ``worth_saving`` *prompt*
tokens would be lost: the next turn of the same conversation loses the last reply's tokens and a
short tail, another conversation's turn loses a whole history.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from sidecars.token_model import TokenModel

WORTH_SAVING_TOKENS = 96


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of equal leading items; whole-slice comparisons, so it costs microseconds."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


@dataclass(frozen=True, slots=True, eq=False)
class _Saved:
    tokens: array[int]
    prompt_length: int
    state: object
    size: int


class PrefixCache:
    """Owns the model's live sequence; to be used by the one thread that evaluates.

    Args:
        budget_bytes: most memory for saved states; 0 saves none.
    """

    def __init__(
        self, model: TokenModel, *, budget_bytes: int, worth_saving: int = WORTH_SAVING_TOKENS
    ) -> None:
        self._model = model
        self._budget = budget_bytes
        self._worth_saving = worth_saving
        self._live: array[int] = array("i")
        self._prompt_length = 0
        self._saved: list[_Saved] = []  # least recently used first

    @property
    def length(self) -> int:
        """Tokens in the live sequence."""
        return len(self._live)

    @property
    def saved_bytes(self) -> int:
        """Memory held by saved states."""
        return sum(saved.size for saved in self._saved)

    def holds(self, tokens: Sequence[int]) -> bool:
        """Whether the live sequence begins with all of ``tokens``."""
        return len(tokens) <= len(self._live) and self._overlap(tokens) == len(tokens)

    def adopt(self, prompt: Sequence[int], *, reusable: int) -> int:
        """Make the live sequence the longest known prefix of ``prompt[:reusable]``.

        Returns its length: evaluation goes on from there.
        """
        wanted = array("i", prompt[:reusable])
        overlap = common_prefix(self._live, wanted)
        best = max(self._saved, key=lambda s: common_prefix(s.tokens, wanted), default=None)
        if best is not None and (found := common_prefix(best.tokens, wanted)) > overlap:
            self._keep_if_worth(overlap)
            overlap = self._bring_back(best, found)
        elif len(self._live) > overlap:
            self._keep_if_worth(overlap)
        self._cut(overlap)
        return len(self._live)

    def extend(self, tokens: Sequence[int], *, logits: bool, generated: bool = False) -> bool:
        """Evaluate ``tokens`` after the live sequence; false when interrupted.

        After an interruption the sequence is as before, or empty; ``length`` tells.
        """
        try:
            done = self._model.evaluate(tokens, len(self._live), logits=logits)
        except BaseException:
            self.clear()
            raise
        if done:
            self._live.extend(tokens)
            if not generated:
                self._prompt_length = len(self._live)
        elif self._model.length() != len(self._live):
            self.clear()  # a kind of model that cannot undo half a step
        return done

    def clear(self) -> None:
        """Forget the live sequence; saved states stay."""
        self._model.truncate(0)
        self._live = array("i")
        self._prompt_length = 0

    def _overlap(self, tokens: Sequence[int]) -> int:
        return common_prefix(self._live, array("i", tokens))

    def _cut(self, length: int) -> None:
        if length == len(self._live):
            return
        if self._model.truncate(length):
            del self._live[length:]
            self._prompt_length = min(self._prompt_length, length)
        else:
            self.clear()

    def _keep_if_worth(self, overlap: int) -> None:
        """Save the live sequence unless dropping it after ``overlap`` tokens loses little."""
        if self._prompt_length - overlap < self._worth_saving:
            return
        size = self._model.snapshot_bytes()
        if size > self._budget:
            return
        # A shorter copy that this one contains is no longer needed.
        live = self._live
        self._saved = [s for s in self._saved if common_prefix(s.tokens, live) < len(s.tokens)]
        self._make_room(size)
        state = self._model.snapshot()
        self._saved.append(_Saved(array("i", self._live), self._prompt_length, state, size))

    def _make_room(self, size: int) -> None:
        while self._saved and self.saved_bytes + size > self._budget:
            self._saved.pop(0)

    def _bring_back(self, saved: _Saved, overlap: int) -> int:
        self._saved = [other for other in self._saved if other is not saved]
        if not self._model.restore(saved.state):
            self._live = array("i")
            self._prompt_length = 0
            return 0
        self._live = array("i", saved.tokens)
        self._prompt_length = saved.prompt_length
        if saved.prompt_length - overlap >= self._worth_saving:
            self._make_room(saved.size)
            self._saved.append(saved)  # only its beginning is wanted now: its owner may return
        return overlap
