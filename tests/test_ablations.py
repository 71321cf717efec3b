"""Tables 6 and 7 and Figures 2, 4 and 6: statistics against scipy, formulas by hand, labels that say what is a miniature."""

import json

import numpy as np
import pytest
from scipy.stats import ttest_rel

from experiments.artefacts import figure2_ranks, figure4_gain, figure6_expressivity, variants
from experiments.engine import analysis
from experiments.engine.aggregate import common, paired
from experiments.engine.claims import stated
from experiments.engine.comparison import compare
from experiments.engine.plots import median_over
from experiments.engine.published import choice
from experiments.engine.render import DASH, markdown, signed
from experiments.engine.rows import Asked
from tests.test_experiments import by_cell, record
from vera.commands import expressivity

DIGITS = ["model=digits_vit", "task=digits"]
LARGE = ["model=roberta_large", "method=vera"]


def test_paired_differences_are_the_textbook_ones():
    a, b = [0.91, 0.88, 0.93, 0.90, 0.87], [0.90, 0.86, 0.90, 0.91, 0.85]
    found = paired(a, b)
    expected = ttest_rel(a, b).confidence_interval(0.95)
    assert found.mean == pytest.approx(np.mean(np.subtract(a, b))) and found.n == 5
    assert found.interval == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert paired(a, b, 0.99).interval[0] < found.interval[0]
    single = paired([0.5], [0.25])
    assert single.interval is None and signed(single, 100) == "+25.0"
    assert signed(None) == DASH


def test_runs_are_paired_by_seed():
    ours = [record(["method=vera"], seed, 0.80 + seed / 100) for seed in (0, 1, 3)]
    others = [record(["method=lora"], seed, 0.70) for seed in (3, 1, 2)]
    difference = paired(*common(ours, others))
    assert difference.mean == pytest.approx(0.12) and difference.n == 2 and common(ours, []) == ([], [])


def test_table_6_shows_means_beside_the_printed_ones():
    scores = [0.80, 0.82, 0.84, 0.86, 0.93]
    cells = by_cell(
        *(record([*LARGE, "task=rte"], seed, score, parameters=61440) for seed, score in enumerate(scores)),
        *(record([*LARGE, "task=rte", "method.train=only_b"], seed, 0.6, parameters=49152) for seed in range(5)),
    )
    rows = {tuple(row[1:3]): row[3:] for part in "abc" for row in compare(f"table6{part}", Asked(cells))[0].rows}
    assert rows["VeRA (both)", "paper"] == [DASH, "90.5±0.7", "85.8±0.7"]
    assert rows["VeRA (both)", "ours"] == ["61,440", DASH, "85.0±5.0"]  # the median would be 84.0
    assert rows["only b", "ours"] == ["49,152", DASH, "60.0±0.0"]
    assert rows["Kaiming uniform", "ours"][2] == "85.0±5.0"
    assert rows["1.0", "ours"][1:] == [DASH, DASH]


def test_miniatures_say_so_and_compare_seed_by_seed():
    cells = by_cell(
        *(record(["method=vera"], seed, 0.80 + seed / 100) for seed in range(5)),
        *(record(["method=vera", "method.sharing=unique"], seed, 0.83 + seed / 100) for seed in range(5)),
    )
    _, mini = variants.build(Asked(cells))
    assert "miniature" in mini.title and "A miniature, not the paper's experiment" in markdown(mini)
    assert mini.rows[0][-1] == DASH and mini.rows[1][-1] == "+3.0 [+3.0, +3.0]" and mini.rows[1][4] == "85.0±1.6"


def test_figure_2_has_every_rank_of_the_paper(tmp_path, drawn_twice):
    cells = by_cell(
        *(
            record([f"method.rank={rank}"], seed, 0.7 + seed / 100, parameters=8 * (128 + rank))
            for rank in (1, 4)
            for seed in (0, 1)
        ),
        *(record(["method=lora", "method.rank=1"], seed, 0.75, parameters=2048) for seed in (0, 1, 2)),
    )
    full, mini = figure2_ranks.build(Asked(cells))
    assert [row[1] for row in full.rows] == ["1", "4", "16", "64", "256", "1024", "1", "2", "4", "8", "16", "32", "64"]
    rows = {(row[0], row[1]): row[2:] for row in mini.rows}
    assert rows["VeRA", "4"][:3] == ["1,056", "2", "70.5±0.7 (n=2)"] and rows["VeRA", "16"] == [DASH] * 5
    assert {path.stem for path in drawn_twice(figure2_ranks.draw, Asked(cells))} == {"figure2_mini"}
    assert figure2_ranks.draw(Asked({}), tmp_path) == []


