"""Instruction tuning: Alpaca's rows, Llama on 4-bit weights, answers question by question, from training to a judged table."""

import argparse
import itertools
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import OmegaConf

from bench import table12
from experiments.artefacts import table12 as table12_claims
from experiments.engine.claims import stated
from experiments.engine.comparison import compare
from experiments.engine.judged import join
from experiments.engine.judged import table as judged_table
from experiments.engine.rows import Asked
from tests.conftest import ROOT, own_methods
from tests.judge_server import Judge
from vera.checks.counts import account
from vera.commands import answer as answer_command
from vera.commands import run as command
from vera.config import build, checked, choices, compose, resolve
from vera.errors import Claimed, ConfigError, DataError, ModelError, RecordError
from vera.io.files import locked
from vera.judge.endpoint import JudgeSettings
from vera.judge.grade import judge, read_answers
from vera.judge.judgement import Judged
from vera.judge.questions import QuestionSource, load_questions
from vera.methods.base import count
from vera.models.decoding import Draws, generate_ids
from vera.records.kept import kept
from vera.records.store import Store
from vera.run import execute, prepare
from vera.tasks import draft
from vera.tasks.alpaca import read_rows
from vera.tasks.split import split
from vera.trained import export
from vera.trained.answers import AnswerSettings, Chat, answer, load_trained

BASE = ["model=llama_7b", "task=alpaca"]
SMALL = ["model.size=tiny", "model.tiny.hidden_size=16", "task.synthetic=true"]


def alpaca(*overrides):
    return build(compose([*BASE, "method=vera", *overrides]).task, "task")


@pytest.fixture
def backbone(cache):
    return build(compose([*BASE, *SMALL, "model.quantisation=none"]).model, "model").load(0, cache)


# --- counts -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "method", "task", "adapter"),
    [
        ("llama_7b", "vera", "alpaca", 1_589_248),  # 1.6M
        ("llama2_13b", "vera", "alpaca", 2_416_640),  # 2.4M
        ("llama2_13b", "lora", "alpaca", 250_347_520),  # 250.3M
        ("llama_7b", "vera", "alpaca_10k", 1_417_216),  # 1.4M and 5.4MB, Table 13
    ],
)
def test_counts_come_out_of_the_adapted_models(model, method, task, adapter):
    run = compose([f"model={model}", f"task={task}", f"method={method}"])
    counted = account(run)
    assert counted["adapter"] == adapter
    if task == "alpaca_10k":
        assert f"{counted['adapter_bytes'] / 2**20:.1f}" == "5.4"


def test_recipes_hold_the_values_of_table_9():
    for model in ("llama_7b", "llama_13b", "llama2_7b", "llama2_13b"):
        for method, rank, lr in (("lora", 64, 4e-4), ("vera", 1024, 4e-3)):
            run = compose([f"model={model}", "task=alpaca", f"method={method}"])
            assert (run.method["rank"], run.train.lr) == (rank, lr) and len(run.method["targets"]) == 7
            assert (run.train.batch_size, run.train.micro_batch_size, run.train.epochs) == (16, 4, 1)
            assert (run.train.schedule, run.train.warmup_ratio) == ("cosine", 0.1)


# --- rows -------------------------------------------------------------------------------------------------------------------


def test_the_prompt_with_and_without_input():
    task = alpaca()
    plain, given = task.text(("Do {input} it.", " ", "x")), task.text(("Do it.", "with this", "x"))
    assert plain.endswith("appropriately completes the request.\n\n### Instruction:\nDo {input} it.\n\n### Response:")
    assert "paired with an input" in given and given.endswith("\n\n### Input:\nwith this\n\n### Response:")
    assert "paired" not in plain


def test_only_the_response_and_the_end_token_are_learnt(backbone):
    task = alpaca("task.synthetic=true")
    data = task.load(backbone, 0)
    assert len(data.train) == 24 and len(data.evaluation) == 8
    batch = data.collate([data.train[0], data.train[1]])
    tokenizer = backbone.preprocess
    learnt = [ids[labels != -100].tolist() for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True)]
    for ids, example in zip(learnt, data.train, strict=False):
        text = tokenizer.decode(ids[:-1])
        assert text.isdigit() and ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(example["input_ids"]).startswith(tokenizer.bos_token + "Below is an instruction")
    logits = torch.randn(2, batch["input_ids"].shape[1], 257, generator=torch.Generator().manual_seed(0))
    loss = task.loss(logits, batch)
    logits[:, :20] += 5.0 * torch.arange(257)  # far inside the prompt
    assert torch.equal(task.loss(logits, batch), loss)


def write_rows(path, rows):
    path.write_text(json.dumps(rows))
    return path


def numbered(count):
    return [{"instruction": f"Say {i}.", "input": "", "output": str(i)} for i in range(count)]


