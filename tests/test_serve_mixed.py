"""One batch, an adapter a request: the same answers as one at a time, and none that comes from nothing trained."""

import argparse
import json
import shutil

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from vera.commands import run as command
from vera.commands import serve_mixed
from vera.nn import VeraConfig, attach, save_adapter


def test_serving_a_mixed_batch_equals_one_adapter_at_a_time(script, tmp_path):
    done = script("serve_mixed.py")
    assert done.returncode == 0 and "gives the same" in done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["adapter"] for answer in answers].count(None) == 2 and len(answers) == 8
    (tmp_path / "requests").write_text('{"adapter": "a"}\n')
    done = script("serve_mixed.py", "--model", tmp_path, "--adapters", tmp_path, "--requests", tmp_path / "requests")
    lines = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert done.returncode == 1 and lines and "line 1" in lines[0] and "Traceback" not in done.stderr


def test_one_output_is_a_score_and_no_probability(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["serve_mixed.py", "--labels", "1"])
    assert serve_mixed.main() == 0
    found = capsys.readouterr()
    scores = [json.loads(line)["scores"] for line in found.out.splitlines()]
    assert len(scores) == 8 and len({score for (score,) in scores}) >= 4 and "gives the same" in found.err


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The demonstration's classifier and adapters, and a backbone of it without its head."""
    folder = tmp_path_factory.mktemp("served")
    options = argparse.Namespace(labels=2)
    serve_mixed._demonstration(options, folder)
    whole = AutoModelForSequenceClassification.from_pretrained(options.model)
    whole.base_model.save_pretrained(folder / "bare")
    AutoTokenizer.from_pretrained(options.model).save_pretrained(folder / "bare")
    return options.model, folder / "bare", options.adapters


@pytest.fixture
def served(made, tmp_path, capsys):
    """served(rows, *options) -> status, answers, what was said."""

    def serve(rows, *options, model=made[1], adapters=made[2]):
        (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        words = ["--model", model, "--adapters", adapters, "--requests", tmp_path / "asked.jsonl", *options]
        status = command("serve_mixed", [str(word) for word in words])
        printed = capsys.readouterr()
        return status, [json.loads(line) for line in printed.out.splitlines()], printed.err

    return serve


def test_no_answer_comes_unmarked_from_a_head_that_was_drawn(made, served, tmp_path):
    own, bare = {"adapter": "adapter0", "text": "x"}, {"adapter": None, "text": "x"}
    for model, marks in ((made[0], [False, False]), (made[1], [False, True])):
        status, answers, said = served([own, bare], model=model)
        assert status == 0 and [answer.get("random_head", False) for answer in answers] == marks
        assert ("answers without an adapter come from a random head" in said) == any(marks)
    assert "warning" not in served([own])[2]
    model = AutoModelForSequenceClassification.from_pretrained(made[0])
    save_adapter(attach(model, VeraConfig(rank=4, targets=("query",), projection_seed=0)), tmp_path / "headless" / "a")
    status, answers, said = served([{"adapter": "a", "text": "x"}], adapters=tmp_path / "headless")
    assert (status, answers) == (1, []) and "the adapters bring none, so that answers would be random" in said


def test_the_folder_of_one_adapter_is_verified_too(made, served, tmp_path):
    status, answers, said = served([{"adapter": "default", "text": "x"}], "--verify", adapters=made[2] / "adapter1")
    assert status == 0 and len(answers) == 1 and "gives the same" in said
    both = tmp_path / "both"  # PEFT's layout: one in the folder itself, others below
    shutil.copytree(made[2] / "adapter1", both)
    shutil.copytree(made[2] / "adapter2", both / "other")
    rows = [{"adapter": name, "text": "x"} for name in ("default", "other")]
    status, (one, other), said = served(rows, "--verify", adapters=both)
    assert status == 0 and one["probabilities"] != other["probabilities"] and "gives the same" in said


def test_pickled_weights_are_told_to_be_never_read(made, served, tmp_path):
    model, adapters = tmp_path / "model", tmp_path / "adapters"
    shutil.copytree(made[0], model)
    shutil.copytree(made[2], adapters)
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    status, _, said = served([{"adapter": "adapter0", "text": "a"}], model=model)
    assert status == 1 and "pytorch_model.bin are never read); convert them once with save_pretrained()" in said
    (adapters / "adapter0" / "adapter_model.safetensors").rename(adapters / "adapter0" / "adapter_model.bin")
    status, _, said = served([{"adapter": "adapter1", "text": "a"}], model=made[0], adapters=adapters)
    (line,) = [line for line in said.splitlines() if "adapter0 is left out" in line]
    assert status == 0 and "adapter_model.bin is pickled" in line and "save_pretrained()" in line


@pytest.mark.parametrize("tied", [True, False])
def test_no_text_comes_from_a_language_model_without_its_head(tied, made, served, tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 300}
    model = LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=tied))
    for name, saved in (("whole", model), ("body", model.model)):
        saved.save_pretrained(tmp_path / name)
        AutoTokenizer.from_pretrained(made[0]).save_pretrained(tmp_path / name)
    save_adapter(attach(model, VeraConfig(rank=4, targets=("q_proj",), projection_seed=0)), tmp_path / "adapters" / "a")
    for name in ("whole", "body"):
        places = {"model": tmp_path / name, "adapters": tmp_path / "adapters"}
        status, answers, said = served([{"adapter": None, "text": "x"}], "--generate", "2", **places)
        refused = name == "body" and not tied
        assert (status, len(answers), "has no lm_head.weight" in said) == ((1, 0, True) if refused else (0, 1, False)), said


