"""Which tokens need no evaluation: the live sequence's common prefix, or that of a saved state.

A model has one live sequence. A conversation's next prompt mostly begins with what is live, so only
the rest is evaluated. When another conversation's prompt comes, what it would overwrite is first
copied to memory, and copied back when that conversation goes on. Copies are bounded in bytes, the
least recently used go first.

A copy costs about a hundredth of what evaluating the same tokens costs, but is worth nothing
unless its conversation returns. So a state is saved only if at least ``worth_saving`` *prompt*
tokens would be lost: the next turn of the same conversation loses the last reply's tokens and a
short tail, another conversation's turn loses a whole history.

With ``files``, the copies and the live sequence can also be put on disk (``plan``), and what an
earlier process left there is known from the start and read when it is wanted.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from sidecars.state_files import Saved, StateFiles, Stored
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


class PrefixCache:
    """Owns the model's live sequence; to be used by the one thread that evaluates.

    Args:
        budget_bytes: most memory for saved states; 0 saves none.
        files: where states outlive the process; read here, once.
    """

    def __init__(
        self,
        model: TokenModel,
        *,
        budget_bytes: int,
        worth_saving: int = WORTH_SAVING_TOKENS,
        files: StateFiles | None = None,
    ) -> None:
        self._model = model
        self._budget = budget_bytes
        self._worth_saving = worth_saving
        self._live: array[int] = array("i")
        self._prompt_length = 0
        self._files = files
        stored = [] if files is None else files.read_all()
        # Least recently used first.
        self._saved = [Saved(one.tokens, one.prompt_length, one) for one in stored]
        self._on_disk = [one.tokens for one in stored]
        self.from_disk = 0

    @property
    def length(self) -> int:
        """Tokens in the live sequence."""
        return len(self._live)

    @property
    def saved_bytes(self) -> int:
        """Memory held by saved states."""
        return sum(saved.memory_bytes for saved in self._saved)

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

    def worth_storing(self) -> bool:
        """Whether a restart now would have to evaluate much that is not on disk."""
        held = [(self._live, self._prompt_length)]
        held += [(s.tokens, s.prompt_length) for s in self._saved]
        return self._files is not None and any(
            length - max((common_prefix(tokens, d) for d in self._on_disk), default=0)
            >= self._worth_saving
            for tokens, length in held
        )

    def plan(self) -> list[Saved]:
        """What ``StateFiles.keep`` is to put on disk now; may be written in another thread."""
        live = self._live
        states = [s for s in self._saved if common_prefix(s.tokens, live) < len(s.tokens)]
        if self._prompt_length >= self._worth_saving:
            states.append(Saved(array("i", live), self._prompt_length, self._model.snapshot()))
        self._on_disk = [one.tokens for one in states]
        return states

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
        self._saved.append(
            Saved(array("i", self._live), self._prompt_length, self._model.snapshot())
        )

    def _make_room(self, size: int) -> None:
        while self.saved_bytes + size > self._budget:
            oldest = next((s for s in self._saved if s.memory_bytes), None)
            if oldest is None:
                return
            self._saved = [s for s in self._saved if s is not oldest]

    def _bring_back(self, saved: Saved, overlap: int) -> int:
        self._saved = [other for other in self._saved if other is not saved]
        if not self._restore(saved.state):
            self.clear()
            return 0
        self._live = array("i", saved.tokens)
        self._prompt_length = saved.prompt_length
        if saved.prompt_length - overlap >= self._worth_saving:
            self._make_room(saved.memory_bytes)
            self._saved.append(saved)  # only its beginning is wanted now: its owner may return
        return overlap

    def _restore(self, state: bytearray | Stored) -> bool:
        if not isinstance(state, Stored):
            return self._model.restore(state)
        assert self._files is not None
        found = self._files.use(state, self._model.restore)
        self.from_disk += found
        if not found:  # it is not on disk any more
            self._on_disk = [tokens for tokens in self._on_disk if tokens is not state.tokens]
        return found
