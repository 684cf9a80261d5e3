"""The chat model as a PyTorch network, read from its GGUF file, and its LoRA adapter."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sidecars.artifacts import resolve
from sidecars.hashing import hash_file
from sidecars.llm import DEFAULT_MODEL
from trainers.affect.errors import DataConfigError

BASE = DEFAULT_MODEL
ARCHITECTURE = "llama"
SOURCE = "source.sha256"
#: Every linear map of a llama layer.
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def base_file(reference: str = BASE) -> Path:
    """The verified GGUF file of a model reference; raises what ``sidecars.artifacts`` raises."""
    return resolve(reference, formats=("gguf",)).path


def load_base(path: Path, cache: Path) -> tuple[Any, Any]:
    """(network, tokenizer) in float32 on the CPU; quantised weights are unpacked.

    Unpacking and the tokenizer take most of a minute, so transformers' own format of both is kept
    in ``cache`` beside the file's hash, and read from there the next time. What was unpacked from
    another file, or does not say from which, is unpacked again.

    Raises:
        DataConfigError: not a llama model.
    """
    # Imported here: it takes seconds, and export's refusals should not.
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    source = cache / SOURCE
    sha256 = hash_file(path)
    if source.is_file() and source.read_text("ascii").strip() == sha256:
        net = AutoModelForCausalLM.from_pretrained(cache, dtype=torch.float32)
        return net, AutoTokenizer.from_pretrained(cache)
    place: dict[str, Any] = {"gguf_file": path.name}
    config = AutoConfig.from_pretrained(path.parent, **place)
    if config.model_type != ARCHITECTURE:
        raise DataConfigError(f"{path}: is a {config.model_type} model; a llama model is needed")
    tokenizer = AutoTokenizer.from_pretrained(path.parent, **place)
    net = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **place)
    # The loader leaves its mark on the network, though every weight is unpacked, and with the mark
    # transformers refuses to save it.
    net.hf_quantizer = None  # type: ignore[assignment]
    if hasattr(net.config, "quantization_config"):
        del net.config.quantization_config
    part = cache.with_name(f"{cache.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    net.save_pretrained(part)
    tokenizer.save_pretrained(part)
    (part / SOURCE).write_text(sha256 + "\n", "ascii")
    swap(part, cache)
    return net, tokenizer


def swap(part: Path, folder: Path) -> None:
    """Give a finished folder its name. One that is there goes aside first, since a folder is no
    file that a rename replaces: killed in between, ``folder`` is missing, never half-written."""
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.replace(old)
    part.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def with_adapter(net: Any, *, rank: int, alpha: float, dropout: float, layers: int) -> Any:
    """The network with a fresh LoRA on every linear map of its last ``layers`` layers (0: of all),
    everything else frozen (Hu et al. 2021). What lies below the first of them has no backward."""
    from peft import LoraConfig, get_peft_model

    count = int(net.config.num_hidden_layers)
    config = LoraConfig(
        r=rank, lora_alpha=alpha,  # type: ignore[arg-type]  # peft takes any number
        lora_dropout=dropout, target_modules=list(LINEAR),
        layers_to_transform=list(range(count - layers, count)) if 0 < layers < count else None,
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
