"""Verdicts on hand-made differences, against scipy; every stated claim has a check; nothing is decided that nobody has run."""

import json
import math
import re

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from experiments.artefacts import bench
from experiments.artefacts import claims as tables
from experiments.engine import accounting, analysis, claims, published, registry
from experiments.engine.aggregate import detectable, deviation_p, exceeds_p
from experiments.engine.render import DASH
from experiments.engine.rows import Asked
from experiments.engine.verdicts import IN_MINIATURE, LOOK_LEVEL, LOOKS, Line, Part, decide, verdict
from tests.test_experiments import by_cell, record
from vera.errors import ConfigError

CLEAR = [0.030, 0.034, 0.028, 0.031, 0.033]
NOISE = [0.030, -0.034, 0.028, -0.031, 0.010]
LARGE = ["model=roberta_large"]


def test_one_sided_p_is_the_textbook_one():
    for bound in (0.0, 0.02, -0.1):
        expected = ttest_1samp(NOISE, bound, alternative="greater").pvalue
        assert exceeds_p(NOISE, bound) == pytest.approx(expected)
    assert exceeds_p([0.1]) is None
    assert exceeds_p([0.1, 0.1, 0.1]) == 0.0 and exceeds_p([0.0, 0.0]) == 1.0 and exceeds_p([-0.1, -0.1]) == 1.0


def test_a_deviation_is_tested_with_the_published_spread_where_there_is_one():
    values = [0.85, 0.86, 0.84, 0.87, 0.85]
    assert deviation_p(values, 0.80, None, 5) == pytest.approx(ttest_1samp(values, 0.80).pvalue)
    assert deviation_p(values, 0.80, 0.05, 5) > deviation_p(values, 0.80, None, 5)  # a spread makes the same gap less certain
    assert deviation_p([0.8], 0.8, 0.1, 5) is None and deviation_p([0.8, 0.8], 0.8, None, 5) == 1.0
    assert deviation_p(values, 0.80, 0.05, 1) is None  # of one run there is no spread


@pytest.mark.parametrize(
    ("differences", "kind", "margin", "reading"),
    [
        (CLEAR, "better", 0, "supported"),
        ([-d for d in CLEAR], "better", 0, "not supported"),
        (NOISE, "better", 0, "undecided"),
        (CLEAR, "not worse", 1.0, "supported"),
        ([-0.005, -0.004, -0.006, -0.005, -0.005], "not worse", 1.0, "supported"),
        ([-d for d in CLEAR], "not worse", 1.0, "not supported"),
        (NOISE, "not worse", 1.0, "undecided"),
        ([-0.001, 0.002, 0.001, -0.002, 0.000], "equal", 1.0, "supported"),
        (CLEAR, "equal", 1.0, "not supported"),
        ([-d for d in CLEAR], "equal", 1.0, "not supported"),
        (NOISE, "equal", 1.0, "undecided"),
        ([0.06, 0.02, 0.04, 0.01, 0.03], "equal", 1.0, "undecided"),  # p = 0.035 that it is above, and there are two sides
        ([0.001, 0.002], "equal", 1.0, "undecided"),  # two pairs decide nothing, however alike
        (CLEAR[:4], "better", 0, "undecided"),
        ([], "better", 0, "not run"),
    ],
)
def test_readings(differences, kind, margin, reading):
    line = decide("x", "paper", [Part("", differences)], kind, margin)
    assert line.reading == reading
    if not differences:
        assert (line.ours, line.test, line.result) == (DASH, DASH, DASH)


