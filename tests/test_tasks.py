"""Readers that lose no row and accept no nonsense, metrics against written-out values, few-shot choices by seed."""

import numpy as np
import pytest
import torch

from vera.config import build, choices, compose
from vera.errors import ConfigError, DataError
from vera.models.base import Model
from vera.run import execute
from vera.tasks import base
from vera.tasks.glue import SUBSETS
from vera.tasks.images import few_shot
from vera.tasks.metrics import METRICS, GlueMetric, named
from vera.tasks.metrics import compute as metric
from vera.tasks.text import fingerprint, synthetic_rows
from vera.tasks.tsv import read_tsv

GLUE = sorted(SUBSETS)
IMAGE_MODELS = {
    "digits": "digits_vit",
    "cifar100": "vit_base",
    "food101": "vit_base",
    "flowers102": "vit_large",
    "resisc45": "vit_large",
}
ROWS = {
    "sst2": (b"sentence\tlabel\n", b'a "fine" film\t1\nbad\t0\n'),
    "mrpc": (
        b"\xef\xbb\xbfQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n",
        b'1\t1\t2\tHe said "yes\tHe said yes .\n0\t3\t4\tx\ty\n',
    ),
    "cola": (b"", b"gj04\t1\t\tThe book was read.\nbc01\t0\t*\tBook the read."),
    "qnli": (b"index\tquestion\tsentence\tlabel\n", b"0\tWho?\tHim.\tentailment\n1\tWhere?\tNow.\tnot_entailment\n"),
    "rte": (b"index\tsentence1\tsentence2\tlabel\n", b"0\ta\tb\tentailment\r\n1\tc\td\tnot_entailment\r\n"),
    "stsb": (
        b"index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n",
        b'0\tg\tf\ty\to\ts\ts\t"a\tb\t5.000\n1\tg\tf\ty\to\ts\ts\tc\td\t0.5\n',
    ),
}

FIRST = {
    "sst2": ('a "fine" film',),  # quotes are text
    "mrpc": ('He said "yes', "He said yes ."),  # and the byte-order mark is not
    "cola": ("The book was read.",),
    "qnli": ("Who?", "Him."),
    "rte": ("a", "b"),
    "stsb": ('"a', "b"),
}


def glue(name, data_dir, **settings):
    values = compose(["model=minilm", f"task={name}", f"task.data_dir={data_dir}"]).task
    return build({**values, **settings}, "task")


def write(folder, name, header=None, rows=None):
    folder.mkdir(exist_ok=True)
    given_header, given_rows = ROWS[name]
    for file in ("train.tsv", "dev.tsv"):
        header_bytes = given_header if header is None else header
        (folder / file).write_bytes(header_bytes + (given_rows if rows is None else rows))
    return folder


@pytest.mark.parametrize("name", GLUE)
def test_official_format_is_read_row_by_row(name, tmp_path):
    rows, source, commit = glue(name, write(tmp_path / name, name)).source_rows()
    assert source == "official TSV files" and commit is None
    assert [len(rows[split]) for split in ("train", "validation")] == [2, 2]
    assert rows["train"][0][0] == FIRST[name]
    labels = [label for _, label in rows["train"]]
    expected = {"stsb": [5.0, 0.5], "qnli": [0, 1], "rte": [0, 1]}.get(name, [1, 0])
    assert labels == expected


def test_a_folder_of_all_tasks_works_for_each(tmp_path):
    write(tmp_path / "RTE", "rte")
    assert len(glue("rte", tmp_path).source_rows()[0]["train"]) == 2


