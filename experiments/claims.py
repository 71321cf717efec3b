"""The paper's claims as checks over counts, records and measurements.

results/paper/claims.yaml states them; experiments/verdicts.py has the rules by which they are decided.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache

import yaml

from experiments import accounting, analysis, bench, e2e_mini, figure4_gain, figure6_expressivity, miniature, table1
from experiments.aggregate import PAPER_SEEDS, Cells, cell_records
from experiments.minilm_methods import SWEEP
from experiments.published import FOLDER, Row, Statistic, load
from experiments.render import DASH, Table
from experiments.sweeps import read_sweep
from experiments.verdicts import LEVEL, Line, Part, decide, verdict
from vera.config import Strict, checked
from vera.errors import ConfigError


class Claim(Strict):
    """One statement of the paper. factor: by model, so many times fewer parameters. rule: what would decide it."""

    id: str
    claim: str
    where: str
    paper: str | None = None
    factor: dict[str, float] = {}
    margin: float | None = None
    rule: str = "the ratio of the counts, rounded to one digit, is at least the claimed one"


class Claims(Strict):
    claims: list[Claim]


@lru_cache(maxsize=1)
def stated() -> tuple[Claim, ...]:
    """results/paper/claims.yaml. Raises ConfigError naming the key."""
    where = "results/paper/claims.yaml"
    try:
        return tuple(checked(Claims, yaml.safe_load((FOLDER / "claims.yaml").read_text(encoding="utf-8")), where).claims)
    except (OSError, yaml.YAMLError, TypeError) as error:
        raise ConfigError(f"{where}: {' '.join(str(error).split())}") from None


# Lines that need no differences.


def fewer(factors: Mapping[str, float], table: str) -> Line:
    """LoRA's count divided by VeRA's for each model, against the claimed factor; both counted, so there is nothing to test."""
    paper, ours, met = [], [], []
    for model, factor in factors.items():
        lora, vera = (_row(table, model, method) for method in ("lora", "vera"))
        paper.append(f"{_printed(lora.params) / _printed(vera.params):.1f} ({lora.params} / {vera.params})")
        counts = [next(iter(accounting.trained(row)), None) for row in (lora, vera)]
        if None in counts:
            return Line("counts", "; ".join(paper), DASH, DASH, DASH, "not run")
        ratio = counts[0] / counts[1]
        ours.append(f"{ratio:.1f} ({counts[0]:,} / {counts[1]:,})")
        met.append(float(f"{ratio:.1g}") >= factor)
    claimed = "/".join(dict.fromkeys(f"{factor:g}" for factor in factors.values()))
    result = f"at least {claimed}, rounded to one digit: {sum(met)} of {len(met)}"
    return Line("counts", "; ".join(paper), "; ".join(ours), "counting", result, "supported" if all(met) else "not supported")


def ratios(name: str, fits: Callable[[dict], bool], limit: float, paper: str, full: Callable[[dict, dict], bool]) -> list[Line]:
    """Measured ratios of results/bench (ours / other), one line each: supported when every round is at most `limit`.

    A single figure (bytes of memory) has no rounds and is compared as it is. full: whether a row is the paper's experiment.
    """
    lines = []
    for path in sorted(bench.MEASURED.glob("*.json")):
        measured = json.loads(path.read_text(encoding="utf-8"))
        for row in filter(fits, measured["cases"]):
            low, middle, high = (row["ratio"][key] for key in ("min", "median", "max"))
            reading = "supported" if high <= limit else "not supported" if low > limit else "undecided"
            lines.append(
                Line(
                    f"{measured['machine']['device']}: {row['shapes']}{_load(row)}",
                    paper,
                    f"{middle:.3f}",
                    f"ratio at most {limit:g} in every round",
                    f"rounds from {low:.3f} to {high:.3f}" if low < high else "one figure, no spread",
                    reading,
                    not full(measured["machine"], row),
                )
            )
    return lines or [Line(name, paper, DASH, DASH, DASH, "not run")]


def _load(row: dict) -> str:
    return f"; load average {row['load_average']:.1f}" if "load_average" in row else ""


# Where differences come from.


def by_seed(
    cells: Cells, ours: Sequence[str], others: Sequence[str], metric: str | None = None, select: str = "best"
) -> dict[int, float]:
    """Ours minus others for every seed that both have, of the records with this metric."""
    sides = []
    for overrides in (ours, others):
        found = cell_records(cells, overrides)
        scored = [r for r in found if (metric or r.scores.primary) in getattr(r.scores, select).metrics]
        sides.append({record.run.seed: record.score(metric, select) for record in scored})
    return {seed: value - sides[1][seed] for seed, value in sides[0].items() if seed in sides[1]}


def mean_over(found: Iterable[dict[int, float]]) -> list[float]:
    """The mean over cells for every seed that all of them have."""
    found = list(found)
    seeds = set.intersection(*(set(one) for one in found))
    return [statistics.fmean(one[seed] for one in found) for seed in sorted(seeds)]


def _row(table: str, model: str, method: str, **variant) -> Row:
    (row,) = (r for r in load(table).rows if (r.model, r.method, r.variant) == (model, method, variant))
    return row


def _printed(text: str) -> float:
    """0.061M, 96KB: the number meant."""
    value, unit = re.fullmatch(r"([\d.]+)(\D*)", text).groups()
    return float(value) * accounting.UNITS[unit]


def _mean(cell: str) -> float:
    return float(cell.partition("±")[0])


def _mini(*choice: str) -> list[str]:
    return [*miniature.OVERRIDES, *choice]


MINI = f"{miniature.LABEL} (accuracy, points)"

# The checks, by id.

Check = Callable[[Claim, Cells], list[Line]]
CHECKS: dict[str, Check] = {}


def check(*names: str) -> Callable[[Check], Check]:
    def register(function: Check) -> Check:
        CHECKS.update(dict.fromkeys(names, function))
        return function

    return register


@check("fewer_glue_large", "fewer_glue_base", "fewer_e2e", "fewer_images", "fewer_instruct")
def _fewer(claim: Claim, cells: Cells) -> list[Line]:
    table = {"glue_large": "table2", "glue_base": "table2", "e2e": "table3", "images": "table5", "instruct": "table4"}
    return [fewer(claim.factor, table[claim.id.removeprefix("fewer_")])]


@check("same_glue_large")
def _same_glue(claim: Claim, cells: Cells) -> list[Line]:
    vera, lora = (_row("table2", "roberta_large", method) for method in ("vera", "lora"))
    each = [by_seed(cells, vera.overrides(c.task), lora.overrides(c.task), c.metric) for c in load("table2").columns.values()]
    mini = by_seed(cells, *(_minilm(method) for method in ("vera", "lora")))
    paper = f"VeRA {vera.average}, LoRA {lora.average}"
    return [
        decide("RoBERTa-large, average (points)", paper, [Part("", mean_over(each))], "equal", claim.margin),
        decide(
            "MiniLM on STS-B, small budget (Pearson, points)",
            paper,
            [Part("", list(mini.values()))],
            "equal",
            claim.margin,
            miniature=True,
        ),
    ]


def _minilm(method: str) -> list[str]:
    params = read_sweep(SWEEP).params
    fixed = [f"{key}={params[key]}" for key in ("model", "task")]
    steps = [f"{key}={value}" for key, value in params.items() if key.startswith("train.")]
    return [*fixed, f"method={method}", *steps]


@check("better_e2e")
def _better_e2e(claim: Claim, cells: Cells) -> list[Line]:
    published, parts, higher = load("table3"), [], []
    for model, label in published.models.items():
        vera, lora = (_row("table3", model, method) for method in ("vera", "lora"))
        for key, column in published.columns.items():
            found = by_seed(cells, vera.overrides(column.task), lora.overrides(column.task), column.metric, "last")
            parts.append(Part(f"{label} {column.label}", list(found.values()), column.scale, column.digits))
            higher.append(_mean(vera.cells[key]) > _mean(lora.cells[key]))
    small = []
    for metric, (scale, digits) in e2e_mini.METRICS.items():
        sides = (["model=gpt2_mini", "task=e2e", f"method={method}"] for method in ("vera", "lora"))
        small.append(Part(metric, list(by_seed(cells, *sides, metric, "last").values()), scale, digits))
    paper = f"higher in {sum(higher)} of {len(higher)} printed cells"
    return [
        decide("GPT-2 medium and large", paper, parts, "better"),
        decide("miniature on a small GPT-2", paper, small, "better", miniature=True),
    ]


@check("same_images")
def _same_images(claim: Claim, cells: Cells) -> list[Line]:
    published, parts, paper = load("table5"), [], []
    for model, label in published.models.items():
        vera, lora = (_row("table5", model, method) for method in ("vera", "lora"))
        each = [
            by_seed(cells, *(r.overrides(c.task) for r in (vera, lora)), c.metric, "last") for c in published.columns.values()
        ]
        parts.append(Part(label, mean_over(each)))
        gap = statistics.fmean(_mean(vera.cells[key]) - _mean(lora.cells[key]) for key in published.columns)
        paper.append(f"{label} {gap:+.1f}")
    mini = by_seed(cells, _mini("method=vera"), _mini("method=lora"), None, "last")
    text = "; ".join(paper)
    return [
        decide("mean over four data sets (accuracy, points)", text, parts, "not worse", claim.margin),
        decide(MINI, text, [Part("", list(mini.values()))], "not worse", claim.margin, miniature=True),
    ]


@check("same_instruct")
def _same_instruct(claim: Claim, cells: Cells) -> list[Line]:
    published, gaps, paper = load("table4"), [], []
    (column,) = published.columns.values()
    for model in published.models:
        vera, lora = (_row("table4", model, method) for method in ("vera", "lora"))
        found = by_seed(cells, vera.overrides(column.task), lora.overrides(column.task), column.score, "last")
        gaps += [statistics.median(found.values())] if found else []
        paper.append(f"{_mean(vera.cells['score']) - _mean(lora.cells['score']):+.2f}")
    part = Part("", gaps, 1, 2)
    return [
        decide("MT-Bench, pairs are models", "; ".join(paper), [part], "not worse", claim.margin, pairs=len(published.models))
    ]


@check("merged")
def _merged(claim: Claim, cells: Cells) -> list[Line]:
    return ratios(
        "results/bench",
        lambda row: row["what"].startswith("merged inference / bare"),
        1 + claim.margin,
        claim.paper,
        lambda machine, row: machine.get("kind") == "cuda",
    )


def _against_lora(what: str, table12: str) -> Callable[[dict], bool]:
    """Rows at equal rank: Table 12's own, and Llama's blocks at rank 64."""
    return lambda row: row["case"] == table12 or (row["what"] == f"{what} / LoRA r=64" and "r=64," in row["shapes"])


def _is_table12(machine: dict, row: dict) -> bool:
    return row["case"].startswith("table12")


@check("time")
def _time(claim: Claim, cells: Cells) -> list[Line]:
    vera, lora = (row.cells["time"] for row in load("table12").rows[::-1])
    paper = f"{float(vera) / float(lora):.3f} ({vera} / {lora} minutes)"
    return ratios("results/bench", _against_lora("training step", "table12_time"), 1 + claim.margin, paper, _is_table12)


@check("memory")
def _memory(claim: Claim, cells: Cells) -> list[Line]:
    vera, lora = (row.cells["memory"] for row in load("table12").rows[::-1])
    paper = f"{float(vera) / float(lora):.3f} ({vera} / {lora} GB)"
    return ratios(
        "results/bench", _against_lora("peak memory of a step", "table12_memory"), 1 + claim.margin, paper, _is_table12
    )


def _variants(cells: Cells, table: str, kind: str, margin: float, pairs: Sequence[tuple[int, int]]) -> list[Line]:
    """Rows of an ablation against each other, by their place in the table, at the paper's size and in miniature."""
    published = load(table)
    full, small, paper = [], [], []
    for first, second in pairs:
        ours, others = published.rows[first], published.rows[second]
        label = f"{ours.label} - {others.label}"
        for key, column in published.columns.items():
            found = by_seed(cells, ours.overrides(column.task), others.overrides(column.task), column.metric)
            full.append(Part(f"{column.label}, {label}", list(found.values())))
            paper.append(f"{column.label} {ours.cells[key]} against {others.cells[key]}")
        sides = (_mini(*(o for o in row.overrides("") if not o.startswith(("model=", "task=")))) for row in (ours, others))
        small.append(Part(label, list(by_seed(cells, *sides).values())))
    text = "; ".join(paper)
    return [
        decide("RoBERTa-large (points)", text, full, kind, margin),
        decide(MINI, text, small, kind, margin, miniature=True),
    ]


