from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from textseg.cli import entry as cli
from textseg.registry.discovery import installed_registry
from textseg.volumes.files import read_labels


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["textseg", "data", *arguments])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_check_says_what_is_sound(
    spider_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    report = tmp_path / "found.json"
    code = call(monkeypatch, "check", "spider", "--folder", str(spider_folder), "--json", str(report))
    stored = json.loads(report.read_text())
    assert f"{len(stored['sound'])} of {stored['cases']} cases are sound" in capsys.readouterr().out
    assert code == bool(stored["leave_out"])


def test_check_of_a_faulty_case_exits_with_1_and_says_how_to_go_on(
    spider_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
        for path in sorted((spider_folder / part).iterdir())[:2]:
            (tmp_path / part / path.name).write_bytes(path.read_bytes())
    damaged = sorted((tmp_path / "images").iterdir())[0]
    damaged.write_bytes(b"nothing")
    assert call(monkeypatch, "check", "spider", "--folder", str(tmp_path)) == 1
    out = capsys.readouterr().out
    assert f"fault  {damaged.stem}: {damaged} can't be read as a volume" in " ".join(out.split("\n"))
    assert f"--set 'leave_out=[\"{damaged.stem}\"]'" in out


def test_show_writes_pictures(
    spider_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    case = sorted((spider_folder / "images").iterdir())[0].stem
    folder = ("--folder", str(spider_folder))
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "show", "spider", case, *folder, "--slices", "1,2") == 0
    assert call(monkeypatch, "show", "spider", *folder, "--output", "all.png") == 0
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in (f"{case}.png", "all.png"))
    assert call(monkeypatch, "show", "spider", case[:-1], *folder) == 2
    assert f"Did you mean '{case}'" in capsys.readouterr().err
    assert call(monkeypatch, "show", "spider", case, *folder, "--slices", "one") == 2


def test_a_recipe_names_its_data_set(
    tiny_recipe: Path, stranger: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "check", str(tiny_recipe)) == 0
    assert "8 of 8 cases are sound" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("check", "spyder"), "There is no data set 'spyder'. Did you mean 'spider'"),
        (("check", "spider", "--folder", "nowhere"), "there is no such folder"),
        (("check", "spider", "--set", "folders=x"), "folders: unknown setting"),
        (("check", "spider", "--set", "x"), "--set x: write KEY=VALUE"),
        (("check", "missing.yaml"), "missing.yaml"),
        (("fetch", "lumbar_phantom"), "can't be fetched"),
        (("fetch", "mrspineseg", "--folder", "nowhere"), "signed agreement"),
        (("cache", "--leftovers"), "say what --clean removes"),
        (("convert", "no.mha", "b.mha", "--from", "spider", "--to", "mrspineseg"), "no.mha does not exist"),
    ],
)
def test_a_mistake_is_one_message(
    arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_fetch_prints_what_the_reader_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fetch(self: object, *, progress: object) -> str:
        for done in (1, 2):
            progress("images.zip", done, 2)  # type: ignore[operator]
        return "all is there"

    reader = installed_registry().component("dataset", "spider").load()
    monkeypatch.setattr(reader, "fetch", fetch)
    assert call(monkeypatch, "fetch", "spider", "--folder", str(tmp_path)) == 0
    assert capsys.readouterr().out.rstrip().endswith("all is there")


def test_convert_writes_other_values_and_lists_what_it_leaves_out(
    spider_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    mask, output = sorted((spider_folder / "masks").iterdir())[0], tmp_path / "b.nii.gz"
    names = ("convert", str(mask), str(output), "--from", "spider", "--to", "mrspineseg")
    assert call(monkeypatch, *names) == 2
    assert call(monkeypatch, *names, "--drop") == 0
    assert "left out: 100 (SC)" in capsys.readouterr().out
    before, after = read_labels(mask), read_labels(output)
    assert ((before.array == 1) == (after.array == 2)).all()


def test_cache_shows_and_cleans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TEXTSEG_CACHE", str(tmp_path))
    entry = tmp_path / "text/ab" / ("ab" * 32 + ".safetensors")
    entry.parent.mkdir(parents=True)
    entry.write_bytes(bytes(2_000_000))
    assert call(monkeypatch, "cache") == 0
    out = capsys.readouterr().out
    assert str(tmp_path) in out
    assert "1 texts with features     2.00 MB" in out
    assert call(monkeypatch, "cache", "--clean", "--older-than", "1") == 0
    assert entry.exists()
    assert call(monkeypatch, "cache", "--clean") == 0
    assert "removed 1 entry, 2.00 MB" in capsys.readouterr().out
    assert not entry.exists()


PARTS = """
from pathlib import Path

import textseg
from textseg.contracts import Atlas, Structure


@textseg.component("atlas", "mine")
def mine() -> Atlas:
    return Atlas("mine", (Structure("bone", "bone", 1),))
"""


def test_a_reader_may_use_an_atlas_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("images", "masks"):
        (tmp_path / "data" / name).mkdir(parents=True)
        array = np.zeros((3, 20, 16), np.int16 if name == "images" else np.uint8)
        array[:, 5:15, 4:12] = 1
        array[1, 6:9, 5:8] *= 1 if name == "masks" else 9
        sitk.WriteImage(sitk.GetImageFromArray(array), tmp_path / "data" / name / "a.mha")
    (tmp_path / "parts.py").write_text(PARTS)
    settings = ["--set", "atlas=mine", "--set", "dataset.labels={1: bone}"]
    arguments = ["check", "nifti_folder", "--folder", str(tmp_path / "data"), *settings]
    installed_registry.cache_clear()
    try:
        assert call(monkeypatch, *arguments) == 2
        assert "there is no atlas 'mine'" in capsys.readouterr().err
        assert call(monkeypatch, *arguments, "--code", str(tmp_path / "parts.py")) == 0
        assert "1 of 1 case is sound" in capsys.readouterr().out
    finally:
        installed_registry.cache_clear()
