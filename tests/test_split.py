"""A third split: the epoch is chosen on validation rows, and the test rows are read once, at its weights."""

import hashlib
import json
from collections import Counter

import pytest
import torch

from experiments.engine.render import DASH
from experiments.engine.rows import Entry
from tests.test_experiments import record as made_up
from vera.checks.verify import compare
from vera.config import build
from vera.errors import ConfigError, DataError, RecordError
from vera.models.base import Backbone
from vera.records.record import Record
from vera.run import execute, prepare
from vera.tasks.base import Data, Task
from vera.tasks.split import split
from vera.train.loop import Loop

LONG = ("train.epochs=4", "train.max_steps=null", "train.batch_size=10", "train.lr=0.05", "train.head_lr=0.05")


class Rows(Task):
    """Rows are numbers; their class is the last digit, as far as there are classes."""

    classes: int

    @property
    def outputs(self):
        return self.classes

    def strata(self, examples):
        return [example % self.classes for example in examples] if self.classes > 1 else None

    def length(self, example):
        return example


def rows(count, fraction, classes=2, **more) -> Data:
    task = Rows(name="rows", version=1, primary="m", validation=fraction, classes=classes)
    data = Data(range(100, 100 + count), ["a", "b"], list, "here", None, "f", lengths=[7, 8], notes={"kept": 1}, **more)
    return split(task, data)


def test_a_fraction_of_train_is_held_out_with_its_classes_and_the_rest_of_the_data_becomes_the_test_set():
    data = rows(60, 0.1, classes=3)
    assert len(data.evaluation) == 6 and Counter(row % 3 for row in data.evaluation) == {0: 2, 1: 2, 2: 2}
    assert sorted([*data.train, *data.evaluation]) == list(range(100, 160)) and list(data.train) == sorted(data.train)
    assert (data.test, data.test_lengths) == (["a", "b"], [7, 8]) and data.lengths == list(data.evaluation)
    assert list(rows(60, 0.1, classes=3).evaluation) == list(data.evaluation)
    note = data.notes["validation"]
    assert [100 + row for row in note["rows"]] == list(data.evaluation) and note["stratified"] and data.notes["kept"] == 1


def test_the_noted_rule_is_one_that_a_reader_can_run():
    import sklearn.model_selection

    for classes in (1, 2):
        note = rows(50, 0.25, classes).notes["validation"]
        labels = [row % 2 for row in range(100, 150)]
        _, chosen = eval(note["rule"], {"sklearn": sklearn, "labels": labels, "range": range})
        assert sorted(chosen) == note["rows"] and note["stratified"] == (classes == 2)


def test_thousands_of_rows_are_noted_by_rule_and_hash():
    data = rows(11_000, 0.1)
    positions = [row - 100 for row in data.evaluation]
    note = data.notes["validation"]
    assert len(positions) == 1100 and "rows" not in note
    assert note["rows_sha256"] == hashlib.sha256(str(positions).replace(" ", "").encode()).hexdigest()


def test_what_cannot_be_split_is_refused_in_one_line():
    with pytest.raises(DataError, match=r"^task.validation=0.1 of 3 training rows: The least populated class"):
        rows(3, 0.1)
    with pytest.raises(ConfigError, match="task=rows has validation rows of its own"):
        rows(30, 0.1, test=[1])
    assert rows(30, "dev", test=[1]).notes["validation"] == "a split of the data's own"


@pytest.mark.parametrize("value", ["test", "0", "1", "1.5", "[dev]", "true"])
def test_only_dev_and_fractions_choose(value, compose):
    with pytest.raises(ConfigError) as refused:
        compose(f"task.validation={value}")
    assert str(refused.value).startswith("task.validation: ") and "\n" not in str(refused.value)


def test_a_task_with_a_test_set_of_its_own_chooses_on_its_validation_rows(compose):
    with pytest.raises(ConfigError, match=r"^task.validation: input should be 'dev'"):
        compose("model=gpt2_medium", "task=e2e", "task.validation=0.1")


