"""A run becomes a hub repository that says what it is and can be repeated; what nobody could repeat is refused."""

import ast
import json
import shutil

import pytest
import torch
import yaml
from huggingface_hub import HfApi
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from vera.commands import run as command_line
from vera.config import build, choice
from vera.errors import ConfigError
from vera.nn import VeraConfig, attach, save_adapter
from vera.nn.names import inside
from vera.records.record import Record
from vera.records.store import Store
from vera.run import execute
from vera.trained import publish


@pytest.fixture(scope="module")
def made(tmp_path_factory, cache):
    """Two seeds of a run whose records say that their code was committed, and its tiny backbone of a package: results folder,
    configs."""
    from vera.config import compose

    root = tmp_path_factory.mktemp("published")
    keys = ["scale=rehearsal", "device=cpu", "progress=false", f"cache_dir={cache}", "model=roberta_base", "task=rte"]
    keys += ["method=vera", "train.save=true", "train.lr=0.05", f"results_dir={root}/results", f"work_dir={root}/work"]
    runs = [compose([*keys, f"seed={seed}"]) for seed in (0, 1)]
    for run in runs:
        execute(run)
        path = Store(run.results_dir).path(run.run_name)
        record = json.loads(path.read_text())
        assert record["provenance"]["data_source"] == "synthetic"
        record["provenance"] |= {"git_sha": "1" * 40, "git_dirty": False, "model_source": "package here/tiny"}
        record["provenance"]["data_source"] = "GLUE's files"
        path.write_text(json.dumps(record))
    return root, runs


def changed(made, tmp_path, **provenance):
    root, runs = made
    shutil.copytree(root / "results", tmp_path / "results", dirs_exist_ok=True)
    path = Store(tmp_path / "results").path(runs[0].run_name)
    record = json.loads(path.read_text())
    record["provenance"] |= provenance
    path.write_text(json.dumps(record))
    return path


def test_a_dry_run_writes_an_adapter_that_peft_opens_a_card_and_a_record_that_is_repeated(
    made, tmp_path, cache, monkeypatch, capsys
):
    root, runs = made
    monkeypatch.setattr(HfApi, "create_repo", None)  # a dry run asks no hub
    out, record = tmp_path / "out", Store(root / "results").path(runs[0].run_name)
    command = [str(record), "me/vera-rte", "--dry-run", "--out", str(out), "--work", str(root / "work"), "--license", "mit"]
    status = command_line("publish", [*command, f"cache_dir={cache}"])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    assert "nothing was sent" in printed.out and "adapter_model.safetensors" in printed.out
    front = yaml.safe_load((out / "README.md").read_text().split("---")[1])
    assert (front["library_name"], front["license"], front["pipeline_tag"]) == ("peft", "mit", "text-classification")
    kept = Store(root / "results").find(runs[0].run_name)
    (result,) = front["model-index"][0]["results"]
    assert {m["type"]: m["value"] for m in result["metrics"]} == kept.scores.best.metrics
    accuracy = [Store(root / "results").find(run.run_name).score("accuracy") for run in runs]
    assert f"| accuracy | {accuracy[0]:.4f} | {sum(accuracy) / 2:.4f} |" in (out / "README.md").read_text()
    assert "@inproceedings" in (out / "README.md").read_text()
    fingerprint = kept.provenance.data_fingerprint
    assert f"| data | GLUE's files, rows with fingerprint {fingerprint} |" in (out / "README.md").read_text()
    assert {path.name for path in out.iterdir()} == {"README.md", "runs", "adapter_config.json", "adapter_model.safetensors"}

    source = build(runs[0].model, "model").source(cache)
    plain = AutoModelForSequenceClassification.from_pretrained(source, num_labels=2)
    assert isinstance(PeftModel.from_pretrained(plain, out), torch.nn.Module)
    assert command_line("verify", [str(out), f"cache_dir={cache}"]) == 0
    assert "equal" in capsys.readouterr().out