def test_long_examples_are_cut_and_counted_and_hopeless_ones_left_out(backbone, tmp_path):
    rows = numbered(20)
    rows[3]["output"] = "x" * 400
    rows[4]["instruction"] = "y" * 400
    rows[5]["output"] = ""
    path = write_rows(tmp_path / "rows.json", rows)
    task = alpaca(f"task.data_dir={path}", "task.max_length=220", "task.held_out=2")
    data = task.load(backbone, 0)
    assert sum(data.notes["truncated"].values()) == 1 and sum(data.notes["dropped"].values()) == 2
    assert len(data.train) + len(data.evaluation) == 18
    lengths = [len(example["input_ids"]) for example in [*data.train, *data.evaluation]]
    assert max(lengths) == 220


def test_a_score_over_a_part_of_the_held_out_rows_is_warned_of(backbone, tmp_path, warned):
    rows = numbered(40)
    for row in rows[::2]:
        row["instruction"] = "y" * 400
    task = alpaca(f"task.data_dir={write_rows(tmp_path / 'rows.json', rows)}", "task.max_length=220", "task.held_out=10")
    data = task.load(backbone, 0)
    train, held = 30 - len(data.train), 10 - len(data.evaluation)
    assert train + held == 20 and 0 < held < 10
    assert warned() == [
        f"task=alpaca, task.max_length=220: {train} of 30 train and {held} of 10 evaluation rows are left out, as nothing of "
        "their response fits or is there; the scores are over the others"
    ]


def test_held_out_instructions_that_are_trained_on_are_counted_and_warned_of(backbone, tmp_path, warned):
    """Twenty rows, each twice: whichever ten are held out, those whose twin is not are trained on."""
    rows = numbered(20) * 2
    task = alpaca(f"task.data_dir={write_rows(tmp_path / 'rows.json', rows)}", "task.held_out=10")
    data = task.load(backbone, 0)
    trained = {tuple(example["input_ids"]) for example in data.train}
    twins = sum(tuple(example["input_ids"]) in trained for example in data.evaluation)
    assert data.notes["also_in_train"] == {"evaluation": twins} and twins > 0
    assert warned() == [f"task=alpaca: {twins} of 10 evaluation rows have the texts of a training row"]
    rows[0]["output"] = ""
    task = alpaca(f"task.data_dir={write_rows(tmp_path / 'rows.json', rows)}", "task.held_out=10", "task.validation=0.2")
    notes = split(task, task.load(backbone, 0)).notes
    assert set(notes["truncated"]) == set(notes["dropped"]) == {"train", "validation", "test"}
    assert sum(notes["dropped"].values()) == 2 and notes["dropped"]["validation"] == 0


def test_the_rows_of_a_subset_are_the_same_for_every_seed_and_never_held_out(backbone, tmp_path):
    path = write_rows(tmp_path / "rows.json", numbered(50))
    some = alpaca(f"task.data_dir={path}", "task.held_out=10", "task.rows=20")
    every = alpaca(f"task.data_dir={path}", "task.held_out=10")
    first, second, whole = some.load(backbone, 0), some.load(backbone, 1), every.load(backbone, 0)

    def texts(examples):
        return {tuple(example["input_ids"]) for example in examples}

    assert first.train == second.train and first.fingerprint == second.fingerprint != whole.fingerprint
    assert len(texts(first.train)) == 20 and len(texts(whole.train)) == 40
    assert texts(first.train) < texts(whole.train) and not texts(whole.train) & texts(whole.evaluation)
    assert texts(first.evaluation) == texts(whole.evaluation)
    with pytest.raises(DataError, match=r"50 rows are fewer than task.rows=45 and task.held_out=10 need"):
        alpaca(f"task.data_dir={path}", "task.held_out=10", "task.rows=45").load(backbone, 0)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('[{"instruction": "a", "input": ""}]', "row 0: no 'output'"),
        ('[{"instruction": "a", "output": "b"}, {"output": "b"}]', "row 1: no 'instruction'"),
        ('[{"instruction": "a", "output": 3}]', "row 0: 'output' is not a text"),
        ('[{"instruction": "a", "output": 0}]', "row 0: 'output' is not a text"),
        ('[{"instruction": "a", "input": false, "output": "b"}]', "row 0: 'input' is not a text"),
        ('[{"instruction": " ", "output": "b"}]', "row 0: empty 'instruction'"),
        ('["a"]', "row 0 is not an object"),
        ('{"instruction": "a"}', ":1: no 'output'"),
        ("[{", "is not a JSON file"),
    ],
)
def test_bad_rows_are_named(content, words, tmp_path):
    (tmp_path / "alpaca.json").write_text(content)
    with pytest.raises(DataError) as caught:
        read_rows(tmp_path)
    assert words in str(caught.value) and "alpaca.json" in str(caught.value) and "\n" not in str(caught.value)


