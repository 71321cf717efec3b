"""Every method on one real task: MiniLM on STS-B with a small budget, five seeds, each against LoRA seed by seed."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.engine.aggregate import Cells, common, epoch_of, paired, permutation_p, summarise_records
from experiments.engine.published import Statistic
from experiments.engine.render import DASH, INTERVAL, Table, interval, number, signed
from experiments.engine.sweeps import cells as sweep_cells
from experiments.engine.sweeps import read_sweep

SWEEP = "minilm_methods"
REFERENCE = "lora"
LABELS = {
    "head": "Head only",
    "full": "Full fine-tuning",
    "bitfit": "BitFit",
    "adapter_h": "AdapterH",
    "adapter_l": "AdapterL",
    "adapter_p": "AdapterP",
    "adapter_d": "AdapterD",
    "lora": "LoRA",
    "lora_fa": "LoRA-FA",
    "adalora": "AdaLoRA",
    "dylora": "DyLoRA",
    "ia3": "IA3",
    "vera": "VeRA",
}


def build(cells: Cells, overrides: Sequence[str] = (), stat: Statistic | None = None) -> list[Table]:
    """One line a method of the sweep, in its order."""
    wanted = sweep_cells(read_sweep(SWEEP), overrides)
    found = {cell.run.method["name"]: cells.get(cell.run.cell_id, []) for cell in wanted}
    reference = found[REFERENCE]
    rows = []
    for method, records in found.items():
        if not records:
            rows.append([LABELS[method], *[DASH] * 7])
            continue
        best, last = summarise_records(records), summarise_records(records, select="last")
        line = [LABELS[method], f"{records[0].parameters.adapter:,}", str(best.n)]
        line += [number(best, 100, stat=stat or "median"), interval(best, 100), number(last, 100)]
        sides = common(records, reference, select=epoch_of(stat or "median"))
        p = permutation_p(*sides) if sides[0] and method != REFERENCE else None
        line.append(DASH if method == REFERENCE or not sides[0] else signed(paired(*sides), 100))
        line.append(DASH if p is None else f"{p:.4f}")
        rows.append(line)
    columns = ["Method", "Trained", "n", "Best epoch", INTERVAL, "Last epoch", "Against LoRA [95%]", "p"]
    steps = wanted[0].run.train
    notes = [
        f"Pearson correlation x 100 on the 1,500 pairs of STS-B's development set after {steps.max_steps} steps of "
        f"{steps.batch_size} pairs (MiniLM-L6, BERT, d=384; bf16). Median over seeds ± standard deviation.",
        "A small budget, and learning rates that were hardly searched (each recipe says so): it shows that every method trains "
        "on real text and what a comparison over seeds looks like, and does not rank the methods.",
        "Against LoRA: mean difference over common seeds with Student's interval; p of a paired permutation test (five seeds "
        "cannot give less than 0.0625).",
        "Trained: parameters outside the head.",
    ]
    return [Table("minilm_methods", "MiniLM on STS-B: every method, five seeds, small budget", columns, rows, notes)]
