"""The linear probe: what it makes of a pair, and that it learns from training rows alone."""

import json

import numpy as np
import pytest

from vera.commands import probe
from vera.config import build, compose

ROWS = {  # three sentences of each class in training, one in validation, five times over: the folds need some of each
    "train": [((f"{word} {i}",), label) for i in range(15) for word, label in (("good", 1), ("bad", 0))],
    "validation": [(("good x",), 1), (("bad x",), 0), (("good y",), 1)],
}


def test_a_pair_gives_both_their_difference_and_their_product():
    u, v = np.array([[1.0, 2.0]]), np.array([[3.0, -1.0]])
    assert probe.features([u, v]).tolist() == [[1, 2, 3, -1, 2, 3, 3, -2]]
    assert probe.features([u]) is u


def test_what_is_linear_in_the_embeddings_is_found(monkeypatch):
    task = build(compose(["model=minilm", "task=cola", "task.synthetic=true"]).task, "task")
    noise = np.random.default_rng(0)
    monkeypatch.setattr(type(task), "read", lambda self: (ROWS, "here", None))
    monkeypatch.setattr(
        probe, "embed", lambda backbone, texts: np.array([[1.0 if "good" in t else -1.0, noise.normal()] for t in texts])
    )
    found = probe.probe(task, None)
    assert found["metrics"] == {"matthews_correlation": pytest.approx(1.0)} and found["penalised"] == "C"
    assert "cosine" not in found


def test_the_penalty_is_chosen_by_the_metric_that_is_shown(monkeypatch):
    """One class for all has the best accuracy on unequal classes, and no correlation with anything."""
    task = build(compose(["model=minilm", "task=cola", "task.synthetic=true"]).task, "task")
    draw = np.random.default_rng(1)
    rows = {split: [((str(int(n % 5 > 0)),), int(n % 5 > 0)) for n in range(500)] for split in ("train", "validation")}
    monkeypatch.setattr(type(task), "read", lambda self: (rows, "here", None))
    monkeypatch.setattr(
        probe, "embed", lambda b, texts: np.array([[int(t) + draw.normal(), *draw.normal(size=60)] for t in texts])
    )
    found = probe.probe(task, None)
    assert found["chosen_by"] == "matthews_correlation" and found["metrics"]["matthews_correlation"] > 0


def test_scores_have_a_cosine_too_and_embeddings_have_length_one(cache):
    run = compose(["model=minilm", "task=stsb", "scale=rehearsal"])
    task, backbone = build(run.task, "task"), build(run.model, "model").load(1, cache)
    embedded = probe.embed(backbone, ["the cat sleeps", "a dog", "red"])
    assert np.linalg.norm(embedded, axis=1) == pytest.approx(1.0, abs=1e-5)
    alone = probe.embed(backbone, ["red"])
    assert embedded[2] == pytest.approx(alone[0], abs=1e-5)  # padding and order change nothing
    found = probe.probe(task, backbone)
    assert found["metrics"].keys() == found["cosine"].keys() == {"pearson", "spearmanr"} and found["penalised"] == "alpha"


def test_one_task_is_measured_again_and_the_others_are_kept(tmp_path, monkeypatch, capsys):
    from types import SimpleNamespace

    path, model = tmp_path / f"{probe.PROBE}.json", SimpleNamespace(fingerprint="m", notes={"preprocessing": "t"})
    monkeypatch.setattr(probe, "probe", lambda task, backbone: {"metrics": {task.primary: 0.5}})
    monkeypatch.setattr(probe, "build", lambda part, kind: SimpleNamespace(primary=part.get("primary"), load=lambda *_: model))
    monkeypatch.setattr("sys.argv", ["probe.py", "--out", str(tmp_path)])
    assert probe.main() == 0
    first = json.loads(path.read_text())["tasks"]
    assert list(first) == list(probe.TASKS) and {made["preprocessing"] for made in first.values()} == {"t"}
    model.notes = {"preprocessing": "u"}
    monkeypatch.setattr("sys.argv", ["probe.py", "--out", str(tmp_path), "--tasks", "cola"])
    assert probe.main() == 0
    again = json.loads(path.read_text())["tasks"]
    assert again == {**first, "cola": {**first["cola"], "preprocessing": "u"}}
    monkeypatch.setattr("sys.argv", ["probe.py", "--tasks", "cola,sst2"])
    with pytest.raises(SystemExit):
        probe.main()
    assert "--tasks sst2: the probe is of rte, mrpc, cola, stsb" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["task=cola", "model=roberta_base", "+method=lora"])
def test_another_task_is_not_scored_under_every_name(word, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["probe.py", "task.data_dir=/glue", "--out", "x", word])
    with pytest.raises(SystemExit):
        probe.main()
    assert f"{word}: the probe is of model=minilm on each of" in capsys.readouterr().err
