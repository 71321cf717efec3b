"""The doctor tells what is missing from what is there, and says what to do; the hub's answers are made here."""

import io
import json
import shutil
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import HfFileSystem, constants
from safetensors.torch import load_file, save_file

from tests.conftest import ROOT
from tests.hub_server import SHA, Hub
from vera.checks import doctor
from vera.checks.doctor import NETWORK, NOTE, OK, TODO, UNUSED, Line, Wanted, hardware, software, verdict
from vera.config import build, checked, compose, resolve
from vera.errors import ModelError
from vera.judge.endpoint import JudgeSettings
from vera.judge.questions import QuestionSource

JUDGE = checked(JudgeSettings, resolve("judge", [])["judge"], "judge")
TEXT_FILES = ("config.json", "model.safetensors", "tokenizer.json")
GLUE_CARD = {
    "dataset_info": [
        {
            "config_name": "rte",
            "features": [{"name": name, "dtype": "string"} for name in ("sentence1", "sentence2", "label", "idx")],
            "splits": [{"name": name, "num_bytes": 1} for name in ("train", "validation", "test")],
        },
        {"config_name": "cola", "features": [{"name": "sentence"}], "splits": [{"name": "train"}, {"name": "validation"}]},
    ]
}


@pytest.fixture
def server(monkeypatch, tmp_path):
    made = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", made.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", made.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    yield made
    made.close()


def model_line(*overrides, silence=None):
    sizes = {}
    return doctor.model_line(compose(overrides), silence, sizes), sizes


def data_line(*overrides, silence=None):
    return doctor.data_line(build(compose(overrides).task, "task").hub_data(), silence, {})


LLAMA = ("model=llama2_7b", "task=alpaca")
RTE = ("model=roberta_base", "task=rte")


def test_a_model_that_is_there(server):
    server.model("FacebookAI/roberta-base", *TEXT_FILES)
    line, sizes = model_line(*RTE)
    assert line == Line(OK, "model: roberta_base", f"FacebookAI/roberta-base@{SHA[:8]}, 0.0 MB")
    assert sizes == {"FacebookAI/roberta-base": 1000}


@pytest.mark.parametrize(
    ("repository", "status", "found", "remedy"),
    [
        (None, TODO, "does not exist, or is private", "hf auth whoami"),
        ({"files": TEXT_FILES, "gated": "manual"}, TODO, "is gated", "ask for access at https://huggingface.co/meta-llama"),
        ({"files": TEXT_FILES, "gated": "manual", "access": True}, OK, SHA[:8], ""),
        ({"files": (), "status": 403}, TODO, "HTTP 403", "ask for access"),
        ({"files": (), "status": 401, "headers": {"X-Error-Message": "Invalid credentials"}}, TODO, "", "hf auth"),
        ({"files": (), "status": 404, "headers": {"X-Error-Code": "RevisionNotFound"}}, TODO, "no revision main", "right"),
        ({"files": (), "status": 500}, TODO, "HTTP 500", "try again later"),
        (
            {"files": ("config.json", "pytorch_model.bin", "tokenizer.json")},
            TODO,
            "no weights in safetensors",
            "save_pretrained",
        ),
        ({"files": ("config.json", "model.safetensors")}, TODO, "no tokenizer", "save_pretrained"),
        ({"files": ("model.safetensors",)}, TODO, "no config.json", "save_pretrained"),
        ({"files": (*TEXT_FILES, "adapter_config.json")}, TODO, "holds a PEFT adapter", "save_pretrained"),
    ],
)
def test_a_model_that_the_hub_refuses(repository, status, found, remedy, server):
    if repository is not None:
        server.model("meta-llama/Llama-2-7b-hf", *repository.pop("files"), **repository)
    line, _ = model_line(*LLAMA)
    assert line.status == status and found in line.found and remedy in line.remedy, line


def test_an_image_model_needs_its_processor(server):
    server.model("google/vit-base-patch16-224-in21k", "config.json", "model.safetensors")
    line, _ = model_line("model=vit_base", "task=cifar100")
    assert line.status == TODO and "no preprocessor_config.json" in line.found


