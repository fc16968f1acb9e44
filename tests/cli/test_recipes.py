from __future__ import annotations

import sys
from pathlib import Path

import pytest

from textseg.cli import main
from textseg.recipe import listing
from textseg.recipe.listing import InstalledRecipe


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["textseg", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code if isinstance(caught.value.code, int) else 0


def test_recipes_are_listed_with_what_they_need(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "recipes") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == "name"
    (row,) = [line for line in lines if line.startswith("atmnet_spider ")]
    assert row.split()[1:5] == ["swin_unetr", "+", "hasf", "spider"]
    assert "data, GPU, weights  ATM-Net on SPIDER in the experiment that the paper" in row
    assert row.endswith("CCAE.")  # whole, however long


def test_a_terminal_of_80_columns_breaks_no_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert call(monkeypatch, "recipes") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "atmnet_mrspineseg_trained_on_interactive" in {line.split(" ")[0] for line in lines}
    assert max(map(len, lines)) <= 80
    assert "    method: residual_convolutions + hasf; data: spider;" in "\n".join(lines)


def test_a_recipe_that_can_not_be_read_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], empty_folder: Path
) -> None:
    (empty_folder / "odd.yaml").write_text("model: [\n")
    odd = InstalledRecipe("odd", empty_folder / "odd.yaml", "textseg-odd")
    fine = listing.installed_recipe("quickstart")
    monkeypatch.setattr(listing, "installed_recipes", lambda: [odd, fine])
    assert call(monkeypatch, "recipes") == 0
    printed = capsys.readouterr()
    assert "odd.yaml: this recipe of textseg-odd can't be listed" in printed.err
    assert "quickstart" in printed.out


def test_a_copy_is_named_and_nothing_is_overwritten(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "recipes", "copy", "atmnet_spider_small", "mine") == 0
    printed = capsys.readouterr()
    assert printed.out.split() == ["mine/atmnet_spider_small.yaml", "mine/splits/spider_small.json"]
    assert printed.err == "Run the copy: textseg run mine/atmnet_spider_small.yaml\n"
    assert call(monkeypatch, "recipes", "copy", "atmnet_spider_small", "mine") == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert call(monkeypatch, "recipes", "copy", "quikstart") == 2
    assert "Did you mean 'quickstart'" in capsys.readouterr().err


def test_every_command_that_takes_a_recipe_takes_a_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "fetch", "quickstart_swin_unetr") == 0
    assert "needs no weights" in capsys.readouterr().out
    light = [f"--set={value}" for value in ("cases=2", "slices=2", "size=[96, 80]", "spacing_mm=3.0")]
    assert call(monkeypatch, "data", "check", "quickstart", *light) == 0
    assert "2 of 2 cases are sound" in capsys.readouterr().out
    light = [f"--set=dataset.{value.removeprefix('--set=')}" for value in light]
    assert call(monkeypatch, "prompts", "quickstart", "--set", "preparation.size=[48, 40]", *light) == 0
    assert "lumbar" in capsys.readouterr().out
    for command in (["run"], ["fetch"], ["prompts"], ["components", "network", "--cost", "--recipe"]):
        assert call(monkeypatch, *command, "quikstart") == 2
        assert "Did you mean 'quickstart'" in capsys.readouterr().err
    assert call(monkeypatch, "data", "check", "quikstart") == 2
    assert "There is no data set 'quikstart'" in capsys.readouterr().err
