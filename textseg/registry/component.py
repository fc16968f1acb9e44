"""Components: builders with a kind and a name. The signature of a builder defines the settings of a recipe."""

from __future__ import annotations

import importlib
import inspect
import json
import operator
import os
import re
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from textseg.errors import PluginError, RecipeError, suggestion
from textseg.registry.kinds import KINDS
from textseg.registry.requirements import unmet
from textseg.registry.validation import Mistake, dotted, explain
from textseg.system.commands import pip_install, shell
from textseg.system.interruptions import is_interruption
from textseg.system.torch_builds import usable_torchvision

if TYPE_CHECKING:
    from textseg.system.fetching import Progress


LOCAL = "not installed"  # in place of the version of code that is not installed
SESSION = "Python session"  # in place of the name of a plug-in


@dataclass(frozen=True)
class Plugin:
    """An entry point of the group "textseg"; `error` is the reason why it is broken, or None.

    `api` is the API version that its distribution requires, or None if it names none.
    """

    name: str
    distribution: str
    version: str
    error: str | None = None
    api: int | None = None
    package: str = ""  # the module of its entry point

    @property
    def origin(self) -> str:
        """The plug-in with its distribution and version, or the code that is not installed, for messages."""
        if self.version == LOCAL:
            return f"local code '{self.name}'"
        return f"plug-in '{self.name}' ({self.distribution} {self.version})"


