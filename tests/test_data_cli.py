"""The ``limbic data`` command: a whole build, twice to the same bytes; steps; exit codes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import orjson
import polars as pl
import pytest
from click.testing import CliRunner, Result

from tests.fakes.affect_data import labelled, row, write_public
from trainers.affect import commands_sources, options
from trainers.affect.build import build_set
from trainers.affect.cli import _COMMANDS, _SUMMARIES, data
from trainers.affect.config import Build, load_build, load_mapping
from trainers.affect.errors import GoldRefused, SourceMissing, TooManyRejects
from trainers.affect.frame import read_frame
from trainers.affect.gold import freeze
from trainers.affect.rows import write_rows
from trainers.affect.shards import load_part


def fast() -> Build:
    build = load_build()
    balance = build.balance.model_copy(update={"bootstrap": 100, "distance_sample": 100})
    return build.model_copy(update={"balance": balance})


def limbic(*arguments: object) -> Result:
    return CliRunner().invoke(data, [str(item) for item in arguments], prog_name="limbic data")


def write_pool(folder: Path) -> Path:
    write_rows(folder / "labels.jsonl", labelled(900, seed=21))
    write_rows(folder / "gold.jsonl", labelled(12, seed=22, quality="gold"))
    freeze(folder / "gold.jsonl")
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Public files, a pool, and what a build of both gives."""
    root = tmp_path_factory.mktemp("world")
    sources = write_public(root / "public")
    write_pool(root / "pool")

    def run(name: str, **options):
        return build_set(
            root / "public", root / name, fast(), load_mapping(), sources,
            **{"pool": root / "pool", "picture": False} | options,
        )  # fmt: skip

    return root, run, run("first")


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_same_inputs_and_seed_give_the_same_bytes_in_every_file(world):
    root, run, _ = world
    run("second")
    first, second = files(root / "first"), files(root / "second")
    assert list(first) == list(second)
    assert [name for name in first if first[name] != second[name]] == []
    assert {"train.jsonl", "README.md", "report.json", "correlation.json"} <= set(first)


def test_another_seed_gives_another_split(world):
    root, _, _ = world
    seven = fast().model_copy(update={"seed": 7})
    build_set(
        root / "public", root / "seven", seven, load_mapping(), write_public(root / "public"),
        pool=root / "pool", picture=False,
    )  # fmt: skip
    first, other = load_part(root / "first", "test"), load_part(root / "seven", "test")
    assert set(first["id"]) != set(other["id"])


def test_a_build_keeps_gold_out_and_share_alike_apart(world):
    root, _, built = world
    train = load_part(root / "first", "train")
    gold = load_part(root / "first", "gold")
    assert gold.height == 12
    assert not set(train["id"]) & set(gold["id"])
    assert "emobank" not in set(read_frame(root / "first" / "train.jsonl")["source"])
    assert set(read_frame(root / "first" / "train.CC-BY-SA-4.0.jsonl")["source"]) == {"emobank"}
    assert built.passed
    assert built.report["pool"] == {"labels.jsonl": 900}


def test_the_card_names_counts_licences_hashes_and_the_command(world):
    root, _, _ = world
    text = (root / "first" / "README.md").read_text()
    for piece in (
        "limbic data build", "CC-BY-SA-4.0", "Buechel", "| goemotions |", "guidelines version 1.0",
        "gate passed", "hostile_intimacy", "sha256",
    ):  # fmt: skip
        assert piece in text


def test_the_permissive_card_of_a_whole_build_says_what_it_leaves_out_and_how_all_was_built(world):
    root, _, _ = world
    result = limbic("card", root / "first", "--licence", "permissive")
    assert result.exit_code == 0
    assert "    limbic data build\n" in result.output  # what the build was told, without a licence
    assert "--licence permissive" not in result.output
    table, _, rest = result.output.partition("left out")
    assert "train.CC-BY-SA-4.0.jsonl" not in table and "train.CC-BY-SA-4.0.jsonl" in rest
    assert "left out" not in limbic("card", root / "first").output


def test_a_card_gives_the_command_of_the_build_also_where_only_the_choices_were_kept(
    world, tmp_path
):
    root, run, _ = world
    run("strict", permissive_only=True, command="limbic data build --licence permissive --seed 3")
    folder = tmp_path / "strict"
    shutil.copytree(root / "strict", folder)
    assert "    limbic data build --licence permissive --seed 3\n" in limbic("card", folder).output
    report = orjson.loads((folder / "report.json").read_bytes())
    del report["command"]
    (folder / "report.json").write_bytes(orjson.dumps(report))
    text = limbic("card", folder).output
    last = report["sources"][-1]
    assert f" --source {last} --licence permissive --seed {fast().seed}\n" in text
    assert "emobank" not in text
    (folder / "report.json").unlink()
    result = limbic("card", folder)
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    assert "report.json: not found" in result.stderr


