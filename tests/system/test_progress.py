from __future__ import annotations

import pytest

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