@check("both_vectors")
def _both_vectors(claim: Claim, cells: Cells) -> list[Line]:
    return _variants(cells, "table6a", "better", 0.0, [(0, 1), (0, 2)])


@check("d_init")
def _d_init(claim: Claim, cells: Cells) -> list[Line]:
    return _variants(cells, "table6c", "better", 0.0, [(0, 2), (1, 2)])


@check("shared")
def _shared(claim: Claim, cells: Cells) -> list[Line]:
    return _variants(cells, "table7", "equal", claim.margin, [(0, 1)])


@check("equal_size")
def _equal_size(claim: Claim, cells: Cells) -> list[Line]:
    def part(base: Sequence[str], vera: int, lora: int) -> Part:
        sides = ([*base, "method=vera", f"method.rank={vera}"], [*base, "method=lora", f"method.rank={lora}"])
        return Part(f"VeRA r={vera} - LoRA r={lora}", list(by_seed(cells, *sides).values()))

    full = [part(["model=roberta_large", "task=rte"], 1024, 1)]
    small = [part(miniature.OVERRIDES, vera, lora) for vera, lora in ((64, 1), (256, 2))]
    return [
        decide("RTE, RoBERTa-large (points)", claim.paper, full, "better"),
        decide(f"{MINI}; VeRA has 25% fewer parameters", claim.paper, small, "better", miniature=True),
    ]