BAD = {
    "missing column": (
        "rte",
        b"index\tsentence1\tlabel\n",
        b"0\ta\tentailment\n",
        r"train.tsv:1 has no column 'sentence2'; it has",
    ),
    "unknown label": (
        "rte",
        None,
        b"0\ta\tb\tmaybe\n",
        r"train.tsv:2: unknown label 'maybe'; allowed: entailment, not_entailment",
    ),
    "wrong number of fields": ("sst2", None, b"good\t1\nbad\n", r"train.tsv:3 has 1 fields, expected 2"),
    "too many fields": ("cola", None, b"a\t1\t\tx\nb\t1\t\ty\tz\n", r"train.tsv:2 has 5 fields, expected 4"),
    "cola with too few": ("cola", None, b"a\t1\n", r"train.tsv:1 has 2 fields, expected 4"),
    "empty file": ("rte", b"", b"", r"train.tsv is empty"),
    "header only": ("rte", None, b"", r"train.tsv is empty: it has no rows"),
    "UTF-16": ("rte", b"", "index\tsentence1".encode("utf-16"), r"train.tsv is UTF-16 \(its byte-order mark says so\)"),
    "not UTF-8": ("sst2", None, b"caf\xe9\t1\n", r"train.tsv:2 is not UTF-8: byte 0xe9"),
    "score out of range": (
        "stsb",
        None,
        b"0\tg\tf\ty\to\ts\ts\ta\tb\t5.5\n",
        r"train.tsv:2: score 5.5 is not a number from 0 to 5",
    ),
    "score no number": ("stsb", None, b"0\tg\tf\ty\to\ts\ts\ta\tb\thigh\n", r"train.tsv:2: score 'high' is not a number"),
    "score nan": ("stsb", None, b"0\tg\tf\ty\to\ts\ts\ta\tb\tnan\n", r"train.tsv:2: score 'nan' is not a number"),
    "score with an underscore": (
        "stsb",
        None,
        b"0\tg\tf\ty\to\ts\ts\ta\tb\t0_3\n",
        r"train.tsv:2: score '0_3' is not a number",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_malformed_files_name_file_and_row(case, tmp_path):
    name, header, rows, message = BAD[case]
    task = glue(name, write(tmp_path / "data", name, header, rows))
    with pytest.raises(DataError, match=message) as error:
        task.source_rows()
    assert "\n" not in str(error.value)


def test_missing_folder_and_unreachable_hub_say_what_to_give(tmp_path):
    with pytest.raises(DataError, match=r"holds neither train.tsv and dev.tsv, nor a folder RTE"):
        glue("rte", tmp_path / "none").source_rows()
    with pytest.raises(DataError, match=r"nyu-mll/glue.* cannot be loaded from the hub .*task.data_dir=/path/to/glue"):
        build({**compose(["model=minilm", "task=rte"]).task, "data_dir": None}, "task").source_rows()


def test_missing_dev_file(tmp_path):
    write(tmp_path / "d", "rte")
    (tmp_path / "d" / "dev.tsv").unlink()
    with pytest.raises(DataError, match=r"dev.tsv does not exist"):
        glue("rte", tmp_path / "d").source_rows()


@pytest.mark.parametrize(
    ("name", "train", "dev", "positive"), [("rte", 2490, 277, 1241), ("cola", 8551, 1043, 6023), ("mrpc", 3668, 408, 2474)]
)
def test_real_files_keep_every_row(name, train, dev, positive, shared_glue):
    rows, _, _ = glue(name, shared_glue).source_rows()
    assert (len(rows["train"]), len(rows["validation"])) == (train, dev)
    assert sum(label == 1 for _, label in rows["train"]) == positive


def test_real_stsb_scores(shared_glue):
    rows, _, _ = glue("stsb", shared_glue).source_rows()
    assert (len(rows["train"]), len(rows["validation"])) == (5749, 1500)
    assert np.mean([score for _, score in rows["train"]]) == pytest.approx(2.7010, abs=1e-4)


def test_metrics_are_glues():
    references, predictions = np.array([1, 1, 1, 0, 0, 1]), np.array([1, 0, 1, 0, 1, 1])
    assert metric("rte", predictions, references) == {"accuracy": pytest.approx(4 / 6)}
    assert metric("mrpc", predictions, references) == {"accuracy": pytest.approx(4 / 6), "f1": pytest.approx(0.75)}
    tp, tn, fp, fn = 3, 1, 1, 1
    matthews = (tp * tn - fp * fn) / ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    assert metric("cola", predictions, references) == {"matthews_correlation": pytest.approx(matthews)}
    found = metric("stsb", np.array([1.0, 2.0, 4.0]), np.array([0.0, 2.0, 5.0]))
    assert found == {"pearson": pytest.approx(np.corrcoef([1, 2, 4], [0, 2, 5])[0, 1]), "spearmanr": pytest.approx(1.0)}


def test_metrics_of_several_classes_and_of_scores_are_the_textbook_ones():
    references, predictions = np.array([0, 0, 0, 0, 1, 1, 2]), np.array([0, 0, 0, 1, 1, 2, 2])
    precision, recall, f1 = (1, 1 / 2, 1 / 2), (3 / 4, 1 / 2, 1), (6 / 7, 1 / 2, 2 / 3)  # class by class
    wanted = {"precision_macro": sum(precision) / 3, "recall_macro": sum(recall) / 3, "balanced_accuracy": sum(recall) / 3}
    wanted |= {"f1_macro": sum(f1) / 3, "accuracy": 5 / 7, "cohen_kappa": (5 / 7 - 18 / 49) / (1 - 18 / 49)}
    wanted["matthews_correlation"] = (5 * 7 - 18) / ((49 - 17) * (49 - 21)) ** 0.5
    assert named(list(wanted), predictions, references) == pytest.approx(wanted)
    scores = {"r2": 1 - 5.5625 / 14.75, "neg_mean_squared_error": -5.5625 / 4}
    assert named(list(scores), np.array([0.5, 2.5, 2.75, 4.0]), np.array([0.0, 2.0, 5.0, 4.0])) == pytest.approx(scores)


def test_glues_metrics_are_there_as_metrics_of_evaluate(tmp_path):
    mrpc = GlueMetric(config_name="mrpc", cache_dir=str(tmp_path))
    tp, tn, fp, fn = 2, 1, 1, 2
    wanted = {"accuracy": pytest.approx((tp + tn) / 6), "f1": pytest.approx(2 * tp / (2 * tp + fp + fn))}
    assert mrpc.compute(predictions=[1, 0, 1, 0, 1, 0], references=[1, 1, 1, 0, 0, 1]) == wanted
    stsb = GlueMetric(config_name="stsb", cache_dir=str(tmp_path))
    stsb.add_batch(predictions=[0.5, 2.5], references=[0.0, 2.0])  # a batch at a time, and no score is cut to a whole number
    stsb.add_batch(predictions=[2.75, 4.0], references=[5.0, 4.0])
    x, y = np.array([0.5, 2.5, 2.75, 4.0]) - 2.4375, np.array([0.0, 2.0, 5.0, 4.0]) - 2.75
    ranks = 1 - 6 * (1 + 1) / (4 * 15)  # 1 2 3 4 against 1 2 4 3
    pearson = (x * y).sum() / ((x**2).sum() * (y**2).sum()) ** 0.5
    assert stsb.compute() == {"pearson": pytest.approx(pearson), "spearmanr": pytest.approx(ranks)}


def test_a_correlation_with_a_constant_is_undefined_not_a_number():
    assert metric("stsb", np.zeros(4), np.arange(4.0)) == {"pearson": None, "spearmanr": None}
    rounded = np.float32(2.4741695) * np.ones(4, np.float32)  # of a collapsed network, whose last bits change with the batches
    rounded[2:] = np.nextafter(rounded[2:], np.float32(3))
    assert metric("stsb", rounded, np.arange(4.0)) == {"pearson": None, "spearmanr": None}
    assert named(["spearmanr", "pearson"], rounded - rounded[0], np.arange(4.0))["spearmanr"] > 0.8  # small, but no rounding
    assert named(["spearmanr"], np.array([1, 2, 3, np.inf]), np.arange(4.0)) == {"spearmanr": 1.0}
    assert named(["spearmanr"], 2015 + 1e-2 * np.arange(4.0), np.arange(4.0)) == {"spearmanr": 1.0}
    classes = {**metric("mrpc", np.ones(4, int), np.arange(4) % 2), **metric("cola", np.ones(4, int), np.arange(4) % 2)}
    assert classes == {"accuracy": 0.5, "f1": pytest.approx(2 / 3), "matthews_correlation": 0.0}  # of which docs/runs.md speaks


def test_a_metric_that_is_undefined_is_none_without_a_word_of_the_library_s(recwarn):
    """One class alone leaves nothing to agree on beyond chance; scikit-learn says nan, and no record could hold that."""
    ones, row = np.ones(4, int), np.array([2.0])
    names = ["accuracy", "cohen_kappa", "f1_macro", "balanced_accuracy"]
    assert named(names, ones, ones) == {"accuracy": 1.0, "cohen_kappa": None, "f1_macro": 1.0, "balanced_accuracy": 1.0}
    assert named(["r2", "neg_mean_squared_error"], row + 1, row) == {"r2": None, "neg_mean_squared_error": -1.0}
    assert named(["f1"], np.zeros(2, int), np.zeros(2, int)) == {"f1": 0.0} and not recwarn.list


@pytest.mark.parametrize("name", choices("task"))
def test_synthetic_data_loads_collates_and_scores(name, compose):
    task = build(compose(f"task={name}").task, "task")
    model = IMAGE_MODELS.get(name) or {"text": "roberta_base", "generation": "gpt2_medium"}[task.modality]
    run = compose(f"model={model}", f"task={name}", "method=head")
    loader = build(run.model, "model")
    backbone = loader.load(task.outputs, run.cache_dir)
    assert isinstance(loader, Model)
    data = task.load(backbone, seed=0)
    batch = data.collate(list(data.evaluation))
    with torch.no_grad():
        logits = backbone.model(**{key: value for key, value in batch.items() if key != "labels"}).logits
    kept, labels = task.kept(logits, batch)
    assert len(kept) == len(labels) == len(data.evaluation)
    scores = task.score(kept, labels)
    if task.modality == "generation":  # other metrics come from what is written after the last epoch
        assert set(scores) == {"log_likelihood"} and len(data.prompts) == len(data.references)
        assert bool(data.prompts) == (task.primary != "log_likelihood")
    else:
        assert task.primary in scores and logits.shape == (len(data.evaluation), task.outputs)
        assert set(scores) == set(getattr(task, "metrics", METRICS[getattr(task, "subset", "accuracy")]))
    assert set(scores) <= set(task.scored or scores)
    assert torch.isfinite(task.loss(logits, batch)) and task.weight(batch) > 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("model=roberta_base task=rte task.primary=f1", "task.primary=f1: rte is scored by accuracy"),
        ("task.primary=acc", "task.primary=acc: digits is scored by accuracy"),
        ("model=llama_7b task=alpaca task.primary=BLEU", "task.primary=BLEU: alpaca is scored by log_likelihood"),
        ("model=gpt2_medium task=e2e task.primary=bleu", "task.primary=bleu: e2e is scored by BLEU, NIST"),
        ("model=gpt2_medium task=e2e task.primary=CIDEr", "task.primary=CIDEr needs Java"),
        (
            "model=roberta_base task=mrpc task.subset=rte",
            r"task.subset: records .* count as mrpc's: choose task=rte, got 'rte'",
        ),
    ],
)
def test_what_a_run_could_not_be_scored_or_filed_by_is_refused_before_it_trains(overrides, message, compose, monkeypatch):
    monkeypatch.setattr("vera.tasks.e2e.unavailable", lambda: "needs Java")
    monkeypatch.setattr("vera.models.reuse.load", None)
    with pytest.raises(ConfigError, match=message):
        execute(compose(*overrides.split()))


