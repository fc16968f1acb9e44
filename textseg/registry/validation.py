"""Messages about values that do not fit their type, in the words of a recipe."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from textseg.errors import shortened, suggestion

if TYPE_CHECKING:  # listing components must not import pydantic
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

KeyPath = tuple[str | int, ...]
Mistake = tuple[KeyPath, str]

_WORDS = {
    "dict_type": "should be keys and values",
    "model_type": "should be keys and values",
    "dataclass_type": "should be keys and values",
    "tuple_type": "should be a list",
    "list_type": "should be a list",
    "bool_type": "should be true or false",
}


def dotted(path: KeyPath) -> str:
    """Return a path in the form of `--set`: "training.epochs"."""
    return ".".join(shortened(part) for part in path)


def explain(error: ValidationError, possible: Callable[[KeyPath], Iterable[str]] | None = None) -> list[Mistake]:
    """Return the mistakes that pydantic reports, one for each path; `possible` lists the keys allowed beside a path."""
    reasons: dict[KeyPath, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        path = detail["loc"]
        if detail["type"] in ("missing", "extra_forbidden"):  # the last part is a key, even if it is called "int"
            path = (*_without_members(path[:-1]), *path[-1:])
        elif path and path[-1] != "[key]":
            path = _written(path)
        reasons.setdefault(path, []).append(detail)
    # A list whose items are wrong is also reported as too short, since no item was left.
    for path in [path for path, details in reasons.items() if details[0]["type"] == "too_short"]:
        if any(len(deeper) > len(path) and deeper[: len(path)] == path for deeper in reasons):
            del reasons[path]
    return [_sentence(path, details, possible) for path, details in reasons.items()]


def _written(path: KeyPath) -> KeyPath:
    """Return the path without pydantic's names for members of a union, such as "constrained-int" or "list[int]"."""
    path = _without_members(path)
    plain = path and isinstance(path[-1], str) and re.fullmatch(r"(constrained-)?(int|float|str|bool)", path[-1])
    return path[:-1] if plain else path


def _without_members(path: KeyPath) -> KeyPath:
    return tuple(part for part in path if isinstance(part, int) or not re.fullmatch(r"[a-z-]+\[.*\]", part))


def _sentence(
    path: KeyPath, details: list[ErrorDetails], possible: Callable[[KeyPath], Iterable[str]] | None
) -> Mistake:
    detail = details[0]
    given: Any = detail["input"]
    if path and path[-1] == "[key]":
        return path[:-1], f"unknown key.{suggestion(str(given), _expected(detail))}"
    if detail["type"] == "extra_forbidden":
        names = list(possible(path)) if possible else []
        return path, f"unknown key.{suggestion(str(path[-1]), names) if names else ''}"
    if detail["type"] == "missing":
        return path, "a value is missing here." if isinstance(path[-1], int) else "required but missing."
    if detail["type"] == "value_error":
        return path, str(detail["ctx"]["error"])
    if len(details) == 1 and detail["type"] == "literal_error" and isinstance(given, str) and _expected(detail):
        return path, f"unknown value '{shortened(given)}'.{suggestion(given, _expected(detail))}"
    wishes = list(dict.fromkeys(_wish(each) for each in details))
    if not all(wish.startswith("should be ") for wish in wishes):
        return path, f"{' or '.join(wishes)}."
    return (
        path,
        f"should be {' or '.join(wish.removeprefix('should be ') for wish in wishes)}, not {shortened(repr(given))}.",
    )


def _wish(detail: ErrorDetails) -> str:
    return _WORDS.get(detail["type"]) or detail["msg"].removeprefix("Input ").rstrip(".")


def _expected(detail: ErrorDetails) -> list[str]:
    return re.findall(r"'([^']*)'", str(detail.get("ctx", {}).get("expected", "")))
