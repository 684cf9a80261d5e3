"""The generative head's files: what llama.cpp computes is what PyTorch computes, and refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from brain.errors import EXIT_CONFIG
from sidecars.artifacts import Artifact, resolve
from sidecars.grammar_model import GrammarModel
from tests.fakes import tiny_llama
from trainers.affect.errors import DataConfigError, DataError
from trainers.affect.generative import examples, export, gguf_files, model
from trainers.affect.generative.quantise import quantise

#: F16 weights against float32 ones, on logits of a few units.
TOLERANCE = 0.02
TOKENS = [1, 50, 77, 80, 200, 33, 91, 12]


def adapted(seed: int = 0) -> Any:
    """A tiny llama with a LoRA whose B is not zero, as if trained."""
    net = model.with_adapter(tiny_llama.network(seed), rank=4, alpha=8, dropout=0.0, layers=0)
    torch.manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    return net.eval()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.gguf"
    tiny_llama.write_base(path)
    return path


def by_torch(net: Any) -> np.ndarray:
    with torch.inference_mode():
        return net(torch.tensor([TOKENS])).logits[0, -1].numpy()


def by_llama(path: Path, adapter: Path | None = None) -> np.ndarray:
    own: Artifact | None = None if adapter is None else resolve(str(adapter), formats=("gguf",))
    loaded = GrammarModel(
        resolve(str(path), formats=("gguf",)), context_tokens=256, threads=1, adapter=own
    )
    try:
        loaded.append(TOKENS)
        return loaded.logits()
    finally:
        loaded.close()


def test_a_merged_file_gives_pytorchs_logits_in_llama_cpp(base: Path, tmp_path: Path) -> None:
    net = adapted()
    plain = by_torch(tiny_llama.network())
    wanted = by_torch(net)
    assert np.abs(wanted - plain).max() > 0.5  # the adapter matters
    out = tmp_path / "model-F16.gguf"
    gguf_files.write_model(base, net.merge_and_unload(), out, name="tiny", described="{}")
    assert np.abs(by_llama(out) - wanted).max() < TOLERANCE
    for kind in ("Q8_0", "Q6_K"):
        small = tmp_path / f"model-{kind}.gguf"
        quantise(out, small, kind)
        assert np.abs(by_llama(small) - wanted).max() < 20 * TOLERANCE
        assert small.stat().st_size < out.stat().st_size


def test_an_adapter_alone_on_its_base_gives_pytorchs_logits(base: Path, tmp_path: Path) -> None:
    whole, adapter = tmp_path / "base-F16.gguf", tmp_path / "adapter.gguf"
    gguf_files.write_model(base, tiny_llama.network(), whole, name="tiny", described="{}")
    net = adapted()
    gguf_files.write_adapter(
        whole, gguf_files.lora_maps(net), adapter, name="tiny", alpha=8.0, described="{}"
    )
    assert np.abs(by_llama(whole, adapter) - by_torch(net)).max() < TOLERANCE
    assert np.abs(by_llama(whole) - by_torch(tiny_llama.network())).max() < TOLERANCE


def test_the_unpacked_base_is_used_again_for_the_same_file_alone(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, cache = tmp_path / "other.gguf", tmp_path / "run" / "base"
    own = tiny_llama.Tokeniser()
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: own)
    gguf_files.write_model(base, tiny_llama.network(), other, name="tiny", described="{}")
    cache.parent.mkdir()
    zero, _ = model.load_base(base, cache)
    assert float(zero.model.embed_tokens.weight.abs().max()) == 0.0
    fresh, _ = model.load_base(other, cache)
    assert float(fresh.model.embed_tokens.weight.abs().max()) > 0.0
    written = (cache / "config.json").stat().st_mtime_ns
    again, _ = model.load_base(other, cache)
    assert (cache / "config.json").stat().st_mtime_ns == written
    assert torch.equal(again.model.embed_tokens.weight, fresh.model.embed_tokens.weight)
    (cache / model.SOURCE).unlink()  # as an earlier version left it
    model.load_base(other, cache)
    assert (cache / model.SOURCE).is_file()
    assert [path.name for path in cache.parent.iterdir()] == ["base"]


def test_a_base_of_the_same_name_but_another_content_is_refused(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, rows = tmp_path / "run" / "adapter", tmp_path / "set"
    adapter.mkdir(parents=True)
    rows.mkdir()
    shutil.copy(examples.POOL / "gold.jsonl", rows / "dev.jsonl")
    (adapter / "adapter_config.json").write_text('{"lora_alpha": 8}')
    recipe = {"base": base.name, "base_sha256": "0" * 64, "rows": "x"}
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(recipe))
    told = ["--run", str(tmp_path / "run"), "--set", str(rows), "--out", str(tmp_path / "out")]
    assert export.main([*told, "--base", f"file:{base}"]) == EXIT_CONFIG
    said = capsys.readouterr().err
    assert "another file of that name" in said and said.count("\n") == 1
    (tmp_path / "run" / "recipe.json").unlink()
    assert export.main([*told, "--base", f"file:{base}"]) == EXIT_CONFIG
    said = capsys.readouterr().err
    assert "recipe.json" in said and said.count("\n") == 1


def test_rows_that_no_block_of_256_divides_fall_back_to_q8_0(base: Path, tmp_path: Path) -> None:
    out, small = tmp_path / "model.gguf", tmp_path / "small.gguf"
    gguf_files.write_model(base, tiny_llama.network(), out, name="tiny", described="{}")
    quantise(out, small, "Q6_K")
    assert set(gguf_files.tensor_types(small)) == {"Q8_0"}


def test_an_adapter_alone_is_not_quantised(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, out = tmp_path / "adapter.gguf", tmp_path / "small.gguf"
    gguf_files.write_adapter(
        base, gguf_files.lora_maps(adapted()), adapter, name="tiny", alpha=8.0, described="{}"
    )
    assert (
        export.main(["--quantise", str(adapter), "--type", "Q6_K", "--out", str(out)])
        == EXIT_CONFIG
    )
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "adapter" in said and "merge it" in said
    assert not out.exists()


@pytest.mark.parametrize("damage", ["missing", "text", "cut"])
def test_a_file_that_is_no_model_is_one_line_and_78(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    path = tmp_path / "bad.gguf"
    if damage == "text":
        path.write_text("not a model at all, only words " * 9)
    elif damage == "cut":
        path.write_bytes(base.read_bytes()[:700])
    assert export.main(["--quantise", str(path), "--out", str(tmp_path / "o")]) == EXIT_CONFIG
    said = capsys.readouterr().err
    assert str(path) in said and said.count("\n") == 1


def test_a_network_of_another_shape_is_refused(base: Path, tmp_path: Path) -> None:
    net = tiny_llama.network()
    net.resize_token_embeddings(300)
    with pytest.raises(DataError, match="shape"):
        gguf_files.write_model(base, net, tmp_path / "o.gguf", name="x", described="{}")


def test_weights_that_f16_cannot_hold_are_refused(base: Path, tmp_path: Path) -> None:
    net = tiny_llama.network()
    with torch.no_grad():
        net.model.layers[0].mlp.up_proj.weight[0, 0] = 1e6
    with pytest.raises(DataError, match="F16 cannot hold"):
        gguf_files.write_model(base, net, tmp_path / "o.gguf", name="x", described="{}")


def test_a_base_that_is_an_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter.gguf"
    maps = gguf_files.lora_maps(adapted())
    gguf_files.write_adapter(base, maps, adapter, name="x", alpha=8.0, described="{}")
    with pytest.raises(DataConfigError, match="whole model"):
        gguf_files.write_adapter(adapter, maps, base, name="x", alpha=8.0, described="{}")


def test_confidence_rises_with_the_mass_near_the_mean_and_needs_both_outcomes() -> None:
    masses = np.linspace(0, 1, 60)[:, None].repeat(3, 1)
    labels = np.zeros((60, 3))
    axes = np.where(masses > 0.5, 0.0, 0.9)
    curve = export.fit_confidence(masses, axes, labels)
    assert curve is not None and curve["b"] > 0
    assert export.fit_confidence(masses, labels, labels) is None


def test_a_manifest_says_what_the_sidecar_asks() -> None:
    body = json.loads(gguf_files.manifest("n", {"a": 1.0, "b": 2.0}, rows="abc"))
    assert {"kind", "name", "version", "prompt", "tags", "confidence", "rows"} <= set(body)
