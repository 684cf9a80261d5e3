"""Affect rows: what is accepted, what is refused by name, and that files are stable."""

from __future__ import annotations

import math

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.affect_data import row
from trainers.affect.errors import BadRow, TooManyRejects
from trainers.affect.frame import SCHEMA, read_frame, to_frame, to_rows, write_frame
from trainers.affect.rows import (
    TAGS,
    AffectRow,
    Rejects,
    read_rows,
    row_bytes,
    stable_id,
    write_rows,
)

GOOD = orjson.loads(row_bytes(row("are you there", tags=("fearful_urgent",))))

scores = st.none() | st.floats(-1, 1, allow_nan=False).map(lambda x: round(x, 4) + 0.0)
texts = st.text(min_size=1, max_size=80).filter(lambda text: text.strip() != "")
some_rows = st.builds(
    row, texts, scores, scores, scores,
    tags=st.lists(st.sampled_from(sorted(TAGS)), unique=True, max_size=3),
    context=st.lists(texts, max_size=2),
    aux=st.dictionaries(st.sampled_from(["anger", "joy"]), st.just(0.5)),
    share=st.dictionaries(st.sampled_from(["tension", "valence"]), st.just(0.25)),
)  # fmt: skip


def reasons(tmp_path, *lines: bytes) -> list[str]:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    rejects = Rejects()
    list(read_rows(path, rejects))
    return [str(item).removeprefix(f"{path}:") for item in rejects.items]


def changed(**changes) -> bytes:
    return orjson.dumps(GOOD | changes)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"text": ', "broken JSON"),
        (b'{"text": "caf\xe9"}', "not UTF-8 at byte"),
        (changed(valence=1.2), "valence: input should be less than or equal to 1, got 1.2"),
        (changed(tension="high"), "tension: input should be a valid number"),
        (changed(intimacy=True), "intimacy: input should be a valid number"),
        (changed(tags=["sad"]), "unknown tag 'sad'"),
        (changed(tags=["flat_numb", "flat_numb"]), "a tag is listed twice"),
        (changed(valance=0.1), "unknown column 'valance'"),
        (changed(text="  "), "text is blank"),
        (changed(guideline=None), "needs the guideline version"),
        (changed(context=["a", "b", "c"]), "context"),
        (changed(pair="p1"), "'pair' and 'pair_axis' go together"),
        (changed(quality="great"), "quality"),
        (b'{"text": "hi", "valence": NaN}', "valence: input should be a finite number"),
        (b"[1, 2]", "not an object"),
        (b'{"text": "hi", "context": 5}', "context: input should be a valid"),
        (b'{"text": "hi", "context": ["before", 1]}', "context.1: input should be a valid string"),
    ],
)
def test_a_bad_line_is_named_with_its_number_and_reason(tmp_path, line, said):
    found = reasons(tmp_path, changed(id="before"), line)
    assert len(found) == 1
    assert found[0].startswith("2: ")
    assert said.lower() in found[0].lower()


@pytest.mark.parametrize("column", ["text", "valence", "intimacy", "tension", "source", "licence"])
def test_a_missing_column_is_named_and_never_taken_as_not_measured(tmp_path, column):
    line = orjson.dumps({key: value for key, value in GOOD.items() if key != column})
    assert f"missing column '{column}'" in reasons(tmp_path, line)[0]


def test_a_duplicate_id_names_both_places_across_files(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(changed() + b"\n")
    rejects = Rejects()
    kept = list(read_rows([tmp_path / "a", tmp_path / "b"], rejects))
    assert len(kept) == 1
    assert str(rejects.items[0]) == (
        f"{tmp_path / 'b'}:1: duplicate id {GOOD['id']!r}, first at {tmp_path / 'a'}:1"
    )


def test_a_utf16_file_is_one_reject_that_says_what_to_do(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("{}\n{}\n", "utf-16")
    rejects = Rejects()
    assert list(read_rows(path, rejects)) == []
    assert [str(item) for item in rejects.items] == [f"{path}:0: is UTF-16; save it as UTF-8"]


def test_without_a_collector_the_first_bad_line_raises(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(changed() + b"\n{\n")
    with pytest.raises(BadRow, match=r"rows.jsonl:2: broken JSON"):
        list(read_rows(path))


def test_rejects_are_written_and_counted_against_the_allowed_share(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"".join(changed(id=str(n)) + b"\n" for n in range(9)) + b"{\n")
    rejects = Rejects()
    assert len(list(read_rows(path, rejects))) == 9
    rejects.write(tmp_path / "rejects.jsonl")
    written = orjson.loads((tmp_path / "rejects.jsonl").read_bytes())
    assert (written["line"], written["excerpt"]) == (10, "{")
    rejects.check(0.1)
    with pytest.raises(TooManyRejects, match="1 of 10 lines rejected"):
        rejects.check(0.09)


def test_a_byte_order_mark_does_not_cost_the_first_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + changed() + b"\r\n\r\n")
    assert [item.id for item in read_rows(path)] == [GOOD["id"]]


def test_an_id_is_made_from_source_text_and_context_only():
    assert row("hello").id == row("hello", 0.9).id == stable_id("llm_label", "hello")
    assert row("hello", context=("before",)).id != row("hello").id
    assert stable_id("a", "b", ["c"]) != stable_id("a", "bc")


def test_scores_are_written_to_four_decimals_without_negative_zero():
    data = orjson.loads(row_bytes(row("hi", -0.00001, 1 / 3, None)))
    assert (data["valence"], data["intimacy"], data["tension"]) == (0.0, 0.3333, None)
    assert math.copysign(1, data["valence"]) == 1


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_rows(path, [row("old")])
    before = path.read_bytes()

    def broken():
        yield row("new")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_rows(path, broken())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@given(st.lists(some_rows, max_size=5, unique_by=lambda item: item.id))
def test_rows_survive_a_file_and_a_frame_unchanged(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder / "a.jsonl", rows)
    frame = read_frame(folder / "a.jsonl")
    assert frame.columns == list(SCHEMA)
    assert list(to_rows(frame)) == rows == list(to_rows(to_frame(rows)))
    write_frame(folder / "b.jsonl", frame)
    assert (folder / "a.jsonl").read_bytes() == (folder / "b.jsonl").read_bytes()


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_no_bytes_crash_the_reader_and_every_line_is_accounted_for(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("bytes") / "rows.jsonl"
    path.write_bytes(b"\n".join(lines))
    rejects = Rejects()
    kept = list(read_rows(path, rejects))
    assert all(isinstance(item, AffectRow) for item in kept)
    assert len(kept) + len(rejects.items) == rejects.seen
