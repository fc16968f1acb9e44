from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from textseg import load
from textseg.cli.entry import app
from textseg.errors import DataError, PromptError, RunError
from textseg.recipe.loading import load_recipe
from textseg.runs.experiment import build
from textseg.runs.folder import RunFolder
from textseg.volumes.files import file_hash, read_labels, stem


@pytest.fixture(scope="module")
def scan(finished_run: Path, stranger: None) -> Path:
    return build(load_recipe(RunFolder(finished_run).recipe)).cases["test"][0].case.image


def test_predict_says_what_it_wrote_and_ends_with_1_where_a_volume_failed(
    finished_run: Path, scan: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.mha").write_text("no volume")
    arguments = ["predict", str(finished_run), str(scan), str(tmp_path / "bad.mha"), "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert f"1 mask written to {tmp_path / 'out'}" in result.stdout
    assert "1 of 2 volumes failed:\n  " in result.stderr
    assert "bad.mha" in result.stderr
    (tmp_path / "out" / f".textseg-{'0' * 16}.mha").touch()  # of a command that was killed
    again = CliRunner().invoke(app, [*arguments[:3], *arguments[4:]])
    assert again.exit_code == 0
    assert "0 masks written" in again.stdout
    assert "1 was there already" in again.stdout
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_words_are_shown_as_they_were_read(finished_run: Path, scan: Path, tmp_path: Path) -> None:
    (tmp_path / "seen.csv").write_text(f'case,visible\n{stem(scan)},"L1 to L5, without the canal"\n')
    arguments = ["predict", str(finished_run), str(scan), "--output", str(tmp_path / "out")]
    for words, shown in (
        ("t12 to l5", "read: T12:L5, 11 structures and the spinal canal\n"),
        (str(tmp_path / "seen.csv"), "read: L1:L5, 9 structures without the spinal canal\n"),
    ):
        result = CliRunner().invoke(app, [*arguments, "--text", words], catch_exceptions=False)
        assert (result.exit_code, result.stdout.startswith(shown)) == (0, True), result.stdout
    sidecar = json.loads((tmp_path / "out" / f"{stem(scan)}.json").read_text())
    assert sidecar["said"]["words"] == "L1 to L5, without the canal"


def test_an_ensemble_says_of_whom_it_is_and_what_it_averaged(finished_run: Path, scan: Path, tmp_path: Path) -> None:
    another = tmp_path / "other"
    shutil.copytree(finished_run, another)
    path = RunFolder(another).checkpoint("best")
    state = torch.load(path, weights_only=True)
    state["model"] = {
        name: 1.1 * value if value.is_floating_point() else value for name, value in state["model"].items()
    }
    torch.save(state, path)
    arguments = ["predict", str(finished_run), "--with", str(another), str(scan), "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*arguments, "--test-time-augmentation", "gamma"], catch_exceptions=False)
    assert result.exit_code == 0
    made = json.loads((tmp_path / "out" / f"{stem(scan)}.json").read_text())["made"]
    assert [member["model"] for member in made["members"]] == ["tiny", "tiny"]
    assert {member["model_sha256"] for member in made["members"]} == {
        file_hash(RunFolder(run).checkpoint("best")) for run in (finished_run, another)
    }
    assert (made["engine"], made["test_time_augmentation"]) == ("torch", ["gamma"])
    expected = load(finished_run, another)(scan, test_time_augmentation=["gamma"])
    assert np.array_equal(read_labels(tmp_path / "out" / scan.name).array, expected.array)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["--prompts", "ground_truth"], RunError, "a new scan has none. Say what you see with --visible or --text"),
        (["--prompts", "temlate"], RunError, "no source 'temlate'. Did you mean 'template'"),
        (["--prompts", "template", "--visible", "T10:L5"], RunError, "exclude each other"),
        (["--text", "T10 to L5", "--visible", "T10:L5"], RunError, "--visible and --text exclude each other"),
        (["--text", "T10 to L5", "--prompts", "template"], RunError, "--prompts and --text exclude each other"),
        (["--text", "T10 to L7"], PromptError, "--text: .*'T10 to L7': 'T10:L7': no 'L7' in the sequence"),
        (["--text", ""], PromptError, "--text: .*No visible structure is named"),
        (["--fact", "sequence"], PromptError, "--fact: 'sequence' must be KEY=VALUE, such as sequence=T2"),
        (["--fact", "a=1", "--fact", "A=2"], PromptError, "--fact: 'A' is given twice"),
        (["--fact", "sequence=T2"], PromptError, "The texts of 'tiny' state no fact 'sequence'. They state none"),
        (["--labels", "spidr"], DataError, "Did you mean 'spider'"),
        (["--test-time-augmentation", "flip"], RunError, "there is no 'flip'"),
        (["--with", "nowhere"], RunError, "'nowhere' is no run"),
        (["--format", "png"], DataError, "can't be written as 'png'"),
    ],
)
def test_mistakes_are_said_before_anything_is_read(
    finished_run: Path, scan: Path, tmp_path: Path, options: list[str], error: type[Exception], message: str
) -> None:
    arguments = ["predict", str(finished_run), str(scan), "--output", str(tmp_path / "out"), *options]
    with pytest.raises(error, match=message):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert not (tmp_path / "out").exists()
