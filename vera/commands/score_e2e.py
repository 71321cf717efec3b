"""Scores of E2E outputs, as the challenge's official scorer gives them, as one JSON object.

python scripts/score_e2e.py OUTPUTS REFERENCES

OUTPUTS: one text a line. REFERENCES: a line each, an empty line between instances. Both may be .csv or .tsv as well, such as
the challenge's testset_w_refs.csv. Outputs of a model that was trained on other references (LoRA's are tokenised) want those.
A file of results/outputs must be the one that its record was made from (its SHA-256).
"""

import json
from pathlib import Path

from vera.commands import parser_of
from vera.records.store import Store
from vera.tasks.e2e_metrics import CAPTION_METRICS, METRICS, NIST_MODES, NIST_PY, compute, read_files, unavailable


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("outputs", type=Path, metavar="OUTPUTS")
    parser.add_argument("references", type=Path, metavar="REFERENCES")
    parser.add_argument("--allow-empty", action="store_true", help="score empty outputs as empty instead of refusing them")
    options = parser.parse_args()
    _check_record(options.outputs)
    outputs, references = read_files(options.outputs, options.references, options.allow_empty)
    scores = compute(outputs, references)
    reason = unavailable()
    result: dict[str, object] = {name: scores.get(name) for name in (*METRICS, NIST_PY)}
    if reason:
        result["missing"] = dict.fromkeys(CAPTION_METRICS, reason)
    print(json.dumps({**result, "instances": len(outputs), "nist_modes": NIST_MODES}))
    return 0


def _check_record(path: Path) -> None:
    """Raises RecordError where a record beside it names the file, and was made from another."""
    store = Store(path.absolute().parent.parent)
    if path.absolute().parent.name == "outputs" and (record := store.find(path.stem)) is not None:
        store.read_output(record, path.suffix[1:])
