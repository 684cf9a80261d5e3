"""One file of weights, multiplied in int8 or in float32: what is chosen, and that both agree."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brain.errors import EXIT_CONFIG, ConfigError
from sidecars import onnx_text
from sidecars.cahm import WEIGHTS, CahmService
from sidecars.launch import _parser
from sidecars.onnx_text import FLOAT_FILE, MODEL_FILE, TextModel, choose_products
from sidecars.processor import multiplies_int8

BOTH = {MODEL_FILE, FLOAT_FILE}
TEXTS = ["I hate you for what you did last night", "ok", "what a lovely day " * 30]


@pytest.mark.parametrize(
    ("line", "fast"),
    [
        ("flags\t\t: fpu sse2 avx2 fma", False),
        ("flags\t\t: fpu avx2 avx512f avx512bw", False),
        ("flags\t\t: fpu avx2 avx512f avx512_vnni", True),
        ("flags\t\t: fpu avx2 avx_vnni", True),
        ("flags\t\t: fpu avx512_vnnix", False),
        ("Features\t: fp asimd asimddp", True),
        ("Features\t: fp asimd", False),
        ("CPU architecture: 8", True),
        ("", True),
    ],
)
def test_a_processor_is_known_by_its_flags_and_an_unknown_one_multiplies_int8(
    line: str, fast: bool, tmp_path: Path
) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor\t: 0\nmodel name\t: avx512_vnni\n{line}\n\n")
    assert multiplies_int8(file) is fast
    assert multiplies_int8(tmp_path / "missing")


@pytest.mark.parametrize(("fast", "chosen"), [(True, "int8"), (False, "float32")])
def test_auto_follows_the_processor_where_the_model_has_both(
    fast: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_text, "multiplies_int8", lambda: fast)
    assert choose_products("auto", BOTH, where="m") == chosen
    assert choose_products("auto", {MODEL_FILE}, where="m") == "int8"
    assert choose_products("int8", BOTH, where="m") == "int8"
    assert choose_products("float32", BOTH, where="m") == "float32"


def test_float32_of_a_model_without_its_graph_is_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"float32\.onnx is not listed.*float_graph") as caught:
        choose_products("float32", {MODEL_FILE}, where="m/manifest.json")
    assert caught.value.exit_code == EXIT_CONFIG
    with pytest.raises(ConfigError, match="auto, int8 or float32"):
        choose_products("int4", BOTH, where="m")


def test_products_are_not_for_a_generative_head() -> None:
    args = _parser(CahmService).parse_args(["--model", "x.gguf", "--products", "float32"])
    with pytest.raises(ConfigError, match="for a folder with an encoder head"):
        CahmService.from_args(args).load(lambda _: None, lambda: False)


@pytest.mark.model
def test_the_shipped_weights_say_nearly_the_same_in_both_products() -> None:
    exact, rounded = (TextModel.load(WEIGHTS, products=p) for p in ("float32", "int8"))
    assert (exact.products, rounded.products) == ("float32", "int8")
    a, b = exact.run(TEXTS), rounded.run(TEXTS)
    assert a.keys() == b.keys()
    assert np.abs(a["axes"] - b["axes"]).max() < 0.05
    assert not np.array_equal(a["axes"], b["axes"])  # they are other products
    assert exact.sha256 == rounded.sha256


@pytest.mark.model
def test_float32_products_are_those_of_the_weights_multiplied_out(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from trainers.encoder.float_graph import write_float_graph

    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (128, 2, 64)).astype(np.uint8)
    scales = rng.uniform(0.01, 0.1, (128, 2)).astype(np.float32)
    (tmp_path / MODEL_FILE).write_bytes(_one_product(onnx, blocks, scales).SerializeToString())
    path = write_float_graph(tmp_path)
    assert path.stat().st_size < blocks.nbytes
    found = _run(path, x := rng.normal(size=(3, 128)).astype(np.float32))
    whole = ((blocks.astype(np.float32) - 128) * scales[..., None]).reshape(128, 128)
    assert np.allclose(found, x @ whole.T, rtol=1e-4, atol=1e-3)
    (tmp_path / MODEL_FILE).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="no int8 products"):
        write_float_graph(tmp_path)


def _one_product(onnx: Any, blocks: np.ndarray, scales: np.ndarray) -> Any:
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    rows, count, block = blocks.shape
    node = helper.make_node(
        "MatMulNBits", ["x", "b", "s"], ["y"], domain="com.microsoft", bits=8, N=rows,
        K=count * block, block_size=block, accuracy_level=4,
    )  # fmt: skip
    ends = [helper.make_tensor_value_info(n, 1, ["n", w]) for n, w in
            (("x", count * block), ("y", rows))]  # fmt: skip
    graph = helper.make_graph(
        [node], "one", ends[:1], ends[1:],
        [numpy_helper.from_array(blocks, "b"), numpy_helper.from_array(scales, "s")],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def _run(path: Path, x: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"x": x})[0]
    return found


@pytest.mark.model
def test_a_float32_graph_of_other_weights_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from trainers.encoder.manifest import renew_manifest

    folder = tmp_path / "head"
    shutil.copytree(WEIGHTS, folder)
    with (folder / MODEL_FILE).open("ab") as file:
        file.write(b"\xfa\x07\x01x")  # an unknown field: the same model in other bytes
    renew_manifest(folder)
    assert TextModel.load(folder).products == "int8"
    with pytest.raises(ConfigError, match=r"made for another model\.onnx") as caught:
        TextModel.load(folder, products="float32")
    assert caught.value.exit_code == EXIT_CONFIG


@pytest.mark.model
def test_a_folder_of_int8_alone_still_loads_and_gains_float32_by_one_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx")
    from trainers.encoder import float_graph

    monkeypatch.setattr(onnx_text, "multiplies_int8", lambda: False)
    folder = tmp_path / "head"
    shutil.copytree(WEIGHTS, folder, ignore=shutil.ignore_patterns(FLOAT_FILE))
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"][FLOAT_FILE]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert TextModel.load(folder, products="auto").products == "int8"
    before = (folder / MODEL_FILE).read_bytes()
    assert float_graph.main([str(folder)]) == 0
    assert (folder / MODEL_FILE).read_bytes() == before
    assert TextModel.load(folder, products="auto").products == "float32"
    again = json.loads((folder / "manifest.json").read_text())
    del manifest["files"], again["files"]
    assert again == manifest


@pytest.mark.model
async def test_the_sidecar_names_its_products(monkeypatch: pytest.MonkeyPatch) -> None:
    import aiohttp

    from sidecars.serve import ServeOptions, SidecarServer

    args = argparse.Namespace(model=WEIGHTS, threads=1, max_queue=512, products="float32")
    async with (
        SidecarServer(CahmService(args), ServeOptions(port=0)) as server,
        aiohttp.ClientSession() as http,
    ):
        async with http.get(f"{server.url}/ready") as answer:
            assert (await answer.json())["products"] == "float32"
        async with http.get(f"{server.url}/metrics") as answer:
            assert 'limbic_cahm_products{products="float32"} 1.0' in await answer.text()
