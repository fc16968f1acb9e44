from __future__ import annotations

import pytest

from textseg.system.messages import counted


@pytest.mark.parametrize(
    ("count", "phrase"),
    [(0, "0 test patients"), (1, "1 test patient"), (2, "2 test patients"), (1000, "1000 test patients")],
)
def test_one_is_singular(count: int, phrase: str) -> None:
    assert counted(count, "test patient") == phrase


def test_a_noun_may_bring_its_plural() -> None:
    assert counted(1, "entry", "entries") == "1 entry"
    assert counted(2, "entry", "entries") == "2 entries"
