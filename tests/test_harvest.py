"""Harvest: consent first, redaction always, and the right turns on top."""

from __future__ import annotations

import sqlite3

import orjson
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from tests.label_kit import write_jsonl
from trainers.affect.harvest import harvest
from trainers.affect.label.items import read_items
from trainers.affect.redact import redact, redact_session
from trainers.affect.rows import Rejects


def raw(turn, text, valence=0.0, intimacy=0.0, tension=0.0, confidence=0.8, tags=(), **extra):
    return {
        "turn_id": turn,
        "session_id": "alice",
        "text": text,
        "valence": valence,
        "intimacy": intimacy,
        "tension": tension,
        "confidence": confidence,
        "tags": list(tags),
        **extra,
    }


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logs").mkdir()

    def invoke(*arguments, code=0):
        result = CliRunner().invoke(harvest, ["--logs", "logs", "--consent", *arguments])
        assert result.exit_code == code, result.output
        path = tmp_path / "candidates_manual.jsonl"
        return (
            [orjson.loads(line) for line in path.read_bytes().splitlines()] if code == 0 else result
        )

    return invoke


def test_without_consent_nothing_is_read_or_written(tmp_path):
    write_jsonl(tmp_path / "affect_head_raw.jsonl", [raw("t1", "private words")])
    out = tmp_path / "out.jsonl"
    config = tmp_path / "limbic.toml"
    for text in (
        "",
        "[telemetry]\nharvest_consent = false\n",
        '[telemetry]\nharvest_consent = "yes"',
    ):
        config.write_text(text)
        result = CliRunner().invoke(
            harvest, ["--logs", str(tmp_path), "--config", str(config), "--out", str(out)]
        )
        assert result.exit_code == 78
        assert "telemetry.harvest_consent" in result.stderr and result.stderr.count("\n") == 1
        assert not out.exists()
    config.write_text("[telemetry]\nharvest_consent = true\n")
    result = CliRunner().invoke(
        harvest, ["--logs", str(tmp_path), "--config", str(config), "--out", str(out)]
    )
    assert result.exit_code == 0 and out.exists()


def test_criteria_choose_and_say_why(run, tmp_path):
    write_jsonl(
        tmp_path / "logs" / "affect_head_raw.jsonl",
        [
            raw("t1", "who is she", tension=0.9, tags=["hostile_intimacy"]),
            raw("t2", "hm", confidence=0.2),
            raw("t3", "nice day", valence=0.5),
        ],
    )
    assert [r["text"] for r in run("--tag", "hostile_intimacy")] == ["who is she"]
    [unsure] = run("--low-confidence", "0.5")
    assert unsure["text"] == "hm" and "confidence 0.20" in unsure["reason"]
    [bright] = run("--band", "valence=0.4:1")
    assert bright["text"] == "nice day"
    assert len(run("--band", "valence=0.4:1", "--low-confidence", "0.5")) == 2
    assert len(run()) == 3


def test_two_scores_of_one_turn_that_differ_rank_it_first(run, tmp_path):
    write_jsonl(
        tmp_path / "logs" / "affect_head_raw.jsonl",
        [
            raw("t1", "sure."),
            raw("t2", "oh great"),
            raw("t2", "oh great", valence=0.2, late=True),
        ],
    )
    write_jsonl(
        tmp_path / "logs" / "turns.jsonl",
        [
            {"turn_id": "t1", "session_id": "alice", "affect": {"valence": 0.1}},
            {"turn_id": "t2", "session_id": "alice", "affect": {"valence": -0.6}},
        ],
    )
    first, *rest = run("--disagreement", "0.5")
    assert first["text"] == "oh great" and rest == []
    assert "scores differ by 0.80 on valence" in first["reason"]
    assert [r["text"] for r in run()] == ["oh great", "sure."]
    assert [r["rank"] for r in run()] == [1, 2]


