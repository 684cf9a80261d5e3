"""A head taught by a larger encoder: variants, its vectors, what is chosen on dev, a run."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file

from tests.test_affect_head_training import EMOTIONS, FILM, INTENSITY, prepared, saved
from trainers.affect.head import (
    curves,
    distil,
    distil_teachers,
    export,
    measure,
    prepare,
    runs,
    texts,
    train,
    wide,
)
from trainers.affect.head.arrays import AXES, PARTS, SOURCES, TAGS, Prepared
from trainers.affect.head.losses import contrast, imitate
from trainers.affect.head.network import Predicted
from trainers.affect.head.prepare import _chat, _prose
from trainers.affect.head.texts import Message
from trainers.affect.head.variants import Neighbours, variants
from trainers.affect.head.weights import served_weights

SERVED = Path(__file__).parents[1] / "sidecars" / "weights" / "cahm"


def near() -> Neighbours:
    words = ["love", "hate", "like", "warm", "cold", "##ing", "a", "[CLS]"]
    table = np.random.default_rng(0).normal(size=(len(words), 6)).astype(np.float32)
    return Neighbours({w: i for i, w in enumerate(words)}, table)


def record(text: str, **more: Any) -> dict[str, Any]:
    return {"text": text, "source": "llm_label", "part": "train", "group": "g1",
            "context": ["before"], **more}  # fmt: skip


def test_a_variant_changes_a_word_and_keeps_shape_and_group() -> None:
    found = variants([record('"Love is WARM!')], near(), 40, seed=0)
    assert len({v["text"] for v in found}) == len(found) > 5
    for v in found:
        assert v["part"] == "unlabelled" and v["source"] == "variant" and v["group"] == "g1"
        first, middle, last = v["text"].split()
        assert (first, middle, last) != ('"Love', "is", "WARM!") and middle == "is"
        assert first[0] == '"' and first[1].isupper() and first[2:].islower()
        assert last.isupper() and last.endswith("!")
    assert {bool(v["context"]) for v in found} == {True, False}
    assert variants([record('"Love is WARM!')], near(), 40, seed=0) == found


def test_the_variants_of_a_message_do_not_depend_on_its_neighbours() -> None:
    one, other = record("love is cold"), record("we like warm days")
    together = variants([other, one], near(), 3, seed=0)
    assert together == variants([other], near(), 3, seed=0) + variants([one], near(), 3, seed=0)


def test_only_training_messages_of_the_pool_have_variants() -> None:
    others = [record("love", part="dev"), record("love", part="gold"),
              record("love", source="emobank"), record("nothing known"),
              record(" ".join(["love"] * 61))]  # fmt: skip
    assert variants(others, near(), 5, seed=0) == []


def test_texts_come_back_and_another_sets_are_refused(tmp_path: Path) -> None:
    data, arrays = prepared(per_part=1), tmp_path / "set.npz"
    rows = [{"text": f"t{i}\n", "context": ["a", "b"][: i % 3]} for i in range(len(data.part))]
    texts.write_texts(arrays, data.digest, rows)
    first = texts.texts_file(arrays).read_bytes()
    found = texts.read_texts(arrays, data)
    assert found[2] == Message("t2\n", ("a", "b")) and found[0].context == ()
    texts.write_texts(arrays, data.digest, rows)
    assert texts.texts_file(arrays).read_bytes() == first
    with pytest.raises(ValueError, match="another set"):
        texts.read_texts(arrays, prepared(per_part=2))
    texts.texts_file(arrays).write_bytes(first[:40])
    with pytest.raises(ValueError, match="run prepare again"):
        texts.read_texts(arrays, data)


class Fake:
    """Says of a message what its length is; may break after some."""

    digest, layers, width = "fake", (1,), 3

    def __init__(self, breaks_at: int | None = None) -> None:
        self.asked: list[str] = []
        self._breaks_at = breaks_at

    def vectors(self, messages: Sequence[Message]) -> NDArray[np.float16]:
        if self._breaks_at is not None and len(self.asked) >= self._breaks_at:
            raise KeyboardInterrupt
        self.asked += [m.text for m in messages]
        return np.asarray([[len(m.text), 1, 2] for m in messages], np.float16)


def test_vectors_are_computed_once_and_a_broken_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wide, "PER_FILE", 4)
    data = prepared(per_part=2)
    messages = [Message("x" * (i + 1)) for i in range(len(data.part))]
    rows = np.array([9, 0, 5, 3, 7, 2, 11, 1, 12])
    broken = Fake(breaks_at=4)
    with pytest.raises(KeyboardInterrupt):
        wide.wide_vectors(broken, messages, data, rows, tmp_path)
    fresh = Fake()
    found = wide.wide_vectors(fresh, messages, data, rows, tmp_path)
    assert found[:, 0].tolist() == [row + 1 for row in rows]
    assert len(broken.asked) == 4 and len(fresh.asked) == 5
    again = Fake(breaks_at=0)
    assert np.array_equal(
        wide.wide_vectors(again, messages, data, rows[::-1], tmp_path), found[::-1]
    )
    other = Fake()
    other.digest = "another"
    with pytest.raises(ValueError, match="another encoder"):
        wide.wide_vectors(other, messages, data, rows, tmp_path)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random encoder of two layers, as a model folder."""
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = BertConfig(hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
                        intermediate_size=32)  # fmt: skip
    BertModel(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_file=str(SERVED / "tokenizer.json"), pad_token="[PAD]", cls_token="[CLS]",
        sep_token="[SEP]", unk_token="[UNK]",
    ).save_pretrained(folder)  # fmt: skip
    return folder


