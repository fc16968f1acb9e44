"""The code of the how-to pages runs unchanged, and its components pass the check at the end of the page."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from typer.testing import CliRunner

from textseg import testing
from textseg.cli.entry import app
from textseg.recipe.loading import load_recipe
from textseg.registry.component import Plugin
from textseg.registry.discovery import Register
from textseg.registry.kinds import KINDS
from textseg.runs.experiment import build
from textseg.runs.folder import RunFolder

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs/how_to").glob("add_a*.md"))
FURTHER = {"read_neighbouring_slices": "vision_encoder"}  # pages that show a component for another reason, and its kind


@pytest.fixture
def _scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write two patients of paired scans, and run the pages' code from their folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scans").mkdir()
    array = np.zeros((2, 4, 4), np.uint8)
    array[:, 1], array[:, 2] = 20, 21
    for name in ("anna_t1", "anna_t2", "ben_t2"):
        for part in ("image", "mask"):
            volume = SimpleITK.GetImageFromArray(array)
            SimpleITK.WriteImage(volume, tmp_path / "scans" / f"{name}_{part}.nii.gz")


@pytest.mark.usefixtures("_scans")
@pytest.mark.parametrize(
    "page",
    [*PAGES, *((ROOT / "docs/how_to" / name).with_suffix(".md") for name in FURTHER)],
    ids=lambda page: page.stem,
)
def test_the_code_of_a_page_runs_and_its_component_passes(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    kind = FURTHER.get(page.stem) or page.stem.split("_", 2)[2]
    assert f"check_{kind}(" in blocks[-1]
    name = f"how_to_{page.stem}"
    (tmp_path / f"{name}.py").write_text("\n\n".join(blocks), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    checked: list[str] = []
    check = getattr(testing, f"check_{kind}")
    monkeypatch.setattr(testing, f"check_{kind}", lambda c, **more: (checked.append(c.__name__), check(c, **more)))
    module = importlib.import_module(name)
    monkeypatch.delitem(sys.modules, name)
    register = Register(Plugin(name, name, "1"))
    module.textseg_register(register)
    assert {component.kind for component in register.components} == {kind}
    assert {component.target.__name__ for component in register.components} == set(checked)  # type: ignore[attr-defined]


def test_there_is_a_page_for_every_kind() -> None:
    assert {page.stem.split("_", 2)[2] for page in PAGES} == set(KINDS)


@pytest.mark.slow
@pytest.mark.usefixtures("stranger")
def test_the_commands_of_the_page_on_export_run(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    page = (ROOT / "docs/how_to/export.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    scan = build(load_recipe(RunFolder(finished_run).recipe)).cases["test"][0].case.image
    monkeypatch.chdir(tmp_path)
    SimpleITK.WriteImage(SimpleITK.ReadImage(scan), "scan.mha")
    Path("runs").mkdir()
    Path("runs/quickstart").symlink_to(finished_run)
    for fold in range(3):
        folder = RunFolder(Path(shutil.copytree(finished_run, f"fold{fold}")))
        state = folder.load_checkpoint("best")
        next(iter(state["model"].values())).add_(0.01 * fold)  # the same weights twice are no ensemble
        folder.save_checkpoint("best", state)
        export = ["export", str(folder.path), "--to", "bundle", "--output", f"fold{fold}_bundle"]
        assert CliRunner().invoke(app, export, catch_exceptions=False).exit_code == 0
    for language, code in blocks:
        if language == "python":
            exec(code, {})
            continue
        for program, *arguments in map(shlex.split, code.splitlines()):
            if program == "textseg":
                assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
            else:
                subprocess.run([sys.executable, *arguments], check=True)
    files = [f"{folder}/scan.mha" for folder in ("masks", "masks_onnx")]
    masks = [SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(file)) for file in files]
    spider = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage("mask.nii.gz"))
    assert all(mask.any() for mask in masks)
    assert np.array_equal(masks[0] > 0, spider > 0)  # told the same, with other values
    sidecar = json.loads(Path("masks_ensemble/scan.json").read_text())
    assert len({member["model_sha256"] for member in sidecar["made"]["members"]}) == 3
    assert Path("masks_container/scan.mha").exists()
