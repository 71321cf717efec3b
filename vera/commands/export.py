"""Take a finished run's weights out of here: as a LoRA adapter, in PEFT's format of its method, or as a plain merged model.

python scripts/export.py work/results/<run> OUT --to lora             VeRA, LoRA, AdaLoRA ... as an exact LoRA, for any server
python scripts/export.py results/runs/<run>.json OUT --to lora --rank 64    cut by an SVD; prints what is lost
python scripts/export.py work/results/<run>/last OUT --to peft        as PEFT writes the method
python scripts/export.py work/results/<run> OUT --to merged           a model for transformers' from_pretrained

OUT gets a README with the record's identity, and no path of this machine. Paths that the run was given are given again:
model.path=/models/roberta-base.
"""

import argparse
from pathlib import Path

ERROR = 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="RUN_FOLDER_OR_RECORD")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="local paths again, cache_dir")
    parser.add_argument("--to", choices=("lora", "peft", "merged"), required=True, dest="form")
    parser.add_argument("--rank", type=int, help="lora: the rank that the file is to have, by a cut")
    parser.add_argument("--checkpoint", choices=("best", "last"), help="which epoch (default: best)")
    parser.add_argument("--results", type=Path, metavar="DIR", help="the run's results_dir, if the folder does not say it")
    parser.add_argument("--work", type=Path, metavar="DIR", help="the run's work_dir, if the record does not say it")
    options = vars(parser.parse_intermixed_args())
    from vera.trained.export import export

    lines = export(**options)
    print(f"{options['out']}: {'; '.join(lines)}")
    return 0