def test_columns_that_are_not_there_are_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"q": "a", "out": "b"}\n{"q": "c", "context": "d", "out": "e"}\n')
    columns = {"instruction": "q", "output": "out"}
    assert read_rows(path, {**columns, "input": "context"}) == [("a", "", "b"), ("c", "d", "e")]
    with pytest.raises(DataError, match="no row has 'contxt', which columns name as the input"):
        read_rows(path, {**columns, "input": "contxt"})
    path.write_text('{"q": "a", "out": 3}\n')
    with pytest.raises(DataError, match="'out' is not a text"):
        read_rows(path, columns)
    with pytest.raises(ConfigError, match="columns are those of a file: give it with data_dir="):
        alpaca("+task.columns={instruction: q}")


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_one_column_is_one_field(ending, tmp_path):
    rows = [{"input": "Who?", "output": "I."}, {"input": "When?", "output": "Now."}]
    path = tmp_path / f"rows.{ending}"
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_rows(path, {"instruction": "input"}) == [("Who?", "", "I."), ("When?", "", "Now.")]
    asked = {"instruction": "output", "output": "input"}  # exchanged
    assert read_rows(path, asked) == [("I.", "", "Who?"), ("Now.", "", "When?")]
    assert draft.instructions("chat", path, {"instruction": "input", "output": "output"})["facts"] == {"train_rows": 2}
    for columns, name in (({"instruction": "output"}, "output"), ({"instruction": "input", "input": "input"}, "input")):
        with pytest.raises(ConfigError, match=rf"task\.columns: {name} is named for two columns"):
            read_rows(path, columns)


def test_a_folder_without_rows_and_no_hub(tmp_path, backbone):
    with pytest.raises(DataError, match="holds neither alpaca_data_cleaned"):
        read_rows(tmp_path)
    with pytest.raises(DataError, match=r"yahma/alpaca-cleaned cannot be loaded from the hub .* task.data_dir="):
        alpaca().load(backbone, 0)


def test_real_rows():
    path = ROOT.parent / "shared" / "data" / "alpaca"
    if not path.is_dir():
        pytest.skip("no Alpaca rows beside the project")
    rows = read_rows(path)
    assert len(rows) == 5000 and sum(bool(given) for _, given, _ in rows) == 1943 and sum(not out for *_, out in rows) == 2


# --- 4-bit weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["vera", "lora"])
def test_a_4_bit_llama_trains_its_adapter_in_float32_and_keeps_its_weights(method, compose):
    run = compose(*BASE, f"method={method}", "method.rank=8", "model.tiny.hidden_size=64", "model.tiny.intermediate_size=96")
    backbone, built, task, data = prepare(run)
    model = backbone.model
    packed = {n: p for n, p in model.named_parameters() if p.dtype == torch.uint8}
    assert len(packed) == 14 and all("lm_head" not in name for name in packed)
    groups = built.parameter_groups(backbone)
    trained = dict(groups["adapter"])
    assert trained and all(p.dtype == torch.float32 for p in trained.values()) and not groups["head"]
    plain = sum(p.numel() for n, p in model.named_parameters() if n not in packed)
    entries = 2 * 4 * 64 * 64 + 2 * 3 * 64 * 96
    assert count(groups, model)["total"] == plain + entries
    before = {name: p.detach().clone() for name, p in model.named_parameters() if name not in trained}
    batch = data.collate(data.train[:4])
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    adam = torch.optim.AdamW(trained.values(), lr=0.02)
    losses = []
    for _ in range(12):
        loss = task.loss(model(**inputs).logits, batch)
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
        model.eval()
        with built.merged(backbone), torch.inference_mode():  # an evaluation between steps changes nothing either
            model(**inputs)
        model.train()
    assert losses[-1] < losses[0] - 0.1
    for name, value in before.items():
        assert torch.equal(dict(model.named_parameters())[name], value), name


def test_without_quantisation_the_weights_are_bf16_and_the_fingerprint_differs(cache, backbone):
    assert {p.dtype for p in backbone.model.parameters()} == {torch.bfloat16}
    packed = build(compose([*BASE, *SMALL]).model, "model").load(0, cache)
    assert packed.fingerprint != backbone.fingerprint


def test_gradient_checkpointing_changes_no_number(compose):
    losses = []
    for on in ("false", "true"):
        run = compose(*BASE, "method=vera", "model.quantisation=none", f"model.gradient_checkpointing={on}")
        backbone, built, task, data = prepare(run)
        batch = data.collate(data.train[:2])
        backbone.model.train()
        loss = task.loss(backbone.model(**{k: v for k, v in batch.items() if k != "labels"}).logits, batch)
        loss.backward()
        grads = [p.grad.sum().item() for _, p in built.parameter_groups(backbone)["adapter"]]
        losses.append((run.cell_id, loss.item(), grads))
    assert losses[0] == losses[1]


