"""Serve one batch in which every request uses its own adapter: one backbone in memory, one forward pass.

python scripts/serve_mixed.py                                                     a tiny random model and adapters made for it
python scripts/serve_mixed.py --model FOLDER --adapters FOLDER --requests FILE    a classifier of --labels classes (1: scores)
python scripts/serve_mixed.py ... --generate 40                                   a language model, 40 new tokens a request

FILE has one JSON object a line: {"adapter": "rte", "text": "...", "pair": "..."}; pair may be missing, adapter null is the bare
backbone, whose answer is marked (random_head) where its checkpoint has no such head. --adapters holds one folder an adapter,
as a run leaves them in work/results/<run>/best. Each answer is one JSON line.
--verify computes every request alone as well, with its adapter merged into the weights, and fails when the answers differ.
"""

import argparse
import copy
import json
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from vera.commands import parser_of, whole
from vera.errors import DataError
from vera.io.files import read_json
from vera.io.rows import read_text
from vera.models.attention import allow_cudnn
from vera.models.base import SAFE, UNREADABLE, cause, check_whole, drawn, mask_padding, positions
from vera.models.causal import causal
from vera.models.text import agree_on_padding
from vera.models.tiny import tiny_checkpoint
from vera.nn import AdapterBank, VeraConfig, attach, load_adapter, merge, save_adapter
from vera.nn.checkpoint import CONFIG_FILE
from vera.nn.inject import vera_layers
from vera.nn.names import inside
from vera.tasks.text import columns_for, encode
from vera.train.processes import on_gpu

