"""Components that are not installed: those of a file that `--code` names, and classes of a Python session."""

from __future__ import annotations

import hashlib
import linecache
import sys
import traceback
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from types import FrameType, ModuleType
from typing import TypeVar

from textseg.errors import PluginError
from textseg.hookspecs import MARK
from textseg.registry.component import LOCAL, SESSION, Component, Plugin, cause
from textseg.registry.discovery import LocalCode, Register, Registry, hooks_of, installed_registry
from textseg.registry.kinds import kind_of
from textseg.system.commands import shell

HOW = (
    'Write @textseg.component("fusion", "mine") above a class, or a function textseg_register with @hookimpl above it.'
)
_LOADING: ContextVar[Register | None] = ContextVar("loading", default=None)

Builder = TypeVar("Builder", bound=Callable[..., object])


def component(kind: str, name: str) -> Callable[[Builder], Builder]:
    """Return a decorator that makes a class or a function a component, without a plug-in.

    Use it in a notebook, in a script, or in a file for `textseg run --code`. A later class of the same kind and name
    replaces the earlier one. Raises PluginError for an unknown kind, and for a name that an installed plug-in uses.
    """
    kind_of(kind)

    def decorate(builder: Builder) -> Builder:
        loading = _LOADING.get()
        register = loading or Register(Plugin(SESSION, SESSION, LOCAL))
        getattr(register, kind)(name, builder)
        if loading is None:
            (added,) = register.components
            installed_registry().adopt(
                SESSION, [replace(added, source=_source_at(builder, sys._getframe(1)))], keep=True
            )
        return builder

    return decorate


def load_code(path: Path | str, registry: Registry | None = None, *, recorded: str | None = None) -> LocalCode:
    """Execute a Python file, and add its components and hooks to the installed ones, in place of its earlier ones.

    `recorded` is the SHA-256 in the run.json of a run that was made with the file. Raises PluginError for another file
    than that, and for one that can't be executed, that registers nothing, or whose names are in use.
    """
    registry = installed_registry() if registry is None else registry
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PluginError(f"The code '{path}' can't be read: {error.strerror}. Name a Python file.") from error
    digest = hashlib.sha256(content).hexdigest()
    if recorded not in (None, digest):
        raise PluginError(
            f"'{path}' is not the code that the run was trained with: its sha256 is {digest}, and run.json records "
            f"{recorded}. Restore the file; --trust-code does not allow other code."
        )
    known = registry.local_code.get(path.name)
    if known is not None and known.sha256 == digest:
        return known
    register = Register(Plugin(path.name, path.name, LOCAL))
    module = _executed(path, content, register)
    has_hooks = any(hasattr(value, MARK) for value in vars(module).values())
    if has_hooks:
        try:
            register.components += hooks_of(registry, module, register.plugin)
        except Exception as error:
            raise PluginError(f"The code '{path}' is broken: {cause(error)}.") from error
    elif not register.components:
        raise PluginError(f"The code '{path}' registers no component. {HOW}")
    added = [replace(component, source={path.name: digest}) for component in register.components]
    registry.adopt(path.name, added)
    code = LocalCode(path.name, content, digest, has_hooks)
    registry.local_code[path.name] = code
    return code


def _executed(path: Path, content: bytes, register: Register) -> ModuleType:
    """Return the module of a file; what it decorates is added to `register`."""
    module = ModuleType(f"textseg_code_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # type hints and dataclasses look their module up
    token = _LOADING.set(register)
    try:
        exec(compile(content, str(path), "exec"), vars(module))
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = getattr(error, "lineno", None) or (lines[-1] if lines else 1)
        raise PluginError(f"The code '{path}' can't be executed: line {line}: {cause(error)}.") from error
    finally:
        _LOADING.reset(token)
    return module


def _source_at(builder: object, caller: FrameType) -> dict[str, str] | None:
    """Return the hash of the cell or the script that decorates its own class; None for a class of another module."""
    if getattr(builder, "__module__", None) != caller.f_globals.get("__name__"):
        return None
    text = "".join(linecache.getlines(caller.f_code.co_filename))  # IPython puts its cells there
    name = f"{getattr(builder, '__qualname__', SESSION)} of the session"
    return {name: hashlib.sha256(text.encode()).hexdigest()} if text else {}


def local_code_of(registry: Registry, components: Iterable[Component]) -> list[LocalCode]:
    """Return the files that a run of these components executes: those of the components, and those with hooks."""
    used = {component.plugin for component in components}
    return [code for code in registry.local_code.values() if code.name in used or code.has_hooks]


def require_installed(components: Iterable[Component], what: str) -> None:
    """Raise PluginError for a component that is not installed; `what` names what needs it to be."""
    for component in components:
        if component.version == LOCAL:
            new = shell("textseg", "plugins", "new", component.name, "--kind", component.kind)
            raise PluginError(
                f"{what}, and {component.kind} '{component.name}' comes from {_origin(component)}. Make a plug-in of "
                f"it: {new}"
            )


def _origin(component: Component) -> str:
    return "this Python session" if component.plugin == SESSION else f"the file '{component.plugin}'"