def test_the_card_of_an_empty_folder_is_one_line(tmp_path):
    for more in ((), ("--licence", "permissive"), ("--json",)):
        result = limbic("card", tmp_path, *more)
        assert result.exit_code == 1
        assert "holds no data set" in result.stderr and result.stderr.count("\n") == 1


def test_permissive_builds_hold_no_share_alike_row(world):
    root, run, _ = world
    run("permissive", permissive_only=True)
    assert not [name for name in files(root / "permissive") if "CC-BY-SA" in name]
    assert "emobank" not in (root / "permissive" / "README.md").read_text()


def test_a_gold_row_in_the_pool_stops_the_build(world, tmp_path):
    _, run, _ = world
    write_pool(tmp_path)
    write_rows(tmp_path / "more.jsonl", labelled(12, seed=22))
    with pytest.raises(GoldRefused):
        run("refused", pool=tmp_path)


def test_a_changed_public_file_stops_the_build_before_it_is_read(world, tmp_path):
    sources = write_public(tmp_path)
    path = tmp_path / "affect/xed_en/neu_en.txt"
    path.write_bytes(path.read_bytes().replace(b"9", b"8", 1))
    with pytest.raises(SourceMissing, match=r"neu_en.txt: sha256"):
        build_set(
            tmp_path,
            tmp_path / "out",
            fast(),
            load_mapping(),
            sources,
            pool=tmp_path,
            names=["xed"],
        )


def test_bad_pool_lines_are_collected_and_stop_the_build_past_the_share(world, tmp_path):
    root, run, _ = world
    pool = write_pool(tmp_path / "pool")
    with (pool / "labels.jsonl").open("ab") as handle:
        handle.write(b"{broken\n")
    built = run("rejecting", pool=pool)
    (reject,) = built.rejects.items
    assert (Path(reject.file).name, reject.line) == ("labels.jsonl", 901)
    with (pool / "labels.jsonl").open("ab") as handle:
        handle.write(b"{broken\n" * 9)
    with pytest.raises(TooManyRejects, match="10 of 910 lines"):
        run("refusing", pool=pool)
    written = (root / "refusing" / "rejects.jsonl").read_bytes().splitlines()
    assert len(written) == 10


# ---------------------------------------------------------------------------------- commands


def test_the_steps_on_files_reach_the_gate(tmp_path, monkeypatch):
    monkeypatch.setattr(options, "load_build", lambda path=None: fast())
    write_rows(tmp_path / "labels.jsonl", labelled(900, seed=21, tags=()))
    pool = ["--pool", tmp_path / "nothing"]
    steps = [
        ["lint", tmp_path / "labels.jsonl"],
        ["merge", tmp_path / "labels.jsonl", "--out", tmp_path / "merged.jsonl", *pool],
        ["split", tmp_path / "merged.jsonl", "--out", tmp_path / "split.jsonl", *pool],
        ["balance", tmp_path / "split.jsonl", "--out", tmp_path / "balanced.jsonl", *pool],
        ["correlate", tmp_path / "balanced.jsonl", "--ci", "--json"],
    ]
    results = [limbic(*step) for step in steps]
    assert [result.exit_code for result in results] == [0] * 5, results[-1].output
    report = orjson.loads(results[-1].stdout)
    train = read_frame(tmp_path / "balanced.jsonl").filter(pl.col("split") == "train")
    assert report["passed"]
    assert report["rows"] == train.height


def test_ci_exits_1_when_the_gate_fails(tmp_path):
    write_rows(tmp_path / "rows.jsonl", labelled(60, coupled=0.9))
    assert limbic("correlate", tmp_path / "rows.jsonl").exit_code == 0
    result = limbic("correlate", tmp_path / "rows.jsonl", "--ci")
    assert result.exit_code == 1
    assert "gate FAILED" in result.stdout


def test_lint_exits_1_on_errors_and_on_warnings_only_when_strict(tmp_path):
    write_rows(tmp_path / "bad.jsonl", [row("please stop", 0.9, tags=("safety_edge",))])
    write_rows(tmp_path / "odd.jsonl", [row("oh great, more rain", 0.6)])
    assert limbic("lint", tmp_path / "bad.jsonl").exit_code == 1
    assert limbic("lint", tmp_path / "odd.jsonl").exit_code == 0
    assert limbic("lint", tmp_path / "odd.jsonl", "--strict").exit_code == 1