def test_columns_from_the_card(server):
    server.data("nyu-mll/glue", card=GLUE_CARD)
    assert data_line(*RTE).status == OK
    line = data_line("model=roberta_base", "task=cola")
    assert line.status == TODO and "train has no column 'label'; it has sentence" in line.found
    line = data_line("model=roberta_base", "task=mrpc")
    assert line.status == NOTE and "neither card nor files" in line.found


def parquet(*names) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({name: ["x"] for name in names}), buffer)
    return buffer.getvalue()


def test_columns_from_the_files(server):
    splits = {split: parquet("meaning_representation", "human_reference") for split in ("train", "validation", "test")}
    files = {f"default/{split}/0000.parquet": data for split, data in splits.items()}
    server.data("tuetschek/e2e_nlg", files)
    line = data_line("model=gpt2_mini", "task=e2e")
    assert line.status == OK and "human_reference" in line.found, line
    server.data("tuetschek/e2e_nlg", {**files, "default/test/0000.parquet": parquet("mr", "ref")})
    HfFileSystem.clear_instance_cache()  # a commit has one content, elsewhere
    line = data_line("model=gpt2_mini", "task=e2e")
    assert line.status == TODO and "test has no column 'human_reference'; it has mr, ref" in line.found
    del files["default/test/0000.parquet"]
    server.data("tuetschek/e2e_nlg", files)
    assert "no split 'test'" in data_line("model=gpt2_mini", "task=e2e").found


def wanted(*overrides, counts=None, operations=None):
    return Wanted(compose(overrides), 5, counts, operations)


def examine(*items, questions=()):
    return {line.what: line for line in doctor.examine(items, questions, JUDGE, ROOT / "constraints.txt")}


