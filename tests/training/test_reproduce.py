from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from textseg.errors import RunError
from textseg.metrics.scores import read_scores, write_scores
from textseg.metrics.window_scores import WindowScore, write_window_scores
from textseg.runs.folder import RunFolder
from textseg.training.reproduce import compare_scores, compare_weights, compare_windows, reproduce

pytestmark = pytest.mark.usefixtures("stranger", "threads")


@pytest.fixture
def folder(copied: Path) -> RunFolder:
    return RunFolder(copied)


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if not line.startswith("preparing slices")]


def test_a_run_from_its_folder_is_the_same(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = reproduce(finished_run, output=tmp_path)
    assert path == tmp_path / "tiny" / finished_run.name
    lines = said(capsys)
    assert lines[:2] == [
        f"repeating '{finished_run}' in '{path}'",
        "recipe, data, prompts, versions and code are the same",
    ]
    state, scores = RunFolder(path).load_checkpoint("last")["model"], read_scores(path / "scores.csv")
    assert lines[-3:] == [
        f"beside '{finished_run}':",
        f"  weights: equal bit by bit, {2 * len(state)} tensors of last and best",
        f"  test scores: all {len(scores)} equal",
    ]
    assert RunFolder(path).read()["repeats"] == {
        "run": str(finished_run),
        "differs": {},
        "weights": lines[-2].removeprefix("  weights: "),
        "scores": lines[-1].removeprefix("  test scores: "),
    }


def test_what_differs_is_said_before_and_how_much_afterwards(
    folder: RunFolder, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = folder.read()
    record["versions"]["torch"] = "0.1"
    record["hashes"]["data"] = "other"
    del record["settings"]["fusion hasf"]["heads"]  # a setting that an older version did not have
    record["hardware"]["cores"] = 0
    folder.record.write_text(json.dumps(record))
    rows = [json.loads(line) for line in folder.prompts.read_text().splitlines()]
    text, rows[1]["text"] = rows[1]["text"], "Nothing."
    folder.prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = reproduce(folder.path, overrides=["training.epochs=1"], output=tmp_path / "repeated")
    lines = said(capsys)
    assert lines[1:6] == [
        f"  hashes.data: was other, is {RunFolder(finished_run).read()['hashes']['data']}",
        "  recipe.training.epochs: was 3, is 1",
        "  settings.fusion hasf.heads: was not given, is 2",
        f"  versions.torch: was 0.1, is {torch.__version__}",
        lines[5],
    ]
    later = lines[lines.index(f"beside '{folder.path}':") + 1 :]
    cores = RunFolder(path).read()["hardware"]["cores"]
    source = f"{rows[1]['source']}, {rows[1]['view']}: "
    assert f"  hardware.cores: was 0, is {cores}" in later
    assert f"  prompts (1 gone, 1 new): was {source}Nothing., is {source}{text}" in later
    assert "tensors differ, by at most " in later[-2]
    assert " of dsc differ, by at most " in later[-1]
    assert set(RunFolder(path).read()["repeats"]["differs"]) >= {"hardware.cores", "versions.torch"}


def test_a_dry_run_says_what_would_differ_and_trains_nothing(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = reproduce(finished_run, overrides=["preparation.intensity=zscore"], output=tmp_path, dry_run=True)
    assert not path.exists()
    assert [line.split(":")[0].strip() for line in said(capsys)[1:]] == [
        "hashes.data",
        "hashes.preparation",
        "recipe.preparation.intensity",
    ]


def test_what_can_not_be_repeated_is_a_message(folder: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="would be written to '.*', the run itself. Choose another --output"):
        reproduce(folder.path, output=tmp_path / "runs")
    folder.recipe.unlink()
    with pytest.raises(RunError, match="holds no recipe.yaml"):
        reproduce(folder.path, output=tmp_path / "repeated")
    with pytest.raises(RunError, match="is no run"):
        reproduce(tmp_path / "nowhere", output=tmp_path / "repeated")


def test_how_far_weights_lie_apart(folder: RunFolder, finished_run: Path) -> None:
    run = RunFolder(finished_run)
    state = folder.load_checkpoint("best")
    key = next(key for key, tensor in state["model"].items() if tensor.is_floating_point())
    total = 2 * len(state["model"])
    state["model"][key].view(-1)[0] += 0.5
    folder.save_checkpoint("best", state)
    assert compare_weights(run, folder) == f"1 of {total} tensors differ, by at most 0.5 ({key} in best)"
    state["model"][key].view(-1)[0] = torch.nan
    folder.save_checkpoint("best", state)
    assert compare_weights(run, folder) == f"1 of {total} tensors differ, by at most nan ({key} in best)"
    del state["model"][key]
    folder.save_checkpoint("best", state)
    assert compare_weights(run, folder) == "another model: its tensors have other names or sizes"
    folder.checkpoint("last").unlink()
    assert compare_weights(folder, run) == f"not compared: '{folder.checkpoint('last')}' is not there"


def test_how_far_scores_lie_apart(folder: RunFolder, finished_run: Path) -> None:
    run, scores = RunFolder(finished_run), read_scores(finished_run / "scores.csv")
    row_number = next(n for n, row in enumerate(scores) if row.metric == "dsc" and row.value == row.value)
    moved = [replace(row, value=row.value + 0.25) if n == row_number else row for n, row in enumerate(scores)]
    write_scores(folder.scores, moved[:-1])
    mean = f"{run.read()['test']['dsc']:.4f}"
    summary = "1 in only one of the two; 1 of dsc differ, by at most 0.25; "
    assert compare_scores(run, folder) == f"of {len(scores)}, {summary}means {mean} and {mean}"
    folder.scores.unlink()
    assert compare_scores(folder, run) == f"not compared: '{folder.scores}' is not there"


def test_how_far_scores_in_windows_lie_apart(folder: RunFolder, finished_run: Path) -> None:
    run = RunFolder(folder.path.parent / "original")
    row = WindowScore("a", "a", 0.5, "upper", "no", "T12:L3", "simulated", "L3", "dsc", 0.5)
    shift = replace(row, structure="", metric="level_shift", value=0.0)
    write_window_scores(run.fields_of_view, [row, shift])
    assert compare_windows(run, folder) == "not compared: the repeat has none"
    write_window_scores(folder.fields_of_view, [row, shift])
    assert compare_windows(run, folder) == "all 2 equal"
    moved = replace(row, stated_by="moved up")
    write_window_scores(folder.fields_of_view, [replace(row, value=0.25), shift, moved])
    assert compare_windows(run, folder) == "of 3, 1 in only one of the two; 1 of dsc differ, by at most 0.25"