@check("gain")
def _gain(claim: Claim, cells: Cells) -> list[Line]:
    lines, printed = [], figure4_gain.published()
    paper = f"VeRA {printed['VeRA']:.2f}, LoRA {printed['LoRA']:.2f} (% per 1K)"
    for setting, source in ((figure4_gain.FULL, "RTE, RoBERTa-large (% per 1K)"), (figure4_gain.MINIATURE, MINI)):
        baseline = cell_records(cells, [*setting.overrides, *setting.baseline])
        vera, lora = (
            figure4_gain.by_seed(cell_records(cells, [*setting.overrides, f"method={method}"]), baseline)
            for method in ("vera", "lora")
        )
        part = Part("VeRA - LoRA", [vera[seed] - lora[seed] for seed in vera if seed in lora], 1, 2)
        small = setting is figure4_gain.MINIATURE
        source = source.replace("accuracy, points", "% per 1K")
        lines.append(decide(source, paper, [part], "better", miniature=small))
    return lines


@check("below_rank_1")
def _below_rank_1(claim: Claim, cells: Cells) -> list[Line]:
    ours, met = [], []
    for model, label in table1.published().models.items():
        counted = [accounting.counts().get(table1.key(model, method, 1)) for method in ("vera", "lora")]
        if None in counted:
            return [Line("counts", claim.paper, DASH, DASH, DASH, "not run")]
        vera, lora = (counts["adapter"] for counts in counted)
        ours.append(f"{label} {vera / lora:.3f} ({vera:,} / {lora:,})")
        met.append(vera < lora)
    result = f"fewer parameters with {sum(met)} of {len(met)} models"
    reading = "supported" if all(met) else "not supported"
    return [Line("counts", claim.paper, "; ".join(ours), "counting", result, reading)]


