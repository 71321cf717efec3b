"""Write vera/config/components.json: the fields of every class that conf/ names, as plans and tables read them without torch.

python scripts/components.py             after a change to a field of a model, task, method or tracker
"""

import json

from vera.commands import ROOT, parser_of
from vera.config import TrainConfig, component, targets
from vera.config.marks import TABLE, Fields
from vera.config.values import fields_of
from vera.errors import ConfigError
from vera.io.files import write_atomic
from vera.project import project


def derived() -> dict[str, Fields]:
    """The fields by class."""
    classes: list[type] = [TrainConfig]
    classes += [component({"_target_": t}, group) for group in ("model", "task", "method", "tracker") for t in targets(group)]
    return {f"{cls.__module__}.{cls.__qualname__}": fields_of(cls) for cls in classes}


def text() -> str:
    """The file: a line for each field."""
    classes = []
    for name, fields in sorted(derived().items()):
        lines = [f'  "{key}": {json.dumps(field, sort_keys=True)}' for key, field in fields.items()]
        classes.append(f' "{name}": {{\n' + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(classes) + "\n}\n"


def main() -> int:
    parser_of(__doc__).parse_args()
    if project():
        raise ConfigError("components.json is of this repository's classes; those of a project are imported when needed")
    write_atomic(TABLE, text())
    print(f"written: {TABLE.relative_to(ROOT)}")
    return 0
