"""The yardstick itself: what it times, counts and prints; and that the operations are those the plan promises."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bench import cases, measure, table12
from experiments.artefacts import bench as table
from experiments.engine.render import markdown
from experiments.engine.rows import Asked
from tests.test_tasks import write
from vera.config import build, compose
from vera.errors import ConfigError, DataError
from vera.nn import VeraConfig, attach
from vera.nn.functional import Plan

N, D_IN, D_OUT, RANK = 64, 48, 32, 8
FROZEN = 2 * N * D_IN * D_OUT  # forward and the gradient of x, with any method
COMPOSE = D_IN * D_OUT * RANK
PROMISED = {
    Plan("activation"): N * RANK * (2 * D_IN + 3 * D_OUT),
    Plan("weight", through_u=True, keep_weight=True): COMPOSE + N * RANK * (D_IN + D_OUT),
    Plan("weight", through_u=False, keep_weight=True): 2 * COMPOSE + N * D_IN * D_OUT,
    Plan("weight", through_u=True, keep_weight=False): 2 * COMPOSE + N * RANK * (D_IN + D_OUT),
}


@pytest.mark.parametrize("plan", PROMISED, ids=str)
def test_operations_of_a_step_are_the_promised_ones(plan):
    model = nn.Module()
    model.up = nn.Linear(D_IN, D_OUT)
    layer = attach(model, VeraConfig(rank=RANK, targets=("up",))).up
    layer.plan = plan
    x = torch.randn(N, D_IN, requires_grad=True)
    found = measure.multiply_adds(lambda: layer(x).sum().backward())
    assert found == pytest.approx(FROZEN + PROMISED[plan], rel=2e-3)  # a product of matrix and vector, P d or b P, comes on top


class _Started(TorchDispatchMode):
    """Counts operations that start a kernel: all but views and empty tensors."""

    count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation._schema.name.removeprefix("aten::")
        self.count += not (operation.is_view or name in ("empty_like", "detach", "squeeze_", "_unsafe_view"))
        return operation(*args, **(kwargs or {}))


def test_under_autocast_a_step_starts_fewer_operations_than_pefts_vera_and_lora():
    """What decides on a GPU that waits for the CPU (docs/speed.md)."""
    inputs, counts = torch.randint(5, 99, (2, 8)), {}
    for name, model in cases.methods(lambda: cases.roberta(64, 2), cases.QUERY_VALUE, 64, 8).items():
        for _ in range(2):  # the first step rounds A for all that come
            started = _Started()
            with started:
                with torch.autocast("cpu", torch.bfloat16):
                    loss = model(input_ids=inputs).last_hidden_state.float().pow(2).mean()
                loss.backward()
        counts[name] = started.count
    assert counts["ours"] < counts["LoRA r=8"] < counts["PEFT VeRA"], counts


def test_calls_take_turns_and_the_first_round_is_not_timed():
    calls = []
    seconds = measure.alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, "cpu")
    assert calls == list("abba") * 2 and [len(times) for times in seconds.values()] == [3, 3]


def test_ratio_is_taken_round_by_round():
    found = measure.ratio([1.0, 2.0, 9.0], [2.0, 2.0, 3.0])
    assert found == {"median": 1.0, "low": 0.5, "high": 3.0, "min": 0.5, "max": 3.0}
    eight = measure.ratio([float(n) for n in range(1, 9)], [1.0] * 8)  # P(B <= 0) = 1/256 on each side, with one more 9/256
    assert (eight["low"], eight["high"], eight["max"]) == (1.0, 8.0, 8.0)
    nine = measure.ratio([float(n) for n in range(1, 10)], [1.0] * 9)  # 10/512 on each side: 96.1%
    assert (nine["low"], nine["high"]) == (2.0, 8.0)


def test_peak_memory_is_the_most_at_once():
    def call():
        for _ in range(3):
            kept = torch.ones(1000, dtype=torch.float32)
            other = torch.ones(2000, dtype=torch.float32)
            del other, kept

    assert measure.peak_bytes(call, "cpu") == 12_000


def test_a_case_measures_all_methods_and_becomes_a_table(tmp_path, monkeypatch):
    sizes = cases.Sizes("cpu")
    sizes.rounds = 2
    models = cases.methods(lambda: cases.roberta(64, 1), ("query", "value"), 16, 4)
    rows = cases.training(models, torch.randint(5, 99, (2, 8)), "a", "tiny | 1 layer", {("time", "PEFT VeRA"): 0.0}, sizes)
    assert [row["what"] for row in rows] == [
        f"{what} / {other}"
        for other in ("PEFT VeRA", "LoRA r=4")
        for what in ("training step", "peak memory of a step", "multiply-adds of a step")
    ]
    for row in rows:
        assert row["ours"] > 0 and row["other"] > 0
        assert row["ratio"]["min"] <= row["ratio"]["median"] <= row["ratio"]["max"]
    rows = [{**row, "load_average": 1.5} for row in rows]
    described = measure.machine("cpu")
    left_out = [{"case": "f", "why": "data"}]
    (tmp_path / "this.json").write_text(json.dumps({"machine": described, "cases": rows, "left_out": left_out}))
    monkeypatch.setattr(table, "MEASURED", tmp_path)
    (made,) = table.build(Asked({}))
    text = markdown(made)
    assert len(made.rows) == 6 and "0.00 missed" in text and "tiny \\| 1 layer" in text and "Case f not measured" in text


def interval(median, by=0.1):
    return {"median": median, "min": median - by, "max": median + by}


def measured(median, rounds=10, **more):
    ratio = interval(median)
    row = {"case": "a", "what": "step", "shapes": "s", "unit": "s", "ours": median, "other": 1.0, "goal": 0.78}
    return {**row, "ratio": ratio, "rounds": rounds, "load_average": 1.0, **more}


def test_occasions_of_the_same_code_add_up_and_a_goal_wants_three():
    rows, said = [], []
    for index, median in enumerate((0.70, 0.76, 0.74)):
        rows = measure.accumulated(rows, [measured(median, cpu=interval(median + 0.01))], f"day {index}", "code")
        said.append(table._goal(rows[0]))
    (row,) = rows
    assert said == ["0.78 open", "0.78 open", "0.78 met"] and len(row["occasions"]) == 3
    assert row["interval"] == [0.70, 0.76] and row["ratio"]["median"] == 0.74
    assert (row["ratio"]["min"], row["ratio"]["max"]) == (pytest.approx(0.6), pytest.approx(0.86))
    assert row["rounds"] == 30 and row["cpu"]["median"] == pytest.approx(0.75) and table._interval(row) == "[0.700, 0.760] (3)"
    spanning = measure.accumulated(rows, [measured(0.79)], "day 3", "code")
    assert table._goal(spanning[0]) == "0.78 open"
    (other,) = measure.accumulated(rows, [measured(0.80)], "day 4", "other code")
    assert len(other["occasions"]) == 1 and table._goal(other) == "0.78 missed"


@pytest.mark.parametrize(
    ("kind", "cpu", "reading"),
    [("cpu", 1.0, "supported"), ("cpu", 1.1, "not supported"), ("cpu", None, "undecided"), ("gpu", 1.1, "undecided")],
)
def test_a_claim_about_time_reads_computed_time_but_for_a_gpu(kind, cpu, reading, tmp_path, monkeypatch):
    row = measured(1.0, cpu=cpu and interval(cpu, 0.01))
    (tmp_path / "x.json").write_text(json.dumps({"machine": {"device": "X", "kind": kind}, "cases": [row]}))
    monkeypatch.setattr(table, "MEASURED", tmp_path)
    (line,) = table.ratios("x", lambda row: True, 1.02, "p", lambda machine, row: False)
    assert line.reading == reading and ("CPU time" in line.test) == (kind == "cpu" and cpu is not None)


def test_rows_from_before_there_were_occasions_are_read_as_one():
    row = measured(0.70)
    assert table._interval(row) == "[0.700, 0.700] (1)" and table._goal(row) == "0.78 open"
    assert table._goal(measured(0.70, rounds=1)) == "0.78 met" and table._goal(measured(0.9)) == "0.78 missed"
    (again,) = measure.accumulated([row], [measured(0.75)], "now", "code")
    assert len(again["occasions"]) == 1


def test_a_mixed_batch_and_files_are_measured(monkeypatch):
    sizes = cases.Sizes("cpu")
    sizes.rounds, sizes.adapters = 1, (3, 4)
    monkeypatch.setattr(cases, "roberta", lambda d, layers, labels=None, real=cases.roberta: real(64, 1, labels))
    assert [row["case"] for row in cases.case_d(sizes)] == ["d"] * 5
    sizes.banks = (7, 11)
    rows = cases.case_h(sizes)
    assert [row["case"] for row in rows] == ["h"] * 10 and "3 of 11 adapters" in rows[-1]["shapes"]
    assert all(row["ours"] > 0 and row["other"] > 0 for row in rows if row["unit"] == "s")


@pytest.mark.parametrize(
    ("arguments", "message"), [(["z"], "no such case: z"), (["--device", "cuda"], "no CUDA GPU")], ids=["case", "device"]
)
def test_bad_arguments_of_the_script(arguments, message, script):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = script("bench.py", *arguments)
    assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr


def test_a_measurement_on_a_gpu_is_read_as_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *ignored: "NVIDIA H100")
    assert table.on_gpu(measure.machine("cuda")) and not table.on_gpu(measure.machine("cpu"))


@pytest.mark.parametrize("method", table12.METHODS)
def test_table_12_measures_the_layers_that_a_run_has(method, cache, monkeypatch):
    """Of either method: PEFT's own class for 4-bit weights, and ours around the same kind of weight."""
    pytest.importorskip("bitsandbytes")
    from vera.run import prepare

    run = compose(["model=llama_7b", "task=alpaca", f"method={method}", "scale=rehearsal", f"cache_dir={cache}"])

    def kinds(model):
        return {f"{type(m).__module__}.{type(m).__qualname__}" for name, m in model.named_modules() if name.endswith("q_proj")}

    def weights(model):
        found = [p for p in model.parameters() if hasattr(p, "quant_state")]
        return {(type(p).__name__, p.quant_type, p.compress_statistics) for p in found}

    real = prepare(run)[0].model
    model, four_bits = table12.random_model(True, "cpu")
    adapted, kind = [], type(build(run.method, "method"))
    attach = kind.attach
    monkeypatch.setattr(kind, "attach", lambda self, backbone, *rest: adapted.append(backbone) or attach(self, backbone, *rest))
    table12.measure(method, model, four_bits, 1, 0, 8)
    measured = adapted[0].model
    assert four_bits and kinds(measured) == kinds(real) and weights(measured) == weights(real) != set()
    assert kinds(model) == {"bitsandbytes.nn.modules.Linear4bit"}  # the other method finds it bare


