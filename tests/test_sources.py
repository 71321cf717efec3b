"""A record answers only for the rows and the weights that it was made from."""

import json
import os
import shutil

import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.test_verify import SIZES
from vera.checks.verify import repeat
from vera.config import build
from vera.errors import ModelError, RecordError
from vera.models.tiny import tiny_checkpoint
from vera.records import sources, sweep
from vera.records.store import Store
from vera.run import check_sources, execute
from vera.tasks import base, glue
from vera.trained.export import export

ROWS = [
    (f"The cat {i} sleeps.", f"A cat {'sleeps' if i % 2 else 'runs'}.", ("entailment", "not_entailment")[i % 2])
    for i in range(20)
]


def rte(folder, rows=ROWS):
    """GLUE's official files of RTE."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "index\tsentence1\tsentence2\tlabel\n" + "".join(f"{i}\t{a}\t{b}\t{c}\n" for i, (a, b, c) in enumerate(rows))
    for name in ("train.tsv", "dev.tsv"):
        (folder / name).write_text(text)
    return folder


@pytest.fixture(autouse=True)
def as_in_a_new_process():
    """Forgets what a process has looked at and read."""

    def forget():
        sources._stamped.cache_clear()
        base._rows.cache_clear()
        base._PREPARED.clear()

    forget()
    yield forget
    forget()


@pytest.fixture
def reads(monkeypatch):
    """The folders whose rows were read."""
    found = []
    whole = glue.Glue.source_rows
    monkeypatch.setattr(glue.Glue, "source_rows", lambda task: found.append(task.data_dir) or whole(task))
    return found


OWN = ("model=roberta_base", "task=rte", "method=lora", "task.synthetic=false")


def test_other_rows_are_refused_and_the_same_ones_are_read_once(compose, tmp_path, reads, as_in_a_new_process):
    data = rte(tmp_path / "mine")
    run = compose(*OWN, f"task.data_dir={data}")
    record = execute(run)
    assert execute(run) == record and len(reads) == 1  # remembered by names, sizes and times
    moved = compose(*OWN, f"task.data_dir={shutil.copytree(data, tmp_path / 'moved')}")
    assert execute(moved) == record and len(reads) == 2
    assert execute(moved) == record and len(reads) == 2
    other = compose(*OWN, f"task.data_dir={rte(tmp_path / 'other', ROWS[::-1])}")
    said = rf"other rows: official TSV files, fingerprint {record.provenance.data_fingerprint}, and task.data_dir=.*other"
    for _ in range(2):
        with pytest.raises(RecordError, match=said):
            execute(other)
    assert len(reads) == 3
    rte(data, ROWS[::-1])  # as many bytes
    as_in_a_new_process()
    with pytest.raises(RecordError, match="made from other rows"):
        execute(run)
    assert Store(run.results_dir).find(run.run_name) == record and not Store(run.results_dir).failed.exists()


def test_a_record_does_not_answer_for_a_cell_whose_id_begins_alike(compose, monkeypatch):
    """As of train.lr=0.0011625 and train.lr=0.0021196 with method=lora, when this was written."""
    first, second = (compose("method=lora", f"train.lr={lr}") for lr in (0.1, 0.2))
    record = execute(first)
    monkeypatch.setattr(type(first), "run_name", property(lambda run: record.name))
    monkeypatch.setattr("vera.records.sweep.composed", lambda overrides: second)
    assert sweep.finished([]) is None
    with pytest.raises(RecordError, match="a record of this name is there, of another cell"):
        execute(second)
    assert execute(first) == record


def test_an_edit_that_keeps_size_and_time_is_seen(compose, tmp_path, as_in_a_new_process):
    data = rte(tmp_path / "mine")
    run = compose(*OWN, f"task.data_dir={data}")
    execute(run)
    before = (data / "dev.tsv").stat()
    (data / "dev.tsv").write_text((data / "dev.tsv").read_text().replace("The", "Tha", 1))
    os.utime(data / "dev.tsv", ns=(before.st_atime_ns, before.st_mtime_ns))
    as_in_a_new_process()
    with pytest.raises(RecordError, match="made from other rows"):
        execute(run)


def test_files_behind_linked_folders_are_seen_and_a_link_upwards_ends(tmp_path):
    """GLUE's tasks linked into one folder; a link in a linked folder; one back to where it came from."""
    elsewhere = [rte(tmp_path / name / "RTE") for name in ("first", "second")]
    (tmp_path / "glue").mkdir()
    for name, folder in zip(("RTE", "again"), elsewhere, strict=True):
        (tmp_path / "glue" / name).symlink_to(folder)
    (elsewhere[0] / "inside").symlink_to(elsewhere[1])
    (elsewhere[0] / "up").symlink_to(tmp_path / "glue")
    (elsewhere[0] / "gone").symlink_to(tmp_path / "nowhere")
    seen = [sources.stamp(tmp_path / "glue")]
    for folder in elsewhere:
        rte(folder, ROWS[:5])
        seen.append(sources.stamp(tmp_path / "glue"))
    (elsewhere[0] / "inside").unlink()
    seen.append(sources.stamp(tmp_path / "glue"))
    (elsewhere[0] / "inside").symlink_to(rte(tmp_path / "third"))
    seen += [sources.stamp(tmp_path / "glue")] * 2
    assert len(set(seen)) == 5