def test_a_claim_about_cells_needs_all_and_falls_with_one():
    both = decide("x", "", [Part("a", CLEAR), Part("b", CLEAR)], "better")
    assert both.reading == "supported" and "largest of 2" in both.result and both.ours.startswith("a +3.1 [+2.9, +3.3]; b")
    assert decide("x", "", [Part("a", CLEAR), Part("b", NOISE)], "better").reading == "undecided"
    assert decide("x", "", [Part("a", CLEAR), Part("b", [-d for d in CLEAR])], "better").reading == "not supported"
    assert decide("x", "", [Part("a", CLEAR), Part("b", [])], "better").reading == "not run"
    assert decide("x", "", [Part("a", [-d for d in CLEAR]), Part("b", [])], "better").reading == "not supported"
    weak = [-0.03, -0.001, -0.02, -0.03, 0.001]
    alone, among = (decide("x", "", [Part("a", weak)] + [Part("b", NOISE)] * more, "better") for more in (0, 9))
    assert alone.reading == "not supported" and among.reading == "undecided"  # one bad cell of ten happens by chance
    first = decide("x", "", [Part("a", weak)] + [Part("b", [])] * 9, "better")
    assert first.reading == "not run"  # nor does one of ten refute while nine are to come


def spread(mean, n, scale=0.04):
    """n differences with exactly this mean, of which every even number is symmetric."""
    return [mean + scale * (1 if i % 2 else -1) * (1 + i // 2 % 3) / 2 for i in range(n)]


def test_looks_are_taken_in_order_and_the_first_that_decides_counts():
    def read(differences, kind="better", margin=2.0):
        return decide("x", "", [Part("", differences)], kind, margin, looks=LOOKS)

    late = read([*spread(0.0, 10), *spread(0.06, 10)])
    assert late.reading == "supported" and "n=20, look 3 of 4" in late.test
    early = read([*CLEAR, *[-0.1] * 35])
    assert early.reading == "supported" and "n=5, look 1 of 4" in early.test
    assert "all pairs: -8.4" in early.result  # what came later is shown and changes nothing
    waiting = read(spread(0.01, 19))
    assert waiting.reading == "undecided" and "n=10, look 2 of 4" in waiting.test
    assert read(spread(0.012, 40)).reading == "undecided" and "look 4 of 4" in read(spread(0.012, 40)).test
    assert read(CLEAR[:4]).result.startswith("4 of the 5 pairs")


def test_a_stricter_level_and_an_advantage_that_is_too_small_to_matter():
    weak = [0.05, 0.01, 0.03, 0.0, 0.02]  # p = 0.035
    assert decide("x", "", [Part("", weak)], "better").reading == "supported"
    assert decide("x", "", [Part("", weak)], "better", looks=LOOKS).reading == "undecided"
    small = decide("x", "", [Part("", spread(0.0, 40, 0.02))], "better", 2.0, looks=LOOKS)
    assert small.reading == "not supported" and "refuted below 2" in small.test
    assert decide("x", "", [Part("", spread(0.0, 40, 0.02))], "better", looks=LOOKS).reading == "undecided"
    assert decide("x", "", [Part("", CLEAR)], "better", 5.0, looks=LOOKS).reading == "supported"  # small, and yet there


def test_four_looks_err_once_in_twenty():
    noise = np.random.default_rng(0).standard_normal((40_000, 40))
    wrong = np.zeros(len(noise), bool)
    for n in LOOKS:
        wrong |= ttest_1samp(noise[:, :n], 0, axis=1, alternative="greater").pvalue < LOOK_LEVEL
    assert wrong.mean() == pytest.approx(0.05, abs=0.004)


def test_what_five_pairs_can_show_is_shown_in_four_cases_of_five():
    gaps = [0.01, -0.02, 0.03, 0.0, -0.01]
    shift = detectable(gaps) / np.std(gaps, ddof=1)
    draws = np.random.default_rng(0).standard_normal((40_000, 5)) + shift
    assert (ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.01)
    assert detectable([0.1]) is None


def test_sign_flips_stand_beside_and_five_pairs_cannot_go_below_a_sixteenth():
    assert decide("x", "", [Part("", CLEAR)], "better").result.endswith("sign flips, two-sided: 0.0625")


def test_sign_flips_of_a_refuted_claim_are_against_the_margin_that_is_excluded():
    nothing = [-0.002, 0.001, 0.002, -0.001, 0.0015]  # as good as zero, and so not better by two points
    above = [0.2 + 0.01 * gap for gap in range(20)]
    one = decide("x", "", [Part("", nothing)], "better", 2.0)
    two = decide("x", "", [Part("", above), Part("", nothing)], "better", 2.0)
    assert one.reading == two.reading == "not supported"
    assert one.result.endswith("that it fails; sign flips, two-sided: 0.0625")
    assert two.result.endswith("sign flips, two-sided: 0.1250")


def line(reading, miniature=False):
    return Line("s", "p", "o", "t", "r", reading, miniature)


@pytest.mark.parametrize(
    ("lines", "word"),
    [
        ([line("supported"), line("not supported", True)], "supported"),
        ([line("undecided"), line("supported", True)], "undecided"),
        ([line("supported"), line("not supported")], "not supported"),
        ([line("not run"), line("supported", True)], IN_MINIATURE),
        ([line("not run"), line("supported", True), line("undecided", True)], "not run"),
        ([line("not run"), line("not supported", True)], "not run"),
        ([line("not run"), line("not run", True)], "not run"),
    ],
)
def test_a_miniature_never_overrules_and_never_decides(lines, word):
    assert verdict(lines)[0] == word


def test_what_nobody_has_run_is_not_run(tmp_path, monkeypatch):
    registry.load_all()  # before counts are replaced: what is imported meanwhile would keep the replacement
    monkeypatch.setattr(analysis, "read", lambda *_: None)
    monkeypatch.setattr(bench, "MEASURED", tmp_path)
    monkeypatch.setattr(accounting, "counts", dict)
    assert {reading.reading for lines in claims.evidence(Asked({})).values() for reading in lines} == {"not run"}
    assert {row[4] for row in tables.build(Asked({}))[0].rows} == {"not run"}


def verdicts(cells) -> dict[str, list[str]]:
    return {claim.id: row for claim, row in zip(claims.stated(), tables.build(Asked(cells))[0].rows, strict=True)}


def test_counts_decide_without_a_single_run():
    found = verdicts({})
    assert found["fewer_glue_large"][3:5] == ["12.8 (786,432 / 61,440)", "supported"]
    assert found["fewer_glue_base"][2:5] == ["7.0 (0.3M / 0.043M)", "6.9 (294,912 / 43,008)", "not supported"]
    assert found["fewer_instruct"][4] == found["fewer_e2e"][4] == found["fewer_images"][4] == "supported"
    assert found["storage"][4] == "supported" and found["table1_gpt3"][4] == "not supported"
    for factor, reading in ((7.0, "supported"), (8.0, "not supported")):  # 6.86 times fewer, which is 7 to one digit
        assert claims.fewer({"roberta_base": factor}, "table2").reading == reading


def test_the_average_over_tasks_is_paired_by_seed():
    tasks = ("sst2", "mrpc", "cola", "qnli", "rte", "stsb")

    def runs(method, shift, skip=()):
        return [
            record([*LARGE, f"task={task}", f"method={method}"], seed, 0.8 + seed / 100 + shift)
            for task in tasks
            for seed in range(5)
            if (task, seed) not in skip
        ]

    same = verdicts(by_cell(*runs("vera", 0.001), *runs("lora", 0.0)))["same_glue_large"]
    assert same[3:5] == ["+0.1 [+0.1, +0.1]", "supported"]
    worse = verdicts(by_cell(*runs("vera", -0.02), *runs("lora", 0.0)))["same_glue_large"]
    assert worse[4] == "not supported"
    four = verdicts(by_cell(*runs("vera", 0.001, {("rte", 3)}), *runs("lora", 0.0)))["same_glue_large"]
    assert four[4] == "undecided" and "4 of the 5 pairs" in four[6]
    apart = by_cell(
        *(
            record(["model=minilm", f"task={task}", f"method={method}"], seed, 0.8)
            for task, seeds in (("rte", range(5)), ("mrpc", range(5, 10)))
            for method in ("vera", "lora")
            for seed in seeds
        )
    )
    (table,) = (table for table in registry.artefact("claims").build(Asked(apart)) if table.name == "claims")
    assert any("no seed that each of them has (seeds 0, 1, 2, 3, 4; 5, 6, 7, 8, 9)" in note for note in table.notes)


def test_differences_are_of_the_epoch_that_a_claim_reads():
    sides = [["model=digits_vit", "task=digits", f"method={method}"] for method in ("vera", "lora")]
    made = [record(side, 3, *scores) for side, scores in zip(sides, ((0.80, 0.70), (0.60, 0.75)), strict=True)]
    found = [claims.by_seed(Asked(by_cell(*made)), *sides, select=select) for select in ("best", "last")]
    assert found == [{3: pytest.approx(0.2)}, {3: pytest.approx(-0.05)}]


def test_later_layers_are_the_second_half_less_the_first():
    assert claims.over_layers([[1.0, 2.0, 40.0, 3.0, 6.0], [5.0, 5.0, 0.0, 1.0, 1.0]], True) == [3.0, -4.0]  # no middle one
    assert claims.over_layers([[1.0, 2.0, 3.0], [4.0, 4.0, 4.0]], False) == [2.0, 4.0]


def test_a_collapsed_run_decides_nothing_by_its_survivors_in_any_metric():
    names = ("NIST", "NIST_py", "METEOR", "ROUGE_L", "CIDEr")

    def run(method, seed, score, **more):
        metrics = {} if more else dict.fromkeys(names, score + seed / 100)
        made = record(["model=gpt2_mini", "task=e2e", f"method={method}"], seed, score + seed / 100, metrics=metrics)
        return made.model_copy(update=more)

    ours = [run("vera", seed, 0.5) for seed in range(5)]
    others = [run("lora", seed, 0.7, **({"collapsed": "the loss is nan"} if seed == 2 else {})) for seed in range(5)]
    row = verdicts(by_cell(*ours, *others))["better_e2e"]
    assert row[4] == "not run (undecided in miniature)" and row[6].startswith("a run collapsed in 1 of 5 pairs"), row


def test_a_metric_is_held_against_its_own_margin():
    near = [0.004, 0.005, 0.006, 0.005, 0.004, 0.006]  # half a unit of the first, fifty of the second
    first, second = Part("first", near, 100, 1, 1.0), Part("second", near, 10_000, 1, 1.0)
    alone = decide("x", "", [first], "equal", 0.1)
    assert alone.reading == "supported" and "margin 1" in alone.test
    both = decide("x", "", [first, second], "equal", 0.1)
    assert both.reading == "not supported"
    assert decide("x", "", [Part("first", near)], "equal", 0.1).reading == "not supported"
    short = [-value for value in near]
    fallen = decide("x", "", [Part("first", short, margin=0.1), Part("second", short, margin=2.0)], "better")
    assert fallen.reading == "not supported" and "refuted below 0.1/2" in fallen.test


def test_a_run_that_collapses_after_the_look_that_decided_does_not_undo_it():
    def reading(*differences):
        return decide("x", "", [Part("", differences)], "better", 2.0, looks=LOOKS)

    later = reading(*CLEAR, 0.03, -math.inf)
    assert later.reading == "supported" and later.result.endswith("all pairs: a run collapsed in 1 of 7 pairs")
    at_once = reading(*CLEAR[:4], math.nan, *CLEAR)
    assert at_once.reading == "undecided" and at_once.result.startswith("a run collapsed in 1 of 10 pairs")


def test_runs_that_collapse_on_both_sides_of_a_mean_are_told():
    """Minus infinity on one task and infinity on another make no sum."""

    def of(task, method, lost):
        made = [record(["model=minilm", f"task={task}", f"method={method}"], seed, 0.5 + seed / 100) for seed in range(5)]
        return [one.model_copy(update={"collapsed": "the loss is nan"} if one.run.seed == lost else {}) for one in made]

    found = by_cell(*of("cola", "vera", 1), *of("cola", "lora", None), *of("stsb", "vera", None), *of("stsb", "lora", 1))
    row = verdicts(found)["same_glue_large"]
    assert row[4] == "not run (undecided in miniature)" and row[6].startswith("a run collapsed in 1 of 5 pairs"), row


def test_an_ablation_in_miniature_is_called_one():
    mini = ["model=digits_vit", "task=digits", "method=vera"]
    scores = {"": 0.80, "method.train=only_d": 0.75, "method.train=only_b": 0.6}
    noise = [0.001, -0.002, 0.0, 0.002, -0.001]
    cells = by_cell(
        *(
            record([*mini, *filter(None, [choice])], seed, score + (noise[seed] if choice else 0))
            for choice, score in scores.items()
            for seed in range(5)
        )
    )
    found = verdicts(cells)
    assert found["both_vectors"][4] == IN_MINIATURE
    large = [
        record([*LARGE, f"task={task}", "method=vera", *filter(None, [choice])], seed, score + noise[seed])
        for task in ("mrpc", "rte")
        for choice, score in scores.items()
        for seed in range(5)
    ]
    reversed_large = [
        record([*LARGE, f"task={task}", "method=vera", *filter(None, [choice])], seed, 1 - score + noise[-seed])
        for task in ("mrpc", "rte")
        for choice, score in scores.items()
        for seed in range(5)
    ]
    assert verdicts(cells | by_cell(*large))["both_vectors"][4] == "supported"
    assert verdicts(cells | by_cell(*reversed_large))["both_vectors"][4] == "not supported"


def test_measured_ratios_are_judged_by_the_interval_of_their_median(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "MEASURED", tmp_path)

    def measured(low, high, case="table12_time", inner=None, rounds=10):
        row = {"case": case, "what": "training step / LoRA r=64", "shapes": "Llama, r=64, all linear", "rounds": rounds}
        row["ratio"] = {"min": low, "median": (low + high) / 2, "max": high}
        row["ratio"] |= dict(zip(("low", "high"), inner or (), strict=False))
        (tmp_path / f"{case}.json").write_text(json.dumps({"machine": {"device": "D"}, "cases": [row]}))
        return verdicts({})["time"][4]

    assert measured(0.98, 1.02) == "supported"
    assert measured(1.06, 1.10) == "not supported"
    assert measured(1.00, 1.10) == "undecided"
    assert measured(0.90, 1.30, inner=(1.0, 1.04)) == "supported"  # odd rounds do not decide
    assert measured(0.90, 1.30, inner=(1.0, 1.06)) == "undecided"
    assert measured(0.90, 1.30, inner=(1.06, 1.1)) == "not supported"
    assert measured(0.98, 1.02, rounds=5) == measured(1.0, 1.0, rounds=1) == measured(2.0, 3.0, rounds=2) == "undecided"
    assert measured(0.98, 1.02) == "supported" and "smallest and largest ratio at most 1.05, n=10" in verdicts({})["time"][5]
    measured(0.90, 1.30, inner=(1.0, 1.04))
    assert "95% interval of the median ratio at most 1.05, n=10" in verdicts({})["time"][5]
    measured(0.98, 1.02, rounds=5)
    assert "such an interval takes 6 rounds" in verdicts({})["time"][6] and measured(0.98, 1.02, rounds=6) == "supported"
    (tmp_path / "table12_time.json").rename(tmp_path / "table12.json")
    assert bench.build(Asked({})) == []  # it has no peer in PEFT
    (tmp_path / "table12.json").unlink()
    assert measured(0.98, 1.02, case="c") == IN_MINIATURE
    assert measured(1.10, 1.20, case="c") == "not run (not supported in miniature)"


def test_time_and_memory_are_read_in_every_row_of_equal_rank():
    """Not in Llama's alone: whatever results/bench has against LoRA of VeRA's own rank is evidence."""
    rows = []
    for path in sorted(bench.MEASURED.glob("*.json")):
        for row in json.loads(path.read_text(encoding="utf-8"))["cases"]:
            rank = re.search(r"\b(?:r=|rank )(\d+),", row["shapes"])
            if path.name == "table12.json":
                kind = "peak memory of a step" if row["case"] == "table12_memory" else "training step"
                rows.append((kind, row["shapes"], f"{row['ratio']['median']:.3f}"))
            elif rank and row["what"].endswith(f" / LoRA r={rank[1]}"):
                rows.append((row["what"].partition(" / ")[0], row["shapes"], f"{row['ratio']['median']:.3f}"))
    found = claims.evidence(Asked({}))
    for claim, what in (("time", "training step"), ("memory", "peak memory of a step")):
        wanted = [(shapes, ratio) for kind, shapes, ratio in rows if kind == what]
        shown = [(line.source.partition(": ")[2].partition(";")[0], line.ours.partition(",")[0]) for line in found[claim]]
        assert all(line.ours.endswith(", by CUDA graphs") == ("CUDA graphs" in line.source) for line in found[claim])
        assert shown == wanted and {"r=256", "r=64", "rank 64"} <= {
            re.search(r"r=\d+|rank \d+", shapes)[0] for shapes, _ in wanted
        }
    assert {line.reading for line in found["time"]} == {"supported", "not supported", "undecided"}


def test_times_of_replayed_passes_stand_for_table12_and_its_ordinary_steps_beside_them(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "MEASURED", tmp_path)

    def read(*cases):
        rows = [
            {"case": case, "what": "seconds", "shapes": "Llama", "rounds": 6, "ratio": {"min": low, "median": low, "max": high}}
            for case, low, high in cases
        ]
        (tmp_path / "table12.json").write_text(json.dumps({"machine": {"device": "D"}, "cases": rows}))
        return verdicts({})["time"][4], [(line.miniature, line.reading) for line in claims.evidence(Asked({}))["time"]]

    ordinary, replayed = ("table12_time", 0.9, 1.2), ("table12_time_graphs", 0.95, 0.97)
    assert read(ordinary) == ("undecided", [(False, "undecided")])
    assert read(ordinary, replayed) == ("supported", [(True, "undecided"), (False, "supported")])
    assert read(ordinary, ("table12_time_graphs", 1.1, 1.2)) == (
        "not supported",
        [(True, "undecided"), (False, "not supported")],
    )


def test_miniatures_that_disagree_do_not_decide_a_claim_and_say_so(monkeypatch):
    readings = {"digits": "not supported", "MiniLM": "supported"}
    lines = [Line(source, "p", "o", "t", "r", reading, True) for source, reading in readings.items()]
    found = {claim.id: lines for claim in claims.stated()}
    monkeypatch.setattr("experiments.artefacts.claims.evidence", lambda asked: found)
    row = tables.build(Asked({}))[0].rows[0]
    assert row[4] == "not run (miniatures disagree)"
    assert row[6] == "r; in miniature: digits not supported; MiniLM supported"


def test_every_claim_has_a_check_and_every_check_a_claim(monkeypatch):
    assert claims.evidence(Asked({})).keys() == claims.CHECKS.keys()
    monkeypatch.setattr(
        claims,
        "stated",
        lambda: claims.Claims(claims=[{"id": "odd", "topic": "cost", "short": "s", "claim": "c", "where": "w"}]).claims,
    )
    with pytest.raises(ConfigError, match=r"results/paper/claims\.yaml.*odd"):
        claims.evidence(Asked({}))


def test_the_paper_s_numbers_are_the_tables_own():
    found = verdicts({})
    (vera,) = (row for row in published.load("table2").rows if (row.model, row.method) == ("roberta_large", "vera"))
    assert f"VeRA {vera.average}" in found["same_glue_large"][2]
    assert found["time"][2] == "1.018 (578 / 568 minutes)" and found["memory"][2] == "0.926 (21.69 / 23.42 GB)"
    assert found["better_e2e"][2] == "higher in 8 of 10 printed cells"