@pytest.mark.parametrize(
    "words", ["--memory-mib nan", "--memory-mib inf", "--memory-mib -1", "--labels 0", "--generate -3", "--device gpu"]
)
def test_sizes_that_are_none_are_refused(words, served, capsys):
    with pytest.raises(SystemExit):
        served([{"adapter": "adapter0", "text": "x"}], *words.split())
    assert f"argument {words.split()[0]}: " in capsys.readouterr().err


def test_a_key_that_a_request_does_not_have_is_named(served):
    status, _, said = served([{"adapter": "adapter0", "text": "x", "pare": "y"}])
    assert status == 1 and "line 1: no such key: pare; there are adapter, text and pair" in said


@pytest.mark.parametrize(
    "wrong", [{"pair": 0}, {"pair": []}, {"pair": False}, {"adapter": False}, {"adapter": 0}, {"text": None}]
)
def test_what_is_no_text_is_refused_whatever_it_counts_as(wrong, served):
    status, answers, said = served([{"adapter": "adapter0", "text": "x", **wrong}])
    assert (status, answers) == (1, []) and "line 1 is not {" in said and "Traceback" not in said


def test_adapters_in_half_precision_are_verified_as_the_bank_keeps_them(made, served, tmp_path):
    adapters = shutil.copytree(made[2], tmp_path / "coarse")
    for file in adapters.glob("*/adapter_model.safetensors"):
        with safe_open(file, "pt") as opened:
            told = opened.metadata()
        save_file({name: 4 * tensor + 0.003 for name, tensor in load_file(file).items()}, file, told)  # which it rounds much
    rows = [{"adapter": f"adapter{index % 4}", "text": f"request {index}"} for index in range(16)]
    status, answers, said = served(rows, "--bf16", "--verify", adapters=adapters)
    assert (status, len(answers)) == (0, 16) and "gives the same" in said, said


def test_a_model_whose_weights_are_cut_is_refused_by_name(made, served, tmp_path):
    folder = shutil.copytree(made[1], tmp_path / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    status, answers, said = served([{"adapter": "adapter0", "text": "a"}], model=folder)
    assert status == 1 and not answers and f"error: --model {folder} cannot be loaded" in said
