"""Language models: GPT-2's attention in three matrices, its counts, decoding in batches."""

import copy
import math
import shutil
from itertools import pairwise

import pytest
import torch
import transformers as t
from transformers import AutoModelForCausalLM, GenerationConfig, GPT2Config, GPT2LMHeadModel

from vera.config import build, compose
from vera.errors import ConfigError, ModelError
from vera.models.base import Backbone
from vera.models.causal import causal
from vera.models.decoding import Decoding, check_search, generate, generate_ids
from vera.models.gpt2 import split_attention
from vera.models.tiny import END, bytes_of, causal_tokenizer
from vera.nn import VeraConfig, attach

SHAPES = {
    "gpt2_medium": {"n_embd": 1024, "n_layer": 24, "n_head": 16},
    "gpt2_large": {"n_embd": 1280, "n_layer": 36, "n_head": 20},
}


def loader(*overrides):
    return build(compose(["model=gpt2_medium", "task=e2e", "model.size=tiny", *overrides]).model, "model")


@pytest.fixture
def backbone(cache):
    loaded = loader().load(0, cache)
    loaded.model.eval()
    with torch.no_grad():  # far from a uniform model, so that outputs do not hang on rounding
        for parameter in loaded.model.parameters():
            parameter.mul_(8 if parameter.dim() > 1 else 1)
    return loaded


