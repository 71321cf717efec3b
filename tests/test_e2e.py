"""E2E: the challenge's files, LoRA's formatting, the official scorer's numbers, what a run keeps, one line for bad input."""

import json
import os
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from vera.commands import score_e2e
from vera.config import build, compose
from vera.errors import ConfigError, DataError, ModelError, RecordError
from vera.models.decoding import generate_ids
from vera.records.store import Store
from vera.run import execute, prepare
from vera.tasks import e2e_metrics
from vera.tasks.e2e import FILES, by_meaning, context, parse
from vera.tasks.e2e_metrics import METRICS, E2EMetric, compute, nist, read_files, unavailable
from vera.train.evaluate import finish
from vera.train.loop import Loop
from vera.train.numerics import make_accelerator

SYSTEMS = ("tgen", "sheff2", "tuda")
needs_java = pytest.mark.skipif(unavailable() is not None, reason=f"METEOR, ROUGE_L and CIDEr: {unavailable()}")


def task(**settings):
    values = compose(["model=gpt2_mini", "task=e2e"]).task
    return build({**values, **settings}, "task")


@pytest.fixture
def folder(tmp_path):
    """A folder with the challenge's three files, a few rows each."""
    text = 'mr,ref\r\n"name[The Mill], priceRange[£20-25], familyFriendly[yes]","The Mill, a ""pub"".\r\nIt is  cheap."\r\n'
    for name in FILES.values():
        (tmp_path / name).write_bytes((text + "name[Zizzi],Zizzi is there.\r\n").encode())
    return tmp_path


@pytest.fixture
def score_script(script):
    def run(*arguments, **environment):
        return script("score_e2e.py", *arguments, environment={**os.environ, **environment})

    return run


def official(shared_e2e):
    return json.loads((shared_e2e / "reference_outputs" / "scores.json").read_text())["systems"]


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_the_official_scorers_numbers_to_four_digits(system, shared_e2e):
    if unavailable():
        pytest.skip(f"METEOR, ROUGE_L and CIDEr: {unavailable()}")
    folder = shared_e2e / "reference_outputs"
    scores = compute(*read_files(folder / f"{system}.txt", folder / "references.txt"))
    wanted = official(shared_e2e)[system]
    for name in (*METRICS, "NIST_py"):
        assert scores[name] == pytest.approx(wanted[name], abs=5.01e-5), name
    for name in ("METEOR", "ROUGE_L", "CIDEr", "NIST_py"):
        assert scores[name] == pytest.approx(wanted[f"{name}_full"], rel=1e-12), name


def test_bleu_and_nist_need_no_java(shared_e2e, monkeypatch):
    monkeypatch.setattr(e2e_metrics, "unavailable", lambda: e2e_metrics.NEEDS_JAVA)
    folder = shared_e2e / "reference_outputs"
    scores = compute(*read_files(folder / f"{SYSTEMS[0]}.txt", folder / "references.txt"))
    assert set(scores) == {"BLEU", "NIST", "NIST_py"}
    for name, value in scores.items():
        assert value == pytest.approx(official(shared_e2e)[SYSTEMS[0]][name], abs=5.01e-5)


@needs_java
def test_the_script_takes_the_challenges_own_csv_and_prints_one_object(score_script, shared_e2e):
    example = shared_e2e / "reference_outputs" / "example"
    done = score_script(example / "baseline-output.txt", example / "devel-conc.txt")
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 1 and done.stderr == ""
    scores = json.loads(done.stdout)
    wanted = json.loads((example / "scores.json").read_text())["systems"]["baseline-output"]
    for name in (*METRICS, "NIST_py"):
        assert scores[name] == pytest.approx(wanted[name], abs=5.01e-5)
    grouped = read_files(shared_e2e / "reference_outputs" / "tgen.txt", shared_e2e / "testset_w_refs.csv")
    plain = read_files(shared_e2e / "reference_outputs" / "tgen.txt", shared_e2e / "reference_outputs" / "references.txt")
    assert [sorted(group) for group in grouped[1]] == [sorted(" ".join(r.split()) for r in group) for group in plain[1]]