@pytest.fixture
def bench_of(tmp_path, monkeypatch):
    """bench_of(torch version, *arguments): the command's file after it measured made-up rows; case f needs what is not here."""
    from vera.commands import bench as command

    described = measure.machine("cpu")

    def case(name, *ignored):
        if name == "f":
            raise cases.NeedsMore("data")
        return [measured(0.7) | {"case": name}]

    def run(version, *arguments):
        here = {**described, "versions": {**described["versions"], "torch": version}}
        monkeypatch.setattr("bench.report.machine", lambda device: here)
        monkeypatch.setattr("bench.report.code", lambda case: f"code of {version}")
        monkeypatch.setattr(cases, "measure_case", case)
        monkeypatch.setattr("sys.argv", ["bench.py", "--device", "cpu", "--out", str(tmp_path), *arguments])
        assert command.main() == 0
        (path,) = tmp_path.glob("*.json")
        return path, json.loads(path.read_text())

    return run


def test_rows_keep_the_versions_that_they_were_measured_with(bench_of, tmp_path, monkeypatch):
    bench_of("2.11", "a", "b")
    _, found = bench_of("2.13", "b")
    assert found["machine"]["versions"]["torch"] == "2.11"
    assert [row.get("machine", found["machine"])["versions"]["torch"] for row in found["cases"]] == ["2.11", "2.13"]
    monkeypatch.setattr(table, "MEASURED", tmp_path)
    notes = [note for note in table.build(Asked({}))[0].notes if "threads of" in note]
    assert (
        ["torch 2.11" in notes[0], "(case a)" in notes[0]] == ["torch 2.13" in notes[1], "(case b)" in notes[1]] == [True] * 2
    )
    _, found = bench_of("2.11", "b")
    assert not any("machine" in row for row in found["cases"]) and [len(row["occasions"]) for row in found["cases"]] == [1, 1]
    assert len([note for note in table.build(Asked({}))[0].notes if "threads of" in note]) == 1


