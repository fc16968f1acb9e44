"""The source code of a component: the file of its builder, and the files that this imports from its own package."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.machinery
import importlib.util
import inspect
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from textseg.registry.component import Component

_SUFFIXES = (".py", *importlib.machinery.EXTENSION_SUFFIXES)


def source_of(component: Component) -> dict[str, str]:
    """Return the SHA-256 of each source file of a component, by its path from the folder of its package.

    Imports are read from the code, not executed, so an import inside a function counts and one that is computed does
    not. Of a builder from another package than that of the plug-in, such as a class of torch, only the file of its
    module counts. The mapping is empty where no source is at hand.
    """
    if component.source is not None:
        return dict(component.source)
    target = component.target
    while isinstance(target, functools.partial):
        target = target.func
    module = target.partition(":")[0] if isinstance(target, str) else getattr(inspect.unwrap(target), "__module__", "")  # type: ignore[arg-type]
    root = str(module).partition(".")[0]
    folders = _folders(root)
    own = root == component.package.partition(".")[0]
    sources: dict[str, str] = {}
    waiting, seen = [str(module)], {str(module)}
    while waiting:
        name = waiting.pop()
        path = _file(name, folders)
        if path is None:
            continue
        stat = path.stat()
        digest, imported = _read(path, stat.st_mtime_ns, stat.st_size, name, root)
        sources[_relative(path, name)] = digest
        if not own:
            break
        parts = name.split(".")
        around = {".".join(parts[:count]) for count in range(1, len(parts))}  # Python executes these packages first
        new = (around | imported) - seen
        seen |= new
        waiting += new
    return dict(sorted(sources.items()))


@functools.cache  # of the code that this process runs, also after an edit
def core_source() -> str:
    """Return one short hash of the source files of textseg itself."""
    root = Path(__file__).parent.parent
    content = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        content.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return content.hexdigest()[:16]


def _folders(root: str) -> list[Path]:
    """Return the folders that hold the top-level module or package `root`; none if it is not installed as files."""
    try:
        spec = importlib.util.find_spec(root)
    except (ImportError, ValueError):  # ValueError: a module that was made by hand
        return []
    if spec is None or root == "__main__":
        return []
    if packages := spec.submodule_search_locations:
        return [Path(folder).parent for folder in packages]
    return [Path(spec.origin).parent] if spec.has_location and spec.origin else []


def _file(module: str, folders: list[Path]) -> Path | None:
    """Return the file of a module, which need not exist: `from .a import b` may name a module or something in it."""
    relative = Path(*module.split("."))
    for folder in folders:
        for path in (folder / relative / "__init__.py", *(folder / f"{relative}{suffix}" for suffix in _SUFFIXES)):
            if path.is_file():
                return path
    return None


def _relative(path: Path, module: str) -> str:
    depth = module.count(".") + (path.name == "__init__.py")
    return Path(*path.parts[-depth - 1 :]).as_posix()


@functools.lru_cache(maxsize=1024)
def _read(path: Path, _changed: int, _size: int, module: str, root: str) -> tuple[str, frozenset[str]]:
    """Return the hash of a file, and the modules of the package `root` that it imports, perhaps with other names."""
    content = path.read_bytes()
    imported: set[str] = set()
    mentions = rb"\b%b\b|\bfrom\s+\." % root.encode()
    if path.suffix == ".py" and re.search(mentions, content):  # parsing takes far longer than this search
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        with suppress(SyntaxError, ValueError):  # a hash is possible all the same
            imported = set(_imports(ast.parse(content), package, root))
    return hashlib.sha256(content).hexdigest(), frozenset(imported)


def _imports(tree: ast.AST, package: str, root: str) -> Iterator[str]:
    """Yield each name below `root` that the code imports at run time."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = parts[: len(parts) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            names = [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.If) and _for_type_checkers(node.test):
            names = []
            yield from _imports(ast.Module(node.orelse, []), package, root)
        else:
            names = []
            yield from _imports(node, package, root)
        yield from (name for name in names if name.partition(".")[0] == root)


def _for_type_checkers(test: ast.expr) -> bool:
    return getattr(test, "id", getattr(test, "attr", None)) == "TYPE_CHECKING"
