"""What Table 12 decides: time and memory at rank 64, against LoRA."""

from __future__ import annotations

import re
from collections.abc import Callable

from experiments.artefacts.bench import ratios
from experiments.engine.claims import Claim, decides
from experiments.engine.published import load
from experiments.engine.rows import Asked
from experiments.engine.verdicts import Line


def _against_lora(what: str, table12: str) -> Callable[[dict], bool]:
    """Rows at equal rank: Table 12's own, and whatever else was measured against LoRA of VeRA's rank."""

    def fits(row: dict) -> bool:
        against = re.fullmatch(rf"{what} / LoRA (r=\d+)", row["what"])
        return row["case"].startswith(table12) or (against is not None and f"{against[1]}," in row["shapes"])

    return fits


def _is_table12(measured: dict, row: dict) -> bool:
    """Of times those of replayed passes where there are any: the others are also a CPU's, which starts the kernels, and no step
    of the paper's waited for one: it took 10.7 s (568 minutes for 51,000 rows, 16 a step)."""
    replayed = any(other["case"] == "table12_time_graphs" for other in measured["cases"])
    return row["case"] in ("table12_memory", "table12_time_graphs" if replayed else "table12_time")


@decides("time")
def _time(claim: Claim, asked: Asked) -> list[Line]:
    vera, lora = (row.cells["time"] for row in load("table12").rows[::-1])
    paper = f"{float(vera) / float(lora):.3f} ({vera} / {lora} minutes)"
    return ratios("results/bench", _against_lora("training step", "table12_time"), 1 + claim.margin, paper, _is_table12)


@decides("memory")
def _memory(claim: Claim, asked: Asked) -> list[Line]:
    vera, lora = (row.cells["memory"] for row in load("table12").rows[::-1])
    paper = f"{float(vera) / float(lora):.3f} ({vera} / {lora} GB)"
    return ratios(
        "results/bench", _against_lora("peak memory of a step", "table12_memory"), 1 + claim.margin, paper, _is_table12
    )
