"""llama.cpp with a grammar, and with a look at several continuations in one step.

A grammar (GBNF) is llama.cpp's own sampler. It is asked about the likeliest token first, since that
is nearly always allowed and asking about one costs nothing; only otherwise about the vocabulary.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

from brain.errors import ArtifactCorrupt, ConfigError
from sidecars.artifacts import Artifact
from sidecars.llama_model import LlamaModel, LlamaOptions
from sidecars.service import Progress
from sidecars.token_model import EngineFailure

Logits = NDArray[np.float32]
MAX_BRANCHES = 2
CHUNK_TOKENS = 64
MAX_METADATA_BYTES = 64 * 1024
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class GrammarModel(LlamaModel):
    """A GGUF chat model; one thread at a time. Sequence 0 is the live one, branches use others."""

    def __init__(
        self,
        artifact: Artifact,
        *,
        context_tokens: int,
        threads: int,
        adapter: Artifact | None = None,
        progress: Progress = lambda _: None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """Load, with a LoRA ``adapter`` on top where one is given.

        Raises:
            ArtifactCorrupt: the adapter is damaged or of another model; and what ``LlamaModel``
                raises.
        """
        options = LlamaOptions(
            context_tokens=context_tokens, threads=threads, chunk_tokens=CHUNK_TOKENS,
            sequences=1 + MAX_BRANCHES,
        )  # fmt: skip
        super().__init__(artifact, options, progress=progress, stopping=stopping)
        self._forked = _ForkBatch(CHUNK_TOKENS)
        self._adapter: Any = None
        if adapter is not None:
            try:
                self._adapt(adapter)
            except ArtifactCorrupt:
                self.close()
                raise

    def metadata(self, key: str) -> str:
        """A string of the metadata of the adapter, else of the model; empty where it is not."""
        read, owner = lib.llama_model_meta_val_str, self._model
        if self._adapter is not None:
            read, owner = lib.llama_adapter_meta_val_str, self._adapter
        buffer = ctypes.create_string_buffer(MAX_METADATA_BYTES)
        size = int(read(owner, key.encode(), buffer, len(buffer)))
        return buffer.value.decode("utf-8", "replace") if 0 <= size < len(buffer) else ""

    def grammar(self, text: str) -> Grammar:
        """A GBNF grammar over this model's tokens; raises ConfigError when it is malformed."""
        return Grammar(self._vocab, text)

    def append(self, tokens: Sequence[int]) -> None:
        """Add tokens to the live sequence, in steps; the last one's logits are kept."""
        for start in range(0, len(tokens), CHUNK_TOKENS):
            self.evaluate(tokens[start : start + CHUNK_TOKENS], self.length(), logits=True)

    def logits(self) -> Logits:
        """Those of the last token of the last step, a copy [vocabulary]."""
        return self._logits(-1)

    def fork(self, shared: Sequence[int], branches: Sequence[Sequence[int]]) -> list[list[Logits]]:
        """Look at what follows ``shared`` on several ways, in one step.

        ``shared`` (at least one token) joins the live sequence; the branches are forgotten.

        Returns:
            Logits [vocabulary] after the last shared token and after each of its own tokens, for
            every branch.

        Raises:
            EngineFailure: the library failed.
        """
        room = CHUNK_TOKENS - sum(map(len, branches))
        before, last = shared[:-room], shared[-room:]
        if before:
            self.append(before)
        position = self.length()
        for branch in range(1, 1 + len(branches)):
            lib.llama_memory_seq_cp(self._memory, 0, branch, -1, -1)
        status = lib.llama_decode(self._context, self._forked.fill(last, branches, position))
        if status != 0:
            self.truncate(0)
            raise EngineFailure(f"llama.cpp could not evaluate the answer (status {status})")
        found, place = [], len(last)
        for index, branch_tokens in enumerate(branches):
            own = range(place, place + len(branch_tokens))
            found.append([self._logits(len(last) - 1), *map(self._logits, own)])
            place += len(branch_tokens)
            lib.llama_memory_seq_rm(self._memory, 1 + index, -1, -1)
        return found

    def _adapt(self, adapter: Artifact) -> None:
        self._log.clear()
        self._adapter = lib.llama_adapter_lora_init(self._model, str(adapter.path).encode())
        if self._adapter is None:
            raise ArtifactCorrupt(
                f"adapter {adapter.path}: llama.cpp cannot put it on this model "
                f"({self._log.last()}); use the base model that it was trained on"
            )
        one = (lib.llama_adapter_lora_p_ctypes * 1)(self._adapter)
        if lib.llama_set_adapters_lora(self._context, one, 1, (ctypes.c_float * 1)(1.0)) != 0:
            raise ArtifactCorrupt(f"adapter {adapter.path}: llama.cpp cannot use it")

    def _logits(self, place: int) -> Logits:
        pointer = lib.llama_get_logits_ith(self._context, place)
        if not pointer:
            raise EngineFailure("llama.cpp gave no logits")
        found = np.ctypeslib.as_array(pointer, (self._count,)).astype(np.float32)
        if not np.isfinite(found).all():
            raise ArithmeticError("the affect head gave a value that is not finite")
        return found