@check("expressivity")
def _expressivity(claim: Claim, cells: Cells) -> list[Line]:
    found = analysis.read("figure6")
    if found is None:
        return [Line("random 10 x 10 matrices", claim.paper, DASH, DASH, DASH, "not run")]
    reading, reason = figure6_expressivity.outcome(found)
    intervals = [difference.interval for difference in figure6_expressivity.differences(found).values()]
    result = f"intervals from {min(low for low, _ in intervals):+.3f} to {max(high for _, high in intervals):+.3f}"
    test = f"paired t intervals, 95% together (Bonferroni), n={found['matrices']}"
    return [Line(f"{found['matrices']} random 10 x 10 matrices, in full", claim.paper, reason, test, result, reading)]


@check("storage")
def _storage(claim: Claim, cells: Cells) -> list[Line]:
    paper, ours, met = [], [], []
    for line in table1.published().rows:
        sizes = [accounting.counts().get(table1.key(line.model, method, line.rank)) for method in table1.METHODS]
        if None in sizes:
            return [Line("counts", DASH, DASH, DASH, DASH, "not run")]
        lora, vera = (found["adapter_bytes"] for found in sizes)
        printed = _printed(line.vera.bytes) / _printed(line.lora.bytes)
        met.append(float(f"{vera / lora:.1g}") <= float(f"{printed:.1g}"))
        if line.model == "gpt3":
            paper.append(f"r={line.rank} {line.vera.bytes} / {line.lora.bytes}")
            ours.append(f"r={line.rank} {table1.units(vera, line.vera.bytes)} / {table1.units(lora, line.lora.bytes)}")
    result = f"a share no larger than printed, to one digit, in {sum(met)} of {len(met)} rows"
    reading = "supported" if all(met) else "not supported"
    return [Line("counts", "GPT-3: " + "; ".join(paper), "GPT-3: " + "; ".join(ours), "counting", result, reading)]