def test_a_record_does_not_answer_for_rows_that_changed_behind_a_link(compose, tmp_path, as_in_a_new_process):
    (tmp_path / "glue").mkdir()
    (tmp_path / "glue" / "RTE").symlink_to(rte(tmp_path / "mine"))
    run = compose(*OWN, f"task.data_dir={tmp_path / 'glue'}")
    execute(run)
    rte(tmp_path / "mine", ROWS[::-1])
    as_in_a_new_process()
    with pytest.raises(RecordError, match="made from other rows"):
        execute(run)


def test_other_weights_are_refused(compose, tmp_path, cache):
    tiny = compose("method=head")
    execute(tiny)
    folder = shutil.copytree(next((cache / "tiny").glob("vit-*/config.json")).parent, tmp_path / "weights")
    sizes = [
        f"model.architecture.{key}={json.loads((folder / 'config.json').read_text())[key]}"
        for key in tiny.model["architecture"]
    ]
    own = ["method=head", "model.size=full", *sizes]
    record = execute(compose(*own, f"model.path={folder}"))
    check_sources(compose(*own, f"model.path={shutil.copytree(folder, tmp_path / 'again')}"), record)
    changed = record.model_copy(update={"provenance": record.provenance.model_copy(update={"model_fingerprint": "f" * 16})})
    with pytest.raises(RecordError, match=r"other weights: local folder, fingerprint f{16}, and model.path="):
        check_sources(compose(*own, f"model.path={folder}"), changed)


def edit(path, **values):
    """A JSON file with other values, or with two letters of its vocabulary changed round."""
    content = json.loads(path.read_text())
    for key, value in values.items():
        content[key] = value(content[key]) if callable(value) else value
    path.write_text(json.dumps(content))


def swapped(model):
    return {**model, "vocab": {**model["vocab"], "a": model["vocab"]["b"], "b": model["vocab"]["a"]}}


@pytest.mark.parametrize("what", ["configuration", "tokenizer"])
def test_a_backbone_is_more_than_its_weights(what, compose, tmp_path, cache, as_in_a_new_process):
    """Another activation or vocabulary beside the same weights: no record, no export, no prepared row answers for it."""
    source = tiny_checkpoint({"family": "roberta", **SIZES}, cache)
    given = shutil.copytree(source, tmp_path / "given")
    own = ["model=roberta_base", "model.size=full", "~model.full", "task=rte", "method=lora", "train.save=true"]
    own += ["train.max_steps=1", f"work_dir={tmp_path / 'work' / 'results'}"]
    run = compose(*own, f"model.path={given}")
    record, path = execute(run), Store(run.results_dir).path(run.run_name)
    copied = tmp_path / "copied"  # as transformers writes it
    AutoModelForSequenceClassification.from_pretrained(given).base_model.save_pretrained(copied)
    AutoTokenizer.from_pretrained(given).save_pretrained(copied)
    assert execute(compose(*own, f"model.path={copied}")) == record
    before = build(run.task, "task").load(build(run.model, "model").load(2, cache), 0)
    if what == "configuration":
        edit(given / "config.json", hidden_act="relu")
    else:
        edit(given / "tokenizer.json", model=swapped)
    after = build(run.task, "task").load(build(run.model, "model").load(2, cache), 0)
    assert ([row["input_ids"] for row in after.train] == [row["input_ids"] for row in before.train]) == (
        what == "configuration"
    )
    as_in_a_new_process()
    said = {"configuration": r"another configuration \(config\.json\)", "tokenizer": "another tokenizer or image processor"}[
        what
    ]
    for repeated in (lambda: execute(run), lambda: repeat(record, [f"model.path={given}", f"cache_dir={cache}"])):
        with pytest.raises(RecordError, match=f"its record was made from {said}: local folder, fingerprint"):
            repeated()
    out = [f"model.path={given}", f"cache_dir={cache}"]
    with pytest.raises(ModelError, match=f"was trained with {said} of roberta_base than the one at hand"):
        export(path, tmp_path / "out", "merged", overrides=out)
    older = json.loads(path.read_text())  # from before this was noted
    for note in sources.CONFIGURED:
        del older["provenance"]["notes"][note]
    path.write_text(json.dumps(older))
    assert execute(run).cost.steps == 1
    export(path, tmp_path / "out", "merged", overrides=out)


