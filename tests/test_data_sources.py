"""Public sets: what the readers score and leave null, bad lines, fetching and resuming."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from tenacity import wait_none

from tests.fakes.affect_data import registry, write_public
from trainers.affect.config import DataConfigError, SourceFile, load_build, load_mapping
from trainers.affect.errors import SourceMissing
from trainers.affect.fetch import _download, _stream, derived, fetch, verify, wanted
from trainers.affect.frame import SCHEMA, shares, to_rows, unmeasured
from trainers.affect.readers import READERS
from trainers.affect.rows import AXES, Rejects

MAPPING, BUILD = load_mapping(), load_build()


def read(name: str, root: Path, **changes) -> tuple[pl.DataFrame, Rejects]:
    rejects = Rejects()
    return READERS[name](root, MAPPING, BUILD.model_copy(update=changes), rejects), rejects


@pytest.fixture(scope="module")
def public(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("public")
    write_public(root)
    return root


@pytest.mark.parametrize("name", sorted(READERS))
def test_every_reader_gives_valid_rows_with_licence_and_source(public, name):
    rows, rejects = read(name, public)
    assert rows.columns == list(SCHEMA)
    assert {item.source for item in to_rows(rows)} == {name}
    assert rows["licence"].null_count() == 0
    assert rows["id"].n_unique() == rows.height
    assert rejects.items == []


@pytest.mark.parametrize(
    ("name", "measured"),
    [("emobank", {"valence", "tension"}), ("intimacy", {"intimacy"})],
)
def test_axes_that_a_set_does_not_measure_stay_null(public, name, measured):
    rows, _ = read(name, public)
    assert {axis for axis in AXES if rows[axis].count()} == measured


def test_emobank_is_centred_and_arousal_is_only_a_share_of_tension(public):
    rows, _ = read("emobank", public)
    path = public / "affect/emobank/emobank_train_dev.csv"
    given = pl.read_csv(path)
    assert rows["valence"].to_list() == pytest.approx(((given["V"] - 3) / 2).to_list())
    assert rows["tension"].to_list() == pytest.approx(((given["A"] - 3) / 2).to_list())
    share = shares(rows)
    assert set(share[:, 2]) == {BUILD.emobank_tension_share}
    assert set(share[:, 0]) == {1.0}
    assert rows["licence"].unique().to_list() == ["CC-BY-SA-4.0"]
    assert rows["thread"][0] == "emobank/doc0"
    assert rows["text"][0].endswith(', "yes"')


def test_emobank_confidence_is_the_agreement_of_single_ratings(public):
    rows, _ = read("emobank", public)
    # The fixture rates each text one below, at and one above its mean: std sqrt(2/3) scale points.
    inner = rows.filter(pl.col("valence").is_between(-0.6, 0.6))
    assert inner["confidence"].to_list() == pytest.approx([1 - (2 / 3) ** 0.5 / 2] * inner.height)


def test_emotion_rows_with_scores_are_backfill_and_the_rest_keep_null_axes(public):
    rows, _ = read("goemotions", public, goemotions_cap_per_label=2)
    scored = rows.filter(~unmeasured())
    assert set(scored["quality"]) == {"backfill"}
    assert set(rows.filter(unmeasured())["quality"]) == {"auto"}
    assert set(scored["confidence"]) == {MAPPING.confidence}
    assert rows.filter(unmeasured())["tags"].list.len().max() == 0
    labels = scored.select(
        pl.col("aux").list.first().struct.field("name")
    ).to_series().value_counts()  # fmt: skip
    assert labels["count"].max() <= 2
    assert rows["aux"].list.len().min() == 1


def test_a_label_says_only_what_the_mapping_file_says(public):
    rows, _ = read("goemotions", public, goemotions_cap_per_label=1000)
    for item in to_rows(rows):
        (label,) = item.aux
        meaning = MAPPING.labels["goemotions"][label]
        assert [getattr(item, axis) for axis in AXES] == [getattr(meaning, axis) for axis in AXES]


def test_labels_that_disagree_leave_the_axis_null(tmp_path):
    write_public(tmp_path)
    names = (tmp_path / "affect/goemotions/emotions.txt").read_text().split()
    joy, anger = names.index("joy"), names.index("anger")
    (tmp_path / "affect/goemotions/train.tsv").write_text(
        f"i hate that i love it\t{joy},{anger}\tx"
    )
    rows, _ = read("goemotions", tmp_path)
    item = rows.filter(pl.col("id") == "goemotions/x").row(0, named=True)
    assert item["valence"] is None
    assert item["tension"] == pytest.approx(0.7)
    assert item["tags"] == []


def test_semeval_scales_with_intensity_and_ignores_weak_ones(tmp_path):
    write_public(tmp_path)
    path = tmp_path / "affect/semeval2025_task11_en/track_b_train.csv"
    path.write_text(
        "id,text,anger,fear,joy,sadness,surprise\n"
        "full,one,0,3,0,0,0\nhalf,two,0,2,0,0,0\nweak,three,0,1,0,0,0\n"
    )
    rows, _ = read("semeval", tmp_path)
    by_id = {item.id: item for item in to_rows(rows)}
    assert by_id["semeval/full"].tension == pytest.approx(0.85)
    assert by_id["semeval/half"].tension == pytest.approx(0.85 * 2 / 3)
    assert by_id["semeval/weak"].tension is None
    assert by_id["semeval/weak"].aux == {"fear": pytest.approx(1 / 3, abs=1e-4)}


@pytest.mark.parametrize(
    ("name", "file", "line", "said"),
    [
        ("goemotions", "goemotions/train.tsv", b"no tabs here", "1 fields instead of 3"),
        ("goemotions", "goemotions/train.tsv", b"text\t99\tx", "unknown label in '99'"),
        ("goemotions", "goemotions/train.tsv", b"text\tsad\tx", "unknown label in 'sad'"),
        ("goemotions", "goemotions/train.tsv", b"caf\xe9\t1\tx", "not UTF-8 at byte 3"),
        ("goemotions", "goemotions/train.tsv", b" \t1\tx", "text is blank"),
        ("goemotions", "goemotions/train.tsv", b"again\t1\tctrain0", "duplicate id"),
        (
            "intimacy",
            "question_intimacy/final_val.txt",
            b"why?\t1.5",
            "needs a number from -1 to 1",
        ),
        (
            "intimacy",
            "question_intimacy/final_val.txt",
            b"why?\tnan",
            "needs a number from -1 to 1",
        ),
        ("semeval", "semeval2025_task11_en/track_b_dev.csv", b"a,b,9,0,0,0,0", "anger: needs"),
        ("emobank", "emobank/emobank_train_dev.csv", b"a,train,3,,3,text", "A: needs a number"),
        ("xed", "xed_en/neu_en.txt", b"9\ttext\t\t", "4 fields instead of 2"),
    ],
)
def test_a_bad_line_of_a_public_file_is_rejected_by_name(tmp_path, name, file, line, said):
    write_public(tmp_path)
    path = tmp_path / "affect" / file
    good, _ = read(name, tmp_path)
    number = path.read_bytes().count(b"\n") + 1
    path.write_bytes(path.read_bytes() + line + b"\n")
    rows, rejects = read(name, tmp_path)
    assert rows.height == good.height
    assert len(rejects.items) == 1
    assert rejects.items[0].line == number
    assert said in rejects.items[0].reason


def test_a_missing_header_column_names_file_and_column(tmp_path):
    write_public(tmp_path)
    path = tmp_path / "affect/semeval2025_task11_en/track_b_dev.csv"
    path.write_text(path.read_text().replace("sadness", "sorrow"))
    with pytest.raises(SourceMissing, match=r"track_b_dev.csv:1: missing column 'sadness'"):
        read("semeval", tmp_path)


def test_a_mapping_that_names_no_archetype_of_ours_is_a_configuration_error(tmp_path):
    path = tmp_path / "map.toml"
    path.write_text(
        'max_disagreement = 1\nconfidence = 0.3\n[xed]\njoy = {valence = 1.0, archetype = "glad"}'
    )
    with pytest.raises(DataConfigError, match=r"map.toml: xed.joy.archetype: 'glad'"):
        load_mapping(path)


def test_an_unmapped_label_says_where_to_add_it(public):
    smaller = {
        name: {label: meaning for label, meaning in table.items() if label != "grief"}
        for name, table in MAPPING.labels.items()
    }
    thin = type(MAPPING)(MAPPING.max_disagreement, MAPPING.confidence, smaller)
    with pytest.raises(DataConfigError, match=r"\[goemotions\] has no line for 'grief'"):
        READERS["goemotions"](public, thin, BUILD, Rejects())


# ---------------------------------------------------------------------------------- fetching


class _Files(http.server.BaseHTTPRequestHandler):
    """Serves ``server.files`` with byte ranges; cuts one answer after ``server.cut`` bytes."""

    def do_GET(self) -> None:
        data = self.server.files[self.path.lstrip("/")]
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        self.server.asked.append(asked)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        body = data[start:]
        if self.server.cut is not None:
            body, self.server.cut = body[: self.server.cut], None
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(_stream.retry, "wait", wait_none())


@pytest.fixture
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Files)
    found.files, found.cut, found.asked = {}, None, []
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


def serve(server, public: Path, name: str = "intimacy"):
    """The registry of the public fixture, its files published by the server."""
    known = registry(public, f"http://127.0.0.1:{server.server_port}")
    for file in wanted(known, [name]):
        server.files[file.path] = (public / file.path).read_bytes()
    return known


def test_a_download_is_verified_and_then_left_alone(server, public, tmp_path):
    known = serve(server, public)
    done: dict[str, int] = {}
    first = fetch(known, ["intimacy"], tmp_path, progress=lambda n, d, t: done.update({n: d}))
    again = fetch(known, ["intimacy"], tmp_path)
    assert [item.how for item in first] == ["downloaded", "downloaded"]
    assert [item.how for item in again] == ["present", "present"]
    for file in wanted(known, ["intimacy"]):
        assert (tmp_path / file.path).read_bytes() == (public / file.path).read_bytes()
        assert done[file.path] == file.bytes
    assert not list(tmp_path.rglob("*.part"))


def test_an_interrupted_download_goes_on_where_it_stopped(server, public, tmp_path):
    known = serve(server, public)
    server.cut = 100
    fetch(known, ["intimacy"], tmp_path)
    assert server.asked[:2] == [None, "bytes=100-"]
    for file in wanted(known, ["intimacy"]):
        verify(tmp_path, file)


def test_a_part_file_of_an_earlier_run_is_used(server, public, tmp_path):
    known = serve(server, public)
    file = wanted(known, ["intimacy"])[0]
    part = tmp_path / (file.path + ".part")
    part.parent.mkdir(parents=True)
    part.write_bytes(server.files[file.path][:64])
    fetch(known, ["intimacy"], tmp_path)
    assert server.asked[0] == "bytes=64-"
    verify(tmp_path, file)


def test_changed_contents_are_refused_and_not_kept(server, public, tmp_path):
    known = serve(server, public)
    name = wanted(known, ["intimacy"])[0].path
    server.files[name] = server.files[name].replace(b"?", b"!")
    with pytest.raises(SourceMissing, match=r"sha256 .* is not .*; the publisher changed"):
        fetch(known, ["intimacy"], tmp_path)
    assert not list(tmp_path.rglob("final_train*"))


def test_no_server_says_that_what_came_is_kept(tmp_path, public, server):
    known = serve(server, public)
    del server.files[wanted(known, ["intimacy"])[0].path]
    with pytest.raises(SourceMissing, match="run the same command to go on"):
        fetch(known, ["intimacy"], tmp_path)


def test_a_page_in_place_of_a_file_is_refused_and_not_gone_on_from(server, tmp_path):
    published = b"id,split,text\r\na,train,x\r\n"
    file = SourceFile(
        path="bank.csv",
        bytes=len(published),
        sha256=hashlib.sha256(published).hexdigest(),
        url=f"http://127.0.0.1:{server.server_port}/bank.csv",
        derive="drop_test_split",
    )
    for page, said in (
        (b"<html>please log in</html>", "no column 'split'"),
        (b"id,split,text\na\n", "line 2 has no column 'split'"),
    ):
        server.files[file.path] = page
        with pytest.raises(SourceMissing, match=f"not the published file.*{said}"):
            _download(file, tmp_path / file.path, lambda *_: None)
        assert not list(tmp_path.glob("*"))
    server.files[file.path] = b"id,split,text\na,train,x\nb,test,y\n"
    _download(file, tmp_path / file.path, lambda *_: None)
    verify(tmp_path, file)


def test_a_broken_answer_is_one_line_and_what_came_is_kept(server, public, tmp_path, monkeypatch):
    known = serve(server, public)

    def broken(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"10\r\nhalf")

    monkeypatch.setattr(_Files, "do_GET", broken)
    with pytest.raises(SourceMissing, match="run the same command to go on"):
        fetch(known, ["intimacy"], tmp_path)


def test_the_publishers_test_rows_are_dropped_before_the_checksum():
    data = b'id,split,text\na,train,"x, y"\nb,test,"z, train"\nc,dev,w\n'
    expected = b'id,split,text\r\na,train,"x, y"\r\nc,dev,w\r\n'
    assert derived(data, "drop_test_split") == expected
    assert derived(data.replace(b"\n", b"\r\n"), "drop_test_split") == expected
    assert derived(data, None) == data


@pytest.mark.parametrize(("mode", "how"), [("copy", "copied"), ("link", "linked")])
def test_files_are_taken_from_a_folder_and_checked(public, tmp_path, mode, how):
    known = registry(public)
    results = fetch(known, [], tmp_path, origin=public, mode=mode)
    assert {item.how for item in results} == {how}
    for file in wanted(known, []):
        verify(tmp_path, file)
        assert (tmp_path / file.path).is_symlink() == (mode == "link")


def test_a_wrong_copy_is_refused(public, tmp_path):
    known = registry(public)
    wrong = tmp_path / "wrong"
    write_public(wrong, seed=99)
    with pytest.raises(SourceMissing, match=r"fetch it again"):
        fetch(known, ["xed"], tmp_path / "to", origin=wrong)


def test_a_source_inside_an_archive_says_to_unpack_it_once_the_others_are_there(
    server, public, tmp_path
):
    known = serve(server, public)
    archived, loose = wanted(known, ["intimacy"])
    files = (archived.model_copy(update={"url": None}), loose)
    source = known.sources["intimacy"].model_copy(update={"files": files})
    some = known.model_copy(update={"sources": {"intimacy": source}})
    with pytest.raises(SourceMissing, match=f"^{archived.path}: .*unpack that by hand"):
        fetch(some, [], tmp_path)
    assert (tmp_path / loose.path).exists() and not (tmp_path / archived.path).exists()
    assert [f.how for f in fetch(some, [], tmp_path, origin=public)] == ["copied", "present"]


def test_an_unknown_source_lists_the_known_ones(public, tmp_path):
    with pytest.raises(SourceMissing, match=r"no source 'vader'; there are emobank, goemotions"):
        fetch(registry(public), ["vader"], tmp_path)
