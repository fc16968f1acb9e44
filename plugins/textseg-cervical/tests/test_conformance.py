"""Conformance tests of the components of this plug-in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

Settings = Mapping[tuple[str, str], Mapping[str, Any] | None]


@pytest.fixture(scope="session")
def textseg_settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    small = {"cases": 3, "slices": 2, "size": [96, 80]}
    return {("dataset", "cervical_phantom"): {"folder": str(tmp_path_factory.mktemp("phantom")), **small}}


def test_it_keeps_what_its_kind_promises(textseg_check: Callable[[], None]) -> None:
    textseg_check()