def test_without_a_network_each_line_says_so_and_the_hub_is_asked_once(server, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    lines = examine(wanted(*RTE, counts={"adapter": 1, "backbone": 10**8}))
    for what in ("hub", "model: roberta_base", "data: nyu-mll/glue rte"):
        assert lines[what].status == NETWORK, lines[what]
    assert "HF_HUB_OFFLINE=1" in lines["hub"].found and not server.asked
    assert "400" in lines["disk"].found.replace(".0 MB", "") or "0.4 GB" in lines["disk"].found
    server.close()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert examine(wanted(*RTE))["hub"].status == NETWORK
    assert verdict([Line(OK, "", ""), Line(NETWORK, "", "")]) == 3
    assert verdict([Line(TODO, "", ""), Line(NETWORK, "", "")]) == 1
    assert verdict([Line(OK, "", ""), Line(UNUSED, "", ""), Line(NOTE, "", "")]) == 0


def small_roberta(cache, folder):
    """A whole small RoBERTa in a folder."""
    source = build(compose([*RTE, "model.size=tiny"]).model, "model").source(cache)
    return shutil.copytree(source, folder, dirs_exist_ok=True)


def in_shards(folder):
    """The weights in two files with an index."""
    tensors = sorted(load_file(folder / "model.safetensors").items())
    files = {f"model-0000{part + 1}-of-00002.safetensors": dict(tensors[part::2]) for part in (0, 1)}
    for name, part in files.items():
        save_file(part, folder / name, {"format": "pt"})
    places = {key: name for name, part in files.items() for key in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / "model.safetensors").unlink()


def test_a_model_in_the_cache_lacks_nothing(server, cache, tmp_path):
    repository = tmp_path / "hub" / "models--FacebookAI--roberta-base"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(SHA)
    snapshot = repository / "snapshots" / SHA
    small_roberta(cache, snapshot)

    def status():
        return model_line(*RTE, silence="no network")[0].status

    assert status() == OK
    in_shards(snapshot)
    assert status() == OK
    for name in ("tokenizer.json", "model-00002-of-00002.safetensors", "config.json"):
        (snapshot / name).rename(tmp_path / name)
        assert status() == NETWORK
        (tmp_path / name).rename(snapshot / name)
    cut(snapshot / "model-00002-of-00002.safetensors", 100)
    line, _ = model_line(*RTE)  # which a network would not mend
    assert line.status == TODO and "model-00002-of-00002.safetensors cannot be read" in line.found
    assert f"remove {repository} and fetch it again" in line.remedy


def test_a_data_set_in_the_cache_needs_no_network(server, tmp_path):
    copies = tmp_path / "datasets" / "nyu-mll___glue" / "rte" / "0.0.0"
    unfinished = copies / "abc.incomplete"
    unfinished.mkdir(parents=True)
    names = ("glue-train.arrow", "glue-validation-00000-of-00002.arrow", "glue-validation-00001-of-00002.arrow")
    for name in names:
        (unfinished / name).write_bytes(b"x")
    assert data_line(*RTE, silence="no network").status == NETWORK  # an interrupted download
    (unfinished / "dataset_info.json").write_text("{}")
    assert data_line(*RTE, silence="no network").status == NETWORK
    finished = unfinished.rename(copies / "abc")
    assert data_line(*RTE, silence="no network").status == OK
    for name in (*names, "dataset_info.json"):
        (finished / name).rename(tmp_path / name)
        assert data_line(*RTE, silence="no network").status == NETWORK
        (tmp_path / name).rename(finished / name)
    assert data_line("model=roberta_base", "task=mrpc", silence="no network").status == NETWORK


def test_a_copy_in_the_cache_is_judged_as_a_run_without_a_network_reads_it(server, tmp_path):
    cached = tmp_path / "hub" / "datasets--nyu-mll--glue"
    for name in ("refs/main", *(f"snapshots/{SHA}/mrpc/{split}.parquet" for split in ("train", "validation"))):
        (cached / name).parent.mkdir(parents=True, exist_ok=True)
        (cached / name).write_text(SHA)
    assert data_line(*RTE, silence="no network").status == NETWORK
    (cached / "snapshots" / SHA / "mrpc").rename(cached / "snapshots" / SHA / "rte")
    assert data_line(*RTE, silence="no network").status == OK
    (cached / "snapshots" / SHA / "rte" / "train-00000-of-00001.parquet").touch()
    line = data_line(*RTE, silence="no network")
    assert line.status == TODO and "holds the split train more than once" in line.found


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


BROKEN = {
    "weights that are cut": ("model.safetensors", lambda folder: cut(folder / "model.safetensors", 100)),
    "weights without a byte": ("model.safetensors", lambda folder: cut(folder / "model.safetensors", 0)),
    "a shard that is cut": (
        "model-00001-of-00002.safetensors",
        lambda folder: [in_shards(folder), cut(folder / "model-00001-of-00002.safetensors", 100)],
    ),
    "a shard that is not there": (
        "no model-00001-of-00002.safetensors",
        lambda folder: [in_shards(folder), (folder / "model-00001-of-00002.safetensors").unlink()],
    ),
    "an index that is none": (
        "model.safetensors.index.json",
        lambda folder: [in_shards(folder), cut(folder / "model.safetensors.index.json", 10)],
    ),
    "a configuration that is cut": ("config.json", lambda folder: cut(folder / "config.json", 1)),
    "a tokenizer that is cut": ("its tokenizer", lambda folder: cut(folder / "tokenizer.json", 1000)),
}


@pytest.mark.parametrize(("part", "breaks"), BROKEN.values(), ids=BROKEN)
def test_files_that_no_run_can_read(part, breaks, cache, tmp_path):
    breaks(small_roberta(cache, tmp_path))
    line, _ = model_line(*RTE, f"model.path={tmp_path}", "~model.full")
    assert line.status == TODO and f"{tmp_path}: {part}" in line.found and line.remedy, line
    run = compose([*RTE, f"model.path={tmp_path}", "~model.full"])
    with pytest.raises(ModelError, match=str(tmp_path)):
        build(run.model, "model").load(2, cache)


@pytest.mark.parametrize("words", ["model=vit_base task=cifar100", "model=gpt2_medium task=e2e", "model=llama2_7b task=alpaca"])
def test_a_whole_folder_of_other_families(words, cache):
    tiny = build(compose([*words.split(), "model.size=tiny"]).model, "model").source(cache)
    assert model_line(*words.split(), f"model.path={tiny}", "~model.full")[0] == Line(
        OK, f"model: {words.split()[0][6:]}", tiny
    )


def test_local_paths_are_read_here(server, cache, tmp_path):
    (tmp_path / "model").mkdir()
    folder = f"model.path={tmp_path / 'model'}"
    assert "no config.json" in model_line(*RTE, folder)[0].found
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(b"")
    assert "no weights in safetensors" in model_line(*RTE, folder)[0].found
    small_roberta(cache, tmp_path / "model")
    assert model_line(*RTE, folder, "~model.full")[0].status == OK
    run = compose([*RTE, f"task.data_dir={tmp_path}"])
    (line,) = doctor.local_data([run])
    assert line.status == TODO and "holds neither train.tsv" in line.found
    rows = "sentence1\tsentence2\tlabel\na\tb\tentailment\n"
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_text(rows)
    assert doctor.local_data([run])[0].status == OK
    assert not server.asked


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("model=gpt2_medium", "task=e2e", "task.format=hu2022"), "task.format=hu2022 reads train.txt, valid.txt, test.txt"),
        (("model=minilm", "task=sick", "task.data_dir=null"), "task=sick reads files; give their folder with task.data_dir="),
        (("model=vit_base", "task=cifar100", "task.repository=null"), "task=cifar100 reads a folder of images"),
    ],
)
def test_a_folder_that_no_hub_has_is_asked_for(overrides, said):
    (line,) = doctor.local_data([compose(overrides)])
    assert line.status == TODO and said in line.found


