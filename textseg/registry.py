"""Which plug-ins are installed, and which components they bring."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pluggy

from textseg import hookspecs
from textseg.component import KINDS, Component, Plugin, cause
from textseg.errors import PluginError, RecipeError, TextsegError, suggestion
from textseg.explanation import dotted

__all__ = ["KINDS", "Component", "Plugin", "Register", "Registry", "cause", "discover", "installed_registry"]


class Register:
    """Collects the components of one plug-in; a builder is an object or "module:name"."""

    def __init__(self, plugin: Plugin) -> None:
        self.plugin = plugin
        self.components: list[Component] = []

    def atlas(self, name: str, builder: object) -> None:
        self._add("atlas", name, builder)

    def dataset(self, name: str, builder: object) -> None:
        self._add("dataset", name, builder)

    def prompt_generator(self, name: str, builder: object) -> None:
        self._add("prompt_generator", name, builder)

    def text_encoder(self, name: str, builder: object) -> None:
        self._add("text_encoder", name, builder)

    def vision_encoder(self, name: str, builder: object) -> None:
        self._add("vision_encoder", name, builder)

    def fusion(self, name: str, builder: object) -> None:
        self._add("fusion", name, builder)

    def auxiliary_loss(self, name: str, builder: object) -> None:
        self._add("auxiliary_loss", name, builder)

    def network(self, name: str, builder: object) -> None:
        self._add("network", name, builder)

    def _add(self, kind: str, name: str, builder: object) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):  # it becomes the name of a module and a column, too
            raise ValueError(f"{kind} '{name}': a name is made of letters without accents, digits, '_' and '-'")
        if isinstance(builder, str):
            if not all(part.strip() for part in builder.partition(":")):
                raise ValueError(f"{kind} '{name}': the builder '{builder}' must be written \"module:name\"")
        elif not callable(builder):
            raise TypeError(f"{kind} '{name}': a builder is callable or a string \"module:name\", not {builder!r}")
        if any((other.kind, other.name) == (kind, name) for other in self.components):
            raise ValueError(f"{kind} '{name}' is registered twice")
        plugin = self.plugin
        self.components.append(Component(kind, name, builder, plugin.name, plugin.distribution, plugin.version))


class Registry:
    """The plug-ins and components at hand. Raises PluginError where two share a name."""

    def __init__(self, plugins: Iterable[Plugin] = (), components: Iterable[Component] = ()) -> None:
        self.plugins: list[Plugin] = sorted(plugins, key=lambda plugin: plugin.name)
        self._components: dict[tuple[str, str], Component] = {}
        for component in components:
            first = self._components.setdefault((component.kind, component.name), component)
            if first is not component:
                raise PluginError(
                    f"Two plug-ins bring the {component.kind} '{component.name}': {first.origin} and "
                    f"{component.origin}. Uninstall one of them."
                )

    def components(self, kind: str | None = None) -> list[Component]:
        """The components of one kind, or all of them, sorted by kind and name. Raises PluginError."""
        if kind is not None and kind not in KINDS:
            raise PluginError(f"There is no kind of component '{kind}'.{suggestion(kind, KINDS)}")
        order = list(KINDS)
        found = [component for component in self._components.values() if kind in (None, component.kind)]
        return sorted(found, key=lambda component: (order.index(component.kind), component.name))

    def component(self, kind: str, name: str) -> Component:
        """The component of this kind and name. Raises PluginError."""
        names = [component.name for component in self.components(kind)]
        if name in names:
            return self._components[kind, name]
        broken = "; ".join(f"{plugin.origin}: {plugin.error}" for plugin in self.plugins if plugin.error)
        note = f" It may belong to what is broken: {broken}." if broken else ""
        raise PluginError(f"There is no {kind} '{name}'.{suggestion(name, names)}{note}")

    def check(self, kind: str, name: str, settings: Mapping[str, Any], at: str) -> list[str]:
        """One line for each mistake in the settings of a component that stands at `at`. Raises PluginError."""
        _, mistakes = self.component(kind, name).validated(settings)
        return [f"{at}.{dotted(path)}: {message}" for path, message in mistakes]

    def build(self, kind: str, name: str, *wired: Any, settings: Mapping[str, Any]) -> Any:
        """The object that a component builds. Raises RecipeError (settings) or PluginError (anything else)."""
        component = self.component(kind, name)
        values, mistakes = component.validated(settings)
        if mistakes:
            raise RecipeError("\n".join(f"{kind} '{name}': {dotted(path)}: {message}" for path, message in mistakes))
        try:
            return component.load()(*wired, **values)
        except TextsegError:
            raise
        except Exception as error:
            given = ", ".join(f"{key}={value!r}" for key, value in values.items()) or "its defaults"
            raise PluginError(
                f"{kind} '{name}' of {component.origin} can't be built with {given}: {cause(error)}."
            ) from error


def discover(entry_points: Sequence[importlib.metadata.EntryPoint]) -> Registry:
    """The registry of these plug-ins; a broken one is noted and the others go on. Raises PluginError."""
    manager = pluggy.PluginManager("textseg")
    manager.add_hookspecs(hookspecs)
    plugins: dict[str, Plugin] = {}
    components: list[Component] = []
    for entry_point in sorted(entry_points, key=lambda entry_point: entry_point.name):
        distribution = entry_point.dist
        plugin = Plugin(
            entry_point.name,
            distribution.name if distribution else "unknown distribution",
            distribution.version if distribution else "unknown version",
        )
        if plugin.name in plugins:
            raise PluginError(
                f"Two plug-ins are called '{plugin.name}': {plugins[plugin.name].origin} and {plugin.origin}. "
                "Uninstall one of them."
            )
        try:
            register = _registered(manager, entry_point, plugin)
        except (Exception, SystemExit) as error:
            plugin = Plugin(plugin.name, plugin.distribution, plugin.version, cause(error))
            if os.environ.get("TEXTSEG_STRICT_PLUGINS") == "1":
                raise PluginError(
                    f"{plugin.origin} is broken: {plugin.error}. Mend or uninstall it, or unset TEXTSEG_STRICT_PLUGINS."
                ) from error
        else:
            components += register.components
        plugins[plugin.name] = plugin
    return Registry(plugins.values(), components)


def _registered(manager: pluggy.PluginManager, entry_point: importlib.metadata.EntryPoint, plugin: Plugin) -> Register:
    module = entry_point.load()
    others = manager.get_plugins()
    manager.register(module, plugin.name)
    # pluggy takes a function of any name that is marked, and calls none that it doesn't know
    if "textseg_register" not in [hook.name for hook in manager.get_hookcallers(module) or ()]:
        raise TypeError(f"{entry_point.value} has no function 'textseg_register' marked with @hookimpl")
    register = Register(plugin)
    manager.subset_hook_caller("textseg_register", others)(register=register)
    return register


@functools.cache
def installed_registry() -> Registry:
    """The registry of every plug-in that is installed in this environment. Raises PluginError."""
    return discover(list(importlib.metadata.entry_points(group="textseg")))