def test_what_cannot_be_measured_again_stays(bench_of, capsys):
    path, found = bench_of("2.11", "a", "f")
    assert found["left_out"] == [{"case": "f", "why": "data"}]
    path.write_text(json.dumps({**found, "cases": [*found["cases"], measured(0.5) | {"case": "f"}], "left_out": []}))
    _, found = bench_of("2.11", "a", "f")
    assert [(row["case"], row["ratio"]["median"]) for row in found["cases"]] == [("a", 0.7), ("f", 0.5)]
    assert found["left_out"] == [] and len(found["cases"][0]["occasions"]) == 2
    assert "(f) not measured again, needs data" in capsys.readouterr().err


def test_a_proof_on_a_machine_with_a_file_says_its_own_versions(bench_of, tmp_path, monkeypatch):
    from vera.commands.gpu_proof import Proof

    _, before = bench_of("2.11", "a")
    bench_of("2.13", "a")  # the only case: the file is of this machine now
    made = Proof("cpu", True, tmp_path)
    assert made.report.content["machine"]["versions"]["torch"] == "2.13" != before["machine"]["versions"]["torch"]
    bench_of("2.15", "b")
    made = Proof("cpu", True, tmp_path)
    made.run("tests", lambda: made.found("tests", "3 passed"))
    made.run("epoch", lambda: made.report.rows("p", [measured(0.9) | {"case": "p"}]))
    made.run("step", lambda: 1 / 0)
    monkeypatch.setattr("bench.table12.compare", lambda options: {"cases": []})
    made.run("table12", made.table12)
    made.report.lacks("table12", "more than 5 minutes")  # again, in less time
    assert (tmp_path / "table12.json").is_file()
    (tmp_path / "table12.json").unlink()
    (path,) = tmp_path.glob("*.json")
    found = json.loads(path.read_text())
    versions = {row["case"]: row.get("machine", found["machine"])["versions"]["torch"] for row in found["cases"]}
    assert versions == {"a": "2.13", "b": "2.15", "p": "2.15"} and found["proof"]["versions"]["tests"]["torch"] == "2.15"
    assert made.failed and [entry["case"] for entry in found["left_out"]] == ["step"]


