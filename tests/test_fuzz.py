"""Every reader accepts an input or refuses it with an error of this project: no other exception, no hang, nothing half done.

`make test` tries a few fixed inputs of each kind; `make test-fuzz` tries thousands at random and prints how many.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import nn

from experiments.engine import plan, published
from tests import fuzzing
from tests.fuzzing import broken_bytes, broken_json, broken_lines, broken_value, tried
from vera.config import CONF_DIR, build, choices, compose
from vera.config.paths import readable
from vera.errors import AdapterError, DataError, RecordError, VeraError
from vera.io.rows import read_csv
from vera.judge.judgement import Answers, Judged, find
from vera.judge.prompts import OWN, read_prompts
from vera.judge.questions import parse_questions, parse_turns
from vera.judge.sources import Found
from vera.judge.verdicts import read_verdict
from vera.nn import AdapterBank, VeraConfig, attach, load_adapter, save_adapter
from vera.records.record import Failure, parse
from vera.records.store import Store
from vera.tasks.alpaca import read_rows
from vera.tasks.e2e_metrics import read_files
from vera.tasks.glue import SUBSETS, Glue
from vera.tasks.image_cache import opened
from vera.tasks.image_rows import from_folder
from vera.tasks.images import Images
from vera.tasks.text import fingerprint
from vera.train import state

ROOT = CONF_DIR.parent
FEW = 30


@pytest.fixture
def fuzz(request):
    """fuzz(strategy, check, share): call `check` with inputs; `share` of the usual number where one is slow."""
    asked = request.config.getoption("--fuzz")

    def run(strategy, check, share: float = 1.0):
        count = max(3, int((asked or FEW) * share))

        @settings(
            max_examples=count,
            deadline=None,  # tests.fuzzing.in_time stops a reader that hangs
            derandomize=not asked,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def each(value):
            check(value)

        each()

    return run


def no_scraps(folder: Path, *allowed: str) -> None:
    left = [path.name for path in folder.iterdir() if path.name not in allowed]
    assert not left, left


RTE = (
    b"index\tsentence1\tsentence2\tlabel\n"
    b'0\tDana is a dog.\tDana is an animal.\tentailment\n1\tIt rains.\tIt is "dry".\tnot_entailment\n'
)
STSB = b"index\tsentence1\tsentence2\tscore\n0\ta cat\ta dog\t2.5\n1\ta\tb\t0.000\n"
COLA = "gj04\t1\t\tThe café closed.\nbc01\t0\t*\tHim went.\n".encode()
MRPC = b'\xef\xbb\xbfQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t1\t2\ta "b\r\n0\t3\t4\tc\td\r\n'


@pytest.mark.parametrize(("name", "valid"), [("rte", RTE), ("stsb", STSB), ("cola", COLA), ("mrpc", MRPC)])
def test_tsv(fuzz, name, valid, tmp_path):
    task = build(compose(["model=minilm", f"task={name}", f"task.data_dir={tmp_path}"]).task, "task")
    (tmp_path / "dev.tsv").write_bytes(valid)

    def check(data):
        (tmp_path / "train.tsv").write_bytes(data)
        found = tried("TSV (GLUE)", task.source_rows)
        if found is not None:
            rows = found[0]["train"]
            labels = SUBSETS[name].labels
            assert rows and all(0 <= label <= 5 if labels is None else label in range(2) for _, label in rows)
            fingerprint(found[0])
        no_scraps(tmp_path, "train.tsv", "dev.tsv")

    assert isinstance(task, Glue)
    fuzz(broken_bytes([valid]), check)


E2E_CSV = 'mr,ref\n"name[Zizzi], eatType[pub]","Zizzi is a ""pub"",\nyes."\n"name[Cotto], priceRange[£20-25]",Cotto.\n'.encode()


HU2022_TXT = "name : Zizzi | Type : pub||Zizzi is a pub .\nname : Cotto | price : £ 20 - 25||Cotto . \n".encode()


def e2e(folder, form):
    return build(compose(["model=gpt2_medium", "task=e2e", f"task.data_dir={folder}", f"task.format={form}"]).task, "task")


def test_e2e_csv(fuzz, tmp_path):
    for name in ("devset.csv", "testset_w_refs.csv"):
        (tmp_path / name).write_bytes(E2E_CSV)
    settings = e2e(tmp_path, "challenge")

    def check(data):
        (tmp_path / "trainset.csv").write_bytes(data)
        found = tried("CSV (E2E)", settings.source_rows)
        assert found is None or all(mr.strip() and ref.strip() for mr, ref in found[0]["train"])

    fuzz(broken_bytes([E2E_CSV]), check)


def test_e2e_lines_of_hu_et_al(fuzz, tmp_path):
    for name in ("valid.txt", "test.txt"):
        (tmp_path / name).write_bytes(HU2022_TXT)
    settings = e2e(tmp_path, "hu2022")

    def check(data):
        (tmp_path / "train.txt").write_bytes(data)
        found = tried("lines (E2E, Hu et al.)", settings.source_rows)
        assert found is None or all(meaning and ref and "||" not in meaning + ref for meaning, ref in found[0]["train"])

    fuzz(broken_bytes([HU2022_TXT]), check)


@pytest.mark.parametrize("suffix", ["txt", "csv", "tsv"])
def test_scored_files(fuzz, suffix, tmp_path):
    outputs = {"txt": b"a pub\na cafe\n", "csv": b"mr,output\nx,a pub\ny,a cafe\n", "tsv": b"mr\toutput\nx\ta pub\ny\ta cafe\n"}
    references = {"txt": b"a pub\nthe pub\n\na cafe\n", "csv": b"mr,ref\nx,a pub\nx,the pub\ny,a cafe\n"}
    references["tsv"] = references["csv"].replace(b",", b"\t")
    files = tmp_path / f"outputs.{suffix}", tmp_path / f"references.{suffix}"

    def check(pair):
        which, data = pair
        for index, (path, valid) in enumerate(zip(files, (outputs[suffix], references[suffix]), strict=True)):
            path.write_bytes(data if index == which else valid)
        found = tried("outputs and references (E2E scorer)", lambda: read_files(*files))
        assert found is None or (len(found[0]) == len(found[1]) and all(found[1]))

    either = st.sampled_from([0, 1]).flatmap(
        lambda which: st.tuples(st.just(which), broken_bytes([(outputs if which == 0 else references)[suffix]]))
    )
    fuzz(either, check)


def test_the_hubs_parquet_files(fuzz, tmp_path):
    task = build(compose(["model=minilm", "task=rte", f"task.data_dir={tmp_path}"]).task, "task")
    columns = {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [0, 1]}
    (tmp_path / "rte").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "rte" / "validation-00000-of-00001.parquet")
    valid = (tmp_path / "rte" / "validation-00000-of-00001.parquet").read_bytes()

    def check(data):
        (tmp_path / "rte" / "train-00000-of-00001.parquet").write_bytes(data)
        found = tried("parquet (GLUE)", task.source_rows)
        if found is not None:
            assert all(label in (0, 1) and all(isinstance(text, str) for text in texts) for texts, label in found[0]["train"])
            fingerprint(found[0])

    fuzz(broken_bytes([valid]), check)


def test_images_with_odd_blocks(fuzz):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Make] = 6, "camera"
    made = io.BytesIO()
    Image.new("RGB", (8, 12), (200, 30, 30)).save(made, "JPEG", exif=exif)

    def read(data):
        try:
            return opened(data)
        except Exception as error:  # whatever PIL raises is counted and named by image_cache
            raise DataError(str(error) or type(error).__name__) from None

    def check(data):
        found = tried("images with EXIF", lambda: read(data))
        assert found is None or sorted(found[0].size)[0] > 0

    fuzz(broken_bytes([made.getvalue()]), check)


def test_paths_on_the_command_line(fuzz):
    """A path arrives as it was written, whatever is in it; a comma alone may part the paths of a sweep."""
    parser = OverridesParser.create()

    def check(path):
        (argument,) = readable([f"task.data_dir={path}"])
        value = tried("paths (command line)", lambda: parser.parse_override(argument).value())
        assert value == path

    letters = st.characters(codec="utf-8", exclude_characters=",\x00\n\r", exclude_categories=["Cc", "Cs"])
    fuzz(st.text(letters, max_size=30).map(lambda text: "/d" + text).filter(lambda path: "${" not in path), check)


ROWS = [{"instruction": "Add.", "input": "1 + 1", "output": "2"}, {"instruction": "Say {input}", "input": "", "output": "é"}]


def test_instructions(fuzz, tmp_path):
    path = tmp_path / "alpaca_data.json"

    def check(data):
        path.write_bytes(data)
        found = tried("JSON instructions (Alpaca)", lambda: read_rows(tmp_path))
        if found is not None:
            json.dumps(found, ensure_ascii=False).encode()  # as the fingerprint does

    fuzz(broken_json([ROWS]), check)


QUESTIONS = [{"question_id": 1, "category": "math", "turns": ["1 + 1?", "Double it."]}] * 1 + [
    {"question_id": "b", "category": "writing", "turns": ["Name a colour.", "Another."]}
]
ANSWERS = [
    {"question_id": 1, "choices": [{"index": 0, "turns": ["2", "4"]}]},
    {"question_id": "b", "choices": [{"turns": ["x", ""]}]},
]
PROMPTS = [
    {"name": prompt.name, "system_prompt": prompt.system, "prompt_template": prompt.template, "defaults": {"x": "y"}}
    for prompt in OWN[:4]
]


@pytest.mark.parametrize(
    ("name", "valid", "read"),
    [
        ("questions", QUESTIONS, lambda found: parse_questions(found, 2)),
        ("answers", ANSWERS, lambda found: parse_turns(found, 2)),
        ("judge prompts", PROMPTS, lambda found: read_prompts(found, "single")),
    ],
)
def test_mt_bench(fuzz, name, valid, read):
    def check(data):
        found = tried(f"MT-Bench {name}", lambda: read(Found(data, "file.jsonl", "", False)))
        if name == "judge prompts" and found is not None:
            for key, prompt in found.by_name.items():
                fields = (
                    "question",
                    "answer",
                    "ref_answer_1",
                    "question_1",
                    "question_2",
                    "answer_1",
                    "answer_2",
                    "ref_answer_2",
                )
                assert all(message["content"] is not None for message in prompt.messages(dict.fromkeys(fields, "x"))), key

    fuzz(broken_lines(valid), check)


def test_verdicts(fuzz):
    """A verdict has no wrong form: it holds a rating from 1 to 10, or it is unreadable."""
    words = st.sampled_from(["[[7]]", "[[", "]]", "(8, 3)", "8 3", "10.5", "[[9.5, 2]]", "\n", " ", "9" * 400, "[[NaN]]"])

    def check(parts):
        for form in ("rating", "pair", "first line", "tuple"):
            for rule in ("own", "fastchat"):
                scores = tried("verdicts", lambda form=form, rule=rule: read_verdict("".join(parts), "stop", form, rule))
                assert scores is None or all(1 <= score <= 10 for score in scores)

    fuzz(st.lists(st.one_of(words, st.text(max_size=5)), max_size=8), check)


@pytest.fixture(scope="module")
def valid_records():
    return [json.loads(path.read_bytes()) for path in sorted((ROOT / "results" / "runs").glob("*.json"))[::60]]


def test_records(fuzz, valid_records, tmp_path):
    store = Store(tmp_path)
    store.runs.mkdir()

    def check(data):
        found = tried("records", lambda: parse(data, "results/runs/x.json"))
        if found is not None:
            again = parse(found.to_json(), "again")
            assert again == found and Path(found.name).name == found.name and not found.name.startswith(".")
        path = store.runs / f"{found.name if found else 'digits_vit--digits--vera--00000000--s0'}.json"
        path.write_bytes(data)
        assert (tried("folders of records", store.records) is None) == (found is None)
        path.unlink()

    fuzz(broken_json(valid_records), check)


def test_failures(fuzz, valid_records, tmp_path):
    failure = {"schema": 1, "status": "failed", "run": valid_records[0]["run"], "error": "no", "finished": "now"}
    (tmp_path / "failed").mkdir()
    Failure.model_validate(failure)

    def check(data):
        (tmp_path / "failed" / "x.json").write_bytes(data)
        assert isinstance(tried("failures", lambda: plan.failure(tmp_path, "x")), str)

    fuzz(broken_json([failure]), check)


ABOUT = {"name": "mt_bench", "version": 1, "sha256": "0" * 64, "official": True, "count": 2, "turns": 2}
ANSWERED = {
    **{"schema": 1, "status": "done", "identity": "0" * 64, "model": "llama_7b", "run": None, "checkpoint": None},
    **{"adapter_sha256": None, "questions": ABOUT, "settings": {}, "cut": 0, "shortened": 0, "cost": {"seconds": 1.0}},
    "provenance": {},
}
SCORE = {"mean": 5.0, "n": 2, "by_turn": {"1": 5.0, "2": 5.0}, "by_category": {"math": 5.0}}
GRADED = {
    "name": "llama_7b--bare--mt_bench--00000000",
    "sha256": "0" * 64,
    "model": "llama_7b",
    "checkpoint": None,
    "run": None,
}
JUDGE = {"version": 1, "model": "gpt-4", "base_url": "https://x/v1", "temperature": 0.0, "max_tokens": 9, "orders": "both"}
JUDGEMENT = {
    **{"schema": 1, "status": "done", "identity": "0" * 64, "judge": {**JUDGE, "prompts": "own", "prompts_sha256": "0" * 64}},
    **{"questions": ABOUT, "answers": [GRADED], "scores": [SCORE], "verdicts": 2, "unreadable": []},
    **{"cost": {"requests": 2}, "provenance": {}},
}


@pytest.mark.parametrize(("schema", "valid"), [(Answers, ANSWERED), (Judged, JUDGEMENT)])
def test_records_of_answers_and_judgements(fuzz, schema, valid, tmp_path):
    from experiments.engine.judged import table

    path = tmp_path / "judged" / "x.json"
    path.parent.mkdir()

    def check(data):
        path.write_bytes(data)
        found = tried(f"records of {schema.__name__.lower()}", lambda: find(schema, path))
        if found is not None:
            assert Path(found.name).name == found.name
            if schema is Judged:
                assert table(tmp_path)

    fuzz(broken_json([valid]), check)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.query, self.value, self.head = nn.Linear(6, 5), nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.value(x) + self.query(x)[..., :4])


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """(adapter_config.json, adapter_model.safetensors) of a plain and of a compact adapter, and of one with A and B in it."""
    made = []
    for compact in (False, True):
        model = attach(Small(), VeraConfig(rank=3, targets=("query", "value"), modules_to_save=("head",)))
        folder = save_adapter(model, tmp_path_factory.mktemp("adapter"), compact=compact)
        made.append(((folder / "adapter_config.json").read_bytes(), (folder / "adapter_model.safetensors").read_bytes()))
    return made


def broken_adapters(adapters):
    """One of the two files broken: the configuration, the tensors as bytes, or our part of the metadata."""

    def of(pair):
        config, weights = pair
        size = int.from_bytes(weights[:8], "little")
        header = json.loads(weights[8 : 8 + size])
        metadata = json.loads(header["__metadata__"]["vera"])

        def with_header(changed) -> bytes:
            text = json.dumps(changed).encode(errors="surrogatepass")
            return len(text).to_bytes(8, "little") + text + weights[8 + size :]

        def with_metadata(value) -> bytes:
            return with_header({**header, "__metadata__": {"format": "pt", "vera": json.dumps(value)}})

        return st.one_of(
            st.tuples(broken_json([json.loads(config)]), st.just(weights)),
            st.tuples(st.just(config), broken_bytes([weights])),
            st.tuples(st.just(config), broken_value([header]).map(with_header)),
            st.tuples(st.just(config), broken_value([metadata]).map(with_metadata)),
            st.tuples(
                st.just(config), st.sampled_from([torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn]).map(other)
            ),
        )

    def other(dtype) -> bytes:
        return safetensors_bytes({"query.vera_lambda_b": torch.zeros(5).to(dtype)}, {"format": "pt"})

    return st.sampled_from(adapters).flatmap(of)


def write_adapter(folder: Path, files: tuple[bytes, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in zip(("adapter_config.json", "adapter_model.safetensors"), files, strict=True):
        (folder / name).write_bytes(data)
    return folder


def test_adapters(fuzz, adapters, tmp_path):
    def check(files):
        model = Small()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        found = tried("adapter files", lambda: load_adapter(model, write_adapter(tmp_path / "a", files)))
        if found is None:
            after = model.state_dict()
            assert after.keys() == before.keys() and all(torch.equal(after[name], value) for name, value in before.items())
        else:
            assert torch.isfinite(found(torch.ones(2, 6))).all()

    fuzz(broken_adapters(adapters), check)


def test_banks(fuzz, adapters, tmp_path):
    def check(files):
        write_adapter(tmp_path / "good", adapters[0])
        write_adapter(tmp_path / "other", files)
        bank = AdapterBank(Small())
        failed = tried("folders of adapters (bank)", lambda: bank.load(tmp_path))
        if failed is not None:
            assert set(bank.names) == {"good", "other"} - failed.keys() and bank.names
            with bank.use([bank.names[0], None]):
                assert torch.isfinite(bank.model(torch.ones(2, 6))).all()

    fuzz(broken_adapters(adapters), check)


def test_states_of_unfinished_runs(fuzz, tmp_path):
    model = nn.Linear(3, 2)
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    entry = {"epoch": 1, "step": 1, "train_loss": 0.5, "metrics": {"accuracy": 0.5, "f1": None}}
    spent = {"seconds": 1.0, "examples": 1, "tokens": 0, "restarts": 0, "peak_memory_bytes": None}
    progress = {"cell_id": "x", "step": 1, "history": [entry], "spent": spent}
    progress["final"] = {"metrics": {}, "files": {}, "notes": {}}
    progress["starts"] = [{"step": 0, "started": "then", "versions": {"torch": "1"}, "device": "cpu", "precision": "fp32"}]
    own = {"loss_sum": torch.tensor(0.5), **state.generators()}
    state.save(tmp_path, progress, {"trained": {"w": torch.ones(2)}, "chosen": {}, "method": {}}, parameters, optimizer, [own])
    valid = (tmp_path / state.FILE).read_bytes()
    size = int.from_bytes(valid[:8], "little")
    header = json.loads(valid[8 : 8 + size])
    kept = json.loads(header["__metadata__"]["state"])

    def with_state(value) -> bytes:
        text = json.dumps({**header, "__metadata__": {"state": json.dumps(value)}}).encode(errors="surrogatepass")
        return len(text).to_bytes(8, "little") + text + valid[8 + size :]

    generators = torch.get_rng_state()

    def check(data):
        (tmp_path / state.FILE).write_bytes(data)
        fresh = torch.optim.AdamW(model.parameters())
        found = tried("states of unfinished runs", lambda: state.load(tmp_path, parameters, fresh))
        if found is not None:
            assert found[0]["step"] >= 0 and isinstance(found[0]["history"], list)
        torch.set_rng_state(generators)
        no_scraps(tmp_path, state.FILE)

    fuzz(st.one_of(broken_bytes([valid]), broken_value([kept]).map(with_state)), check)


def picture(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (7, 5), "red").save(buffer, kind)
    return buffer.getvalue()


def image_task(folder: Path, cache: Path) -> Images:
    overrides = ["model=vit_base", "task=resisc45", f"task.data_dir={folder}", f"task.cache_dir={cache}", "task.classes=2"]
    return build(compose([*overrides, "task.workers=0", "task.train_per_class=1", "task.train_splits=[train]"]).task, "task")


@pytest.fixture(scope="module")
def pixels(cache):
    model = build(compose(["model=vit_base", "task=resisc45", "scale=rehearsal", f"cache_dir={cache}"]).model, "model")
    return model.load(2, cache)


def test_image_folders(fuzz, pixels, tmp_path):
    folder, cache = tmp_path / "images", tmp_path / "cache"
    for name in ("a", "b"):
        (folder / "train" / name).mkdir(parents=True)
        for index in range(2):
            (folder / "train" / name / f"{index}.png").write_bytes(picture("PNG"))
    task = image_task(folder, cache)

    def check(data):
        (folder / "train" / "a" / "0.png").write_bytes(data)
        found = tried("image folders", lambda: task.load(pixels, 0))
        if found is not None:
            assert len(found.train) == 2 and len(found.evaluation) == 2
        assert not list(cache.rglob(".new-*"))

    fuzz(broken_bytes([picture(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")]), check, 0.5)


def table(labels: list, images: list) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": images, "label": labels}), buffer)
    return buffer.getvalue()


def test_parquet(fuzz, tmp_path):
    image = {"bytes": picture("PNG"), "path": "x.png"}
    valid = [table([0, 1], [image, image]), table([0, None], [image, None]), table(["a", "b"], [image, image])]
    valid += [
        table([0, 1], [1, 2]),
        table([0, 9], [image, image]),
        table([0.5, 1.0], [image, image]),
        table([0, 1], ["x", "y"]),
    ]

    def check(data):
        (tmp_path / "train.parquet").write_bytes(data)
        found = tried("parquet files", lambda: from_folder(tmp_path, ["train"], "image", "label", 2, tmp_path / "cache"))
        assert found is None or set(found["train"].labels.tolist()) <= {0, 1}

    fuzz(st.one_of(st.sampled_from(valid), broken_bytes(valid)), check, 0.5)


def test_published_tables(fuzz, tmp_path):
    import yaml

    texts = [(published.FOLDER / f"{name}.yaml").read_bytes() for name in ("table2", "table5")]
    values = [yaml.safe_load(text) for text in texts]

    def check(data):
        (tmp_path / "table2.yaml").write_bytes(data)
        tried("published tables (YAML)", lambda: published.load("table2", tmp_path))

    as_yaml = broken_value(values).map(lambda value: yaml.safe_dump(value, allow_unicode=False).encode())
    nested = st.sampled_from(
        [
            b"a: &a [x]\n"
            + b"".join(b"%c: &%c [*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c]\n" % (*[98 + i] * 2, *[97 + i] * 8) for i in range(9)),
            b"[" * 20_000,
            b"table: 2001-99-99",
            b"table: !!python/object/apply:os.system [exit]",
            b"? [a, b]\n: c",
            b"1: 2",
        ]
    )
    fuzz(st.one_of(nested, broken_bytes(texts), as_yaml), check)


KEYS = (
    *("model", "task", "method", "train", "tracker", "sweep", "answers", "scale", "seed", "device", "progress", "results_dir"),
    *("model.path", "model.name", "model.targets", "model.tiny", "model.size", "model.neutral", "model.version", "model.head"),
    *("method.rank", "method.targets", "method.projection_seed", "method._target_", "method.d_init", "method.name"),
    *("task.classes", "task.data_dir", "task.facts", "task.primary", "task.name", "task.neutral", "tracker.project"),
    *("train.lr", "train.epochs", "train.betas", "train.warmup_steps", "train.schedule", "train.neutral", "train.save"),
    *("work_dir", "cache_dir", "hydra/launcher", "hydra.mode", "hydra.run.dir", "recipe", "x", "x.y", "seed.x", ""),
)
VALUES = (
    *(
        "1",
        "-1",
        "1.5",
        "abc",
        "null",
        "true",
        "nan",
        "inf",
        "1e999",
        "9" * 5000,
        "[]",
        "{}",
        "[1,2]",
        "{a:1}",
        "''",
        '"',
        "'",
        "\\",
    ),
    *(
        "../../x",
        "a/b",
        "/etc",
        "${seed}",
        "${method.rank}",
        "${model}",
        "${x",
        "${oc.env:PATH}",
        "${now:}",
        "$",
        "1,2",
        "choice(1,2)",
    ),
    *(
        "range(1,3)",
        "glob(*)",
        "???",
        "@",
        "=",
        "a=b",
        "[" * 500,
        "{a:" * 200,
        "vera",
        "lora",
        "roberta_base",
        "rte",
        "glue_base",
    ),
    *("os.system", "\x00", "\ud800", "é", "\u202e", " ", "\n", "x" * 3000, "{_target_:os.system}", "[[[1]]]", "!!python/none"),
)


def test_command_lines(fuzz, tmp_path):
    word = st.builds(
        "{}{}{}{}".format,
        st.sampled_from(["", "", "", "", "+", "++", "~", "-", "--"]),
        st.one_of(st.sampled_from(KEYS), st.sampled_from([f"{group}.x" for group in ("model", "task", "hydra")])),
        st.sampled_from(["=", "=", "=", "=", "", ":", " = ", "=="]),
        st.one_of(
            st.sampled_from(VALUES), st.sampled_from([name for group in ("model", "task", "method") for name in choices(group)])
        ),
    )

    def check(overrides):
        run = tried("command lines", lambda: compose(overrides))
        if run is not None:
            assert len(run.cell_id) == 64 and Path(run.run_name).name == run.run_name
            for group in ("model", "task", "method"):
                tried("components", lambda group=group: build(getattr(run, group), group))

    plain = st.builds("{}={}".format, st.sampled_from(KEYS), st.sampled_from(VALUES))
    fuzz(st.lists(st.one_of(plain, plain, word, st.text(max_size=20)), min_size=1, max_size=2), check)


def test_what_is_counted_is_what_was_tried(monkeypatch):
    """A reader that raises anything but our own error fails its test."""
    monkeypatch.setattr(fuzzing, "TRIED", {})
    with pytest.raises(KeyError):
        tried("x", lambda: {}["missing"])
    with pytest.raises(AssertionError):
        tried("x", lambda: (_ for _ in ()).throw(VeraError("two\nlines")))
    assert tried("x", lambda: 1) == 1 and tried("x", lambda: (_ for _ in ()).throw(VeraError("no"))) is None
    assert fuzzing.TRIED["x"] == [1, 1]


# What the inputs above have found, one plain test each


@pytest.mark.parametrize("text", [b"[" * 100_000, b'[{"instruction": "\\ud800", "output": "x"}]', b"9" * 5000])
def test_instructions_that_no_text_can_hold(text, tmp_path):
    (tmp_path / "alpaca_data.json").write_bytes(text)
    with pytest.raises(DataError, match=r"is not (a )?JSON"):
        read_rows(tmp_path)


def test_a_csv_header_that_is_a_long_text_is_told_shortened(tmp_path):
    (tmp_path / "trainset.csv").write_bytes(b"a" * 140_000 + b",ref\n")
    with pytest.raises(DataError, match=r"trainset\.csv:1 has no column 'mr'; it has 'a+\.\.\.a+', 'ref'$") as refused:
        list(read_csv(tmp_path / "trainset.csv", ("mr", "ref")))
    assert len(str(refused.value)) < len(str(tmp_path)) + 200


def test_a_header_is_not_quoted_at_any_length(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"9" * 100_000)
    with pytest.raises(DataError) as error:
        list(read_csv(tmp_path / "x.csv", ("mr", "ref")))
    assert len(str(error.value)) < 2100


@pytest.mark.parametrize("change", [{"defaults": [1]}, {"prompt_template": "{question.x}"}, {"prompt_template": "{0}"}])
def test_judge_prompts_with_other_fields(change):
    rows = [{**row, **change} for row in PROMPTS]
    with pytest.raises(DataError):
        read_prompts(Found("\n".join(map(json.dumps, rows)).encode(), "x", "", False), "single")


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {"x": {"y": float("-inf")}}])
def test_notes_that_do_not_come_back_as_they_are(value, valid_records):
    raw = {**valid_records[0], "provenance": {**valid_records[0]["provenance"], "notes": {"x": value}}}
    with pytest.raises(RecordError, match=r"provenance\.notes"):
        parse(json.dumps(raw), "x")
    raw = json.loads(json.dumps(valid_records[0]))
    raw["run"]["config"]["model"]["tiny"] = value
    with pytest.raises(RecordError):
        parse(json.dumps(raw), "x")


@pytest.mark.parametrize("config", [{}, {"model": 1}, {"model": {}, "task": {}, "method": {"neutral": 5, "x": 1}, "train": {}}])
def test_a_record_whose_config_is_none(config, valid_records):
    raw = {**valid_records[0], "run": {**valid_records[0]["run"], "config": config}}
    with pytest.raises(RecordError, match=r"run\.config"):
        parse(json.dumps(raw), "x")


@pytest.mark.parametrize(
    ("ours", "problem"),
    [
        ({"norms": ["x", None]}, "has norms that are not numbers"),
        ({"norms": [float("nan")]}, "has norms that are not numbers"),
        ({"shapes": [1, 2]}, "has shapes that are not pairs"),
        ({"shapes": [[5, 6], [4, 6]], "norms": [1.0]}, "has another number of norms"),
        ({"fingerprint": 5}, "has a fingerprint that is not a text"),
        ([], "is not a mapping"),
    ],
)
def test_adapter_metadata_of_other_types(ours, problem, adapters, tmp_path):
    write_adapter(tmp_path, adapters[0])
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_model.safetensors").write_bytes(safetensors_bytes(tensors, {"vera": json.dumps(ours)}))
    with pytest.raises(AdapterError, match=problem):
        load_adapter(Small(), tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"target_modules": [1, 2]},
        {"modules_to_save": [{}]},
        {"d_initial": "x"},
        {"projection_prng_key": 2**70},
        {"vera_dropout": None},
    ],
)
def test_adapter_settings_of_other_types(change, adapters, tmp_path):
    write_adapter(tmp_path, adapters[0])
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(AdapterError, match=r"adapter_config\.json"):
        load_adapter(Small(), tmp_path)


@pytest.mark.parametrize(
    "overrides", [["method._target_=[]"], ["model.targets=nan"], ["~model"], ["train.neutral=5"], ["model=[[[1]]]"]]
)
def test_overrides_that_leave_no_run(overrides):
    with pytest.raises(VeraError) as error:
        build(compose(overrides).method, "method")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", [b"\x80", b"table: 2001-99-99", b"[" * 20_000, b"1: 2"])
def test_tables_that_are_not_yaml(text, tmp_path):
    (tmp_path / "table2.yaml").write_bytes(text)
    with pytest.raises(VeraError, match=r"results/paper/table2\.yaml"):
        published.load("table2", tmp_path)