def test_local_parquet_columns(tmp_path):
    run = compose(["model=vit_base", "task=food101", f"task.data_dir={tmp_path}"])
    (tmp_path / "train-0.parquet").write_bytes(parquet("image", "label"))
    assert "no parquet file of the split 'validation'" in doctor.local_data([run])[0].found
    (tmp_path / "validation-0.parquet").write_bytes(parquet("image", "fine_label"))
    assert "has no column 'label'" in doctor.local_data([run])[0].found
    (tmp_path / "validation-0.parquet").write_bytes(b"PAR1")
    assert "cannot be read as parquet" in doctor.local_data([run])[0].found
    (tmp_path / "validation-0.parquet").write_bytes(parquet("image", "label"))
    assert doctor.local_data([run])[0].status == OK


def test_memory_against_the_gpu(monkeypatch):
    large = wanted("model=roberta_large", "task=rte", counts={"adapter": 786_432, "backbone": 355_000_000}, operations=1e16)
    lines = {line.what: line for line in doctor.memory([large])}
    assert lines["GPU"].status == TODO and lines["memory: roberta_large"].status == TODO  # a day on a CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for total, status in ((80e9, OK), (8e9, TODO), (1e9, TODO)):
        gpu = SimpleNamespace(name="X", total_memory=total)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, gpu=gpu: gpu)
        line = {line.what: line for line in doctor.memory([large])}["memory: roberta_large"]
        assert line.status == status, line
        if total == 80e9:  # some 15 GB a run and 1 GB for each process
            assert line.found.endswith("where 4 runs fit at once (workers=4)"), line.found
        if total == 8e9:
            fitting = int(line.remedy.removeprefix("train.micro_batch_size="))
            run = compose(["model=roberta_large", "task=rte", line.remedy])
            assert fitting >= 1 and sum(doctor.device_bytes(run, large.counts).values()) < total
    assert line.remedy.startswith("a GPU with more than")