TINY = {"family": "roberta", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--model", help="a folder in transformers' format, or a hub id")
    parser.add_argument("--adapters", type=Path)
    parser.add_argument("--requests", type=Path)
    parser.add_argument("--labels", type=whole(1), default=2)
    parser.add_argument("--generate", type=whole(1), default=0, metavar="TOKENS")
    parser.add_argument(
        "--memory-mib", type=_mib, metavar="MIB", help="limit for the adapters in memory; the others wait in a file"
    )
    parser.add_argument("--bf16", action="store_true", help="keep the adapters in half precision")
    parser.add_argument("--device", type=_device, default="cpu", help="cpu (the default), cuda, cuda:1 ...")
    parser.add_argument("--verify", action="store_true")
    options = parser.parse_args()
    given = (options.model, options.adapters, options.requests)
    if any(given) and not all(given):
        parser.error("--model, --adapters and --requests belong together")
    on_gpu(torch.device(options.device).type)
    with tempfile.TemporaryDirectory() as folder:
        if options.model is None:
            _demonstration(options, Path(folder))
        return _serve(options)


def _device(text: str) -> str:
    try:
        torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{text!r} is no device of torch's") from None
    return text


def _mib(text: str) -> int:
    """In bytes."""
    with suppress(ValueError, OverflowError):
        if (size := int(float(text) * 2**20)) > 0:
            return size
    raise argparse.ArgumentTypeError(f"{text!r} is no size in MiB")


def _serve(options: argparse.Namespace) -> int:
    requests = _read(options.requests)
    tokenizer, model, random = _load(options)
    backbone = copy.deepcopy(model) if options.verify else None
    allow_cudnn(False)
    bank = AdapterBank(model, memory_bytes=options.memory_mib, dtype=torch.bfloat16 if options.bf16 else torch.float32)
    for name, reason in bank.load(options.adapters).items():
        print(f"warning: adapter {name} is left out: {reason}", file=sys.stderr)
    if len(bank) == 0:
        raise DataError(f"no adapter in {options.adapters} fits {options.model}")
    if nobodys := sorted(name for name in random if not inside(name, bank.config.modules_to_save)):
        why = f"has no {nobodys[0]}, and the adapters bring none, so that answers would be random"
        raise DataError(f"{options.model} {why} (a language model: --generate)")
    if random and any(row["adapter"] is None for row in requests):
        print(
            f"warning: {options.model} has no {min(random)}: answers without an adapter come from a random head",
            file=sys.stderr,
        )
    print(f"{len(bank)} adapters of {bank.adapter_bytes:,} bytes; {len(requests)} requests in one batch", file=sys.stderr)

    encoded = _encoded(tokenizer, model, requests, options.generate)

    def answers(model, encoded: list) -> list:
        batch = tokenizer.pad(encoded, return_tensors="pt").to(options.device)
        if not options.generate:
            with torch.no_grad():
                logits = model(**batch).logits.float()
            return (logits if logits.shape[-1] == 1 else logits.softmax(-1)).tolist()  # one output is a score
        made = model.generate(**batch, max_new_tokens=options.generate, do_sample=False, num_beams=1)
        return tokenizer.batch_decode(made[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)

    with bank.use([row["adapter"] for row in requests]):
        found = answers(model, encoded)
    key = "text" if options.generate else "scores" if len(found[0]) == 1 else "probabilities"
    for row, answer in zip(requests, found, strict=True):
        shown = answer if options.generate else [round(value, 4) for value in answer]
        marked = {"random_head": True} if random and row["adapter"] is None else {}
        escaped = not (sys.stdout.encoding or "").lower().startswith("utf")
        print(json.dumps({"adapter": row["adapter"], key: shown, **marked}, ensure_ascii=escaped))
    if not options.verify:
        return 0
    wrong = 0
    for row, inputs, answer in zip(requests, encoded, found, strict=True):
        alone = copy.deepcopy(backbone)
        if row["adapter"] is not None:
            own = row["adapter"] == "default" and (options.adapters / CONFIG_FILE).is_file()  # as PEFT lays it: not below
            load_adapter(alone, options.adapters if own else options.adapters / row["adapter"])
            vectors = [parameter for _, layer in vera_layers(alone) for parameter in layer.vectors.parameters()]
            for parameter in (*vectors, *(p for p in alone.parameters() if p.requires_grad)):  # with the head
                parameter.data = parameter.data.to(bank.dtype).to(parameter.dtype)  # as the bank keeps them
            merge(alone)
        (wanted,) = answers(alone.eval(), [inputs])
        wrong += wanted != answer if options.generate else max(abs(a - b) for a, b in zip(wanted, answer, strict=True)) > 1e-3
    print(f"one adapter at a time gives {'the same' if not wrong else f'{wrong} other answers'}", file=sys.stderr)
    return 1 if wrong else 0


def _encoded(tokenizer, model, requests: list[dict], generate: int) -> list:
    """The requests' tokens, each as if it were alone. Raises DataError for a prompt of no token, or too long to go on from."""
    texts = [[text for text in (row["text"], row.get("pair")) if text is not None] for row in requests]
    limit = positions(model)
    if generate:
        inputs = [[text for (text,) in columns_for(tokenizer, [pair])] for pair in texts]
        whole = [tokenizer(*pair, verbose=False) for pair in inputs]
        longest = max(len(row["input_ids"]) for row in whole) + generate
        if limit is not None and longest > limit:
            raise DataError(f"the longest request and --generate are {longest} tokens; this model reads {limit}")
        if not all(row["input_ids"] for row in whole):
            raise DataError("a request's text is empty, and this tokenizer begins it with no token: nothing to go on from")
        return whole
    most = min(tokenizer.model_max_length, limit or 10**9)  # a tokenizer may have no length of its own, which is 10**30
    encoded = [encode(tokenizer, [pair], most) for pair in texts]
    if cut := sum(sum(each) for _, each in encoded):
        print(f"warning: {cut} of {len(encoded)} requests are longer than the model reads and were cut", file=sys.stderr)
    return [{key: value for key, (value,) in found.items()} for found, _ in encoded]


def _read(path: Path) -> list[dict]:
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = read_json(line)
            row = {"pair": None, **row}
            if unknown := row.keys() - {"adapter", "text", "pair"}:
                raise DataError(f"{path} line {number}: no such key: {min(unknown)}; there are adapter, text and pair")
            if not isinstance(row["text"], str) or not all(isinstance(row[key], str | None) for key in ("pair", "adapter")):
                raise TypeError("not a text")
            rows.append(row)
        except (ValueError, KeyError, TypeError):
            raise DataError(f'{path} line {number} is not {{"adapter": ..., "text": ...}}') from None
    if not rows:
        raise DataError(f"{path} holds no request")
    return rows


def _load(options: argparse.Namespace):
    """Tokenizer, model, and the names of what the checkpoint lacks, which is drawn at random: a head, where the adapters bring
    theirs."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(options.model, **SAFE)
        if options.generate:
            model, told = AutoModelForCausalLM.from_pretrained(
                options.model, **SAFE, use_safetensors=True, output_loading_info=True
            )
            causal(model)
            tokenizer.padding_side = "left"
            if tokenizer.pad_token is None:
                tokenizer.pad_token = tokenizer.eos_token
            mask_padding(tokenizer, model)
        else:
            model, told = AutoModelForSequenceClassification.from_pretrained(
                options.model,
                **SAFE,
                use_safetensors=True,
                num_labels=options.labels,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
            agree_on_padding(tokenizer, model)
    except UNREADABLE as error:
        raise DataError(f"--model {options.model} cannot be loaded: {cause(error)}") from None
    check_whole(model, f"--model {options.model}")
    return tokenizer, model.eval().to(options.device), drawn(told)


def _demonstration(options: argparse.Namespace, folder: Path) -> None:
    """A tiny random classifier, four random adapters with their heads, and eight requests."""
    source, options.model = tiny_checkpoint(TINY, folder), str(folder / "model")
    options.adapters, options.requests, options.verify = folder / "adapters", folder / "requests.jsonl", True
    model = AutoModelForSequenceClassification.from_pretrained(source, **SAFE, use_safetensors=True, num_labels=options.labels)
    model.save_pretrained(options.model)  # with a head of its own
    AutoTokenizer.from_pretrained(source, **SAFE).save_pretrained(options.model)
    attach(model, VeraConfig(rank=32, targets=("query", "value"), modules_to_save=("classifier",)))
    for index in range(4):
        torch.manual_seed(index)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.normal_(0, 0.5)
        save_adapter(model, options.adapters / f"adapter{index}")
    names = ["adapter2", "adapter0", None, "adapter3", "adapter1", "adapter2", "adapter0", None]
    rows = [{"adapter": name, "text": f"request number {index}"} for index, name in enumerate(names)]
    options.requests.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
