"""Imports point one way, checked in the source: a rule that only a document states is soon broken."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import retbench

PACKAGE = Path(retbench.__file__).parent

# Lowest first; a module may import from its own layer and from those before it. A name stands for a package, or for
# one module of a package whose other modules lie in another layer.
LAYERS: list[set[str]] = [
    {"__init__", "errors", "units", "files", "parsing", "strict", "user_packages"},
    {"ops", "records", "stats"},
    {"mixers"},
    {"architectures", "measure"},
    {"config.evaluation", "config.synthetic", "config.training", "workloads.workload"},
    {"config"},
    {"planning.cells", "planning.prediction", "planning.shards"},
    {"data", "models"},
    {"checkpoints", "evaluation"},
    {"workloads"},
    {"training"},
    {"planning"},
    {"running", "papers"},
    {"report"},
    {"regress"},
    {"cli", "__main__"},
    {"api"},
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
# What works where torch is not wanted: experiments, plans, records and everything that is made of records.
WITHOUT_TORCH = (
    *("architectures", "config", "records", "stats", "papers", "report", "planning", "cli", "regress"),
    *("workloads.workload", "mixers.mixer", "mixers.feed_forward", "mixers.linear_operator"),
    *("mixers.softmax_attention", "running.estimates", "running.runner"),
    *("training.planning", "training.trained"),
)
# The report shows what a cluster measured: it sees neither models nor what measures them.
NOT_FOR_THE_REPORT = {"models", "measure", "running", "training", "data", "checkpoints", "evaluation", "ops"}


def module_name(path: Path) -> str:
    """`retbench.models.state` of .../retbench/models/state.py."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def unit(module: str) -> str:
    """Return the part of the package that a module belongs to, as `LAYERS` names it."""
    parts = module.split(".")[1:]
    own = ".".join(parts[:2])
    return own if own in RANK else parts[0] if parts else "__init__"


def needs_no_torch(module: str) -> bool:
    """Return whether a module must be usable without torch."""
    parts = module.split(".")[1:]
    is_config = parts[:1] == ["mixers"] and parts[-1] == "config"
    return module not in MEASURING and (
        is_config or ".".join(parts[:2]) in WITHOUT_TORCH or ".".join(parts[:1]) in WITHOUT_TORCH
    )


MEASURING = {
    "retbench.planning.attention_rates",
    "retbench.planning.operator_counts",
    "retbench.planning.rate_curves",
    "retbench.planning.step_rates",
    "retbench.regress.quantities",
}
"""Modules that measure or count with torch what the rest of their package computes with."""


@cache
def parsed(path: Path) -> ast.Module:
    """Return the tree of a file without what only a type checker sees."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            node.body = []
    return tree


@cache
def imported(path: Path, *, top_level_only: bool = False) -> frozenset[str]:
    """Return the full names that a file imports, inside its functions too unless `top_level_only`.

    Imports that only a type checker makes are left out.
    """
    tree = parsed(path)
    names: set[str] = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import on line {node.lineno}"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(names)


def resolve(name: str) -> str:
    """The module that a name is imported from: retbench.errors of retbench.errors.ConfigError."""
    while name not in MODULES and "." in name:
        name = name.rpartition(".")[0]
    return name


def own_imports(path: Path) -> set[str]:
    return {resolve(name) for name in imported(path) if name.split(".")[0] == "retbench"}


def test_imports_point_one_way() -> None:
    upwards = [
        f"{module} imports {name}"
        for module, path in MODULES.items()
        for name in sorted({unit(name) for name in own_imports(path)} - {unit(module), "__init__"})
        if RANK[name] > RANK[unit(module)]
    ]
    assert upwards == []


def test_the_report_sees_records_only() -> None:
    report = [name for name in MODULES if unit(name) == "report"]
    assert len(report) > 40
    seen = [
        f"{module} imports {name}"
        for module in report
        for name in own_imports(MODULES[module])
        if unit(name).split(".")[0] in NOT_FOR_THE_REPORT
    ]
    assert seen == []


def test_no_modules_import_each_other() -> None:
    graph = {name: own_imports(path) - {name, "retbench"} for name, path in MODULES.items()}
    assert set(TopologicalSorter(graph).static_order()) >= graph.keys() - {"retbench"}


def test_nothing_of_these_loads_torch() -> None:
    """Indirect imports count too, so this is tried in a new process."""
    names = [name for name in MODULES if needs_no_torch(name)]
    assert len(names) > 100
    own = [
        name
        for name in names
        if {"torch"} & {one.split(".")[0] for one in imported(MODULES[name], top_level_only=True)}
    ]
    assert own == []
    code = f"import sys; import {', '.join(names)}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_the_command_line_starts_light() -> None:
    """`retbench --help` loads no library that takes long, and nothing of ours but the errors."""
    code = "import sys, retbench.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"torch", "pandas", "numpy", "matplotlib", "scipy", "pydantic", "rich"}
    assert {name for name in loaded if name.split(".")[0] == "retbench"} == {
        "retbench",
        "retbench.cli",
        "retbench.errors",
    }


def test_a_short_table_is_printed_without_the_libraries_of_long_ones() -> None:
    """`retbench list` and the end of a training print such tables."""
    code = (
        "import sys; from retbench.cli.layout import print_table; print_table(['a', 'b'], [['c', '1']], 'md'); "
        "print(*{'torch', 'pandas', 'numpy', 'scipy'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "| a | b |\n| :-- | --: |\n| c | 1 |\n\n"