def test_a_wide_vector_depends_on_the_context_and_not_on_the_batch(tiny: Path) -> None:
    encoder = wide.WideEncoder(str(tiny), (1, 2))
    assert encoder.width == 32
    one = encoder.vectors([Message("i am fine")]).astype(np.float32)
    many = [Message("i am fine"), Message("a much longer line than that, said slowly"),
            Message("i am fine", ("you look sad",))]  # fmt: skip
    batch = encoder.vectors(many).astype(np.float32)
    assert np.allclose(one[0], batch[0], atol=2e-3)
    assert not np.allclose(batch[0], batch[2], atol=2e-3)
    with pytest.raises(ValueError, match="layers 1 to 3"):
        wide.WideEncoder(str(tiny), (4,))


def test_the_better_source_of_each_output_is_chosen_on_dev() -> None:
    data = prepared(per_part=60)
    rng = np.random.default_rng(0)
    truth = np.nan_to_num(data.axes)
    noise = rng.uniform(-1, 1, truth.shape).astype(np.float32)
    good = {"axes": truth, "arousal": noise[:, 2], "tags": data.tags, "emotions": data.emotions}
    poor = {"axes": noise, "arousal": truth[:, 2], "tags": 1 - data.tags,
            "emotions": 1 - data.emotions}  # fmt: skip
    shares = distil_teachers.choose_shares(data, good, poor)
    chosen = {"axes": 1.0, "emobank valence": 1.0, "arousal": 0.0, "tags": 1.0}
    assert shares == {**chosen, "film": 1.0, "intensity": 1.0}
    both = distil_teachers.mixed(data, good, poor, shares)
    assert np.array_equal(both["axes"], truth) and np.array_equal(both["tags"], data.tags)
    assert np.array_equal(both["emotions"], poor["emotions"])


def with_variants(per_part: int) -> Prepared:
    """Every second unlabelled row as a variant, and every sixth as prose."""
    data = prepared(per_part)
    source = data.source.copy()
    source[data.rows("unlabelled")[::2]] = SOURCES.index("variant")
    source[data.rows("unlabelled")[1::6]] = SOURCES.index("prose")
    return prepared(per_part, source=source)


