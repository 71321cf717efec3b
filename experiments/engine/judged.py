"""Judges' scores: joined to the training runs whose answers they grade, and every judgement on a line of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from experiments.engine.aggregate import Cells
from experiments.engine.published import judged_metric
from experiments.engine.render import DASH, Table
from vera.errors import RecordError
from vera.judge.judgement import Judged, find_all
from vera.runs.record import Record

PAPER_JUDGE = "gpt-4"


class Judgements(Mapping[str, list[Record]]):
    """Cells whose records hold judges' scores. bare: scores of backbones without training, by model and metric."""

    def __init__(self, cells: Cells, scores: dict[tuple, tuple[float, str]]):
        self._cells, self._scores = cells, scores
        self.bare = {key: mean for key, (mean, _) in scores.items() if len(key) == 2}

    def __getitem__(self, cell_id: str) -> list[Record]:
        return [_scored(record, self._scores) for record in self._cells[cell_id]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._cells)

    def __len__(self) -> int:
        return len(self._cells)


def join(cells: Cells, results: Path, judge: str = PAPER_JUDGE) -> Cells:
    """The cells with each run's mean score among its metrics, at the epoch whose weights answered.

    Only this judge's records count, with the official questions and wording. Raises RecordError when two of them grade the
    same answers: nothing says which one to take.
    """
    scores: dict[tuple, tuple[float, str]] = {}
    for record in find_all(Judged, results / "judged"):
        official = record.questions.official and record.judge["prompts"] == "official"
        if record.judge["model"] != judge or not official:
            continue
        for answer, score in zip(record.answers, record.scores, strict=True):
            run, metric = answer["run"], judged_metric(record.questions.name)
            if answer["model"] is None:  # another program's answers
                continue
            key = (answer["model"], metric) if run is None else (run["cell_id"], run["seed"], answer["checkpoint"], metric)
            if key in scores:
                raise RecordError(f"{results}/judged: {record.name} and {scores[key][1]} both grade {answer['name']}; keep one")
            scores[key] = (score["mean"], record.name)
    return Judgements(cells, scores) if scores else cells


def _scored(record: Record, scores: dict[tuple, tuple[float, str]]) -> Record:
    changed = {}
    for epoch in ("best", "last"):
        which = (record.run.cell_id, record.run.seed, epoch)
        mine = {key[-1]: mean for key, (mean, _) in scores.items() if key[:-1] == which}
        selected = getattr(record.scores, epoch)
        changed[epoch] = selected.model_copy(update={"metrics": {**selected.metrics, **mine}})
    return record.model_copy(update={"scores": record.scores.model_copy(update=changed)})


def table(results: Path) -> Table | None:
    """Every judgement, by answers and judge; None when there is none."""
    rows = []
    for record in find_all(Judged, results / "judged"):
        for answer, score in zip(record.answers, record.scores, strict=True):
            run = answer["run"]
            rows.append(
                [
                    record.questions.name,
                    answer["model"] or answer["name"],
                    DASH if run is None else run["method"],
                    DASH if run is None else str(run["seed"]),
                    record.judge["model"],
                    record.judge["prompts"],
                    f"{score['mean']:.2f}",
                    *(f"{score['by_turn'][turn]:.2f}" if turn in score["by_turn"] else DASH for turn in ("1", "2")),
                    f"{score['n']}/{record.verdicts}",
                ]
            )
    if not rows:
        return None
    columns = ["Questions", "Model", "Method", "Seed", "Judge", "Wording", "Mean", "Turn 1", "Turn 2", "Read"]
    notes = [
        "Mean score from 1 to 10 over the verdicts that could be read (Read: of how many). A pair is two lines, one a side.",
        "A method that is a dash: the backbone as it is, or answers that another program wrote.",
        f"Tables 4 and 13 take the scores of {PAPER_JUDGE} with the official wording (scripts/tables.py --judge for another).",
    ]
    return Table("judged", "What judges said", columns, sorted(rows), notes)