def test_what_nobody_could_repeat_is_refused_and_nothing_is_written(made, tmp_path, cache):
    root, runs = made
    keys = {"work": root / "work", "overrides": [f"cache_dir={cache}"]}

    def refused(words, record, repo="me/x", **more):
        with pytest.raises(Exception, match=words) as caught:
            publish.prepare(record, repo, tmp_path / "out", **{**keys, **more})
        assert not (tmp_path / "out").exists() and "\n" not in str(caught.value)

    record = Store(root / "results").path(runs[0].run_name)
    refused("'x' is not a name on the hub", record, "x")
    refused("made by code that no commit holds", changed(made, tmp_path, git_dirty=True))
    refused("made by code that no commit holds", changed(made, tmp_path, git_sha=None, git_dirty=None))
    refused(r"was trained on made-up rows \(task\.synthetic=true\)", changed(made, tmp_path, data_source="synthetic"))
    begun = {"step": 0, "git_sha": "2" * 40, "git_dirty": True}
    refused("made by code that no commit holds", changed(made, tmp_path, notes={"resumed": [begun]}))
    for kind in ("local folder", "tiny random", "pretrained on UCI digits 0-4"):
        elsewhere = changed(made, tmp_path, model_source=kind)
        refused(rf"\({kind}\) is of no hub and no package, .* --to merged", elsewhere)
        refused(rf"\({kind}\) is of no hub and no package, .* --to merged", elsewhere, form="lora")
    publish.prepare(elsewhere, "me/x", tmp_path / "merged", "merged", **keys)
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "Its backbone (pretrained on UCI digits 0-4) is of no hub and no package; these weights hold it." in card
    refused("no LoRA of it|holds no trained weights", record, work=tmp_path)
    notes = {"read_from": str(tmp_path.home() / "rows.tsv")}
    refused("holds .*, a path of this machine", changed(made, tmp_path, notes=notes))


def test_a_card_names_every_commit_and_counts_seeds_that_are_alike(made, tmp_path, cache):
    root, runs = made
    path = changed(made, tmp_path, notes={"resumed": [{"step": 1, "git_sha": "2" * 40}]})
    other = Store(tmp_path / "results").path(runs[1].run_name)
    record = json.loads(other.read_text())
    record["provenance"]["data_fingerprint"] = "of other rows"
    other.write_text(json.dumps(record))
    out = tmp_path / "out"
    publish.prepare(path, "me/x", out, work=root / "work", overrides=[f"cache_dir={cache}"])
    card, score = (out / "README.md").read_text(), Store(root / "results").find(runs[0].run_name).score("accuracy")
    assert f"| accuracy | {score:.4f} | {score:.4f} | {score:.4f} to {score:.4f} | 1 |" in card
    assert "Not among the seeds: 1 of other weights, data or precision." in card
    assert f"| code | commit {'1' * 40}; begun at commit {'2' * 40} |" in card


def test_the_hubs_answer_is_one_line(made, tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("We couldn't connect to 'https://huggingface.co'\nand more")

    monkeypatch.setattr(HfApi, "create_repo", offline)
    with pytest.raises(ConfigError, match=r"^me/x was not published: We couldn't connect to 'https://huggingface.co'$"):
        publish.upload(tmp_path, "me/x", private=False)
    sent = {}
    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo, **keys: f"https://huggingface.co/{repo}")
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **keys: sent.update(keys))
    assert publish.upload(tmp_path, "me/x", private=True) == "https://huggingface.co/me/x"
    assert (sent["repo_id"], sent["folder_path"]) == ("me/x", tmp_path)


def test_of_an_earlier_version_goes_what_any_form_writes_and_nothing_else(made, tmp_path, cache, monkeypatch):
    root, runs = made
    record = Store(root / "results").path(runs[0].run_name)
    written = set()
    for form in ("peft", "merged"):
        out = tmp_path / form
        publish.prepare(record, "me/x", out, form, work=root / "work", overrides=[f"cache_dir={cache}"])
        written |= {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert {"adapter_config.json", "model.safetensors", "config.json", "tokenizer.json"} < written
    sharded = {"model.safetensors.index.json", "model-00001-of-00002.safetensors", "runs/another.json"}
    own = {
        "LICENSE",
        "notes.md",
        "eval/config.json",
        "eval/model.safetensors",
        "logs/runs/x.json",
        "figure.png",
        "model-card.pdf",
    }
    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo, **keys: repo)
    monkeypatch.setattr(HfApi, "list_repo_files", lambda self, **keys: sorted(written | sharded | own | {".gitattributes"}))
    gone = []

    def upload_folder(self, repo_id, folder_path, commit_message, delete_patterns):
        found = self._prepare_folder_deletions(
            repo_id=repo_id, repo_type=None, revision=None, path_in_repo="", delete_patterns=delete_patterns
        )
        gone.extend(operation.path_in_repo for operation in found)

    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    publish.upload(tmp_path / "peft", "me/x", private=True)
    assert set(gone) == written - {"README.md"} | sharded


