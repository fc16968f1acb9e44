"""YAML that people write: plain values with their lines, and bounds that are checked before a value is built."""

from __future__ import annotations

import re
from typing import Any

import yaml

from textseg.errors import shortened

CHARACTERS = 2_000_000  # of a file
DEPTH = 20  # of lists and sections in each other
VALUES = 100_000  # with those that an alias repeats
DIGITS = 100  # of a number

_Loading: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# The plain values of YAML 1.2. In YAML 1.1, the keys and values on, no and y are booleans, and 010, 1_1 and 12:30 are
# other numbers than they look like. A number with leading zeros, such as the id 010, is a text.
_PLAIN = {
    "tag:yaml.org,2002:bool": re.compile(r"true|True|TRUE|false|False|FALSE"),
    "tag:yaml.org,2002:null": re.compile(r"~|null|Null|NULL|"),
    "tag:yaml.org,2002:int": re.compile(r"[-+]?(?:0|[1-9][0-9]*)"),
    "tag:yaml.org,2002:float": re.compile(
        r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
    ),
}
_TEXT = "tag:yaml.org,2002:str"
_COLLECTIONS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


class YamlError(ValueError):
    """A text that is no YAML, or goes beyond a bound; `line` counts from 1."""

    def __init__(self, message: str, line: int = 1) -> None:
        super().__init__(message)
        self.line = line


class _Loader(_Loading):  # type: ignore[misc]
    yaml_implicit_resolvers: dict[str | None, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  PyYAML's


class _Dumper(yaml.SafeDumper):
    """A writer that quotes each text which a reader of YAML 1.1 or 1.2 takes for something else."""


for _tag, _pattern in _PLAIN.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(f"(?:{_pattern.pattern})\\Z"), None)


def parse(text: str, *, typed_keys: bool = False) -> tuple[Any, dict[tuple[str | int, ...], int]]:
    """Return the value of a YAML text, and the line of each key and item by its path.

    Keys are texts, or, with `typed_keys`, values such as the number 1.

    Raises YamlError for a text that is no YAML, for a key that is given twice, and beyond the bounds of this module.
    """
    building = _Building(typed_keys=typed_keys)
    return building.value(compose(text), ()), building.lines


def parse_value(text: str) -> Any:
    """Return the value of one argument, in which only quotes and brackets begin YAML: `scan #1` is a text.

    Raises YamlError.
    """
    if not text.lstrip().startswith(("[", "{", "'", '"')):
        node = yaml.ScalarNode(_tag_of(text.strip()), text)
        return text if node.tag == _TEXT else _scalar(node)
    try:
        root = compose(text)
    except YamlError as error:
        raise YamlError(f"{error}; in brackets, a text with '#' or ': ' needs quotes") from error
    if rest := text[root.end_mark.index :].strip():
        raise YamlError(f"'{shortened(rest)}' stands after the value; put the whole text in quotes")
    return _Building().value(root, ())


def dump(value: Any) -> str:
    """Return a value of texts, numbers, lists and mappings as YAML that `parse` reads back."""
    text: str = yaml.dump(value, Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False)
    return text


def compose(text: str) -> yaml.Node:
    """Return the nodes of a text. Raises YamlError; see `parse`."""
    if len(text) > CHARACTERS:
        raise YamlError(f"it has more than {CHARACTERS:,} characters")
    try:
        depth = 0  # is checked first, because the functions that build nodes call themselves
        for event in yaml.parse(text, Loader=_Loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEPTH:
                raise YamlError(_DEEP, _line(event))
        root: yaml.Node | None = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise YamlError(", ".join(part for part in (error.context, error.problem) if part), line) from error
    except (yaml.YAMLError, UnicodeEncodeError) as error:
        raise YamlError(f"it can't be read as YAML: {' '.join(str(error).split())}") from error
    return root or yaml.ScalarNode(_tag_of(""), "")


class _Building:
    """The values of nodes; an alias is a copy of its value, and counts like it."""

    def __init__(self, *, typed_keys: bool = False) -> None:
        self.typed_keys = typed_keys
        self.lines: dict[tuple[str | int, ...], int] = {}
        self.count = 0

    def value(self, node: yaml.Node, at: tuple[str | int, ...]) -> Any:
        self.count += 1
        if self.count > VALUES:
            raise YamlError(f"it has more than {VALUES:,} values, with those that aliases (*) repeat", _line(node))
        if len(at) > DEPTH:  # an alias may stand inside its own value
            raise YamlError(_DEEP, _line(node))
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node)
        if node.tag not in _COLLECTIONS:
            raise YamlError(f"the type {shortened(node.tag)} is not read", _line(node))
        values: dict[Any, Any] = {}
        items: list[Any] = []
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.lines[*at, index] = _line(item)
                items.append(self.value(item, (*at, index)))
            return items
        for key_node, item in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise YamlError("a key must be a text, not a list or a section", _line(key_node))
            key = _scalar(key_node) if self.typed_keys else key_node.value
            if key in values:
                raise YamlError(f"the key '{shortened(key)}' stands twice", _line(key_node))
            self.lines[*at, key] = _line(key_node)
            values[key] = self.value(item, (*at, key))
        return values


_DEEP = f"lists and sections are nested deeper than {DEPTH} levels"


def _line(node: yaml.Node | yaml.Event) -> int:
    return node.start_mark.line + 1 if node.start_mark else 1


def _tag_of(text: str) -> str:
    return next((tag for tag, pattern in _PLAIN.items() if pattern.fullmatch(text)), _TEXT)


def _scalar(node: yaml.ScalarNode) -> Any:
    """Return the value of a scalar by its tag, which YAML gives or the text itself."""
    text, kind = node.value.strip(), node.tag.removeprefix("tag:yaml.org,2002:")
    if node.tag == _TEXT:
        return node.value
    if kind == "float" and _tag_of(text).endswith(("int", "float")):  # !!float 5
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    if node.tag not in _PLAIN or not _PLAIN[node.tag].fullmatch(text):
        raise YamlError(f"'{shortened(node.value)}' is no value of the type {node.tag}", _line(node))
    if kind == "int" and len(text) > DIGITS:
        raise YamlError(f"a number has more than {DIGITS} digits", _line(node))
    if kind == "bool":
        return text.lower() == "true"
    return int(text) if kind == "int" else None
