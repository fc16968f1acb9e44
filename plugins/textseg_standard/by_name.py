"""Builders of the classes of another library by their names, with the settings that these classes define."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from textseg.errors import RecipeError, shortened, suggestion

Builder = TypeVar("Builder", bound=Callable[..., Any])


def builds_by_name(
    known: Callable[[], Mapping[str, Any]], *, without: Collection[str], filled: Collection[str] = ()
) -> Callable[[Builder], Builder]:
    """Return a decorator of a builder with a setting `name`, whose `**settings` are those of the class of that name.

    Args:
        known: gives the classes by name.
        without: parameters of the classes that no recipe may set.
        filled: parameters that the builder gives where the recipe does not.
    """

    def further_settings(given: Mapping[str, Any]) -> Mapping[str, inspect.Parameter]:
        """Return the settings of the class that `given` names. Raises RecipeError for an unknown name."""
        name = given.get("name")
        if name is None:
            return {}
        if not isinstance(name, str):
            raise RecipeError(f"name: should be a text, not {shortened(repr(name))}.")
        if name not in known():
            raise RecipeError(f"name: unknown value '{name}'.{suggestion(name, known())}")
        parameters = settings_of(known()[name], without=without)
        for key in parameters.keys() & set(filled):
            parameters[key] = parameters[key].replace(default=None, annotation=parameters[key].annotation | None)
        return parameters

    def decorate(builder: Builder) -> Builder:
        builder.further_settings = further_settings  # type: ignore[attr-defined]
        return builder

    return decorate


def settings_of(build: Callable[..., Any], *, without: Collection[str]) -> dict[str, inspect.Parameter]:
    """Return the named parameters of a class as settings of a recipe.

    A type that no recipe can write, such as a tensor, becomes Any: the class itself must refuse a wrong value.
    """
    try:
        signature = inspect.signature(build, eval_str=True)
    except NameError:  # a type that is imported for type checkers alone
        signature = inspect.signature(build)
    return {
        name: parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=_writable(parameter.annotation))
        for name, parameter in signature.parameters.items()
        if name not in without and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }


def _writable(hint: Any) -> Any:
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticUserError

    if isinstance(hint, str) or hint is inspect.Parameter.empty:
        return Any
    try:
        TypeAdapter(hint)
    except (PydanticUserError, TypeError):
        return Any
    return hint
