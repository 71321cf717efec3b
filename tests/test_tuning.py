"""make tune: what is searched, that validation rows choose, that nothing is repeated, and the recipe's cell."""

import json
import math
import re
from dataclasses import replace

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from experiments.artefacts import search as search_table
from experiments.engine import tuning
from experiments.engine.registry import artefact
from experiments.engine.rows import Asked
from experiments.engine.tuning import choice
from tests.conftest import REHEARSAL
from tests.test_experiments import record
from vera.commands import run as command
from vera.commands import tune
from vera.config import compose, composing, conf_file
from vera.errors import ConfigError
from vera.io.files import write_atomic
from vera.records.record import Record
from vera.records.store import Store
from vera.run import execute

MINILM = ["model=minilm", "task=stsb", "method=vera"]


def lr_score(run):
    """Highest at a learning rate of 0.01."""
    return 0.9 - 0.1 * abs(math.log10(run.train.lr) + 2)


def made(run, score) -> Record:
    """A record of a run; its last epoch and its test score say the opposite."""
    groups = [f"{group}={getattr(run, group)['name']}" for group in ("model", "task", "method")]
    raw = json.loads(record(groups, run.seed, score, last=1 - score).to_json())
    raw["run"] |= {"cell_id": run.cell_id, "follows_seed": run.follows_seed, "config": json.loads(json.dumps(run.scientific))}
    raw["cost"]["steps"] = run.train.max_steps or raw["cost"]["steps"]
    raw["scores"]["test"] = {"epoch": 1, "metrics": {run.task["primary"]: 1 - score}}
    return Record.model_validate(raw)


@pytest.fixture
def search(tmp_path, monkeypatch):
    """search("key=...", seeds=, ...) -> the search, and what computes its runs: at most `limit` of them."""
    monkeypatch.chdir(tmp_path)

    def make(*words, seeds=(100, 101), **more):
        return tuning.read([*MINILM, f"results_dir={tmp_path / 'tune'}", *words], seeds, **more)

    return make


def computing(score=lr_score, limit=10**6):
    done = []

    def compute(runs):
        for run in runs:
            store = Store(run.results_dir)
            if store.find(run.run_name) is None:
                if len(done) == limit:
                    raise KeyboardInterrupt
                done.append(run)
                store.write(made(run, score(run) + 0.001 * (run.seed - 100)))

    return compute, done


def test_ranges_and_lists():
    assert tuning.axis("train.lr=1e-4..1e-1:log:4").points == ("0.0001", "0.001", "0.01", "0.1")
    assert tuning.axis("train.lr=0.1..0.4:4").points == ("0.1", "0.2", "0.3", "0.4")
    assert tuning.axis("train.lr=1e-3..1e-1:log:5").points == ("0.001", "0.00316", "0.01", "0.0316", "0.1")
    assert tuning.axis("method.rank=2..16:log:4").points == ("2", "4", "8", "16")
    assert tuning.axis("method.targets=[query],[query,value]").points == ("[query]", "[query,value]")
    free = tuning.axis("train.lr=1e-4..1e-1:log")
    assert (free.points, free.low, free.high, free.log) == ((), 1e-4, 1e-1, True)
    assert tuning.axis("task.data_dir=../x") is None and tuning.axis("train.lr=3") is None


