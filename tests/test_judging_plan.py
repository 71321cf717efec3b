"""What Tables 4 and 13 need beside training: answers, the untuned backbone's too, and the judge's requests."""

import itertools
import json
from pathlib import Path

import pytest

from experiments.engine import judging
from experiments.engine.comparison import compare
from experiments.engine.judged import join, table
from experiments.engine.rows import Asked
from tests.test_experiments import record as made_up
from vera.config import checked, compose, hashed, resolve
from vera.errors import ConfigError
from vera.judge.judgement import Answers, Judged, write
from vera.records.store import Store
from vera.trained.answers import AnswerSettings


def judged_files(folder, run, questions, judge, checkpoint="last", decoding=None, settings=None, cut=0):
    """A record of answers and one of verdicts, as the plan reads them."""
    (folder / "answers").mkdir(parents=True, exist_ok=True)
    (folder / "judged").mkdir(exist_ok=True)
    about = {"name": questions, "version": 1, "sha256": "0" * 64, "official": True, "count": 80, "turns": 2}
    identity = {"model": "llama_7b", "task": "alpaca", "method": "lora", "seed": 0, "cell_id": run.cell_id}
    answers = Answers(
        **{
            "schema": 1,
            "status": "done",
            "identity": "a" * 64,
            "model": "llama_7b",
            "checkpoint": checkpoint,
            "questions": about,
        },
        **{
            "run": {**identity, "follows_seed": [], "config": {}},
            "adapter_sha256": None,
            "settings": settings or {"decoding": decoding or {}},
            "cut": cut,
        },
        **{"shortened": 0, "cost": {}, "provenance": {}},
    )
    write(folder / "answers" / f"{answers.name}.json", answers)
    if judge is not None:
        graded = {"name": answers.name, "sha256": "0" * 64, "model": "llama_7b", "checkpoint": checkpoint, "run": identity}
        asked = {"version": 2, "base_url": "x", "temperature": 0.0, "max_tokens": 1, "orders": "both", "parse": "own"}
        score = {"mean": 5.0, "n": 160, "by_turn": {}, "by_category": {}}
        record = Judged(
            **{"schema": 1, "status": "done", "identity": "b" * 64, "questions": about, "answers": [graded], "scores": [score]},
            **{"judge": {**asked, **judge, "prompts": "official", "prompts_sha256": "0"}, "verdicts": 160, "unreadable": []},
            **{"cost": {"requests": 10, "prompt_tokens": 10_000, "completion_tokens": 2_000}, "provenance": {}},
        )
        write(folder / "judged" / "x.json", record)
    return answers.name


def test_tables_4_and_13_want_answers_and_1600_requests(tmp_path):
    four, thirteen = judging.wanted({"table4", "table13", "table2"}, tmp_path)
    assert (len(four.asked), four.requests, four.left) == (9, 1440, 1440)
    assert (len(thirteen.asked), thirteen.requests, thirteen.left) == (2, 160, 160)
    assert four.dollars == pytest.approx(1440 * (700 * 30 + 200 * 60) / 1e6)
    commands = four.commands("results", [])
    assert len(commands) == 10 and "python scripts/answer.py model=llama_13b task=alpaca answers=mt_bench" in "\n".join(
        commands
    )
    assert sum("answers.checkpoint=none" in command for command in commands) == 1
    assert thirteen.commands("results", [])[-1].count("--vicuna_bench--*.jsonl") == 2
    cheap = ["judge.price.prompt=0", "judge.price.completion=1", "judging=fastchat", "judge.tokens.completion=1000"]
    assert judging.judging("table13", tmp_path, cheap).left == 80  # one order
    assert judging.judging("table13", tmp_path, cheap).dollars == pytest.approx(80 * 1000 / 1e6)
    for seeds in ("seed=0,1", "seed=range(0,2)", "seed=choice(0,1)"):
        assert judging.judging("table4", tmp_path, [seeds]).requests == (8 * 2 + 1) * 160
    assert judging.judging("table2", tmp_path) is None


