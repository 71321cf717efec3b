"""One page with everything: claims, tables, figures, the state of every run, and where each number comes from.

The page needs nothing but itself: style, script, pictures and provenance are in it, and its policy forbids every connection.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from experiments.engine.aggregate import Cells
from experiments.engine.claims import stated
from experiments.engine.plan import COLUMNS, Plan, failure, figures
from experiments.engine.render import DASH, Sourced, Table, notes_of
from experiments.engine.sweeps import Cell, cells, own_sweeps, sweeps
from experiments.engine.verdicts import DISAGREE, IN_MINIATURE
from vera.project import project
from vera.records.record import Record

FOLDER = Path(__file__).resolve().parent / "page"
LEVEL = 0.05
PROSE = 60  # a column with more characters than this in a cell is text, and becomes a card on a phone
HASH = 8
VERDICTS = {"supported": "yes", "not supported": "no", "undecided": "open", "not run": "idle"}
VERDICTS |= {IN_MINIATURE: "part", DISAGREE: "open"}
TOPICS = {
    "counts": "Fewer parameters, less storage",
    "quality": "As good as LoRA",
    "parts": "Its parts, and what they learn",
    "cost": "Time and memory",
}
HELD = {"yes": "holds", "no": "does not", "open": "open"}
MINIATURE = "in miniature"
NUMBER = re.compile(r"[+-]?[\d.,]+[KMG]?B?(±[\d.]+)?†?( \(n=\d+\))?( F1| Spearman)?( missed| met| open)?|–|-|")


@dataclass(frozen=True)
class Section:
    """A heading of the page with its tables, pictures and, under `more`, tables that are folded away."""

    id: str
    title: str
    tables: list[Table]
    more: list[Table]
    pictures: list[Path]


def page(made: dict[str, list[Table]], pictures: Sequence[Path], found: Cells, results: Path) -> str:
    """The page as text. made: tables by artefact; pictures: SVG files, each called like the table it belongs to.

    Equal records give equal bytes: there is no date and no order but that of names.
    """
    environment = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": True, "separators": (",", ":")}
    return environment.get_template("report.html.j2").render(
        style=Markup((FOLDER / "report.css").read_text(encoding="utf-8")),
        script=Markup((FOLDER / "report.js").read_text(encoding="utf-8")),
        groups=_groups(made, pictures),
        sweeps=_sweeps(found, results),
        plan_columns=[column for column in COLUMNS if column != "Rehearsed"],
        provenance=provenance(found),
        records=sum(map(len, found.values())),
        cell=_cell,
        numeric=_numeric,
        prose=_is_prose,
        notes_of=notes_of,
        verdicts=_count_verdicts(made),
        summary=summary(made, results),
        picture=_picture,
    )


# Tables and pictures.


def _groups(made: dict[str, list[Table]], pictures: Sequence[Path]) -> list[tuple[str, str, list[Section]]]:
    """(id, title, sections) for claims, the paper's tables, its figures and what is this project's own."""
    of = {path.stem: path for path in sorted(pictures)}
    groups: dict[str, list[Section]] = {"claims": [], "tables": [], "figures": [], "own": []}
    for name, tables in sorted(made.items(), key=lambda item: _order(item[0])):
        if not tables:
            continue
        kind = "claims" if name == "claims" else "figures" if name.startswith("figure") else "tables"
        for table in tables:
            alone = kind == "figures" or table.name.endswith("_mini")
            part_of = [s for s in groups[kind] if table.name.startswith(f"{s.id}_") and not alone]
            if part_of:
                part_of[0].more.append(table)
                continue
            own = kind == "tables" and not table.name.startswith("table")
            shown = [of[table.name]] if table.name in of else []
            folded = kind == "figures"
            section = Section(table.name, table.title, [] if folded else [table], [table] if folded else [], shown)
            groups["own" if own else kind].append(section)
    titles = {"claims": "Claims", "tables": "Tables", "figures": "Figures", "own": "Runs and counts of our own"}
    return [(key, titles[key], sections) for key, sections in groups.items() if sections]


def summary(made: dict[str, list[Table]], results: Path) -> list[tuple[str, list[tuple[str, str]]]]:
    """The page's first lines: for each topic what holds, what does not and what is open, then what a GPU would add to the
    paper's runs (in a project, none of that).

    A line is its title and pairs of a tone and a text.
    """
    found: dict[str, dict[str, list[str]]] = {topic: {tone: [] for tone in HELD} for topic in TOPICS}
    for claim, row in zip(stated(), made["claims"][0].rows if "claims" in made else [], strict=False):
        word, _, small = row[4].removesuffix(")").partition(" (")
        tone = VERDICTS[small.removesuffix(f" {MINIATURE}") or word]
        mark = f" ({small if small == DISAGREE else MINIATURE})" if small or word == IN_MINIATURE else ""
        found[claim.topic]["yes" if tone == "part" else "open" if tone == "idle" else tone].append(claim.short + mark)
    lines = [
        (title, [(tone, f"{said}: {'; '.join(found[topic][tone])}") for tone, said in HELD.items() if found[topic][tone]])
        for topic, title in TOPICS.items()
    ]
    if project():
        return lines
    paper = Plan(results).status([cell for sweep in sweeps() for cell in cells(sweep)])
    hours = "" if paper.hours is None else f", {paper.hours:,.0f} GPU-hours at the least"
    return [
        *lines,
        ("What a GPU would add", [("idle", f"{paper.missing:,} runs on the paper's own models{hours} (make plan)")]),
    ]


def _count_verdicts(made: dict[str, list[Table]]) -> list[tuple[str, str, int]]:
    """(tone, word, how many claims) for every verdict there is."""
    words = [row[4].partition(" (")[0] for row in made["claims"][0].rows] if "claims" in made else []
    return [(tone, word, words.count(word)) for word, tone in VERDICTS.items() if word in words]


def _order(name: str) -> tuple[int, str]:
    number = re.search(r"\d+", name)
    return (int(number.group()) if number else 1000, name)


def _picture(path: Path) -> str:
    """An SVG file as the address of an <img>: what is in it can neither run nor clash with the page."""
    return "data:image/svg+xml," + quote(" ".join(path.read_text(encoding="utf-8").split()), safe=" /:;=(),!*")


def _cell(text: str) -> dict[str, Any]:
    """How one cell is shown: tone (significantly above, below, or no difference to the paper), and what it says of itself."""
    shown: dict[str, Any] = {"text": str(text), "cell": "", "tone": "", "title": ""}
    if not isinstance(text, Sourced):
        shown["tone"] = VERDICTS.get(text.partition(" (")[0], "")
        return shown
    shown["cell"] = text.cell[:HASH]
    if text.deviation is not None:
        gap = f"{text.deviation:+.2f} from what is printed"
        if text.p is None:
            shown.update(tone="single", title=f"{gap}, no test")
        else:
            tone = "same" if text.p >= LEVEL else "above" if text.deviation > 0 else "below"
            shown.update(tone=tone, title=f"{gap}, p = {text.p:.3f}")
    return shown


def _numeric(table: Table) -> list[bool]:
    """For each column whether it holds numbers."""
    return [all(NUMBER.fullmatch(row[index]) for row in table.rows) for index in range(len(table.columns))]


def _is_prose(table: Table) -> bool:
    return any(len(text) > PROSE for row in table.rows for text in row)


# Runs.


def _sweeps(found: Cells, results: Path) -> list[dict[str, Any]]:
    """Every sweep, the paper's first, or those of the project: its line of the plan, and its cells with
    the seeds by state; then runs of no sweep."""
    plan, listed, seen = Plan(results), [], set()
    for sweep in [*sweeps(), *own_sweeps()]:
        wanted = cells(sweep)
        status = plan.status(wanted)
        seen |= status.wanted
        line = dict(zip(COLUMNS, figures(status), strict=True))
        line.pop("Rehearsed")
        states = [_states(plan, cell) for cell in wanted]
        fills = "" if any(part.startswith("scale=") for part in sweep.given) else ", ".join(sweep.artefacts)
        listed.append({"name": sweep.label, "fills": fills, "line": list(line.values()), "cells": states})
    listed.sort(key=lambda sweep: (not sweep["fills"], _order(sweep["fills"]), sweep["name"]))
    others = [[r for r in records if r.name not in seen] for records in found.values()]
    states = [_recorded(records) for records in others if records]
    if states:
        count = str(sum(map(len, others)))
        known = {"Runs": count, "Done": count, "Failed": "0", "Missing": "0", "From": "recorded"}
        recorded = [known.get(column, DASH) for column in COLUMNS if column != "Rehearsed"]
        name = "in no sweep of the project" if project() else "in no sweep"
        listed.append({"name": name, "fills": "", "line": recorded, "cells": states})
    return listed


def _states(plan: Plan, cell: Cell) -> dict[str, Any]:
    seeds: dict[str, list[int]] = {"done": [], "failed": [], "missing": []}
    errors = []
    for seed, name in zip(cell.seeds, cell.names(), strict=True):
        state = "done" if name in plan.done else "failed" if name in plan.failed else "missing"
        seeds[state].append(seed)
        if state == "failed":
            errors.append(f"seed {seed}: {failure(plan.results, name)}")
    what = " ".join(cell.overrides[1:])
    return {"what": what, "cell": cell.run.cell_id[:HASH] if seeds["done"] else "", "seeds": seeds, "errors": errors}


def _recorded(records: Sequence[Record]) -> dict[str, Any]:
    run = records[0].run
    what = f"model={run.model} task={run.task} method={run.method}"
    seeds = {"done": [record.run.seed for record in records], "failed": [], "missing": []}
    return {"what": what, "cell": run.cell_id[:HASH], "seeds": seeds, "errors": []}


# Provenance.


def provenance(found: Cells) -> dict[str, Any]:
    """Of every cell its config and its runs, by the first digits of cell_id.

    What many runs share (a model's settings, a set of versions) is held once in `pool` and named by its place there.
    """
    pool: list[Any] = []
    places: dict[str, int] = {}

    def place(value: Any) -> int:
        key = repr(value)
        if key not in places:
            places[key] = len(pool)
            pool.append(value)
        return places[key]

    known = {}
    for cell, records in sorted(found.items()):
        run = records[0].run
        known[cell[:HASH]] = {
            "id": cell,
            "model": run.model,
            "task": run.task,
            "method": run.method,
            "config": {group: place(_plain(values)) for group, values in sorted(run.of_all_seeds.items())},
            "metric": records[0].scores.primary,
            "parameters": records[0].parameters.model_dump(),
            "runs": [_run(record, place) for record in records],
        }
    return {"cells": known, "pool": pool}


def _run(record: Record, place) -> dict[str, Any]:
    scores, source, cost = record.scores, record.provenance, record.cost
    sources = {
        "model_source": source.model_source,
        "model_commit": source.model_commit,
        "model_fingerprint": source.model_fingerprint,
        "data_source": source.data_source,
        "data_commit": source.data_commit,
        "data_fingerprint": source.data_fingerprint,
        "train_rows": source.train_rows,
        "eval_rows": source.eval_rows,
        **({} if source.test_rows is None else {"test_rows": source.test_rows}),
    }
    return {
        "seed": record.run.seed,
        "best": [scores.best.epoch, _short(scores.best.metrics)],
        "last": [scores.last.epoch, _short(scores.last.metrics)],
        **({} if scores.test is None else {"test": [scores.test.epoch, _short(scores.test.metrics)]}),
        "curve": [[point.epoch, _rounded(point.metrics.get(scores.primary))] for point in scores.history],
        "finished": source.finished,
        "git": place((source.git_sha or "no git") + (" and local changes" if source.git_dirty else "")),
        "versions": place(source.versions),
        "sources": place(sources),
        "cost": f"{cost.seconds:.0f} s, {cost.steps} steps, {cost.device}, {cost.precision}, {cost.threads} threads",
    }


def _short(metrics: dict[str, float]) -> dict[str, float | None]:
    return {name: _rounded(value) for name, value in metrics.items()}


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def _plain(values: Any) -> Any:
    return dict(sorted(values.items())) if isinstance(values, dict) else values
