"""Look into a checkpoint and print the yaml of a backbone: what would be adapted, what the head is, where the blocks are.

python scripts/model.py answerdotai/ModernBERT-base
python scripts/model.py /models/my-encoder --for text --write mine

Only its config.json is read, from a folder, the hub or the hub's cache; the model is made without weights.
"""

import re
from collections import Counter
from pathlib import Path

import torch
from transformers import AutoConfig
from transformers.utils import find_adapter_config_file

from vera.commands import parser_of
from vera.config import build, choice
from vera.config.components import new_yaml
from vera.errors import ModelError
from vera.models import found
from vera.models.base import AUTO, HOLDS_ADAPTER, SAFE, Backbone, cause, kinds_for
from vera.project import called
from vera.tasks.draft import as_yaml

KINDS = {kind: f"auto_{kind}" for kind in AUTO}


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("id", metavar="ID", help="a model's id on the hub, or a folder in transformers' format")
    parser.add_argument(
        "--for", choices=KINDS, dest="kind", default="text", help="what it is to be (default: text, a classifier)"
    )
    parser.add_argument("--write", metavar="NAME", help="write the yaml to conf/model/NAME.yaml")
    options = parser.parse_args()
    name = options.write or re.sub(r"\W+", "_", options.id.rstrip("/").rpartition("/")[2]).strip("_").lower()
    lines, settings = look(options.id, options.kind, name)
    text = as_yaml(settings, choice("model", KINDS[options.kind]))
    print("\n".join(lines), text, sep="\n\n")
    if options.write:
        path = new_yaml("model", name, text)
        print(f"written: {path}; {called('train')} model={name} ...")
    return 0


def look(given: str, kind: str, name: str) -> tuple[list[str], dict]:
    """What is found in a checkpoint's architecture, a line each, and the settings of its yaml. Raises ModelError."""
    settings = {**choice("model", KINDS[kind]), "name": name}
    folder = Path(given).is_dir()
    settings |= {"path": str(Path(given).resolve())} if folder else {"checkpoint": given}
    model_config = build({**settings, "path": settings["path"] if folder else None}, "model")
    try:
        if find_adapter_config_file(given):
            raise ModelError(f"{given} {HOLDS_ADAPTER}")
        config = AutoConfig.from_pretrained(given, **SAFE)
        with torch.device("meta"):
            model = model_config._from_config(config, 2)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError) as error:
        hint = " or ".join(f"--for {kind}" for kind in kinds_for(error))
        raise ModelError(f"{given} cannot be looked into: {cause(error)}" + f": {hint}" * bool(hint)) from None
    head = found.head(model) if settings["head"] == "auto" else []
    backbone = Backbone(model, None, tuple(head), given, None, "")
    linear = found.linear(model, head)
    counted = Counter(name.rpartition(".")[2] for name in linear)
    lines = [
        f"{type(model).__name__}, {sum(p.numel() for p in model.parameters()):,} parameters",
        f"linear maps: {', '.join(f'{ending} x {counted[ending]}' for ending in found.endings(linear))}",
    ]
    try:
        resolved = model_config.resolve_targets(backbone, ["query", "value"])
        lines.append(
            f"query, value: {', '.join(resolved)}" + (f" ({backbone.notes['fused']})" if "fused" in backbone.notes else "")
        )
    except ModelError as error:
        lines.append(str(error))
    lines.append(
        f"head: {', '.join(head) or 'none, its own output layer stays'}"
        + (" (those that the checkpoint lacks)" if head else "")
    )
    try:
        blocks = model_config.blocks(model)
        places = ", ".join(f"{place} {where}" for place, where in blocks[0].items())
        lines.append(f"blocks for bottleneck adapters and IA3: {len(blocks)}, the first with {places}")
    except ModelError as error:
        lines.append(str(error))
    return lines, settings