def test_the_gain_is_the_caption_s_formula(drawn_twice):
    head = ["method=head", "train.epochs=40", "train.batch_size=128", "train.head_lr=2.0e-3"]
    cells = by_cell(
        *(record(["model=roberta_large", "task=rte", *head], seed, 0.53, parameters=0) for seed in range(5)),
        *(record([*LARGE, "task=rte"], seed, 0.859, parameters=61440) for seed in range(4)),
    )
    full, mini = figure4_gain.build(Asked(cells))
    rows = {row[0]: row for row in full.rows}
    assert rows["VeRA"][3] == "2.64±0.00 (n=4)" and rows["VeRA"][-1] == "2.64"  # the discrepancies' baseline: 53.2 to 53.4
    assert rows["VeRA"][1:3] == ["61,440", "4"] and rows["LoRA"][3] == DASH and rows["AdapterP (3M)"][-1] == "0.05"
    assert all(row[3] == DASH for row in mini.rows)
    assert {path.stem for path in drawn_twice(figure4_gain.draw, Asked(cells))} == {"figure4"}


def test_a_collapsed_run_is_no_gain_and_no_loss():
    """Not zero over a collapsed head, nor what the seeds that are left say of the claim."""
    head = choice("figure4", "head", "mini")
    fine = [*(record([*DIGITS, *head], seed, 0.5, parameters=0) for seed in range(5))]
    made = {
        method: [record([*DIGITS, f"method={method}"], seed, 0.7 + seed / 100) for seed in range(5)]
        for method in ("vera", "lora")
    }
    fallen = fine[0].model_copy(update={"collapsed": "the loss is nan"})
    rows = figure4_gain.build(Asked(by_cell(fallen, *fine[1:], *made["vera"])))[1].rows
    assert [row[3] for row in rows] == [DASH] * 3
    claim = next(claim for claim in stated() if claim.id == "gain")
    for one in (fine[0], made["vera"][0]):
        records = [*fine, *made["vera"], *made["lora"]]
        records[records.index(one)] = one.model_copy(update={"collapsed": "the loss is nan"})
        *_, line = figure4_gain._more_per_parameter(claim, Asked(by_cell(*records)))
        assert (line.reading, line.ours) == ("undecided", DASH)
        assert line.result == "a run collapsed in 1 of 5 pairs, and what the others say would flatter"


def test_bars_are_named_by_what_they_are():
    assert median_over([5, 5]) == "median over seeds (n=5), range of the seeds"
    assert median_over([20]) == "median over seeds (n=20), 95% interval of the median"
    assert median_over([5, 20]).endswith("(n=5 to 20), 95% interval of the median, of fewer than nine seeds their range")


def test_lora_s_best_fit_is_the_truncated_decomposition():
    M = np.random.default_rng(3).standard_normal((10, 10))
    U, S, V = np.linalg.svd(M)
    errors = expressivity.lora_errors(M)
    for rank in (1, 4):
        assert errors[rank] == pytest.approx(np.mean((M - U[:, :rank] * S[:rank] @ V[:rank]) ** 2))
    assert errors[10] == pytest.approx(0, abs=1e-20)


