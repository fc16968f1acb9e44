"""Read a recipe file with `--set` values into a typed recipe, or report all mistakes in them at once.

The text is read first: values with their line numbers, `--set` values, environment variables. Then the schema and the
installed components check the values.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from textseg.errors import DataError, PluginError, RecipeError, shortened
from textseg.recipe.listing import recipe_file
from textseg.recipe.received import CONSENT, is_received, load_local_code, origin_of, refusal
from textseg.recipe.schema import ComponentSpec, EvaluationSettings, Recipe, written_out
from textseg.registry.component import LOCAL, SESSION, canonical
from textseg.registry.discovery import Registry, installed_registry
from textseg.registry.kinds import KINDS, OF_NUMBERS, TO_EVALUATE, TO_PREDICT, Kind
from textseg.registry.validation import KeyPath, Mistake, dotted, explain
from textseg.system import yaml_text
from textseg.system.commands import pip_install
from textseg.system.user_files import read_text

TEXT = Path("<text>")  # in place of the file in messages
# Keys of `training` that are settings of an optimizer or a schedule which has a setting of that name.
TRAINING_KEYS = {"optimizer": ("weight_decay", "momentum"), "schedule": ("final_learning_rate",)}


def load_recipe(
    recipe: Path | str,
    overrides: Sequence[str] = (),
    registry: Registry | None = None,
    *,
    trust_code: bool = False,
    builds: Container[str] = KINDS,
) -> Recipe:
    """Read a recipe, and apply `--set` values ("training.epochs=5").

    `recipe` is a file, the name of an installed recipe, or the text of a recipe, which has several lines. A file must
    have the name of its recipe, or be the copy in a run folder, which is always called recipe.yaml. Raises RecipeError
    with a line for each mistake, with the line number in the file, or with the `--set` value.

    The code of models that such a copy names is refused without `trust_code`; see `textseg.recipe.received`. `builds`
    are the kinds of components that the caller builds, all by default. Components that only a training or an evaluation
    needs may be missing if the caller does not build them.
    """
    registry = installed_registry() if registry is None else registry
    path = TEXT if is_text(recipe) else recipe_file(Path(recipe), registry)
    data, places = read(path) if path is not TEXT else parse(str(recipe), TEXT)
    left_out = load_local_code(path, registry, builds, trust_code=trust_code) if is_received(path) else set()
    unusable: list[str] = []
    for override in overrides:
        try:
            places.overrides.append((put(data, override), override))
        except ValueError as error:
            unusable.append(f"--set {shortened(override)}: {error}")
    mistakes = resolve(data)
    if data.get("segmentation_loss") is not None:
        data["segmentation_loss"] = written_out(data["segmentation_loss"])
    unresolved = {at for at, _ in mistakes}
    for at, kind, spec in list(_components(data)):  # so that a run that was started under an old name can continue
        name = registry.current_name(kind, spec["use"])
        if registry.are_rivals(kind, name) and (origin := origin_of(path, kind, name)):
            name = f"{canonical(origin[0])}/{name}"
        if isinstance(at_path(data, at), str):
            at_path(data, at[:-1])[at[-1]] = name
        else:
            spec["use"] = name

    _hand_down_tolerance(data, registry)
    mistakes += [mistake for mistake in _cross_mistakes(data, path.stem) if mistake[0] not in unresolved]
    resolved: Recipe | None = None
    try:
        # Strict JSON allows what a text file can mean: a list may become a tuple, but "3" does not become a number.
        resolved = Recipe.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        mistakes += [mistake for mistake in explain(error, _keys) if mistake[0] not in unresolved]
    # A model is used without what only its training needed.
    needed = [kind for kind in KINDS if kind in builds or kind in TO_PREDICT]
    inside = _mistakes_inside(data, needed, registry, path, left_out)
    mistakes += [mistake for mistake in inside if mistake[0] not in unresolved]
    for at, kind, spec in _components(data) if is_received(path) else ():
        if kind in builds and (reason := refusal(spec, path, trust_code=trust_code)):
            mistakes.append(((*at, CONSENT), reason))
    if mistakes or unusable or resolved is None:
        raise RecipeError("\n".join([*places.report(mistakes), *unusable]))
    if resolved.split.file is not None:
        file = (path.parent / resolved.split.file).resolve()
        resolved = resolved.model_copy(update={"split": resolved.split.model_copy(update={"file": file})})
    return resolved


def is_text(recipe: Path | str) -> bool:
    """Return True for the text of a recipe, which has several lines, in place of its file or its name."""
    return isinstance(recipe, str) and "\n" in recipe


def load_trained_recipe(
    path: Path | str, overrides: Sequence[str] = (), *, trust_code: bool = False, builds: Container[str] = TO_EVALUATE
) -> Recipe:
    """Read the recipe of a finished run; `--set` may say where data and reports are, and how the model is evaluated.

    Raises RecipeError like `load_recipe`, and for other `--set` values: the weights were trained with the recipe.
    """
    for override in overrides:
        if not override.startswith(("dataset.", "evaluation.", "prompts.report")):
            raise RecipeError(
                f"--set {shortened(override)}: the model is trained, so only keys that begin with dataset., "
                "evaluation. or prompts.report can be set, such as dataset.folder=DIR. Train with other values: "
                "textseg run."
            )
    return load_recipe(path, overrides, trust_code=trust_code, builds=builds)


def evaluation_of(metrics: str, registry: Registry | None = None) -> EvaluationSettings:
    """Return the default evaluation with metrics from the command line, such as "dsc,{use: nsd, tolerance: 2}".

    Raises RecipeError with a line for each mistake.
    """
    data: dict[str, Any] = {}
    try:
        put(data, f"evaluation.metrics=[{metrics}]")
    except ValueError as error:
        raise RecipeError(f"--metrics {shortened(metrics)}: {error}") from None
    settings, mistakes = EvaluationSettings(), list[Mistake]()
    try:
        settings = EvaluationSettings.model_validate_json(json.dumps(data["evaluation"]), strict=True)
    except ValidationError as error:
        mistakes += explain(error)
    else:
        mistakes += [
            (at[1:], text) for at, text in _mistakes_inside(data, KINDS, registry or installed_registry(), TEXT)
        ]
    if mistakes:
        raise RecipeError("\n".join(f"--metrics: {dotted(at)}: {message}" for at, message in mistakes))
    return settings


def dump(recipe: Recipe) -> str:
    """Return the recipe as YAML with all defaults; `load_recipe` reads it back."""
    return yaml_text.dump(escaped(recipe.model_dump(mode="json")))


def required_components(recipe: Recipe, kinds: Container[str] = OF_NUMBERS) -> list[tuple[str, ComponentSpec]]:
    """Return the kind and the settings of each component of some kinds that the recipe uses; all but loggers."""
    named = [(kind.name, spec) for kind, _, spec in _named(recipe)]
    return [(kind, spec) for kind, spec in named if kind in kinds and isinstance(spec, ComponentSpec)]


def complete_settings(recipe: Recipe, registry: Registry) -> dict[str, dict[str, Any]]:
    """Return the settings of each component of the recipe, by kind and name, with the defaults of the builders.

    The key of a component that a list has more than once ends with 2, 3, ... from the second time on.
    """
    settings: dict[str, dict[str, Any]] = {}
    times: Counter[str] = Counter()
    for kind, spec in required_components(recipe):
        name = f"{kind} {spec.name}"
        times[name] += 1
        key = name if times[name] == 1 else f"{name} {times[name]}"
        settings[key] = registry.component(kind, spec.use).complete(
            settings_with_training(recipe, kind, spec, registry)
        )
    return settings


def settings_with_training(recipe: Recipe, kind: str, spec: ComponentSpec, registry: Registry) -> dict[str, Any]:
    """Return the settings of a component, with the keys of `training` that an optimizer or a schedule takes as such."""
    shared = {key: getattr(recipe.training, key) for key in TRAINING_KEYS.get(kind, ())}
    known = registry.component(kind, spec.use).settings(spec.settings) if shared else {}
    return {**{key: value for key, value in shared.items() if value is not None and key in known}, **spec.settings}


def _cross_mistakes(data: dict[str, Any], stem: str) -> Iterator[Mistake]:
    name = data.get("name")
    if isinstance(name, str) and stem not in (name, "recipe", TEXT.stem):
        yield ("name",), f"'{shortened(name)}' must be the name of its file: write '{stem}', or rename the file."


def _keys(path: KeyPath) -> list[str]:
    """Return the keys that the schema allows beside the last part of `path`."""
    here: type[BaseModel] | None = Recipe
    for part in path[:-1]:
        if here is not None and isinstance(part, str):
            field = here.model_fields.get(part)
            here = _section(field.annotation) if field else None
    return list(here.model_fields) if here else []


def _section(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((section for part in get_args(annotation) if (section := _section(part))), None)


def _components(data: dict[str, Any]) -> Iterator[tuple[KeyPath, str, dict[str, Any]]]:
    """Yield path, kind and keys of each component whose name can be read, in a recipe that may hold mistakes."""
    for kind, at, node in _named(data):
        spec = {"use": node} if isinstance(node, str) else node
        if isinstance(spec, dict) and isinstance(spec.get("use"), str):
            yield at, kind.name, spec


def _named(recipe: Any) -> Iterator[tuple[Kind, KeyPath, Any]]:
    """Yield the kind, the path and the content of each place in a recipe, typed or as data, that names a component."""
    for kind in KINDS.values():
        for key in kind.keys:
            yield from ((kind, at, node) for at, node in _nodes(recipe, tuple(key.split("."))))


def _nodes(node: Any, key: KeyPath, at: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    if not key:
        yield at, node
    elif key[0] == "*":
        for index, item in enumerate(node if isinstance(node, list | tuple) else ()):
            yield from _nodes(item, key[1:], (*at, index))
    elif key[0] == "{}":
        for name, item in node.items() if isinstance(node, dict) else ():
            yield from _nodes(item, key[1:], (*at, name))
    else:
        part = str(key[0])
        inside = node.get(part) if isinstance(node, dict) else getattr(node, part, None)
        if inside is not None:
            yield from _nodes(inside, key[1:], (*at, part))


def _hand_down_tolerance(data: dict[str, Any], registry: Registry) -> None:
    """Give `evaluation.tolerance` to each metric that has such a setting and no value for it."""
    handed_down = False
    for at, kind, spec in list(_components(data)):
        if kind != "metric" or "tolerance" not in data["evaluation"]:
            continue
        try:
            has_tolerance = "tolerance" in registry.component(kind, spec["use"]).settings()
        except PluginError:
            continue  # reported with the other mistakes
        if has_tolerance:
            at_path(data, at[:-1])[at[-1]] = {"tolerance": data["evaluation"]["tolerance"], **spec}
            handed_down = True
    if handed_down:
        del data["evaluation"]["tolerance"]


def _mistakes_inside(
    data: dict[str, Any], kinds: Container[str], registry: Registry, path: Path, left_out: Container[str] = ()
) -> Iterator[Mistake]:
    """Yield the mistakes in components of some kinds: names that are not installed, and their settings.

    The components `left_out`, such as "fusion mine", are not looked at.
    """
    for at, kind, spec in _components(data):
        # A name alone, or a term of a loss, needs no key `use`.
        bare = isinstance(at_path(data, at), str) or spec["use"] == at[-1]
        read = kind in kinds and f"{kind} {spec['use']}" not in left_out
        for inner, message in _component_mistakes(spec, kind, registry, path) if read else ():
            yield at if bare and inner == ("use",) else (*at, *inner), message


def _component_mistakes(spec: dict[str, Any], kind: str, registry: Registry, path: Path) -> list[Mistake]:
    settings = {key: value for key, value in spec.items() if key not in KINDS[kind].own_keys}
    try:
        component = registry.component(kind, spec["use"])
        if lacks := component.lacks:
            return [(("use",), f"{kind} '{component.name}' {lacks}")]
        return component.validated(settings)[1]
    except PluginError as error:
        origin = origin_of(path, kind, spec["use"])
        installed = [(plugin.distribution, plugin.version) for plugin in registry.plugins if plugin.error is None]
        if origin is None or origin in installed:
            return [(("use",), str(error))]
        distribution, version = origin
        remedy = "" if version == LOCAL else f": {pip_install(f'{distribution}=={version}')}"
        if distribution == SESSION:
            remedy = f', which no run keeps: define it here with @textseg.component("{kind}", "{spec["use"]}") first'
        came = f"When it was made, {kind} '{spec['use']}' came from {distribution} ({version}){remedy}."
        return [(("use",), f"{came} {error}")]


class Places:
    """The origin of each key: a line of the file, or a `--set` value."""

    def __init__(self, path: Path, lines: dict[KeyPath, int]) -> None:
        self.path, self.lines = path, lines
        self.overrides: list[tuple[KeyPath, str]] = []

    def report(self, mistakes: Sequence[Mistake]) -> list[str]:
        """Return a line for each mistake, in the order of the file and then of the command line."""
        placed = dict.fromkeys(self._placed(at, " ".join(message.split())) for at, message in mistakes)
        return [text for *_, text in sorted(placed, key=lambda each: each[:2])]

    def _placed(self, at: KeyPath, message: str) -> tuple[int, int, str]:
        depth = max((n for n in range(1, len(at) + 1) if at[:n] in self.lines), default=0)
        for order, (key, text) in reversed(list(enumerate(self.overrides))):
            shared = next((n for n in range(min(len(key), len(at)), 0, -1) if key[:n] == at[:n]), 0)
            if shared == len(key) or shared > depth:
                return 1, order, f"--set {shortened(text)}: {'' if key == at else f'{dotted(at)}: '}{message}"
        line = self.lines.get(at[:depth], 1)
        return 0, line, f"{self.path}:{line}: {f'{dotted(at)}: ' if at else ''}{message}"


def read(path: Path) -> tuple[dict[str, Any], Places]:
    """Return the values of a recipe file, with variables unresolved, and their origins. Raises RecipeError."""
    if not path.is_file():
        raise RecipeError(
            f"{path}: there is no such file; a recipe is a YAML file in UTF-8, or a name that `textseg recipes` lists."
        )
    try:
        text = read_text(path)
    except DataError as error:
        raise RecipeError(str(error)) from error
    return parse(text, path)


def parse(text: str, path: Path) -> tuple[dict[str, Any], Places]:
    """Return the values in the text of a recipe, and their origins in `path`. Raises RecipeError."""
    try:
        data, lines = yaml_text.parse(text)
    except yaml_text.YamlError as error:
        raise RecipeError(f"{path}:{error.line}: {error}.") from error
    if not isinstance(data, dict):
        raise RecipeError(f"{path}:1: a recipe consists of keys and values, such as 'format: 1'.")
    return data, Places(path, lines)


def put(data: dict[str, Any], override: str) -> KeyPath:
    """Put a `--set` value into the recipe and return its path. Raises ValueError if that is impossible."""
    name, equals, text = override.partition("=")
    if not (name and equals):
        raise ValueError("write KEY=VALUE, such as training.epochs=5.")
    if not _is_unicode(override):
        raise ValueError("it is no text in UTF-8.")
    parts = name.split(".")
    if len(parts) > yaml_text.DEPTH:
        raise ValueError(f"a key has at most {yaml_text.DEPTH} parts.")
    try:
        value = yaml_text.parse_value(text)
    except yaml_text.YamlError as error:
        raise ValueError(f"the value can't be read as YAML: {error}.") from error
    node: Any = data
    at: KeyPath = ()
    for depth, part in enumerate(parts):
        key: Any = part
        if isinstance(node, list):
            if not (part.isdecimal() and int(part) < len(node)):
                raise ValueError(
                    f"'{dotted(at)}' is a list of {len(node)}; write an index below that, not '{shortened(part)}'."
                )
            key = int(part)
        elif not isinstance(node, dict):
            raise ValueError(f"'{dotted(at)}' holds no keys, it is {shortened(repr(node))}.")
        at = (*at, key)
        if depth == len(parts) - 1:
            node[key] = value
        elif isinstance(node, dict) and node.get(key) is None:
            node[key] = {}
        node = node[key]
    return at


def resolve(data: dict[str, Any]) -> list[Mistake]:
    """Replace variables such as ${oc.env:TEXTSEG_DATA,data} by values. Returns a mistake for each failure."""
    mistakes: list[Mistake] = []
    for at, holder, key in list(_texts(data, ())):
        try:
            holder[key] = _resolved(holder[key])
            if not _is_unicode(holder[key]):
                mistakes.append((at, f"{shortened(repr(holder[key]))} is no text in UTF-8."))
        except KeyError as error:
            name = error.args[0]
            default = f"${{oc.env:{name},DEFAULT}}"
            mistakes.append((at, f"the environment variable {name} is not set; set it, or write a default: {default}."))
        except ValueError as error:
            mistakes.append((at, str(error)))
    for at, _ in mistakes:
        at_path(data, at[:-1])[at[-1]] = None
    return mistakes


def _is_unicode(text: str) -> bool:
    """Return False for a text from the command line or the environment whose bytes are no UTF-8."""
    return text == text.encode(errors="ignore").decode()


def _texts(node: Any, at: KeyPath) -> Iterator[tuple[KeyPath, Any, Any]]:
    """Yield path, container and key of each text."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        if isinstance(value, str):
            yield (*at, key), node, key
        else:
            yield from _texts(value, (*at, key))


