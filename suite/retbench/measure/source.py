"""Identity of the source code that measures: hashes over static imports, without comments and docstrings.

The source is split, so that a new architecture or workload makes no earlier record stale: what a worker imports for
every cell is the shared part, and what one model or one workload needs beyond it is hashed by itself. Modules of a
single mixer (a folder of `retbench.mixers`), architecture or workload are not shared. The latter two are known by the
name `ARCHITECTURE` or `WORKLOAD` that they assign at their top level.
"""

import ast
import functools
import hashlib
import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

WORKER = "retbench.running.worker"
REGISTERED = frozenset({"ARCHITECTURE", "WORKLOAD"})
_MIXERS = "retbench.mixers."


@dataclass(frozen=True)
class FoundHashes:
    """Hashes that a process has found, by the modules whose imports they cover, and that of all bytes of the source."""

    content: str
    hashes: tuple[tuple[tuple[str, ...], str], ...]


@dataclass(frozen=True)
class ParsedModule:
    """The parts of one module's source that the hashes are made of.

    Attributes:
        digest: Hash of the syntax tree without docstrings.
        imports: Full names of everything that is imported anywhere in it; relative ones begin with their dots.
        is_registered: The module assigns a new object to one of the names `REGISTERED`.
    """

    digest: str
    imports: tuple[str, ...]
    is_registered: bool


_found: dict[tuple[str, ...], str] = {}
"""Hashes by the modules whose imports they cover; that of the shared part has none."""


def shared_hash() -> str:
    """Return the hash of what a worker imports for every model and workload."""
    if () not in _found:
        _found[()] = _hash(_shared())
    return _found[()]


def part_hash(modules: tuple[str, ...]) -> str:
    """Return the hash of what these modules, by their full names, import beyond the shared part, with themselves."""
    if modules not in _found:
        beyond = import_closure(modules, skip_parts=False)
        _found[modules] = _hash({name: digest for name, digest in beyond.items() if name not in _shared()})
    return _found[modules]


def closure_hash(module: str) -> str:
    """Return the hash of a module, by its full name, and of all of `retbench` that it imports."""
    return _hash(import_closure((module,), skip_parts=False))


def found_hashes() -> FoundHashes:
    """Return every hash that this process has found, for another process that runs the same source."""
    return FoundHashes(content=_content_hash(_packages(_found)), hashes=tuple(_found.items()))


def take_over(found: FoundHashes) -> None:
    """Take the hashes that another process has found, if the files are the same byte for byte.

    Reading all files takes a tenth of the time of parsing them.
    """
    hashes = dict(found.hashes)
    if found.content == _content_hash(_packages(hashes)):
        _found.update(hashes)


def _packages(hashes: Iterable[tuple[str, ...]]) -> frozenset[str]:
    """Return the names of the packages whose imports hashes follow."""
    return frozenset({"retbench", *(module.partition(".")[0] for modules in hashes for module in modules)})


@functools.cache
def _content_hash(packages: frozenset[str]) -> str:
    """Return the hash of all bytes of the source files of packages."""
    content = hashlib.sha256()
    for package in sorted(packages):
        root = find_source(package)
        folder = root.parent if root and root.name == "__init__.py" else None
        for path in sorted(folder.rglob("*.py")) if folder else filter(None, [root]):
            content.update(f"{path}\n{path.stat().st_size}\n".encode() + path.read_bytes())
    return content.hexdigest()


def _hash(digests: dict[str, str]) -> str:
    text = "".join(f"{name}={digest}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@functools.cache
def _shared() -> dict[str, str]:
    return import_closure((WORKER,), skip_parts=True)


def import_closure(entries: Sequence[str], *, skip_parts: bool) -> dict[str, str]:
    """Return the digests of modules and of all that they import, by full name.

    Imports inside functions count. Only `retbench` and the packages of the entries are followed.

    Args:
        entries: Full names of modules.
        skip_parts: Leave out modules of single mixers, architectures and workloads.
    """
    packages = {"retbench", *(entry.partition(".")[0] for entry in entries)}
    found: dict[str, str] = {}
    todo = list(entries)
    while todo:
        name = todo.pop()
        path = find_source(name) if name not in found and name.partition(".")[0] in packages else None
        if path is None:
            continue
        module = _read_module(path)
        if not (skip_parts and (module.is_registered or _is_single_mixer(name))):
            found[name] = module.digest
            todo += [name.rpartition(".")[0], *_candidates(module, name, path.name == "__init__.py")]
    return found


def _is_single_mixer(name: str) -> bool:
    """Return whether a module lies in the folder of one mixer."""
    if not name.startswith(_MIXERS):
        return False
    folder = find_source(_MIXERS + name.removeprefix(_MIXERS).partition(".")[0])
    return folder is not None and folder.name == "__init__.py"


def _candidates(module: ParsedModule, importer: str, is_package: bool) -> Iterator[str]:
    """Full names that may be modules: each imported name, and what it is imported from."""
    for name in module.imports:
        bare = name.lstrip(".")
        ups = len(name) - len(bare)
        if ups:
            parts = importer.split(".") if is_package else importer.split(".")[:-1]
            bare = ".".join([*parts[: len(parts) - ups + 1], bare])
        yield bare
        yield bare.rpartition(".")[0]


@functools.cache
def find_source(name: str) -> Path | None:
    """Return the file of a module without importing it; None for a name that is no module with source."""
    top, _, rest = name.partition(".")
    spec = importlib.util.find_spec(top) if top else None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    root = Path(spec.origin)
    if not rest:
        return root
    place = root.parent.joinpath(*rest.split("."))
    candidates = (place.with_name(f"{place.name}.py"), place / "__init__.py")
    return next((path for path in candidates if root.name == "__init__.py" and path.is_file()), None)


@functools.cache
def _read_module(path: Path) -> ParsedModule:
    return parse_module(path.read_bytes())


def parse_module(content: bytes) -> ParsedModule:
    """Parse the source of one module."""
    tree = ast.parse(content)
    imports = tuple(sorted(set(_imports(tree))))
    is_registered = any(_is_registration(node) for node in tree.body)
    _remove_docstrings(tree)
    return ParsedModule(
        hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16], imports, is_registered=is_registered
    )


def _is_registration(node: ast.stmt) -> bool:
    """Return whether a statement assigns a new object to one of the names `REGISTERED`."""
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    named = any(isinstance(target, ast.Name) and target.id in REGISTERED for target in targets)
    return named and isinstance(getattr(node, "value", None), ast.Call)


def _imports(node: ast.AST) -> Iterator[str]:
    """Yield the names imported by a node and below it, without those that only type checkers import."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = "." * node.level + (f"{node.module}." if node.module else "")
        yield from (base + alias.name for alias in node.names)
    elif not isinstance(node, ast.expr):
        only_types = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for child in () if only_types else ast.iter_child_nodes(node):
            yield from _imports(child)


def _remove_docstrings(node: ast.AST) -> None:
    """Remove every statement that is only a string, in place: it documents and does nothing."""
    for field in ("body", "orelse", "finalbody", "handlers", "cases"):
        children = getattr(node, field, None)
        if isinstance(children, list):
            kept = [child for child in children if not _is_text(child)]
            setattr(node, field, kept)
            for child in kept:
                _remove_docstrings(child)


def _is_text(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