def test_rows_of_a_subset_may_have_a_name_of_their_own(compose):
    assert build(compose("model=minilm", "task=mrpc", "task.subset=rte", "task.name=half").task, "task").subset == "rte"


def test_padding_goes_to_the_longest_of_the_batch_not_to_the_maximum(compose):
    run = compose("model=roberta_base", "task=rte")
    task, loader = build(run.task, "task"), build(run.model, "model")
    data = task.load(loader.load(2, run.cache_dir), 0)
    two = [data.train[0], data.train[1]]
    batch = data.collate(two)
    assert batch["input_ids"].shape[1] == max(len(example["input_ids"]) for example in two) < task.max_length
    lengths = batch["attention_mask"].sum(1).tolist()
    assert lengths == [len(example["input_ids"]) for example in two]


def test_long_inputs_are_cut_counted_and_warned_of_once(compose, warned, monkeypatch):
    monkeypatch.setattr(base, "_PREPARED", {})
    run = compose("model=roberta_base", "task=rte")
    backbone = build(run.model, "model").load(2, run.cache_dir)
    whole = build(run.task, "task").load(backbone, 0)
    assert not any(whole.notes["truncated"].values()) and warned() == []
    longer = {
        split: sum(len(example["input_ids"]) > 24 for example in examples)
        for split, examples in (("train", whole.train), ("validation", whole.evaluation))
    }
    task = build({**run.task, "max_length": 24}, "task")
    data, _ = (task.load(backbone, seed) for seed in (0, 1))
    assert max(len(example["input_ids"]) for example in data.train) == 24
    assert data.notes["truncated"] == longer and min(longer.values()) > 0
    train, validation = longer.values()
    assert warned() == [f"task=rte, task.max_length=24: {train} of 24 train and {validation} of 16 validation rows are cut"]


