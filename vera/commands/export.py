"""Take a finished run's weights out of here: as a LoRA adapter, in PEFT's format of its method, or as a plain merged model.

python scripts/export.py work/results/<run> OUT --to lora             VeRA, LoRA, AdaLoRA ... as an exact LoRA, for any server
python scripts/export.py results/runs/<run>.json OUT --to lora --rank 64    cut by an SVD; prints what is lost
python scripts/export.py work/results/<run>/last OUT --to peft        as PEFT writes the method
python scripts/export.py work/results/<run> OUT --to merged           a model for transformers' from_pretrained

OUT gets a README with the record's identity, and no path of this machine. Paths that the run was given are given again:
model.path=/models/roberta-base.
"""

from pathlib import Path

from vera.commands import of_run, parser_of

ERROR = 2


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("source", type=Path, metavar="RUN_FOLDER_OR_RECORD")
    parser.add_argument("out", type=Path, metavar="OUT")
    of_run(parser)
    parser.add_argument("--to", choices=("lora", "peft", "merged"), required=True, dest="form")
    parser.add_argument("--rank", type=int, help="lora: the rank that the file is to have, by a cut")
    options = vars(parser.parse_intermixed_args())
    from vera.trained.export import export

    lines = export(**options)
    print(f"{options['out']}: {'; '.join(lines)}")
    return 0