@pytest.mark.parametrize(
    ("name", "outputs", "known"), [("sick", 3, True), ("stsb", 1, True), ("cifar100", 100, True), ("stsb", 1, False)]
)
def test_the_card_s_code_opens_an_adapter_with_a_head_of_any_size(name, outputs, known, tmp_path, cache):
    """On a base model whose own head, if any, is of another size; of a package, a reader has its name alone to fill in."""
    task = build(choice("task", name), "task")
    model = build({**choice("model", "vit_base" if name == "cifar100" else "roberta_base"), "size": "tiny"}, "model")
    backbone = model.load(outputs, cache)
    targets = model.resolve_targets(backbone, ["query"])
    attach(backbone.model, VeraConfig(rank=4, targets=targets, modules_to_save=backbone.head))
    save_adapter(backbone.model, tmp_path / "adapter")
    model.load(7, cache).model.half().save_pretrained(tmp_path / "base")  # a checkpoint's files may be in half precision
    found = {}
    code = publish._use("peft", str(tmp_path / "adapter"), str(tmp_path / "base") if known else None, task, model)
    exec(code.replace("(...", f"({str(tmp_path / 'base')!r}"), found)
    trained = [value for key, value in found["model"].named_parameters() if ".modules_to_save." in key]
    assert {value.dtype for value in found["model"].parameters()} == {torch.float32}  # as the run had it
    ours = [value for key, value in backbone.model.named_parameters() if inside(key, backbone.head)]
    assert len(ours) == len(trained) and all(torch.equal(*pair) for pair in zip(ours, trained, strict=True))
    assert trained[-1].shape == (outputs,)


def test_the_card_shows_test_scores_where_there_are_some_and_code_that_parses(made, monkeypatch):
    root, runs = made
    record = Store(root / "results").find(runs[0].run_name)
    raw = json.loads(record.to_json())
    raw["scores"]["test"] = {"epoch": raw["scores"]["best"]["epoch"], "metrics": {"accuracy": 0.125}}
    raw["provenance"]["test_rows"] = 77
    tested = Record.model_validate(raw)
    with pytest.raises(ConfigError, match="test scores of its best epoch alone; publish --checkpoint best"):
        publish._check(tested, "last")
    for form in ("peft", "merged"):
        text = publish.card(tested, Store(root / "nowhere"), "me/x", "best", form, "---\n\n# x\n", None)
        assert "| accuracy | 0.1250 | 0.1250 | 0.1250 to 0.1250 | 1 |" in text and "on the 77 rows of the test set" in text
        ast.parse(text.partition("```python\n")[2].partition("```")[0])
    raw = json.loads(record.to_json())
    entry = {"epoch": 1, "metrics": {"log_likelihood": -1.5, "BLEU": 0.5, "NIST": 7.0}}
    history = [{**entry, "step": 1, "train_loss": 0.1}]
    raw["scores"] = {"primary": "BLEU", "best": entry, "last": entry, "best_each": {}, "history": history}
    raw["provenance"] |= {"eval_rows": 4672, "notes": {"outputs": 630}}
    text = publish.card(Record.model_validate(raw), Store(root / "nowhere"), "me/x", "best", "peft", "---\n\n# x\n", None)
    assert (
        "BLEU, NIST of the texts that it wrote for the 630 inputs of the test set, log_likelihood on 4,672 other rows" in text
    )
    unread = json.loads(json.dumps(raw))  # a seed that was run where its texts could not be scored
    for each in (unread["scores"]["best"], unread["scores"]["last"], *unread["scores"]["history"]):
        each["metrics"] = {"log_likelihood": -2.5}
    unread["scores"]["primary"] = "log_likelihood"
    both = [Record.model_validate(raw), Record.model_validate(unread)]
    monkeypatch.setattr(Store, "by_cell", lambda store: {record.run.cell_id: both})
    text = publish.card(both[0], Store(root / "nowhere"), "me/x", "best", "peft", "---\n\n# x\n", None)
    assert "| BLEU | 0.5000 | 0.5000 | 0.5000 to 0.5000 | 1 |" in text
    assert "| log_likelihood | -1.5000 | -2.0000 | -2.5000 to -1.5000 | 2 |" in text
    monkeypatch.undo()
    mine = record.model_copy(update={"run": record.run.model_copy(update={"method": "mine"})})
    assert "made with method=mine of a project outside the harness" in publish._again(mine)
    assert "make verify RUN=FOLDER" in publish._again(record)
    broken = Record.model_validate({**json.loads(record.to_json()), "collapsed": "the loss is nan", "weights": {}})
    monkeypatch.setattr(Store, "by_cell", lambda store: {record.run.cell_id: [record, broken]})
    text = publish.card(record, Store(root / "results"), "me/x", "best", "peft", "---\n\n# x\n", None)
    assert f"| collapsed | collapsed to {record.score():.4f} | 2 |" in text and "-inf" not in text
    monkeypatch.undo()
    assert " rows that chose the best epoch" in publish.card(
        record, Store(root / "results"), "me/x", "best", "peft", "---\n\n# x\n", None
    )