@pytest.mark.parametrize(
    ("table", "given", "asked"),
    [
        ("table4", ["model=llama_7b"], ["llama_7b--alpaca--lora", "llama_7b--alpaca--vera"]),
        ("table4", ["model=llama_7b,llama_13b", "method=vera"], ["llama_7b--alpaca--vera", "llama_13b--alpaca--vera"]),
        ("table4", ["model=llama_13b", "seed=0,1"], ["llama_13b--alpaca--lora", "llama_13b--alpaca--vera"] * 2),
        ("table4", ["task=alpaca_10k"], []),
        ("table13", ["method=vera"], []),  # seen beside LoRA's alone
        ("table13", ["method=vera,lora", "train.epochs=1"], ["llama_7b--alpaca_10k--lora", "llama_7b--alpaca_10k--vera"]),
    ],
)
def test_axes_choose_among_the_rows_that_are_judged(tmp_path, table, given, asked):
    plan = judging.judging(table, tmp_path, given)
    names = [one.name.rsplit("--", 2)[0] for one in plan.asked if "--bare" not in one.name]
    assert names == asked and plan.requests == plan.left
    assert all(one.command.count(" model=") == 1 for one in plan.asked)
    assert bool(judging.wanted({table}, tmp_path, given)) == bool(asked)


