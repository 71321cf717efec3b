"""Measured ratios against PEFT (results/bench), one table for all machines. Table 12 is the paper's own measurement."""

from __future__ import annotations

import json
from collections.abc import Callable

from experiments import RESULTS
from experiments.engine.claims import Claim, decides
from experiments.engine.render import DASH, Table
from experiments.engine.rows import Asked
from experiments.engine.verdicts import Line

MEASURED = RESULTS / "bench"
ROUNDS = 6  # paired ones at the least: the order statistics of fewer cover no median with 95% (aggregate.median_interval)
OCCASIONS = 3  # on which a time has to be measured before it is said to hold
GRAPHS = ", by CUDA graphs"  # the end of a row's shapes
TAKES = (), "it shows measurements of speed (results/bench)"


def build(asked: Asked) -> list[Table]:
    """One line a figure. Nothing here comes from the records of runs."""
    rows, rules, notes = [], [], []
    for path in sorted(MEASURED.glob("*.json")):
        if path.name == "table12.json":  # by scripts/table12.py; Table 12's claims read it
            continue
        measured = json.loads(path.read_text(encoding="utf-8"))
        machine = measured["machine"]
        if not measured["cases"]:
            continue
        for row in measured["cases"]:
            ratio = row["ratio"]
            spread = DASH if row["rounds"] == 1 else f"[{ratio['min']:.2f}, {ratio['max']:.2f}]"
            rows.append(
                [
                    row["case"],
                    row["what"],
                    row["shapes"],
                    f"{ratio['median']:.3f}",
                    _interval(row),
                    spread,
                    DASH if row.get("cpu") is None else f"{row['cpu']['median']:.3f}",
                    DASH if row.get("products") is None else f"{row['products']:.3f}",
                    _goal(row),
                    _figure(row["ours"], row["unit"]),
                    _figure(row["other"], row["unit"]),
                ]
            )
        rules.append(len(rows))
        notes += _machines(measured)
        if not on_gpu(machine):
            notes.append("A CPU takes fewer layers and a smaller Llama; the full-size cases need a GPU.")
        notes += [f"Case {entry['case']} not measured there, needs {entry['why']}." for entry in measured["left_out"]]
    columns = ["Case", "What", "Shapes", "Ratio", "Occasions", "Rounds", "CPU", "Products", "Goal", "Ours", "Other"]
    notes = [
        "Ours divided by the other: below 1 is faster or smaller. Times are medians of alternating runs in one process. "
        "Occasions: the smallest and the largest median of an occasion, and how many there were; rounds: of a round. CPU: the "
        "ratio of the time that the process's threads computed, which other work on the machine changes less. Memory is "
        "weights, optimiser states and the most that a step allocates. Products: multiply-adds of all matrix products of a "
        "step, the ratio that a machine would show on which nothing else took time.",
        f"A goal for a time is met where every occasion's median is at most the goal, and there were {OCCASIONS} or more.",
        *notes,
    ]
    return [Table("bench", "Speed, memory and size against PEFT", columns, rows, notes, rules)] if rows else []


def _machines(measured: dict) -> list[str]:
    """A file's machine, once for each set of versions that its rows were measured with."""
    made_on = [row.get("machine", measured["machine"]) for row in measured["cases"]]
    said = []
    for here in [machine for index, machine in enumerate(made_on) if machine not in made_on[:index]]:
        rows = [row for row, machine in zip(measured["cases"], made_on, strict=True) if machine == here]
        loads, cases = [row["load_average"] for row in rows], dict.fromkeys(row["case"] for row in rows)
        versions = ", ".join(f"{name} {version}" for name, version in here["versions"].items())
        said.append(
            f"{here['device']}, {here['threads']} threads of {here['cores']} cores, {here['memory_gib']} GiB; "
            f"{here['system']}; {versions}; load average while measuring {min(loads):.1f} to {max(loads):.1f}"
            f"{'' if len(rows) == len(made_on) else ' (case ' + ', '.join(cases) + ')'}."
        )
    return said