class Grammar:
    """What may be written next; ``accept`` what is written."""

    def __init__(self, vocab: Any, text: str) -> None:
        self._sampler = lib.llama_sampler_init_grammar(vocab, text.encode(), b"root")
        if not self._sampler:
            raise ConfigError("the grammar of the answer cannot be read; reinstall Limbic")

    def reset(self) -> None:
        """Back to the beginning."""
        lib.llama_sampler_reset(self._sampler)

    def allows(self, token: int) -> bool:
        """Whether this token may come next."""
        return bool(np.isfinite(self._filtered(np.asarray([token]), np.zeros(1, np.float32)))[0])

    def accept(self, token: int) -> None:
        """The token was written. Raises EngineFailure when it may not be; nothing changes then."""
        if not self.allows(token):  # llama.cpp would end the process
            raise EngineFailure("the answer left its grammar")
        lib.llama_sampler_accept(self._sampler, token)

    def choose(self, logits: Logits) -> int:
        """The likeliest token that may come next, accepted.

        Raises:
            EngineFailure: none may.
        """
        token = int(logits.argmax())
        if not self.allows(token):
            allowed = self._filtered(np.arange(len(logits)), logits)
            token = int(allowed.argmax())
        self.accept(token)
        return token

    def close(self) -> None:
        """Free it."""
        if self._sampler:
            lib.llama_sampler_free(self._sampler)
            self._sampler = None

    def _filtered(self, tokens: NDArray[Any], logits: Logits) -> Logits:
        """The logits, −∞ for each token that may not come next."""
        table = np.zeros(len(tokens), _CANDIDATE)
        table["id"], table["logit"] = tokens, logits
        candidates = lib.llama_token_data_array(
            data=ctypes.cast(table.ctypes.data, ctypes.POINTER(lib.llama_token_data)),
            size=len(table), selected=-1, sorted=False,
        )  # fmt: skip
        lib.llama_sampler_apply(self._sampler, ctypes.byref(candidates))
        found: Logits = table["logit"].copy()
        return found


class _ForkBatch:
    """One reused ``llama_batch``: tokens that all sequences share, then each branch's own."""

    def __init__(self, size: int) -> None:
        self._tokens = (lib.llama_token * size)()
        self._positions = (lib.llama_pos * size)()
        self._logits = (ctypes.c_int8 * size)()
        self._counts = (ctypes.c_int32 * size)()
        self._ids = [(lib.llama_seq_id * (1 + MAX_BRANCHES))() for _ in range(size)]
        pointer = ctypes.POINTER(lib.llama_seq_id)
        self._sequences = (pointer * size)(*[ctypes.cast(ids, pointer) for ids in self._ids])
        self._size = size
        self._batch = lib.llama_batch(
            n_tokens=0, token=self._tokens, embd=None, pos=self._positions, n_seq_id=self._counts,
            seq_id=self._sequences, logits=self._logits,
        )  # fmt: skip

    def fill(self, shared: Sequence[int], branches: Sequence[Sequence[int]], position: int) -> Any:
        everyone = tuple(range(1 + len(branches)))
        rows = [(t, position + i, everyone, i == len(shared) - 1) for i, t in enumerate(shared)]
        for index, tokens in enumerate(branches):
            after = position + len(shared)
            rows += [(t, after + i, (1 + index,), True) for i, t in enumerate(tokens)]
        if not 0 < len(rows) <= self._size or len(branches) > MAX_BRANCHES:
            raise ValueError(f"a step holds 1 to {self._size} tokens, got {len(rows)}")
        for i, (token, place, sequences, wanted) in enumerate(rows):
            self._tokens[i], self._positions[i], self._logits[i] = token, place, wanted
            self._counts[i] = len(sequences)
            self._ids[i][: len(sequences)] = list(sequences)
        self._batch.n_tokens = len(rows)
        return self._batch