@check("table1_roberta", "table1_gpt3")
def _table1(claim: Claim, cells: Cells) -> list[Line]:
    wanted = [line for line in table1.published().rows if (line.model == "gpt3") == (claim.id == "table1_gpt3")]
    total, other = 0, []
    for line in wanted:
        for method, label in table1.METHODS.items():
            counted = accounting.counts().get(table1.key(line.model, method, line.rank))
            if counted is None:
                return [Line("counts", DASH, DASH, DASH, DASH, "not run")]
            printed = getattr(line, method)
            for text, value in ((printed.params, counted["adapter"]), (printed.bytes, counted["adapter_bytes"])):
                total += 1
                if accounting.prints(text, value) is None:
                    other.append(f"{label} r={line.rank} {text}: {table1.units(value, text)}")
    ours = f"{total - len(other)} of {total} cells" + (f"; differ: {', '.join(other)}" if other else "")
    reading = "not supported" if other else "supported"
    return [Line("counts", f"{total} printed cells", ours, "counting", f"{len(other)} differ", reading)]


def _layers(seeds: Sequence[Sequence[float]], half: bool) -> list[float]:
    """For each seed the mean over layers, or that of the second half minus that of the first."""
    if not half:
        return [statistics.fmean(seed) for seed in seeds]
    middle = len(seeds[0]) // 2
    return [statistics.fmean(seed[-middle:]) - statistics.fmean(seed[:middle]) for seed in seeds]


@check("query_moves_more", "later_layers_move_more")
def _magnitudes(claim: Claim, cells: Cells) -> list[Line]:
    lines = []
    for name, source, small in (("figure3", "RTE, RoBERTa-large (norm)", False), ("figure3_mini", miniature.LABEL, True)):
        found, parts = analysis.read(name), [Part("", [])]
        if found:
            query, value = (_layers(found["norms"][t], claim.id == "later_layers_move_more") for t in ("query", "value"))
            gaps = [a - b for a, b in zip(query, value, strict=True)]
            parts = [Part("query - value", gaps, 1, 2)]
            if claim.id == "later_layers_move_more":
                parts = [Part("query", query, 1, 2), Part("value", value, 1, 2)]
        lines.append(decide(source, claim.paper, parts, "better", miniature=small))
    return lines


