"""A finished run as a repository of the Hugging Face hub: weights, its record, a model card; checked before anything leaves."""

from __future__ import annotations

import math
import re
import shutil
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, HfApi, ModelCardData
from huggingface_hub.errors import HfHubHTTPError

from vera.config import CONF_DIR, GROUPS, build
from vera.errors import ConfigError, RecordError
from vera.io.files import write_atomic
from vera.models.base import Model
from vera.records.record import Record
from vera.records.sources import made_of
from vera.records.store import Store
from vera.tasks.base import Task
from vera.trained import export

FORMS: tuple[export.Form, ...] = ("peft", "lora", "merged")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_TASKS = {"text": "text-classification", "generation": "text-generation", "image": "image-classification"}
# What `export` writes in any form: of an earlier version of a repository it is deleted, and nothing else is.
WRITTEN: tuple[str, ...] = ("adapter_config.json", "adapter_model.safetensors", "runs/*.json")
WRITTEN += ("config.json", "generation_config.json", "preprocessor_config.json", "chat_template.jinja")
WRITTEN += ("model.safetensors", "model.safetensors.index.json", "model-[0-9]*-of-[0-9]*.safetensors")
WRITTEN += ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model")
WRITTEN += ("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model")


def prepare(
    source: Path,
    repo: str,
    out: Path,
    form: export.Form | None = None,
    checkpoint: str | None = None,
    results: Path | None = None,
    work: Path | None = None,
    overrides: Sequence[str] = (),
    licence: str | None = None,
) -> list[str]:
    """Write to the folder `out` what the repository `repo` is to hold; returns what a user should be told, a line each.

    form     how the weights leave (default: PEFT's format of the method, else an exact LoRA, else a merged model).
    licence  what the card says, as the hub spells it (apache-2.0). The others are `export`'s.

    Raises VeraError: for a run on made-up rows or whose code was not committed, an adapter on weights that nobody else can get
    (from a local folder, or made here), a text with a path of this machine.
    """
    if not _REPO.fullmatch(repo):
        raise ConfigError(f"{repo!r} is not a name on the hub, such as me/vera-rte")
    if out.exists():
        raise ConfigError(f"{out} is there already; remove it, or name a new folder with --out")
    record, folder, store = export.find(Path(source), checkpoint, results, work)
    _check(record, folder.name)
    with tempfile.TemporaryDirectory(prefix="publish-") as scratch:
        made = Path(scratch) / "made"
        lines, chosen = _exported(form, Path(source), made, checkpoint, results, work, overrides)
        if chosen != "merged" and not _had(record):
            raise ConfigError(
                f"the backbone of {record.name} ({record.provenance.model_source}) is of no hub and no package, as far as its "
                "record says, so nobody else could load an adapter on it: --to merged"
            )
        exported = (made / "README.md").read_text(encoding="utf-8")
        write_atomic(made / "runs" / f"{record.name}.json", record.to_json())
        write_atomic(made / "README.md", card(record, store, repo, folder.name, chosen, exported, licence))
        for path in sorted(made.rglob("*")):
            found = path.suffix in (".json", ".md", ".txt", ".jinja") and _own_path(path.read_text(encoding="utf-8"))
            if found:
                raise ConfigError(f"nothing is published: {path.name} holds {found!r}, a path of this machine")
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(made, out)
    return lines


def upload(folder: Path, repo: str, private: bool) -> str:
    """Send a prepared folder to the hub; returns its address. What an earlier version of the repository has of WRITTEN and
    this one lacks is deleted with it: others would load it. Raises ConfigError with the hub's answer."""
    api, said = HfApi(), "Adapter, record and model card"
    try:
        address = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message=said, delete_patterns=list(WRITTEN))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ConfigError(f"{repo} was not published: {(str(error).strip() or type(error).__name__).splitlines()[0]}") from None
    return str(address)


