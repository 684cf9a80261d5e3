"""The store's promise: durable words, one transaction a reply, nothing half-done."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from brain.errors import DataDirectoryInUse, DiskFull, StoreError, TurnConflict
from brain.persona import load_persona
from brain.schema import Affect
from brain.settings import load_settings
from brain.store import Store
from brain.store_sql import NewMemory, TurnCommit

ROOT = Path(__file__).parent.parent
MODEL = load_persona("companion", load_settings(None, environ={})).hormones
AFFECT = Affect(valence=0.5, intimacy=0.1, tension=-0.2, confidence=0.9)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await Store.open(tmp_path / "data")
    yield opened
    await opened.close()


def commit(seq: int, **more: object) -> TurnCommit:
    base = {
        "session_id": "s", "seq": seq, "status": "done", "reply": f"reply {seq}",
        "affect": AFFECT, "state": MODEL.initial(float(seq)), "record": {"seq": seq},
        "tokens": 7, "at": float(seq),
    }  # fmt: skip
    return TurnCommit.model_validate({**base, **more})


async def say(store: Store, number: int, **more: object) -> int:
    begun = await store.begin_turn("s", f"t{number}", f"words {number}", at=float(number))
    await store.finish_turn(commit(begun.seq, **more))
    return begun.seq


async def test_a_committed_turn_comes_back_whole_after_reopening(tmp_path: Path) -> None:
    store = await Store.open(tmp_path)
    await store.load_session("s", persona="companion", at=0)
    await say(store, 1)
    await store.close()
    again = await Store.open(tmp_path)
    record = await again.load_session("s", persona="maverick", at=9)
    await again.close()
    assert record.persona == "companion" and record.state == MODEL.initial(1.0)
    (turn,) = record.turns
    assert (turn.user_text, turn.reply, turn.affect, turn.tokens) == (
        "words 1",
        "reply 1",
        AFFECT,
        7,
    )


async def test_a_repeated_turn_id_returns_the_stored_reply(store: Store) -> None:
    await store.load_session("s", persona="companion", at=0)
    await say(store, 1)
    again = await store.begin_turn("s", "t1", "words 1", at=5.0)
    assert again.status == "done" and again.reply == "reply 1"


async def test_a_turn_id_with_other_words_is_refused(store: Store) -> None:
    await store.load_session("s", persona="companion", at=0)
    await say(store, 1)
    with pytest.raises(TurnConflict, match="t1 was already used"):
        await store.begin_turn("s", "t1", "other words", at=5.0)


async def test_an_abandoned_turn_is_no_history_and_may_be_tried_again(store: Store) -> None:
    await store.load_session("s", persona="companion", at=0)
    begun = await store.begin_turn("s", "t1", "words", at=1.0)
    await store.abandon_turn(
        "s", begun.seq, status="cancelled", reply="hal", record={}, error=None, at=2.0
    )
    record = await store.load_session("s", persona="companion", at=3.0)
    assert record.turns == () and record.state is None
    again = await store.begin_turn("s", "t1", "words", at=4.0)
    assert again.status == "begun"


async def test_a_message_without_an_answer_is_known_when_the_session_opens_again(
    store: Store,
) -> None:
    await store.load_session("s", persona="companion", at=0)
    await say(store, 1)
    assert (await store.load_session("s", persona="companion", at=1)).unanswered is None
    await store.begin_turn("s", "t2", "are you there?", at=2.0)
    record = await store.load_session("s", persona="companion", at=3)
    assert record.unanswered == "are you there?" and len(record.turns) == 1


async def test_late_affect_is_attributed_to_its_own_turn_once(store: Store) -> None:
    await store.load_session("s", persona="companion", at=0)
    seq = await say(store, 1, affect=None)
    await store.add_late_affect("s", seq, AFFECT)
    other = AFFECT.model_copy(update={"valence": -1.0})
    await store.add_late_affect("s", seq, other)
    (turn,) = (await store.load_session("s", persona="companion", at=0)).turns
    assert turn.affect == AFFECT


async def test_a_reply_that_broke_off_takes_its_late_affect_too(store: Store) -> None:
    await store.load_session("s", persona="companion", at=0)
    seq = await say(store, 1, affect=None, status="partial")
    assert await store.add_late_affect("s", seq, AFFECT)
    (turn,) = (await store.load_session("s", persona="companion", at=0)).turns
    assert (turn.status, turn.affect) == ("partial", AFFECT)


async def test_a_memory_may_gain_weight_and_never_loses_any(store: Store) -> None:
    await store.load_session("s", persona="companion", at=0)
    for number, (first, late) in enumerate(((0.3, 0.9), (0.9, 0.3)), start=1):
        seq = await say(store, number, affect=None, memory=NewMemory(text="x", weight=first))
        await store.add_late_affect("s", seq, AFFECT, memory=NewMemory(text="x", weight=late))
    assert await store.run(_rows, "SELECT seq, weight FROM memories") == [(1, 0.9), (2, 0.9)]


async def test_a_turn_that_foresees_nothing_leaves_what_was_remembered(store: Store) -> None:
    await store.load_session("s", persona="companion", at=0)
    await say(store, 1, foresight=b"one")
    await say(store, 2)
    assert (await store.load_session("s", persona="companion", at=0)).foresight == b"one"


async def test_what_is_committed_or_taken_back_cannot_be_given_up_or_said_again(
    store: Store,
) -> None:
    await store.load_session("s", persona="companion", at=0)
    seq = await say(store, 1)
    await store.abandon_turn("s", seq, status="cancelled", reply="", record={}, error=None, at=2.0)
    assert (await store.begin_turn("s", "t1", "words 1", at=3.0)).status == "done"
    await store.undo("s")
    again = await store.begin_turn("s", "t1", "words 1", at=4.0)
    assert (again.status, again.reply) == ("undone", "reply 1")


async def test_a_message_that_was_left_or_refused_does_not_wait_for_an_answer(
    store: Store,
) -> None:
    await store.load_session("s", persona="companion", at=0)
    for status in ("cancelled", "failed"):
        begun = await store.begin_turn("s", status, "hello?", at=1.0)
        await store.abandon_turn(
            "s", begun.seq, status=status, reply="", record={}, error=None, at=2.0
        )
        assert (await store.load_session("s", persona="companion", at=3)).unanswered is None
    await say(store, 3, status="partial")
    assert (await store.load_session("s", persona="companion", at=3)).unanswered is None


async def test_sessions_are_listed_with_the_newest_first(store: Store) -> None:
    await store.load_session("empty", persona="maverick", at=5.0)
    await store.load_session("s", persona="companion", at=0)
    await say(store, 7)
    await store.load_session("old", persona="companion", at=0.5)
    assert await store.sessions() == [
        ("empty", "maverick", 0, 5.0), ("s", "companion", 1, 1.0), ("old", "companion", 0, 0.5),
    ]  # fmt: skip


async def test_undo_takes_back_turn_state_and_memory(store: Store) -> None:
    await store.load_session("s", persona="companion", at=0)
    await say(store, 1)
    await say(store, 2, memory=NewMemory(text="words 2", weight=0.9))
    undone = await store.undo("s")
    record = await store.load_session("s", persona="companion", at=9)
    assert undone is not None and undone.user_text == "words 2"
    assert [t.user_text for t in record.turns] == ["words 1"]
    assert record.state == MODEL.initial(1.0)
    left = await store.run(lambda c: c.execute("SELECT COUNT(*) FROM memories").fetchone()[0])
    assert left == 0


async def test_a_second_brain_is_refused_with_the_firsts_pid(store: Store) -> None:
    with pytest.raises(DataDirectoryInUse, match=f"pid {os.getpid()}") as caught:
        await Store.open(store.directory)
    assert caught.value.exit_code == 78 and caught.value.pid == os.getpid()


async def test_a_disk_that_is_full_refuses_the_turn_and_keeps_the_rest(store: Store) -> None:
    await store.load_session("s", persona="companion", at=0)
    await say(store, 1)
    pages = await store.run(lambda c: c.execute("PRAGMA page_count").fetchone()[0])
    await store.run(lambda c: c.execute(f"PRAGMA max_page_count={pages}").fetchone())
    with pytest.raises(DiskFull, match="earlier turns are safe"):
        await store.begin_turn("s", "big", "x" * 100_000, at=2.0)
    await store.run(lambda c: c.execute("PRAGMA max_page_count=1000000").fetchone())
    record = await store.load_session("s", persona="companion", at=3.0)
    assert [t.user_text for t in record.turns] == ["words 1"]
    await say(store, 2)
    assert await store.check() == "ok"


async def test_requests_that_wait_together_share_one_commit_and_no_fate(store: Store) -> None:
    await store.load_session("s", persona="companion", at=0)
    await say(store, 1)
    statements: list[str] = []
    await store.run(lambda c: c.set_trace_callback(statements.append))
    results = await asyncio.gather(
        store.begin_turn("s", "t2", "two", at=2.0),
        store.begin_turn("s", "t1", "other words", at=2.0),
        store.begin_turn("s", "t3", "three", at=2.0),
        return_exceptions=True,
    )
    two, conflict, three = results
    assert isinstance(conflict, TurnConflict)
    assert not isinstance(two, BaseException) and not isinstance(three, BaseException)
    assert (two.seq, three.seq) == (2, 3)
    assert statements.count("COMMIT") == 1
    stored = await store.run(_rows, "SELECT turn_id FROM turns WHERE status='begun'")
    assert sorted(stored) == [("t2",), ("t3",)]


async def test_of_a_request_that_fails_halfway_nothing_is_kept(store: Store) -> None:
    await store.load_session("s", persona="companion", at=0)

    def half(connection: sqlite3.Connection) -> None:
        connection.execute("UPDATE sessions SET persona='maverick'")
        raise ValueError("halfway")

    failed, begun = await asyncio.gather(
        store.run(half), store.begin_turn("s", "t1", "one", at=1.0), return_exceptions=True
    )
    assert isinstance(failed, ValueError) and not isinstance(begun, BaseException)
    with pytest.raises(ValueError, match="halfway"):
        await store.run(half)
    record = await store.load_session("s", persona="companion", at=2.0)
    assert record.persona == "companion" and record.unanswered == "one"


async def test_what_went_wrong_together_is_not_the_answer_of_what_works_alone(
    store: Store,
) -> None:
    tries: list[int] = []

    def works_alone(connection: sqlite3.Connection) -> str:
        tries.append(len(tries))
        if len(tries) == 1:
            raise ValueError("not in company")
        return "done"

    def refused(connection: sqlite3.Connection) -> None:
        connection.execute("SELECT nothing FROM nowhere")

    answer, error = await asyncio.gather(
        store.run(works_alone), store.run(refused), return_exceptions=True
    )
    assert answer == "done" and isinstance(error, StoreError)


async def test_a_request_that_the_disk_refuses_takes_no_other_with_it(store: Store) -> None:
    await store.load_session("s", persona="companion", at=0)
    await say(store, 1)
    pages = await store.run(lambda c: c.execute("PRAGMA page_count").fetchone()[0])
    await store.run(lambda c: c.execute(f"PRAGMA max_page_count={pages + 1}").fetchone())
    small, big, last = await asyncio.gather(
        store.begin_turn("s", "small", "few words", at=2.0),
        store.begin_turn("s", "big", "x" * 100_000, at=2.0),
        store.begin_turn("s", "last", "few words", at=2.0),
        return_exceptions=True,
    )
    assert isinstance(big, DiskFull)
    stored = await store.run(_rows, "SELECT seq, turn_id FROM turns WHERE status='begun'")
    assert not isinstance(small, BaseException) and not isinstance(last, BaseException)
    assert sorted(stored) == [(small.seq, "small"), (last.seq, "last")]


async def test_a_request_given_up_before_it_ran_is_not_written(store: Store) -> None:
    await store.load_session("s", persona="companion", at=0)
    given_up = asyncio.create_task(store.begin_turn("s", "t1", "words", at=1.0))
    kept = asyncio.create_task(store.begin_turn("s", "t2", "words", at=1.0))
    await asyncio.sleep(0)
    given_up.cancel()
    assert (await kept).seq == 1
    assert await store.run(_rows, "SELECT turn_id FROM turns") == [("t2",)]


async def test_a_token_count_costs_no_commit_and_is_there_for_who_asks(tmp_path: Path) -> None:
    store = await Store.open(tmp_path)
    await store.load_session("s", persona="companion", at=0)
    seq = await say(store, 1)
    await store.set_tokens("s", seq, 41)
    (turn,) = (await store.load_session("s", persona="companion", at=1)).turns
    assert turn.tokens == 41
    await store.set_tokens("s", seq, 42)
    await store.close()
    again = await Store.open(tmp_path)
    (turn,) = (await again.load_session("s", persona="companion", at=2)).turns
    await again.close()
    assert turn.tokens == 42


def test_a_write_that_the_system_refuses_is_not_retried_on_the_same_connection(
    tmp_path: Path,
) -> None:
    script = (
        "import asyncio, resource, sys\n"
        "from pathlib import Path\n"
        "from brain.errors import DiskFull\n"
        "from brain.store import Store\n"
        "async def main():\n"
        "    store = await Store.open(Path(sys.argv[1]))\n"
        "    await store.load_session('s', persona='p', at=0)\n"
        "    await store.begin_turn('s', 'a', 'kept', at=1)\n"
        "    first = store._connection\n"
        "    soft = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, soft[1]))\n"
        "    try:\n"
        "        await store.begin_turn('s', 'b', 'x' * 300_000, at=2)\n"
        "    except DiskFull as error:\n"
        "        print('refused')\n"
        "    print('dropped', store._connection is None)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, soft)\n"
        "    turn = await store.begin_turn('s', 'c', 'after', at=3)\n"
        "    print('reopened', store._connection is not first, turn.seq)\n"
        "    await store.close()\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.split("\n")[:3] == ["refused", "dropped True", "reopened True 2"], (
        done.stderr
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def _fails_to_write(connection: sqlite3.Connection) -> None:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorname = "SQLITE_IOERR_WRITE"
    raise error


@pytest.mark.parametrize("waiting", [1, 3])
async def test_a_disk_that_fails_at_reopening_refuses_every_request_and_may_recover(
    store: Store, waiting: int
) -> None:
    await store.load_session("s", persona="companion", at=0)
    with pytest.raises(DiskFull):
        await store.run(_fails_to_write)
    good, store.path = store.path, store.directory / ("x" * 300)  # the system refuses this name
    async with asyncio.timeout(20):
        refused = await asyncio.gather(
            *(store.begin_turn("s", f"t{n}", "words", at=1.0) for n in range(waiting)),
            return_exceptions=True,
        )
    assert [type(error) for error in refused] == [StoreError] * waiting
    store.path = good
    assert (await store.begin_turn("s", "t1", "words", at=2.0)).seq == 1


async def test_a_file_whose_rights_cannot_be_set_is_a_typed_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, mode: int) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "chmod", refuse)
    with pytest.raises(StoreError, match="Permission denied; set"):
        await Store.open(tmp_path)


@pytest.mark.parametrize("waiting", [1, 2])
async def test_whatever_goes_wrong_in_the_database_thread_nobody_waits_for_ever(
    store: Store, monkeypatch: pytest.MonkeyPatch, waiting: int
) -> None:
    def fail() -> sqlite3.Connection:
        raise SystemExit("unforeseen")

    monkeypatch.setattr(store, "_connect", fail)
    async with asyncio.timeout(20):
        results = await asyncio.gather(*(store.sessions() for _ in range(waiting)),
                                       return_exceptions=True)  # fmt: skip
    assert [type(error) for error in results] == [StoreError] * waiting


async def test_a_damaged_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "limbic.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(StoreError, match="refused"):
        await Store.open(tmp_path)


async def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    store = await Store.open(tmp_path)
    await store.close()
    with sqlite3.connect(tmp_path / "limbic.db") as connection:
        connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(StoreError, match="newer limbic"):
        await Store.open(tmp_path)


async def test_files_are_for_the_owner_only(store: Store) -> None:
    assert store.path.stat().st_mode & 0o077 == 0
    assert store.directory.stat().st_mode & 0o077 == 0


async def test_closing_twice_is_harmless_and_later_calls_are_refused(tmp_path: Path) -> None:
    store = await Store.open(tmp_path)
    await store.close()
    await store.close()
    with pytest.raises(StoreError, match="closed"):
        await store.begin_turn("s", "t", "x", at=0)


async def test_a_request_while_the_store_closes_is_refused_and_takes_no_directory(
    tmp_path: Path,
) -> None:
    store = await Store.open(tmp_path)
    await store.load_session("s", persona="companion", at=0)
    begun = await store.begin_turn("s", "t1", "words", at=1.0)
    busy, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def work(connection: sqlite3.Connection) -> bool:
        loop.call_soon_threadsafe(busy.set)
        return go_on.wait(20)

    working = asyncio.create_task(store.run(work))
    await busy.wait()
    queued = asyncio.create_task(store.begin_turn("s", "t2", "in time", at=1.0))
    await asyncio.sleep(0)
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0)
    late = asyncio.create_task(
        store.abandon_turn("s", begun.seq, status="failed", reply="", record={}, error=None, at=2.0)
    )
    await asyncio.sleep(0)
    await store.set_tokens("s", begun.seq, 7)
    go_on.set()
    await closing
    assert await working and (await queued).seq == 2
    with pytest.raises(StoreError, match="closed"):
        await late
    again = await Store.open(tmp_path)
    await again.close()


async def test_a_request_that_no_thread_takes_any_more_is_refused(tmp_path: Path) -> None:
    store = await Store.open(tmp_path)
    await asyncio.get_running_loop().run_in_executor(store._thread, store._close_in_thread)
    with pytest.raises(StoreError, match="closed"):
        await store.sessions()
    store._thread.shutdown()
    async with asyncio.timeout(20):
        with pytest.raises(StoreError, match="closed"):
            await store.sessions()


def _run_until_killed(directory: Path, kill_at: int) -> tuple[int, list[dict]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash_turns", str(directory), str(kill_at)],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


async def test_nothing_promised_is_lost_at_any_write_point(tmp_path: Path) -> None:
    code, lines = _run_until_killed(tmp_path / "whole", 0)
    assert code == 0
    statements = lines[-1]["statements"]
    assert statements >= 20
    for kill_at in range(1, statements, 2):
        directory = tmp_path / str(kill_at)
        code, promised = _run_until_killed(directory, kill_at)
        assert code == -signal.SIGKILL
        store = await Store.open(directory)
        users = {r[0] for r in await store.run(_rows, "SELECT user_text FROM turns")}
        done = await store.run(
            _rows, "SELECT reply, state_json, status FROM turns WHERE status='done'"
        )
        replies = {reply for reply, _, _ in done}
        for line in promised:
            if "user" in line:
                assert line["user"] in users, f"killed at statement {kill_at}"
            if "reply" in line:
                assert line["reply"] in replies, f"killed at statement {kill_at}"
        assert all(state for _, state, _ in done), "a reply without its state"
        half = await store.run(_rows, "SELECT reply FROM turns WHERE status='begun'")
        assert all(reply == "" for (reply,) in half)
        (state,) = (await store.run(_rows, "SELECT state FROM sessions") or [(None,)])[0]
        assert (state is not None) == bool(done), "state and reply are one transaction"
        assert await store.check() == "ok"
        await store.close()


def _rows(connection: sqlite3.Connection, sql: str) -> list[tuple]:
    return connection.execute(sql).fetchall()