def test_vera_s_fit_is_the_closed_form_at_rank_1_and_better_with_rank():
    M = np.random.default_rng(4).standard_normal((10, 10))
    error, same = expressivity.vera_error(M, 1, np.random.default_rng(5), starts=3)
    x = np.random.default_rng(5).uniform(-1, 1, (10, 1))[:, 0]  # the one column that P Q may have here
    assert error == pytest.approx((np.sum(M**2) - np.sum((x @ M) ** 2) / (x @ x)) / 100, abs=1e-6) and same == 3
    errors = [expressivity.vera_error(M, rank, np.random.default_rng(6), starts=2)[0] for rank in (1, 10, 40, 90)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.05


def test_the_committed_fits_can_be_made_again():
    """The first matrix and the ranks that take no time; the optimiser's last digits may differ between machines."""
    found = analysis.read("figure6")
    assert found["matrices"] >= 20 and all(len(fit["mse"]) == found["matrices"] for fit in found["lora"] + found["vera"])
    draws = np.random.default_rng([found["seed"], 0])
    M = draws.standard_normal((10, 10))
    assert expressivity.lora_errors(M)[3] == pytest.approx(found["lora"][2]["mse"][0], abs=2e-6)
    for fit in found["vera"][:4]:
        error, _ = expressivity.vera_error(M, fit["rank"], draws, found["starts"])
        assert error == pytest.approx(fit["mse"][0], abs=1e-3), fit["rank"]


def made_up(shift: float, spread: float = 0.01) -> dict:
    draws = np.random.default_rng(0)
    lora = [
        {"rank": r, "parameters": 20 * r, "mse": (1 / (r + 1) + spread * draws.standard_normal(30)).tolist()} for r in (1, 2)
    ]
    vera = [
        {"rank": 20 * r - 10, "parameters": 20 * r, "mse": (1 / (r + 1) + shift + spread * draws.standard_normal(30)).tolist()}
        for r in (1, 2)
    ]
    return {"lora": lora, "vera": [{"rank": 1, "parameters": 11, "mse": [0.9] * 30}, *vera]}


@pytest.mark.parametrize(
    ("shift", "spread", "words"),
    [
        (0.0, 0.01, "Supported: equal within 0.05"),
        (-0.2, 0.01, "Supported: VeRA is worse than LoRA by more than 0.05 of the entries' variance at none"),
        (0.2, 0.01, "Not supported: LoRA is better by more than 0.05 of the entries' variance at 20, 40 parameters"),
        (0.04, 0.2, "Undecided"),
    ],
)
def test_the_verdict_on_figure_6_follows_the_intervals(shift, spread, words):
    text = figure6_expressivity.verdict(made_up(shift, spread))
    assert text.startswith(words) and "below rank-1 LoRA's 20 parameters: 11" in text


def test_intervals_over_several_counts_hold_together():
    found = made_up(0.0)
    simultaneous = figure6_expressivity.differences(found)[20].interval
    alone = paired(found["vera"][1]["mse"], found["lora"][0]["mse"]).interval
    assert simultaneous[0] < alone[0] and simultaneous[1] > alone[1]


def test_figure_6_is_drawn_from_the_committed_fits_and_missing_ones_are_a_dash(tmp_path, monkeypatch, drawn_twice):
    assert drawn_twice(figure6_expressivity.draw, Asked({}))
    (table,) = figure6_expressivity.build(Asked({}))
    assert table.notes[-1].startswith(("Supported", "Not supported", "Undecided"))
    monkeypatch.setattr(analysis, "read", lambda *_: None)
    assert figure6_expressivity.draw(Asked({}), tmp_path) == [] and set(figure6_expressivity.build(Asked({}))[0].rows[0]) == {
        DASH
    }


def test_a_measurement_that_is_no_object_is_one_line(tmp_path):
    from vera.errors import RecordError

    (tmp_path / "analysis").mkdir()
    (tmp_path / "analysis" / "figure6.json").write_text("[1]")
    with pytest.raises(RecordError, match=r"figure6.json holds list, not an object"):
        analysis.read("figure6", tmp_path)
    (tmp_path / "analysis" / "figure6.json").write_text("{")
    with pytest.raises(RecordError, match=r"figure6.json cannot be read"):
        analysis.read("figure6", tmp_path)


def test_the_expressivity_script_is_reproducible(tmp_path, monkeypatch):
    import sys

    monkeypatch.setattr(expressivity, "VERA_RANKS", (1, 5))
    for name in "ab":
        monkeypatch.setattr(sys, "argv", ["x", "--matrices", "2", "--starts", "2", "--out", str(tmp_path / name)])
        assert expressivity.main() == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert len(json.loads((tmp_path / "a").read_text())["vera"][1]["mse"]) == 2