def test_prose_comes_in_equal_parts_from_training_documents_and_repeats_nothing_known(
    tmp_path: Path,
) -> None:
    files = []
    for name, count in (("books", 40), ("articles", 400)):
        path = tmp_path / f"{name}.jsonl.gz"
        sents = [f"{name} have sentence number {i} too" for i in range(count)]
        docs = [{"split": "train", "sents": [*sents, "too short", "word " * 46]},
                {"split": "valid", "sents": ["this is a valid document's sentence"]},
                {"split": "train", "turns": ["hello"]}]  # fmt: skip
        with gzip.open(path, "wt") as file:
            file.write("".join(json.dumps(doc) + "\n" for doc in docs))
        files.append(path)
    known = {f"books have sentence number {i} too" for i in range(5)}
    found = _prose(files, 60, 0, known)
    texts = [r["text"] for r in found]
    assert len(set(texts)) == len(texts) == 60 and not known & set(texts)
    assert sum(t.startswith("books have sentence") for t in texts) == 30
    assert sum(t.startswith("articles have sentence") for t in texts) == 30
    assert {(r["part"], r["source"], *r["context"]) for r in found} == {("unlabelled", "prose")}
    assert _prose(files, 60, 0, known) == found != _prose(files, 60, 1, known)
    assert len(_prose(files[:1], 60, 0, known)) == 35 and _prose([], 60, 0, known) == []


def test_chat_leaves_out_what_is_measured_on(tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl.gz"
    turns = ["I missed you!", "you did not call me", "sure, i will", "so you say"]
    docs = [{"split": "train", "turns": turns}, {"split": "valid", "turns": ["not for training"]}]
    with gzip.open(path, "wt") as file:
        file.write("".join(json.dumps(doc) + "\n" for doc in docs))
    assert {r["text"] for r in _chat([path], 9, 0, set())} == set(turns)
    found = _chat([path], 9, 0, {"i missed you", "so you say"})
    assert {r["text"] for r in found} == {"you did not call me", "sure, i will"}
    assert {(r["part"], r["source"]) for r in found} == {("unlabelled", "chat")}
    assert found[0]["context"] or found[1]["context"]  # what was said before may be anything
    assert _chat([], 9, 0, {"so you say"}) == []


@pytest.mark.parametrize("content", [b"plain text", gzip.compress(b"[1]"), gzip.compress(b"{")])
def test_a_file_that_holds_no_documents_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "docs.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"docs\.jsonl\.gz: not gzipped JSON lines of documents"):
        _prose([path], 4, 0, set())


def test_a_missing_file_is_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone.jsonl.gz"
    argv = ["--set", str(tmp_path), "--out", str(tmp_path / "a.npz"), "--prose", str(gone)]
    with pytest.raises(SystemExit) as end:
        prepare.main(argv)
    assert end.value.code == 2 and f"{gone}: not found" in capsys.readouterr().err


def test_gold_among_the_training_rows_and_a_folder_without_a_set_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--set", str(tmp_path), "--out", str(tmp_path / "a.npz")]
    assert prepare.main(argv) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}: no training rows; make the set")
    shutil.copy(prepare.POOL / "gold.jsonl", tmp_path / "train.jsonl")
    assert prepare.main(argv) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path}: training rows") and said.count("\n") == 1
    assert not (tmp_path / "a.npz").exists()


def test_a_step_draws_no_row_that_may_not_teach() -> None:
    data = with_variants(12)
    rows = wide.choose(data, limit=2, seed=0)
    assert (data.source[rows] == SOURCES.index("variant")).sum() == 6
    assert ((data.source == SOURCES.index("chat"))[rows]).sum() == 2
    assert (data.source[rows] == SOURCES.index("prose")).sum() == 2
    draw = distil_teachers.Draw(data, rows, distil_teachers.Recipe())
    allowed = {PARTS.index("train"), PARTS.index("unlabelled")}
    seen = np.concatenate([draw.rows(step) for step in range(20)])
    assert set(data.part[seen]) == allowed and set(seen) <= set(rows)
    assert np.array_equal(draw.rows(7), draw.rows(7))


