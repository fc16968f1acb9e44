from __future__ import annotations

import ast
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import typer

from textseg.cli import entry as cli
from textseg.comparison.finished_runs import read_runs
from textseg.errors import RecipeError, TextsegError
from textseg.metrics.scores import read_scores
from textseg.metrics.window_scores import read_window_scores
from textseg.recipe.listing import InstalledRecipe
from textseg.recipe.loading import load_recipe, put
from textseg.runs.folder import RunFolder
from textseg.runs.saved_predictions import read_kept
from textseg.runs.task_record import read_task
from textseg.system.commands import leave_out, pip_install, shell
from textseg_spine.spider import Spider

ROOT = Path(__file__).parents[2]
HOSTILE = "Bob's run; $(touch x) {a} ü"
CASES = [
    "010",
    "1_1",
    "a'b",
    'a"b',
    "a, b",
    "${x}",
    "on",
    "null",
    "a: b",
    "#1",
    "[x]",
    "ü",
    "\u0085",
    "\U0001f9b4",
    "-",
    "*a",
    "a\\n",
]


def parsed(line: str) -> dict[str, Any]:
    """Return the parameters that the command line understands; it raises for everything that it does not know."""
    program, *words = shlex.split(line)
    assert program == "textseg"
    command: Any = typer.main.get_command(cli.app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    parameters: dict[str, Any] = command.make_context(command.name, words).params
    return parameters


def printed(action: Callable[[], object]) -> str:
    """Return the command at the end of the message of an error."""
    with pytest.raises(TextsegError) as caught:
        action()
    return re.findall(r"textseg [a-z]+ [^`\n]*", str(caught.value))[-1].rstrip(".")


def run_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "run.json").write_text("{}")
    return path


def written(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


READERS: dict[str, Callable[[Path], object]] = {
    "scores.csv": lambda folder: read_scores(folder / "scores.csv"),
    "another scores.csv": lambda folder: read_scores(written(folder / "scores.csv", "a\n")),
    "fields_of_view.csv": lambda folder: read_window_scores(folder / "fields_of_view.csv"),
    "task.json": lambda folder: read_task(folder / "task.json"),
    "predictions": lambda folder: read_kept(RunFolder(folder)),
    "compare": lambda folder: read_runs([folder]),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize(
    ("source", "prompts"),
    [
        ("", None),
        ("none", None),
        ("predicted", "predicted"),
        ("simulated", "interactive"),
        ("interactive", "interactive"),
    ],
)
def test_what_an_evaluation_lacks_is_made_by_the_command_that_the_message_prints(
    tmp_path: Path, read: Callable[[Path], object], source: str, prompts: str | None
) -> None:
    run = run_folder(tmp_path / HOSTILE)
    folder = run_folder(run / "evaluations" / source) if source else run
    parameters = parsed(printed(lambda: read(folder)))
    assert (parameters["run"], parameters["prompts"]) == (run, prompts)
    assert parameters["visible"] == (str(folder / "visible.csv") if source == "interactive" else None)


def test_masks_of_another_tool_are_scored_again_not_evaluated(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / HOSTILE)
    (folder / "run.json").write_text(json.dumps({"predictions": str(tmp_path / "a b")}))
    parameters = parsed(printed(lambda: read_scores(folder / "scores.csv")))
    assert (parameters["masks"], parameters["output"]) == (tmp_path / "a b", folder)


@pytest.mark.parametrize("case_id", CASES)
def test_cases_of_any_name_are_left_out(tiny_recipe: Path, stranger: None, case_id: str) -> None:
    option, value = shlex.split(leave_out([case_id, "other"]))
    assert option == "--set"
    assert load_recipe(tiny_recipe, [value]).leave_out == (case_id, "other")


def test_a_check_prints_the_option_that_leaves_its_faulty_cases_out(
    tmp_path: Path,
    tiny_recipe: Path,
    stranger: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
        for case_id in ("010", "a'b", "a,b"):
            (tmp_path / part / f"{case_id}.mha").write_text("nothing")
    sound = np.random.default_rng(0).random((4, 16, 16))
    sitk.WriteImage(sitk.GetImageFromArray(sound), tmp_path / "images" / "sound.mha")
    arguments = ["data", "check", "nifti_folder", "--folder", str(tmp_path), "--set", "atlas=lumbar_spider"]
    monkeypatch.setattr(sys, "argv", ["textseg", *arguments])
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    value = shlex.split(capsys.readouterr().out.rpartition("--set ")[2])[0]
    assert load_recipe(tiny_recipe, [value]).leave_out == ("010", "a'b", "a,b")


def test_the_command_that_fetches_a_data_set_brings_it_to_where_it_is_missing(tmp_path: Path) -> None:
    folder = tmp_path / HOSTILE
    with pytest.raises(TextsegError) as caught:
        Spider(folder=str(folder)).cases()
    (line,) = re.findall(r"`(textseg .*)`", str(caught.value).partition(" brings it")[0])
    assert parsed(line) == {**parsed(line), "dataset": "spider", "folder": folder}


def test_a_copied_recipe_runs_by_the_command_that_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["textseg", "recipes", "copy", "quickstart", str(tmp_path / HOSTILE)])
    with pytest.raises(SystemExit):
        cli.main()
    (path,) = parsed(capsys.readouterr().err.strip().rpartition("Run the copy: ")[2])["recipes"]
    assert load_recipe(path).name == "quickstart"


def test_a_recipe_that_can_not_be_listed_is_named_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / f"{HOSTILE}.yaml"
    path.write_text("a")
    parameters = parsed(printed(InstalledRecipe("x", path, "d").summary))
    assert (parameters["recipes"], parameters["dry_run"]) == ([path], True)


def test_prompts_that_a_recipe_may_not_ask_for_are_asked_for_after_the_run(tiny_recipe: Path, stranger: None) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(tiny_recipe, ["prompts.evaluation=ground_truth"])
    assert parsed(re.findall("textseg evaluate .*", str(caught.value))[0])["prompts"] == "ground_truth"


def test_a_name_is_one_word_of_the_shell() -> None:
    assert shlex.split(pip_install(f"{HOSTILE}==1")) == ["pip", "install", f"{HOSTILE}==1"]
    assert shell("textseg", "run", Path("a/b.yaml")) == "textseg run a/b.yaml"


def texts(path: Path) -> Iterator[str]:
    """Yield every text of a file that is no docstring; values of an f-string are a null character."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    seen = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    seen |= {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in seen:
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)


def test_every_other_command_in_a_message_is_one_that_textseg_knows() -> None:
    commands: Any = typer.main.get_command(cli.app)
    pattern = re.compile(rf"\btextseg (?:{'|'.join(commands.commands)})\b[^`\n]*|\b(?:pip install|hf download)[^`\n]*")
    files = [path for folder in ("textseg", "plugins") for path in (ROOT / folder).rglob("*.py")]
    sources = [text for path in files if "tests" not in path.parts for text in texts(path)]
    lines = [match[0] for text in sources for match in pattern.finditer(text)]
    assert len(lines) > 20
    assert [line for line in lines if "\0" in line] == []  # these are made in textseg.system.commands, which quotes
    for line in lines:
        words = line.replace("...", "").replace("[", "").replace("]", "").rstrip(". ").split()
        if words[0] == "textseg" and len(words) > 2 and words[2].isupper():
            parsed(" ".join(words))
    values = [match[1] for text in sources for match in re.finditer(r"--set '([^'\0]+)'", text)]
    assert values
    for value in values:
        put({}, value)
