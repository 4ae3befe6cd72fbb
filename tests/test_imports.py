"""Imports point one way, checked in the source: a rule that only a document states is soon broken."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import retbench

PACKAGE = Path(retbench.__file__).parent

# Lowest first; a module may import from its own layer and from those before it.
LAYERS: list[set[str]] = [
    {"__init__", "errors", "units", "files", "strict"},
    {"config", "architectures", "records"},
    {"planning"},
    {"ops", "models"},
    {"data"},
    {"checkpoints"},
    {"evaluation"},
    {"training", "workloads"},
    {"run"},
    {"cli", "__main__"},
]
# Beside the layers: what these may import from the package, themselves apart. Measuring sees callables, not models;
# the report sees records, costs, statistics and what the papers print; regress sees what the report sees, and runs it.
BESIDE: dict[str, set[str]] = {
    "stats": LAYERS[0],
    "measure": LAYERS[0] | {"config", "records", "stats"},
    "report": LAYERS[0] | LAYERS[1] | {"papers", "stats", "planning", "workloads"},
    "papers": LAYERS[0] | LAYERS[1] | {"planning"},
    "regress": LAYERS[0] | LAYERS[1] | set().union(*LAYERS[1:9]) | {"report", "measure", "stats", "papers"},
}
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
WITHOUT_TORCH = LAYERS[0] | LAYERS[1] | {"analysis", "comparing", "paper", "cli", "commands", "progress"}


def module_name(path: Path) -> str:
    """`retbench.models.state` of .../retbench/models/state.py."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def unit(module: str) -> str:
    """The part of the package that a module belongs to: `models` of retbench.models.state."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imported(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Full names of everything a file imports, inside its functions too unless `top_level_only`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import on line {node.lineno}"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def resolve(name: str) -> str:
    """The module that a name is imported from: retbench.errors of retbench.errors.ConfigError."""
    while name not in MODULES and "." in name:
        name = name.rpartition(".")[0]
    return name


def own_imports(path: Path) -> set[str]:
    return {resolve(name) for name in imported(path) if name.split(".")[0] == "retbench"}


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_its_place(module: str) -> None:
    assert unit(module) in RANK.keys() | BESIDE.keys()


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    part = unit(module)
    others = {unit(name) for name in own_imports(MODULES[module])} - {part, "__init__"}
    if part in BESIDE:
        assert others <= BESIDE[part]
    else:
        ranked = others - BESIDE.keys()
        assert not {name for name in ranked if RANK[name] > RANK[part]}
        if RANK[part] < RANK["workloads"]:
            assert not others & BESIDE.keys()


@pytest.mark.parametrize("module", [name for name in MODULES if unit(name) in {"analysis", "comparing"}])
def test_reading_takes_only_statistics_from_measurement(module: str) -> None:
    measuring = {name for name in own_imports(MODULES[module]) if unit(name) == "measure"}
    assert measuring <= {"retbench.stats.intervals", "retbench.stats.paired"}


def test_no_modules_import_each_other() -> None:
    graph = {name: own_imports(path) - {name, "retbench"} for name, path in MODULES.items()}
    assert set(TopologicalSorter(graph).static_order()) >= graph.keys() - {"retbench"}


@pytest.mark.parametrize("module", [name for name in MODULES if unit(name) in WITHOUT_TORCH])
def test_imports_no_torch(module: str) -> None:
    names = imported(MODULES[module], top_level_only=unit(module) == "commands")
    assert not {name for name in names if name.split(".")[0] == "torch"}


def test_nothing_of_these_loads_torch() -> None:
    """What is imported by what is imported counts too, so this is tried in a process of its own."""
    light = WITHOUT_TORCH | {"plan", "runner"}
    names = [name for name in MODULES if unit(name) in light and not name.endswith("__main__")]
    code = f"import sys; import {', '.join(names)}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_the_command_line_starts_light() -> None:
    """What `retbench --help` loads: no library that takes long, and nothing of ours but the errors."""
    code = "import sys, retbench.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"torch", "pandas", "numpy", "matplotlib", "scipy", "pydantic", "rich"}
    assert {name for name in loaded if name.split(".")[0] == "retbench"} == {
        "retbench",
        "retbench.cli",
        "retbench.cli.checks",
        "retbench.cli.measuring",
        "retbench.cli.models",
        "retbench.cli.options",
        "retbench.cli.reading",
        "retbench.errors",
    }