def in_families(per_part: int, size: int) -> Prepared:
    """Train rows of the pool in families of ``size``, everything else alone."""
    data = prepared(per_part)
    groups = np.arange(len(data.part), dtype=np.int32)
    pool = data.rows("train", "llm_label")
    groups[pool] = 10_000 + np.arange(len(pool)) // size
    return prepared(per_part, groups=groups)


def test_half_of_the_pools_rows_come_in_whole_families() -> None:
    data = in_families(36, size=3)
    rows = wide.choose(data, limit=2, seed=0)
    recipe = distil_teachers.Recipe(pool=12)
    draw = distil_teachers.Draw(data, rows, recipe)
    assert draw.families and all(len(np.unique(data.groups[f])) == 1 for f in draw.families)
    whole = {tuple(f) for f in draw.families}
    for step in range(10):
        pool = [r for r in draw.rows(step) if distil_teachers.pool_of(data, np.array([r]))[0]]
        assert len(pool) == 12
        assert tuple(pool[6:9]) in whole and tuple(pool[9:12]) in whole
    single = distil_teachers.Draw(in_families(36, size=1), rows, recipe)
    assert not single.families and len(single.rows(0)) == len(draw.rows(0))


@settings(max_examples=50)
@given(st.integers(0, 2**31), st.integers(1, 12))
def test_a_contrast_is_blind_to_what_a_family_shares_and_sees_the_rest(seed: int, n: int) -> None:
    torch.manual_seed(seed)
    wanted, family = torch.rand(n, 3), torch.randint(0, 4, (n,))
    shared = wanted + torch.rand(4, 3)[family]
    assert float(contrast(shared, wanted, family)) < 1e-6
    kin = torch.bincount(family, minlength=4)[family] > 1
    moved = shared.clone()
    moved[0, 1] += 0.5
    found = float(contrast(moved, wanted, family))
    assert (found > 1e-4) is bool(kin[0])


def test_a_contrast_without_kin_has_a_gradient_of_nothing() -> None:
    axes = torch.rand(2, 3, requires_grad=True)
    contrast(axes, torch.rand(2, 3), torch.tensor([1, 2])).backward()
    assert axes.grad is not None and float(axes.grad.abs().sum()) == 0


def outputs(n: int, seed: int) -> Predicted:
    torch.manual_seed(seed)
    return Predicted(
        axes=torch.rand(n, 3), arousal=torch.rand(n), spread=torch.rand(n),
        tags=torch.randn(n, len(TAGS)), emotions=torch.randn(n, EMOTIONS),
        film=torch.randn(n, FILM), intensity=torch.randn(n, INTENSITY),
        embedding=torch.zeros(n, 1),
    )  # fmt: skip


def test_a_row_without_weight_imitates_in_all_but_its_axes_and_tags() -> None:
    teacher = {k: v.sigmoid() for k, v in asdict(outputs(4, 0)).items()}
    said, weight = outputs(4, 1), torch.tensor([1.0, 1.0, 1.0, 0.0])
    whole, part = imitate(said, teacher), imitate(said, teacher, weight)
    assert torch.allclose(imitate(said, teacher, torch.ones(4)), whole)
    other = replace(said, axes=said.axes.clone(), tags=said.tags.clone())
    other.axes[3], other.tags[3] = -1.0, 5.0
    assert torch.equal(imitate(other, teacher, weight), part)
    assert not torch.equal(imitate(other, teacher), whole)
    heard = replace(said, emotions=said.emotions + 1)
    assert not torch.equal(imitate(heard, teacher, weight), part)


