from __future__ import annotations

import sys
from types import ModuleType

import pytest
from rich import get_console

from textseg.system import progress
from textseg.system.progress import counting


def test_a_bar_counts_what_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    with counting("preparing slices") as report:
        for done in (1, 2):
            report(done, 2)
    assert "preparing slices" in (output := capsys.readouterr().out)
    assert "2/2" in output


def test_a_job_that_fails_before_it_began_shows_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no such folder"), counting("preparing slices"):
        raise ValueError("no such folder")
    assert capsys.readouterr() == ("", "")


def test_a_job_that_fails_later_ends_its_bar(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with counting("preparing slices") as report:
            report(1, 2)
            raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        fail()
    assert "1/2" in capsys.readouterr().out


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """The output of a notebook's cell: each text, and True where it replaces the one before."""
    shown: list[tuple[str, bool]] = []

    def display(content: dict[str, str], *, raw: bool, display_id: str, update: bool) -> None:
        assert raw
        assert display_id
        shown.append((content["text/plain"], update))

    module = ModuleType("IPython.display")
    module.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr(get_console(), "is_jupyter", True)
    monkeypatch.setattr(progress, "BETWEEN", 0.0)
    return shown


def test_a_bar_of_a_notebook_replaces_itself(cell: list[tuple[str, bool]], capsys: pytest.CaptureFixture[str]) -> None:
    with progress.counting("preparing slices") as report:
        for done in (1, 2):
            report(done, 2)
    texts, updates = zip(*cell, strict=True)
    assert updates == (False, True, True)
    assert [text.split()[-2] for text in texts] == ["1/2", "2/2", "2/2"]
    assert texts[0].startswith("preparing slices ")
    with progress.progress_bar(transient=True) as bar:
        assert list(bar.track([1, 2], description="predicting")) == [1, 2]
    assert cell[-1] == ("", True), "it vanishes"
    before = len(cell)
    with progress.counting("nothing"):
        pass
    assert len(cell) == before
    assert capsys.readouterr().out == ""