def _check(record: Record, checkpoint: str) -> None:
    made = record.provenance
    if not record.reported(checkpoint):
        raise ConfigError(f"{record.name} has test scores of its best epoch alone; publish --checkpoint best")
    if record.collapsed is not None:
        raise RecordError(f"{record.name} has collapsed ({record.collapsed}): there is nothing to publish")
    if made.data_source == "synthetic":
        raise RecordError(f"{record.name} was trained on made-up rows (task.synthetic=true): there is nothing to publish")
    if any(start["git_sha"] is None or start["git_dirty"] is not False for start in made.starts):
        raise RecordError(
            f"{record.name} was made by code that no commit holds, so nobody could repeat it; commit, and train it again"
        )


def _had(record: Record) -> bool:
    """Whether others can get the backbone: from the hub or a package; it was neither made here nor read from a local folder."""
    source = record.provenance.model_source
    return source == record.run.config["model"].get("checkpoint") or source.startswith("package ")


def _exported(
    form: export.Form | None, source: Path, out: Path, checkpoint, results, work, overrides
) -> tuple[list[str], export.Form]:
    """The first form that the method has, or the given one, in the folder `out`."""
    refused: export.NoSuchForm | None = None
    for each in FORMS if form is None else (form,):
        try:
            return export.export(source, out, each, None, checkpoint, results, work, overrides), each
        except export.NoSuchForm as error:
            refused = error
    assert refused is not None
    raise refused


def card(
    record: Record, store: Store, repo: str, checkpoint: str, form: export.Form, exported: str, licence: str | None
) -> str:
    """The model card: the hub's front matter, scores of this run and of its cell's seeds, use, how to repeat it, citation.

    exported: the README that `export` wrote, whose table of the record's identity is kept.
    """
    made, epoch, reported = record.provenance, getattr(record.scores, checkpoint).epoch, record.reported(checkpoint)
    texts = [name for name in reported if name != "log_likelihood"] if "outputs" in made.notes else []
    where = f"on the {made.eval_rows:,} rows that chose the best epoch"
    if made.test_rows is not None:
        where = f"on the {made.test_rows:,} rows of the test set, which chose nothing"
    elif texts:
        where = f"{', '.join(texts)} of the texts that it wrote for the {made.notes['outputs']:,} inputs of the test set, "
        where += f"log_likelihood on {made.eval_rows:,} other rows"
    task, model = build(record.run.config["task"], "task"), record.run.model
    backbone = build(record.run.config["model"], "model")
    if form != "merged" and (how := export.held(backbone)[0]) != export.FLOAT32:
        where += f", with the backbone in {how}"
    every = store.by_cell().get(record.run.cell_id, [record])
    seeds = [seed for seed in every if _alike(made_of(seed), made_of(record))]
    base = made.model_source if made.model_commit else None
    data = ModelCardData(
        base_model=base,
        library_name="transformers" if form == "merged" else "peft",
        license=licence,
        pipeline_tag=_TASKS.get(task.modality),
        datasets=[made.data_source] if made.data_commit else None,
        tags=["vera-experiments", record.run.method],
        model_name=repo.partition("/")[2],
        eval_results=[
            EvalResult(
                task_type=_TASKS.get(task.modality, task.modality),
                dataset_type=made.data_source if made.data_commit else record.run.task,
                dataset_name=record.run.task,
                metric_type=name,
                metric_value=value,
            )
            for name, value in reported.items()
        ],
    )
    scores = []
    for name, value in reported.items():
        found = [seed.score(name, checkpoint) for seed in seeds if seed.has(name, checkpoint)]
        middle, worst, best = map(_shown, (statistics.median(found), min(found), max(found)))
        scores.append(f"| {name} | {_shown(value)} | {middle} | {worst} to {best} | {len(found)} |")
    other = len(every) - len(seeds)
    apart = f" Not among the seeds: {other} of other weights, data or precision." if other else ""
    held = f"\n\nIts backbone ({made.model_source}) is of no hub and no package; these weights hold it." * (not _had(record))
    identity = exported.partition("---\n\n# ")[2].partition("\n")[2].strip()
    return f"""---
{data.to_yaml()}
---

# {data.model_name}

{record.run.method} on {model}, trained on {record.run.task}; made, and to be repeated, with the experiment harness for
*VeRA: Vector-based Random Matrix Adaptation*.

| Metric | This run | Median of the seeds | Their range | Seeds |
|---|---:|---:|---:|---:|
{chr(10).join(scores)}

Scores are of the {checkpoint} epoch ({epoch}), {where}; nothing is in percent.{apart}

## Use

```python
{_use(form, repo, base, task, backbone)}
```{held}

## What it is

{identity}

## Repeat it

{_again(record)}

## Cite

```bibtex
{_bibtex()}
```
"""