def test_without_balance_the_pools_weights_count_in_the_draw_alone() -> None:
    uneven = np.linspace(1, 9, len(prepared(12).part)).astype(np.float32)
    even, data = prepared(12), prepared(12, weight=uneven)
    rows = np.concatenate([data.rows("train", "llm_label"), data.rows("train", "emobank")])
    pool = distil_teachers.pool_of(data, rows)
    even.weight[rows] = np.where(pool, uneven[rows[pool]].mean(), uneven[rows])
    net, said = distil.start_head(SERVED, data), outputs(len(rows), 2)
    recipe = distil_teachers.Recipe(decorrelation=0)

    def loss(which: Prepared, balance: float) -> float:
        with torch.no_grad():
            return float(distil_teachers.loss_of(net, which, rows, said, recipe, "cpu", balance))

    assert loss(data, 0.0) == pytest.approx(loss(even, 1.0), rel=1e-5)
    assert loss(data, 1.0) != pytest.approx(loss(data, 0.0), rel=1e-3)


def test_the_shipped_head_is_where_a_run_may_start() -> None:
    net = distil.start_head(SERVED, prepared())
    wanted = served_weights(SERVED)
    assert "arousal.weight" in wanted and "body.blocks.5.down.weight" in wanted
    for name, value in wanted.items():
        assert np.array_equal(net.state_dict()[name].numpy(), value), name


def test_heads_that_only_training_has_start_from_the_seed_alone() -> None:
    found = []
    for disturbance, seed in ((1, 5), (2, 5), (1, 6)):
        torch.manual_seed(disturbance)
        found.append(distil.start_head(SERVED, prepared(), seed).state_dict())
    first, again, other = found
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert {n for n in first if not torch.equal(first[n], other[n])} == {
        f"{name}.{part}" for name in ("film", "intensity") for part in ("weight", "bias")
    }


@pytest.mark.model
def test_the_arousal_head_alone_follows_the_teacher_and_never_sees_dev() -> None:
    data = with_variants(40)
    net = distil.start_head(SERVED, data).eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    everything = np.arange(len(data.part))
    with torch.inference_mode():
        vectors = np.concatenate([
            net.pooled(*(torch.as_tensor(a) for a in data.batch(part))).numpy()
            for part in np.array_split(everything, 8)
        ])  # fmt: skip
    direction = np.random.default_rng(0).normal(size=vectors.shape[1])
    wanted = np.tanh(0.5 * (vectors - vectors.mean(0)) @ direction).astype(np.float32)
    taught = wanted.copy()
    taught[data.part == PARTS.index("dev")] = np.nan  # would be an error if it were read
    distil.fit_arousal(net, data, taught, everything, "cpu")
    said = train.predict(net, data, data.rows("train", "emobank"), "cpu")["arousal"]
    rows = data.rows("train", "emobank")
    assert np.corrcoef(said[rows], wanted[rows])[0, 1] > 0.5
    changed = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"arousal.weight", "arousal.bias"}


@pytest.mark.model
def test_a_run_reports_goes_on_where_it_broke_off_and_repeats_nothing(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = with_variants(96)
    arrays, run = saved(data, tmp_path / "set.npz"), tmp_path / "run"
    texts.write_texts(arrays, data.digest, [{"text": f"line {i}"} for i in range(len(data.part))])
    few = ["--pool", "4", "--emobank", "2", "--intimacy", "2", "--goemotions", "2", "--chat", "2",
           "--variant", "2", "--prose", "2"]  # fmt: skip
    argv = ["--data", str(arrays), "--head", str(SERVED), "--out", str(run), "--encoder", str(tiny),
            "--layers", "1,2", "--steps", "3", "--teachers", "2", "--teacher-steps", "3",
            "--limit", "4", *few]  # fmt: skip
    monkeypatch.setattr(distil, "SAVE_EVERY", 1)
    honest, steps = train.log, []

    def log(folder: Path, name: str, step: int, *rest: Any) -> None:
        steps.append(step)
        honest(folder, name, step, *rest)
        if len(steps) == 1:
            return
        monkeypatch.setattr(train, "log", honest)
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "log", log)
    with pytest.raises(KeyboardInterrupt):
        distil.main(argv)
    assert steps == [0, 2] and (run / "student.ckpt").exists()
    assert distil.main(argv) == 0
    assert not (run / "student.ckpt").exists()
    said = capsys.readouterr().out
    assert said.count("wide vectors") == 1 and "share of the wide teachers" in said
    for name in ("wide0", "wide1", "wide", "before", "teacher", "student"):
        assert json.loads((run / f"{name}.json").read_text())["gold"]
    log_lines = curves.read(run)["student"]
    assert [line["step"] for line in log_lines] == [0, 2]
    assert all(set(line["dev"]) == set(AXES) for line in log_lines)
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    before = load_file(run / "head.safetensors")
    assert distil.main(argv) == 0
    after = load_file(run / "head.safetensors")
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert not torch.equal(before["axes.0.weight"],
                           torch.tensor(served_weights(SERVED)["axes.0.weight"]))  # fmt: skip