@check("similar_to_lora")
def _similar(claim: Claim, cells: Cells) -> list[Line]:
    lines = []
    for name, source, small in (("figure5", "RTE, RoBERTa-large (cosine)", False), ("figure5_mini", miniature.LABEL, True)):
        found, gaps = analysis.read(name), []
        if found:
            sides = (_layers(found[series], False) for series in ("lora_vera", "lora_random"))
            gaps = [a - b for a, b in zip(*sides, strict=True)]
        part = Part("LoRA-VeRA - LoRA-random", gaps, 1, 4)
        lines.append(decide(source, claim.paper, [part], "better", miniature=small))
    return lines


# Tables.


def evidence(cells: Cells) -> dict[str, list[Line]]:
    """Every claim's lines by id, in the yaml's order. Raises ConfigError for a claim without a check, or the reverse."""
    ids = [claim.id for claim in stated()]
    if sorted(ids) != sorted(CHECKS):
        odd = ", ".join(sorted(set(ids) ^ set(CHECKS)) or sorted(ids))
        raise ConfigError(f"results/paper/claims.yaml: claims and the checks of experiments/claims.py differ: {odd}")
    return {claim.id: CHECKS[claim.id](claim, cells) for claim in stated()}


def build(cells: Cells, overrides: Sequence[str] = (), stat: Statistic | None = None) -> list[Table]:
    """The verdicts, one line a claim, and all the evidence. Neither `overrides` nor `stat` changes what a claim is about."""
    found = evidence(cells)
    verdicts, lines, rules = [], [], []
    for claim in stated():
        word, deciding = verdict(found[claim.id])
        mini = [line.reading for line in found[claim.id] if line.miniature and line.reading not in ("not run", "supported")]
        if word == "not run" and mini:
            word = f"not run ({mini[0]} in miniature)"
        verdicts.append([claim.claim, claim.where, deciding.paper, deciding.ours, word, deciding.test, deciding.result])
        for line in found[claim.id]:
            lines.append(
                [
                    claim.claim,
                    claim.rule,
                    "miniature" if line.miniature else "the paper's",
                    line.source,
                    line.ours,
                    line.reading,
                    line.test,
                    line.result,
                ]
            )
        rules.append(len(lines))
    notes = [
        "Verdicts: supported, not supported, undecided, not run, supported in miniature only. The line shown is the one that "
        "the verdict rests on; claims_evidence has all of them.",
        "Differences are the first minus the second, mean over pairs of one seed with Student's 90% interval, which fits "
        f"one-sided tests at {LEVEL:.0%}. A claim about several cells needs all of them (largest p) and falls with one "
        f"(smallest p times their number). It takes {PAPER_SEEDS} pairs to decide.",
        "Five pairs cannot give less than p = 0.0625 under sign flips, which assume nothing about the distribution; Student's "
        "test assumes normal differences.",
        "Verdicts are not corrected for the number of claims: of twenty that are false one would pass. The margins of what "
        "counts as the same are ours (results/paper/claims.yaml); the paper names none.",
        "Counts need no test. A factor is met when our ratio, rounded to one digit, is at least the claimed one.",
        miniature.NOTE,
    ]
    columns = ["Claim", "Where", "Paper", "Ours", "Verdict", "Test", "Result"]
    details = ["Claim", "Decided by", "Experiment", "Source", "Ours", "Reading", "Test", "Result"]
    return [
        Table("claims", "The paper's claims", columns, verdicts, notes),
        Table("claims_evidence", "The paper's claims: all the evidence", details, lines, notes[1:], rules),
    ]
