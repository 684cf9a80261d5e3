"""Copies, gold, merging, splitting and planted leaks."""

from __future__ import annotations

import random
import re

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.affect_data import labelled, row, sentence
from trainers.affect.config import config_dir, load_build, load_sources
from trainers.affect.copies import ascii_form, bare_form, near_pairs
from trainers.affect.errors import BadRow, DataError, GoldRefused, LeakFound
from trainers.affect.frame import complete, seeded_order, to_frame, unmeasured, write_frame
from trainers.affect.gold import GoldGuard, freeze, pool_files
from trainers.affect.lint import lint, load_rules
from trainers.affect.merge import MergeReport, merge
from trainers.affect.rows import AffectRow, write_rows
from trainers.affect.shards import load_part, shard_files, write_shards
from trainers.affect.split import check_leaks, split, with_groups

BUILD, SOURCES = load_build(), load_sources()
LONG = "i waited at the station for two hours and you never even called me back"


def merged(*rows: AffectRow, gold: GoldGuard | None = None) -> tuple[list[str], MergeReport]:
    frame, report = merge(to_frame(rows), gold or GoldGuard(), BUILD, SOURCES)
    return frame["id"].to_list(), report


def auto(text: str, **more) -> AffectRow:
    return row(text, quality="auto", source="xed", guideline=None, **more)


# ---------------------------------------------------------------------------------- copies


def test_typographic_signs_and_emoji_survive_in_ascii_beside_the_raw_text():
    raw = pl.Series(["don’t  “go” 😭", "plain"])
    assert ascii_form(raw).to_list() == ['don\'t "go" :sob:', "plain"]
    frame, _ = merge(to_frame([row("don’t go 😭")]), GoldGuard(), BUILD, SOURCES)
    assert (frame["text"][0], frame["text_ascii"][0]) == ("don’t go 😭", "don't go :sob:")


@given(st.lists(st.text(max_size=30), max_size=5))
def test_ascii_and_bare_forms_are_ascii_and_settle(texts):
    once = ascii_form(pl.Series(texts, dtype=pl.String))
    assert all(text.isascii() for text in once)
    assert ascii_form(once).to_list() == once.to_list()
    bare = bare_form(once)
    assert bare_form(bare).to_list() == bare.to_list()


def test_near_pairs_are_found_among_many_and_only_near_ones():
    draw = random.Random(1)
    texts = [sentence(draw, 12) for _ in range(300)]
    texts[250] = texts[7].replace(" ", " a ", 1)
    assert near_pairs(texts, 0.7, 90).tolist() == [[7, 250]]
    assert near_pairs(["yes", "yes!"], 0.7, 90).tolist() == []


def test_a_copy_of_a_better_row_is_dropped_across_sources():
    best = row(LONG, quality="exemplar")
    ids, report = merged(auto(LONG), auto(LONG + "!!"), best)
    assert ids == [best.id]
    assert (report.exact_copies, report.near_copies) == (1, 1)


def test_a_scored_row_wins_over_the_same_text_without_scores():
    bare = auto(LONG, valence=None, intimacy=None, tension=None, id="aaa")
    weak = row(LONG, source="goemotions", quality="backfill", guideline=None)
    assert merged(bare, weak)[0] == [weak.id]


def test_the_same_words_after_another_turn_are_another_message():
    ids, report = merged(row("yes", 0.8), row("yes", -0.8, context=("do you hate me?",)))
    assert len(ids) == 2
    assert report.exact_copies == 0


def test_both_sides_of_a_minimal_pair_stay():
    sides = [row(LONG + end, pair="p", pair_axis="valence") for end in (" today", " to-day")]
    assert len(merged(*sides)[0]) == 2


def test_a_labelled_contrast_stays_and_a_conflict_is_reported():
    ids, report = merged(row(LONG, -0.8), row(LONG + " :)", 0.6))
    assert len(ids) == 2
    assert [item["gap"] for item in report.conflicts] == [1.4]
    ids, report = merged(row(LONG, -0.8), row(LONG, 0.6, id="other"))
    assert len(ids) == 1
    assert report.conflicts[0]["exact"]


def test_weights_follow_quality():
    draw = random.Random(2)
    rows = [
        row(sentence(draw), quality=quality, source="human")
        for quality in ("exemplar", "clean", "auto", "backfill")
    ]
    frame, _ = merge(to_frame(rows), GoldGuard(), BUILD, SOURCES)
    found = dict(frame.select("quality", "weight").iter_rows())
    assert found == {"exemplar": 8.0, "clean": 5.0, "auto": 1.0, "backfill": 0.5}


