"""E2E for real on two CPU cores: a small GPT-2 made from the training references, adapted from attributes to text."""

from __future__ import annotations

from experiments.engine.render import Table
from experiments.engine.rows import Asked, over_seeds, rows, score, steps, trained

METHODS = {"full": "Full", "adapter_l": "AdapterL", "lora": "LoRA r=4", "vera": "VeRA r=256"}
METRICS = {"BLEU": (100, 1), "NIST": (1, 2), "NIST_py": (1, 2), "METEOR": (100, 1), "ROUGE_L": (100, 1), "CIDEr": (1, 2)}
TITLES = {"NIST_py": "NIST (-p)", "ROUGE_L": "ROUGE-L"}
RATES = "Learning rates: conf/recipe/gpt2_mini.yaml says how they were searched."


def build(asked: Asked) -> list[Table]:
    """One line a method, the five metrics of the last epoch in Table 3's units."""
    columns = {"Trained": trained, **{TITLES.get(name, name): score(name, *unit) for name, unit in METRICS.items()}}
    columns |= {"Steps": steps}
    entries = [
        asked.entry([label], ["model=gpt2_mini", "task=e2e", f"method={method}"], stat="last")
        for method, label in METHODS.items()
    ]
    epoch = "Last" if asked.stat in (None, "last") else "Best"
    notes = [
        "A GPT-2 of 2.2 million parameters, pretrained on the E2E training references as plain text, then adapted from "
        "meaning representation to text with a small budget of steps; 630 test inputs, beam 10. It shows that the way from "
        "data to table works; it says little about GPT-2 medium.",
        f"{epoch} epoch, {over_seeds(asked.stat).lower()}; BLEU, METEOR and ROUGE-L x 100. NIST in both modes of the "
        "official scorer: its Perl script, and its option -p. References are the challenge's own, untokenised.",
        " ".join(
            ["Every output is in results/outputs; scripts/score_e2e.py gives the same scores again.", *asked.searched(RATES)]
        ),
    ]
    return [Table("e2e_mini", "E2E with a small GPT-2", ["Method", *columns], rows(entries, columns), notes)]