def test_the_split_attention_computes_what_the_fused_one_did(cache):
    plain = AutoModelForCausalLM.from_pretrained(loader().source(cache)).eval()
    split = loader().load(0, cache).model.eval()
    ids = torch.randint(0, 257, (3, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(split(ids).logits, plain(ids).logits, rtol=1e-5, atol=1e-6)
    names = [name for name, _ in split.named_parameters()]
    assert sum("c_attn.query.weight" in name for name in names) == 2
    assert sum(p.numel() for p in split.parameters()) == sum(p.numel() for p in plain.parameters())


def test_a_checkpoint_as_the_hub_keeps_it(cache, tmp_path):
    """Without the language model's prefix, and without the output layer that is tied to the embeddings."""
    tiny = loader()
    AutoModelForCausalLM.from_pretrained(tiny.source(cache)).transformer.save_pretrained(tmp_path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(f"{tiny.source(cache)}/{file}", tmp_path)
    found = loader("model.size=full", f"model.path={tmp_path}", "~model.full").load(0, cache)
    assert found.fingerprint == tiny.load(0, cache).fingerprint
    assert found.model.lm_head.weight is found.model.transformer.wte.weight


@pytest.mark.parametrize(
    ("name", "vera", "total"), [("gpt2_medium", 98_304, 354_823_168), ("gpt2_large", 165_888, 774_030_080)]
)
def test_counts_of_table_3_come_out_of_the_adapted_model(name, vera, total):
    with torch.device("meta"):
        model = split_attention(GPT2LMHeadModel(GPT2Config(**SHAPES[name])))
    assert sum(p.numel() for p in model.parameters()) == total
    attach(model, VeraConfig(rank=1024, targets=("query", "value")))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == vera


def test_a_language_model_has_no_head_and_no_dropout_of_its_own(cache):
    backbone = loader().load(0, cache)
    assert backbone.head == () and backbone.preprocess.padding_side == "left"
    assert {m.p for m in backbone.model.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}
    assert loader("model.dropout=0.1").load(0, cache).model.transformer.drop.p == 0.1


def prompts(count):
    draws = torch.Generator().manual_seed(1)
    lengths = torch.randint(3, 24, (count,), generator=draws).tolist()
    return [torch.randint(1, 257, (length,), generator=draws).tolist() for length in lengths]


def test_batched_beam_search_equals_one_prompt_at_a_time(backbone):
    """Left padding, the cache and the order of a batch change nothing: transformers' own call, prompt by prompt."""
    decoding = Decoding(beams=10, length_penalty=0.8, no_repeat_ngram=0, max_new_tokens=12)
    given = prompts(60)
    tokenizer = backbone.preprocess
    expected = []
    for prompt in given:
        ids = torch.tensor([prompt])
        found = backbone.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            num_beams=10,
            length_penalty=0.8,
            max_new_tokens=12,
            do_sample=False,
            early_stopping=False,
            pad_token_id=tokenizer.pad_token_id,
        )
        ids = found[0, len(prompt) :].tolist()
        expected.append(ids[: ids.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in ids else ids)
    assert generate_ids(backbone, given, decoding, 32) == expected
    assert len(set(map(tuple, expected))) > 30


def test_ngram_blocking_spares_the_prompt(backbone):
    """A name of the prompt may be copied; what was written may not be written again."""
    greedy = {"beams": 1, "length_penalty": 1.0, "max_new_tokens": 24}
    free = generate_ids(backbone, prompts(8), Decoding(no_repeat_ngram=0, **greedy), 8)
    looping = [prompt + ids for prompt, ids in zip(prompts(8), free, strict=True)]
    copied = 0
    for prompt, ids in zip(looping, generate_ids(backbone, looping, Decoding(no_repeat_ngram=2, **greedy), 8), strict=True):
        pairs = list(pairwise(ids))
        assert len(pairs) == len(set(pairs))
        copied += bool(set(pairs) & set(pairwise(prompt)))
    assert copied


@pytest.mark.parametrize("beams", [1, 3])
def test_a_checkpoints_own_generation_config_changes_no_text(beams, backbone):
    decoding = Decoding(beams=beams, length_penalty=1.0, no_repeat_ngram=0, max_new_tokens=8)
    given = prompts(4)
    plain = generate_ids(backbone, given, decoding, 2)
    usual = {token for ids in plain for token in ids}
    settings = {"repetition_penalty": 1.8, "no_repeat_ngram_size": 1, "min_new_tokens": 8, "temperature": 0.1}
    settings |= {"suppress_tokens": sorted(usual)[:3], "bad_words_ids": [[max(usual)]], "forced_eos_token_id": 7}
    settings |= {
        "max_time": 1e-9,
        "exponential_decay_length_penalty": (1, 9.0),
    }
    own = backbone.model.generation_config = GenerationConfig(**settings)
    assert generate_ids(backbone, given, decoding, 2) == plain
    assert backbone.model.generation_config is own  # which an export writes


def test_an_output_ends_at_a_stop_text(backbone):
    decoding = {"beams": 1, "length_penalty": 1.0, "no_repeat_ngram": 0, "max_new_tokens": 16}
    torch.backends.cuda.enable_cudnn_sdp(True)
    (whole,) = generate(backbone, prompts(1), Decoding(**decoding), 1)
    assert not torch.backends.cuda.cudnn_sdp_enabled()  # which would plan for every length
    mark = whole[3:5]
    (cut,) = generate(backbone, prompts(1), Decoding(stop=[mark], **decoding), 1)
    assert cut == whole[: whole.index(mark)] and cut != whole


@pytest.mark.parametrize("search", ["transformers", "hu2022"])
def test_a_stop_text_that_a_tokenizer_reads_as_something_else_ends_nothing(search, backbone, monkeypatch):
    """One that makes a space of a line break, as SentencePiece's normaliser does."""
    decoding = {"beams": 1, "length_penalty": 1.0, "no_repeat_ngram": 0, "max_new_tokens": 16, "search": search}
    (whole,) = generate(backbone, prompts(1), Decoding(**decoding), 1)
    encode, usual = backbone.preprocess.encode, next(letter for letter in whole if letter.isascii() and letter.isprintable())
    assert len(encode(usual)) == 1 and "\n" not in whole
    monkeypatch.setattr(backbone.preprocess, "encode", lambda text, **more: encode(text.replace("\n", usual), **more))
    assert generate(backbone, prompts(1), Decoding(stop=["\n"], **decoding), 1) == [whole]
    (cut,) = generate(backbone, prompts(1), Decoding(stop=[usual], **decoding), 1)
    assert cut == whole[: whole.index(usual)]


def test_a_prompt_that_leaves_no_room_is_refused(backbone):
    decoding = Decoding(beams=1, length_penalty=1.0, no_repeat_ngram=0, max_new_tokens=64)
    with pytest.raises(ConfigError, match="are 1064 tokens; this model reads 1024"):
        generate(backbone, [[5] * 1000], decoding, 1)


def test_decoding_leaves_the_model_as_it_was(backbone):
    before = copy.deepcopy(backbone.model.state_dict())
    generate(backbone, prompts(2), Decoding(beams=2, length_penalty=1.0, no_repeat_ngram=4, max_new_tokens=4), 2)
    assert all(torch.equal(value, before[name]) for name, value in backbone.model.state_dict().items())


def by_hand(model, prompt, ends, beams, penalty, ngram, steps):
    """Hu et al.'s beam search over plain lists: the whole text is read again at every step, and nothing is left early."""
    living, finished = [(0.0, [])], []
    for step in range(1, steps + 1):
        candidates = []
        for total, ids in living:
            with torch.no_grad():
                logits = model(torch.tensor([prompt + ids])).logits[0, -1].double()
            grams = [tuple(ids[i : i + ngram]) for i in range(len(ids) - ngram + 1)]
            for token in range(len(logits)):
                if ngram and (*ids[len(ids) - ngram + 1 :], token) in grams:
                    logits[token] = -float("inf")
            share = logits.exp() / logits.exp().sum()
            candidates += [(total + math.log(p), [*ids, token]) for token, p in enumerate(share.tolist()) if p]
        kept = sorted(candidates, reverse=True)[:beams]
        living = [(total, ids) for total, ids in kept if ids[-1] not in ends]
        finished += [(total / step**penalty, ids) for total, ids in kept if ids[-1] in ends]
    finished += [(total / steps**penalty, ids) for total, ids in living]
    ids = max(finished)[1]
    return ids[:-1] if ids[-1] in ends else ids


@pytest.mark.parametrize(("beams", "penalty", "ngram"), [(1, 0.8, 2), (3, 0.8, 0), (4, 0.8, 2), (4, 1.4, 1), (4, -0.5, 2)])
def test_hu_et_als_search_equals_its_rules_by_hand(beams, penalty, ngram, backbone):
    stop = ["e", "t", "a", "o", "n", "i", "s", "r", "1", "2", "3"]
    ends = [backbone.preprocess.eos_token_id, *(backbone.preprocess.encode(text)[0] for text in stop)]
    given = prompts(7)
    settings = {"beams": beams, "length_penalty": penalty, "no_repeat_ngram": ngram, "max_new_tokens": 7, "stop": stop}
    wanted = [by_hand(backbone.model, prompt, ends, beams, penalty, ngram, 7) for prompt in given]
    for batch in (1, 4):
        assert generate_ids(backbone, given, Decoding(search="hu2022", **settings), batch) == wanted
    assert penalty > 1 or len({len(ids) for ids in wanted}) > 1  # some end, some do not


def test_the_two_searches_differ_where_beams_end(backbone):
    settings = {"beams": 3, "length_penalty": 0.8, "no_repeat_ngram": 2, "max_new_tokens": 8, "stop": ["e", "t", "a", "o", "1"]}
    one, other = (generate_ids(backbone, prompts(24), Decoding(search=s, **settings), 24) for s in ("transformers", "hu2022"))
    assert one != other


def small(config, scale=4, **sizes):
    """A random model, far from a uniform one, with the tokenizer of bytes."""
    torch.manual_seed(0)
    ends = {"vocab_size": 257, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    model = causal(AutoModelForCausalLM.from_config(config(**ends, **sizes)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale if parameter.dim() > 1 else 1)
    return Backbone(model, causal_tokenizer(bytes_of([END])), (), "", None, "")


def decode(**changes):
    return Decoding(**{"beams": 10, "length_penalty": 0.8, "no_repeat_ngram": 4, "max_new_tokens": 16, **changes})


RWKV = {"context_length": 64, "hidden_size": 16, "attention_hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32}
MAMBA = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
GPT1 = {"n_embd": 16, "n_layer": 2, "n_head": 2}


@pytest.mark.parametrize(
    ("config", "sizes", "changes", "wanted"),
    [
        (t.MambaConfig, MAMBA, {"search": "hu2022"}, r"batch_repeat_interleave.*; take d\.search=transformers$"),
        (t.OpenAIGPTConfig, GPT1, {"search": "hu2022"}, r"d\.search=hu2022 with d\.beams=10: .*; take d\.search=transformers$"),
        (t.RwkvConfig, RWKV, {}, r"d\.beams=10: .* beam search with a cache.*; take another$"),
        (t.RwkvConfig, RWKV, {"beams": 1}, r"^RwkvForCausalLM cannot .*: it reads the padding, .*; take another$"),
        (t.RwkvConfig, RWKV, {"beams": 1, "search": "hu2022"}, "it reads the padding"),
    ],
)
def test_a_search_that_a_model_cannot_do_is_refused_by_a_trial(config, sizes, changes, wanted):
    with pytest.raises(ModelError, match=wanted):
        check_search(small(config, **sizes), [5, 6, 7], decode(**changes), "d", "another")


def test_what_is_asked_alone_may_read_its_padding_but_not_lose_its_prompt():
    rwkv = small(t.RwkvConfig, **RWKV)
    check_search(rwkv, [5, 6, 7, 8], decode(beams=1), "d", "another", 1)
    with pytest.raises(ModelError, match=r"it loses what it has read; take d\.search=transformers$"):
        check_search(rwkv, [5, 6, 7, 8], decode(beams=1, search="hu2022"), "d", "another", 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1, 4])
@pytest.mark.parametrize(
    ("config", "sizes", "searches"),
    [
        (t.MambaConfig, MAMBA, ["transformers"]),
        (t.OpenAIGPTConfig, GPT1, ["transformers"]),
        (t.GPT2Config, GPT1, ["transformers", "hu2022"]),
        (t.BloomConfig, {"hidden_size": 16, "n_layer": 2, "n_head": 2}, ["transformers", "hu2022"]),
    ],
)
def test_the_trial_of_a_search_passes_what_writes_and_leaves_it_as_it_was(config, sizes, searches, scale, dtype):
    backbone = small(config, scale, **sizes)
    backbone.model.to(dtype).train()
    before, own = copy.deepcopy(backbone.model.state_dict()), backbone.model.generation_config
    torch.manual_seed(3)
    for search in searches:
        for beams in (1, 10):
            check_search(backbone, [5], decode(search=search, beams=beams), "d", "another")
    drawn = torch.rand(2)
    assert torch.equal(drawn, torch.rand(2, generator=torch.Generator().manual_seed(3)))
    assert all(torch.equal(value, before[name]) for name, value in backbone.model.state_dict().items())
    assert backbone.model.training and backbone.model.generation_config is own and not backbone.model._forward_hooks


def test_the_search_is_tried_before_the_training():
    backbone = small(t.MambaConfig, **MAMBA)
    task = compose(["model=gpt2_mini", "task=e2e", "task.synthetic=true", "task.decoding.search=hu2022"]).task
    with pytest.raises(ModelError, match=r"MambaForCausalLM cannot .*; take task\.decoding\.search=transformers$"):
        build(task, "task").load(backbone, 0)


def test_a_full_memory_is_no_fault_of_the_search(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("vera.models.decoding._search", full)
    with pytest.raises(torch.OutOfMemoryError):
        check_search(small(t.GPT2Config, **GPT1), [5], decode(), "d", "another")