def test_a_gated_model_and_missing_bitsandbytes_are_one_line(cache, monkeypatch):
    import vera.models.causal as causal
    import vera.models.llama as llama

    def refuse(*_, **__):
        raise OSError("You are trying to access a gated repo.\nMake sure to have access to it at https://x\n401 ...")

    monkeypatch.setattr(causal.AutoTokenizer, "from_pretrained", refuse)
    with pytest.raises(ModelError) as caught:
        build(compose(["model=llama2_7b", "task=alpaca"]).model, "model").load(0, cache)
    text = str(caught.value)
    assert "gated repo" in text and "https://huggingface.co/meta-llama/Llama-2-7b-hf" in text and "hf auth login" in text
    assert "model.path=/path/to/Llama-2-7b-hf" in text and "\n" not in text
    monkeypatch.setattr(llama.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs bitsandbytes \(pip install .*quantise.*\); model.quantisation=none"):
        build(compose(BASE).model, "model").load(0, cache)


# --- what was trained comes back --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [name for name in own_methods() if name != "adalora"])
def test_what_a_method_saves_it_loads(method, compose, tmp_path):
    run = compose("model=roberta_base", "task=rte", f"method={method}")
    backbone, built, task, data = prepare(run)
    with torch.no_grad():
        for index, tensor in enumerate(built.trained(backbone)):
            dict(backbone.model.named_parameters())[tensor].add_(0.01 * (index % 5 + 1))
    batch = data.collate(data.train[:4])
    batch.pop("labels")
    backbone.model.eval()
    built.save(backbone, tmp_path)
    fresh = build(run.model, "model").load(task.outputs, Path(run.cache_dir))
    again = build(run.method, "method")
    again.load(fresh, build(run.model, "model"), tmp_path)
    fresh.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(fresh.model(**batch).logits, backbone.model(**batch).logits)


def test_weights_of_another_rank_or_none_are_refused(compose, tmp_path):
    run = compose(*BASE, "method=lora", "method.rank=4")
    backbone, built, _, _ = prepare(run)
    built.save(backbone, tmp_path)
    other = compose(*BASE, "method=lora", "method.rank=8")
    fresh = build(other.model, "model").load(0, Path(other.cache_dir))
    with pytest.raises(ModelError, match=r"does not fit the model: .*lora_A"):
        build(other.method, "method").load(fresh, build(other.model, "model"), tmp_path)
    with pytest.raises(ModelError, match="cannot be read"):
        build(other.method, "method").load(prepare(run)[0], build(other.model, "model"), tmp_path / "none")


# --- answers ----------------------------------------------------------------------------------------------------------------


def settings(name="mt_bench", *overrides) -> AnswerSettings:
    values = resolve("run", [*BASE, f"answers={name}", "scale=rehearsal", *overrides])["answers"]
    return checked(AnswerSettings, values, "answers")


@pytest.fixture
def trained(compose):
    run = compose(*BASE, "method=vera", "method.rank=16", "model.quantisation=none", "train.save=true")
    execute(run)
    return run


def test_the_chat_template_and_the_end_token(backbone):
    tokenizer = backbone.preprocess
    chat = Chat(first="<{message}>", next="[{message}]", close=True, stop=[])
    end = tokenizer.eos_token
    assert tokenizer.decode(chat.prompt(tokenizer, ("a", "b"), [])) == f"{tokenizer.bos_token}<a>"
    assert tokenizer.decode(chat.prompt(tokenizer, ("a", "b"), ["x"])) == f"{tokenizer.bos_token}<a>x{end}[b]"
    open_ = chat.model_copy(update={"close": False})
    assert tokenizer.decode(open_.prompt(tokenizer, ("a", "b"), ["x"])) == f"{tokenizer.bos_token}<a>x[b]"
    for name in choices("chat"):
        checked(Chat, resolve("run", [f"chat@answers.chat={name}", *BASE, "answers=mt_bench"])["answers"]["chat"])
    with pytest.raises(ConfigError, match=r"must hold \{message\} once"):
        checked(Chat, {"first": "x", "next": "{message}", "close": True, "stop": []}, "answers.chat")


def test_answers_are_kept_question_by_question_and_go_on_after_a_crash(trained, monkeypatch):
    import vera.trained.answers as module

    real, calls = module.answer_batch, []

    def crash(backbone, given, batch):
        calls.append([question.id for question in batch])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(backbone, given, batch)

    one = settings("mt_bench", "answers.batch_size=1")
    monkeypatch.setattr(module, "answer_batch", crash)
    with pytest.raises(KeyboardInterrupt):
        answer(trained, one)
    (path,) = (Path(trained.results_dir) / "answers").glob("*.jsonl")
    assert len(path.read_text().splitlines()) == 1 and not path.with_suffix(".json").exists()
    with path.open("a") as file:
        file.write('{"question_id": 2, "choi')
    record, same, computed = answer(trained, one)
    assert same == path and computed and calls[2:] == [[2], [3]]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["question_id"] for row in rows] == [1, 2, 3] and all(len(row["choices"][0]["turns"]) == 2 for row in rows)
    assert record.run.cell_id == trained.cell_id and record.settings["decoding"]["stop"] == one.chat.stop
    assert record.settings["chat"]["close"] is True and record.cost["tokens"] == sum(sum(row["tokens"]) for row in rows)
    count = len(calls)
    again = answer(trained, one)
    assert again[2] is False and again[0] == record and len(calls) == count