def test_the_commands_of_a_project_are_called_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("VERA_PROJECT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (thirteen,) = judging.wanted({"table13"}, Path("results"))
    *answers, judge = thirteen.commands("results", [])
    assert answers and all(line.startswith(f"vera --project {tmp_path} answer model=") for line in answers)
    assert judge.startswith(f"vera --project {tmp_path} judge {tmp_path}/results/answers/") and "scripts/" not in judge


def test_what_is_answered_and_graded_is_not_wanted_again(tmp_path):
    run = compose(["model=llama_7b", "task=alpaca", "method=lora"])
    stem = judged_files(tmp_path, run, "mt_bench", {"model": "gpt-4-0613"})
    four = judging.judging("table4", tmp_path)
    assert sum(asked.stem is not None for asked in four.asked) == 1 and four.left == 1440  # another judge's
    assert f"{stem}.jsonl" in four.commands("results", [])[-1]
    judged_files(tmp_path, run, "mt_bench", {"model": "gpt-4-0613", "counts_as": "gpt-4"})
    four = judging.judging("table4", tmp_path)
    assert four.left == 1280 and len(four.commands("results", [])) == 9 and stem not in "".join(four.commands("results", []))
    assert four.dollars == pytest.approx(1280 * (1000 * 30 + 200 * 60) / 1e6)  # tokens as recorded


def test_answers_of_another_epoch_than_the_table_shows_are_still_wanted(tmp_path):
    run = compose(["model=llama_7b", "task=alpaca", "method=lora"])
    judged_files(tmp_path, run, "mt_bench", {"model": "gpt-4"}, checkpoint="best")
    four = judging.judging("table4", tmp_path)
    assert not any(asked.stem or asked.graded for asked in four.asked) and four.left == 1440


def test_scores_of_answers_that_were_written_unlike_are_noted(tmp_path):
    def said(results):
        (notes,) = join({}, results).notes.values()
        return notes

    names = []
    for method, tokens in (("lora", 1024), ("vera", 8)):
        run = compose(["model=llama_7b", "task=alpaca", f"method={method}"])
        folder = tmp_path / method
        names.append(judged_files(folder, run, "mt_bench", {"model": "gpt-4"}, decoding={"max_new_tokens": tokens}))
        assert not any("Not like" in note for note in said(folder))
        for kind, name in (("answers", names[-1]), ("judged", "x")):
            (tmp_path / kind).mkdir(exist_ok=True)
            (folder / kind / f"{name}.json").rename(tmp_path / kind / f"{name}-{method}.json")
    notes = [note for note in said(tmp_path) if note.startswith("Not like with like")]
    assert len(notes) == 2 and any("max_new_tokens=8" in note and names[1] in note for note in notes)


def test_answers_written_otherwise_than_conf_has_it_and_cut_ones_are_noted(tmp_path):
    run = compose(["model=llama_7b", "task=alpaca", "method=lora"])
    marked = {
        "": ([], 0),
        "not written as conf/answers/mt_bench.yaml has it: max_new_tokens=16 temperature=0.0": (
            ["answers.decoding.max_new_tokens=16", "answers.decoding.temperature=0"],
            0,
        ),
        "another prompt (chat)": (["chat@answers.chat=vicuna"], 0),
        "7 answers were cut at max_new_tokens": ([], 7),
    }
    for index, (text, (given, cut)) in enumerate(marked.items()):
        values = resolve("run", ["answers=mt_bench", *given])["answers"]
        settings, folder = checked(AnswerSettings, values, "answers").public, tmp_path / str(index)
        name = judged_files(folder, run, "mt_bench", {"model": "gpt-4"}, settings=settings, cut=cut)
        (_, *notes) = next(iter(join({}, folder).notes.values()))
        assert [note for note in notes if note.startswith(name)] == notes and len(notes) == bool(text)
        assert text in "".join(notes)
    (folder / "answers" / f"{name}.json").unlink()
    assert any("their record is not here" in note for note in next(iter(join({}, folder).notes.values())))


def changed(path, **values):
    """A record with other values, in its place."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_scores_of_weights_and_answers_that_are_gone_are_left_out_and_wanted_again(tmp_path):
    keys = ["model=llama_7b", "task=alpaca", "method=lora"]
    run = compose(keys)
    name = judged_files(tmp_path, run, "mt_bench", {"model": "gpt-4"})
    own = tmp_path / "answers" / f"{name}.json"
    changed(own, adapter_sha256="1" * 64)
    (tmp_path / "runs").mkdir()

    def shown(**weights):
        record = made_up(keys, 0, -1.0).model_copy(update={"weights": weights})
        Store(tmp_path).path(record.name).write_text(record.to_json())
        cells = join(Store(tmp_path).by_cell(), tmp_path)
        score = cells[run.cell_id][0].scores.last.metrics.get("judged:mt_bench")
        notes = [note for note in cells.notes["judged:mt_bench"] if note.startswith(name) and "not written as" not in note]
        plan = judging.judging("table4", tmp_path)
        return score, notes, sum(asked.stem is not None for asked in plan.asked), plan.left

    assert shown(last="1" * 64, best="2" * 64) == (5.0, [], 1, 1280)
    score, (note,), answered, left = shown(last="2" * 64, best="1" * 64)  # trained again
    assert (score, answered, left) == (None, 0, 1440) and "left out" in note and "11111111" in note and "22222222" in note
    score, (note,), *_ = shown()  # trained again without keeping its weights, or before records named them
    assert score == 5.0 and "whether these are answers of the weights that its run has now is not known" in note
    changed(own, sha256="3" * 64)  # written anew; the verdicts are of a file of zeros
    score, (note,), answered, left = shown(last="1" * 64)
    assert (score, answered, left) == (None, 1, 1440) and "was written anew (judge again)" in note
    changed(own, sha256="0" * 64)
    assert shown(last="1" * 64) == (5.0, [], 1, 1280)


def bare_files(folder, model, backbone, fingerprint=None, index=""):
    """The same for a backbone as it is."""
    name = judged_files(folder, compose(["model=llama_7b", "task=alpaca", "method=lora"]), "mt_bench", {"model": "gpt-4"})
    (folder / "answers" / f"{name}.json").rename(own := folder / "answers" / f"bare{index}.json")
    (folder / "judged" / "x.json").rename(judged := folder / "judged" / f"bare{index}.json")
    about = {"model": model, "run": None, "checkpoint": None}
    changed(own, **about, backbone=backbone, provenance={"model_fingerprint": fingerprint})
    graded = {"name": f"{model}--bare--mt_bench--aaaaaaaa", "sha256": "0" * 64, **about}
    changed(judged, answers=[graded])


def test_a_bare_backbone_of_other_settings_is_not_the_tables(tmp_path):
    def settings(*overrides):
        return hashed("model", compose(["model=llama_13b", "task=alpaca", *overrides]).model)

    def shown(folder, *overrides):
        cells = join({}, folder, overrides=overrides)
        (notes,) = cells.notes.values()
        rows = [row for row in compare("table4", Asked(cells, overrides))[0].rows if row[1:3] == ["No tuning", "ours"]]
        answered = sum(asked.stem is not None for asked in judging.judging("table4", folder, overrides).asked)
        return [row[-1] for row in rows], " ".join(notes), answered

    small = ["model.size=tiny", "model.quantisation=none"]
    for name, backbone in (("own", settings()), ("small", settings(*small)), ("older", None)):
        bare_files(tmp_path / name, "llama_13b", backbone)
    row, notes, answered = shown(tmp_path / "own")
    assert (row, answered) == (["5.00 (n=1)"], 1) and "left out" not in notes and "not known" not in notes
    row, notes, answered = shown(tmp_path / "small")
    assert (row, answered) == ([], 0) and "conf/model/llama_13b.yaml has (quantisation=none, size=tiny)" in notes
    row, notes, _ = shown(tmp_path / "small", *small)
    assert row == ["5.00 (n=1)"] and "left out" not in notes
    assert shown(tmp_path / "own", *small)[0] == []
    row, notes, answered = shown(tmp_path / "older")
    assert (row, answered) == (["5.00 (n=1)"], 1) and "with which settings this backbone answered is not known" in notes


def test_a_bare_backbone_of_other_weights_than_the_runs_is_noted(tmp_path):
    run = compose(["model=llama_7b", "task=alpaca", "method=lora"])
    bare_files(tmp_path, "llama_7b", None, "before")
    name = judged_files(tmp_path, run, "mt_bench", {"model": "gpt-4"})
    for fingerprint, expected in (("after", 2), ("before", 0)):
        changed(tmp_path / "answers" / f"{name}.json", provenance={"model_fingerprint": fingerprint})
        (notes,) = join({}, tmp_path).notes.values()
        unlike = [note for note in notes if note.startswith("Not like with like") and "backbone" in note]
        assert len(unlike) == expected and all("before" in note or name in note for note in unlike)


def test_another_way_of_grading_is_left_out(tmp_path):
    """Of two seeds the second was graded one answer at a time, where Vicuna Eval is graded side by side."""
    run = compose(["model=llama_7b", "task=alpaca_10k", "method=lora"])
    name = judged_files(tmp_path, run, "vicuna_bench", {"model": "gpt-4"})
    cells = join({}, tmp_path)
    assert not cells.bare and any(
        "graded single, where conf/questions/vicuna_bench.yaml has pairwise" in n for n in cells.notes["judged:vicuna_bench"]
    )
    shown = table(tmp_path)
    assert [row[shown.columns.index("Grading")] for row in shown.rows] == ["single"]
    found = json.loads((tmp_path / "judged" / "x.json").read_text())
    (answer,), (score,) = found["answers"], found["scores"]
    vera = compose(["model=llama_7b", "task=alpaca_10k", "method=vera", "method.rank=256"])
    other = {**answer, "name": "other", "run": {**answer["run"], "method": "vera", "cell_id": vera.cell_id}}
    assert sum(asked.graded for asked in judging.judging("table13", tmp_path).asked) == 0
    changed(tmp_path / "judged" / "x.json", answers=[answer, other], scores=[score, score])
    assert sum(asked.graded for asked in judging.judging("table13", tmp_path).asked) == 1  # of one the answers are not here
    notes = join({}, tmp_path).notes["judged:vicuna_bench"]
    assert not any("left out" in note for note in notes) and any("grading: pairwise" in note for note in notes)
    # one side is of answers that were written anew: neither is shown
    changed(tmp_path / "judged" / "x.json", answers=[other, {**answer, "sha256": "4" * 64}], scores=[score, score])
    changed(tmp_path / "answers" / f"{name}.json", sha256="0" * 64)
    (note,) = join({}, tmp_path).notes["judged:vicuna_bench"]
    assert note.startswith(f"{name}, other: left out")


def test_a_pair_of_other_answers_than_the_tables_two_rows_is_left_out_and_still_wanted(tmp_path):
    """LoRA was judged beside LoRA of another seed, VeRA beside VeRA, and both in ways of which one counts."""
    keys = {m: ["model=llama_7b", "task=alpaca_10k", f"method={m}"] for m in ("lora", "vera")}
    keys["vera"].append("method.rank=256")
    name = judged_files(tmp_path, compose(keys["lora"]), "vicuna_bench", {"model": "gpt-4"})
    first, shape = tmp_path / "judged" / "x.json", json.loads((tmp_path / "answers" / f"{name}.json").read_text())
    cells, graded = {}, {}
    for seed, (method, words) in itertools.product((0, 1), keys.items()):
        run, trained = compose([*words, f"seed={seed}"]), made_up(words, seed, -1.0)
        about = {"method": method, "seed": seed, "cell_id": run.cell_id}
        record = Answers.model_validate({**shape, "run": {**shape["run"], **about, "task": "alpaca_10k"}})
        write(tmp_path / "answers" / f"{record.name}.json", record)
        identity = {key: getattr(record.run, key) for key in ("model", "task", "method", "seed", "cell_id")}
        graded[method, seed] = {**json.loads(first.read_text())["answers"][0], "name": record.name, "run": identity}
        cells.setdefault(run.cell_id, []).append(trained)
    score = json.loads(first.read_text())["scores"][0]
    kept = first.read_text()

    def judged(*pairs):
        for path in (tmp_path / "judged").iterdir():
            path.unlink()
        for index, pair in enumerate(pairs):
            path = tmp_path / "judged" / f"{index}.json"
            path.write_text(kept)
            changed(path, answers=[side if isinstance(side, dict) else graded[side] for side in pair], scores=[score, score])
        table = compare("table13", Asked(joined := join(cells, tmp_path)))[0]
        plan = judging.judging("table13", tmp_path, ["seed=0,1"])
        left = [note for note in joined.notes["judged:vicuna_bench"] if "left out" in note]
        return [row[-1] for row in table.rows if row[2] == "ours"], left, plan.left, plan

    lora, vera = ("lora", 0), ("vera", 0)
    shown, (note,), left, plan = judged((lora, ("lora", 1)), (vera, ("vera", 1)))
    assert (shown, left) == (["–", "–"], 320) and "no pair of the table's two rows" in note
    assert all(side["name"] in note for side in graded.values()) and len(plan.commands("results", [])) == 2
    shown, (_,), left, _ = judged((lora, ("vera", 1)))  # another seed
    assert (shown, left) == (["–", "–"], 320)
    shown, (_,), left, _ = judged((lora, {**graded[vera], "checkpoint": "best"}))  # another epoch
    assert (shown, left) == (["–", "–"], 320)
    elsewhere = {**graded[vera], "name": "elsewhere", "run": {**graded[vera]["run"], "cell_id": "c" * 64}}
    assert judged((lora, elsewhere))[0] == ["–", "–"]  # VeRA of another rank
    assert judged((lora, {**elsewhere, "model": None, "run": None, "checkpoint": None}))[0] == ["–", "–"]
    assert judged((vera, lora))[0] == ["5.00 (n=1)"] * 2
    half, path = [f"{q}/1/ba" for q in range(10)] + ["10/1/ab", "10/1/ba"], tmp_path / "judged" / "0.json"
    for n, cell in ((138, "5.00 (n=1)"), (148, "–")):  # with the ten, as older versions took the mean
        changed(path, unreadable=half, scores=[{**score, "n": n}] * 2)
        joined = join(cells, tmp_path)
        assert [row[-1] for row in compare("table13", Asked(joined))[0].rows if row[2] == "ours"] == [cell] * 2
        assert judging.judging("table13", tmp_path).left == 160 * (cell == "–")
        notes = " ".join(joined.notes["judged:vicuna_bench"])
        counted = (
            "148 of 160 verdicts could be read, 10 of them in one order of a question alone; the mean is over the other 138."
        )
        assert (counted in notes) == (n == 138) and ("older version" in notes) == (n == 148)
    shown, notes, left, plan = judged((vera, lora), (lora, ("lora", 1)))
    assert (shown, len(notes), left) == (["5.00 (n=1)", "5.00 (n=1)"], 1, 160) and len(plan.commands("results", [])) == 1


def test_a_judgement_without_the_record_of_its_answers_is_wanted_again(tmp_path):
    run = compose(["model=llama_7b", "task=alpaca", "method=lora"])
    name = judged_files(tmp_path, run, "mt_bench", {"model": "gpt-4"})
    path = tmp_path / "judged" / "x.json"
    assert judging.judging("table4", tmp_path).left == 1280
    (answer,) = json.loads(path.read_text())["answers"]
    changed(path, answers=[{**answer, "model": None, "checkpoint": None, "run": None}])
    plan = judging.judging("table4", tmp_path)
    assert plan.left == 1440 and f"{name}.jsonl" in plan.commands("results", [])[-1]
    (note,) = join({}, tmp_path).notes["judged:mt_bench"]
    assert note == f"{name}: left out, graded while the record of {name} was not beside it (judge again)."


def paired_table(tmp_path, monkeypatch, *methods):
    """A project's table of answers judged two and two."""
    rows = [{"label": str(method), "model": "llama_7b", "method": method, "source": "ours"} for method in methods]
    text = {
        **{"title": "Pairs", "stat": "last", "models": {"llama_7b": "Llama"}, "rows": rows},
        "columns": {"score": {"label": "Vicuna", "task": "alpaca_10k", "judged": "vicuna_bench"}},
    }
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "mine.yaml").write_text(json.dumps(text))
    monkeypatch.setenv("VERA_PROJECT", str(tmp_path))


def test_a_backbone_as_it_is_is_one_side_of_a_pair_at_every_seed(tmp_path, monkeypatch):
    paired_table(tmp_path, monkeypatch, None, "vera")
    found = judging.judging("mine", tmp_path, ["seed=0,1"])
    sides = [asked.name for asked in found.asked]
    assert sides[::2] == ["llama_7b--bare"] * 2 and [side[-4:] for side in sides[1::2]] == ["--s0", "--s1"]
    answering = [line for line in found.commands(str(tmp_path), []) if " answer model=" in line]
    assert len(answering) == len(found.named()) == 3


def test_an_odd_number_of_rows_judged_two_and_two_is_refused(tmp_path, monkeypatch):
    paired_table(tmp_path, monkeypatch, None, "lora", "vera")
    with pytest.raises(ConfigError, match=r"mine.*two and two.*llama_7b"):
        judging.judging("mine", tmp_path)
