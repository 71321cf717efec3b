"""The paper's claims: a verdict each, and all the evidence."""

from __future__ import annotations

from experiments.engine import miniature
from experiments.engine.aggregate import PAPER_SEEDS
from experiments.engine.claims import evidence, stated
from experiments.engine.render import Table
from experiments.engine.rows import Asked
from experiments.engine.verdicts import DISAGREE, LEVEL, LOOK_LEVEL, verdict

TAKES = ("results", "judge"), "each claim has its own runs and statistics"


def build(asked: Asked) -> list[Table]:
    """The verdicts, one line a claim, and all the evidence."""
    found = evidence(asked)
    verdicts, lines, rules = [], [], []
    for claim in stated():
        word, deciding = verdict(found[claim.id])
        small = [line for line in found[claim.id] if line.miniature and line.reading != "not run"]
        readings, result = [line.reading for line in small], deciding.result
        if word == "not run" and {"supported", "not supported"} <= set(readings):
            word = f"not run ({DISAGREE})"
            each = (f"{line.source.partition(';')[0]} {line.reading}" for line in small)  # without what a machine was at
            result += f"; in miniature: {'; '.join(each)}"
        elif word == "not run" and small:
            word = f"not run ({next(reading for reading in readings if reading != 'supported')} in miniature)"
        verdicts.append([claim.claim, claim.where, deciding.paper, deciding.ours, word, deciding.test, result])
        for line in found[claim.id]:
            lines.append(
                [
                    claim.claim,
                    claim.rule,
                    "another than the paper's" if line.miniature else "the paper's",
                    line.source,
                    line.ours,
                    line.reading,
                    line.test,
                    line.result,
                ]
            )
        rules.append(len(lines))
    notes = [
        "Verdicts: supported, not supported, undecided, not run (in brackets what a miniature says), supported in miniature "
        "only. The line shown is the one that the verdict rests on; claims_evidence has all of them.",
        "Differences are the first minus the second, mean over pairs of one seed with the Student's interval that fits the "
        f"one-sided test: {1 - 2 * LEVEL:.0%} at {LEVEL:.0%}, {1 - 2 * LOOK_LEVEL:.1%} for a look at {LOOK_LEVEL:g}. A claim "
        "about several cells needs all of them (largest p) and falls with one (smallest p times their number). It takes "
        f"{PAPER_SEEDS} pairs to decide.",
        "Sign flips test what Student's p beside them tests, and assume nothing about the distribution, where that assumes "
        "normal differences; five pairs cannot give less than p = 0.0625.",
        "Verdicts are not corrected for the number of claims: of twenty that are false one would pass. The margins of what "
        "counts as the same are ours (results/paper/claims.yaml); the paper names none.",
        "On the digits, MiniLM (Figure 3, the average) and E2E, one stricter level at each of up to four looks, by a rule "
        "that was written down before the runs that it reads, or those beyond the first seeds (for the average: when seven "
        "seeds had been seen; results/paper/README.md).",
        "Scores are those of each run's best epoch; of E2E, instruction tuning and images (Tables 3 to 5, also in miniature) "
        "of the last.",
        "Counts need no test. A factor is met when our ratio, rounded to one digit, is at least the claimed one.",
        f"{miniature.NOTE} Accuracy on images is compared on a larger one, too: eight layers, d=192.",
    ]
    for claim in stated():
        if claim.differs and any(line.miniature and line.reading == "not supported" for line in found[claim.id]):
            notes.append(f"Not the paper's setting, where another experiment refutes {claim.short!r}: {claim.differs}.")
    columns = ["Claim", "Where", "Paper", "Ours", "Verdict", "Test", "Result"]
    details = ["Claim", "Decided by", "Experiment", "Source", "Ours", "Reading", "Test", "Result"]
    return [
        Table("claims", "The paper's claims", columns, verdicts, notes),
        Table("claims_evidence", "The paper's claims: all the evidence", details, lines, notes[1:], rules),
    ]
