from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from torch import nn
from typer.testing import CliRunner

import textseg
from textseg.cli.entry import app
from textseg.errors import DataError, RunError
from textseg.export.grand_challenge import made_of, requirements
from textseg.recipe.loading import load_recipe
from textseg.runs.experiment import build
from textseg.runs.folder import RunFolder


@pytest.fixture(scope="module")
def scan(finished_run: Path, stranger: None) -> Path:
    return build(load_recipe(RunFolder(finished_run).recipe)).cases["test"][0].case.image


@pytest.fixture(scope="module")
def container(finished_run: Path, stranger: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("containers") / "tiny"
    arguments = ["export", str(finished_run), "--to", "grand-challenge", "--slug", "sagittal-mr:spine"]
    result = CliRunner().invoke(app, [*arguments, "--output", str(folder)], catch_exceptions=False)
    assert result.stdout.strip() == str(folder)
    return folder


def test_its_check_runs_it_on_scans_without_docker(container: Path, finished_run: Path, scan: Path) -> None:
    scans = [str(scan)]
    if data := os.environ.get("TEXTSEG_DATA"):
        scans += [str(path) for path in sorted((Path(data) / "spider" / "images").glob("*.mha"))[:1]]
    kept = container.parent / "kept"
    command = [sys.executable, str(container / "check.py"), *scans, "--keep", str(kept)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "wrong: its" not in result.stdout, result.stdout
    assert "wrong: there is no mask" not in result.stdout, result.stderr
    assert result.stdout.startswith(str(scan))
    assert "voxels, centre at" in result.stdout
    results = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(kept / f"{scan.name.split('.')[0]}.mha"))
    textseg.load(finished_run)(scan).save(container.parent / "expected.mha", labels="spider")
    expected = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(container.parent / "expected.mha"))
    assert np.array_equal(results, expected)
    assert set(np.unique(results)) <= {0, *range(1, 26), 100, *range(201, 225)}


def test_its_values_are_those_of_the_challenge_counted_from_the_bottom(container: Path) -> None:
    settings = json.loads((container / "container.json").read_text())
    assert settings["slugs"] == {"input": ["sagittal-mr"], "output": "spine"}
    values = settings["values"]
    assert (values["L5"], values["L4"], values["T12"], values["SC"]) == (1, 2, 6, 100)
    assert (values["L5/S"], values["L4/L5"]) == (201, 202)
    assert settings["sequence"].index("T12") < settings["sequence"].index("L5")


@pytest.mark.parametrize("move", ["origin", "value", "empty", "real"])
def test_its_check_sees_what_is_wrong_with_a_mask(container: Path, scan: Path, move: str) -> None:
    namespace: dict[str, object] = {"__name__": "checked", "__file__": str(container / "check.py")}
    exec((container / "check.py").read_text(), namespace)
    settings = json.loads((container / "container.json").read_text())
    image = SimpleITK.ReadImage(scan)
    mask = SimpleITK.Cast(image > 0, SimpleITK.sitkUInt8)
    expected = {"origin": "its Origin is", "value": "it holds the values [77]", "empty": "it holds nothing"}
    if move == "origin":
        mask.SetOrigin([value + 1e-3 for value in mask.GetOrigin()])
    elif move == "value":
        mask *= 77
    elif move == "empty":
        mask *= 0
    else:
        mask, expected["real"] = SimpleITK.Cast(mask, SimpleITK.sitkFloat32), "no integers"
    wrong = namespace["check"](image, mask, settings)  # type: ignore[operator]
    assert any(expected[move] in sentence for sentence in wrong)


def test_its_requirements_are_pinned_with_what_they_need_in_turn() -> None:
    pinned = dict(line.split("==") for line in requirements(["textseg"]))
    assert pinned["textseg"] == textseg.__version__
    assert pinned["torch"] == importlib.metadata.version("torch").partition("+")[0]
    assert "sympy" in pinned  # torch's own
    assert "pytest" not in pinned


def test_what_a_network_is_made_of_is_required_though_only_an_extra_brings_it() -> None:
    def of_an_extra(name: str) -> nn.Module:
        return type("Block", (nn.Module,), {"__module__": name})()

    assert made_of(nn.Sequential(nn.ReLU(), of_an_extra("pytest.blocks"))) == {"torch", "pytest"}
    assert made_of(of_an_extra("written_nowhere")) == set()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["--to", "grand-challenge"], RunError, "--slug: say how the challenge calls"),
        (["--to", "grand-challenge", "--slug", "A b"], RunError, "'A b' is no slug"),
        (
            ["--to", "grand-challenge", "--slug", "a", "--labels", "spidr"],
            DataError,
            "--labels: .*mean 'spider'",
        ),
        (["--to", "grand-challenge", "--slug", "a", "--labels", "totalsegmentator"], DataError, "have no value for"),
        (["--to", "bundle", "--slug", "a"], RunError, "belong to --to grand-challenge"),
        (["--to", "bundel"], RunError, "no form 'bundel'. Did you mean 'bundle'"),
    ],
)
def test_mistakes_are_said_and_nothing_is_written(
    finished_run: Path, stranger: None, tmp_path: Path, options: list[str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        CliRunner().invoke(
            app, ["export", str(finished_run), *options, "--output", str(tmp_path / "x")], catch_exceptions=False
        )
    assert list(tmp_path.iterdir()) == []