def test_turns_of_two_sessions_with_one_id_stay_apart_and_odd_places_do_not_stop(run, tmp_path):
    write_jsonl(
        tmp_path / "logs" / "affect_head_raw.jsonl",
        [
            raw("t1", "I adore you", valence=0.9, seq="first"),
            raw("t1", "I hate this", valence=-0.9, session_id="bob", seq=1),
        ],
    )
    write_jsonl(
        tmp_path / "logs" / "turns.jsonl",
        [{"turn_id": "t1", "session_id": "bob", "affect": {"valence": -0.7}}],
    )
    found = {row["text"]: row["model"]["valence"] for row in run()}
    assert found == {"I adore you": 0.9, "I hate this": -0.8}
    assert run("--disagreement", "0.5") == []


def test_rare_cells_go_before_full_ones_and_labelled_texts_are_left_out(run, tmp_path):
    write_jsonl(
        tmp_path / "logs" / "affect_head_raw.jsonl",
        [
            raw("t1", "lovely", valence=0.9, confidence=0.2),
            raw("t2", "grey", valence=-0.9),
            raw("t3", "done already", valence=-0.9),
        ],
    )
    known = [
        {
            "text": text,
            "valence": v,
            "intimacy": 0.0,
            "tension": 0.0,
            "confidence": 0.9,
            "tags": [],
            "source": "human",
            "guideline": "1.0",
            "quality": "clean",
            "licence": "Apache-2.0",
        }
        for text, v in [("a", 0.9), ("b", 0.8), ("c", 0.7), ("done already", -0.9)]
    ]
    write_jsonl(tmp_path / "known.jsonl", known)
    assert next(r["text"] for r in run()) == "lovely"
    assert [r["text"] for r in run("--known", "known.jsonl")] == ["grey", "lovely"]


def test_candidates_hold_no_contact_no_name_and_no_session_id(run, tmp_path):
    write_jsonl(
        tmp_path / "logs" / "affect_head_raw.jsonl",
        [
            raw(
                "t1",
                "mail me at jo.b@mail.example or call +44 7700 900123",
                session_id="alice@home",
            ),
            raw(
                "t2",
                "I saw Marek there. Marek laughed",
                session_id="alice@home",
                context=["see www.photos.example/me now"],
            ),
        ],
    )
    written = orjson.dumps(run()).decode()
    for secret in ("jo.b", "900123", "Marek", "photos.example", "alice"):
        assert secret not in written
    for placeholder in ("[email]", "[phone]", "[name]", "[url]"):
        assert placeholder in written


def test_turns_logged_without_text_are_counted_and_never_candidates(run, tmp_path):
    silent = raw("t1", None, text_sha256="ab")
    write_jsonl(tmp_path / "logs" / "affect_head_raw.jsonl", [silent, raw("t2", "hello")])
    assert [r["text"] for r in run()] == ["hello"]
    result = CliRunner().invoke(harvest, ["--logs", "logs", "--consent"])
    assert "1 turns had no text" in result.stdout


def test_rotated_logs_are_read_too_and_output_repeats_byte_for_byte(run, tmp_path):
    write_jsonl(tmp_path / "logs" / "affect_head_raw.jsonl.1", [raw("t1", "older")])
    write_jsonl(tmp_path / "logs" / "affect_head_raw.jsonl", [raw("t2", "newer")])
    first = run()
    assert {r["text"] for r in first} == {"older", "newer"}
    written = (tmp_path / "candidates_manual.jsonl").read_bytes()
    run()
    assert (tmp_path / "candidates_manual.jsonl").read_bytes() == written


def a_store(path):
    connection = sqlite3.connect(path)
    connection.execute(
        "CREATE TABLE turns(session_id TEXT, turn_id TEXT, seq INTEGER, user_text TEXT, reply TEXT,"
        " affect_json TEXT, state_json TEXT, status TEXT, created_at TEXT)"
    )
    affect = orjson.dumps(
        {"valence": -0.4, "intimacy": 0.1, "tension": 0.3, "confidence": 0.4, "tags": ["flat_numb"]}
    ).decode()
    rows = [
        ("s", f"t{n}", n, text, "…", affect if n == 3 else None, None, "done", "")
        for n, text in [(2, "second"), (1, "first"), (3, "third"), (4, "fourth")]
    ]
    connection.executemany("INSERT INTO turns VALUES (?,?,?,?,?,?,?,?,?)", rows)
    connection.commit()
    connection.close()