def test_a_sweep_starts_what_it_cannot_compare(compose, tmp_path, monkeypatch, as_in_a_new_process):
    """The sweeper knows no rows: it answers for what is remembered, and leaves the rest to the run."""
    data = rte(tmp_path / "mine")
    run = compose(*OWN, f"task.data_dir={data}")
    record = execute(run)
    monkeypatch.setattr(sweep, "composed", lambda overrides: run)
    assert sweep.finished([]) == (run, record)
    rte(data, ROWS[:10])
    as_in_a_new_process()
    assert sweep.finished([]) is None


def test_a_record_of_local_rows_says_that_it_was_not_compared(compose, tmp_path):
    run = compose(*OWN, f"task.data_dir={rte(tmp_path / 'mine')}")
    record = execute(run)
    assert sources.not_given(run, record) == []
    assert sources.not_given(compose(*OWN), record) == ["task.data_dir"]
    assert sources.local(compose("model=roberta_base", "task=rte", "task.data_dir=/nowhere")) == {}  # synthetic rows


def test_another_corpus_of_a_backbone_made_here_is_refused_and_other_weights_of_it_are_not(compose, tmp_path):
    """model.data_dir is no part of a cell: what a GPT-2 was pretrained on is compared, not its weights."""

    def corpus(folder, place):
        folder.mkdir()
        rows = "".join(f'"name[P{i}], eatType[pub]",P{i} is a nice pub near the {place}.\n' for i in range(60))
        (folder / "trainset.csv").write_text("mr,ref\n" + rows)
        return folder

    small = [
        "model.architecture.n_embd=16",
        "model.architecture.n_layer=1",
        "model.pretrain.epochs=1",
        "model.pretrain.window=16",
    ]
    small += ["model.pretrain.vocabulary=300", "model.pretrain.bf16=false", "model.size=full", "task.decoding=null"]
    small += ["model=gpt2_mini", "task=e2e", "method=vera", "task.primary=log_likelihood", f"cache_dir={tmp_path / 'cache'}"]
    river, city = corpus(tmp_path / "river", "river"), corpus(tmp_path / "city", "city")
    run = compose(*small, f"model.data_dir={river}")
    record = execute(run)
    assert execute(run) == record
    other = compose(*small, f"model.data_dir={city}")
    assert other.cell_id == run.cell_id
    for _ in range(2):
        with pytest.raises(
            RecordError, match=r"other weights: pretrained on E2E .*, fingerprint \w+, and model.data_dir=\S+city"
        ):
            execute(other)
    elsewhere = record.model_copy(update={"provenance": record.provenance.model_copy(update={"model_fingerprint": "f" * 16})})
    check_sources(run, elsewhere)
    assert sources.not_given(compose(*small), record) == ["model.data_dir"]


def test_what_changes_while_it_is_read_is_not_remembered(compose, tmp_path):
    data = rte(tmp_path / "mine")
    run = compose(*OWN, f"task.data_dir={data}")
    before = sources.local(run)["task"]
    rte(data, ROWS[:4])
    sources.remember(run, before, {"rows": "0" * 16})
    assert sources.recall(run, before) is None