def test_the_cost_of_answers_is_that_of_all_calls(trained, monkeypatch):
    import vera.trained.answers as module

    real, batches = module.answer_batch, []

    def crash(*given):
        batches.append(given)
        if len(batches) == 2:
            raise KeyboardInterrupt
        return real(*given)

    clock, calendar, precisions = itertools.count(0.0, 2.0), iter("abcdefgh"), iter(["fp32", "bf16"])
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock)))  # a batch takes two seconds
    monkeypatch.setattr(module, "now", lambda: next(calendar))
    monkeypatch.setattr(module, "precision_of", lambda *_: next(precisions))
    monkeypatch.setattr(module, "answer_batch", crash)
    one = settings("mt_bench", "answers.batch_size=1")
    with pytest.raises(KeyboardInterrupt):
        answer(trained, one)
    record, path, _ = answer(trained, one)
    assert record.cost["seconds"] == 6.0 and record.provenance["started"] == "a"
    assert (record.cost["device"], record.cost["precision"]) == ("cpu", "bf16, fp32")
    monkeypatch.setattr(module, "precision_of", lambda *_: "fp32")
    first, *rest = path.read_text().splitlines()  # as an older version wrote it
    old = {key: value for key, value in json.loads(first).items() if key not in module.Made.model_fields}
    path.write_text("\n".join([json.dumps(old), *rest[:1], ""]))
    path.with_suffix(".json").unlink()
    mixed, _, computed = answer(trained, one)
    assert computed and mixed.cost == {**record.cost, "seconds": None, "device": None, "precision": None}
    assert mixed.provenance["started"] is None
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps({**json.loads(first), "seconds": "long"}), *rest, ""]))
    path.with_suffix(".json").unlink()
    with pytest.raises(RecordError, match="line 1: not an answer"):
        answer(trained, one)


def test_questions_may_be_numbers_and_words(trained, tmp_path):
    rows = [{"question_id": key, "category": "writing", "turns": ["Name three colours."]} for key in (1, "first", 10)]
    (tmp_path / "question.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = settings("vicuna_bench", "answers.questions.synthetic=false", f"answers.questions.data_dir={tmp_path}")
    record, path, _ = answer(trained, asked)
    assert record.questions.count == 3
    assert [json.loads(line)["question_id"] for line in path.read_text().splitlines()] == [1, "first", 10]


def test_answers_that_were_changed_after_their_record_are_no_runs_own(trained):
    asked = settings()
    record, path, _ = answer(trained, asked)
    questions = load_questions(asked.questions, "")
    assert read_answers(path, questions, 2).record == record
    text = path.read_text()
    path.write_text(text.replace('"turns": ["', '"turns": ["better ', 1))
    for read in (lambda: read_answers(path, questions, 2), lambda: answer(trained, asked)):
        with pytest.raises(RecordError, match=r"was changed after its record was written .* remove both and answer again"):
            read()
    older = record.model_copy(update={"sha256": None})  # from before records held it
    path.with_suffix(".json").write_text(older.to_json())
    assert read_answers(path, questions, 2).record == older


def test_answers_twice_or_to_other_questions_make_no_record(trained):
    asked = settings()
    _, path, _ = answer(trained, asked)
    first = path.read_text().splitlines()[0]
    for extra in (first, json.dumps({**json.loads(first), "question_id": 99999})):
        path.with_suffix(".json").unlink(missing_ok=True)
        whole = path.read_text()
        path.write_text(f"{whole}{extra}\n")
        with pytest.raises(RecordError, match="has answers twice or to other questions"):
            answer(trained, asked)
        path.write_text(whole)
    answer(trained, asked)


def test_answers_that_another_worker_writes_are_come_back_to(trained):
    _, path, _ = answer(trained, settings())
    path.with_suffix(".json").unlink()
    with locked(path.parent, path.stem, ConfigError("taken")), pytest.raises(Claimed, match=r"is writing .*\.jsonl"):
        answer(trained, settings())
    assert answer(trained, settings())[2]


def test_another_setting_or_the_bare_backbone_makes_other_answers(trained):
    first = answer(trained, settings())
    longer = answer(trained, settings("mt_bench", "answers.decoding.max_new_tokens=9"))
    bare = answer(trained, settings("mt_bench", "answers.checkpoint=none"))
    assert len({first[1], longer[1], bare[1]}) == 3 and "--bare--" in bare[1].name and bare[0].run is None
    assert (bare[0].backbone["size"], bare[0].backbone["quantisation"]) == ("tiny", "none") and first[0].backbone is None
    assert bare[0].provenance["model_fingerprint"] == first[0].provenance["model_fingerprint"]
    rounded = trained.model_copy(update={"train": trained.train.model_copy(update={"precision": "bf16"})})
    _, path, computed = answer(rounded, settings("mt_bench", "answers.checkpoint=none"))
    assert computed and path != bare[1]
    with pytest.raises(ConfigError, match=r"that end an answer are the chat's: answers\.chat\.stop"):
        settings("mt_bench", "+answers.decoding.stop=[e]")
    faster = answer(trained, settings("mt_bench", "answers.batch_size=2"))
    assert faster[1] == first[1] and faster[2] is False


def test_a_run_that_answers_in_another_prompt_than_its_own_is_warned_of(compose, trained, warned):
    own = "task.prompt='Q: {instruction} A:'"
    run = compose(*BASE, "method=vera", "method.rank=16", "model.quantisation=none", "train.save=true", own)
    execute(run)
    answer(trained, settings())
    answer(run, settings("mt_bench", "answers.checkpoint=none"))
    for chat in (["chat@answers.chat=vicuna"], ["answers.chat.first='Q: {message} A:'"]):
        answer(run, settings("mt_bench", *chat))
    assert not [line for line in warned() if "task.prompt" in line]
    answer(run, settings())
    (line,) = [line for line in warned() if "task.prompt" in line]
    assert f"{run.run_name} was trained in a prompt of its own" in line and "chat@answers.chat=" in line


def test_bare_answers_are_those_of_the_weights_in_the_folder(compose, cache, tmp_path):
    """Two folders, one name: neither answers for the other."""
    asked, found = settings("mt_bench", "answers.checkpoint=none", "answers.decoding.max_new_tokens=2"), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        backbone = build(compose(*BASE, "method=lora", "model.quantisation=none").model, "model").load(0, cache)
        for parameter in backbone.model.parameters():
            torch.nn.init.normal_(parameter)
        folder = tmp_path / str(seed)
        backbone.model.save_pretrained(folder)
        backbone.preprocess.save_pretrained(folder)
        where = ["model=auto_causal", "model.name=mine", f"model.path={folder}", "model.size=full"]
        found.append(answer(compose("task=alpaca", "method=lora", *where), asked))
    (a, first, computed), (b, second, again) = found
    assert computed and again and first != second
    assert a.provenance["model_fingerprint"] != b.provenance["model_fingerprint"]
    assert answer(compose("task=alpaca", "method=lora", *where), asked)[1:] == (second, False)


def test_a_prompt_longer_than_the_model_loses_its_left_but_the_begin_token(backbone, monkeypatch):
    import vera.trained.answers as module

    seen = []

    def spy(backbone, prompts, *rest):
        seen.extend(prompts)
        return generate_ids(backbone, prompts, *rest)

    monkeypatch.setattr(module, "generate_ids", spy)
    backbone.model.config.max_position_embeddings = 200  # the first prompts have about 160 tokens
    short = settings("mt_bench", "answers.decoding.max_new_tokens=20")
    lines = module.answer_batch(backbone, short, load_questions(short.questions, "").questions)
    tokenizer = backbone.preprocess
    assert all(line["shortened"][0] == 0 and line["shortened"][1] > 0 for line in lines)
    assert len(seen) == 6 and all(len(prompt) == 180 and prompt[0] == tokenizer.bos_token_id for prompt in seen[3:])
    assert all(tokenizer.decode(prompt).endswith("### Response:") for prompt in seen)
    with pytest.raises(ConfigError, match=r"max_new_tokens=200 leaves no prompt; this model reads 200"):
        long = settings("mt_bench", "answers.decoding.max_new_tokens=200")
        module.answer_batch(backbone, long, load_questions(long.questions, "").questions)


def test_draws_follow_the_distribution_and_their_own_streams():
    """Frequencies of 4,000 draws against softmax(logits / T) among the two likeliest of four tokens."""
    logits = torch.tensor([[1.0, 0.2, -0.5, 0.0]])
    streams = [torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)]
    draws = Draws([0.5, 0.0], streams, 2)
    counts = torch.zeros(4)
    for _ in range(4000):
        drawn = draws(None, logits.expand(2, -1)).argmax(-1)
        counts[drawn[0]] += 1
        assert drawn[1] == 0  # temperature 0
    odds = torch.tensor([2.0, 0.4]).exp()
    torch.testing.assert_close(counts / 4000, torch.tensor([*(odds / odds.sum()).tolist(), 0.0, 0.0]), atol=0.02, rtol=0)
    alone = Draws([0.5], [torch.Generator().manual_seed(7)], 0)
    beside = Draws([0.9, 0.5], [torch.Generator().manual_seed(1), torch.Generator().manual_seed(7)], 0)
    for _ in range(20):
        assert torch.equal(alone(None, logits)[0], beside(None, logits.expand(2, -1))[1])