def _interval(row: dict) -> str:
    if row["rounds"] == 1:
        return DASH
    low, high = row.get("interval", [row["ratio"]["median"]] * 2)
    return f"[{low:.3f}, {high:.3f}] ({len(row.get('occasions', [row]))})"


def _goal(row: dict) -> str:
    """The goal, and whether it is held; a figure that does not vary is compared as it is."""
    goal = row["goal"]
    if goal is None:
        return DASH
    low, high = row.get("interval", [row["ratio"]["median"]] * 2)
    if low > goal:
        return f"{goal:.2f} missed"
    held = high <= goal and (row["rounds"] == 1 or len(row.get("occasions", [])) >= OCCASIONS)
    return f"{goal:.2f} {'met' if held else 'open'}"


def _figure(value: float, unit: str) -> str:
    """Four digits at least, and no exponent."""
    return f"{value:,.0f} {unit}" if value >= 1000 else f"{value:.4g} {unit}"


def on_gpu(machine: dict) -> bool:
    """Whether a measurement is of a GPU, as bench/measure.py writes it: at the paper's sizes."""
    return machine.get("kind") == "gpu"


def ratios(name: str, fits: Callable[[dict], bool], limit: float, paper: str, full: Callable[[dict, dict], bool]) -> list[Line]:
    """Measured ratios of results/bench (ours / other), one line each: supported when the interval of the median over paired
    rounds is at most `limit`, not supported when it is above. What varies decides nothing over fewer than ROUNDS rounds.

    On a CPU it is the ratio of computed time where that was measured: other work on the machine counts less. A single figure
    (bytes of memory) has no rounds and is compared as it is. Where only the smallest and the largest round are known, they are
    the interval. full: whether a row of a file is the paper's experiment.
    """
    lines = []
    for path in sorted(MEASURED.glob("*.json")):
        measured = json.loads(path.read_text(encoding="utf-8"))
        for row in filter(fits, measured["cases"]):
            computed = None if on_gpu(measured["machine"]) else row.get("cpu")
            found = computed or row["ratio"]
            low, high = found.get("low", found["min"]), found.get("high", found["max"])
            reading = "supported" if high <= limit else "not supported" if low > limit else "undecided"
            test, rounds = f"ratio at most {limit:g}", row.get("rounds", 1)
            result = f"from {low:.3f} to {high:.3f}" if low < high else "one figure, no spread"
            if row.get("unit", "s") == "s" or (low < high and rounds > 1):
                of_what = "ratio of CPU time" if computed else "ratio"
                bounds, times = f"95% interval of the median {of_what}", len(row.get("occasions", [row]))
                if "low" not in found:
                    bounds = f"smallest and largest {of_what}"
                elif times > 1:
                    bounds = f"95% intervals of the median {of_what} on {times} occasions, all"
                test = f"{bounds} at most {limit:g}, n={rounds} paired rounds"
                if rounds < ROUNDS:
                    reading, result = "undecided", f"{result}; such an interval takes {ROUNDS} rounds"
            lines.append(
                Line(
                    f"{measured['machine']['device']}: {row['shapes']}{_load(row)}",
                    paper,
                    f"{found['median']:.3f}{GRAPHS * row['shapes'].endswith(GRAPHS)}",
                    test,
                    result,
                    reading,
                    not full(measured, row),
                )
            )
    return lines or [Line(name, paper, DASH, DASH, DASH, "not run")]


def _load(row: dict) -> str:
    return f"; load average {row['load_average']:.1f}" if "load_average" in row else ""


@decides("merged")
def _merged(claim: Claim, asked: Asked) -> list[Line]:
    return ratios(
        "results/bench",
        lambda row: row["what"].startswith("merged inference / bare"),
        1 + claim.margin,
        claim.paper,
        lambda measured, row: on_gpu(measured["machine"]),
    )