def _alike(one: Mapping[str, str | None], other: Mapping[str, str | None]) -> bool:
    """Whether nothing that both say differs."""
    return all(None in (one[name], other[name]) or one[name] == other[name] for name in one)


def _use(form: export.Form, repo: str, base: str | None, task: Task, model: Model) -> str:
    """Code that opens what was published: an adapter on a backbone held as the run's, whatever its checkpoint's files hold."""
    kind = {"text": "AutoModelForSequenceClassification", "image": "AutoModelForImageClassification"}
    loader = kind.get(task.modality, "AutoModelForCausalLM")
    if form == "merged":
        return f'from transformers import {loader}\n\nmodel = {loader}.from_pretrained("{repo}")'
    _, dtype, quantised = export.held(model)
    keys = f", num_labels={task.outputs}, ignore_mismatched_sizes=True" * (task.modality in kind)  # the adapter brings it
    keys += f', dtype="{dtype}"' + ", quantization_config=in_bits" * bool(quantised)
    backbone = f'{loader}.from_pretrained("{base}"{keys})' if base else f"{loader}.from_pretrained(...{keys})  # named below"
    names = ", ".join([loader, *([quantised.partition("(")[0]] if quantised else [])])
    lines = ["from peft import PeftModel", f"from transformers import {names}", "", f"backbone = {backbone}"]
    if quantised:
        lines.insert(3, f"in_bits = {quantised}")
    return "\n".join([*lines, f'model = PeftModel.from_pretrained(backbone, "{repo}")'])


def _bibtex() -> str:
    paper = yaml.safe_load((CONF_DIR.parent / "CITATION.cff").read_text(encoding="utf-8"))["preferred-citation"]
    authors = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
    fields = {"title": paper["title"], "author": authors, "booktitle": paper["collection-title"], "year": paper["year"]}
    lines = [f"  {key} = {{{value}}}," for key, value in {**fields, "url": paper["url"]}.items()]
    return "\n".join(["@inproceedings{kopiczko2024vera,", *lines, "}"])


def _again(record: Record) -> str:
    """How to repeat a run: not by its repository and the harness alone where a part of it is of a project."""
    named = {group: getattr(record.run, group) for group in GROUPS[:3]}
    foreign = [f"{group}={name}" for group, name in named.items() if not (CONF_DIR / group / f"{name}.yaml").is_file()]
    if foreign:
        return f"""It was made with {" and ".join(foreign)} of a project outside the harness, whose files are not here: with
them beside a clone of the harness, at the commit above, `vera --project PROJECT verify FOLDER` trains it again, and compares
every number with `runs/{record.name}.json`."""
    return f"""In a clone of the harness, at the commit above, with this repository downloaded to `FOLDER`:

    make verify RUN=FOLDER

trains it again and compares every number with `runs/{record.name}.json`."""


def _shown(score: float) -> str:
    """As a card has it; a seed that collapsed counts as the worst."""
    return f"{score:.4f}" if math.isfinite(score) else "collapsed"


def _own_path(text: str) -> str | None:
    """A path of this machine in a text: the home folder, the working directory, the clone."""
    places = {str(Path.home()), str(Path.cwd()), str(CONF_DIR.parent)} - {"/"}
    return next((place for place in sorted(places, key=len, reverse=True) if place in text), None)
