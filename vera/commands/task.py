"""Look at a data file and write the yaml of a task on it.

python scripts/task.py entails SICK_train.txt --text sentence_A,sentence_B --label entailment_judgment
python scripts/task.py chat answers.jsonl --instruction question --output answer
python scripts/task.py intents intents.csv --text text --label intent --classes          numbers that are classes
python scripts/task.py pets /data/pets                  a folder of images: train/<class>/*.jpg, test/<class>/*.jpg

Files of the other splits are looked for beside the training file (SICK_trial.txt, dev.csv, test.jsonl); --validation and --test
name them. With the training file alone, a fifth of its rows is kept for evaluation. What was found is printed, with three rows
as --model reads them; the yaml goes to conf/task, to be read before it is used.
"""

from pathlib import Path

from transformers import AutoTokenizer

from vera.commands import parser_of
from vera.config import build, resolve
from vera.config.components import check_free, new_yaml
from vera.errors import ConfigError, ModelError, one_line
from vera.io.tables import not_arrow
from vera.models.base import SAFE, UNREADABLE
from vera.project import called, project
from vera.tasks import draft


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("name", help="what the task is to be called")
    parser.add_argument("file", type=Path, metavar="FILE", help="CSV, TSV, JSON lines or parquet, or a folder of images")
    parser.add_argument("--text", metavar="COLUMN[,COLUMN]", help="the column of the text, or two of a pair")
    parser.add_argument("--label", metavar="COLUMN")
    kind = parser.add_mutually_exclusive_group()
    for name, help in (("classes", "each different label is a class"), ("scores", "the labels are scores")):
        kind.add_argument(f"--{name}", action="store_const", const=name, dest="kind", help=help)
    parser.add_argument("--validation", type=Path, metavar="FILE")
    parser.add_argument("--test", type=Path, metavar="FILE")
    for field in ("instruction", "input", "output"):
        parser.add_argument(f"--{field}", metavar="COLUMN", help=f"what instructions call their {field}")
    parser.add_argument("--model", metavar="NAME", help="of conf/model: its tokenizer shows three rows (default: minilm)")
    parser.add_argument("--print", action="store_true", dest="only_print", help="write nothing")
    options = parser.parse_args()
    if not options.only_print:
        check_free("task", options.name)
    fields = {f: getattr(options, f) for f in ("instruction", "input", "output") if getattr(options, f)}
    if options.file.is_dir() or fields:
        what, more = ("a folder of images", [*fields]) if options.file.is_dir() else ("a file of instructions", [])
        useless = ["text", "label", "kind", "validation", "test", "model", *more]
        stray = [f"--{options.kind if o == 'kind' else o}" for o in useless if getattr(options, o) is not None]
        if stray:
            saved = not_arrow(options.file) if options.file.is_dir() else ""
            raise ConfigError(f"{options.file} is read as {what}, of which nothing takes {', '.join(stray)}{saved}")
    lines = []
    if options.file.is_dir():
        settings = draft.images(options.name, options.file)
        lines = draft.look(settings)
    elif fields:
        if not {"instruction", "output"} <= fields.keys():
            raise ConfigError("instructions have --instruction and --output")
        settings = draft.instructions(options.name, options.file, fields)
    else:
        others = {split: path for split in ("validation", "test") if (path := getattr(options, split)) is not None}
        texts = options.text.split(",") if options.text else []
        settings = draft.text_files(options.name, options.file, texts, options.label, others, options.kind)
        lines = draft.look(settings, tokenizer(options.model or "minilm"))
    print(draft.as_yaml(settings))
    print("\n".join(lines))
    if not options.only_print:
        path = new_yaml("task", options.name, draft.as_yaml(settings))
        fitting, asked = ("vit_base", "train.lr=RATE train.head_lr=RATE ") if options.file.is_dir() else ("minilm", "")
        fitting, asked = ("llama_7b", "method=vera method.rank=RANK ") if fields else (fitting, asked)
        print(f"written: {path}; {called('train')} model={options.model or fitting} task={options.name} {asked}...")
        if not project():
            print("(a run can be published where a commit holds this file when it starts)")
    return 0


def tokenizer(model: str):
    """A model's tokenizer, or None with a line that says why not."""
    chosen = resolve("run", [f"model={model}"])
    try:
        source = build(chosen["model"], "model").source(Path(chosen["cache_dir"]))
        return AutoTokenizer.from_pretrained(source, **SAFE)
    except (ModelError, *UNREADABLE) as error:
        print(f"rows are shown as texts: no tokenizer of model={model} ({one_line(error, 120)})")
        return None