def test_dev_is_the_protocol_of_old_records(compose):
    assert compose("task.validation=dev").cell_id == compose().cell_id
    tenth, text = compose("task.validation=0.1"), compose("task.validation='0.1'")
    assert tenth.cell_id == text.cell_id != compose().cell_id
    record = execute(compose())
    assert record.provenance.notes["validation"] == "the epoch is chosen on the rows that are reported"
    assert "test" not in json.loads(record.to_json())["scores"] and record.provenance.test_rows is None


@pytest.mark.parametrize("method", ["vera", "adalora", "dylora", "full"])
def test_the_test_rows_are_scored_at_the_best_epochs_weights(method, compose, tmp_path, monkeypatch):
    """Compared with the weights that are kept of that epoch, in a model of its own; the third of four is made the best."""
    run = compose(f"method={method}", "task.validation=0.2", "train.save=true", *LONG)
    marks = iter([0.1, 0.2, 0.9, 0.3, 0.5])
    seen = []

    def score(self, logits, labels):
        seen.append(logits)
        return {"accuracy": next(marks)}

    monkeypatch.setattr("vera.tasks.images.FewShot.score", score)
    record = execute(run)
    assert (record.scores.best.epoch, record.scores.test.epoch, record.scores.test.metrics) == (3, 3, {"accuracy": 0.5})
    assert record.score() == 0.5 and (record.provenance.train_rows, record.provenance.eval_rows) == (40, 10)
    assert [len(logits) for logits in seen] == [10] * 4 + [record.provenance.test_rows]
    monkeypatch.undo()
    _, _, task, data = prepare(compose(f"method={method}", "task.validation=0.2"))
    model = build(run.model, "model")
    fresh: Backbone = model.load(task.outputs, tmp_path)
    build(run.method, "method").load(fresh, model, next(tmp_path.glob("work/*/best")))
    fresh.model.eval()
    with torch.inference_mode():
        batch = data.collate(list(data.test))
        logits = fresh.model(pixel_values=batch["pixel_values"]).logits
    torch.testing.assert_close(seen[-1], logits, rtol=1e-4, atol=1e-5)


def test_a_killed_run_still_knows_the_best_epochs_weights(compose, tmp_path):
    """The best epoch is the first; the run is killed in the third and goes on."""
    run = compose("task.validation=0.2", "train.checkpoint_seconds=0", *LONG)

    def size(loop):
        return float(sum(parameter.detach().double().abs().sum() for parameter in loop.parameters.values()))

    def loop(work, stop=None):
        made = Loop(run, *prepare(run), work)
        marks = {"after epoch 1": 0.9, "after epoch 2": 0.1, "after epoch 3": 0.2, "after epoch 4": 0.3}
        made._scored = lambda data, when: {"accuracy": marks[when] if when in marks else size(made)}

        def progress(step, total, loss):
            if step == stop:
                raise KeyboardInterrupt

        made.on_progress = progress
        return made

    whole = loop(tmp_path / "whole")
    whole.fit()
    with pytest.raises(KeyboardInterrupt):
        loop(tmp_path / "killed", stop=11).fit()
    resumed = loop(tmp_path / "killed")
    resumed.fit()
    assert resumed.spent["restarts"] == 1 and resumed.test == whole.test
    assert whole.test["accuracy"] != size(whole)


def with_test(seed, best, test, last=0.5) -> Record:
    raw = json.loads(made_up(["task.validation=0.2"], seed, best, last).to_json())
    raw["scores"]["test"] = {"epoch": 1, "metrics": {"accuracy": test}}
    return Record.model_validate({**raw, "provenance": {**raw["provenance"], "test_rows": 846}})


def test_tables_show_the_test_score_and_none_of_the_last_epoch():
    found = [with_test(seed, 0.9, 0.7 + seed / 100) for seed in range(5)]
    entry = Entry(["VeRA"], found)
    assert entry.printed() == "72.0±1.6" and entry.printed("last") == DASH
    with pytest.raises(RecordError, match="a test set, which is scored at the best epoch"):
        found[0].score(select="last")
    assert Record.model_validate_json(found[0].to_json()) == found[0]


def test_verify_compares_the_test_scores():
    differing = compare(with_test(0, 0.9, 0.7), with_test(0, 0.9, 0.71)).differing()
    assert [value.name for value in differing] == ["test accuracy"]
