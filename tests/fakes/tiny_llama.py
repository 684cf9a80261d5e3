"""A randomly initialised llama small enough for tests, and the GGUF file that it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers.pre_tokenizers import ByteLevel

TEMPLATE = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
WIDTH, HEADS, KEY_HEADS, LAYERS, FEED = 64, 4, 2, 2, 96


def vocabulary() -> list[str]:
    """Control tokens, then one token for each byte in GPT-2's alphabet: no merges."""
    return [*CONTROL, *sorted(ByteLevel.alphabet())]


def network(seed: int = 0) -> Any:
    """A float32 llama with grouped keys, tied embeddings and unequal widths."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary()), hidden_size=WIDTH, intermediate_size=FEED,
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=KEY_HEADS,
        max_position_embeddings=2048, tie_word_embeddings=True, rms_norm_eps=1e-5,
        initializer_range=0.15, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def write_base(path: Path) -> None:
    """The metadata of such a model with zero weights: what a base file gives to an export."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(LAYERS)
    writer.add_context_length(2048)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FEED)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(vocabulary()))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary())
    kinds = [gguf.TokenType.CONTROL] * len(CONTROL)
    writer.add_token_types(kinds + [gguf.TokenType.NORMAL] * (len(vocabulary()) - len(CONTROL)))
    writer.add_token_merges(["\u0120 \u0120"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    key = WIDTH * KEY_HEADS // HEADS
    shapes = {"token_embd.weight": (len(vocabulary()), WIDTH), "output_norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        own = {
            "attn_norm": (WIDTH,), "ffn_norm": (WIDTH,), "attn_q": (WIDTH, WIDTH),
            "attn_k": (key, WIDTH), "attn_v": (key, WIDTH), "attn_output": (WIDTH, WIDTH),
            "ffn_gate": (FEED, WIDTH), "ffn_up": (FEED, WIDTH), "ffn_down": (WIDTH, FEED),
        }  # fmt: skip
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in own.items()}
    for name, shape in shapes.items():
        writer.add_tensor(name, np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Tokeniser:
    """The vocabulary above as a transformers tokenizer: one token for each byte."""

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        assert not add_special_tokens
        return [len(CONTROL) + _RANK[byte] for byte in text.encode()]

    def save_pretrained(self, folder: Path) -> None:
        """Nothing: the vocabulary is code."""

    def apply_chat_template(self, conversation: Any, **options: Any) -> list[int]:
        assert options["add_generation_prompt"] and options["tokenize"]
        start, end = CONTROL.index("<|im_start|>"), CONTROL.index("<|im_end|>")
        ids: list[int] = []
        for message in conversation:
            said = self.encode(f"{message['role']}\n{message['content']}")
            ids += [start, *said, end, *self.encode("\n")]
        return [*ids, start, *self.encode("assistant\n")]


def _byte_of() -> list[int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others follow from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    shown = {byte: chr(byte) for byte in plain}
    shown |= {byte: chr(256 + i) for i, byte in enumerate(rest)}
    order = sorted(shown.values())
    assert order == sorted(ByteLevel.alphabet())
    return [order.index(shown[byte]) for byte in range(256)]


_RANK = _byte_of()