def test_a_frame_gives_at_most_the_cap_and_keeps_the_most_confident():
    draw = random.Random(3)
    cap = BUILD.merge.frame_cap
    rows = [
        row(sentence(draw), frame="who-is", confidence=round(0.5 + n / 100, 2), id=str(n))
        for n in range(cap + 3)
    ]
    ids, report = merged(*rows)
    assert sorted(map(int, ids)) == list(range(3, cap + 3))
    assert report.frame_over_cap == 3


def test_surplus_backfill_loses_its_scores_but_stays_for_the_emotion_heads():
    draw = random.Random(4)
    rows = [
        row(sentence(draw), draw.choice([-0.5, 0.5]), None, None, quality="backfill",
            source="xed", guideline=None, aux={"joy": 1.0}, tags=("everyday_warm",))
        for _ in range(50)
    ]  # fmt: skip
    small = BUILD.model_copy(update={"merge": BUILD.merge.model_copy(update={"backfill_cap": 20})})
    frame, report = merge(to_frame(rows), GoldGuard(), small, SOURCES)
    scored = frame.filter(~unmeasured())
    assert (scored.height, frame.height, report.backfill_unscored) == (20, 50, 30)
    assert scored["valence"].sign().sum() == 0  # evenly over signs
    surplus = frame.filter(unmeasured())
    assert surplus["aux"].list.len().min() == 1
    assert surplus["tags"].list.len().max() == 0
    assert surplus["confidence"].null_count() == 30


def test_permissive_only_leaves_share_alike_and_unknown_licences_out():
    draw = random.Random(5)
    rows = [
        row(sentence(draw), licence=name, id=name)
        for name in ("MIT", "CC-BY-SA-4.0", "CC-BY-NC-4.0", "Somebody-1.0")
    ]
    frame, report = merge(to_frame(rows), GoldGuard(), BUILD, SOURCES, permissive_only=True)
    assert frame["id"].to_list() == ["MIT"]
    assert report.licence_left_out == 3


def test_merging_does_not_depend_on_the_order_of_rows():
    rows = [*labelled(60), auto(LONG), auto(LONG + "!"), auto("yes"), auto("yes", id="z")]
    first, _ = merge(to_frame(rows), GoldGuard(), BUILD, SOURCES)
    random.Random(1).shuffle(rows)
    second, _ = merge(to_frame(rows), GoldGuard(), BUILD, SOURCES)
    assert first.equals(second)


def test_an_id_in_two_sources_is_named():
    with pytest.raises(BadRow, match=r"duplicate id 'x' in sources human, llm_label"):
        merged(row("a b c", id="x"), row("d e f", id="x", source="human"))


# ---------------------------------------------------------------------------------- gold


@pytest.fixture
def gold_folder(tmp_path):
    golden = [row(LONG, quality="gold", split="gold"), row("stop it now", quality="gold")]
    write_rows(tmp_path / "gold.jsonl", golden)
    freeze(tmp_path / "gold.jsonl")
    return tmp_path


def test_gold_is_refused_by_id_text_quality_and_split(gold_folder):
    guard = GoldGuard.load(gold_folder)
    clean = row("something else entirely")
    guard.refuse([clean])
    bad = [
        row("other words", id=row(LONG).id),
        row("  I waited at the station for two hours, and you never even called me back"),
        row("other", quality="gold"),
        row("other", split="gold"),
    ]
    for item in bad:
        with pytest.raises(GoldRefused, match=f"1 gold rows, first {item.id!r}"):
            guard.refuse([clean, item], "train.jsonl")


def test_copies_of_gold_in_other_sources_never_reach_the_set(gold_folder):
    guard = GoldGuard.load(gold_folder)
    ids, report = merged(auto(LONG), auto(LONG + " ok", id="near"), row("fine"), gold=guard)
    assert ids == [row("fine").id]
    assert report.gold_copies == 2


def test_copies_of_a_minimal_pair_or_of_gold_after_another_turn_never_reach_the_set(tmp_path):
    guard = GoldGuard.of(
        to_frame(
            [
                row(LONG, None, None, None, quality="gold", source="minimal_pair"),
                row("stop it now", quality="gold", context=("we talked all night",)),
            ]
        )
    )
    copies = [row(LONG + " ok"), auto(LONG), auto("Stop it now"), row("fine")]
    ids, report = merged(*copies, gold=guard)
    assert ids == [row("fine").id]
    assert report.gold_copies == 3


