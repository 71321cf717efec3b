"""E2E for real on two CPU cores: a small GPT-2 made from the training references, adapted from attributes to text."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.engine.aggregate import Cells, cell_records, summarise, summarise_records
from experiments.engine.render import DASH, Table, number
from vera.runs.record import Record

METHODS = {"full": "Full", "lora": "LoRA r=4", "vera": "VeRA r=256"}
METRICS = {"BLEU": (100, 1), "NIST": (1, 2), "NIST_py": (1, 2), "METEOR": (100, 1), "ROUGE_L": (100, 1), "CIDEr": (1, 2)}


def build(cells: Cells, overrides: Sequence[str] = (), stat: str | None = None) -> list[Table]:
    """One line a method, the five metrics of the last epoch in Table 3's units."""
    rows = []
    for method, label in METHODS.items():
        found = cell_records(cells, ["model=gpt2_mini", "task=e2e", f"method={method}", *overrides])
        if not found:
            rows.append([label, *[DASH] * (len(METRICS) + 3)])
            continue
        seconds = summarise([record.cost.seconds for record in found]).median
        rows.append(
            [
                label,
                f"{found[0].parameters.adapter:,}",
                *(_cell(found, metric, scale, digits) for metric, (scale, digits) in METRICS.items()),
                "/".join(str(steps) for steps in sorted({record.cost.steps for record in found})),
                f"{seconds:.0f}",
            ]
        )
    columns = ["Method", "Trained", "BLEU", "NIST", "NIST (-p)", "METEOR", "ROUGE-L", "CIDEr", "Steps", "Seconds"]
    notes = [
        "A GPT-2 of 2.2 million parameters, pretrained on the E2E training references as plain text, then adapted from "
        "meaning representation to text with a small budget of steps; 630 test inputs, beam 10. It shows that the way from "
        "data to table works; it says little about GPT-2 medium.",
        "Last epoch, median over seeds ± standard deviation; BLEU, METEOR and ROUGE-L x 100. NIST in both modes of the "
        "official scorer: its Perl script, and its option -p. References are the challenge's own, untokenised.",
        "Every output is in results/outputs; scripts/score_e2e.py gives the same scores again. Seconds are those of two "
        "CPU cores without other work.",
    ]
    return [Table("e2e_mini", "E2E with a small GPT-2", columns, rows, notes)]


def _cell(found: list[Record], metric: str, scale: float, digits: int) -> str:
    if any(metric not in record.scores.last.metrics for record in found):
        return DASH  # no Java on the machine of one of the runs
    return number(summarise_records(found, metric, "last"), scale, digits)