def test_more_tokens_than_positions_are_refused(compose):
    run = compose("model=roberta_base", "task=rte", "task.max_length=1024")
    task, loader = build(run.task, "task"), build(run.model, "model")
    with pytest.raises(ConfigError, match=r"task.max_length=1024 is more than this model's 512 positions"):
        task.load(loader.load(2, run.cache_dir), 0)


def test_the_fingerprint_is_the_same_for_hub_and_file_scores():
    rows = {"train": [(("a", "b"), 3.8)], "validation": [(("c", "d"), 0.25)]}
    single = {split: [(t, float(np.float32(score))) for t, score in found] for split, found in rows.items()}
    assert single != rows and fingerprint(single) == fingerprint(rows)


def test_few_shot_choice_depends_on_the_seed_alone():
    labels = np.repeat(np.arange(4), 30)
    first = few_shot(labels, [1, 3], 10, seed=0)
    assert np.array_equal(first, few_shot(labels, [1, 3], 10, seed=0))
    assert not np.array_equal(first, few_shot(labels, [1, 3], 10, seed=1))
    assert np.bincount(labels[first], minlength=4).tolist() == [0, 10, 0, 10] and len(set(first)) == 20
    with pytest.raises(DataError, match="class 1 has 30 examples"):
        few_shot(labels, [1, 3], 31, seed=0)