def test_the_temperature_is_the_categorys_and_answers_do_not_depend_on_batches(trained):
    of = settings("mt_bench").decoding
    assert [of.of(c) for c in ("writing", "roleplay", "math", "stem", "humanities", "generic")] == [0.7, 0.7, 0, 0.1, 0.1, 0.7]
    assert settings("vicuna_bench").decoding.of("math") == 0.7
    warm = answer(trained, settings("mt_bench", "answers.decoding.temperature=1.5"))
    rows = [json.loads(line) for line in warm[1].read_text().splitlines()]
    assert [row["temperature"] for row in rows] == [1.5] * 3
    assert warm[0].settings["decoding"]["seed"] == 0 and warm[0].settings["decoding"]["temperature"] == 1.5
    warm[1].unlink(), warm[1].with_suffix(".json").unlink()
    again = answer(trained, settings("mt_bench", "answers.decoding.temperature=1.5", "answers.batch_size=1"))
    assert [json.loads(line)["choices"] for line in again[1].read_text().splitlines()] == [row["choices"] for row in rows]
    other = answer(trained, settings("mt_bench", "answers.decoding.temperature=1.5", "answers.decoding.seed=1"))
    assert [json.loads(line)["choices"] for line in other[1].read_text().splitlines()] != [row["choices"] for row in rows]
    greedy = answer(trained, settings("mt_bench", "answers.decoding.temperature=0"))
    assert len({warm[1], other[1], greedy[1], answer(trained, settings())[1]}) == 4


