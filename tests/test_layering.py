"""Data flows one way: a module imports only from modules to its left, and reporting never imports torch."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

DOCUMENT = (ROOT / "docs" / "architecture.md").read_text()


def documented(heading: str) -> list[list[list[str]]]:
    """The table under a heading of docs/architecture.md: by row and column the names in code."""
    lines = DOCUMENT.partition(f"| {heading} |")[2].partition("\n\n")[0].splitlines()[2:]
    return [[re.findall(r"`([\w.]+)`", cell) for cell in line.strip("| ").split(" | ")] for line in lines]


# A module may import from its own layer and from those before it.
LAYERS = [row[0] for row in documented("Modules | What they are")]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def layer(name: str) -> int | None:
    fitting = [rank for prefix, rank in RANK.items() if name == prefix or name.startswith(prefix + ".")]
    return fitting[0] if fitting else None


def test_the_document_names_modules_that_exist():
    for name in (name for layer in LAYERS for name in layer):
        path = ROOT.joinpath(*name.split("."))
        assert path.is_dir() or path.with_suffix(".py").is_file(), name
    assert len(LAYERS) > 10 and LAYERS[0] == ["vera.nn"]


@pytest.mark.parametrize("path", modules("vera"), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_left(path):
    name = dotted(path)
    if path.name == "__init__.py" and not imports(path):
        return
    here = len(LAYERS) if name == "vera" else layer(name)  # what the package itself offers may come from any of them
    assert here is not None, f"{name} belongs to no layer"
    for imported in imports(path):
        assert not imported.startswith(("experiments", "bench")) or name.startswith("vera.commands"), (
            f"{name} imports {imported}"
        )
        if imported.startswith("vera."):
            rank = layer(imported)
            assert rank is not None and rank <= here, f"{name} imports {imported}"


@pytest.mark.parametrize("path", modules("experiments"), ids=lambda path: path.name)
def test_experiments_read_records_only(path):
    ((_, allowed),) = documented("Modules | Import from `vera`")
    for imported in imports(path):
        assert not imported.startswith("torch"), imported
        assert not imported.startswith("vera.") or imported.startswith(tuple(allowed)), imported
        if path.parent.name == "engine":
            assert not imported.startswith("experiments.artefacts"), f"{path.name} of the engine names {imported}"


def test_the_method_stands_alone(tmp_path):
    """vera/nn imports torch, safetensors and itself, by relative names: a copy of the folder works under any name."""
    outside = {"torch", "safetensors", "__future__", *sys.stdlib_module_names}
    for path in modules("vera/nn"):
        also = {"peft"} if path.name == "peft_layers.py" else set()  # imported by `accelerate` when it is called
        assert {name.partition(".")[0] for name in imports(path)} <= outside | also, path
    shutil.copytree(ROOT / "vera" / "nn", tmp_path / "copied", ignore=shutil.ignore_patterns("__pycache__"))
    code = """if True:
        import sys, torch, copied
        class Other: find_spec = lambda self, name, *_: sys.exit(f"imports {name}") if name.split(".")[0] == "vera" else None
        sys.meta_path.insert(0, Other())
        for name in copied.__all__:
            getattr(copied, name)
        make = lambda: torch.nn.Sequential(torch.nn.Linear(4, 4))
        model = copied.attach(make(), copied.VeraConfig(rank=2, targets=("0",)))
        reader = make().requires_grad_(False)
        reader.load_state_dict(model[0].base_layer.state_dict(prefix="0."))
        copied.load_adapter(reader, copied.save_adapter(model, "adapter"))
    """
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""}).returncode == 0


def test_public_names_of_the_method_are_not_those_of_its_modules():
    """Importing vera.nn.attach, say, would put the module in the function's place."""
    import vera.nn

    assert not {path.stem for path in modules("vera/nn")} & set(vera.nn.__all__)


def test_the_method_imports_peft_only_when_asked():
    code = "import sys, vera.nn; [getattr(vera.nn, name) for name in vera.nn.__all__]; "
    code += "sys.exit(any(name in sys.modules for name in ('peft', 'transformers', 'vera.nn.peft_layers')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_loop_names_no_method_model_or_task():
    from vera.config import choices

    names = {name for group in ("method", "model", "task") for name in choices(group)} - {"head", "full"}
    for path in modules("vera/train"):
        words = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert not names & {word for word in words if isinstance(word, str)}, path


def test_reporting_imports_no_torch():
    names = [
        "vera.config",
        "vera.errors",
        "vera.nn.count",
        "vera.records.store",
        "vera.judge.grade",
        *map(dotted, modules("experiments")),
    ]
    code = "import sys\nfor name in sys.argv[1:]:\n    __import__(name)\n    assert 'torch' not in sys.modules, name"
    done = subprocess.run([sys.executable, "-c", code, *names], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
