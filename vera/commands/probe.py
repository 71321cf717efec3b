"""The yardstick of results/tables/glue_minilm.md: a linear model on MiniLM's mean-pooled embeddings, which stay as they are.

python scripts/probe.py task.data_dir=/path/to/glue      a few minutes on one core; writes results/analysis/probe_minilm.json
python scripts/probe.py task.data_dir=/path/to/glue --tasks rte,cola      these alone: the file keeps the others

A sentence u gives u; a pair u, v gives u, v, |u - v| and u * v (InferSent, Conneau et al. 2017). Classes: logistic regression;
scores: ridge regression; standardised, with the penalty that has the best of the task's first metric (not accuracy on CoLA, for
which one class for all is hard to beat) in five-fold cross-validation on the training rows alone. Of STS-B also the cosine of u
and v, without any training.
"""

import json
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from experiments.artefacts.glue_minilm import PROBE, TASKS
from vera.commands import ROOT, parser_of
from vera.config import build, compose
from vera.config.paths import readable
from vera.io.files import write_atomic
from vera.records.sources import configured
from vera.run import code
from vera.tasks.text import fingerprint

PENALTIES = [10.0**power for power in range(6)]
BATCH = 64
VERSIONS = ("torch", "transformers", "tokenizers", "scikit-learn", "numpy")


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as given to train.py")
    parser.add_argument("--tasks", default=",".join(TASKS), help="some of them (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "analysis", help="folder for the measurement")
    options = parser.parse_intermixed_args()
    for word in options.overrides:
        if word.partition("=")[0].lstrip("+~") in ("model", "task", "method"):
            parser.error(f"{word}: the probe is of model=minilm on each of {', '.join(TASKS)}")
    tasks = options.tasks.split(",")
    if odd := [name for name in tasks if name not in TASKS]:
        parser.error(f"--tasks {odd[0]}: the probe is of {', '.join(TASKS)}")
    path = options.out / f"{PROBE}.json"
    found = {} if set(tasks) == set(TASKS) or not path.exists() else json.loads(path.read_text())["tasks"]
    made_by = code()
    for name in tasks:
        run = compose(["model=minilm", f"task={name}", "method=head", *readable(options.overrides)])
        task, backbone = build(run.task, "task"), build(run.model, "model").load(1, Path(run.cache_dir))
        found[name] = {
            **probe(task, backbone),
            "backbone": backbone.fingerprint,
            **configured(backbone.notes),
            "git_sha": made_by["git_sha"],
            "git_dirty": made_by["git_dirty"],
            "versions": {key: made_by["versions"][key] for key in VERSIONS},
        }
        print(name, json.dumps(found[name]["metrics"]), flush=True)
    content = {
        "what": "linear models on mean-pooled embeddings of the frozen backbone, scored on GLUE's development sets",
        "tasks": {name: found[name] for name in TASKS if name in found},
    }
    write_atomic(path, json.dumps(content, indent=1) + "\n")
    print(f"written to {path}")
    return 0


def probe(task, backbone) -> dict:
    """Metrics of the chosen linear model, its penalty, and the data's fingerprint."""
    rows, source, _ = task.read()
    sides, labels = {}, {}
    for split, found in rows.items():
        texts = zip(*(texts for texts, _ in found), strict=True)
        sides[split] = features([embed(backbone, list(column)) for column in texts])
        labels[split] = np.array([label for _, label in found])
    model, key, values = (
        (Ridge(), "ridge__alpha", PENALTIES)
        if task.outputs == 1
        else (LogisticRegression(max_iter=2000), "logisticregression__C", [1 / penalty for penalty in PENALTIES])
    )

    def metrics(fitted, of: np.ndarray, given: np.ndarray) -> dict[str, float]:
        answers = torch.tensor(fitted.predict(of))
        logits = answers[:, None] if task.outputs == 1 else torch.nn.functional.one_hot(answers.long(), task.outputs)
        return task.score(logits, torch.tensor(given))

    search = GridSearchCV(
        make_pipeline(StandardScaler(), model), {key: values}, scoring=lambda *fold: metrics(*fold)[task.primary], cv=5
    )
    search.fit(sides["train"], labels["train"])
    result = {
        "metrics": metrics(search, sides["validation"], labels["validation"]),
        "chosen_by": task.primary,
        "penalty": search.best_params_[key],
        "penalised": key.partition("__")[2],
    }
    if task.outputs == 1:
        d = sides["validation"].shape[1] // 4
        cosine = torch.tensor(sides["validation"][:, 3 * d :].sum(1))[:, None]
        result["cosine"] = task.score(cosine, torch.tensor(labels["validation"]))
    return {**result, "data_source": source, "data": fingerprint(rows)}


def features(embedded: list[np.ndarray]) -> np.ndarray:
    """[N, d] of sentences, [N, 4 d] of pairs: u, v, |u - v|, u * v. The embeddings have length one."""
    if len(embedded) == 1:
        return embedded[0]
    u, v = embedded
    return np.concatenate([u, v, abs(u - v), u * v], axis=1)


@torch.no_grad()
def embed(backbone, texts: list[str]) -> np.ndarray:
    """[N, d]: means of the last hidden states over the tokens, scaled to length one. Similar lengths go together."""
    encoder = backbone.model.base_model.eval()
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    found = np.empty((len(texts), encoder.config.hidden_size), np.float32)
    for at in range(0, len(order), BATCH):
        chosen = order[at : at + BATCH]
        batch = backbone.preprocess(
            [texts[i] for i in chosen], padding=True, truncation=True, max_length=128, return_tensors="pt"
        )
        hidden, mask = encoder(**batch).last_hidden_state, batch["attention_mask"][..., None]
        mean = (hidden * mask).sum(1) / mask.sum(1)
        found[chosen] = torch.nn.functional.normalize(mean).numpy()
    return found