def test_temperatures_that_cannot_be():
    with pytest.raises(ConfigError, match="several beams are searched, not drawn from"):
        settings("mt_bench", "answers.decoding.beams=2")
    with pytest.raises(ConfigError, match="search=hu2022 draws nothing: set temperature to 0, or search to transformers"):
        settings("mt_bench", "+answers.decoding.search=hu2022")
    with pytest.raises(ConfigError, match=r"answers\.decoding\.temperature"):
        settings("mt_bench", "answers.decoding.temperature=-1")
    only = settings("mt_bench", "~answers.decoding.temperature.otherwise").decoding
    with pytest.raises(ConfigError, match="has none for category 'generic'"):
        only.of("generic")


def test_weights_of_another_run_in_a_shared_work_dir_never_answer(compose, tmp_path, cache):
    """Two data files, two results_dirs, one work_dir: the same run name, other weights."""
    rows = [write_rows(tmp_path / f"{name}.json", [*numbered(12 + extra)][extra:]) for name, extra in (("a", 0), ("b", 9))]

    def run(name, path):
        given = [f"task.data_dir={path}", "task.synthetic=false", "task.held_out=4", "train.save=true", "train.lr=0.1"]
        return compose(*BASE, "method=lora", "model.quantisation=none", *given, f"results_dir={tmp_path / name}")

    first, second = run("a", rows[0]), run("b", rows[1])
    record = execute(first)
    own = kept(record, first.work_dir, "last")
    assert set(record.weights) == {"best", "last"} and own[1] == record.weights["last"]
    assert '"weights"' in record.to_json() and '"weights"' not in record.model_copy(update={"weights": {}}).to_json()
    asked = settings("mt_bench", "answers.decoding.max_new_tokens=2")
    assert answer(first, asked)[0].adapter_sha256 == own[1]
    other = execute(second)
    assert other.name == record.name and other.weights != record.weights
    for load in (
        lambda: answer(first, asked),
        lambda: load_trained(first),
        lambda: kept(record, first.work_dir, "best"),
        lambda: export.find(Path(first.work_dir) / record.name, None, tmp_path / "a", None),
    ):
        with pytest.raises(ModelError, match="holds the weights of another run of this name"):
            load()
    assert answer(second, asked)[0].adapter_sha256 == other.weights["last"]


def test_a_run_that_was_not_trained_or_not_kept_cannot_answer(compose, trained):
    with pytest.raises(RecordError, match=r"has no record of llama_7b--alpaca--vera.*train it first"):
        answer(compose(*BASE, "method=vera", "seed=5"), settings())
    with pytest.raises(ConfigError, match="model=digits_vit does not write text"):
        answer(compose("model=digits_vit", "task=digits", "method=head"), settings())
    unkept = compose(*BASE, "method=lora", "method.rank=2", "model.quantisation=none", "train.save=false")
    execute(unkept)
    with pytest.raises(ModelError, match=r"kept no weights of its last epoch: train\.save=false, so those in"):
        answer(unkept, settings())


def test_from_training_to_a_judged_table(compose, tmp_path):
    """The chain of `make vicuna`: two runs, their answers, the judge, Table 13."""
    paths = []
    for method in ("lora", "vera"):
        run = compose("model=llama_7b", "task=alpaca_10k", f"method={method}", "train.save=true")
        execute(run)
        paths.append(answer(run, settings("vicuna_bench"))[1])
    results = Path(run.results_dir)
    values = resolve("judge", ["questions=vicuna_bench", "questions.synthetic=true"])
    source = checked(QuestionSource, values["questions"])
    server = Judge(lambda n, body: "Scores: [[6, 8]]")
    try:
        asked = checked(JudgeSettings, {**values["judge"], "base_url": server.url, "orders": "first"})
        record, path = judge(paths, source, asked, "any", results, tmp_path)
    finally:
        server.close()
    assert record.answers[1]["run"]["method"] == "vera" and record.answers[1]["checkpoint"] == "last"
    cells, scored = Store(results).by_cell(), partial(join, overrides=["scale=rehearsal"])
    assert scored(cells, results) is cells  # neither questions nor wording are the official ones
    raw = json.loads(path.read_text())
    raw["questions"]["official"], raw["judge"]["prompts"] = True, "official"
    Judged.model_validate(raw)
    path.write_text(json.dumps(raw))
    joined = scored(cells, results)
    tables = {table.name: table for table in compare("table13", Asked(joined, ["scale=rehearsal"]))}
    ours = [row[-1] for row in tables["table13"].rows if row[2] == "ours"]
    assert ours == ["6.00 (n=1)", "8.00 (n=1)"]
    assert [row[-1] for row in compare("table13", Asked(cells, ["scale=rehearsal"]))[0].rows if row[2] == "ours"] == ["–", "–"]
    assert scored(cells, results, judge="another") is cells
    shown = judged_table(results)
    assert [row[shown.columns.index("Mean")] for row in shown.rows] == ["6.00", "8.00"]
    assert any(
        note.startswith("Judged by gpt-4 (answering as judge-0001); verdicts read by") for note in tables["table13"].notes
    )
    raw["judge"]["model"] = "gpt-4-0613"  # a release
    path.write_text(json.dumps(raw))
    assert scored(cells, results) is cells and scored(cells, results, "x, gpt-4-0613") is not cells
    raw["judge"]["counts_as"], raw["scores"][0]["n"] = "gpt-4", 2
    path.write_text(json.dumps(raw))
    (table, *_) = compare("table13", Asked(scored(cells, results), ["scale=rehearsal"]))
    assert [row[-1] for row in table.rows if row[2] == "ours"] == ["6.00 (n=1)", "8.00 (n=1)"]
    assert any("gpt-4-0613" in note and "declared to stand for gpt-4" in note for note in table.notes)
    assert any("2 of 3 verdicts could be read" in note for note in table.notes)
    assert judged_table(results).rows[0][4:9] == ["gpt-4-0613", "gpt-4", "official", "pairwise", "own"]
    bare = {**raw, "identity": "0" * 64, "questions": {**raw["questions"], "name": "mt_bench"}}
    bare["answers"] = [{"name": "x", "sha256": "y", "model": "llama_13b", "checkpoint": None, "run": None}]
    bare["scores"] = raw["scores"][:1]
    (results / "judged" / "bare.json").write_text(json.dumps(bare))
    lines = compare("table4", Asked(scored(cells, results)))[0].rows
    assert ["Llama 13B", "No tuning", "ours", "–", "6.00 (n=1)"] in lines
    assert ["Llama 13B", "No tuning", "ours"] not in [row[:3] for row in compare("table4", Asked(cells))[0].rows]
    (results / "judged" / "copy.json").write_text(path.read_text())
    with pytest.raises(RecordError, match="both grade"):
        scored(cells, results)