def test_a_gold_row_handed_in_as_data_is_refused(gold_folder):
    with pytest.raises(GoldRefused):
        merged(row(LONG), gold=GoldGuard.load(gold_folder))
    with pytest.raises(GoldRefused):
        merged(row("hello", quality="gold"))


def test_a_changed_gold_file_is_an_error_and_cannot_be_frozen_over(gold_folder):
    path = gold_folder / "gold.jsonl"
    path.write_bytes(path.read_bytes().replace(b"two hours", b"six hours"))
    with pytest.raises(DataError, match="restore the frozen file"):
        GoldGuard.load(gold_folder)
    with pytest.raises(DataError, match="restore the frozen file"):
        freeze(path)


def test_only_gold_rows_can_be_frozen_and_unfrozen_gold_is_an_error(tmp_path):
    write_rows(tmp_path / "gold.jsonl", [row("hello")])
    with pytest.raises(DataError, match="has quality 'clean'"):
        freeze(tmp_path / "gold.jsonl")
    with pytest.raises(DataError, match=r"gold.sha256: missing; freeze"):
        GoldGuard.load(tmp_path)


def test_texts_of_minimal_pairs_are_guarded_like_gold(tmp_path):
    (tmp_path / "pairs.jsonl").write_text(
        '{"id": "m1", "axis": "tension", "a": "oh no", "b": "oh"}'
    )
    write_rows(tmp_path / "rows.jsonl", [row("hello")])
    rows, pairs = pool_files(tmp_path)
    assert ([path.name for path in rows], [path.name for path in pairs]) == (
        ["rows.jsonl"], ["pairs.jsonl"],
    )  # fmt: skip
    with pytest.raises(GoldRefused):
        GoldGuard.load(tmp_path).refuse([row("Oh no!")])


# ---------------------------------------------------------------------------------- split


def divided(rows: list[AffectRow]) -> pl.DataFrame:
    return split(to_frame(rows), BUILD)[0]


def test_whole_frames_sessions_threads_and_pairs_stay_together():
    rows = labelled(300)
    draw = random.Random(9)
    for key in ("session_id", "thread"):
        rows += [row(sentence(draw), **{key: f"{key}-{n % 40}"}) for n in range(120)]
    rows += [
        row(sentence(draw), pair=f"p{n % 40}", pair_axis="valence", frame=f"pf{n % 40}")
        for n in range(80)
    ]
    frame = divided(rows)
    for key in ("frame", "session_id", "thread", "pair"):
        spread = frame.drop_nulls(key).group_by(key).agg(pl.col("split").n_unique())
        assert spread["split"].max() == 1
    assert set(frame["split"]) == {"train", "dev", "test"}


def test_groups_are_transitive():
    rows = [
        row("one red kettle", frame="f", session_id="s"),
        row("two blue letters", session_id="s", thread="t"),
        row("three green doors", thread="t"),
        row("four"),
    ]
    groups = with_groups(to_frame(rows))["group"]
    assert groups.n_unique() == 2
    assert groups[0] == groups[1] == groups[2]


def test_every_archetype_gets_its_share_of_dev_and_test():
    frame = divided(labelled(900, seed=2))
    table = frame.with_columns(pl.col("tags").list.first()).group_by("tags", "split").len()
    for _, part in table.group_by("tags"):
        counts = dict(part.select("split", "len").iter_rows())
        assert counts["train"] >= 70
        assert 5 <= counts["dev"] <= 15
        assert 5 <= counts["test"] <= 15


def test_published_dev_rows_never_train():
    draw = random.Random(10)
    rows = [auto(sentence(draw), origin_split="dev" if n % 5 == 0 else "train") for n in range(100)]
    rows += [
        auto(sentence(draw), origin_split="dev" if n % 6 == 0 else "train", thread=f"d{n // 6}")
        for n in range(240)
    ]
    frame, report = split(to_frame(rows), BUILD)
    published = frame.filter(pl.col("origin_split") == "dev")
    assert "train" not in published["split"].to_list()
    assert published.filter(pl.col("thread").is_null())["split"].unique().to_list() == ["dev"]
    assert report.held_out == published["split"].null_count() > 0


def test_rows_made_for_training_alone_train_and_move_nobody_else():
    old = labelled(300, seed=4)
    before = dict(divided(old).select("id", "split").iter_rows())
    more = [r.model_copy(update={"origin_split": "train"}) for r in labelled(400, seed=5)]
    after = dict(divided([*old, *more]).select("id", "split").iter_rows())
    assert {after[r.id] for r in more} == {"train"}
    assert {r.id: after[r.id] for r in old} == before
    assert set(divided(more)["split"]) == {"train"}


