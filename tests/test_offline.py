"""A machine without a network: folders laid out as the hub's serve every sweep, from the doctor to a table."""

import pytest

from experiments.engine.judged import table as judged_table
from experiments.engine.paper import ask, tables
from experiments.engine.sweeps import cells, sweeps
from tests import hub_folders
from tests.judge_server import Judge
from vera.checks.doctor.lines import OK
from vera.checks.doctor.sources import local_data, model_line
from vera.config import checked, compose, resolve
from vera.judge.endpoint import JudgeSettings
from vera.judge.grade import judge
from vera.judge.questions import QuestionSource
from vera.run import execute
from vera.trained.answers import AnswerSettings, answer

SWEEPS = {"glue_base": "roberta", "e2e": "gpt2", "images": "vit", "instruct": "llama", "vicuna": "llama"}
SHORT = ["train.max_steps=1", "train.eval_batch_size=64", "seed=0"]
CHOICES = ("method", "task", "seed", "models_dir", "data_root", "results_dir", "cache_dir", "device", "progress")
OWN = {  # what a short run of each sweep is given beside
    "glue_base": ["method=vera,lora", "task=rte"],
    "e2e": ["method=vera", "train.lr=0.01", "task.decoding.max_new_tokens=2"],
    "images": ["method=head", "task=resisc45", "task.workers=1"],
    "instruct": ["task.held_out=4", "answers.decoding.max_new_tokens=2"],
    "vicuna": ["task.held_out=4", "task.rows=8", "answers.decoding.max_new_tokens=2"],
}


@pytest.fixture(scope="module")
def box(tmp_path_factory):
    folder = tmp_path_factory.mktemp("box")
    hub_folders.models(folder / "models")
    hub_folders.everything(folder / "data")
    return folder


def given(box, sweep):
    """What a command line says for a sweep on this machine."""
    places = [f"models_dir={box}/models", f"data_root={box}/data", f"results_dir={box}/results", f"cache_dir={box}/cache"]
    return [*places, "device=cpu", "progress=false", *hub_folders.stated(SWEEPS[sweep]), *SHORT, *OWN[sweep]]


@pytest.mark.parametrize("sweep", SWEEPS)
def test_two_folders_serve_every_model_and_data_set_of_a_sweep(sweep, box):
    keys = [key for key in given(box, sweep) if key not in ("task=rte", "task=resisc45", "method=head")]
    runs = [cell.run for one in sweeps(sweep) for cell in cells(one, keys)]
    lines = [line for run in runs for line in (model_line(run, "no network", {}), *local_data([run]))]
    assert {line.status for line in lines} == {OK}, [line for line in lines if line.status != OK]
    sizes = {"glue_base": (1, 6), "e2e": (2, 1), "images": (2, 4), "instruct": (4, 1), "vicuna": (1, 1)}[sweep]
    assert (len({run.model["path"] for run in runs}), len({run.task["name"] for run in runs})) == sizes


def test_models_of_other_sizes_need_a_word(box):
    """Without a statement of its sizes, no folder stands for a published model."""
    run = compose(["model=roberta_base", "task=rte", f"models_dir={box}/models", f"data_root={box}/data"])
    assert "hidden_size 16 where model.full says 768" in model_line(run, None, {}).found


def trained(sweep, box):
    """The records of the first cell of a sweep for each method, and the keys of their table."""
    keys = given(box, sweep)
    first = {cell.run.method["name"]: cell.run for one in sweeps(sweep) for cell in reversed(cells(one, keys))}
    return [execute(run.with_seed(0)) for run in first.values()], [key for key in keys if key.partition("=")[0] not in CHOICES]


@pytest.mark.parametrize(("sweep", "table", "printed"), [("glue_base", "table2", "VeRA"), ("images", "table5", "Head")])
def test_runs_on_local_copies_reach_their_table(sweep, table, printed, box):
    records, keys = trained(sweep, box)
    assert {record.provenance.model_source for record in records} == {"local folder"}
    shown = tables(ask(box / "results", keys), [table])[table][0]
    ours = [row for row in shown.rows if "ours" in row and row[1].startswith(printed)]
    assert any("(n=1)" in value for row in ours for value in row), shown.rows


def test_answers_on_local_copies_are_judged(box):
    records, _ = trained("vicuna", box)
    keys = given(box, "vicuna")
    of_answers = [key for key in keys if key.startswith(("answers.", "data_root="))]
    settings = checked(AnswerSettings, resolve("run", ["answers=vicuna_bench", *of_answers])["answers"], "answers")
    runs = {cell.run.run_name: cell.run for one in sweeps("vicuna") for cell in cells(one, keys)}
    paths = [answer(runs[record.name], settings)[1] for record in records]
    here = Judge(lambda number, body: "Scores: [[7, 6]]")
    try:
        said = [f"data_root={box}/data", f"judge.base_url={here.url}", "judge.model=mock", "judge.prompts=own"]
        values = resolve("judge", ["questions=vicuna_bench", *said])
        source, of_judge = (
            checked(QuestionSource, values["questions"], "questions"),
            checked(JudgeSettings, values["judge"], ""),
        )
        record, _ = judge(paths, source, of_judge, "none", box / "results", box / "cache")
    finally:
        here.close()
    assert [score["mean"] for score in record.scores] == [6.5, 6.5]  # in both orders
    assert len(judged_table(box / "results").rows) == 2