# --- scripts ----------------------------------------------------------------------------------------------------------------


def test_the_command_line_answers_a_sweep(train, script, cache, tmp_path, compose):
    sweep = ["sweep=vicuna", "method=vera", "model.quantisation=none"]
    done = train(*sweep)
    assert done.returncode == 0, done.stderr
    common = ["scale=rehearsal", "device=cpu", "progress=false", f"cache_dir={cache}", f"results_dir={tmp_path / 'results'}"]
    answered = script("answer.py", *sweep, *common, cwd=tmp_path)
    assert answered.returncode == 0 and "3 questions" in answered.stderr, answered.stderr
    (path,) = (tmp_path / "results" / "answers").glob("*.json")
    assert str(tmp_path) not in path.read_text()
    with pytest.raises(ConfigError, match="which questions\\? Give answers= one of mt_bench, vicuna_bench"):
        answer_command.answer(OmegaConf.create({"answers": {"questions": {"synthetic": True}}}), compose(*BASE))


def test_table_12_has_dashes_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command("table12", []) == 0
    shown = capsys.readouterr().out
    assert "python scripts/table12.py" in shown and shown.count("–") == 6 and "568" in shown


def test_table_12_measures_what_it_says(monkeypatch, tmp_path):
    options = argparse.Namespace(tiny=True, steps=2, warmup=0, length=16, rounds=2)
    turns, whole = [], table12.measure
    monkeypatch.setattr(table12, "measure", lambda *given: turns.append(whole(*given)) or turns[-1])
    bench = table12.compare(options)
    assert [one["method"] for one in turns] == ["lora", "vera", "vera", "lora"]
    lora, vera = turns[:2]
    assert len(vera["seconds"]) == 2 and vera["peak_memory_bytes"] is None
    assert vera["parameters"] == 2 * (5 * 16 + 2 * 32 + 7 * 64)
    assert lora["parameters"] == 2 * 64 * (4 * 32 + 3 * 48) and torch.get_default_dtype() == torch.float32
    assert [case["case"] for case in bench["cases"]] == ["table12_time"] and bench["machine"]["kind"] == "cpu"
    lora, vera = {**lora, "seconds": [2.0], "peak_memory_bytes": 10e9}, {**vera, "seconds": [3.0], "peak_memory_bytes": 8e9}
    monkeypatch.setattr(table12, "measure", lambda method, *_: {"lora": lora, "vera": vera}[method])
    bench = table12.compare(options)
    assert [case["ratio"]["median"] for case in bench["cases"]] == [1.5, 0.8]
    assert table12.table(bench).rows[-1] == ["ours", "VeRA / LoRA", "1.500", "0.800"]
    monkeypatch.setattr("experiments.artefacts.bench.MEASURED", tmp_path)
    for rounds, of_time in ((1, "undecided"), (5, "undecided"), (6, "not supported")):
        options.rounds = rounds
        (tmp_path / "table12.json").write_text(json.dumps(table12.compare(options)))
        checks = {"time": table12_claims._time, "memory": table12_claims._memory}
        found = {claim.id: checks[claim.id](claim, Asked({})) for claim in stated() if claim.id in checks}
        assert {name: [line.reading for line in lines] for name, lines in found.items()} == {
            "time": [of_time],
            "memory": ["supported"],
        }