@pytest.fixture
def digits(compose):
    """digits("task.classes=[1,5]", ...) -> the task and the tiny backbone."""

    def make(*overrides):
        run = compose("task=digits", "method=head", "task.synthetic=false", *overrides)
        task = build(run.task, "task")
        return task, build(run.model, "model").load(task.outputs, run.cache_dir)

    return make


def test_a_digit_that_is_named_twice_is_refused(digits):
    with pytest.raises(ConfigError, match=r"task\.classes: 6 is named twice"):
        digits("task.classes=[5,6,6]")


def test_digits_that_are_all_drawn_leave_none_to_score_on(digits):
    with pytest.raises(DataError, match=r"_class=182 draws all 364 images, which leaves none to score on; draw fewer$"):
        task, backbone = digits("task.classes=[1,5]", "task.train_per_class=182")
        task.load(backbone, 0)
    task, backbone = digits("task.classes=[1,5]", "task.train_per_class=181", "task.synthetic=true")
    assert len(task.load(backbone, 0).evaluation) == 2


def test_digits_that_the_backbone_was_pretrained_on_are_refused(digits, compose):
    (task, backbone), (others, _) = digits("task.classes=[3,5,6]"), digits("task.classes=[5,6]")
    assert len(task.load(backbone, 0).train) == 30  # a random model has seen none
    backbone.source = build(compose("model.size=full").model, "model")._public("cache")
    with pytest.raises(ConfigError, match=r"task\.classes=\[3, 5, 6\]: .* pretrained on images of 3 with their labels"):
        task.load(backbone, 0)
    assert len(others.load(backbone, 0).train) == 20


def test_synthetic_rows_hold_every_class_and_varied_scores():
    assert {label for _, label in synthetic_rows(2, 3)["validation"]} == {0, 1, 2}
    assert len({label for _, label in synthetic_rows(2, None)["validation"]}) > 2


def test_tsv_reader_is_lazy_about_nothing(tmp_path):
    (tmp_path / "a.tsv").write_bytes(b"x\ty\n1\t2\n")
    assert list(read_tsv(tmp_path / "a.tsv", ["y"], True)) == [(f"{tmp_path / 'a.tsv'}:2", ["2"])]
    with pytest.raises(DataError, match="does not exist"):
        list(read_tsv(tmp_path / "b.tsv", ["y"], True))
