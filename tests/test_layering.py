"""Data flows one way: a module imports only from modules to its left, and reporting never imports torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

# Left to right. A module may import from its own layer and from those before it.
LAYERS = [
    ("vera.errors", "vera.io.files", "vera.io.json_text", "vera.runs.interrupt"),
    ("vera.nn",),
    ("vera.config",),
    ("vera.runs.record",),
    ("vera.runs.store", "vera.runs.workers", "vera.runs.sweep"),
    ("vera.judge",),
    ("vera.seeds", "vera.io.hub", "vera.io.cache", "vera.io.rows"),
    ("vera.models",),
    ("vera.methods",),
    ("vera.tasks",),
    ("vera.train",),
    ("vera.run", "vera.checks.counts"),
    ("vera.trained", "vera.checks.verify", "vera.checks.doctor"),
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def layer(name: str) -> int | None:
    fitting = [rank for prefix, rank in RANK.items() if name == prefix or name.startswith(prefix + ".")]
    return fitting[0] if fitting else None


@pytest.mark.parametrize("path", modules("vera"), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_left(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    if path.name == "__init__.py" and not imports(path):
        return
    here = layer(name)
    assert here is not None, f"{name} belongs to no layer"
    for imported in imports(path):
        if imported.startswith("vera."):
            rank = layer(imported)
            assert rank is not None and rank <= here, f"{name} imports {imported}"


@pytest.mark.parametrize("path", modules("experiments"), ids=lambda path: path.name)
def test_experiments_read_records_only(path):
    allowed = ("vera.config", "vera.errors", "vera.io.files", "vera.io.json_text", "vera.nn.count", "vera.runs")
    allowed += ("vera.judge.judgement",)
    for imported in imports(path):
        assert not imported.startswith("torch"), imported
        assert not imported.startswith("vera.") or imported.startswith(allowed), imported


def test_the_method_needs_torch_and_safetensors_alone():
    outside = {"torch", "safetensors", "vera", "__future__"} | set(sys.stdlib_module_names)
    for path in modules("vera/nn"):
        assert {name.partition(".")[0] for name in imports(path)} <= outside, path


def test_the_loop_names_no_method_model_or_task():
    from vera.config import choices

    names = {name for group in ("method", "model", "task") for name in choices(group)} - {"head", "full"}
    for path in modules("vera/train"):
        words = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert not names & {word for word in words if isinstance(word, str)}, path


@pytest.mark.parametrize(
    "module",
    ["vera.config", "vera.runs.store", "vera.judge.grade", *(f"experiments.{path.stem}" for path in modules("experiments"))],
)
def test_reporting_imports_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