def test_a_group_with_one_row_for_training_alone_is_still_one_group():
    old = labelled(300, seed=4)
    kin = [r.model_copy(update={"origin_split": "train", "frame": old[0].frame})
           for r in labelled(1, seed=5)]  # fmt: skip
    frame = divided([*old, *kin])
    assert frame.filter(pl.col("frame") == old[0].frame)["split"].n_unique() == 1
    check_leaks(frame, BUILD.merge)


def test_dev_and_test_hold_no_guessed_scores():
    draw = random.Random(11)
    rows = [
        row(sentence(draw), source="xed", quality="backfill", guideline=None) for _ in range(200)
    ]
    frame = divided(rows)
    assert frame.filter(pl.col("split") == "train").select(unmeasured().sum()).item() == 0
    assert frame.filter(pl.col("split") != "train").select((~unmeasured()).sum()).item() == 0


def test_samples_for_different_purposes_are_independent():
    keys = [f"row {n}" for n in range(2000)]
    picks = [
        set(
            pl.DataFrame([pl.Series("k", keys), seeded_order(keys, 1, purpose)]).sort("order")["k"][
                :400
            ]
        )
        for purpose in ("cap", "split")
    ]
    assert 40 < len(picks[0] & picks[1]) < 120  # 80 expected by chance


@given(st.integers(0, 10**6))
@settings(max_examples=10)
def test_a_row_keeps_its_place_when_other_rows_come_or_go(seed):
    keys = [f"row {n}" for n in range(20)]
    whole = dict(zip(keys, seeded_order(keys, seed, "split"), strict=True))
    assert seeded_order(keys[::3], seed, "split").to_list() == [whole[key] for key in keys[::3]]


def clean_split() -> pl.DataFrame:
    frame = divided(labelled(300, seed=3))
    check_leaks(frame, BUILD.merge)
    return frame


def plant(rows: pl.DataFrame, **changes) -> pl.DataFrame:
    """Put a changed copy of the first train row into test."""
    first = rows.filter(pl.col("split") == "train").head(1)
    keys = dict.fromkeys(("group", "frame", "session_id", "thread", "pair"))
    values = {"id": "planted", "split": "test", **keys, **changes}
    planted = first.with_columns(pl.lit(value).alias(name) for name, value in values.items())
    return pl.concat([rows, complete(planted)])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text, "1 texts are in several splits"),
        (lambda text: text.upper() + "!!", "1 texts are in several splits"),
        (lambda text: text + " x", "1 near copies are in different splits"),
    ],
)
def test_a_planted_copy_in_another_split_is_caught(change, said):
    frame = clean_split()
    text = frame.filter(pl.col("split") == "train")["text"][0]
    with pytest.raises(LeakFound, match=said):
        check_leaks(plant(frame, text=change(text)), BUILD.merge)


@pytest.mark.parametrize("key", ["session_id", "thread", "frame", "pair", "group"])
def test_a_planted_session_thread_frame_pair_or_group_is_caught(key):
    frame = clean_split()
    train = (pl.col("split") == "train") & (pl.int_range(pl.len()) < 50)
    frame = frame.with_columns(pl.when(train).then(pl.lit("same")).otherwise(key).alias(key))
    frame = plant(frame, text="nothing like any other line at all", **{key: "same"})
    with pytest.raises(LeakFound, match=rf"values of {key!r} are in several splits, first 'same'"):
        check_leaks(frame, BUILD.merge)


def test_merging_and_splitting_again_removes_a_planted_leak():
    frame = clean_split()
    leaky = plant(frame, text=frame.filter(pl.col("split") == "train")["text"][0] + " x")
    again, _ = merge(leaky.with_columns(pl.lit(None, pl.String).alias("split")), GoldGuard(),
                     BUILD, SOURCES)  # fmt: skip
    check_leaks(split(again, BUILD)[0], BUILD.merge)


# ---------------------------------------------------------------------------------- lint


def rules_hit(*rows: AffectRow) -> set[tuple[str, str]]:
    return {(finding.rule, finding.level) for finding in lint(to_frame(rows))}