def test_a_planted_leak_makes_split_check_exit_1(tmp_path):
    write_rows(tmp_path / "rows.jsonl", [
        row("we never talk about it", split="train"),
        row("We never talk about it!", split="test", id="other"),
    ])  # fmt: skip
    result = limbic("split", tmp_path / "rows.jsonl", "--check", "--out", tmp_path / "x")
    assert result.exit_code == 1
    assert "error: 1 texts are in several splits, first 'we never talk about it'" in result.stderr


def test_rejected_lines_are_shown_written_and_exit_1_past_the_share(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_rows(path, labelled(20, tags=()))
    path.write_bytes(path.read_bytes() + b"{\n")
    rejects = tmp_path / "rejects.jsonl"
    strict = limbic("lint", path, "--rejects", rejects)
    assert strict.exit_code == 1
    assert f"rejected {path}:21: broken JSON" in strict.stderr
    assert orjson.loads(rejects.read_bytes())["line"] == 21
    assert limbic("lint", path, "--max-rejects", "0.1").exit_code == 0


def test_a_reader_command_writes_rows_and_counts(tmp_path):
    write_public(tmp_path)
    out = tmp_path / "intimacy.jsonl"
    result = limbic("intimacy", "--data", tmp_path, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    assert orjson.loads(result.stdout) == {
        "rows": 120, "rejected": 0, "scored": {"valence": 0, "intimacy": 120, "tension": 0},
    }  # fmt: skip
    assert read_frame(out).height == 120


def test_fetch_takes_files_from_a_folder(tmp_path, monkeypatch):
    known = write_public(tmp_path / "from")
    monkeypatch.setattr(commands_sources, "load_sources", lambda: known)
    result = limbic("fetch", "xed", "--from", tmp_path / "from", "--to", tmp_path / "to", "--json")
    assert result.exit_code == 0, result.output
    assert [item["how"] for item in orjson.loads(result.stdout)] == ["copied", "copied"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["fetch", "--link"], 2, "--link needs --from"),
        (["fetch", "vader"], 1, "error: no source 'vader'"),
        (["build", "--source", "vader"], 2, "'vader' is none of"),
        (["nothing"], 2, "No such command 'nothing'"),
        (["merge", "/no/such/file", "--out", "x"], 2, "does not exist"),
        (["xed", "--data", "/no/such", "--out", "/tmp/x"], 1, "run `limbic data fetch`"),
        (["gold", "--pool", "/no/such"], 1, "there is no gold set"),
    ],
)
def test_mistakes_give_one_line_and_their_exit_code(arguments, code, said):
    result = limbic(*arguments)
    assert result.exit_code == code
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_a_wrong_configuration_exits_78_and_names_the_key(tmp_path):
    write_rows(tmp_path / "rows.jsonl", labelled(3))
    (tmp_path / "build.toml").write_text("seed = 'x'")
    result = limbic("lint", tmp_path / "rows.jsonl", "--config", tmp_path / "build.toml")
    assert result.exit_code == 78
    assert "build.toml: seed: " in result.stderr


def test_no_data_folder_says_how_to_give_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIMBIC_DATA", raising=False)
    result = limbic("xed", "--out", "x.jsonl")
    assert result.exit_code == 78
    assert "give --data FOLDER or set LIMBIC_DATA" in result.stderr


def test_gold_is_frozen_checked_and_refused(tmp_path):
    write_rows(tmp_path / "gold.jsonl", labelled(3, seed=22, quality="gold"))
    assert limbic("gold", "--pool", tmp_path).exit_code == 1
    assert limbic("gold", "--pool", tmp_path, "--freeze").exit_code == 0
    write_rows(tmp_path / "train.jsonl", labelled(3, seed=22))
    result = limbic("gold", "--pool", tmp_path, "--refuse", tmp_path / "train.jsonl")
    assert result.exit_code == 1
    assert "3 gold rows" in result.stderr


def test_every_command_has_a_summary_and_help_with_an_example():
    assert set(_COMMANDS) == set(_SUMMARIES)
    for name, module in _COMMANDS.items():
        if module.startswith("commands_"):
            result = limbic(name, "--help")
            assert result.exit_code == 0
            assert f"limbic data {name}" in result.stdout.split("Example:")[1]


def test_help_does_not_import_the_heavy_libraries():
    code = (
        "import sys; from trainers.affect.cli import data;"
        "data.main(['--help'], standalone_mode=False);"
        "assert not {'polars', 'matplotlib', 'scipy', 'datasketch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
