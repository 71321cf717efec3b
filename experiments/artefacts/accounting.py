"""Counts: what each row trains, counted on the adapted models (scripts/account.py), against what the paper prints."""

from __future__ import annotations

from experiments.engine.accounting import counts, key, prints
from experiments.engine.claims import Claim, decides, fewer
from experiments.engine.published import DASHES, load, names
from experiments.engine.render import DASH, Table
from experiments.engine.rows import Asked
from experiments.engine.verdicts import Line

FEWER = {  # claims, and where their counts are
    "fewer_glue_large": "table2",
    "fewer_glue_base": "table2",
    "fewer_e2e": "table3",
    "fewer_instruct": "table4",
    "fewer_images": "table5",
}
TAKES = (), "it shows counts of whole models (results/accounting.json)"


def build(asked: Asked) -> list[Table]:
    """Every '# trainable parameters' cell of the paper's tables of scores."""
    rows, remarks = [], []
    for name in names():
        published = load(name)
        for row in published.rows:
            for printed, kind in ((row.params, "adapter"), (row.bytes, "adapter_bytes")):
                if printed in (None, *DASHES) or row.method is None:
                    continue
                counted = counts().get(key(row))
                label = [published.table or published.title, published.models[row.model], row.label, printed]
                if counted is None:
                    rows.append([*label, DASH, "not counted"])
                    continue
                how = prints(printed, counted[kind])
                rows.append([*label, f"{counted[kind]:,}", how or ("differs" if row.remark else "DIFFERS")])
                if how is None and row.remark:
                    remarks.append(f"{published.called}, {published.models[row.model]}, {row.label} ({printed}): {row.remark}.")
    notes = [
        "ours: counted on the adapted full-size model without weights, the head left out; four bytes a value.",
        "rounded, cut off: how our count becomes the printed one.",
        *dict.fromkeys(remarks),
    ]
    return [
        Table(
            "counts",
            "Trainable parameters: every printed count",
            ["Table", "Model", "Method", "Paper", "Ours", "Match"],
            rows,
            notes,
        )
    ]


@decides(*FEWER)
def _fewer(claim: Claim, asked: Asked) -> list[Line]:
    return [fewer(claim.factor, FEWER[claim.id])]
