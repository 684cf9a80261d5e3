"""A model folder from elsewhere: whatever its manifest says, it serves plain scores or exits 78."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain.errors import EXIT_CONFIG, ConfigError
from brain.schema import Affect
from sidecars.affect_head import AffectHead, Message
from sidecars.cahm import WEIGHTS
from sidecars.onnx_text import read_manifest
from tests.test_sidecar_cahm import ScriptedModel

WHOLE = ScriptedModel().manifest
FIELDS = ("name", "version", "kind", "max_tokens", "axes", "tags", "tag_thresholds", "confidence")

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["valence", "intimacy", "tension", "warm", "affect-encoder", "\n", "\ud800"])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["a", "b"]) | st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
# Near misses reach deeper than anything drawn blindly.
near = st.one_of(
    st.tuples(st.just("name"), st.text(max_size=8)),
    st.tuples(st.just("max_tokens"), st.integers() | st.floats() | st.booleans()),
    st.tuples(st.just("axes"), st.permutations(["valence", "intimacy", "tension"])),
    st.tuples(st.just("tags"), st.lists(st.sampled_from(["warm", "cold", "x y", ""]), max_size=3)),
    st.tuples(st.just("tag_thresholds"), st.lists(scalars, min_size=1, max_size=3)),
    st.tuples(st.just("confidence"), st.fixed_dictionaries({"a": st.floats(), "b": st.floats()})),
)
anything = st.tuples(st.sampled_from(FIELDS), values)


def head_of(manifest: Any) -> AffectHead:
    model = ScriptedModel()
    model.manifest = manifest
    return AffectHead(model)  # type: ignore[arg-type]


def refused(error: ConfigError) -> bool:
    """One plain line, and the exit code of a configuration that starting again cannot mend."""
    return error.exit_code == EXIT_CONFIG and str(error).isprintable() and len(str(error)) < 500


@given(st.lists(near | anything, min_size=1, max_size=3))
def test_any_value_in_any_field_gives_plain_scores_or_is_refused(
    changes: list[tuple[str, Any]],
) -> None:
    try:
        head = head_of(WHOLE | dict(changes))
    except ConfigError as error:
        assert refused(error)
        return
    # What is accepted must then serve its model without a fault, as the brain reads it.
    if len(head._tags) != len(WHOLE["tags"]):
        with pytest.raises(ConfigError, match="outputs of shapes"):
            head.warm()
        return
    head.warm()
    for scores in head.score([Message("love it"), Message("hate " * 30), Message("?", ("x",))]):
        assert all(
            math.isfinite(x) and abs(x) <= 1
            for x in (scores.valence, scores.intimacy, scores.tension, scores.confidence)
        )
        Affect(
            valence=scores.valence, intimacy=scores.intimacy, tension=scores.tension,
            confidence=scores.confidence, tags=scores.tags, model=head.name,
        )  # fmt: skip


@given(values)
def test_a_manifest_that_is_any_json_is_refused(manifest: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        head_of(manifest)
    assert refused(caught.value)


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_that_is_missing_is_named(field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        head_of({key: value for key, value in WHOLE.items() if key != field})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"name": None}, "name"),
        ({"name": ""}, "name"),
        ({"name": 3}, "name"),
        ({"name": "two\nlines"}, "name"),
        ({"version": None}, "version"),
        ({"axes": ["valence", "tension"]}, "axes must be"),
        ({"axes": ["valence", "valence", "tension"]}, "axes must be"),
        ({"axes": ["valence", "intimacy", "arousal"]}, "axes must be"),
        ({"axes": ["intimacy", "valence", "tension"]}, "axes must be"),
        ({"axes": "valence, intimacy, tension"}, "axes"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"tags": "ab"}, "tags"),
        ({"tags": ["warm", "warm"]}, "tags must differ"),
        ({"tags": ["so warm", "cold"]}, "tags"),
        ({"tags": [f"t{i}" for i in range(17)], "tag_thresholds": [0.5] * 17}, "tags"),
        ({"tag_thresholds": [0.5]}, "one threshold for each tag"),
        ({"tag_thresholds": [0.5, float("nan")]}, "tag_thresholds.1"),
        ({"tag_thresholds": [0.5, 7]}, "tag_thresholds.1"),
        ({"confidence": {"a": 1.0}}, "confidence.b"),
        ({"confidence": {"a": 1.0, "b": 2.0, "c": 3.0}}, "confidence.c"),
        ({"confidence": [1.0, 2.0]}, "confidence"),
        ({"confidence": {"a": float("inf"), "b": 1.0}}, "confidence.a"),
        ({"confidence": {"a": float("nan"), "b": 1.0}}, "confidence.a"),
        ({"confidence": {"a": 1.0, "b": 1e9}}, "confidence.b"),
        ({"confidence": {"a": 1.0, "b": -1.0}}, "confidence.b"),
        ({"confidence": {"a": "much", "b": 1.0}}, "confidence.a"),
        ({"confidence": {"a": True, "b": 1.0}}, "confidence.a"),
    ],
)  # fmt: skip
def test_an_absurd_field_is_refused_by_its_name(change: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        head_of(WHOLE | change)
    assert refused(caught.value)


def test_a_model_that_fails_on_its_own_longest_message_is_refused_at_start() -> None:
    model = ScriptedModel()
    run = model.run

    def short_only(texts: list[str], pairs: list[str | None]) -> Any:
        if any(len(text.split()) > 12 for text in texts):
            raise RuntimeError("index out of range\nin a table of positions")
        return run(texts, pairs)

    model.run = short_only  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="cannot be run") as caught:
        AffectHead(model).warm()  # type: ignore[arg-type]
    assert refused(caught.value)


@pytest.mark.parametrize(
    "files",
    [
        None, [], {}, {"model.onnx": 1}, {"../other": {"size": 1, "sha256": "0"}},
        {"/etc/hostname": {"size": 1, "sha256": "0"}}, {"a\0b": {"size": 1, "sha256": "0"}},
        {"": {"size": 1}}, {"a\nb": {"size": 1}}, {".": {"size": 0}}, {"none": {"size": 1}},
        {"model.onnx": {"size": "3"}}, {"model.onnx": {"size": 3, "sha256": None}},
        {"model.onnx": {}},
    ],
)  # fmt: skip
def test_a_list_of_files_that_cannot_be_vouched_for_is_refused(tmp_path: Path, files: Any) -> None:
    (tmp_path / "model.onnx").write_bytes(b"abc")
    (tmp_path / "manifest.json").write_bytes(orjson.dumps(WHOLE | {"files": files}))
    with pytest.raises(ConfigError) as caught:
        read_manifest(tmp_path)
    assert refused(caught.value)


def test_a_link_to_what_never_ends_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").symlink_to("/dev/zero")
    files = {"model.onnx": {"size": 3, "sha256": "0"}}
    (tmp_path / "manifest.json").write_bytes(orjson.dumps(WHOLE | {"files": files}))
    with pytest.raises(ConfigError, match="says otherwise"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "raw", [b"", b"\xff", b"[" * 5000, b"3", b"null", b'{"name": NaN}', b'{"a": 1e999}']
)
def test_a_manifest_that_is_no_json_object_is_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(raw)
    with pytest.raises(ConfigError) as caught:
        read_manifest(tmp_path)
    assert refused(caught.value)


@pytest.mark.model
@pytest.mark.parametrize(
    "change",
    [
        {"name": None}, {"tags": ["one"], "tag_thresholds": [0.5]}, {"max_tokens": 8192},
        {"confidence": {"a": 0, "b": 1e300}}, {"axes": ["valence", "intimacy"]},
    ],
)  # fmt: skip
def test_a_foreign_model_ends_the_process_with_78_and_one_line(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    folder = tmp_path / "cahm"
    shutil.copytree(WEIGHTS, folder)
    path = folder / "manifest.json"
    manifest = orjson.loads(path.read_bytes()) | change
    path.write_bytes(orjson.dumps(manifest))
    done = subprocess.run(
        [sys.executable, "-m", "sidecars.cahm", "--model", str(folder), "--port", "0"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == EXIT_CONFIG
    progress, error = done.stderr.splitlines()
    assert progress == "cahm: loading the affect head"
    assert error.startswith("cahm: ")


@pytest.mark.model
def test_an_altered_weights_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "cahm"
    shutil.copytree(WEIGHTS, folder)
    path = folder / "model.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ConfigError, match="altered") as caught:
        AffectHead.load(folder)
    assert caught.value.exit_code == EXIT_CONFIG
