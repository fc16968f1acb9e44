"""Recipes and tables with random faults: each is read, or refused with a message for the user."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from textseg.errors import TextsegError
from textseg.recipe.loading import load_recipe
from textseg.system.user_files import read_json, read_rows, read_table, read_yaml

RECIPE: dict[str, Any] = yaml.safe_load(
    (Path(__file__).parents[2] / "recipes/quickstart.yaml").read_text(encoding="utf-8")
)
TABLE = "case,patient,visible\n010,1,T11:L3\n011,2,L1:L5\n"
LONG = "9" * 5000
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from([0, -1, 10**30, int(LONG[:4000]), float("nan"), [], {}, [[[]]], {"use": None}, {"use": {}}]),
    st.sampled_from(
        ["", " ", "#", "${a}", "${oc.env:NOTHING}", "${seed}", "off", "~", "\x00", "\x1b[31m", "../x", LONG]
    ),
    st.text(max_size=12),
)


def examples(count: int) -> settings:
    """Return the settings of a fuzzer; the draws are the same in every run."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=count, derandomize=True, deadline=None, suppress_health_check=checks, database=None)


def paths(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in nested dictionaries and lists."""
    entries = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in entries:
        yield (*path, key)
        yield from paths(value, (*path, key))


@st.composite
def recipes(draw: st.DrawFn) -> str:
    """Draw the text of a recipe in which values, keys or characters are wrong."""
    recipe = copy.deepcopy(RECIPE)
    for _ in range(draw(st.integers(1, 3))):
        *parents, key = draw(st.sampled_from(list(paths(recipe))))
        parent: Any = recipe
        for step in parents:
            parent = parent[step]
        if draw(st.booleans()) or not isinstance(parent, dict):
            parent[key] = draw(ODD)
        else:
            parent[draw(st.one_of(st.text(max_size=8), st.sampled_from(["on", "no", "use", "<<", "1"])))] = parent.pop(
                key
            )
    text = yaml.safe_dump(recipe, allow_unicode=True)
    if draw(st.booleans()):
        position = draw(st.integers(0, len(text)))
        text = text[:position] + draw(st.text(max_size=4)) + text[position + draw(st.integers(0, 3)) :]
    return text


def survives(read: Callable[[Path], object], path: Path, content: str | bytes) -> None:
    """Check that a file is read, or refused with a message for the user."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    with contextlib.suppress(TextsegError):  # any other exception would reach the user as a traceback
        read(path)


def read_recipe(path: Path) -> object:
    return load_recipe(path)


ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize("attempts", [60, pytest.param(2000, marks=pytest.mark.nightly)])
def test_recipes(tmp_path: Path, attempts: int) -> None:
    path = tmp_path / "quickstart.yaml"

    @examples(attempts)
    @example("x: &x [*x]")
    @example("[" * 5000)
    @example(ALIASES)
    @example('name: "\\uD800"')
    @given(recipes())
    def attempt(text: str) -> None:
        survives(read_recipe, path, text)

    attempt()
    assert [entry.name for entry in tmp_path.iterdir()] == ["quickstart.yaml"]


@pytest.mark.parametrize("attempts", [60, pytest.param(2000, marks=pytest.mark.nightly)])
def test_overrides(tmp_path: Path, attempts: int) -> None:
    path = tmp_path / "quickstart.yaml"
    path.write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    keys = st.sampled_from([".".join(map(str, keys)) for keys in paths(RECIPE)])

    @examples(attempts)
    @example("seed", "0x" + "f" * 4000)
    @example("seed", "[" * 100)
    @given(st.one_of(keys, st.text(max_size=8)), st.one_of(ODD.map(str), st.text(max_size=12)))
    def attempt(key: str, value: str) -> None:
        with contextlib.suppress(TextsegError):
            load_recipe(path, [f"{key}={value}"])

    attempt()


@pytest.mark.parametrize("attempts", [100, pytest.param(3000, marks=pytest.mark.nightly)])
def test_tables(tmp_path: Path, attempts: int) -> None:
    cells = st.text(st.sampled_from(list("a1,;\t\"'\n\r =-\ufeff\x00ü")), max_size=60)
    edited = st.tuples(st.integers(0, len(TABLE)), cells).map(
        lambda edit: TABLE[: edit[0]] + edit[1] + TABLE[edit[0] :]
    )

    @examples(attempts)
    @example("case,patient\n\x00,1\n")
    @example(b"\xff\xfe")
    @example(b"case\xfc,patient\n")
    @given(st.one_of(edited, cells, st.binary(max_size=40)))
    def attempt(content: str | bytes) -> None:
        for read in (read_rows, read_json, read_yaml, lambda path: read_table(path, "case", ["patient"], ["visible"])):
            survives(read, tmp_path / "table.csv", content)

    attempt()