@pytest.mark.parametrize(
    ("bad", "rule"),
    [
        (row("hey gorgeous, send me a pic", 0.7, 0.8, 0.1), ("creep_as_warm", "error")),
        (row("see you soon", 0.5, 0.6, 0.1, tags=("creep",)), ("creep_as_warm", "error")),
        (row("please stop", 0.8, tags=("safety_edge",)), ("safety_edge_pleasant", "error")),
        (row('she said "you will never amount to a thing"', -0.8), ("quoted_speech", "warning")),
        (row("oh great, the boiler again", 0.6), ("sarcasm", "warning")),
        (row("lovely weather", 0.9, tags=("sarcasm",)), ("sarcasm_pleasant", "warning")),
        (row("i miss you", 0.6, 0.9, 0.5, tags=("hostile_intimacy",)),
         ("tag_contradiction", "warning")),
        (row("write to me at someone@example.org"), ("personal_data", "warning")),
    ],
)  # fmt: skip
def test_lint_finds_what_people_get_wrong(bad, rule):
    assert rule in rules_hit(bad)


@pytest.mark.parametrize(
    "good",
    [
        row("hey gorgeous, send me a pic", -0.3, -0.3, 0.5, tags=("safety_edge", "creep")),
        row("oh great, the boiler again", -0.4, tags=("sarcasm",)),
        row("that is great news", 0.6),
        row('she said "you will never amount to a thing"', -0.8, tags=("quoted_speech",)),
        row("why won't you just talk to me", -0.7, 0.7, 0.7, tags=("hostile_intimacy",)),
    ],
)
def test_lint_leaves_right_labels_alone(good):
    assert rules_hit(good) == set()


def test_a_topic_without_patterns_is_found_nowhere(tmp_path):
    rules = tmp_path / "lint.toml"
    shipped = (config_dir() / "lint.toml").read_text("utf-8")
    rules.write_text(re.sub(r"(?ms)^personal = \[.*?^\]", "personal = []", shipped))
    assert "personal = []" in rules.read_text("utf-8")
    assert lint(to_frame([row("see you at nine")]), load_rules(rules)) == []


@pytest.mark.parametrize(("sign", "word"), [(1, "equals"), (-1, "mirrors")])
def test_lint_finds_axes_that_copy_each_other(sign, word):
    rows = [
        row(item.text, item.valence, item.intimacy, sign * item.valence)
        for item in labelled(60, seed=4)
    ]
    found = [finding for finding in lint(to_frame(rows)) if finding.rule == "axis_copy"]
    assert [finding.level for finding in found] == ["error"]
    assert f"valence {word} tension on 100% of 60 rows" in found[0].message


def test_lint_finds_flat_confidence_full_frames_and_twins():
    rows = labelled(60, seed=4)
    rows += [row(sentence(random.Random(n)), frame="same") for n in range(8)]
    rows += [row("we need to talk", -0.8, id="a"), row("We need to talk.", 0.2, id="b")]
    found = {finding.rule: finding for finding in lint(to_frame(rows))}
    assert found["flat_confidence"].row == "source llm_label"
    assert found["frame_cap"].row == "frame same"
    assert found["twins_disagree"].row == "a"


# ---------------------------------------------------------------------------------- shards


def test_share_alike_rows_get_a_shard_of_their_own_and_parts_load_together(tmp_path):
    draw = random.Random(12)
    rows = [
        row(sentence(draw), licence=name, split=part, id=f"{name}-{part}")
        for name in ("MIT", "CC-BY-SA-4.0")
        for part in ("train", "dev")
    ]
    (tmp_path / "train.Old-1.0.jsonl").write_text("stale")
    files = write_shards(tmp_path, to_frame(rows), SOURCES)
    assert [path.name for path in files] == [
        "dev.CC-BY-SA-4.0.jsonl", "dev.jsonl", "test.jsonl",
        "train.CC-BY-SA-4.0.jsonl", "train.jsonl",
    ]  # fmt: skip
    assert shard_files(tmp_path) == files
    assert sorted(load_part(tmp_path, "train")["id"]) == ["CC-BY-SA-4.0-train", "MIT-train"]
    with pytest.raises(DataError, match="no part 'trian'"):
        load_part(tmp_path, "trian")


def test_rows_without_scores_go_to_the_auxiliary_part(tmp_path):
    frame = to_frame([row("a b"), row("c d", None, None, None, split="dev"), row("e", split="dev")])
    write_shards(tmp_path, frame, SOURCES)
    assert load_part(tmp_path, "auxiliary")["split"].to_list() == ["dev"]
    assert load_part(tmp_path, "dev")["text"].to_list() == ["e"]
    assert load_part(tmp_path, "held_out")["text"].to_list() == ["a b"]
    write_frame(tmp_path / "copy.jsonl", frame)
    assert len(shard_files(tmp_path, "auxiliary")) == 1
