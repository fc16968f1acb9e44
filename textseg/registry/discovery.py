"""The installed plug-ins, their components and their hooks."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Protocol, TypeVar

import pluggy

from textseg import hookspecs
from textseg.errors import PluginError, RecipeError, TextsegError, shortened, suggestion
from textseg.hookspecs import PublishedTable, ReportSection, Run
from textseg.registry.api_version import asked_api, misfit
from textseg.registry.component import SESSION, Component, Plugin, canonical, cause, line_in
from textseg.registry.kinds import KINDS, kind_of
from textseg.registry.validation import dotted
from textseg.system.interruptions import is_interruption
from textseg.system.torch_builds import usable_torchvision
from textseg.version import __version__

T = TypeVar("T")


class _Add(Protocol):
    def __call__(self, name: str, builder: object, *, needs: str | None = None) -> None: ...


class Register:
    """The components that one plug-in registers, with a function for each kind: `register.fusion("mine", builder)`.

    A builder is an object or "module:name". `needs` is a requirement beyond those of the distribution, such as
    "textseg-mine[gpu]": a recipe that names the component is refused without it, with the command that installs it.
    The kinds are those of `textseg.registry.kinds`.
    """

    def __init__(self, plugin: Plugin) -> None:
        self.plugin = plugin
        self.components: list[Component] = []

    def __getattr__(self, kind: str) -> _Add:
        """Return the function that registers a component of a kind. Raises UnknownKindError."""
        return functools.partial(self._add, kind_of(kind).name)

    def __dir__(self) -> Iterable[str]:
        return [*super().__dir__(), *KINDS]

    def renamed(self, kind: str, old: str, new: str, *, until: str) -> None:
        """Accept the `old` name of a component that is registered as `new`, with a warning.

        From version `until` of the distribution on, the old name is an error, and the message gives the new name.
        """
        registered = [component for component in self.components if (component.kind, component.name) == (kind, new)]
        if not registered:
            raise ValueError(f"{kind} '{old}' is renamed to '{new}', which is not registered")
        if not re.match(r"\d+(\.\d+)*$", until):
            raise ValueError(f"{kind} '{old}': until is '{until}', but must be a version such as 1.2")
        self._add(kind, old, registered[0].target, needs=registered[0].needs)
        self.components[-1] = replace(self.components[-1], now=new, until=until)

    def _add(self, kind: str, name: str, builder: object, *, needs: str | None = None) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):  # it becomes the name of a module and a column, too
            raise ValueError(f"{kind} '{name}': a name is made of letters without accents, digits, '_' and '-'")
        if isinstance(builder, str):
            if not all(part.strip() for part in builder.partition(":")):
                raise ValueError(f"{kind} '{name}': the builder '{builder}' must be written \"module:name\"")
        elif not callable(builder):
            raise TypeError(f"{kind} '{name}': a builder is callable or a string \"module:name\", not {builder!r}")
        if any((known.kind, known.name) == (kind, name) for known in self.components):
            raise ValueError(f"{kind} '{name}' is registered twice")
        plugin = self.plugin
        origin = plugin.name, plugin.distribution, plugin.version
        self.components.append(Component(kind, name, builder, *origin, package=plugin.package, needs=needs))


@dataclass(frozen=True)
class LocalCode:
    """A Python file that is not installed, as it was when it was executed."""

    name: str
    content: bytes
    sha256: str
    has_hooks: bool


class Registry:
    """Plug-ins and their components.

    Components of several distributions that share a kind and a name are rivals: it is an error to use that name, not to
    have it installed, and "distribution/name" chooses one of them. `hooks` holds the modules of the plug-ins.
    """

    def __init__(
        self,
        plugins: Iterable[Plugin] = (),
        components: Iterable[Component] = (),
        hooks: pluggy.PluginManager | None = None,
    ) -> None:
        self.plugins: list[Plugin] = sorted(plugins, key=lambda plugin: plugin.name)
        self.local_code: dict[str, LocalCode] = {}  # by the name of the file
        self.hooks = hooks
        by_name: dict[tuple[str, str], list[Component]] = {}
        for component in components:
            by_name.setdefault((component.kind, component.name), []).append(component)
        self._components = {key: some[0] for key, some in by_name.items() if len(some) == 1}
        self._warned: set[tuple[str, str]] = set()
        self._failed: set[tuple[str, str, str]] = set()  # hook, plug-in, folder of the run
        self._collisions = {key: collision(some) for key, some in by_name.items() if len(some) > 1}
        for kind, name in self._collisions:
            for rival in _choices(by_name[kind, name]):
                self._components[kind, rival.address] = rival

    def adopt(self, plugin: str, components: Sequence[Component], *, keep: bool = False) -> None:
        """Add components of a file or a session, in place of its earlier ones, or `keep` those with other names.

        A file replaces a class of the session, which was its draft. Raises PluginError for a name that another plug-in
        or another file uses.
        """
        for component in components:
            key = component.kind, component.name
            taken = self._components.get(key)
            draft = taken is not None and taken.plugin == SESSION
            if key in self._collisions or (taken is not None and taken.plugin != plugin and not draft):
                user = f"{taken.origin} has it" if taken is not None else self._collisions[key]
                raise PluginError(
                    f"{component.kind} '{component.name}' of {plugin}: the name is in use: {user}. Choose another name."
                )
        if not keep:
            self._components = {key: each for key, each in self._components.items() if each.plugin != plugin}
        self._components |= {(component.kind, component.name): component for component in components}

    @property
    def faults(self) -> list[str]:
        """A sentence for each plug-in or component that is left out."""
        broken = [f"{plugin.origin} is broken and left out: {plugin.error}." for plugin in self.plugins if plugin.error]
        return broken + list(self._collisions.values())

    def notify(self, hook: str, run: Run, **about: object) -> None:
        """Call a hook about a run in every plug-in; the first failure of each in this run becomes a line on stderr."""
        self._answers(hook, lambda _: None, run=run, **about)

    def report_sections(self, run: Run) -> list[ReportSection]:
        """Return the sections that plug-ins add to the report of a run; one that fails becomes a line on stderr."""
        answers = self._answers("textseg_report_sections", lambda answer: _all_of(ReportSection, answer), run=run)
        return [section for _, sections in answers for section in sections]

    def published_results(self) -> list[PublishedTable]:
        """Return the published tables that plug-ins bring; one that fails becomes a line on stderr."""
        answers = self._answers("textseg_published_results", lambda answer: _all_of(PublishedTable, answer))
        return [table for _, tables in answers for table in tables]

    def recipe_folders(self) -> list[tuple[str, Path]]:
        """Return the folder of recipes of each plug-in that has one, behind the name of its distribution."""
        distributions = {plugin.origin: plugin.distribution for plugin in self.plugins}
        answers = self._answers("textseg_recipes", _checked_folder)
        return sorted((distributions.get(origin, origin), folder) for origin, folder in answers)

    def _answers(self, hook: str, read: Callable[[Any], T], **arguments: object) -> list[tuple[str, T]]:
        """Call a hook in every plug-in: the origin of each plug-in, and what `read` makes of its answer."""
        answers: list[tuple[str, T]] = []
        for implementation in getattr(self.hooks.hook, hook).get_hookimpls() if self.hooks else ():
            origin = implementation.plugin_name
            try:
                answer = implementation.function(**{name: arguments[name] for name in implementation.argnames})
                answers.append((origin, read(answer)))
            except BaseException as error:
                if is_interruption(error):
                    raise
                failure = (hook, origin, str(getattr(arguments.get("run"), "folder", "")))
                if failure not in self._failed:  # a hook that is called in each epoch may fail in each
                    self._failed.add(failure)
                    line = line_in(implementation.function.__code__.co_filename, error)
                    _warn(f"{hook} of {origin} failed: {cause(error)}{line}. The command goes on.")
        return answers

    def components(self, kind: str | None = None) -> list[Component]:
        """Return the components of one kind, or all, sorted by kind and name. Raises PluginError."""
        if kind is not None:
            kind_of(kind)
        return _sorted(c for c in self._components.values() if kind in (None, c.kind) and c.now is None)

    def old_names(self, kind: str | None = None) -> list[Component]:
        """Return the old names under which components of one kind, or of all kinds, can still be used."""
        return _sorted(c for c in self._components.values() if kind in (None, c.kind) and c.now and not c.dropped)

    def current_name(self, kind: str, name: str) -> str:
        """Return the present name of a component; the first use of an old name prints a warning on stderr."""
        component = self._named(kind, name)
        if component is None or component.now is None or component.dropped:
            return name
        if (kind, name) not in self._warned:
            self._warned.add((kind, name))
            _warn(
                f"{kind} '{name}' is now called '{component.now}'. Write that: the old name goes with version "
                f"{component.until} of {component.distribution}."
            )
        return f"{name.rpartition('/')[0]}/{component.now}".removeprefix("/")

    def are_rivals(self, kind: str, name: str) -> bool:
        """Return True if several distributions bring a component of this kind and name."""
        return (kind, name) in self._collisions

    def component(self, kind: str, name: str) -> Component:
        """Return the component of this kind and name, or old name, or "distribution/name". Raises PluginError."""
        names = [component.address for component in self.components(kind)]
        component = self._named(kind, self.current_name(kind, name))
        if component is not None and component.now is None:
            return component
        if component is not None:
            raise PluginError(
                f"There is no {kind} '{name}': since version {component.until} of {component.distribution} it is "
                f"called '{component.now}'. Write that."
            )
        if (kind, name) in self._collisions:
            raise PluginError(self._collisions[kind, name])
        broken = "; ".join(f"{plugin.origin}: {plugin.error}" for plugin in self.plugins if plugin.error)
        note = f" It may belong to what is broken: {broken}." if broken else ""
        home = name.rpartition("/")[0]
        if home and canonical(home) not in {canonical(plugin.distribution) for plugin in self.plugins}:
            note = f" The distribution {shortened(home)} is not installed.{note}"
        raise PluginError(
            f"There is no {kind} '{shortened(name)}'.{suggestion(name, names)}{note} To add one: "
            f"{KINDS[kind].page}; for one in a file, `textseg run` has --code FILE."
        )

    def _named(self, kind: str, name: str) -> Component | None:
        """Return the component of this name, or of the name behind that of its distribution."""
        home, _, short = name.rpartition("/")
        if not home:
            return self._components.get((kind, name))
        component = self._components.get((kind, f"{canonical(home)}/{short}")) or self._components.get((kind, short))
        return component if component and canonical(component.distribution) == canonical(home) else None

    def check(self, kind: str, name: str, settings: Mapping[str, Any], at: str) -> list[str]:
        """Return a line for each mistake in the settings of a component at the key `at`. Raises PluginError."""
        _, mistakes = self.component(kind, name).validated(settings)
        return [f"{at}.{dotted(path)}: {message}" for path, message in mistakes]

    def build(self, kind: str, name: str, *wired: Any, settings: Mapping[str, Any]) -> Any:
        """Return the object that a component builds. Raises RecipeError (settings) or PluginError (anything else)."""
        component = self.component(kind, name)
        if lacks := component.lacks:
            raise RecipeError(f"{kind} '{name}' {lacks}")
        values = component.valid(settings)
        if "torch" in sys.modules:
            usable_torchvision()  # before the builder imports what imports it
        try:
            return component.load()(*wired, **values)
        except TextsegError:
            raise
        except BaseException as error:
            if is_interruption(error):
                raise
            given = ", ".join(f"{key}={value!r}" for key, value in values.items()) or "its defaults"
            raise PluginError(
                f"{kind} '{name}' of {component.origin} can't be built with {given}: {cause(error)}"
                f"{component.line_of(error)}."
            ) from error


def _sorted(components: Iterable[Component]) -> list[Component]:
    return sorted(components, key=lambda component: (list(KINDS).index(component.kind), component.name))


def _warn(message: str) -> None:
    print(f"Warning: {message}", file=sys.stderr)


def _all_of(kind: type[T], answer: Any) -> list[T]:
    """Return what a hook gives, all of one type; raises TypeError for anything else."""
    items = list(answer)
    if wrong := [item for item in items if not isinstance(item, kind)]:
        raise TypeError(f"it gives {wrong[0]!r}, which is no {kind.__name__}")
    return items


def _checked_folder(answer: Any) -> Path:
    folder = Path(answer)
    if not folder.is_dir():
        raise TypeError(f"it gives '{answer}', which is no folder")
    return folder


def _choices(components: Sequence[Component]) -> list[Component]:
    """Return the rivals that the name of a distribution tells apart."""
    homes = [canonical(component.distribution) for component in components]
    return [replace(c, rival=True) for c, home in zip(components, homes, strict=True) if homes.count(home) == 1]


def collision(components: Sequence[Component]) -> str:
    """Return the message about components that share a kind and a name."""
    first, *_ = components
    choices = [f"'use: {component.address}'" for component in _choices(components)]
    remedy = f"Write {' or '.join(choices)}, or uninstall all but one of them" if choices else "Uninstall one of them"
    return (
        f"{'Two' if len(components) == 2 else len(components)} plug-ins bring the {first.kind} '{first.name}': "
        f"{' and '.join(c.origin for c in components)}. {remedy}."
    )


def discover(entry_points: Sequence[EntryPoint]) -> Registry:
    """Return the registry of these plug-ins; the error of a broken one is stored, and the others are used."""
    hooks = hook_caller()
    plugins: list[Plugin] = []
    components: list[Component] = []
    for entry_point in sorted(entry_points, key=lambda entry_point: entry_point.name):
        plugin = plugin_of(entry_point)
        twins = [each for each in entry_points if each.module == entry_point.module and each is not entry_point]
        try:
            if twins:
                raise PluginError(
                    f"another one has the same module {entry_point.module}, "
                    f"{' and '.join(plugin_of(twin).origin for twin in twins)}; uninstall one of them"
                )
            components += register(hooks, entry_point, plugin)
        except BaseException as error:
            if is_interruption(error):
                raise
            plugin = replace(plugin, error=reason_of(error))
        plugins.append(plugin)
    return Registry(plugins, components, hooks)


def reason_of(error: BaseException) -> str:
    """Return the reason why a plug-in is broken, in one line."""
    return str(error).rstrip(".") if isinstance(error, PluginError) else cause(error)


def plugin_of(entry_point: EntryPoint) -> Plugin:
    """Return the plug-in of an entry point, with its distribution."""
    distribution = entry_point.dist
    if distribution is None:
        return Plugin(entry_point.name, "unknown distribution", "unknown version", package=entry_point.module)
    metadata = distribution.metadata  # parsed each time that it is asked for
    name, version = metadata["Name"], metadata["Version"]
    return Plugin(entry_point.name, name, version, api=asked_api(distribution), package=entry_point.module)


def hook_caller() -> pluggy.PluginManager:
    """Return a plug-in manager that knows the hooks of textseg, and no plug-in yet."""
    manager = pluggy.PluginManager("textseg")
    manager.add_hookspecs(hookspecs)
    return manager


def register(hooks: pluggy.PluginManager, entry_point: EntryPoint, plugin: Plugin) -> list[Component]:
    """Import a plug-in, give its hooks to `hooks`, and return its components. Raises whatever is wrong with it."""
    if why := misfit(plugin, __version__):
        raise PluginError(why)
    return _register_module(hooks, entry_point.load(), plugin, entry_point.value)


def hooks_of(registry: Registry, module: ModuleType, plugin: Plugin) -> list[Component]:
    """Add the hooks of a file to a registry, in place of its earlier ones, and return the components of the file."""
    if registry.hooks is None:
        registry.hooks = hook_caller()
    if registry.hooks.has_plugin(plugin.origin):
        registry.hooks.unregister(name=plugin.origin)
    return _register_module(registry.hooks, module, plugin, plugin.name)


def _register_module(hooks: pluggy.PluginManager, module: ModuleType, plugin: Plugin, origin: str) -> list[Component]:
    others = hooks.get_plugins()
    hooks.register(module, plugin.origin)
    try:
        marked = hooks.get_hookcallers(module) or []
        # pluggy takes a function of any name that is marked, and calls none that it doesn't know
        known = [name for name in vars(hookspecs) if name.startswith("textseg_")]
        if bare := [name for name in known if _lacks_mark(vars(module).get(name))]:
            raise TypeError(f"{origin} has a function '{bare[0]}' without @hookimpl above it, so nothing would call it")
        if unknown := [hook.name for hook in marked if hook.name not in known]:
            raise TypeError(f"{origin} marks '{unknown[0]}' with @hookimpl.{suggestion(unknown[0], known)}")
        if not marked:
            raise TypeError(f"{origin} has no function marked with @hookimpl, such as 'textseg_register'")
        collected = Register(plugin)
        hooks.subset_hook_caller("textseg_register", others)(register=collected)
    except BaseException:
        hooks.unregister(module)
        raise
    return collected.components


def _lacks_mark(function: object) -> bool:
    return isinstance(function, FunctionType) and not hasattr(function, hookspecs.MARK)


@functools.cache
def installed_registry() -> Registry:
    """Return the registry of all installed plug-ins. Raises PluginError for faults if TEXTSEG_STRICT_PLUGINS is 1."""
    registry = discover(list(importlib.metadata.entry_points(group="textseg")))
    if registry.faults and os.environ.get("TEXTSEG_STRICT_PLUGINS") == "1":
        raise PluginError(
            "\n".join(registry.faults) + "\nMend or uninstall what is broken, or unset TEXTSEG_STRICT_PLUGINS."
        )
    return registry


def warn_of_faults() -> None:
    """Print a line on stderr for each installed plug-in or component that is left out."""
    for fault in installed_registry().faults:
        _warn(fault)
