"""Reading from the hub, with the hub's answers made here: rows, commits, and quick failure without a network."""

import datasets
import httpx
import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import RepositoryNotFoundError

from vera.config import build, compose
from vera.errors import DataError
from vera.io import hub
from vera.tasks.glue import SUBSETS

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(hub, "_known", {})


def answer(monkeypatch, *results):
    """Each call of repo_info gives, or raises, the next result; the last one stays."""
    calls = []

    def repo_info(self, *args, **kwargs):
        result = results[min(len(calls), len(results) - 1)]
        calls.append(args)
        if isinstance(result, Exception):
            raise result
        return type("Info", (), {"sha": result})()

    monkeypatch.setattr(HfApi, "repo_info", repo_info)
    return calls


def test_a_commit_is_asked_for_once(monkeypatch):
    calls = answer(monkeypatch, SHA)
    assert [hub.commit("a/b", "main", "model") for _ in range(3)] == [(SHA, True)] * 3 and len(calls) == 1


class ConnectError(Exception):
    pass


class ReadTimeout(Exception):
    pass


@pytest.mark.parametrize("error", [ConnectError("no route"), OSError("down"), RuntimeError("proxy")])
def test_no_network_is_said_at_once_and_asked_again_next_time(error, monkeypatch):
    calls = answer(monkeypatch, error)
    assert hub.commit("a/b", "main", "model") == (None, False) and len(calls) == 1
    assert hub.commit("a/b", "main", "model") == (None, False) and len(calls) == 2


def test_one_timeout_is_forgiven(monkeypatch):
    calls = answer(monkeypatch, ReadTimeout("slow"), SHA)
    assert hub.commit("a/b", "main", "model") == (SHA, True) and len(calls) == 2


def test_a_refusal_is_left_to_the_loader(monkeypatch):
    response = httpx.Response(404, request=httpx.Request("GET", "https://hub/a/b"))
    answer(monkeypatch, RepositoryNotFoundError("404", response=response))
    assert hub.commit("a/b", "main", "model") == (None, True)


def test_offline_mode_ends_with_the_block():
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = False
    try:
        with hub.offline(True):
            assert constants.HF_HUB_OFFLINE and datasets.config.HF_HUB_OFFLINE
        assert not constants.HF_HUB_OFFLINE
    finally:
        constants.HF_HUB_OFFLINE = before


def hub_split(name):
    """Two rows in the layout of nyu-mll/glue."""
    spec = SUBSETS[name]
    columns = {text: [f"{text} one", f"{text} two"] for text in spec.texts}
    columns["label"] = [3.8, 0.5] if spec.labels is None else [1, 0]
    columns["idx"] = [0, 1]
    kind = datasets.Value("float32") if spec.labels is None else datasets.ClassLabel(names=list(spec.labels))
    texts = {text: datasets.Value("string") for text in spec.texts}
    return datasets.Dataset.from_dict(
        columns, features=datasets.Features({**texts, "label": kind, "idx": datasets.Value("int32")})
    )


def task(name):
    return build(compose(["model=minilm", f"task={name}"]).task, "task")


@pytest.mark.parametrize("name", sorted(SUBSETS))
def test_rows_from_the_hub(name, monkeypatch):
    answer(monkeypatch, SHA)
    asked = {}

    def load_dataset(repository, subset, revision):
        asked.update(repository=repository, subset=subset, revision=revision)
        return datasets.DatasetDict(train=hub_split(name), validation=hub_split(name))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows, source, commit = task(name).source_rows()
    assert asked == {"repository": "nyu-mll/glue", "subset": name, "revision": SHA}
    assert (source, commit) == (f"nyu-mll/glue {name}", SHA)
    texts, label = rows["train"][0]
    assert texts == tuple(f"{text} one" for text in SUBSETS[name].texts)
    assert label == (pytest.approx(3.8) if name == "stsb" else 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda split: split.remove_columns("sentence2"), "no column 'sentence2'"),
        (lambda split: split.remove_columns("label").add_column("label", [-1, 0]), "row 0: unknown label -1"),
    ],
)
def test_rows_of_another_shape_are_refused(change, message, monkeypatch):
    answer(monkeypatch, SHA)
    split = change(hub_split("rte"))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict(train=split, validation=split))
    with pytest.raises(DataError, match=message):
        task("rte").source_rows()