@pytest.mark.model
def test_a_further_round_takes_the_teachers_of_the_first_and_no_other_recipes(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = with_variants(96)
    arrays, first, second = saved(data, tmp_path / "set.npz"), tmp_path / "one", tmp_path / "two"
    texts.write_texts(arrays, data.digest, [{"text": f"line {i}"} for i in range(len(data.part))])

    def argv(head: Path, run: Path, *more: str) -> list[str]:
        few = [word for name in ("pool", "emobank", "intimacy", "goemotions", "chat", "variant",
                                 "prose") for word in (f"--{name}", "2")]  # fmt: skip
        return ["--data", str(arrays), "--head", str(head), "--out", str(run), "--encoder",
                str(tiny), "--layers", "1,2", "--steps", "1", "--teachers", "1",
                "--teacher-steps", "2", "--limit", "4", *few, *more]  # fmt: skip

    assert distil.main(argv(SERVED, first)) == 0
    capsys.readouterr()
    student = ["--round", "1", "--pool", "4", "--labelled", "0.2", "--balance", "0"]  # its own
    again = argv(first / "head.safetensors", second, "--teachers-in", str(first), *student)
    assert distil.main(again) == 0
    assert "wide vectors" not in capsys.readouterr().out
    assert not (second / "wide.npz").exists() and not (second / "wide").exists()
    for run in (first, second):
        assert json.loads((run / "published.json").read_text())["gold"]
    same = (first / "published.json").read_text() == (second / "published.json").read_text()
    assert same and not np.array_equal(
        np.load(first / "own.npz")["axes"], np.load(second / "own.npz")["axes"], equal_nan=True
    )
    for more, said in (
        (["--teachers", "2"], "its teachers were made with another teachers;"),
        (["--layers", "1"], "its teachers were made with another layers;"),
        (["--teachers-in", str(tmp_path / "none")], "holds no run"),
        (["--teachers-in", str(second)], "holds no teachers; give the folder of the first round"),
    ):
        with pytest.raises(SystemExit) as end:
            distil.main([*again, *more])
        assert end.value.code == 2 and said in capsys.readouterr().err.splitlines()[-1]
    (first / "recipe.json").write_text("[]")
    with pytest.raises(SystemExit):
        distil.main(again)
    assert "not what a run writes" in capsys.readouterr().err.splitlines()[-1]


class Started(Exception):
    """The run got to where it reads its head: it was not refused."""


def distilled(tmp_path: Path, *more: str) -> list[str]:
    """A command on a head of a few bytes, whose folder holds what it said before."""
    arrays, head = saved(prepared(), tmp_path / "set.npz"), tmp_path / "head.safetensors"
    if not head.exists():
        head.write_bytes(b"weights")
    return ["--data", str(arrays), "--head", str(head), "--out", str(tmp_path / "run"), *more]


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run that wrote its recipe and what its head said."""

    def start(*_: Any) -> None:
        raise Started

    argv = distilled(tmp_path)
    monkeypatch.setattr(distil, "start_head", lambda *_: None)
    monkeypatch.setattr(distil, "read_texts", start)
    with pytest.raises(Started):
        distil.main(argv)
    monkeypatch.setattr(distil, "start_head", start)
    (tmp_path / "run" / "own.npz").touch()
    return tmp_path / "run"


def test_what_another_head_recipe_or_set_left_is_never_taken(
    started: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, before = started.parent, (started / "recipe.json").read_text()
    assert len(json.loads(before)["head"]) == 64
    with pytest.raises(Started):
        distil.main(distilled(folder))
    (folder / "other").write_bytes(b"other weights")
    saved(prepared(digest="another"), folder / "other.npz")
    for option, value, said in (
        ("--head", str(folder / "other"), "another head;"),
        ("--data", str(folder / "other.npz"), "another data;"),
        ("--imitation", "4", "another imitation;"),
        ("--layers", "2", "another layers;"),
    ):
        with pytest.raises(SystemExit) as end:
            distil.main(distilled(folder, option, value))
        told = capsys.readouterr().err.splitlines()[-1]
        assert end.value.code == 2 and said in told and "give another --out" in told
        assert (started / "recipe.json").read_text() == before
    (started / "recipe.json").unlink()
    with pytest.raises(SystemExit):
        distil.main(distilled(folder))
    assert "own.npz without a recipe.json" in capsys.readouterr().err.splitlines()[-1]
    assert not (started / "recipe.json").exists()


def test_a_run_from_before_its_head_was_written_down_goes_on(started: Path) -> None:
    path = started / "recipe.json"
    header = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in header.items() if k != "head"}))
    with pytest.raises(Started):
        distil.main(distilled(started.parent))
    assert "head" not in json.loads(path.read_text())  # which it was, nobody knows


def test_another_device_is_no_other_run(started: Path) -> None:
    header = {**json.loads((started / "recipe.json").read_text()), "device": "elsewhere"}
    assert runs.another(started, header, distil.RESULTS) == ""


def test_teachers_are_never_made_inside_the_folder_of_a_further_round(
    started: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = distilled(started.parent, "--teachers-in", str(started))
    with pytest.raises(SystemExit):
        distil.main([*argv, "--out", str(started.parent / "third")])
    said = capsys.readouterr().err.splitlines()[-1]
    assert "holds no teachers; give the folder of the first round" in said
    assert not (started.parent / "third").exists()


def test_a_missing_encoder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = prepared()
    arrays = saved(data, tmp_path / "set.npz")
    argv = ["--data", str(arrays), "--head", str(SERVED), "--out", str(tmp_path / "run"),
            "--encoder", str(tmp_path / "none")]  # fmt: skip
    with pytest.raises(SystemExit) as end:
        distil.main(argv)
    assert end.value.code == 2 and "run prepare again" in capsys.readouterr().err
    texts.write_texts(arrays, data.digest, [{"text": "x"}] * len(data.part))
    with pytest.raises(SystemExit):
        distil.main(argv)
    assert f"{tmp_path / 'none'}: no such model folder" in capsys.readouterr().err.splitlines()[-1]


def test_an_encoder_is_refused_as_a_head_before_any_vector_is_made(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = saved(prepared(), tmp_path / "set.npz")
    argv = ["--data", str(arrays), "--head", str(SERVED.parent / "minilm"),
            "--out", str(tmp_path / "run"), "--encoder", str(tiny)]  # fmt: skip
    with pytest.raises(SystemExit) as end:
        distil.main(argv)
    assert end.value.code == 2 and "lacks" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run" / "wide").exists()


def test_ridge_on_emobank_takes_prose_and_arousal_and_nothing_else() -> None:
    data = prepared(per_part=80)
    source = data.source.copy()
    prose = data.rows("unlabelled")[:20]
    source[prose] = SOURCES.index("prose")
    data = prepared(per_part=80, source=source)
    rng = np.random.default_rng(0)
    rows = np.flatnonzero(data.source == SOURCES.index("emobank"))
    rows = np.union1d(np.union1d(rows, data.rows("gold")), prose)
    vectors = rng.normal(size=(len(rows), 8)).astype(np.float32)
    axes = data.axes.copy()
    emobank = data.source[rows] == SOURCES.index("emobank")
    axes[rows[emobank], 0] = 0.1 * vectors[emobank, 0]
    axes[rows[emobank], 2] = 0.1 * vectors[emobank, 1]
    data = prepared(per_part=80, axes=axes, source=source)
    count = len(data.part)
    wide = {"axes": rng.uniform(-1, 1, (count, 3)).astype(np.float32),
            "arousal": np.zeros(count, np.float32)}  # fmt: skip
    found = distil_teachers.published_teacher(data, vectors, rows, wide)
    own, other = rows[emobank], np.setdiff1d(rows[~emobank], prose)
    assert np.corrcoef(found["axes"][own, 0], vectors[emobank, 0])[0, 1] > 0.7
    assert found["axes"][own, 0].std() == pytest.approx(wide["axes"][own, 0].std(), rel=1e-3)
    there = vectors[np.isin(rows, prose), 0]
    assert np.corrcoef(found["axes"][prose, 0], there)[0, 1] > 0.7
    steps = [np.polyfit(x, found["axes"][r, 0], 1)[0]
             for x, r in ((vectors[emobank, 0], own), (there, prose))]  # fmt: skip
    assert steps[0] == pytest.approx(steps[1], rel=0.3)  # one scale for both
    assert np.corrcoef(found["arousal"][rows], vectors[:, 1])[0, 1] > 0.7
    assert np.array_equal(found["axes"][other], wide["axes"][other])
    assert np.array_equal(found["axes"][:, 1:], wide["axes"][:, 1:])


def without_emobank(per_part: int) -> Prepared:
    """EmoBank's rows as rows of the pool, so that the set has none."""
    source = prepared(per_part).source.copy()
    source[source == SOURCES.index("emobank")] = SOURCES.index("llm_label")
    return prepared(per_part, source=source)


def test_without_emobank_the_wide_teachers_stay_as_they_are() -> None:
    data = without_emobank(12)
    rows = wide.choose(data, limit=4, seed=0)
    vectors = np.random.default_rng(0).normal(size=(len(rows), 8)).astype(np.float32)
    said = {"axes": np.nan_to_num(data.axes), "arousal": np.zeros(len(data.part), np.float32)}
    found = distil_teachers.published_teacher(data, vectors, rows, said)
    assert found.keys() == said.keys()
    assert all(np.array_equal(found[name], said[name]) for name in said)


def test_without_emobank_the_arousal_head_stays_what_it_was() -> None:
    data = without_emobank(12)
    net = distil.start_head(SERVED, data).eval()
    before = net.arousal.weight.clone()
    everything = np.arange(len(data.part))
    wanted = np.full(len(data.part), np.nan, np.float32)
    assert torch.equal(
        distil.fit_arousal(net, data, wanted, everything, "cpu").arousal.weight, before
    )


def test_figures_that_a_set_does_not_measure_are_unknown_and_no_loss() -> None:
    data = without_emobank(120)
    axes = np.nan_to_num(data.axes)
    table = measure.everything(data, axes, arousal=axes[:, 2])
    found = {name: value for name, value, _ in measure.summary(table)}
    for name in ("EmoBank arousal r", "EmoBank valence r, published dev"):
        assert np.isnan(found[name])
    gone = export.lost(table, table)
    assert set(gone.values()) == {0.0} and "EmoBank arousal r" not in gone
    silent = measure.everything(data, np.full_like(axes, np.nan), arousal=axes[:, 2])
    assert max(export.lost(table, silent).values()) == np.inf