@dataclass(frozen=True)
class Component:
    """A builder with a kind and a name; `target` is the builder, or its location as "module:name".

    For an old name of a component, `now` is the new name, and `until` is the version that removes the old one.
    """

    kind: str
    name: str
    target: object
    plugin: str
    distribution: str
    version: str
    now: str | None = None
    until: str | None = None
    package: str = ""  # the module of its plug-in
    source: Mapping[str, str] | None = None  # the hashes of code that is not installed; else `source_of` finds them
    needs: str | None = None  # a requirement beyond those of its distribution, such as "textseg[wandb]"
    rival: bool = False  # True if another distribution brings a component of the same kind and name

    @property
    def origin(self) -> str:
        """The plug-in with its distribution and version, for messages."""
        return Plugin(self.plugin, self.distribution, self.version).origin

    def refused(self, expected: str, seen: object) -> PluginError:
        """Return the error for something from this component that the contract of its kind does not allow."""
        return PluginError(
            f"{self.kind} '{self.name}' of {self.origin} breaks the contract of its kind: expected {expected}, seen "
            f"{seen}. {self.check}"
        )

    def failed(self, error: BaseException, when: str) -> PluginError:
        """Return the error for an exception inside the component, with the line of its package that raised it."""
        reason = f"{cause(error)}{self.line_of(error)}"
        return PluginError(f"{self.kind} '{self.name}' of {self.origin} failed {when}: {reason}. {self.check}")

    def line_of(self, error: BaseException) -> str:
        """Return the last line of the component's package in a traceback as " (file, line 7)", or ""."""
        module = sys.modules.get(getattr(self.load(), "__module__", None) or "")
        return line_in(getattr(module, "__file__", None) or "", error)

    @property
    def defined(self) -> str:
        """The first line of the builder as " (file, line 7)", or "" where it has no source file."""
        try:
            return f" ({inspect.getfile(self.load())}, line {inspect.getsourcelines(self.load())[1]})"
        except (PluginError, TypeError, OSError):
            return ""

    @property
    def check(self) -> str:
        """A sentence with the command, or the function for code that is not installed, that checks it further."""
        if self.source is not None:
            return f"Check it further, without data, in Python: textseg.testing.check_{self.kind}"
        return f"Check it further, without data: {shell('textseg', 'plugins', 'doctor', self.plugin, '--check')}"

    @property
    def address(self) -> str:
        """The name by which recipes choose the component; with its distribution, "textseg-film/film", for a rival."""
        return f"{canonical(self.distribution)}/{self.name}" if self.rival else self.name

    @property
    def dropped(self) -> bool:
        """True if the installed version no longer accepts this old name."""
        return self.until is not None and _numbers(self.version) >= _numbers(self.until)

    @property
    def lacks(self) -> str | None:
        """The packages that this component needs and that are not installed, with the command for them; or None."""
        if self.needs is None or not (packages := unmet(self.needs)):
            return None
        return f"needs {', '.join(packages)}, which is not installed. Install it with: {pip_install(self.needs)}"

    def load(self) -> Any:
        """Return the builder, imported now if `target` is a string. Raises PluginError."""
        if not isinstance(self.target, str):
            return self.target
        module, _, attribute = self.target.partition(":")
        try:
            return operator.attrgetter(attribute)(_imported(module))
        except BaseException as error:
            if is_interruption(error):
                raise
            raise self._broken(f"can't be imported from '{self.target}': {cause(error)}") from error

    def settings(self, given: Mapping[str, Any] = MappingProxyType({})) -> Mapping[str, inspect.Parameter]:
        """Return the keyword-only parameters of the builder with evaluated type hints. Raises PluginError.

        A builder with `**settings` has further settings, which depend on those that are `given`: its attribute
        `further_settings` is a function from these to parameters. It raises RecipeError for a wrong value.
        """
        builder = self.load()
        try:
            parameters = inspect.signature(builder, eval_str=True).parameters.values()
        except NameError as error:
            remedy = "import that name at run time, not under TYPE_CHECKING"
            raise self._broken(f"{error}, so the type hints of its builder can't be read; {remedy}") from error
        except Exception as error:
            raise self._broken(f"the signature of its builder can't be read: {cause(error)}") from error
        keyword = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
        positional = tuple(str(p) if p.kind is p.VAR_POSITIONAL else p.name for p in parameters if _positional(p))
        wired = KINDS[self.kind].parameters
        if positional != wired:
            raise self._broken(
                f"its builder takes the positional parameters ({', '.join(positional)}); a builder of this kind takes "
                f"({', '.join(wired)}), and every setting stands after a '*'"
            )
        further = getattr(builder, "further_settings", None)
        return keyword if further is None else {**keyword, **further(given)}

    @property
    def description(self) -> str:
        """The first line of the docstring of the builder. Raises PluginError."""
        return (getattr(self.load(), "__doc__", None) or "").strip().partition("\n")[0].strip()

    def fetch(self, settings: Mapping[str, Any], progress: Progress) -> str | None:
        """Download what these settings need, and return a line about it; None for a builder without `fetch`.

        Raises RecipeError for wrong settings, and what the builder's own `fetch` raises.
        """
        bring = getattr(self.load(), "fetch", None)
        if bring is None or self.kind == "dataset":  # data sets, which know where their files go, are fetched apart
            return None
        outcome: str = bring(progress=progress, **self.valid(settings))
        return outcome

    def validated(self, settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[Mistake]]:
        """Return the settings in the types of the hints, and the mistakes in them. Raises PluginError."""
        try:
            parameters = self.settings(settings)
        except RecipeError as error:
            return {}, [((), str(error))]
        values: dict[str, Any] = {}
        mistakes: list[Mistake] = []
        for key, value in settings.items():
            if key in parameters:
                values[key], wrong = self._validated(parameters[key], value)
                mistakes += wrong
            else:
                possible = suggestion(str(key), parameters) if parameters else f" {self.kind} '{self.name}' has none."
                mistakes.append(((str(key),), f"unknown setting.{possible}"))
        for key, parameter in parameters.items():
            if key not in settings and parameter.default is parameter.empty:
                mistakes.append(((key,), f"required by {self.kind} '{self.name}' but missing."))
        return values, mistakes

    def valid(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings in the types of the hints. Raises RecipeError for mistakes in them, and PluginError."""
        values, mistakes = self.validated(settings)
        if mistakes:
            lines = [f"{self.kind} '{self.name}': {dotted(path)}: {message}" for path, message in mistakes]
            raise RecipeError("\n".join(lines))
        return values

    def complete(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings, completed by the builder's defaults, as JSON types."""
        defaults = {k: p.default for k, p in self.settings(settings).items() if p.default is not p.empty}
        whole: dict[str, Any] = json.loads(json.dumps({**defaults, **settings}, default=str))
        return whole

    def _validated(self, parameter: inspect.Parameter, value: Any) -> tuple[Any, list[Mistake]]:
        from pydantic import TypeAdapter, ValidationError
        from pydantic.errors import PydanticUserError

        hint = Any if parameter.annotation is parameter.empty else parameter.annotation
        try:
            adapter: TypeAdapter[Any] = TypeAdapter(hint)
        except (PydanticUserError, TypeError) as error:
            raise self._broken(f"the setting '{parameter.name}' has a type that no recipe can write: {hint}") from error
        try:
            text = json.dumps(value, default=os.fspath)
        except (TypeError, ValueError):
            text = None  # given from Python, not from a recipe
        try:
            if text is None:
                return adapter.validate_python(value, strict=True), []
            # Strict JSON is what a text file can mean: a list may become a tuple, an int a float, a string a path,
            # but neither "3" nor true an int.
            return adapter.validate_json(text, strict=True), []
        except ValidationError as error:
            return None, [((parameter.name, *path), message) for path, message in explain(error)]

    def _broken(self, what: str) -> PluginError:
        return PluginError(f"{self.kind} '{self.name}' of {self.origin} is broken: {what}.")


def line_in(file: str, error: BaseException) -> str:
    """Return the last line of a traceback in the folder of a file as " (file, line 7)", or ""."""
    folder = Path(file).parent
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if folder in Path(frame.filename).parents]
    return f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""


def _imported(module: str) -> Any:
    """Return a module; a torchvision that does not fit torch, which transformers and timm import, is no obstacle."""
    try:
        return importlib.import_module(module)
    except Exception:
        if "torch" not in sys.modules or usable_torchvision() is None:
            raise
        return importlib.import_module(module)


def canonical(distribution: str) -> str:
    """Return the name of a distribution in the one spelling that package indexes use."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _numbers(version: str) -> list[int]:
    """Return the numbers of a release: "1.10.0rc1" -> [1, 10]; trailing zeros are dropped."""
    numbers = [int(part) for part in re.match(r"[\d.]*", version)[0].split(".") if part]  # type: ignore[index]
    while numbers and not numbers[-1]:
        numbers.pop()
    return numbers


def _positional(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD, parameter.VAR_POSITIONAL)


def cause(error: BaseException) -> str:
    """Return an exception as one line that can be printed."""
    try:
        text = str(error)
    except Exception:  # of a class whose `__str__` is broken
        text = ""
    line = f"{type(error).__name__}: {' '.join(text.split())}".rstrip(". ").removesuffix(":")
    return line.encode(errors="backslashreplace").decode()
