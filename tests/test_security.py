"""Nothing that others made is executed, nothing outside the results folder is written, and no secret is kept or printed."""

import ast
import io
import json
import logging
import os
import pickle
from pathlib import Path

import datasets
import pytest
import torch

from tests.conftest import REHEARSAL, ROOT
from vera import errors
from vera.config import build, components, compose, resolve
from vera.errors import ConfigError, DataError, ModelError, RecordError, VeraError, redacted
from vera.io.files import append_line, read_json, write_atomic
from vera.judge.endpoint import JudgeSettings, read_key
from vera.judge.prompts import read_prompts
from vera.judge.sources import Found, PinnedFile
from vera.records.record import Record
from vera.records.store import Store
from vera.run import execute

FOLDERS = ("vera", "scripts", "experiments", "bench", "tests/system")
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


# Nothing is executed


class Bomb:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


@pytest.fixture
def trace(tmp_path):
    """Where a bomb leaves its trace; a pickle does go off when it is loaded, so that the tests below mean something."""
    path = tmp_path / "executed"
    pickle.loads(pickle.dumps(Bomb(path)))
    assert path.exists()
    path.unlink()
    yield path
    assert not path.exists(), "code of a stranger was executed"


def calls(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_loads_pickles_or_runs_text(path):
    text = path.read_text()
    imported = {a.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import) for a in node.names}
    imported |= {node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom) and node.module}
    assert not {name.partition(".")[0] for name in imported} & {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for node, name in calls(path):
        named = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert name not in ("eval", "exec", "compile", "__import__", "os.system", "os.popen"), (path, node.lineno)
        assert name not in ("torch.load", "np.load", "numpy.load", "yaml.load", "yaml.unsafe_load", "torch.hub.load"), (
            node.lineno
        )
        assert named.get("shell", "False") == "False" and named.get("allow_pickle", "False") == "False", node.lineno
        assert named.get("trust_remote_code", "False") == "False", node.lineno
        if name.endswith(".from_pretrained"):
            given = set(named) | {ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg is None}
            assert given & {"trust_remote_code", "where", "SAFE"}, f"{path}:{node.lineno} leaves trust_remote_code open"
            if not any(kind in name for kind in ("Tokenizer", "Processor", "Config")):
                assert named.get("use_safetensors") == "True", f"{path}:{node.lineno} may read a pickle"


def test_only_five_places_import_by_name():
    """vera.config.components, from an allow-list; experiments.engine.registry and vera.commands, from folders; vera.nn and
    vera.config, from tables of their own."""
    found = {path.relative_to(ROOT).as_posix() for path in SOURCES for _, name in calls(path) if name.endswith("import_module")}
    packages = {f"vera/{name}/__init__.py" for name in ("nn", "config", "commands")}
    assert found == {"vera/config/components.py", "experiments/engine/registry.py", *packages}


@pytest.fixture
def folder(cache, tmp_path):
    """folder(family) -> a tiny model of the family in a folder of its own."""

    def make(family: str) -> Path:
        import shutil

        model = {"roberta": ["model=roberta_base", "task=rte"], "vit": ["model=vit_base", "task=cifar100"]}
        model |= {"gpt2": ["model=gpt2_medium", "task=e2e"]}
        source = Path(build(compose([*REHEARSAL, *model[family]]).model, "model").source(cache))
        return Path(shutil.copytree(source, tmp_path / family))

    return make


OVERRIDES = {
    "roberta": ["model=roberta_base", "task=rte"],
    "vit": ["model=vit_base", "task=cifar100", "task.classes=100"],
    "gpt2": ["model=gpt2_medium", "task=e2e"],
}


def load(family: str, path: Path, cache: Path):
    run = compose([*REHEARSAL, *OVERRIDES[family], "model.size=full", f"model.path={path}", "~model.full"])
    outputs = {"roberta": 2, "vit": 100, "gpt2": 0}[family]
    return build(run.model, "model").load(outputs, cache)


@pytest.mark.parametrize("family", list(OVERRIDES))
def test_pickled_weights_are_never_loaded(family, folder, trace, cache):
    path = folder(family)
    for name in ("pytorch_model.bin", "model.pt", "adapter_model.bin", "pytorch_model-00001-of-00001.bin", "tokenizer.pkl"):
        (path / name).write_bytes(pickle.dumps(Bomb(trace)))
        torch.save({"x": Bomb(trace)}, path / f"zip-{name}")
    assert load(family, path, cache).fingerprint  # they are ignored beside safetensors
    (path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="safetensors"):
        load(family, path, cache)


@pytest.mark.parametrize("family", list(OVERRIDES))
def test_code_in_a_model_folder_is_never_run(family, folder, trace, cache):
    path = folder(family)
    code = f"from pathlib import Path\nPath({str(trace)!r}).touch()\n"
    for name in ("modeling_x.py", "configuration_x.py", "tokenization_x.py", "__init__.py"):
        (path / name).write_text(code + "class X: pass\n")
    config = json.loads((path / "config.json").read_text())
    classes = ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification", "AutoModelForCausalLM")
    code_map = dict.fromkeys(
        (*classes, "AutoModelForImageClassification", "AutoTokenizer", "AutoImageProcessor"), "modeling_x.X"
    )
    for changed in ({"auto_map": code_map}, {"auto_map": code_map, "model_type": "x"}, {"_attn_implementation": "x/kernel"}):
        (path / "config.json").write_text(json.dumps({**config, **changed}))
        for name in ("tokenizer_config.json", "preprocessor_config.json"):
            if (path / name).is_file():
                values = json.loads((path / name).read_text())
                (path / name).write_text(json.dumps({**values, "auto_map": {"AutoTokenizer": ["modeling_x.X", None]}}))
        try:
            load(family, path, cache)
        except ModelError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("method", ["lora", "vera", "bitfit"])
def test_pickled_adapters_are_never_loaded(method, compose, trace):
    from vera.methods.base import WEIGHTS_FILE
    from vera.run import prepare

    run = compose(f"method={method}")
    backbone, attached, _, _ = prepare(run)
    saved = trace.parent / "saved"
    attached.save(backbone, saved)
    for weights in (*saved.glob("*.safetensors"), saved / WEIGHTS_FILE):
        weights.unlink(missing_ok=True)
    for name in ("adapter_model.bin", "trained.bin", "adapter_model.safetensors", WEIGHTS_FILE):
        (saved / name).write_bytes(pickle.dumps(Bomb(trace)))
    fresh = build(run.model, "model")
    with pytest.raises(VeraError):
        attached.load(fresh.load(5, Path(run.cache_dir)), fresh, saved)


def test_scripts_beside_data_are_never_run(trace, tmp_path, cache):
    code = f"from pathlib import Path\nPath({str(trace)!r}).touch()\n"
    for name in ("images", "glue"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.py").write_text(code)
        (tmp_path / name / "train.py").write_text(code)
        (tmp_path / name / "dataset.pkl").write_bytes(pickle.dumps(Bomb(trace)))
    images = ["model=vit_base", "task=resisc45", f"task.data_dir={tmp_path / 'images'}", f"task.cache_dir={tmp_path / 'cache'}"]
    with pytest.raises(DataError):
        build(compose(images).task, "task").source_rows()
    (tmp_path / "images" / "train.parquet").write_bytes(pickle.dumps(Bomb(trace)))
    with pytest.raises(DataError):
        build(compose(images).task, "task").source_rows()
    with pytest.raises(DataError):
        build(compose(["model=roberta_base", "task=rte", f"task.data_dir={tmp_path / 'glue'}"]).task, "task").source_rows()
    with pytest.raises(ConfigError, match=r"task\.repository"):
        build(compose([*images[:2], f"task.repository={tmp_path / 'images'}"]).task, "task")
    with pytest.raises(RuntimeError, match="scripts are no longer supported"):
        datasets.load_dataset(str(tmp_path / "images" / "images.py"))


@pytest.mark.parametrize("target", ["os.system", "builtins.eval", "vera.config.RunConfig", "subprocess.Popen", "no.such.thing"])
def test_a_class_is_one_that_conf_names(target):
    for group in ("model", "task", "method"):
        with pytest.raises(ConfigError, match="is not a component; allowed: vera"):
            build(getattr(compose([f"{group}._target_={target}"]), group), group)
    with pytest.raises(ConfigError, match=r"method\.x is not a key"):
        build(compose([f"+method.x._target_={target}"]).method, "method")


@pytest.mark.parametrize(
    "key", ["method._target_", "+method.x._target_", "hydra.launcher._target_", "+hydra.callbacks.x._target_"]
)
def test_no_class_on_the_command_line(key, train, trace):
    done = train(f"{key}=pathlib.Path.touch")
    assert done.returncode == 2 and "classes are not given on the command line" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_every_class_of_conf_is_ours():
    for group in ("model", "task", "method", "tracker"):
        assert components.targets(group) and all(name.startswith("vera.") for name in components.targets(group))


def test_a_prompt_file_is_no_format_string():
    rows = [{"name": n, "system_prompt": "", "prompt_template": "{question}"} for n in ("single-v1", "single-math-v1")]
    for field in ("{question.__class__}", "{question[0]}", "{question:>99999999999}", "{question!r}", "{}", "{"):
        data = "\n".join(json.dumps({**row, "prompt_template": field}) for row in rows).encode()
        with pytest.raises(DataError):
            read_prompts(Found(data, "prompts.jsonl", "", False), "single")


# Nothing is written elsewhere


@pytest.mark.parametrize("word", ["../../x", "/tmp/x", "a/b", ".hidden", "a\x00b", "", "a\nb", "..", "x" * 300])
def test_a_name_stays_a_name(word, compose):
    for group in ("model", "task", "method"):
        run = compose()
        changed = {**getattr(run, group), "name": word}
        with pytest.raises(ConfigError):
            build(changed, group)
        with pytest.raises(ValueError, match="file's name"):
            type(run)(**{**run.model_dump(), group: changed})
    for overrides in ([f"questions.name='{word}'"], [f"questions.files.questions.names=['{word}']"]):
        from vera.config import checked
        from vera.judge.questions import QuestionSource

        if word in ("a/b", "x" * 300) and "names" in overrides[0]:
            continue  # a folder inside the folder of questions is one of the official layouts
        with pytest.raises(ConfigError):
            checked(QuestionSource, resolve("judge", overrides)["questions"], "questions")
    if word not in ("a/b", "x" * 300):
        with pytest.raises(ValueError, match="names"):
            PinnedFile(names=[word], url="https://x", sha256="0" * 64)


@pytest.fixture(scope="module")
def record(tmp_path_factory, cache):
    place = tmp_path_factory.mktemp("security")
    keys = [*REHEARSAL, f"cache_dir={cache}", f"results_dir={place / 'results'}", f"work_dir={place / 'work'}"]
    return execute(compose(keys))


@pytest.mark.parametrize(
    "path", ["../x.txt", "outputs/../../x.txt", "/tmp/x.txt", "runs/x.json", "outputs/other.txt", "outputs/{}.a/b"]
)
def test_a_record_writes_its_own_outputs_alone(path, record, tmp_path):
    path = path.format(record.name)
    with pytest.raises(ValueError, match="outputs"):
        Record.model_validate({**json.loads(record.to_json()), "outputs": {path: "0" * 64}})
    with pytest.raises(RecordError, match="may not write"):
        Store(tmp_path / "results").write(record, {path: "text"})
    assert not [found for found in tmp_path.rglob("*") if found.is_file()]


@pytest.mark.parametrize("key", ["model", "task", "method"])
def test_a_record_has_names_that_are_names(key, record):
    raw = json.loads(record.to_json())
    raw["run"][key] = "../../x"
    with pytest.raises(ValueError, match=key):
        Record.model_validate(raw)


def test_a_record_that_is_a_link_to_nothing_is_refused_before_its_run_is_made_again(record, tmp_path):
    store = Store(tmp_path)
    store.path(record.name).parent.mkdir(parents=True, exist_ok=True)
    store.path(record.name).symlink_to(tmp_path / "nowhere.json")
    with pytest.raises(RecordError, match="is a link to a file that is not here"):
        store.find(record.name)


def test_links_in_a_results_folder_lead_nowhere(record, tmp_path):
    """A link in a file's place in a stranger's results folder is refused, or replaced; its target stays as it is."""
    precious = tmp_path / "precious"
    precious.write_text("mine")
    store = Store(tmp_path / "results")
    store.runs.mkdir(parents=True)
    store.path(record.name).symlink_to(precious)
    with pytest.raises(RecordError, match="never overwritten"):
        store.write(record)
    (tmp_path / "lines.jsonl").symlink_to(precious)
    with pytest.raises(OSError):
        append_line(tmp_path / "lines.jsonl", "{}")
    write_atomic(tmp_path / "lines.jsonl", "whole")
    assert precious.read_text() == "mine"


# No secret is kept or printed

HUB, WANDB, JUDGE, OWN = (
    "hf_DISTINCTIVEhub0123456789",
    "d15t1nct1vewandbd15t1nct1vewandb00000000",
    "sk-DISTINCTIVEjudge0123456789",
    "DISTINCTIVEown",
)
PASSWORD = "DISTINCTIVEpassword"
SECRETS = {"HF_TOKEN": HUB, "WANDB_API_KEY": WANDB, "OPENAI_API_KEY": JUDGE, "MY_SECRET": OWN}
ADDRESS = f"https://user:{PASSWORD}@127.0.0.1:9/x?token={OWN}"


def leaks(text: str) -> list[str]:
    return [secret for secret in (*SECRETS.values(), PASSWORD) if secret in text]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (f"cannot reach {ADDRESS}", "cannot reach https://[hidden]@127.0.0.1:9/x?token=[hidden]"),
        (f"HTTP 401 for {HUB}", "HTTP 401 for [hidden]"),
        (f"key={JUDGE}.", "key=[hidden]."),
        ("https://huggingface.co/a/b@main has no config.json", "https://huggingface.co/a/b@main has no config.json"),
        ("TOKENIZERS_PARALLELISM=false is fine", "TOKENIZERS_PARALLELISM=false is fine"),
        ("mail user@host, 3@2", "mail user@host, 3@2"),
    ],
)
def test_texts_lose_their_secrets(text, kept, monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    assert redacted(text) == kept
    for error in (VeraError, *VeraError.__subclasses__()):
        if error.__init__ is VeraError.__init__:
            assert str(error(text)) == kept


def test_a_short_stand_in_is_no_secret(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    assert redacted("none of these") == "none of these"


def test_long_messages_are_cut():
    assert len(str(DataError("x" * 10**6))) <= errors.LONGEST + 5


def every_file(folder: Path) -> str:
    """The bytes of every file below a folder and their names, as text."""
    found = io.StringIO()
    for path in folder.rglob("*"):
        found.write(f"{path}\n")
        if path.is_file():
            found.write(path.read_bytes().decode("latin-1"))
    return found.getvalue()


def test_a_run_keeps_and_prints_no_secret(train, tmp_path):
    """A run that is tracked, one that fails with an address in its error, and a command line that holds a secret."""
    places = [f"hydra.sweep.dir={tmp_path / 'hydra'}"]
    done = train("tracker=wandb", WANDB_DIR=str(tmp_path), **SECRETS)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("wandb/offline-run-*")) and list(tmp_path.glob("results/runs/*.json"))
    failed = train(
        "-m", "model.size=full", f"model.path={tmp_path}/{OWN}", "seed=0,1", *places, WANDB_DIR=str(tmp_path), **SECRETS
    )
    assert failed.returncode and "holds a secret" in failed.stderr
    refused = train(f"model.path={ADDRESS}", "model.size=full", *places, **SECRETS)
    assert refused.returncode and "argument" in refused.stderr and len(refused.stderr.splitlines()) == 1
    interpolated = train("tracker=wandb", "tracker.project=${oc.env:MY_SECRET}", WANDB_DIR=str(tmp_path), **SECRETS)
    assert interpolated.returncode and "tracker.project holds a secret" in interpolated.stderr
    for process in (done, failed, refused, interpolated):
        assert not leaks(process.stdout + process.stderr), process.stderr
    text = every_file(tmp_path)
    assert "accuracy" in text and not leaks(text)
    command_lines = [line for line in text.splitlines() if "scripts/train.py" in line]
    assert not command_lines, "wandb kept the command line"


def test_an_error_of_a_library_is_kept_without_its_secrets(compose, monkeypatch, caplog):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)

    def fail(*_, **__):
        raise RuntimeError(f"proxy {ADDRESS} refuses {HUB} and {WANDB}")

    monkeypatch.setattr("vera.run.prepare", fail)
    run = compose()
    with caplog.at_level(logging.DEBUG), pytest.raises(VeraError) as error:
        execute(run)
    (failure,) = (Path(run.results_dir) / "failed").glob("*.json")
    assert "[hidden]" in failure.read_text() and not leaks(failure.read_text())
    assert "[hidden]" in str(error.value) and not leaks(str(error.value))