def test_the_store_gives_text_context_in_order_and_scores(tmp_path):
    a_store(tmp_path / "limbic.db")
    out = tmp_path / "out.jsonl"
    result = CliRunner().invoke(
        harvest,
        [
            "--store",
            str(tmp_path / "limbic.db"),
            "--consent",
            "--tag",
            "flat_numb",
            "--out",
            str(out),
        ],
    )
    assert result.exit_code == 0, result.output
    [row] = map(orjson.loads, out.read_bytes().splitlines())
    assert (row["text"], row["context"]) == ("third", ["first", "second"])
    assert row["model"]["valence"] == -0.4
    assert row["valence"] is None


def test_candidates_go_straight_into_labelling(run, tmp_path):
    write_jsonl(tmp_path / "logs" / "affect_head_raw.jsonl", [raw("t1", "hello"), raw("t2", "bye")])
    run()
    rejects = Rejects()
    items = list(read_items([tmp_path / "candidates_manual.jsonl"], rejects))
    assert rejects.items == []
    assert {item.text for item in items} == {"hello", "bye"}
    assert all(item.prior == {} for item in items)


def test_broken_lines_are_named_and_too_many_fail(run, tmp_path):
    (tmp_path / "logs" / "turns.jsonl").write_bytes(b'{"turn_id": "t1"\n{"no": 1}\n')
    stderr = run(code=1).stderr
    assert "turns.jsonl:1: broken JSON" in stderr
    assert "turns.jsonl:2: missing column 'turn_id'" in stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--consent"], 2, "--logs FOLDER"),
        (["--consent", "--logs", "nowhere"], 1, "neither turns.jsonl nor"),
        (["--consent", "--store", "nowhere.db"], 1, "no such store"),
        (["--consent", "--logs", ".", "--band", "joy=0:1"], 2, "write AXIS=LOW:HIGH"),
        (["--consent", "--logs", ".", "--band", "tension=1:0"], 2, "write AXIS=LOW:HIGH"),
    ],
)
def test_mistakes_get_one_line_and_the_right_exit_code(
    tmp_path, monkeypatch, arguments, code, said
):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(harvest, arguments)
    assert (result.exit_code, said in result.stderr) == (code, True), result.output


# ---------------------------------------------------------------------- redaction


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (
            "hi Anna, call me on +44 7700 900123 or a.b@c.co.uk",
            "hi [name], call me on [phone] or [email]",
        ),
        ("Tom, where are you?", "[name], where are you?"),
        ("my name is lukas btw", "my name is [name] btw"),
        ("card 4111 1111 1111 1111 exp 10/27", "card [phone] exp [number]"),
        ("see https://x.example/a?b=1, ok?", "see [url] ok?"),
        ("@joe_x said so", "[handle] said so"),
        ("STOP IT. I HATE THIS", "STOP IT. I HATE THIS"),
        ("So mum said Monday is fine", "So mum said Monday is fine"),
        ("i've got 4 left", "i've got 4 left"),
        ("it's Marek's turn", "it's [name]'s turn"),
    ],
)
def test_redaction_takes_out_what_reaches_a_person_and_keeps_the_rest(text, clean):
    assert redact(text) == clean


def test_a_name_given_away_once_is_taken_out_of_the_whole_session():
    assert redact_session(["I met Zofia", "Zofia laughed", "nice"]) == [
        "I met [name]",
        "[name] laughed",
        "nice",
    ]


@given(st.text(max_size=80))
def test_redacting_twice_changes_nothing(text):
    once = redact(text)
    assert redact(once) == once


@given(
    st.from_regex(r"[a-z]{1,8}@[a-z]{1,8}\.com", fullmatch=True),
    st.from_regex(r"\+[1-9][0-9]{9,11}", fullmatch=True),
    st.text("abc ,!\n", max_size=10),
)
def test_no_address_or_phone_number_gets_through(address, phone, filler):
    clean = redact(f"{filler} {address} {filler} {phone} {filler}")
    assert address not in clean and phone not in clean
    assert not any(character.isdigit() for character in clean)