def test_without_java_three_are_missing_and_the_line_says_what_to_install(score_script, tmp_path):
    (tmp_path / "out.txt").write_text("The Mill is a pub.\nZizzi is over there.\n")
    (tmp_path / "ref.txt").write_text("The Mill is a pub.\nA pub is The Mill.\n\nZizzi is over there.\n")
    done = score_script(tmp_path / "out.txt", tmp_path / "ref.txt", PATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    scores = json.loads(done.stdout)
    assert scores["BLEU"] == pytest.approx(1.0) and scores["NIST"] > 0
    assert [scores[name] for name in ("METEOR", "ROUGE_L", "CIDEr")] == [None, None, None]
    assert all(word in scores["missing"]["METEOR"] for word in ("needs", "install"))


@pytest.mark.parametrize("text", ["<skipped>", "<SKIPPED>", " "])
def test_references_without_a_token_are_named(text):
    with pytest.raises(DataError, match=f"no reference has a token to score by, the first is {text!r}"):
        compute(["a b", "c"], [[text], ["<skipped>"]])
    assert nist(["a b", "c"], [[text], ["c d"]])["NIST"] > 0


def test_nist_by_hand():
    """Two instances of one reference each: information and both reference lengths can be counted."""
    scores = nist(["a b", "c"], [["a b"], ["c d", "c"]])
    tokens, pairs = 5, 2  # a b c d c; "a b" and "c d"
    unigrams = torch.log2(torch.tensor([tokens / 1, tokens / 1, tokens / 2])).sum().item() / 3
    bigrams = 0.0 / pairs  # count(a) / count(a b) = 1: no information
    perl, python = 5 / 3 * 2, 2 + 1.5
    for name, length in (("NIST", perl), ("NIST_py", python)):
        penalty = torch.exp(
            -torch.log(torch.tensor(2.0)) / torch.log(torch.tensor(1.5)) ** 2 * torch.log(torch.tensor(3 / length)) ** 2
        )
        assert scores[name] == pytest.approx((unigrams + bigrams) * penalty.item(), rel=1e-6)


def test_e2es_scores_are_there_as_a_metric_of_evaluate(monkeypatch, tmp_path):
    monkeypatch.setattr(e2e_metrics, "unavailable", lambda: e2e_metrics.NEEDS_JAVA)
    metric = E2EMetric(cache_dir=str(tmp_path))
    outputs, others = ["The Mill is a pub .", "Zizzi is over there ."], [["A pub"], ["Zizzi is here", "there"]]
    references = [["a pub, The Mill", "The Mill is a pub."], ["Zizzi is over there."]]
    first, none, again = (metric.compute(predictions=outputs, references=given) for given in (references, others, references))
    assert first["BLEU"] == pytest.approx(1.0) and set(first) == {"BLEU", "NIST", "NIST_py"}
    assert none["BLEU"] < 0.5 and none["NIST"] < first["NIST"] and again == first  # scored by the references of the call


BAD_FILES = {
    "lengths": ("a\nb\n", "a\n\nb\n\nc\n", "has 2 outputs, .* has references for 3 instances"),
    "empty output": ("a\n\nb\n", "a\n\nb\n\nc\n", r"out.txt:2 is an empty output"),
    "empty file": ("", "a\n", "out.txt is empty"),
    "no references": ("a\n", "\n", "ref.txt is empty"),
    "an empty group": ("a\nb\n", "a\n\n\nb\n", r"ref.txt:3: an instance without references"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_files_that_do_not_fit_are_one_clear_line(case, tmp_path):
    outputs, references, message = BAD_FILES[case]
    (tmp_path / "out.txt").write_text(outputs)
    (tmp_path / "ref.txt").write_text(references)
    with pytest.raises(DataError, match=message) as error:
        read_files(tmp_path / "out.txt", tmp_path / "ref.txt")
    assert "\n" not in str(error.value)


def test_the_scripts_error_is_one_line(score_script, tmp_path):
    (tmp_path / "ref.txt").write_text("a\n")
    failed = score_script(tmp_path / "none.txt", tmp_path / "ref.txt")
    assert failed.returncode == 1 and failed.stdout == "" and len(failed.stderr.splitlines()) == 1
    assert failed.stderr.startswith("error: ") and "none.txt does not exist" in failed.stderr


def test_outputs_with_meaning_representations_are_put_in_order(tmp_path):
    (tmp_path / "out.tsv").write_text("MR\toutput\nname[B]\tb\nname[A]\ta\n")
    (tmp_path / "ref.csv").write_text("mr,ref\nname[A],a one\nname[B],b one\nname[A],a two\n")
    assert read_files(tmp_path / "out.tsv", tmp_path / "ref.csv") == (["a", "b"], [["a one", "a two"], ["b one"]])
    (tmp_path / "out.tsv").write_text("MR\toutput\nname[B]\tb\nname[C]\ta\n")
    with pytest.raises(DataError, match=r"has nothing for 'name\[A\]'"):
        read_files(tmp_path / "out.tsv", tmp_path / "ref.csv")


def test_meaning_representations():
    assert parse("name[The Mill], eatType[pub]") == [("name", "The Mill"), ("eatType", "pub")]
    written = context("name[Zizzi], eatType[pub], priceRange[£20-25], customer rating[5 out of 5], familyFriendly[no]")
    assert written == "name : Zizzi | Type : pub | price : £ 20 - 25 | customer rating : 5 out of 5 | family friendly : no"
    for bad in ("", "name", "name[The Mill", "name[The Mill] pub", "[x]", "name[a]]"):
        with pytest.raises(ValueError, match=r"cannot parse|is empty"):
            parse(bad)


def test_contexts_equal_loras_on_the_real_data(shared_e2e):
    rows, source, _ = task(data_dir=str(shared_e2e)).source_rows()
    assert source == "the challenge's CSV files"
    assert {split: (len(found), len(by_meaning(found))) for split, found in rows.items()} == {
        "train": (42061, 4862),
        "validation": (4672, 547),
        "test": (4693, 630),
    }
    for split, name in (("validation", "valid"), ("test", "test")):
        theirs = (shared_e2e / "lora_format" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
        assert [line.partition("||")[0] for line in theirs] == [context(mr) for mr, _ in rows[split]]


def test_a_small_folder_is_read_with_quotes_and_line_breaks(folder):
    rows, _, _ = task(data_dir=str(folder)).source_rows()
    assert [mr for mr, _ in rows["train"]] == ["name[The Mill], priceRange[£20-25], familyFriendly[yes]", "name[Zizzi]"]
    assert by_meaning(rows["test"])[rows["test"][0][0]] == ['The Mill, a "pub". It is cheap.']


def test_meaning_representations_that_are_scored_and_trained_on_are_counted_and_warned_of(folder, compose, warned):
    with (folder / FILES["test"]).open("ab") as file:
        file.write(b"name[Cotto],Cotto.\r\nname[Zizzi],There is Zizzi.\r\n")
    *_, data = prepare(compose(*GPT2, "method=vera", "task.synthetic=false", f"task.data_dir={folder}"))
    assert data.notes["also_in_train"] == {"validation": 2, "test": 2} and data.notes["test_references"] == 4
    assert warned()[-1] == "task=e2e: 2 of 2 validation and 2 of 3 test rows have the texts of a training row"


BAD_ROWS = {
    "unparsable": ("mr,ref\nname[A],a\nname[B,b\n", r"trainset.csv:3: meaning representation cannot parse 'name\[B'"),
    "no column": ("mr,text\nname[A],a\n", r"trainset.csv:1 has no column 'ref'; it has 'mr', 'text'"),
    "fields": ("mr,ref\nname[A],a,b\n", r"trainset.csv:2 has 3 fields, expected 2"),
    "empty reference": ("mr,ref\nname[A],\n", r"trainset.csv:2: ref is empty"),
    "empty": ("", r"trainset.csv is empty"),
    "header only": ("mr,ref\n", r"trainset.csv has no rows"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_malformed_files_name_file_and_line(case, folder):
    text, message = BAD_ROWS[case]
    (folder / "trainset.csv").write_text(text)
    with pytest.raises(DataError, match=message) as error:
        task(data_dir=str(folder)).source_rows()
    assert "\n" not in str(error.value)


def test_missing_files_and_an_unreachable_hub_say_what_to_give(tmp_path):
    with pytest.raises(DataError, match=r"does not hold trainset.csv, devset.csv, testset_w_refs.csv"):
        task(data_dir=str(tmp_path)).source_rows()
    with pytest.raises(DataError, match=r"tuetschek/e2e_nlg cannot be loaded .*task.data_dir=/path/to/e2e"):
        task().source_rows()


def hu2022(folder, **files):
    """A folder of Hu et al.'s three files."""
    for name in ("train.txt", "valid.txt", "test.txt"):
        (folder / name).write_text(files.get(name.partition(".")[0], HU_LINES), encoding="utf-8")
    return task(data_dir=str(folder), format="hu2022")


HU_LINES = (
    "name : The Mill | family friendly : no||The Mill is not family - friendly . \n"
    "name : The Mill | family friendly : no||The Mill , a pub for adults .\n"
    "name : Zizzi||Zizzi is there . \n"
)


def test_hu_et_als_texts_are_read_as_they_are(tmp_path, compose, cache):
    rows, source, _ = hu2022(tmp_path).source_rows()
    assert source == "the texts of Hu et al."
    assert by_meaning(rows["test"]) == {
        "name : The Mill | family friendly : no": ["The Mill is not family - friendly .", "The Mill , a pub for adults ."],
        "name : Zizzi": ["Zizzi is there ."],
    }
    run = compose("model=gpt2_medium", "task=e2e", "method=vera", "task.synthetic=false", f"task.data_dir={tmp_path}", *HU)
    backbone, _, _, data = prepare(run)
    end = backbone.preprocess.eos_token_id
    read = [*backbone.preprocess.encode("name : Zizzi"), end]
    said = [*backbone.preprocess.encode(" Zizzi is there ."), end]
    assert data.train[2]["input_ids"] == [*read, *said] and data.prompts[1] == read
    assert list(data.references) == list(by_meaning(rows["test"]).values())


HU = ("task.format=hu2022", "task.decoding.search=hu2022")


def test_hu_et_als_real_files_hold_the_challenges_contexts(shared_e2e, tmp_path):
    for name in ("valid.txt", "test.txt"):
        (tmp_path / name).write_bytes((shared_e2e / "lora_format" / name).read_bytes())
    (tmp_path / "train.txt").write_text(HU_LINES)  # theirs is not here
    theirs = task(data_dir=str(tmp_path), format="hu2022").source_rows()[0]
    ours = task(data_dir=str(shared_e2e)).source_rows()[0]
    for split in ("validation", "test"):
        assert [meaning for meaning, _ in theirs[split]] == [context(mr) for mr, _ in ours[split]]
    assert len(by_meaning(theirs["test"])) == 630 and sum(map(len, by_meaning(theirs["test"]).values())) == 4693
    assert any(ref != " ".join(own.split()) for (_, ref), (_, own) in zip(theirs["test"], ours["test"], strict=True))


def test_bad_input_of_hu_et_als_format_is_one_line(tmp_path, folder):
    for text, message in (
        ("name : A||a b .\nname : A\n", r"train.txt:2: expected context\|\|reference, got 'name : A'"),
        ("name : A||\n", r"train.txt:1: expected context\|\|reference"),
        ("a||b||c\n", r"train.txt:1: expected context\|\|reference"),
        ("\n", r"train.txt is empty"),
    ):
        with pytest.raises(DataError, match=message):
            hu2022(tmp_path, train=text).source_rows()
    (tmp_path / "train.txt").unlink()
    with pytest.raises(DataError, match=r"does not hold train.txt, which task.format=hu2022 reads"):
        task(data_dir=str(tmp_path), format="hu2022").source_rows()
    with pytest.raises(DataError, match=r"not on the hub: give the folder .* with task.data_dir=/path/to/e2e"):
        task(format="hu2022").source_rows()
    with pytest.raises(ConfigError, match=r"task.format: .*'challenge' or 'hu2022', got 'lora'"):
        task(format="lora")
    with pytest.raises(ConfigError, match=r"task.decoding.search: .*'transformers' or 'hu2022', got 'beam'"):
        task(decoding={**compose(["model=gpt2_medium", "task=e2e"]).task["decoding"], "search": "beam"})


def test_both_choices_stay_out_of_an_identity_where_nothing_changes():
    plain = ["model=gpt2_mini", "task=e2e", "method=vera"]
    ids = {compose([*plain, *more]).cell_id for more in ([], ["task.format=challenge"], ["task.decoding.search=transformers"])}
    assert len(ids) == 1
    assert len(ids | {compose([*plain, HU[0]]).cell_id, compose([*plain, HU[1]]).cell_id}) == 3


GPT2 = ("model=gpt2_medium", "task=e2e", "task.format=challenge", "task.decoding.search=transformers")


@pytest.mark.parametrize("choice", [GPT2[2:], HU])
def test_a_rehearsed_run_in_both_formats(choice, compose):
    record = execute(compose(*GPT2, "method=vera", *choice))
    assert record.provenance.notes["outputs"] == 3 and 0 <= record.scores.last.metrics["BLEU"] <= 1


def test_the_loss_sees_the_reference_alone_and_is_smoothed_like_loras(compose):
    backbone, _, e2e, data = prepare(compose(*GPT2, "method=vera"))
    batch = data.collate(data.train[:3])
    end = backbone.preprocess.eos_token_id
    for ids, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
        target = [label for label in labels if label != -100]
        text = backbone.preprocess.decode([i for i in ids if i != end])
        assert ids[labels.index(target[0]) - 1] == end == target[-1]
        assert " : " in text and backbone.preprocess.decode(target[:-1]).startswith(" ")
    logits = torch.randn(*batch["input_ids"].shape, 257, generator=torch.Generator().manual_seed(0))
    logp = logits[:, :-1].log_softmax(-1)
    labels = batch["labels"][:, 1:]
    mask = labels != -100
    nll = -logp.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    smoothed = (0.9 * nll - 0.1 * logp.mean(-1))[mask].mean()
    torch.testing.assert_close(e2e.loss(logits, batch), smoothed)
    assert e2e.weight(batch) == mask.sum()
    kept, counts = e2e.kept(logits, batch)
    assert e2e.score(kept, counts)["log_likelihood"] == pytest.approx(-nll[mask].mean().item(), rel=1e-5)
    blind = logits.clone()
    blind[:, :-1][~mask] = 0
    torch.testing.assert_close(e2e.loss(blind, batch), smoothed)


def test_micro_batches_of_unlike_lengths_give_the_same_gradient(compose, tmp_path):
    parts = []
    for size in ("null", "3"):
        run = compose(
            *GPT2, "train.batch_size=8", f"train.micro_batch_size={size}", "train.warmup_steps=0", "train.max_steps=2"
        )
        loop = Loop(run, *prepare(run), tmp_path / size)
        loop.fit()
        parts.append((loop.history[0]["train_loss"], loop.method.trained(loop.backbone)))
    assert parts[0][0] == pytest.approx(parts[1][0], rel=1e-5)
    for name, value in parts[0][1].items():
        torch.testing.assert_close(value, parts[1][1][name], rtol=1e-3, atol=1e-5)


def test_examples_whose_target_is_cut_off_teach_nothing(compose, tmp_path, warned, monkeypatch):
    monkeypatch.setattr("vera.tasks.base._PREPARED", {})
    run = compose(*GPT2, "task.max_length=100", "train.warmup_steps=0")
    loop = Loop(run, *prepare(run), tmp_path)
    assert loop.data.notes["truncated"]["train"] == len(loop.data.train)
    empty = [row for row in loop.data.train if set(row["labels"]) == {-100}]
    assert 2 <= len(empty) < len(loop.data.train)
    said = f"{len(empty)} of {len(loop.data.train)} train rows have a prompt of task.max_length=100 tokens or more"
    assert any(said in line for line in warned())
    batch = loop.data.collate(empty[:2])
    loss = loop.task.loss(torch.randn(*batch["input_ids"].shape, 257, requires_grad=True), batch)
    loss.backward()
    assert loop.task.weight(batch) == 0 and loss.item() == 0
    with pytest.raises(DataError, match=r"no row of the train part fits task\.max_length=60"):
        prepare(compose(*GPT2, "task.max_length=60"))


def test_an_evaluation_part_of_which_no_target_fits_is_refused_before_the_training(compose, tmp_path):
    rows = {"train": "name[Zizzi]", "validation": f"name[{'Zizzi' * 9}]", "test": "name[Zizzi]"}
    for split, meaning in rows.items():
        (tmp_path / FILES[split]).write_text(f"mr,ref\n{meaning},It is there.\n")
    with pytest.raises(DataError, match=r"no row of the validation part fits task\.max_length=40"):
        prepare(compose(*GPT2, "task.synthetic=false", f"task.data_dir={tmp_path}", "task.max_length=40"))


@pytest.mark.parametrize(("reason", "decoded"), [("needs Java", True), ("needs Java", False), (None, True)])
def test_metrics_that_will_be_missing_are_told_before_the_training(reason, decoded, compose, warned, monkeypatch):
    monkeypatch.setattr("vera.tasks.e2e.unavailable", lambda: reason)
    monkeypatch.setattr("vera.tasks.base._PREPARED", {})
    prepare(compose(*GPT2, *([] if decoded else ["task.decoding=null", "task.primary=log_likelihood"])))
    told = [line for line in warned() if "lack METEOR, ROUGE_L, CIDEr: needs Java" in line]
    assert len(told) == (reason is not None and decoded)


def test_a_prompt_too_long_to_write_after_is_refused_before_the_training(folder, compose):
    with (folder / FILES["test"]).open("a") as file:
        file.write(f'"name[Cotto], near[{"the river " * 400}]",Cotto.\n')
    own = ("task.synthetic=false", f"task.data_dir={folder}")
    with pytest.raises(ConfigError, match=r"the longest prompt \('name\[Cotto\], near\[the river .* tokens; this model reads"):
        prepare(compose(*GPT2, *own))
    *_, data = prepare(compose(*GPT2, *own, "task.decoding=null", "task.primary=log_likelihood"))
    assert len(data.prompts) == 3


def test_a_run_writes_at_the_last_epoch_and_keeps_every_output(compose, monkeypatch):
    run = compose(*GPT2, "method=lora", "train.epochs=2", "train.max_steps=null", "train.batch_size=12")
    record = execute(run)
    assert record.parameters.head == 0 and record.parameters.adapter > 0
    first, last = record.scores.history
    assert set(first.metrics) == {"log_likelihood"} and {"BLEU", "NIST", "NIST_py"} < set(last.metrics)
    assert set(last.metrics) <= set(build(run.task, "task").scored)
    assert record.scores.best.epoch == record.scores.last.epoch == 2
    text = Store(run.results_dir).read_output(record, "txt")
    notes = record.provenance.notes
    assert len(text.splitlines()) == notes["outputs"] == 3 and "NIST_py" in notes["nist_modes"]
    missing = set(METRICS) - set(last.metrics)
    assert missing == set(notes.get("missing_metrics", {}))
    _, _, _, data = prepare(run)
    again = compute(text.removesuffix("\n").split("\n"), list(data.references))
    assert {name: last.metrics[name] for name in again} == again
    written = Path(run.results_dir, *record.outputs)
    written.write_text(text.upper())
    monkeypatch.setattr("sys.argv", ["score_e2e", str(written), "references.txt"])
    with pytest.raises(RecordError, match=r"is not the file that the record .* was made with: its SHA-256 differs"):
        score_e2e.main()


def test_a_run_killed_after_writing_keeps_what_it_wrote(compose, tmp_path):
    run = compose(*GPT2, "train.checkpoint_seconds=0")
    whole = Loop(run, *prepare(run), tmp_path)
    whole.fit()
    resumed = Loop(run, *prepare(run), tmp_path)
    resumed.fit()
    assert resumed.spent["restarts"] == 1 and resumed.final == whole.final and resumed.final.files["txt"]


@pytest.mark.parametrize("method", ["vera", "lora", "full"])
def test_merged_beam_search_equals_transformers_on_the_unmerged_model(method, compose):
    """Every prompt of the test set, one at a time, by transformers' own call on the adapted model."""
    run = compose(*GPT2, f"method={method}", "task.decoding.no_repeat_ngram=0", "task.decoding.max_new_tokens=8")
    backbone, built, e2e, data = prepare(run)
    with torch.no_grad():
        for _, parameter in backbone.model.named_parameters():
            if parameter.requires_grad or parameter.dim() > 1:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())) * 0.3)
    backbone.model.eval()
    end = backbone.preprocess.eos_token_id
    expected = []
    for prompt in data.prompts:
        ids = torch.tensor([prompt])
        found = backbone.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), num_beams=10, length_penalty=0.8, max_new_tokens=8
        )[0, len(prompt) :].tolist()
        expected.append(found[: found.index(end)] if end in found else found)
    with built.merged(backbone):
        assert generate_ids(backbone, list(data.prompts), e2e.decoding, 2) == expected
    assert len(set(map(tuple, expected))) > 1


def test_finishing_leaves_the_model_in_training_mode_with_its_bits(compose):
    run = compose(*GPT2, "method=vera")
    backbone, built, e2e, data = prepare(run)
    before = {name: value.clone() for name, value in backbone.model.named_parameters()}
    final = finish(make_accelerator("cpu", "fp32"), backbone, built, e2e, data, 2)
    assert backbone.model.training and final.metrics and len(final.files["txt"].splitlines()) == len(data.prompts)
    assert all(torch.equal(value, before[name]) for name, value in backbone.model.named_parameters())


def test_the_small_gpt2_is_made_from_the_references_alone(folder, tmp_path):
    rows = "".join(f'"name[P{i}], eatType[pub]",P{i} is a nice pub near the river in the city centre.\n' for i in range(60))
    (folder / "trainset.csv").write_text("mr,ref\n" + rows)
    settings = compose(["model=gpt2_mini", "task=e2e", f"task.data_dir={folder}"]).model
    assert settings["data_dir"] == str(folder)
    short = {**settings["pretrain"], "epochs": 1, "vocabulary": 300, "window": 16, "bf16": False}
    small = {**settings, "architecture": {**settings["architecture"], "n_embd": 16, "n_layer": 1}, "pretrain": short}
    prints = []
    for cache in ("a", "b"):
        backbone = build(small, "model").load(0, tmp_path / cache)
        prints.append(backbone.fingerprint)
    assert prints[0] == prints[1] and backbone.source == "pretrained on E2E training references"
    assert backbone.preprocess.decode(backbone.preprocess.encode(" £20 is Café")) == " £20 is Café"
    assert "eatType" not in json.dumps(list(backbone.preprocess.get_vocab()))
    with pytest.raises(ModelError, match=r"give task.data_dir=/path/to/e2e"):
        build({**small, "data_dir": None}, "model").load(0, tmp_path)


def test_recipes_hold_the_values_of_table_10():
    for size, lr in (("medium", 1e-1), ("large", 2e-2)):
        run = compose([f"model=gpt2_{size}", "task=e2e", "method=vera"])
        assert (run.train.lr, run.train.epochs, run.train.batch_size, run.train.warmup_steps) == (lr, 5, 8, 500)
        assert run.method["rank"] == 1024 and run.task["label_smoothing"] == 0.1 and run.train.weight_decay == 0.01
        assert run.task["format"] == run.task["decoding"]["search"] == "hu2022"
        run = compose([f"model=gpt2_{size}", "task=e2e", "method=lora"])
        assert (run.method["rank"], run.method["alpha"], run.method["dropout"], run.train.lr) == (4, 32, 0.1, 2e-4)


def test_the_committed_outputs_give_the_committed_scores(shared_e2e):
    """BLEU and both NISTs of a record of each cell of this repository that has outputs, from those outputs."""
    store = Store(ROOT / "results")
    kept = list({record.run.cell_id: record for record in store.records() if record.outputs}.values())
    if not kept:
        pytest.skip("no record with outputs is committed")
    references = list(by_meaning(task(data_dir=str(shared_e2e)).source_rows()[0]["test"]).values())
    for record in kept:
        outputs = store.read_output(record, "txt").removesuffix("\n").split("\n")
        again = {"BLEU": e2e_metrics.bleu(outputs, references), **nist(outputs, references)}
        for name, value in again.items():
            assert value == pytest.approx(record.scores.last.metrics[name], rel=1e-9), (record.name, name)
