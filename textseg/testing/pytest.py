"""A plug-in of pytest: a test that asks for `textseg_check` runs once for each check of each component under test.

    pytest_plugins = ["textseg.testing.pytest"]  # in conftest.py

    def test_components(textseg_check):
        textseg_check()

The components are those of the plug-ins that the pyproject.toml beside the tests declares, or of the ini option
`textseg_plugins`. A fixture `textseg_settings` may say what they are built with, as `check_plugin` takes it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

FIXTURE = "textseg_check"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("textseg_plugins", "Plug-ins of textseg to check; else those that pyproject.toml declares.", "args")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if FIXTURE not in metafunc.fixturenames:
        return
    from textseg.errors import TextsegError
    from textseg.testing.conformance import checks, subjects_of

    try:
        subjects = subjects_of(_plugins(metafunc.config), {})
        pairs = [(subject, check) for subject in subjects for check in checks(subject.component.kind)]
    except TextsegError as error:
        raise pytest.UsageError(str(error)) from error
    ids = [f"{subject.component.kind}-{subject.component.name}-{check.name}" for subject, check in pairs]
    metafunc.parametrize(FIXTURE, pairs, ids=ids, indirect=True)


def _plugins(config: pytest.Config) -> list[str]:
    if named := config.getini("textseg_plugins"):
        return list(named)
    project = config.rootpath / "pyproject.toml"
    declared: dict[str, Any] = {}
    if project.is_file():
        content = tomllib.loads(project.read_text(encoding="utf-8")).get("project", {})
        declared = content.get("entry-points", {}).get("textseg", {})
    if not declared:
        raise pytest.UsageError(
            f"'{project}' declares no plug-in of textseg; name one: textseg_plugins = my_plugin in pytest's settings."
        )
    return list(declared)


@pytest.fixture(scope="session")
def textseg_settings() -> Mapping[tuple[str, str], Mapping[str, Any] | None]:
    """Settings of components by kind and name; None leaves a component out. A test file may define its own."""
    return {}


@pytest.fixture
def textseg_check(
    request: pytest.FixtureRequest, textseg_settings: Mapping[tuple[str, str], Mapping[str, Any] | None]
) -> Callable[[], None]:
    """A check of a component; the test calls it."""
    subject, check = request.param
    key = (subject.component.kind, subject.component.name)
    settings = textseg_settings.get(key, {})
    if settings is None:
        pytest.skip(f"{subject} is left out by textseg_settings")
    prepared = subject if settings == subject.settings else replace(subject, settings=settings)

    def run() -> None:
        __tracebackhide__ = True
        check(prepared)

    return run