def test_the_judge_key_is_not_in_its_own_error(monkeypatch):
    from vera.config import checked

    settings = checked(JudgeSettings, resolve("judge", [])["judge"], "judge")
    monkeypatch.setenv("OPENAI_API_KEY", f"{JUDGE} with a space")
    with pytest.raises(ConfigError) as error:
        read_key(settings)
    assert not leaks(str(error.value))


def test_verdicts_of_scripts_without_a_network(script, tmp_path):
    """The doctor prints which variables are set, and never what they hold."""
    overrides = ["--with", "tracker=wandb", "--with", "tracker.mode=online"]
    environment = {**os.environ, **SECRETS, "HTTPS_PROXY": f"http://user:{PASSWORD}@127.0.0.1:9"}
    done = script("doctor.py", "instruct", *overrides, cwd=tmp_path, environment=environment)
    assert "WANDB_API_KEY" in done.stdout and not leaks(done.stdout + done.stderr), done.stderr


def test_json_from_elsewhere_is_a_value_or_a_value_error():
    for text in ("[" * 100_000, '"\\ud800"', "9" * 5000, "{", b"\xff", "", '{"a": "\\udfff"}'):
        with pytest.raises(ValueError):
            read_json(text)
    assert read_json(b'\xef\xbb\xbf{"a": "\\ud83d\\ude00"}') == {"a": "😀"}