@pytest.mark.parametrize(
    ("words", "more", "said"),
    [
        (["train.lrr=1,2"], {}, r"^train\.lrr is not a key"),
        (["train.lr=1e-1..1e-4:log:3"], {}, "low must be below high"),
        (["train.lr=0..1:log:3"], {}, "begins above 0"),
        (["train.lr=0..1:lin:3"], {}, "lin:3 is not log, a number of points, or both"),
        (["train.lr=1..2:1"], {}, "two points or more"),
        (["train.lr=0.1,0.1"], {}, "a value is there twice"),
        (["train.lr=0.1,-1"], {}, r"^train\.lr: input should be greater than or equal to 0"),
        (["train.lr=1e-4..1e-1:log"], {}, "tpe needs --trials"),
        (["train.lr=1e-4..1e-1:log"], {"trials": 0}, "--trials 0 tries nothing"),
        (["train.lr=1e-4..1e-1:log"], {"sampler": "grid"}, "a grid needs a number of points"),
        (["train.lr=1,2,3"], {"sampler": "grid", "trials": 2}, "the grid has 3 points, --trials 2 is fewer"),
        (["train.lr=1"], {}, "nothing to search"),
        (["train.lr=1,2", "train.lr=3"], {}, r"^train\.lr is given twice"),
        (["train.save=true,false"], {}, "make the same run"),
        (["task=rte,stsb"], {}, "^task=rte,stsb: one task a search$"),
        (["model=minilm,roberta_base"], {}, "^model=minilm,roberta_base: one model a search$"),
        (["method=lora,head"], {}, "^method=lora,head: one method a search$"),
        (["train.lr=1,2", "task=sick", "task.validation=0.2"], {}, r"^task\.validation=0\.2: task=sick has validation"),
        (["task.validation=0.1,0.2"], {}, r"task\.validation is not a setting"),
        (["task.max_length=32,64"], {}, r"task\.max_length is not a setting"),
        (["train.warmup_ratio=0..1:3"], {}, r"there are 2 whole numbers; bounds with a point"),
        (["train.lr=1,2", "task=sick.v2"], {}, r"sick\.v2: a recipe keeps what is chosen by the task's name"),
        (["seed=1,2"], {}, "given with --seeds"),
        (["train.lr=1,2", "seed=7"], {}, "^seed=7: the seeds of every trial are given with --seeds"),
        (["train.lr=1,2", "results_dir=results/"], {}, "^results_dir=results/: tables are made from it"),
        (["train.lr=1,2", "task.validation=test"], {}, r"^task\.validation: input should be 'dev'"),
        (["train.lr=1,2"], {"seeds": (3, 100)}, "--seeds 3: tables report this seed"),
        (["train.lr=1,2"], {"seeds": ()}, "one seed or more"),
        (["train.lr=1,2"], {"steps": (20, 10)}, "each above the one before"),
        (["train.lr=1,2", "train.max_steps=3"], {"steps": (10,)}, "keep one"),
        (["train.lr=1e-4..1e-1:log"], {"trials": 3, "steps": (10, 20)}, "has no rungs"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_one_line(words, more, said, search):
    with pytest.raises(ConfigError, match=said) as refused:
        search(*words, **more)
    assert "\n" not in str(refused.value)


def test_a_seed_that_a_record_of_this_method_has_is_reported_too(search, tmp_path):
    run = search("train.lr=1,2").base
    Store(tmp_path / "mine").write(made(run.with_seed(100), 0.5))
    with pytest.raises(ConfigError, match="--seeds 100: tables report this seed"):
        search("train.lr=1,2", results=tmp_path / "mine")


def test_the_grid_is_chosen_from_on_validation_rows_and_repeats_nothing(search):
    asked = search("train.lr=1e-4..1e-1:log:4", "train.head_lr=1e-3,4e-3")
    compute, done = computing()
    tried = tuning.carry_out(asked, compute)
    assert len(tried) == 8 and len(done) == 16 and {run.seed for run in done} == {100, 101}
    assert {run.task["validation"] for run in done} == {0.1}  # where nothing else is said
    assert tried[0].trial.values == ("0.01", "0.001") and tried[0].summary.median == pytest.approx(0.9005)
    again = tuning.carry_out(asked, compute)
    assert len(done) == 16 and [t.trial for t in again] == [t.trial for t in tried]
    said = tuning.table(tried, asked)
    assert said.rows[0][:5] == ["0.01", "0.001", "2", "0.9005±0.0007 (n=2)", "[0.9000, 0.9010]"]
    assert {row[said.columns.index("Seconds")] for row in said.rows} == {"4"}  # two seeds of two
    assert any(note.startswith("2 trials have the best median") for note in said.notes)  # of either head_lr
    assert not any("it may lie beyond" in note for note in said.notes)
    assert "1 of 7 other trials have a median within the range of the best one's seeds." in said.notes  # the other head_lr
    edge = tuning.carry_out(search("train.lr=0.01,0.1"), compute)
    assert any("best train.lr is the smallest" in note for note in tuning.remarks(edge, search("train.lr=0.01,0.1")))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([0.5, 0.6, 0.9], [0.62, 0.62, 0.62]),  # which has the lower mean
        ([0.5, 0.6, 0.7], [0.55, 0.6, 0.62]),  # which has the lower best seed
    ],
)
def test_the_best_median_is_chosen_and_of_equal_ones_that_with_the_best_worst_seed(first, second, search):
    scores = {0.01: first, 0.1: second}
    compute, _ = computing(lambda run: scores[run.train.lr][run.seed - 100])
    tried = tuning.carry_out(search("train.lr=0.01,0.1", seeds=(100, 101, 102)), compute)
    assert [t.trial.values for t in tried] == [("0.1",), ("0.01",)]


def test_trials_that_all_score_alike_choose_nothing(search, tmp_path):
    """As where each predicts one class after a few steps: the first would have gone into the recipe."""
    asked = search("train.lr=0.01,0.1")
    tried = tuning.carry_out(asked, computing(lambda run: 0.68)[0])
    assert tuning.remarks(tried, asked)[-1].startswith("All 2 trials have the same scores, which chooses nothing")
    with pytest.raises(ConfigError, match="no setting is chosen: All 2 trials have the same scores"):
        tuning.recipe_of(tried, asked, tmp_path)
    between = search("train.lr=0.01,0.1", f"results_dir={tmp_path / 'between'}", seeds=(100, 101, 102))
    apart = computing(lambda run: 0.69 if (run.seed, run.train.lr) == (101, 0.1) else 0.68 + 0.02 * (run.seed == 102))[0]
    tried = tuning.carry_out(between, apart)  # the same lowest and highest score
    assert tried[0].trial.values == ("0.1",) and "same scores" not in " ".join(tuning.remarks(tried, between))


def test_each_seed_of_a_trial_has_the_folder_that_is_named_after_it(search):
    compute, done = computing()
    tuning.carry_out(search("train.lr=1e-3,1e-2", "task.data_dir=/folds/${seed}"), compute)
    assert {(run.seed, run.task["data_dir"]) for run in done} == {(100, "/folds/100"), (101, "/folds/101")}


def test_data_with_a_test_set_of_their_own_are_chosen_from_on_their_validation_rows(search):
    for task, held in (("stsb", 0.1), ("sick", "dev")):
        asked = tuning.read(["model=minilm", f"task={task}", "method=vera", "train.lr=0.1,0.2"], (100,))
        assert asked.base.task["validation"] == held
    assert "the data's own validation rows, beside its test set" in tuning.chosen_on(asked)


def test_what_is_written_for_a_test_set_chooses_nothing(tmp_path, cache, compose):
    words = ["model=gpt2_mini", "task=e2e", "method=vera", "train.lr=0.01,0.1", f"results_dir={tmp_path / 'tune'}"]
    asked = tuning.read([*words, "scale=rehearsal", f"cache_dir={cache}", f"work_dir={tmp_path / 'work'}"], (100,))
    assert tuning.chosen_on(asked) == "log_likelihood on the task's validation rows, beside its test set"
    tried = tuning.carry_out(asked, lambda runs: [execute(run) for run in runs])
    for trial in tried:
        (found,) = trial.records
        assert set(found.scores.best.metrics) == {"log_likelihood"} and not found.outputs
    assert tried[0].summary.median >= tried[1].summary.median
    with pytest.raises(ConfigError, match=r"task.primary=BLEU is of test rows, which choose nothing; leave it at log_l"):
        tuning.read([*words, "task.primary=BLEU", "task.decoding={beams: 2}"], (100,))
    with pytest.raises(ConfigError, match="decoding=null writes nothing that BLEU could be of; give primary=log_likelihood"):
        execute(compose("model=gpt2_mini", "task=e2e", "task.decoding=null"))


def test_a_collapsed_seed_is_the_worst(search):
    asked = search("train.lr=0.01,0.1")

    def compute(runs):
        for run in runs:
            raw = json.loads(made(run, lr_score(run)).to_json())
            if run.train.lr == 0.01:
                raw["collapsed"] = "the loss is nan"
            Store(run.results_dir).write(Record.model_validate(raw))

    tried = tuning.carry_out(asked, compute)
    assert [t.trial.values for t in tried] == [("0.1",), ("0.01",)] and tried[1].summary.collapsed == 2


def test_tpe_goes_on_with_the_trials_it_would_have_made(search, tmp_path):
    pytest.importorskip("optuna")
    words = ("train.lr=1e-5..1:log", "train.head_lr=1e-3,4e-3")
    compute, done = computing()
    whole = tuning.carry_out(search(*words, trials=8), compute)
    assert len(whole) == 8 and len(done) == 16
    elsewhere = (f"results_dir={tmp_path / 'again'}", *words)
    broken, first = computing(limit=7)
    with pytest.raises(KeyboardInterrupt):
        tuning.carry_out(search(*elsewhere, trials=8), broken)
    rest, second = computing()
    resumed = tuning.carry_out(search(*elsewhere, trials=8), rest)
    assert [t.trial for t in resumed] == [t.trial for t in whole] and len(first) + len(second) == 16
    dry = tuning.carry_out(search(*words, trials=9), lambda runs: None)
    assert tuning.missing(dry, search(*words, trials=9)) > 0


def test_what_optuna_proposes_goes_towards_the_best_and_is_even_over_the_logarithm(search):
    pytest.importorskip("optuna")
    words = "train.lr=1e-6..1:log"  # best at 1e-2
    compute, done = computing()
    tuning.carry_out(search(words, trials=24, seeds=(100,)), compute)
    away = [abs(math.log10(run.train.lr) + 2) for run in done]
    assert sum(away[8:]) / 16 < 1.6  # which it is by chance; 3.2 away from the best
    drawn = search(words, trials=24, sampler="random", seeds=(101,))
    rates = [float(found.trial.values[0]) for found in tuning.carry_out(drawn, compute)]
    assert 6 <= sum(rate < 1e-3 for rate in rates) <= 18


def test_random_trials_are_as_many_as_asked_for_and_each_once(search):
    pytest.importorskip("optuna")
    asked = search("train.lr=1e-4..1e-1:log:7", trials=5, sampler="random")
    tried = tuning.carry_out(asked, computing()[0])
    assert len({t.trial.values for t in tried}) == 5 and {t.trial.values[0] for t in tried} <= set(asked.axes[0].points)
    everything = search("train.lr=1e-4..1e-1:log:3", trials=9, sampler="random")
    assert len(tuning.carry_out(everything, computing()[0])) == 3
    for sampler in ("random", "tpe"):
        bounds = search("train.lr=3e-3..4e-3:log", "train.epochs=1..3", trials=9, sampler=sampler)
        assert bounds.text.startswith(f"{sampler}, up to 9 trials over train.lr=")
    assert search("train.lr=1,2,3").text.startswith("grid, 3 trials over ")


def test_successive_halving_trains_the_best_third_for_longer(search):
    asked = search("train.lr=1e-5..1e-1:log:5", steps=(10, 30))
    compute, done = computing()
    tried = tuning.carry_out(asked, compute)
    assert [t.trial.steps for t in tried] == [30, 30, 10, 10, 10, 10, 10]
    assert {t.trial.values[0] for t in tried[:2]} == {t.trial.values[0] for t in tried[2:4]}
    assert tried[0].trial.values == ("0.01",) and {run.train.max_steps for run in done} == {10, 30}


def test_a_rung_whose_trials_all_score_alike_ends_the_search_without_a_choice(search, tmp_path):
    """The first third would have gone on, and the best of it into the recipe."""
    asked = search("train.lr=1e-4,1e-3,1e-2,1e-1", steps=(2, 4, 6))
    compute, done = computing(lambda run: 0.68 if run.train.max_steps == 2 else lr_score(run))
    tried = tuning.carry_out(asked, compute)
    assert {run.train.max_steps for run in done} == {2}
    said = "All 4 trials of the rung of 2 steps have the same scores, which chooses nothing"
    assert tuning.remarks(tried, asked)[-1].startswith(said)
    with pytest.raises(ConfigError, match=f"no setting is chosen: {said}"):
        tuning.recipe_of(tried, asked, tmp_path)
    assert not any(path.suffix == ".yaml" for path in tmp_path.iterdir())


def test_a_cut_among_equal_trials_is_told(search, tmp_path):
    """Of four trials two go on: the best one, and the first of two that are equal."""
    scores = {1e-4: 0.1, 1e-3: 0.3, 1e-2: 0.3, 1e-1: 0.4}
    compute, _ = computing(lambda run: scores[run.train.lr])
    asked = search("train.lr=1e-4,1e-3,1e-2,1e-1", steps=(2, 4))
    tried = tuning.carry_out(asked, compute)
    assert [t.trial.values for t in tried[:2]] == [("0.1",), ("0.001",)]
    assert "2 trials tied at the cut of the rung of 2 steps; the first ones went on." in tuning.remarks(tried, asked)
    assert tuning.recipe_of(tried, asked, tmp_path)
    scores[1e-1] = 0.2  # both of the equal ones go on
    whole = search("train.lr=1e-4,1e-3,1e-2,1e-1", f"results_dir={tmp_path / 'whole'}", steps=(2, 4))
    assert not any("tied" in note for note in tuning.remarks(tuning.carry_out(whole, compute), whole))


def test_a_rung_that_the_epochs_cut_short_is_no_rung(search):
    asked = search("train.lr=1e-3,1e-2", steps=(10, 900))

    def compute(runs):
        for run in runs:
            raw = json.loads(made(run, lr_score(run)).to_json())
            raw["cost"]["steps"] = min(run.train.max_steps, 20)
            Store(run.results_dir).write(Record.model_validate(raw))

    with pytest.raises(ConfigError, match=r"--steps 900: train.epochs=\d+ ends after 20; give train.epochs"):
        tuning.carry_out(asked, compute)


def test_trials_of_two_precisions_choose_nothing(search, tmp_path):
    asked = search("train.lr=1e-3,1e-2")

    def compute(runs):
        for run in runs:
            raw = json.loads(made(run, lr_score(run)).to_json())
            raw["cost"]["precision"] = "bf16" if run.train.lr == 0.01 else "fp32"
            Store(run.results_dir).write(Record.model_validate(raw))

    with pytest.raises(ConfigError, match="not like with like, in precision"):
        tuning.recipe_of(tuning.carry_out(asked, compute), asked, tmp_path)


def test_a_tie_is_told_and_is_no_edge(search):
    asked = search("train.lr=1e-4,1e-3,1e-2,1e-1")
    tried = tuning.carry_out(asked, computing(lambda run: 0.2 if run.train.lr < 0.1 else 0.1)[0])
    told = " ".join(choice.remarks(tried, asked))
    assert "3 trials have the best median" in told and "may lie beyond" not in told
    tried = tuning.carry_out(search("train.lr=1e-2,1e-1,1"), computing()[0])
    assert "have the best median" not in " ".join(choice.remarks(tried, asked))


def test_the_end_of_what_was_tried_is_told_where_a_sampler_tried_a_part_of_it(search):
    asked = search("train.lr=1e-4..1e-1:log:7", sampler="random", trials=3)
    tried = tuning.carry_out(asked, computing(lambda run: run.train.lr)[0])
    rates = sorted(float(found.trial.values[0]) for found in tried)
    assert rates[-1] < 0.1 and float(tried[0].trial.values[0]) == rates[-1]
    assert "The best train.lr is the largest that was tried" in " ".join(choice.remarks(tried, asked))


def test_two_searches_cannot_make_a_recipe_of_epochs_and_steps(search, tmp_path):
    asked = search("train.lr=1e-3,1e-2", "train.max_steps=150")
    path, text = tuning.recipe_of(tuning.carry_out(asked, computing()[0]), asked, tmp_path)
    write_atomic(path, text)
    words = ["model=minilm", "task=rte", "method=vera", f"results_dir={tmp_path / 'tune'}", "train.lr=1e-3,1e-2"]
    other = tuning.read([*words, "train.epochs=3"], [100])
    with pytest.raises(ConfigError, match=r"another task has put train\.epochs or train\.max_steps into .*vera_minilm\.yaml"):
        tuning.recipe_of(tuning.carry_out(other, computing()[0]), other, tmp_path)


def test_the_recipe_gets_a_cell_and_other_tasks_keep_what_they_have(search, tmp_path):
    asked = search("train.lr=1e-4..1e-1:log:4", "method.d_init=0.1,0.2", "train.max_steps=150")
    tried = tuning.carry_out(asked, computing()[0])
    folder = tmp_path / "recipe"
    folder.mkdir()
    path, text = tuning.recipe_of(tried, asked, folder)
    assert path == folder / "vera_minilm.yaml" and not path.exists()
    assert text.splitlines()[0].endswith(f"; the last search's runs are in {tmp_path / 'tune'}.")
    write_atomic(path, text)
    held = yaml.safe_load(text)
    source = held["tuned"]["stsb"].pop("source")
    assert held["defaults"] == ["vera_minilm", "_self_"] and held["tuned"] == {  # on the recipe that there is
        "stsb": {"train": {"max_steps": 150, "lr": 0.01}, "method": {"d_init": 0.1}}
    }
    assert source["seeds"] == [100, 101] and source["runs"] == 16 and len(source["cells"]) == 8
    assert (source["steps"], source["seconds"]) == (16 * 150, 16 * 2)  # of all runs
    assert "train.max_steps=150" in source["with"] and "task.validation=0.1" in source["with"]
    assert tried[0].run.cell_id[:8] in source["cells"] and held["sources"] == {
        "ours: chosen by make tune, as `tuned` says": ["method.d_init", "train.lr", "train.max_steps"]
    }

    def resolved(text, task):
        rest = {"task": {"name": task}, "method": {"name": "vera"}, "minilm": {"lr": {"vera": 7.0}}}
        values = {key: value for key, value in yaml.safe_load(text).items() if key != "defaults"}
        found = OmegaConf.to_container(OmegaConf.merge(rest, values), resolve=True)
        return found["train"]["lr"], found["method"]["d_init"]

    assert resolved(text, "stsb") == (0.01, 0.1) and resolved(text, "rte") == (7.0, 0.1)
    other = tuning.read(
        ["model=minilm", "task=rte", "method=vera", f"results_dir={tmp_path / 'tune'}", "train.lr=0.1,1"], [100]
    )
    _, more = tuning.recipe_of(tuning.carry_out(other, computing()[0]), other, folder)
    assert resolved(more, "stsb") == (0.01, 0.1) and resolved(more, "rte") == (0.1, 0.1)


def test_a_second_search_of_a_task_keeps_what_the_first_has_chosen(search, tmp_path):
    """Key by key: the trials of the second had the first one's choice, so its recipe has both."""
    first = search("train.lr=1e-4..1e-1:log:4", "train.clip=0.5")
    write_atomic(*tuning.recipe_of(tuning.carry_out(first, computing()[0]), first, tmp_path))
    second = search("train.head_lr=0.1,0.2", "train.lr=0.01", "train.clip=0.5")
    for asked in (second, replace(second, fixed=tuple(word for word in second.fixed if not word.startswith("train.lr")))):
        tried = tuning.carry_out(asked, computing(lambda run: run.train.head_lr)[0])
        if asked is second:
            _, text = tuning.recipe_of(tried, asked, tmp_path)
            cell = yaml.safe_load(text)["tuned"]["stsb"]
            assert cell["train"] == {"clip": 0.5, "lr": 0.01, "head_lr": 0.2} and "earlier" not in cell["source"]
        else:  # these trials had the recipe's own rate, not the chosen one, which nobody has tried with this head_lr
            with pytest.raises(ConfigError, match=r"train\.lr=0\.01 where the best trial has 0\.03; nothing"):
                tuning.recipe_of(tried, asked, tmp_path)


def test_what_an_earlier_search_chose_stays_with_its_source(search, tmp_path, monkeypatch):
    held = {
        "defaults": ["vera_minilm", "_self_"],
        "tuned": {"stsb": {"method": {"d_init": 0.1}, "source": {"search": "first"}}},
    }
    held["method"] = {"d_init": "${oc.select:tuned.${task.name}.method.d_init,0.1}"}
    write_atomic(tmp_path / "vera_minilm.yaml", yaml.safe_dump(held))
    asked = search("train.lr=0.01,0.1")
    _, text = tuning.recipe_of(tuning.carry_out(asked, computing()[0]), asked, tmp_path)
    cell = yaml.safe_load(text)["tuned"]["stsb"]
    assert cell["train"] == {"lr": 0.01} and cell["method"] == {"d_init": 0.1}
    assert cell["source"]["earlier"] == {"search": "first"} and cell["source"]["seeds"] == [100, 101]
    (tmp_path / "vera_minilm.yaml").write_text(text)
    assert tuning.recipe_of(tuning.carry_out(asked, computing()[0]), asked, tmp_path)[1] == text  # the same search is no second


def test_a_recipe_by_hand_and_a_search_without_an_end_stay_as_they_are(search, tmp_path):
    asked = search("train.lr=0.01,0.1")
    nothing = tuning.carry_out(asked, lambda runs: None)
    with pytest.raises(ConfigError, match="4 runs are missing"):
        tuning.recipe_of(nothing, asked, tmp_path)
    tried = tuning.carry_out(asked, computing()[0])
    (tmp_path / "vera_minilm.yaml").write_text("train: {lr: 1}\n")
    with pytest.raises(ConfigError, match=r"is written by hand and stays as it is; the best trial is train\.lr=0\.01"):
        tuning.recipe_of(tried, asked, tmp_path)


def test_a_recipe_of_this_repository_stays_in_a_project_and_that_is_said_first(search, tmp_path, monkeypatch):
    monkeypatch.setenv("VERA_PROJECT", str(tmp_path))
    asked = search("train.lr=0.01,0.1")
    tried = tuning.carry_out(asked, computing()[0])
    said = r"vera_minilm\.yaml is this repository's, which a project cannot change, and stays as it is"
    with pytest.raises(ConfigError, match=said + r"; the best trial is train\.lr=0\.01"):
        tuning.recipe_of(tried, asked)

    def first_trial(search, compute):
        raise RuntimeError("a trial")

    monkeypatch.setattr(tuning, "carry_out", first_trial)
    lines: list[str] = []
    monkeypatch.setattr(tune.log, "info", lambda text, *values: lines.append(text % values))
    monkeypatch.setattr("sys.argv", ["tune.py", *MINILM, "train.lr=0.01,0.1"])
    with pytest.raises(RuntimeError, match="a trial"):
        tune.main()
    assert len(lines) == 1 and re.search(said, lines[0])
    monkeypatch.setattr("sys.argv", ["tune.py", "model=minilm", "task=stsb", "method=ia3", "train.lr=0.01,0.1"])
    monkeypatch.delenv("VERA_PROJECT")
    lines.clear()
    with pytest.raises(RuntimeError, match="a trial"):
        tune.main()
    assert not any("stays as it is" in line for line in lines)


@pytest.fixture
def as_next_process():
    """What a process keeps of conf/ is forgotten, now and afterwards."""

    def forget():
        composing._chosen.cache_clear()
        GlobalHydra.instance().clear()

    yield forget
    forget()


def test_steps_that_every_trial_had_cap_the_task_s_runs_and_no_other_s(tmp_path, monkeypatch, as_next_process):
    """On a recipe that says how long to train in epochs: the written one was refused by every run of the method."""
    monkeypatch.setenv("VERA_PROJECT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    choices = ["model=minilm", "method=adalora"]
    words = [*choices, "task=stsb", f"results_dir={tmp_path / 'tune'}", "train.lr=0.01,0.1", "train.max_steps=150"]
    asked = tuning.read(words, [100])
    write_atomic(*tuning.recipe_of(tuning.carry_out(asked, computing()[0]), asked))
    as_next_process()
    tuned = compose([*choices, "task=stsb"]).train
    assert (tuned.max_steps, tuned.epochs, tuned.lr) == (150, asked.base.train.epochs, 0.01)
    assert compose([*choices, "task=rte", "train.epochs=2"]).train.max_steps is None
    with pytest.raises(ConfigError, match=r"the recipe ends after 150 steps; give train\.max_steps=null with it"):
        compose([*choices, "task=stsb", "train.epochs=2"])


def test_the_command_resumes_and_a_rehearsal_writes_no_recipe(tmp_path, cache, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines: list[str] = []
    monkeypatch.setattr(tune.log, "info", lambda text, *values: lines.append(text % values))
    words = [
        *REHEARSAL,
        "model=digits_vit",
        "task=digits",
        "method=vera",
        "train.lr=0.01,0.1",
        f"cache_dir={cache}",
        "--seeds",
        "100",
    ]
    words += ["task.validation=0.2", "results_dir=tune"]
    assert command("tune", [*words, "--dry-run"]) == 0 and "2 runs are missing" in capsys.readouterr().out
    assert not (tmp_path / "tune").exists()
    for _ in range(2):
        lines.clear()
        assert command("tune", words) == 2
        assert "choose no setting; no recipe is written" in capsys.readouterr().err
        told = [line for line in lines if "(last)" in line]
        assert len(told) == 2 and not any("(test" in line for line in told)  # nor does whoever looks on choose by test rows
    assert len(list((tmp_path / "tune" / "runs").glob("*--s100.json"))) == 2
    with pytest.raises(SystemExit):
        command("tune", [*words, "--on", "test"])
    assert "test rows choose nothing" in capsys.readouterr().err


def test_the_table_of_searches_says_which_chosen_values_lie_at_an_end():
    """By the lists that each source names, which the table does not read."""
    (table,) = artefact("search").build(Asked({}))
    ends = {(row[0], row[1]): row[table.columns.index("At the end")] for row in table.rows}
    seen = set()
    for (name, task), said in ends.items():
        cell = yaml.safe_load(conf_file("recipe", name).read_text(encoding="utf-8"))["tuned"][task]
        wanted = []
        for key, listed in re.findall(r"train\.(\w+)=([\d.e,-]+[\de])", cell["source"]["search"]):
            tried, value = sorted(map(float, listed.split(","))), float(cell["train"][key])
            wanted += [f"train.{key} {word}" for word, end in (("smallest", tried[0]), ("largest", tried[-1])) if value == end]
        if not wanted and "of each rung" in cell["source"]["search"]:  # two went on, and one of two is at an end
            assert said.endswith(" of the last rung"), (name, task)
        else:
            assert sorted(said.split("; ")) == (sorted(wanted) or ["–"]), (name, task)
        seen |= {text.split()[-1] for text in wanted}
    assert seen == {"smallest", "largest"}


def test_a_recipe_that_has_records_is_said_to_stay_before_the_first_trial(monkeypatch):
    def first_trial(search, compute):
        raise RuntimeError("a trial")

    monkeypatch.setattr(tuning, "carry_out", first_trial)
    lines: list[str] = []  # whichever handlers earlier tests have left
    monkeypatch.setattr(tune.log, "info", lambda text, *values: lines.append(text % values))
    said = {}
    for more in ([], ["--replace"], ["--dry-run"]):
        words = ["model=minilm", "task=stsb", "method=vera", "train.lr=0.01,0.1", "--seeds", "100", *more]
        monkeypatch.setattr("sys.argv", ["tune.py", *words])
        with pytest.raises(RuntimeError, match="a trial"):
            tune.main()
        said["".join(more)] = ["no recipe will be written without --replace" in line for line in lines]
        lines.clear()
    assert said == {"": [True], "--replace": [], "--dry-run": []}


def test_records_of_another_cell_are_not_said_to_be_the_present_recipe_s(search, tmp_path, monkeypatch):
    """Who wrote a trial by hand into results/ is told what is counted, as tables find it with --with alone."""
    asked = search("train.lr=0.01,0.1")
    other = compose([*MINILM, "train.epochs=2"])
    Store(tmp_path / "results").write(made(other.with_seed(7), 0.5))
    assert other.cell_id != compose(MINILM).cell_id and tuning.in_use(asked) == 1
    monkeypatch.setattr(tuning, "carry_out", lambda search, compute: tuning.trials.carry_out(search, computing()[0]))
    monkeypatch.setattr(tuning, "recipe_of", lambda tried, search: (tmp_path / "vera_minilm.yaml", ""))
    monkeypatch.setattr(tune, "own_conf", lambda: tmp_path)
    monkeypatch.setattr("sys.argv", ["tune.py", *MINILM, "train.lr=0.01,0.1"])
    said = "1 records of this method on this task, and tables would lose those that the present recipe made; vera_minilm.yaml"
    with pytest.raises(ConfigError, match=said):
        tune.main()
    assert not (tmp_path / "vera_minilm.yaml").exists()


def test_the_table_of_searches_says_what_lies_at_an_end_and_which_trials_are_no_recipe_s(tmp_path, monkeypatch):
    """Of 1e-3 to 1e-1, 1e-2 and 1e-1 went on: 1e-2 is inside what was tried, and nothing below it was trained as long."""
    rungs = [("0.01", 400), ("0.1", 400), ("0.001", 100), ("0.01", 100), ("0.1", 100)]
    cells = {f"{i:08x}": f"train.lr={rate} train.max_steps={steps}: 0.5 (n=1)" for i, (rate, steps) in enumerate(rungs)}
    source = {"cells": cells, "seeds": [100], "runs": 5, "steps": 1100, "search": "grid", "chosen_on": "rows"}
    monkeypatch.setattr(search_table, "choices", lambda group: ["vera_minilm"])
    monkeypatch.setattr(search_table, "tuned", lambda name: {"rte": {"train": {"lr": 0.01}, "source": source}})
    runs = tmp_path / "tune" / "runs"
    runs.mkdir(parents=True)
    for cell, seed in (("00000000", 100), ("aaaaaaaa", 100), ("aaaaaaaa", 101), ("bbbbbbbb", 100)):
        (runs / f"minilm--rte--vera--{cell}--s{seed}.json").touch()
    (table,) = search_table.build(Asked({}, results=tmp_path))
    assert table.rows[0][:4] == ["vera_minilm", "rte", "train.lr=0.01", "train.lr smallest of the last rung"]
    assert table.notes[-1].endswith("have records in results/tune: minilm rte vera (2).")
    source["cells"] = {**cells, "0000000f": "train.lr=0.003 train.max_steps=400: 0.4 (n=1)"}
    (table,) = search_table.build(Asked({}, results=tmp_path))
    assert table.rows[0][3] == "–"