@pytest.mark.parametrize("more", [["train.micro_batch_tokens=4096"], ["train.micro_batch_size=64"], []])
def test_the_remedy_for_memory_is_one(more, monkeypatch):
    """128 examples of 128 tokens in a step, of which 32 are in a batch of 4096 tokens."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(name="X", total_memory=4e9))

    def line(*words):
        chosen = ["model=roberta_large", "task=rte", "train.batch_size=128", "task.max_length=128", *more, *words]
        item = wanted(*chosen, counts={"adapter": 100_000, "backbone": 355_000_000}, operations=1e15)
        return next(line for line in doctor.memory([item]) if line.what.startswith("memory"))

    told = line()
    assert told.status == TODO and 1 <= int(told.remedy.removeprefix("train.micro_batch_size=")) < 32
    assert line(told.remedy).status == OK


def test_bytes_of_weights_and_training():
    run = compose(["model=llama_7b", "task=alpaca"])
    words = 2 * 32000 * 4096
    assert doctor.weights_bytes(run, 6_738_415_616) == pytest.approx(2 * words + (6_738_415_616 - words) * 4.127 / 8)
    run = compose(["model=roberta_base", "task=rte", "method=full"])
    parts = doctor.device_bytes(run, {"adapter": 125_000_000, "backbone": 125_000_000})
    assert parts["weights"] + parts["training"] == 16 * 125_000_000
    parts = doctor.device_bytes(run, {"adapter": 1000, "backbone": 125_000_000})
    assert parts["training"] == 16_000 and parts["weights"] == 4 * 125_000_000


def test_a_full_disk(monkeypatch):
    monkeypatch.setattr(hardware.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    item = wanted(
        "model=roberta_base", "task=rte", "method=full", "model.path=/x", counts={"adapter": 10**8, "backbone": 10**8}
    )
    lines = [line for line in doctor.disk([item], {"x": 10**9}) if line.status == TODO]
    assert lines and "6.2 GB wanted" in lines[0].found and lines[0].remedy.startswith("free 6.2 GB")


def test_the_disk_line_names_the_models_that_it_leaves_out(tmp_path):
    folders = [f"results_dir={tmp_path}", f"work_dir={tmp_path}"]
    counts = {"adapter": 10**5, "head": 4 * 10**5, "backbone": 10**8}
    counted = wanted("model=roberta_base", "task=rte", "model.path=/x", *folders, counts=counts)
    (told,) = [line for line in doctor.disk([counted, wanted("model=digits_vit", *folders)], {}) if "without" in line.found]
    # ten records, and of half a million values the best and the last of five seeds and one state: 20 + 6 MB
    assert told.found.startswith("26.2 MB wanted without trained weights of digits_vit, whose sizes are not known, "), told
    assert "without" not in str(doctor.disk([counted], {}))


def test_a_folder_that_is_none(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in ("file", "file/below"):
        item = wanted(f"results_dir={tmp_path / folder}", f"work_dir={tmp_path / 'w'}", f"cache_dir={tmp_path / 'c'}")
        (line,) = [line for line in doctor.disk([item], {}) if line.status == TODO]
        assert line.found == f"{tmp_path / folder} cannot be written: {tmp_path / 'file'} is no folder", line
        assert line.remedy.startswith("results_dir=")


def test_a_package_that_is_half_removed(monkeypatch, tmp_path):
    (tmp_path / "half_removed-1.0.dist-info").mkdir()  # without METADATA
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(software.importlib.metadata, "requires", lambda _: ["half-removed>=1"])
    (line,) = doctor.packages(ROOT / "constraints.txt", set())
    assert line.status == TODO and line.what == "half-removed" and line.found == "not installed"
    monkeypatch.setattr(software.importlib.metadata, "requires", lambda _: None)  # what itself is half removed
    (line,) = doctor.packages(ROOT / "constraints.txt", set())
    assert line.status == TODO and line.found == "vera-experiments is not installed"


def test_packages(monkeypatch, tmp_path):
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("# comment\ntorch==0.1\nnumpy==99; python_version < '3'\n")
    lines = doctor.packages(constraints, set())
    assert [line.status for line in lines] == [NOTE, OK] and "torch" in lines[0].found and "numpy" not in lines[0].found
    monkeypatch.setattr(
        software.importlib.metadata, "requires", lambda _: ["torch>=999", "no-such-package>=1", "x; extra == 'e2e'"]
    )
    lines = {line.what: line for line in doctor.packages(ROOT / "constraints.txt", set())}
    assert lines["torch"].status == TODO and "needs >=999" in lines["torch"].found
    assert lines["no-such-package"].found == "not installed" and "x" not in lines
    assert "x" in {line.what for line in doctor.packages(ROOT / "constraints.txt", {"e2e"})}
    monkeypatch.setattr(software.platform, "python_version_tuple", lambda: ("3", "9", "1"))
    assert doctor.python().status == TODO


def test_java(monkeypatch):
    e2e = compose(["model=gpt2_medium", "task=e2e"])
    here = {"pycocoevalcap": None, "java": "/bin/true"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: here[name])
    monkeypatch.setattr("shutil.which", lambda name: here[name])
    assert doctor.java([e2e]).status == OK  # the packages' lines tell of the package
    for broken in (None, "/bin/false"):
        here["java"] = broken
        line = doctor.java([e2e])
        assert (line.status, line.what, line.found) == (TODO, "Java", "missing") and "apt-get install" in line.remedy
    assert doctor.java([compose()]).status == UNUSED


def test_accounts(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    online = compose(["tracker=wandb", "tracker.mode=online"])
    assert doctor.tracker([compose(["tracker=wandb"])]).status == UNUSED
    assert doctor.tracker([online]).status == TODO
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password secret-of-wandb\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert doctor.tracker([online]) == Line(OK, "wandb login", "~/.netrc")
    monkeypatch.setenv("WANDB_API_KEY", "distinctive-value")
    assert "distinctive" not in str(doctor.tracker([online]))


def test_the_judge(monkeypatch, tmp_path):
    source = checked(QuestionSource, resolve("judge", [])["questions"], "questions")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    key, questions, wording = doctor.judging([source], JUDGE, "no network", str(tmp_path))
    assert key.status == TODO and "OPENAI_API_KEY is not set" in key.found
    assert questions.status == wording.status == NETWORK
    monkeypatch.setenv("OPENAI_API_KEY", "distinctive value")  # which no run takes
    key, *_ = doctor.judging([source], JUDGE, "no network", str(tmp_path))
    assert key.status == TODO and "holds characters that no key has" in key.found and "distinctive" not in str(key)
    monkeypatch.setenv("OPENAI_API_KEY", "distinctive-value")
    given = source.model_copy(update={"data_dir": str(tmp_path)})
    key, questions, wording = doctor.judging([given], JUDGE, "no network", str(tmp_path))
    assert key.status == OK and "distinctive" not in str(key) and questions.status == TODO
    row = {"question_id": 1, "category": "writing", "turns": ["One?"]}
    (tmp_path / "question.jsonl").write_text(json.dumps(row))
    (tmp_path / "reference_answer_gpt-4.jsonl").write_text("")
    wrong = doctor.judging([given], JUDGE, None, str(tmp_path))[1]
    assert wrong.status == TODO and "question 1 has 1 turns, not 2" in wrong.found
    (tmp_path / "question.jsonl").write_text(json.dumps({**row, "turns": ["One?", "Two?"]}))
    _, questions, wording = doctor.judging([given], JUDGE, None, str(tmp_path))
    assert questions.status == OK and "not the official one" in questions.found and wording.status == TODO
    own = JUDGE.model_copy(update={"prompts": "own"})
    assert doctor.judging([given], own, "no network", str(tmp_path))[2].status == NOTE
    assert [line.status for line in doctor.judging([], JUDGE, None, str(tmp_path))] == [UNUSED]


def test_the_command(script, tmp_path):
    def run(*arguments):
        return script("doctor.py", *arguments, cwd=tmp_path)

    done = run("demo")
    assert done.returncode == 0 and "not needed here" in done.stdout, done.stdout + done.stderr
    done = run("glue_base", "--with", "task=rte")
    assert done.returncode in (1, 3) and "needs a network" in done.stdout and "nyu-mll/glue" in done.stdout


def test_the_command_tells_the_judge_s_keys_from_the_runs(monkeypatch):
    from vera.commands import doctor as command

    looked = []
    monkeypatch.setattr(doctor, "examine", lambda *about: looked.append(about) or [])
    words = ["vicuna", "method=vera", "judging=fastchat", "questions.data_dir=/x", "judge.model=mine"]
    monkeypatch.setattr("sys.argv", ["doctor.py", *words])
    assert command.main() == 0
    ((cells, questions, judge, _),) = looked
    assert {cell.run.method["name"] for cell in cells} == {"vera"} and questions[0].data_dir == "/x"
    assert judge.model == "mine" and judge == checked(
        JudgeSettings, resolve("judge", ["judging=fastchat", "judge.model=mine"])["judge"], "judge"
    )