def test_requests_that_a_model_cannot_read_whole(capsys):
    from types import SimpleNamespace

    from vera.commands.serve_mixed import _encoded
    from vera.models.tiny import END, byte_tokenizer, bytes_of, causal_tokenizer

    model = torch.nn.Linear(1, 1)
    model.config = SimpleNamespace(max_position_embeddings=20)
    writer, reader = causal_tokenizer(bytes_of([END])), byte_tokenizer()
    reader.model_max_length = 10**30
    rows = [{"text": "a b"}, {"text": "twelve bytes"}]
    assert [len(row["input_ids"]) for row in _encoded(writer, model, rows, generate=8)] == [3, 12]
    with pytest.raises(DataError, match="the longest request and --generate are 21 tokens; this model reads 20"):
        _encoded(writer, model, rows, generate=9)
    with pytest.raises(DataError, match="text is empty"):
        _encoded(writer, model, [*rows, {"text": ""}], generate=1)
    found = _encoded(reader, model, [*rows, {"text": "nineteen bytes long"}], generate=0)
    assert [len(row["input_ids"]) for row in found] == [5, 14, 20]
    assert capsys.readouterr().err == "warning: 1 of 3 requests are longer than the model reads and were cut\n"


def test_the_loop_of_case_f_takes_its_own_few_layers(tmp_path):
    """RoBERTa-base's recipe with a checkpoint of other sizes, which a run of that name would refuse."""
    (tmp_path / "glue").mkdir()
    write(tmp_path / "glue" / "RTE", "rte")
    backbone = cases._roberta_with_tokenizer(1, tmp_path / "model")
    loop, batches = cases._our_loop("rte", backbone, tmp_path / "glue", str(tmp_path), 4096, cases.Sizes("cpu"))
    usual = compose(["model=roberta_base", "method=vera", "task=rte"])
    assert (loop.run.train.lr, loop.run.method["rank"]) == (usual.train.lr, usual.method["rank"])
    assert loop.backbone.model.config.num_hidden_layers == 1 and len(next(batches)) >= 1


@pytest.mark.parametrize("refused", [False, True])
def test_table_12_shows_steps_by_cuda_graphs_where_they_could_be_recorded(refused, monkeypatch, capsys):
    def rounds_of(options, model, four_bits, device, graphs=False):
        if graphs and refused:
            raise ConfigError("no such recording")
        seconds = {"vera": [3.0, 1.0], "lora": [2.0, 2.0]} if not graphs else {"vera": [0.9], "lora": [1.0]}
        return [{m: {"seconds": seconds[m], "peak_memory_bytes": 10 * len(m)} for m in seconds}] * 6

    monkeypatch.setattr(table12, "rounds_of", rounds_of)
    monkeypatch.setattr(table12, "random_model", lambda tiny, device: (None, True))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(measure, "machine", lambda device: {"device": f"a {device}"})
    made = table12.compare(SimpleNamespace(tiny=False, rounds=6, steps=2, warmup=1, length=512))
    ratios = {row["case"]: row["ratio"]["median"] for row in made["cases"]}
    assert ratios.pop("table12_time") == ratios.pop("table12_memory") == 1.0
    assert ratios == ({} if refused else {"table12_time_graphs": 0.9})
    shown = {row[0]: row[2] for row in table12.table(made).rows if row[1] == "VeRA / LoRA"}
    assert shown.pop("paper") == "1.018" and shown.pop("ours") == "1.000"
    assert shown == ({} if refused else {"ours, CUDA graphs": "0.900"})
    assert ("no such recording" in capsys.readouterr().out) is refused
