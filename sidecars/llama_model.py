"""llama.cpp behind the ``TokenModel`` protocol, through llama-cpp-python's C bindings.

The bindings' high-level class keeps one sequence and a copy of all logits, cannot interrupt a
running evaluation, and cannot copy one sequence's cache; so this uses the C interface directly.
Every call into the library releases the interpreter lock, so the event loop answers meanwhile.
"""

from __future__ import annotations

import ctypes
import secrets
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

import llama_cpp.llama_cpp as lib

from brain.errors import ArtifactCorrupt, ConfigError
from sidecars.artifacts import Artifact
from sidecars.chat_template import ChatTemplate
from sidecars.service import LoadCancelled, Progress
from sidecars.token_model import ChatMessages, EngineFailure, Sampling, TemplateRefused

_PROGRESS_INTERVAL_S = 0.25
_LOG_ERROR = 4
_CONTROL = 8  # LLAMA_TOKEN_ATTR_CONTROL
_DRY_TOKENS = 1024  # how far back a repetition is looked for
_MAX_SEED = 0xFFFFFFFE  # the next one asks llama.cpp for a random seed
_DECODED, _NO_ROOM, _ABORTED = 0, 1, 2
_FALLBACK_TEMPLATE = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class LlamaOptions:
    """How to load. ``extra_buffers`` ``None`` decides by what the library was built with;
    ``sequences`` beside the live one share its cache."""

    context_tokens: int = 2048
    threads: int = 1
    chunk_tokens: int = 64
    gpu_layers: int = 0
    mmap: bool = True
    flash_attention: bool = False
    extra_buffers: bool | None = None
    sequences: int = 1


