"""Checks, the components that they examine, and the error for a broken promise."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, cast

from textseg.contracts import Atlas, Features
from textseg.errors import PluginError, TextsegError, suggestion
from textseg.registry.component import Component, cause
from textseg.registry.discovery import Registry, installed_registry
from textseg.registry.kinds import KINDS, kind_of
from textseg.testing.promises import BrokenPromiseError, promise

PAGE = "docs/reference/conformance.md"
IMAGE_SIZE = (64, 96)
PYRAMID = Features((8, 16, 24), (1, 2, 4))


class ConformanceError(AssertionError):
    """A component breaks a promise of its kind: what was expected, what came, which page explains it."""


@dataclass(frozen=True)
class Subject:
    """A component to check, with the settings and the task that it is built for."""

    component: Component
    settings: Mapping[str, Any] = field(default_factory=dict)
    image_size: tuple[int, int] = IMAGE_SIZE
    features: Features = PYRAMID
    atlas: Atlas | None = None
    shared: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)  # costly, and the same for checks

    @classmethod
    def of(
        cls,
        kind: str,
        component: object,
        settings: Mapping[str, Any] | None = None,
        *,
        image_size: tuple[int, int] = IMAGE_SIZE,
        features: Features = PYRAMID,
        atlas: Atlas | str | None = None,
    ) -> Subject:
        """Make a subject from a builder or the name of an installed component. Raises PluginError."""
        if isinstance(component, str):
            component = installed_registry().component(kind, component)
        elif not isinstance(component, Component):
            name = str(getattr(component, "__name__", type(component).__name__))
            component = Component(kind, name, component, "none", str(getattr(component, "__module__", "")), "installed")
        if isinstance(atlas, str):
            atlas = cast(Atlas, installed_registry().build("atlas", atlas, settings={}))
        return cls(component, settings or {}, image_size, features, atlas)

    def build(self, *wired: Any) -> Any:
        """Build the object. Raises RecipeError for wrong settings, PluginError for a builder that fails."""
        kind, name = self.component.kind, self.component.name
        return Registry((), [self.component]).build(kind, name, *wired, settings=self.settings)

    def __str__(self) -> str:
        return f"{self.component.kind} '{self.component.name}'"


@dataclass(frozen=True)
class Check:
    """A promise of some kinds of component: `run(subject)` raises if it is broken. `name` is its heading."""

    name: str
    run: Callable[[Subject], None]
    kinds: tuple[str, ...]
    fundamental: bool = False  # if it is broken, further checks would repeat its message
    tolerant: bool = False  # leaves what fails for another reason to the others

    def __call__(self, subject: Subject) -> None:
        """Raises ConformanceError."""
        __tracebackhide__ = True
        from textseg.testing.surroundings import restored

        try:
            with restored():
                self.run(subject)
        except BrokenPromiseError as broken:
            raise self._error(subject, broken.expected, broken.came, broken.__cause__) from broken.__cause__
        except Exception as error:
            if self.tolerant:
                return
            came = str(error).rstrip(".") if isinstance(error, TextsegError) else cause(error)
            raise self._error(subject, "no error", came, error) from error

    def _error(self, subject: Subject, expected: str, came: str, cause: BaseException | None) -> ConformanceError:
        component = subject.component
        line = (component.line_of(cause) if cause else "") or component.defined
        return ConformanceError(
            f"{subject} breaks '{self.name}': expected {expected}, came {came}{line}. See {PAGE}#{self.name}."
        )


def check(
    name: str, *kinds: str, fundamental: bool = False, tolerant: bool = False
) -> Callable[[Callable[[Subject], None]], Check]:
    """Return a decorator that makes a function a check of these kinds."""
    return lambda run: Check(name, run, kinds, fundamental, tolerant)


def checks(kind: str) -> list[Check]:
    """Return the checks of a kind of component, in order. Raises PluginError for an unknown kind."""
    own: Iterable[Check] = importlib.import_module(kind_of(kind).checks).CHECKS
    return [_signature, *(each for each in own if kind in each.kinds)]


def examine(*subjects: Subject) -> None:
    """Run every check of some subjects. Raises ConformanceError with a line for each broken promise."""
    __tracebackhide__ = True
    errors: list[ConformanceError] = []
    for subject in subjects:
        for each in checks(subject.component.kind):
            try:
                each(subject)
            except ConformanceError as error:
                errors.append(error)
                if each.fundamental:
                    break
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ConformanceError("\n".join(map(str, errors))) from errors[0].__cause__


def subjects_of(names: Iterable[str], settings: Mapping[tuple[str, str], Mapping[str, Any] | None]) -> list[Subject]:
    """Return every component of some plug-ins, each named by entry point, distribution or package.

    Raises PluginError for a plug-in that is missing or broken, and for settings of a component that none of them has.
    """
    registry = installed_registry()
    components: list[Component] = []
    for name in names:
        same = [p for p in registry.plugins if name == p.name or _package(name) == _package(p.distribution)]
        if not same:
            known = {p.name for p in registry.plugins} | {p.distribution for p in registry.plugins}
            raise PluginError(f"There is no plug-in '{name}'.{suggestion(name, known)}")
        for plugin in same:
            if plugin.error:
                raise PluginError(f"{plugin.origin} is broken: {plugin.error}.")
            home = plugin.name, plugin.distribution
            components += [part for part in registry.components() if (part.plugin, part.distribution) == home]
    here = {(component.kind, component.name): component for component in components}
    if unknown := [key for key in settings if key not in here]:
        raise PluginError(
            f"Settings are given of {unknown[0][0]} '{unknown[0][1]}', which {', '.join(names)} does not bring."
        )
    return subjects_among(components, settings)


def subjects_among(
    components: Sequence[Component], settings: Mapping[tuple[str, str], Mapping[str, Any] | None]
) -> list[Subject]:
    """Return the components of one plug-in to check, its prompt generators with an atlas of the same plug-in."""
    atlases = [
        Subject.of("atlas", each, settings.get(("atlas", each.name))) for each in components if each.kind == "atlas"
    ]
    subjects = []
    for component in components:
        given = settings.get((component.kind, component.name), {})
        if given is None:
            continue
        subject = Subject.of(component.kind, component, given)
        if component.kind == "prompt_generator":
            subject = replace(subject, atlas=_fitting_atlas(subject, atlases))
        subjects.append(subject)
    return subjects


def _fitting_atlas(generator: Subject, atlases: Sequence[Subject]) -> Atlas | None:
    """Return the first atlas that a generator can name, or can be built for, or the first one; None without any."""
    from textseg.text.visibility import template_visibility

    fits: dict[int, Atlas] = {}  # by the number of steps that an atlas has passed
    for subject in atlases:
        with suppress(Exception, SystemExit):  # the checks of both say what is wrong with them
            atlas: Atlas = subject.build()
            fits.setdefault(0, atlas)
            prompts = generator.build(atlas)
            fits.setdefault(1, atlas)
            prompts(template_visibility(atlas))
            fits.setdefault(2, atlas)
    return fits[max(fits)] if fits else None


def _package(name: str) -> str:
    return name.lower().replace("-", "_").replace(".", "_")


@check("signature", *KINDS, fundamental=True)
def _signature(subject: Subject) -> None:
    component = subject.component
    parameters = component.settings()
    promise(component.description, "a docstring, whose first line lists it", "none")
    defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    for name, parameter in parameters.items():
        typed = parameter.annotation is not parameter.empty
        promise(typed, f"a type hint for the setting '{name}', by which recipes are checked", "none")
    needed = {name: value for name, value in subject.settings.items() if name not in defaults}
    for name, value in defaults.items():
        _, mistakes = component.validated({**needed, name: value})
        wrong = [message for path, message in mistakes if path[0] == name]
        promise(not wrong, f"a default of '{name}' that its type hint allows", f"{value!r}: {'; '.join(wrong)}")
    missing = [name for name in parameters if name not in defaults and name not in subject.settings]
    needs = f"settings to check it with ({', '.join(missing)} has no default)"
    promise(not missing, needs, "none: give them as `settings`, or leave the component out")
    if (attribute := getattr(component.load(), "fetch", None)) and component.kind != "dataset":
        keyword = inspect.signature(attribute).parameters
        promise("progress" in keyword, "fetch(*, progress, ...)", f"fetch({', '.join(keyword)})")
