"""The tail of a log: every line once and in order, whatever happens to its files meanwhile."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain import logtail
from brain.logfiles import LogFile
from brain.logtail import MAX_LINE, TOO_LONG, LogTail, Mark


def rotate(path: Path, *, keep: int = 3) -> None:
    """As ``LogFile`` and logrotate do: each file to the next number, the last one dropped."""
    for number in range(keep, 0, -1):
        newer = path.with_name(f"{path.name}.{number - 1}") if number > 1 else path
        if newer.exists():
            newer.replace(path.with_name(f"{path.name}.{number}"))


def write(path: Path, *lines: str) -> None:
    with path.open("a") as file:
        file.writelines(f"{line}\n" for line in lines)


def open_files(folder: Path) -> int:
    """How many files of a folder this process holds open, those without a name too."""
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found += str(link.readlink()).startswith(str(folder))
    return found


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def test_a_tail_survives_rotation_truncation_and_deletion(log: Path) -> None:
    tail = LogTail(log)
    assert tail.read() == []
    log.write_bytes(b"one\ntw")
    assert tail.read() == ["one"]
    with log.open("ab") as file:
        file.write(b"o\nlast words\n")
    log.rename(log.with_name("log.1"))
    log.write_bytes(b"new file\n")
    assert tail.read() == ["two", "last words", "new file"]
    log.write_bytes(b"\xff\n")
    assert tail.read() == ["\ufffd"]
    log.unlink()
    assert tail.read() == []
    log.write_bytes(b"back\n")
    assert tail.read() == ["back"]
    tail.close()


def test_every_rotated_file_that_is_left_is_read(log: Path) -> None:
    write(log, "first")
    tail = LogTail(log)
    assert tail.read() == ["first"]
    for number in range(3):
        write(log, f"a{number}", f"b{number}")
        rotate(log)
    write(log, "new")
    assert tail.read() == ["a0", "b0", "a1", "b1", "a2", "b2", "new"]
    assert tail.read() == []


def test_older_rotated_files_are_not_read(log: Path) -> None:
    for number in range(3):
        write(log, f"old {number}")
        rotate(log)
    write(log, "first")
    tail = LogTail(log)
    assert tail.read() == ["first"]
    log.unlink()
    write(log, "begun anew")
    assert tail.read() == ["begun anew"]
    rotate(log)
    write(log, "second")
    assert tail.read() == ["second"]


@pytest.mark.parametrize("how", ["deleted", "compressed"])
def test_rotated_files_that_went_unread_are_counted_once(log: Path, how: str) -> None:
    write(log, "first")
    tail = LogTail(log)
    tail.read()
    for number in range(4):
        write(log, f"line {number}")
        rotate(log, keep=9)
    write(log, "new")
    for number in (2, 1):
        gone = log.with_name(f"log.{number}")
        gone.with_suffix(f".{number}.gz").write_bytes(b"")
        gone.unlink()
        if how == "deleted":
            gone.with_suffix(f".{number}.gz").unlink()
    found = tail.read()
    assert found == ["line 0", "line 1", "… (2 rotated files of log gone)", "new"]
    assert [isinstance(line, Mark) for line in found] == [False, False, True, False]
    assert tail.read() == []


def test_a_log_that_compresses_what_it_rotates_loses_no_more_than_that(log: Path) -> None:
    write(log, "first")
    tail = LogTail(log)
    tail.read()
    for number in range(1, 4):
        write(log, f"line {number}")
        for old in range(number - 1, 0, -1):
            log.with_name(f"log.{old}.gz").rename(log.with_name(f"log.{old + 1}.gz"))
        log.with_name("log.1.gz").write_bytes(b"")
        log.unlink()
        if number == 1:
            write(log, "seen")
            assert tail.read() == ["line 1", "seen"]  # it was open: nothing is lost
    write(log, "new")
    assert tail.read() == ["line 2", "… (1 rotated file of log gone)", "new"]


def test_more_rotations_than_files_are_kept_are_told(log: Path) -> None:
    write(log, "first")
    tail = LogTail(log)
    tail.read()
    for number in range(6):
        write(log, f"line {number}")
        rotate(log, keep=2)
    write(log, "new")
    found = tail.read()
    assert [line for line in found if not isinstance(line, Mark)] == [
        "line 0", "line 4", "line 5", "new"
    ]  # fmt: skip
    (mark,) = (line for line in found if isinstance(line, Mark))
    assert "some rotated files may be gone" in mark
    assert tail.read() == []


def test_a_look_in_the_middle_of_a_rotation_loses_nothing(log: Path) -> None:
    write(log, "first")
    tail = LogTail(log)
    tail.read()
    write(log, "second")
    rotate(log)  # the new file is not there yet
    assert tail.read() == ["second"]
    assert tail.read() == []
    write(log, "third")
    rotate(log)
    assert tail.read() == ["third"]
    write(log, "fourth")
    assert tail.read() == ["fourth"]


def test_files_renamed_between_listing_and_opening_are_read_at_the_next_look(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(log, "first")
    tail = LogTail(log)
    tail.read()
    for number in range(2):
        write(log, f"line {number}")
        rotate(log, keep=9)
    write(log, "line 2")
    whole = tail._scan

    def scan_then_rotate() -> logtail.Slots | None:
        found = whole()
        rotate(log, keep=9)
        write(log, "line 3")
        monkeypatch.undo()
        return found

    monkeypatch.setattr(tail, "_scan", scan_then_rotate)
    found = tail.read()
    found += tail.read()
    assert found == ["line 0", "line 1", "line 2", "line 3"]


def test_a_writer_that_has_not_noticed_the_rotation_is_still_read(log: Path) -> None:
    with log.open("a", buffering=1) as writer:
        writer.write("first\n")
        tail = LogTail(log)
        tail.read()
        rotate(log)
        write(log, "new")
        assert tail.read() == ["new"]
        writer.write("late\n")
        assert tail.read() == ["late"]


def test_a_file_truncated_and_grown_past_the_same_place_is_read_from_its_beginning(
    log: Path,
) -> None:
    write(log, "one", "two")
    tail = LogTail(log)
    assert tail.read() == ["one", "two"]
    os.truncate(log, 0)
    write(log, "after the truncation", "and more")
    assert tail.read() == ["after the truncation", "and more"]


def test_a_log_that_appears_later_is_read_from_its_beginning(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "log"
    tail = LogTail(log, backlog=10)
    assert tail.read() == []
    log.parent.mkdir()
    assert tail.read() == []
    lines = [f"line {number}" for number in range(100)]
    write(log, *lines)
    assert tail.read() == lines


def test_a_folder_that_is_away_for_a_while_is_not_read_twice(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "log"
    log.parent.mkdir()
    write(log, "one")
    tail = LogTail(log)
    assert tail.read() == ["one"]
    log.parent.rename(tmp_path / "away")
    assert tail.read() == []
    (tmp_path / "away").rename(log.parent)
    assert tail.read() == []
    write(log, "two")
    assert tail.read() == ["two"]


def test_a_tail_begins_near_the_end_and_at_the_beginning_of_a_line(log: Path) -> None:
    write(log, *(f"line {number}" for number in range(1000)))
    assert LogTail(log, backlog=30).read() == ["line 997", "line 998", "line 999"]
    assert LogTail(log, backlog=27).read() == ["line 997", "line 998", "line 999"]
    write(log, "x" * 5000)
    tail = LogTail(log)
    assert tail.read() == []
    write(log, "whole")
    assert tail.read() == ["whole"]


def test_a_rotated_file_that_is_renamed_back_is_not_read_twice(log: Path) -> None:
    write(log, "one")
    tail = LogTail(log)
    assert tail.read() == ["one"]
    rotate(log)
    write(log, "two")
    assert tail.read() == ["two"]
    log.with_name("log.1").replace(log)
    assert tail.read() == []
    write(log, "three")
    assert tail.read() == ["three"]


def test_links_pipes_and_folders_are_not_logs(log: Path, tmp_path: Path) -> None:
    write(log, "line")
    link = tmp_path / "link"
    link.symlink_to(log)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (link, pipe, tmp_path):
        assert LogTail(path).read() == []


def test_a_file_larger_than_one_read_is_not_cut_at_rotation(log: Path) -> None:
    write(log, "first")
    tail = LogTail(log)
    assert tail.read() == ["first"]
    write(log, *(f"line {n} {'x' * 1000}" for n in range(3000)))  # about 3 MB
    rotate(log)
    write(log, "of the new file")
    found = tail.read()
    assert len(found) == 3001
    assert found[-2].startswith("line 2999") and found[-1] == "of the new file"


def test_a_line_without_end_is_bounded_and_marked(log: Path) -> None:
    log.touch()
    tail = LogTail(log)
    found = tail.read()
    with log.open("ab") as file:
        for _ in range(20):
            file.write(b"x" * MAX_LINE)
            file.flush()
            found += tail.read()
        assert all(len(held.partial) <= MAX_LINE for held in tail._held.values())
        file.write(b"end of it\nthe next\n")
    assert found == [TOO_LONG]
    assert tail.read() == ["the next"]


def test_files_are_let_go(log: Path) -> None:
    write(log, "0")
    tail = LogTail(log)
    for number in range(40):
        tail.read()
        write(log, f"{number}")
        rotate(log, keep=99)
        write(log, "x")
    assert 1 < open_files(log.parent) <= logtail.MAX_HELD + 2
    tail.close()
    assert open_files(log.parent) == 0


KEEP = 3
ACTS = st.one_of(
    st.tuples(st.just("write"), st.integers(1, 3)),
    st.tuples(st.just("half a line"), st.just(0)),
    st.tuples(st.just("rotate"), st.just(0)),
    st.tuples(st.just("read"), st.just(0)),
    st.tuples(st.just("restart"), st.just(0)),
    st.tuples(st.just("truncate"), st.just(0)),
    st.tuples(st.just("delete"), st.integers(0, KEEP)),
    st.tuples(st.just("compress"), st.integers(1, KEEP)),
)


class Scene:
    """A writer, its log, and a tail that looks at it now and then."""

    def __init__(self, folder: Path, *, begin: int) -> None:
        self.path = folder / "log"
        self.count = 0
        self.found: list[str] = []
        self.restart()
        self.write(begin)
        self.skipped = self.count
        self.tail = LogTail(self.path, backlog=0)
        self.read()

    def restart(self, _: int = 0) -> None:
        self.writer = LogFile(self.path, max_bytes=60, keep=KEEP)

    def write(self, lines: int) -> None:
        texts = [f"line {self.count + n}" for n in range(lines)]
        self.count += lines
        self.writer.write([text.encode() for text in texts])

    def half_a_line(self, _: int) -> None:
        """What a crash leaves; the next writer ends it."""
        self.write(1)
        os.truncate(self.path, self.path.stat().st_size - 1)
        self.restart()

    def rotate(self, _: int) -> None:
        self.writer.close()
        rotate(self.path, keep=KEEP)

    def slot(self, number: int) -> Path:
        return self.path.with_name(f"log.{number}") if number else self.path

    def delete(self, number: int) -> None:
        self.slot(number).unlink(missing_ok=True)

    def truncate(self, _: int) -> None:
        if self.path.exists():
            os.truncate(self.path, 0)

    def compress(self, number: int) -> None:
        if self.slot(number).exists():
            self.slot(number).with_name(f"log.{number}.gz").write_bytes(b"gz")
            self.slot(number).unlink()

    def read(self, _: int = 0) -> None:
        self.found += self.tail.read()
        numbers = [int(line.split()[1]) for line in self.found if not isinstance(line, Mark)]
        assert numbers == sorted(set(numbers)), "twice, or out of order"
        for number in range(KEEP + 1):
            text = self.slot(number).read_text() if self.slot(number).exists() else ""
            for line in text.split("\n")[:-1]:
                assert not line or int(line.split()[1]) < self.skipped or line in self.found, line


@given(st.integers(0, 4), st.lists(ACTS, max_size=40))
def test_lines_come_at_most_once_in_order_and_none_while_its_file_is_there_is_lost(
    begin: int, acts: list[tuple[str, int]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(Path(folder), begin=begin)
        for name, argument in [*acts, ("read", 0)]:
            getattr(scene, name.replace(" ", "_"))(argument)
        scene.tail.close()


@given(
    st.integers(0, 4),
    st.lists(
        ACTS.filter(lambda act: act[0] in ("write", "rotate", "read", "compress")), max_size=40
    ),
)
def test_what_rotation_takes_away_is_told(begin: int, acts: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(Path(folder), begin=begin)
        for name, argument in [*acts, ("write", 1), ("read", 0)]:
            getattr(scene, name)(argument)
        scene.tail.close()
        lost = {f"line {n}" for n in range(scene.skipped, scene.count)} - set(scene.found)
        assert not lost or any(isinstance(line, Mark) for line in scene.found)