# The default may name another variable: ${oc.env:ONE,${oc.env:TWO,data}}.
_VARIABLE = re.compile(r"(\\?)\$\{(?:oc\.env:(\w+)(?:,((?:[^{}]|\$\{[^{}]*\})*))?\})?")


def _resolved(text: str) -> str:
    """Return a text with the values of the variables in it, which are not read for variables again.

    Raises KeyError for a variable without a value, and ValueError for another expression.
    """

    def value(match: re.Match[str]) -> str:
        backslash, name, default = match.groups()
        if backslash:
            return match[0][1:]
        if name is None:
            advice = "${oc.env:NAME,DEFAULT} is replaced by an environment variable; write \\${ for the text itself."
            raise ValueError(f"'{shortened(text)}' can't be read: {advice}")
        return os.environ[name] if default is None or name in os.environ else _resolved(default)

    return _VARIABLE.sub(value, text)


def at_path(node: Any, at: KeyPath) -> Any:
    """Return the value at a path. Raises KeyError, IndexError or TypeError."""
    for part in at:
        node = node[part]
    return node


def escaped(node: Any) -> Any:
    """Return a copy in which no text is read as a variable."""
    if isinstance(node, dict):
        return {key: escaped(value) for key, value in node.items()}
    if isinstance(node, list):
        return [escaped(value) for value in node]
    return node.replace("${", "\\${") if isinstance(node, str) else node
