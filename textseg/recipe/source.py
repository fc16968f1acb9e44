"""The text of a recipe: values with their line numbers, `--set` values and interpolations."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from textseg.errors import RecipeError
from textseg.registry.component import cause
from textseg.registry.validation import KeyPath, Mistake, dotted


class Places:
    """The origin of each key: a line of the file, or a `--set` value."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self.overrides: list[tuple[KeyPath, str]] = []
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if not isinstance(root, yaml.MappingNode):
            raise RecipeError(f"{path}:1: a recipe consists of keys and values, such as 'format: 1'.")
        self.lines: dict[KeyPath, int] = dict(_lines(root, ()))

    def report(self, mistakes: Sequence[Mistake]) -> list[str]:
        """Return a line for each mistake, in the order of the file and then of the command line."""
        placed = dict.fromkeys(self._placed(at, " ".join(message.split())) for at, message in mistakes)
        return [text for *_, text in sorted(placed, key=lambda each: each[:2])]

    def _placed(self, at: KeyPath, message: str) -> tuple[int, int, str]:
        depth = max((n for n in range(1, len(at) + 1) if at[:n] in self.lines), default=0)
        for order, (key, text) in reversed(list(enumerate(self.overrides))):
            shared = next((n for n in range(min(len(key), len(at)), 0, -1) if key[:n] == at[:n]), 0)
            if shared == len(key) or shared > depth:
                return 1, order, f"--set {text}: {'' if key == at else f'{dotted(at)}: '}{message}"
        line = self.lines.get(at[:depth], 1)
        return 0, line, f"{self.path}:{line}: {f'{dotted(at)}: ' if at else ''}{message}"


def _lines(node: yaml.Node, at: KeyPath) -> Iterator[tuple[KeyPath, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*at, str(key.value))
            yield here, key.start_mark.line + 1
            yield from _lines(value, here)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*at, index), value.start_mark.line + 1
            yield from _lines(value, (*at, index))


def read(path: Path) -> tuple[dict[str, Any], Places]:
    """Return the values of a recipe file, with interpolations unresolved, and their origins. Raises RecipeError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else cause(error)
        raise RecipeError(
            f"{path}: {reason}; a recipe is a YAML file in UTF-8, or a name that `textseg recipes` lists."
        ) from error
    try:
        places = Places(path, text)
        data = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"{path}:{line}: {error.problem or error.context}.") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: this can't be read as YAML: {cause(error)}.") from error
    except OmegaConfBaseException as error:
        at = tuple(int(part) if part.isdecimal() else part for part in re.findall(r"[^.\[\]]+", error.full_key or ""))
        raise RecipeError("\n".join(places.report([(at, f"this can't be read: {_first_line(error)}.")]))) from error
    return {str(key): value for key, value in data.items()} if isinstance(data, dict) else {}, places


def put(data: dict[str, Any], override: str) -> KeyPath:
    """Put a `--set` value into the recipe and return its path. Raises ValueError if that is impossible."""
    name, equals, text = override.partition("=")
    if not (name and equals):
        raise ValueError("write KEY=VALUE, such as training.epochs=5.")
    try:
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)["value"]  # type: ignore[call-overload, index]
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"the value can't be read as YAML: {cause(error)}.") from error
    node: Any = data
    at: KeyPath = ()
    parts = name.split(".")
    for depth, part in enumerate(parts):
        key: Any = part
        if isinstance(node, list):
            if not (part.isdecimal() and int(part) < len(node)):
                raise ValueError(f"'{dotted(at)}' is a list of {len(node)}; write an index below that, not '{part}'.")
            key = int(part)
        elif not isinstance(node, dict):
            raise ValueError(f"'{dotted(at)}' holds no keys, it is {node!r}.")
        at = (*at, key)
        if depth == len(parts) - 1:
            node[key] = value
        elif isinstance(node, dict) and node.get(key) is None:
            node[key] = {}
        node = node[key]
    return at


def resolve(data: dict[str, Any]) -> list[Mistake]:
    """Replace interpolations such as ${oc.env:TEXTSEG_DATA,data} by values. Returns a mistake for each failure."""
    mistakes: list[Mistake] = []
    whole: Any = None
    for at, holder, key in list(_texts(data, ())):
        whole = OmegaConf.create(data) if whole is None else whole
        try:
            value = at_path(whole, at)
            holder[key] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        except OmegaConfBaseException as error:
            mistakes.append((at, _unresolved(str(holder[key]), error)))
            holder[key] = None
    return mistakes


def _texts(node: Any, at: KeyPath) -> Iterator[tuple[KeyPath, Any, Any]]:
    """Yield path, container and key of each text that has to be resolved."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        if isinstance(value, str) and ("${" in value or value == "???"):
            yield (*at, key), node, key
        else:
            yield from _texts(value, (*at, key))


def _unresolved(value: str, error: OmegaConfBaseException) -> str:
    if value == "???":
        return "'???' is left open; give it a value."
    variable = re.search(r"Environment variable '(.+?)' not found", str(error))
    if variable:
        name = variable[1]
        return f"the environment variable {name} is not set; set it, or write a default: ${{oc.env:{name},DEFAULT}}."
    return f"'{value}' can't be resolved: {_first_line(error)}."


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(". ")


def at_path(node: Any, at: KeyPath) -> Any:
    """Return the value at a path. Raises KeyError, IndexError or TypeError."""
    for part in at:
        node = node[part]
    return node


def escaped(node: Any) -> Any:
    """Return a copy in which no text is read as an interpolation."""
    if isinstance(node, dict):
        return {key: escaped(value) for key, value in node.items()}
    if isinstance(node, list):
        return [escaped(value) for value in node]
    return node.replace("${", "\\${") if isinstance(node, str) else node