class LlamaModel:
    """A GGUF file loaded into llama.cpp; see ``TokenModel`` for what the methods promise."""

    def __init__(
        self,
        artifact: Artifact,
        options: LlamaOptions,
        *,
        progress: Progress = lambda _: None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """Load. Blocks for as long as that takes.

        Raises:
            ArtifactCorrupt: llama.cpp cannot read the file, or its chat template is broken.
            ConfigError: not enough memory for the context.
            LoadCancelled: ``stopping()`` turned true.
        """
        self._log = last_errors()
        self._log.clear()
        lib.llama_backend_init()
        self._model: Any = None
        self._context: Any = None
        self._load(artifact, options, progress, stopping)
        self._vocab = lib.llama_model_get_vocab(self._model)
        self._abort = ctypes.create_string_buffer(2)
        self._context = self._open_context(options)
        self._memory = lib.llama_get_memory(self._context)
        self.context_tokens = int(lib.llama_n_ctx(self._context))
        self.state_format = (
            f"llama-cpp-python {version('llama-cpp-python')}"
            f" {'flash' if options.flash_attention else 'plain'}"
        )
        self._batch = _Batch(options.chunk_tokens)
        self._count = int(lib.llama_vocab_n_tokens(self._vocab))
        self._template = self._read_template(artifact)
        self._piece_buffer = ctypes.create_string_buffer(4096)
        if not self.evaluate(self.encode("Hello"), 0, logits=True):
            raise LoadCancelled
        self.truncate(0)  # that was to read the weights and size the buffers before anyone waits

    # -- text ------------------------------------------------------------------------------------

    def encode_chat(self, messages: ChatMessages, *, reply: bool) -> list[int]:
        tokens = self._template.encode(messages, self._tokenize, reply=reply)
        if lib.llama_vocab_get_add_bos(self._vocab):
            bos = int(lib.llama_vocab_bos(self._vocab))
            if tokens[:1] != [bos]:  # most templates write it themselves
                tokens.insert(0, bos)
        return tokens

    def encode(self, text: str) -> list[int]:
        return self._tokenize(text, False)

    def piece(self, token: int) -> bytes:
        buffer = self._piece_buffer
        size = lib.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
        return buffer.raw[:size] if size > 0 else b""

    def ends(self, token: int) -> bool:
        return bool(lib.llama_vocab_is_eog(self._vocab, token))

    # -- the live sequence -----------------------------------------------------------------------

    def evaluate(self, tokens: Sequence[int], position: int, *, logits: bool) -> bool:
        status = lib.llama_decode(self._context, self._batch.fill(tokens, position, logits=logits))
        if status == _DECODED:
            return True
        if status == _ABORTED:
            self.truncate(position)
            return False
        self.truncate(0)
        reason = "no room in the context" if status == _NO_ROOM else f"status {status}"
        raise EngineFailure(f"llama.cpp could not evaluate the prompt: {reason}")

    def length(self) -> int:
        return int(lib.llama_memory_seq_pos_max(self._memory, 0)) + 1

    def truncate(self, length: int) -> bool:
        if length > 0 and lib.llama_memory_seq_rm(self._memory, 0, length, -1):
            return True
        lib.llama_memory_clear(self._memory, False)
        return length == 0

    def snapshot_bytes(self) -> int:
        return int(lib.llama_state_seq_get_size(self._context, 0))

    def snapshot(self) -> bytearray:
        size = self.snapshot_bytes()
        data = bytearray(size)
        view = (ctypes.c_uint8 * size).from_buffer(data)
        written = int(lib.llama_state_seq_get_data(self._context, view, size, 0))
        if written != size:
            raise EngineFailure(f"llama.cpp saved {written} of {size} bytes of its state")
        return data

    def restore(self, snapshot: bytearray) -> bool:
        lib.llama_memory_clear(self._memory, False)
        data = (ctypes.c_uint8 * len(snapshot)).from_buffer(snapshot)
        if lib.llama_state_seq_set_data(self._context, data, len(snapshot), 0):
            return True
        lib.llama_memory_clear(self._memory, False)
        return False

    def sampler(self, sampling: Sampling) -> LlamaSampler:
        return LlamaSampler(self._context, self._vocab, sampling)

    def interrupt(self) -> None:
        self._abort[0] = b"\x01"

    def rearm(self) -> None:
        self._abort[0] = b"\x00"

    def close(self) -> None:
        if self._context is not None:
            lib.llama_free(self._context)
            self._context = None
        if self._model is not None:
            lib.llama_model_free(self._model)
            self._model = None

    # -- loading ---------------------------------------------------------------------------------

    def _load(
        self,
        artifact: Artifact,
        options: LlamaOptions,
        progress: Progress,
        stopping: Callable[[], bool],
    ) -> None:
        shown, at = 0, 0.0

        def on_progress(fraction: float, _: object) -> bool:
            nonlocal shown, at
            percent, now = int(fraction * 100), time.monotonic()
            if percent > shown and now - at >= _PROGRESS_INTERVAL_S:
                shown, at = percent, now
                progress(f"loading {artifact.name}: {percent} %")
            return not stopping()

        callback = lib.llama_progress_callback(on_progress)
        params = lib.llama_model_default_params()
        params.use_mmap = options.mmap
        params.n_gpu_layers = options.gpu_layers
        params.progress_callback = callback
        params.use_extra_bufts = (
            not _has_amx() if options.extra_buffers is None else options.extra_buffers
        )
        self._model = lib.llama_model_load_from_file(str(artifact.path).encode(), params)
        if self._model is None:
            if stopping():
                raise LoadCancelled
            raise ArtifactCorrupt(
                f"model {artifact.path}: llama.cpp cannot load it ({self._log.last()}); "
                "fetch it again or use another model"
            )

    def _open_context(self, options: LlamaOptions) -> Any:
        trained = int(lib.llama_model_n_ctx_train(self._model))
        params = lib.llama_context_default_params()
        params.n_ctx = min(options.context_tokens, trained) if trained else options.context_tokens
        params.n_batch = params.n_ubatch = options.chunk_tokens
        params.n_seq_max = options.sequences
        params.kv_unified = options.sequences > 1  # copies of a sequence are marks, not memory
        params.n_threads = params.n_threads_batch = options.threads
        params.flash_attn_type = (
            lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
            if options.flash_attention
            else lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        params.swa_full = True  # else a sliding-window cache forgets what a shared prefix needs
        params.no_perf = True
        params.abort_callback, params.abort_callback_data = _abort_callback(self._abort)
        context = lib.llama_init_from_model(self._model, params)
        if context is None:
            lib.llama_model_free(self._model)
            raise ConfigError(
                f"no room for a context of {options.context_tokens} tokens "
                f"({self._log.last()}); give a smaller --context-tokens"
            )
        return context

    def _read_template(self, artifact: Artifact) -> ChatTemplate:
        raw = lib.llama_model_chat_template(self._model, None)
        texts = {
            token: self._text(token)
            for token in range(self._count)
            if lib.llama_vocab_get_attr(self._vocab, token) & _CONTROL
        }
        try:
            return ChatTemplate(
                raw.decode("utf-8", "replace") if raw else _FALLBACK_TEMPLATE,
                bos=self._text(int(lib.llama_vocab_bos(self._vocab))),
                eos=self._text(int(lib.llama_vocab_eos(self._vocab))),
                controls=texts.values(),
            )
        except TemplateRefused as error:  # of the file, not of messages: starting again is no use
            self.close()
            raise ArtifactCorrupt(f"model {artifact.path}: {error}; use another model") from error

    def _text(self, token: int) -> str:
        text = lib.llama_vocab_get_text(self._vocab, token) if token >= 0 else None
        return text.decode("utf-8", "replace") if text else ""

    def _tokenize(self, text: str, special: bool) -> list[int]:
        data = text.encode("utf-8", "replace")
        room = len(data) + 8
        buffer = (lib.llama_token * room)()
        count = lib.llama_tokenize(self._vocab, data, len(data), buffer, room, False, special)
        if count < 0:  # a tokeniser that makes more tokens than bytes
            buffer = (lib.llama_token * -count)()
            count = lib.llama_tokenize(self._vocab, data, len(data), buffer, -count, False, special)
        return list(buffer[: max(count, 0)])


class LlamaSampler:
    """A chain of llama.cpp samplers over the context's last logits."""

    def __init__(self, context: Any, vocab: Any, sampling: Sampling) -> None:
        self._context = context
        params = lib.llama_sampler_chain_default_params()
        params.no_perf = True
        self._chain = lib.llama_sampler_chain_init(params)
        for stage in _stages(vocab, sampling):
            lib.llama_sampler_chain_add(self._chain, stage)

    def next(self) -> int:
        """Choose from the last logits; the choice counts towards the penalties."""
        return int(lib.llama_sampler_sample(self._chain, self._context, -1))

    def close(self) -> None:
        """Free the chain and its stages."""
        if self._chain is not None:
            lib.llama_sampler_free(self._chain)
            self._chain = None


def _stages(vocab: Any, sampling: Sampling) -> list[Any]:
    s = sampling
    stages = []
    if s.presence_penalty or s.frequency_penalty or s.repeat_penalty != 1.0:
        # The reply alone is penalised, as far back as it goes within this many tokens.
        stages.append(
            lib.llama_sampler_init_penalties(
                lib.llama_vocab_n_tokens(vocab),
                256,
                s.repeat_penalty,
                s.frequency_penalty,
                s.presence_penalty,
            )
        )
    if s.dry_multiplier:
        # Without sequence breakers, which would be looked up in the whole vocabulary each time:
        # a sentence that comes again is to be seen whole.
        dry = lib.llama_sampler_init_dry(
            vocab, s.dry_multiplier, s.dry_base, s.dry_allowed_length, _DRY_TOKENS, None, 0
        )
        for token in s.spoken[-_DRY_TOKENS:]:
            lib.llama_sampler_accept(dry, token)
        stages.append(dry)
    if s.temperature == 0:
        return [*stages, lib.llama_sampler_init_greedy()]
    if s.top_k:
        stages.append(lib.llama_sampler_init_top_k(s.top_k))
    if s.top_p < 1:
        stages.append(lib.llama_sampler_init_top_p(s.top_p, 1))
    if s.min_p > 0:
        stages.append(lib.llama_sampler_init_min_p(s.min_p, 1))
    seed = secrets.randbelow(_MAX_SEED) if s.seed is None else s.seed % _MAX_SEED
    stages.append(lib.llama_sampler_init_temp(s.temperature))
    return [*stages, lib.llama_sampler_init_dist(seed)]


class _Batch:
    """One reused ``llama_batch`` for sequence 0 of at most ``size`` tokens."""

    def __init__(self, size: int) -> None:
        self._tokens = (lib.llama_token * size)()
        self._positions = (lib.llama_pos * size)()
        self._logits = (ctypes.c_int8 * size)()
        self._counts = (ctypes.c_int32 * size)(*[1] * size)
        self._sequence = (lib.llama_seq_id * 1)(0)
        pointer = ctypes.cast(self._sequence, ctypes.POINTER(lib.llama_seq_id))
        self._sequences = (ctypes.POINTER(lib.llama_seq_id) * size)(*[pointer] * size)
        self._batch = lib.llama_batch(
            n_tokens=0,
            token=self._tokens,
            embd=None,
            pos=self._positions,
            n_seq_id=self._counts,
            seq_id=self._sequences,
            logits=self._logits,
        )

    def fill(self, tokens: Sequence[int], position: int, *, logits: bool) -> Any:
        count = len(tokens)
        if not 0 < count <= len(self._tokens):
            raise ValueError(f"a batch holds 1 to {len(self._tokens)} tokens, got {count}")
        self._tokens[:count] = list(tokens)
        self._positions[:count] = list(range(position, position + count))
        ctypes.memset(self._logits, 0, count)
        self._logits[count - 1] = int(logits)
        self._batch.n_tokens = count
        return self._batch


class _LastErrors:
    """Keeps llama.cpp's last error lines and silences the rest of its log."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=4)

        def keep(level: int, text: bytes, _: object) -> None:
            if level == _LOG_ERROR and text.strip():
                self._lines.append(text.decode("utf-8", "replace").strip())

        self._keep = lib.llama_log_callback(keep)
        lib.llama_log_set(self._keep, None)

    def clear(self) -> None:
        """Forget what came before."""
        self._lines.clear()

    def last(self) -> str:
        """The first of the last few error lines: the cause, what follows are consequences."""
        return self._lines[0][:200] if self._lines else "no reason given"


@cache
def last_errors() -> _LastErrors:
    """The one log of the process: the library keeps a bare pointer to it for good."""
    return _LastErrors()


def _abort_callback(flag: ctypes.Array[ctypes.c_char]) -> tuple[Any, Any]:
    """A stop check in pure C: ``strlen(flag)``, which is 0, or 1 once the flag's byte is set.

    llama.cpp asks after every graph node, from its own threads. A Python callback would take the
    interpreter lock a thousand times a step; this takes nothing, and stops within one node.
    """
    strlen = ctypes.cast(ctypes.CDLL(None).strlen, lib.ggml_abort_callback)
    return strlen, ctypes.cast(flag, ctypes.c_void_p)


def _has_amx() -> bool:
    """Whether llama.cpp was compiled to use AMX tiles.

    Compiled with GCC 12 (Debian 12), that code dies at the tile-configuration instruction: the
    compiler's own header says that it reads 8 bytes of the 64. AMX is one of llama.cpp's "extra
    buffer types", which can be left out when loading; without AMX they are worth having.
    """
    return sys.platform == "linux" and b"AMX_INT8 = 1" in lib.llama_print_system_info()
