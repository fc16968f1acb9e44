from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from textseg.cli import entry as cli

pytestmark = pytest.mark.usefixtures("stranger")


def figure(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["textseg", "figure", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


def test_a_png_is_written(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "new" / "figure.png"
    assert figure(monkeypatch, str(finished_run), "--output", str(output)) == 0
    assert output.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "figure.pdf"], "must end in .png"),
        (["--output", "f.png", "--structures", "L4"], "it goes with --of probabilities"),
        (["--output", "f.png", "--of", "features", "--slice", "2"], "features are of whole cases"),
        (["--output", "f.png", "--of", "probabilities", "--case", "a", "--case", "b"], "one slice of one case"),
        (["--output", "f.png", "--of", "dreams"], "'dreams' is not one of"),
        (["--output", "f.png", "--case", "nobody"], "has no test case 'nobody'"),
        (["--output", "f.png", "--slice", "77"], "and no 77"),
    ],
)
def test_mistakes_end_with_a_sentence_and_code_2(
    finished_run: Path,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert figure(monkeypatch, str(finished_run), *arguments) == 2
    printed = re.sub(r"[│\s]+", " ", capsys.readouterr().err)
    assert message in printed
    assert "Traceback" not in printed
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_run_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert figure(monkeypatch, str(tmp_path), "--output", str(tmp_path / "f.png")) == 2
    assert "is no run: it has no run.json" in capsys.readouterr().err
