"""Score against trainable parameters, memory and seconds for every method with records, the front marked: table and figure.

python scripts/pareto.py model=minilm task=stsb        printed, and written to results/pareto/minilm_stsb.md, .pdf, .png, .svg
"""

import re

from experiments.engine import arguments, pareto
from experiments.engine.paper import ask
from experiments.engine.render import markdown, show
from vera.commands import parser_of
from vera.config import choices
from vera.errors import ConfigError
from vera.io.files import write_atomic


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="model=, task=, and what else all runs have been given")
    arguments.results(parser)
    options = parser.parse_intermixed_args()
    if stray := [word for word in options.words if "=" not in word]:
        raise ConfigError(f"{stray[0]!r} is not KEY=VALUE")
    given = dict(word.partition("=")[::2] for word in options.words)
    model, task = given.pop("model", "") or "digits_vit", given.pop("task", "") or "digits"
    for group, name in (("model", model), ("task", task)):
        if name not in choices(group):
            raise ConfigError(f"{group}={name}: no such choice; allowed: {', '.join(choices(group))}")
    asked = ask(options.results, arguments.keys_of(parser, options, [f"{key}={value}" for key, value in given.items()]))
    name = re.sub(r"[^\w.+-]", "_", "_".join([f"{model}_{task}", *asked.overrides]))
    made = pareto.table(asked, model, task, name)
    if not made.rows and any(asked.shown.values()):
        raise ConfigError(f"no seed has a run of every method on model={model} task={task} in {options.results}/runs")
    if not made.rows:
        raise ConfigError(
            f"no method has records of its recipe's cell on model={model} task={task} in {options.results}/runs; what else all "
            "runs were given is given here as well, KEY=VALUE"
        )
    show(made)
    folder = options.results / "pareto"
    paths = [write_atomic(folder / f"{made.name}.md", markdown(made)), *pareto.draw(asked, model, task, folder / made.name)]
    print(f"written: {', '.join(map(str, paths))}")
    return 0
